"""The hyperparameter files: which environments they cover and that every entry builds a model."""

import contextlib
import inspect
import re
from argparse import Namespace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import rl_zoo3
import yaml
from conftest import SpaceEnv
from gymnasium import spaces
from rl_zoo3 import exp_manager
from stable_baselines3.common.noise import NormalActionNoise

from sb3_bn_ddpg import BNSAC, CROSSQ, zoo
from sb3_bn_ddpg.pixels.dm_control import TASKS, import_suite

with contextlib.suppress(ImportError):
    import_suite()

zoo.register()

PROFILES = [(algo, profile) for algo, row in zoo.ALGORITHMS.items() for profile in row.profiles]
ONLINE = [algo for algo, row in zoo.ALGORITHMS.items() if not row.needs_dataset]
"""The algorithms that act; test_zoo_offline.py has the others."""
ONLINE_PROFILES = [(algo, profile) for algo, profile in PROFILES if algo in ONLINE]
FILES = {(algo, profile): yaml.safe_load(zoo.profile_path(profile, algo).read_text()) for algo, profile in PROFILES}
DEFAULTS = {algo: list(row.profiles)[-1] for algo, row in zoo.ALGORITHMS.items()}
"""Of each algorithm the profile that has the class's defaults, the last one."""
TUNED, PAPER = FILES[zoo.ALGO, "tuned"], FILES[zoo.ALGO, "paper"]
PAPERS = {
    "cartpole": ("swingup", "balance", "two_poles", "three_poles"),
    "cheetah": ("run",),
    "hopper": ("stand",),
    "manipulator": ("bring_ball",),
    "pendulum": ("swingup",),
    "point_mass": ("easy",),
    "quadruped": ("walk",),
    "reacher": ("easy",),
    "walker": ("walk",),
}


SUITE_NAMES, PAPERS_NAMES = (
    {f"{domain}-{task}" for domain, tasks in suite.items() for task in tasks} for suite in (TASKS, PAPERS)
)
# One of those that have the same entry is enough, and a whole suite takes minutes
NOT_BUILT = {f"dm_control/{name}-v0" for name in SUITE_NAMES - PAPERS_NAMES}


def built_entries(algo, profile):
    """The environments that are built with a profile. The first algorithm's are all looked up; the others have the same."""
    entries = FILES[algo, profile]
    env_ids = [env_id for env_id in entries if "default" not in env_id and "-pixels-" not in env_id]
    if algo == zoo.ALGO:
        return [env_id for env_id in env_ids if env_id not in NOT_BUILT]
    return list({repr(entries[env_id]): env_id for env_id in reversed(env_ids)}.values())[::-1]


ENTRIES = [(algo, profile, env_id) for algo, profile in ONLINE_PROFILES for env_id in built_entries(algo, profile)]


def model_of(algo, profile, env_id, folder, **kwargs):
    """The model that the Zoo would train with an entry."""
    config = str(zoo.profile_path(profile, algo))
    arguments = {"log_folder": str(folder), "eval_freq": -1, "verbose": 0, "config": config} | kwargs
    manager = exp_manager.ExperimentManager(Namespace(env=env_id), algo, env_id, **arguments)
    return manager.setup_experiment()[0]


def policy_of(algo, name):
    """The class of an algorithm's policy of that name."""
    return zoo.ALGORITHMS[algo].algorithm.policy_aliases[name]


def test_algorithms_have_profiles_for_the_same_environments():
    for algo, row in zoo.ALGORITHMS.items():
        default = next(iter(row.profiles))
        assert FILES[algo, default].keys() == TUNED.keys()
        if algo in ONLINE:
            assert FILES[algo, DEFAULTS[algo]].keys() == PAPER.keys()


@pytest.mark.parametrize(("algo", "profile", "env_id"), ENTRIES)
def test_entry_builds_a_model_that_trains(algo, profile, env_id, tmp_path):
    if env_id not in gym.registry:
        pytest.skip(f"the package that registers {env_id} is not installed")
    spec = gym.spec(env_id)
    versions = [
        other.version for other in gym.registry.values() if (other.namespace, other.name) == (spec.namespace, spec.name)
    ]
    assert spec.version == max(versions)
    try:
        gym.make(env_id).close()
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError):
        # All that can be told without the simulator: that it exists, and for how long an episode lasts
        assert spec.max_episode_steps is not None
        return
    model = model_of(algo, profile, env_id, tmp_path)
    entry = FILES[algo, profile][env_id]
    assert model.batch_size == entry["batch_size"]
    assert len(model.critic.q_networks) == entry["policy_kwargs"].get("n_critics", 1)
    noise = model.action_noise
    if "action_noise" in entry:
        sigma = noise._sigma if isinstance(noise, NormalActionNoise) else noise.sigma
        assert np.all(sigma == entry["action_noise"]["sigma"])
    else:
        assert algo == "bn_sac"
        assert noise is None
    assert model.learning_starts <= entry["n_timesteps"] / 10
    model.learning_starts = 10
    assert model.learn(13)._n_updates == 3


def test_unlisted_environment_gets_the_default(tmp_path):
    assert "Ant-v4" not in TUNED
    gym.register("Unlisted-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=200)
    assert model_of(zoo.ALGO, "tuned", "Unlisted-v0", tmp_path).batch_size == TUNED["default"]["batch_size"]


VECTORS, IMAGE = (
    spaces.Dict(place=spaces.Box(-1, 1, (2,)), speed=spaces.Box(-9, 9, (3,))),
    spaces.Box(0, 255, (36, 40, 1), np.uint8),
)
gym.register("Vectors-v0", lambda: SpaceEnv(VECTORS, spaces.Box(-1, 1, (2,))))
gym.register("Image-v0", lambda: SpaceEnv(IMAGE, spaces.Box(-1, 1, (2,))))
gym.register("Both-v0", lambda: SpaceEnv(spaces.Dict(VECTORS, camera=IMAGE), spaces.Box(-1, 1, (2,))))


@pytest.mark.parametrize(("algo", "profile"), ONLINE_PROFILES)
@pytest.mark.parametrize(
    ("env_id", "policy"), [("Vectors-v0", "MultiInputPolicy"), ("Both-v0", "MultiInputPolicy"), ("Image-v0", "CnnPolicy")]
)
def test_an_unlisted_environment_gets_the_policy_for_its_observations(algo, profile, env_id, policy, tmp_path):
    """And trains, without any hyperparameter on the command line."""
    model = model_of(algo, profile, env_id, tmp_path)
    assert type(model.policy) is policy_of(algo, policy)
    entry = FILES[algo, profile]["default_images" if policy == "CnnPolicy" else "default_dict"]
    assert model.batch_size == entry["batch_size"]
    assert model.n_steps == 1
    model.learning_starts = 10
    assert model.learn(12)._n_updates == 2
    config = yaml.unsafe_load((tmp_path / f"{algo}/{env_id}_1/{env_id}/config.yml").read_text())
    assert config["policy"] == entry["policy"]


@pytest.mark.parametrize("algo", ONLINE)
def test_a_search_in_an_unlisted_environment_with_a_dictionary(algo, tmp_path):
    """Its trials, and a training from one of them."""
    search = dict(optimize_hyperparameters=True, n_trials=1, n_timesteps=110, n_eval_episodes=1, no_optim_plots=True)
    arguments = {"log_folder": str(tmp_path), "eval_freq": -1, "verbose": 0}
    manager = exp_manager.ExperimentManager(Namespace(env="Vectors-v0"), algo, "Vectors-v0", **arguments, **search)
    manager.setup_experiment()
    manager.hyperparameters_optimization()
    model = model_of(algo, None, "Vectors-v0", tmp_path, trial_id=0)
    assert (type(model.policy), model.n_steps) == (policy_of(algo, "MultiInputPolicy"), 1)


@pytest.mark.parametrize(
    ("env_id", "hyperparams", "policy", "n_steps"),
    [
        ("Vectors-v0", {"env_wrapper": "gymnasium.wrappers.FlattenObservation"}, "MlpPolicy", 5),
        ("Image-v0", {"policy": "MlpPolicy"}, "MlpPolicy", 5),
        ("Image-v0", {"policy": "CnnPolicy"}, "CnnPolicy", 1),
        ("Vectors-v0", {"policy": "sb3_bn_ddpg.MultiInputPolicy"}, "MultiInputPolicy", 1),
    ],
)
def test_the_command_line_says_more_than_the_observations(env_id, hyperparams, policy, n_steps, tmp_path):
    model = model_of(zoo.ALGO, "tuned", env_id, tmp_path, hyperparams=hyperparams)
    assert (type(model.policy), model.n_steps) == (policy_of(zoo.ALGO, policy), n_steps)


def test_tuned_profile_covers_the_zoos_file():
    zoos = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams/ddpg.yml").read_text())
    assert "MountainCarContinuous-v0" in zoos
    for env_id in zoos:
        name = re.sub(r"-v4$", "-v5", env_id)  # Gymnasium's MuJoCo environments
        assert name in TUNED


def test_tuned_profile_covers_mujoco():
    mujoco = [
        spec.id for spec in gym.registry.values() if "gymnasium.envs.mujoco" in str(spec.entry_point) and spec.version == 5
    ]
    assert len(mujoco) == 11
    assert set(mujoco) <= TUNED.keys()


@pytest.mark.parametrize("of", PROFILES, ids="-".join)
def test_profiles_cover_the_suite(of):
    assert PAPERS_NAMES < SUITE_NAMES
    for pattern in ("dm_control/{}-v0", "bn_ddpg/{}-pixels-v0"):
        namespace = pattern.partition("/")[0]
        env_ids = {pattern.format(name) for name in SUITE_NAMES}
        assert env_ids == {env_id for env_id in FILES[of] if env_id.startswith(namespace)}
        # One entry for all of them
        assert all(FILES[of][env_id] == FILES[of][pattern.format("reacher-easy")] for env_id in env_ids)
    assert {f"bn_ddpg/{name}-pixels-v0" for name in SUITE_NAMES} <= gym.registry.keys()


def test_paper_profile_for_pixels_is_the_papers():
    """Section 7: what differs from states is the minibatch, the networks, and that nothing is batch-normalised."""
    states, pixels = PAPER["default"], PAPER["bn_ddpg/reacher-easy-pixels-v0"]
    changed = {name: value for name, value in pixels.items() if states.get(name) != value}
    assert changed.keys() == {"policy", "batch_size", "replay_buffer_class", "policy_kwargs"}
    assert (changed["policy"], changed["batch_size"]) == ("CnnPolicy", 16)
    assert changed["policy_kwargs"] == {"net_arch": [200, 200], "normalization": None, "final_init": 3e-4}


@pytest.mark.parametrize("env_id", ["default", *built_entries(zoo.ALGO, "paper")])
def test_paper_profile_is_the_papers(env_id):
    """Section 7 of the paper; and where the class has a default, that is the same."""
    entry = PAPER[env_id]
    assert entry["learning_rate"] == 1e-4
    assert entry["critic_learning_rate"] == 1e-3
    assert entry["critic_weight_decay"] == 1e-2
    assert (entry["gamma"], entry["tau"], entry["batch_size"], entry["buffer_size"]) == (0.99, 0.001, 64, 1e6)
    assert entry["action_noise"] == {"type": "ou", "theta": 0.15, "sigma": 0.2, "dt": 1.0}
    assert entry["policy_kwargs"] == {"net_arch": [400, 300], "normalization": "batch"}
    assert entry["n_timesteps"] == 2.5e6


@pytest.mark.parametrize("algo", zoo.ALGORITHMS)
def test_last_profile_has_the_classs_defaults(algo):
    entry, algorithm = FILES[algo, DEFAULTS[algo]]["default"], zoo.ALGORITHMS[algo].algorithm
    defaults = {name: parameter.default for name, parameter in inspect.signature(algorithm).parameters.items()}
    assert entry.keys() - defaults.keys() == {"n_timesteps"}
    if defaults["critic_learning_rate"] is None:
        defaults["critic_learning_rate"] = defaults["learning_rate"]
    for name in entry.keys() & defaults.keys() - {"policy", "action_noise", "policy_kwargs"}:
        assert entry[name] == defaults[name]


@pytest.mark.parametrize("algo", ONLINE)
def test_last_profile_builds_the_default_model(algo, tmp_path):
    """The noise and the networks too are those of the class without arguments."""
    from_file = model_of(algo, DEFAULTS[algo], "Pendulum-v1", tmp_path)
    default = zoo.ALGORITHMS[algo].algorithm("MlpPolicy", "Pendulum-v1")
    assert repr(from_file.action_noise) == repr(default.action_noise)
    assert str(from_file.policy) == str(default.policy)
    assert from_file.use_target_networks == default.use_target_networks


def test_paper_profile_of_td3():
    """Section 6.1 of its paper, as far as the class follows it."""
    entry = FILES["bn_td3", "paper"]["default"]
    assert (entry["learning_rate"], entry["critic_learning_rate"], entry["critic_weight_decay"]) == (1e-3, 1e-3, 0)
    assert (entry["gamma"], entry["tau"], entry["buffer_size"], entry["n_timesteps"]) == (0.99, 0.005, 1e6, 1e6)
    assert (entry["policy_delay"], entry["target_policy_noise"], entry["target_noise_clip"]) == (2, 0.2, 0.5)
    assert entry["action_noise"] == {"type": "normal", "sigma": 0.1}
    assert (entry["policy_kwargs"]["n_critics"], entry["policy_kwargs"]["net_arch"]) == (2, [400, 300])


def test_second_profile_of_sac_is_crossq_with_narrower_critics():
    entry = FILES["bn_sac", "crossq"]["default"]
    lists = {"optimizer_kwargs": {"betas": [0.5, 0.999]}, "net_arch": {"pi": [256, 256], "qf": [256, 256]}}
    assert CROSSQ["policy_kwargs"]["net_arch"] == {"pi": [256, 256], "qf": [1024, 1024]}
    assert CROSSQ["policy_kwargs"]["optimizer_kwargs"] == {"betas": (0.5, 0.999)}
    assert entry["policy_kwargs"] == CROSSQ["policy_kwargs"] | lists | {"n_critics": 2}
    defaults = inspect.signature(BNSAC).parameters
    for name in entry.keys() - {"policy", "n_timesteps", "policy_kwargs"}:
        assert entry[name] == CROSSQ.get(name, defaults[name].default)
    assert CROSSQ.keys() <= entry.keys()


def test_first_profile_of_sac_is_crossq_but_for_returns_rewards_and_entropy():
    tuned, crossq = (FILES["bn_sac", name] for name in ("tuned", "crossq"))
    changed = dict(learning_rate="lin_1e-3", n_steps=2, reward_scaling="return_std", ent_coef="auto_0.01")
    assert tuned["default"] == crossq["default"] | changed
    assert tuned.keys() == crossq.keys()
    for env_id, entry in crossq.items():
        is_other = entry["policy"] != "MlpPolicy"  # images, and observations for which SB3 has no returns of several steps
        kept = dict(n_steps=1, reward_scaling=None, ent_coef="auto")
        assert tuned[env_id] == entry | (kept if is_other else changed), env_id


def test_last_profile_of_sac():
    """Table 1 of its paper (arXiv 1812.05905), batch norm and the numbers of the warm-up aside."""
    entry = FILES["bn_sac", "sac"]["default"]
    assert (entry["learning_rate"], entry["gamma"], entry["buffer_size"], entry["batch_size"]) == (3e-4, 0.99, 1e6, 256)
    assert (entry["tau"], entry["target_update_interval"], entry["gradient_steps"]) == (0.005, 1, 1)
    assert (entry["policy_kwargs"]["n_critics"], entry["policy_kwargs"]["net_arch"]) == (2, [256, 256])
    assert (entry["ent_coef"], entry["target_entropy"], entry["policy_delay"]) == ("auto", "auto", 1)


def test_unknown_profile():
    with pytest.raises(ValueError, match="`profile='best'` is not allowed: it must be one of 'tuned', 'paper'"):
        zoo.profile_path("best")


def test_a_model_that_goes_on_with_other_values_says_which(tmp_path, monkeypatch, recwarn):
    """RL Zoo's -i takes the model of a training and the hyperparameters of the command line, by default those of a profile."""
    folder = tmp_path / "first/Pendulum-v1"
    folder.mkdir(parents=True)
    model_of("bn_td3", "paper", "Pendulum-v1", tmp_path, hyperparams={"buffer_size": 50}).save(folder.parent / "model.zip")
    (folder / "config.yml").write_text(yaml.dump([*(FILES["bn_td3", "paper"]["default"] | {"buffer_size": 50}).items()]))
    loading = dict(trained_agent=str(folder.parent / "model.zip"), hyperparams={"buffer_size": 60})
    assert model_of("bn_td3", "paper", "Pendulum-v1", tmp_path, **loading).buffer_size == 60
    assert not [str(each.message) for each in recwarn if "goes on with other" in str(each.message)]
    with pytest.warns(UserWarning, match=r"model.zip goes on with other hyperparameters .*bn_td3.yml: .*gamma 0.99 -> 0.98"):
        model = model_of("bn_td3", "tuned", "Pendulum-v1", tmp_path, **loading)
    assert model.gamma == 0.98
    (folder / "config.yml").write_text("- [policy_kwargs, !!python/name:gone.Features '']")
    assert model_of("bn_td3", "tuned", "Pendulum-v1", tmp_path, **loading).gamma == 0.98


def test_a_profile_may_be_named_by_a_relative_path(tmp_path, monkeypatch):
    file = zoo.profile_path("tuned", "bn_sac")
    monkeypatch.chdir(file.parent)
    manager = exp_manager.ExperimentManager(
        Namespace(env="Image-v0"), "bn_sac", "Image-v0", log_folder=str(tmp_path), config=file.name, verbose=0
    )
    assert manager.read_hyperparameters()[0]["policy"] == "CnnPolicy"
