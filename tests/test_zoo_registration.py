"""What ``register()`` changes inside a process: the algorithm, its noise and schedules in files, its search space."""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from zoo_runs import PYTHON_FILE

pytest.importorskip("rl_zoo3")

import optuna
import rl_zoo3.train
import rl_zoo3.utils
import yaml
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_bn_ddpg import BNDDPG, OrnsteinUhlenbeckNoise, cli, zoo
from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.zoo import python_files
from sb3_bn_ddpg.zoo.search_space import file_policy_kwargs
from sb3_bn_ddpg.zoo.studies import as_code, default_study_name, finished_trials, load_study, open_storage

zoo.register()

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}


class NaNRewards(gym.Wrapper):
    """An environment that breaks at its twentieth step."""

    def __init__(self, env, is_broken=True):
        super().__init__(env)
        self.steps_left = 20 if is_broken else np.inf

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.steps_left -= 1
        return observation, np.nan if self.steps_left <= 0 else reward, terminated, truncated, info


def make_nan_rewards(is_broken=True):
    return NaNRewards(gym.make("Pendulum-v1"), is_broken)


gym.register("NaNRewards-v0", make_nan_rewards, max_episode_steps=200)


def manager_of(folder, env_id="Pendulum-v1", algo="bn_ddpg", entry=None, **kwargs):
    """The Zoo's manager for an environment; ``entry`` is written to a file as its only one."""
    if entry is not None:
        path = folder / "entry.yml"
        path.write_text(yaml.safe_dump({env_id: {"n_timesteps": 100, "policy": "MlpPolicy", **entry}}))
        kwargs["config"] = str(path)
    arguments = {"log_folder": str(folder / "logs"), "eval_freq": -1, "verbose": 0} | kwargs
    return exp_manager.ExperimentManager(Namespace(env=env_id), algo, env_id, **arguments)


def model_of(folder, **kwargs):
    return manager_of(folder, **kwargs).setup_experiment()[0]


def trials(n_trials, algo="bn_ddpg", **kwargs):
    """Sampled hyperparameters and their trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked = [study.ask() for _ in range(n_trials)]
    return [
        (HYPERPARAMS_SAMPLER[algo](trial, **({"n_actions": 1, "n_envs": 1, "additional_args": NO_HER} | kwargs)), trial)
        for trial in asked
    ]


def test_register_twice_is_harmless():
    before = (list(ALGOS), list(HYPERPARAMS_SAMPLER), exp_manager.ExperimentManager)
    zoo.register()
    assert (list(ALGOS), list(HYPERPARAMS_SAMPLER), exp_manager.ExperimentManager) == before
    assert ALGOS["bn_ddpg"] is BNDDPG
    assert rl_zoo3.train.ExperimentManager is exp_manager.ExperimentManager
    of_the_zoo = [cls.__module__ for cls in exp_manager.ExperimentManager.__mro__].index("rl_zoo3.exp_manager")
    assert [cls.__module__ for cls in exp_manager.ExperimentManager.__mro__[of_the_zoo:]] == [
        "rl_zoo3.exp_manager",
        "builtins",
    ]


def test_other_algorithms_keep_their_files(tmp_path):
    assert manager_of(tmp_path, algo="ddpg").config.endswith("rl_zoo3/hyperparams/ddpg.yml")
    assert manager_of(tmp_path).config == str(zoo.profile_path("tuned"))
    assert manager_of(tmp_path, algo="bn_td3").config == str(zoo.profile_path("tuned", "bn_td3"))
    assert manager_of(tmp_path, algo="bn_sac").config == str(zoo.profile_path("tuned", "bn_sac"))


# --- Noise and schedules in a file


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"action_noise": "ou"}, OrnsteinUhlenbeckNoise(np.zeros(1))),
        ({"noise_type": "ou"}, OrnsteinUhlenbeckNoise(np.zeros(1))),
        ({"noise_type": "ou", "noise_std": 0.3}, OrnsteinUhlenbeckNoise(np.zeros(1), sigma=0.3)),
        ({"action_noise": {"theta": 0.3, "dt": 0.5}}, OrnsteinUhlenbeckNoise(np.zeros(1), theta=0.3, dt=0.5)),
        (
            {"action_noise": {"type": "ou", "sigma": 0.1, "initial_noise": [0.5]}},
            OrnsteinUhlenbeckNoise(np.zeros(1), sigma=0.1, initial_noise=np.array([0.5])),
        ),
        ({"action_noise": {"type": "normal", "sigma": 0.3}}, NormalActionNoise(np.zeros(1), np.full(1, 0.3))),
        ({"noise_type": "normal", "noise_std": 0.3}, NormalActionNoise(np.zeros(1), np.full(1, 0.3))),
        (
            {"noise_type": "ornstein-uhlenbeck", "noise_std": 0.3},
            OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.3), dt=1e-2),
        ),
        ({"action_noise": None}, None),
        ({"noise_type": None, "noise_std": 0.3}, None),
        ({"noise_type": " normal ", "noise_std": [0.3]}, NormalActionNoise(np.zeros(1), np.full(1, 0.3))),
    ],
)
def test_noise_of_a_file(entry, expected, tmp_path):
    noise = model_of(tmp_path, entry=entry).action_noise
    assert repr(noise) == repr(expected)
    if isinstance(expected, OrnsteinUhlenbeckNoise):
        assert noise.initial_noise == expected.initial_noise


@pytest.mark.parametrize(
    ("sigma", "at_start", "at_half", "at_end"),
    [("lin_0.4", 0.4, 0.2, 0.0), ({"start": 0.4, "end": 0.1, "end_fraction": 0.5}, 0.4, 0.1, 0.1)],
)
def test_sigma_schedule_of_a_file(sigma, at_start, at_half, at_end, tmp_path):
    noise = model_of(tmp_path, entry={"action_noise": {"sigma": sigma}}).action_noise
    for progress_remaining, expected in ((1.0, at_start), (0.5, at_half), (0.0, at_end)):
        noise.update_progress(progress_remaining)
        assert noise.sigma == pytest.approx(expected)


def test_learning_rate_schedules_of_a_file(tmp_path):
    model = model_of(tmp_path, entry={"learning_rate": "lin_1.0e-3", "critic_learning_rate": "lin_2.0e-3"})
    assert (model.lr_schedule(0.5), model.critic_lr_schedule(0.5)) == (0.5e-3, 1e-3)


@pytest.mark.parametrize(
    ("file_noise", "command_line", "sigma"),
    [
        ({"noise_type": "normal", "noise_std": 0.1}, {"action_noise": {"sigma": 0.5}}, 0.5),
        ({"action_noise": {"sigma": 0.1}}, {"noise_type": "ou", "noise_std": 0.5}, 0.5),
        ({"action_noise": {"sigma": 0.1}}, {"action_noise": {"sigma": 0.5}}, 0.5),
    ],
)
def test_noise_of_the_command_line_replaces_the_files(file_noise, command_line, sigma, tmp_path):
    model, saved = manager_of(tmp_path, entry=file_noise, hyperparams=command_line).setup_experiment()
    assert isinstance(model.action_noise, OrnsteinUhlenbeckNoise)
    assert model.action_noise.sigma == sigma
    assert {key: saved[key] for key in saved if "noise" in key} == command_line


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"action_noise": "white"}, "`action_noise='white'` is not allowed: it must be 'ou', 'normal', None or an"),
        (
            {"action_noise": {"type": "white"}},
            r"`action_noise\['type'\]='white'` is not allowed: it must be one of 'ou', 'normal'",
        ),
        (
            {"action_noise": {"type": "normal", "dt": 1}},
            r"`action_noise\['dt'\]=1` is not allowed: with type 'normal' its keys are",
        ),
        (
            {"action_noise": {"type": "normal"}},
            r"`action_noise\['sigma'\]=None` is not allowed: it must be a finite number >= 0",
        ),
        ({"action_noise": {"sigma": "0.2_lin"}}, r"`action_noise\['sigma'\]='0.2_lin'` is not allowed"),
        ({"action_noise": {"sigma": {"start": 1}}}, "a schedule needs 'start', 'end' and 'end_fraction'"),
        ({"action_noise": {"dt": 0}}, "`dt=0` is not allowed"),
        (
            {"noise_type": "white"},
            "`noise_type='white'` is not allowed: it must be one of 'normal', 'ornstein-uhlenbeck', 'ou'",
        ),
        (
            {"action_noise": {"type": "normal", "sigma": [0.1, 0.2]}},
            r"`action_noise\['sigma'\]=\[0.1, 0.2\]` is not allowed: it must be a number or fit actions of shape \(1,\)",
        ),
        (
            {"noise_type": "normal", "noise_std": [0.1, "a"]},
            r"`noise_std\[1\]='a'` is not allowed: it must be a finite number >= 0",
        ),
        ({"noise_type": "normal"}, "`noise_std=None` is not allowed: it must be a finite number >= 0"),
        ({"noise_std": 0.1}, "`noise_std=0.1` is not allowed without `noise_type`"),
        ({"noise_type": "ou", "action_noise": "ou"}, "`action_noise='ou'` is not allowed beside `noise_type='ou'`"),
        ({"learning_rate": "1e-3"}, "`learning_rate='1e-3'` is not allowed: it must be a number >= 0 or 'lin_<number>'"),
        ({"critic_learning_rate": "lin_-1"}, "`critic_learning_rate='lin_-1'` is not allowed"),
        ({"critic_learning_rate": -1}, "`critic_learning_rate"),
    ],
)
def test_wrong_entries_of_a_file(entry, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        model_of(tmp_path, entry=entry)


@pytest.mark.parametrize(
    ("kwargs", "error_type", "message"),
    [
        ({"env_kwargs": {"gg": 3.0}}, TypeError, "unexpected keyword argument 'gg'"),
        ({"trained_agent": "damaged.zip"}, FileError, "^the file .*damaged.zip is truncated"),
        ({"trained_agent": "other.zip"}, ValueError, "^Observation spaces do not match"),
    ],
)
def test_errors_that_are_not_the_files_do_not_name_it(kwargs, error_type, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = gym.make("MountainCarContinuous-v0")
    BNDDPG("MlpPolicy", env, learning_starts=5, buffer_size=100).learn(10).save_checkpoint("other.zip")
    Path("damaged.zip").write_bytes(Path("other.zip").read_bytes()[:-100])
    with pytest.raises(error_type, match=message) as error:
        model_of(tmp_path, entry={"buffer_size": 1000}, n_timesteps=10, **kwargs)
    assert "entry.yml" not in str(error.value)


def test_the_environment_of_a_file_is_that_of_evaluations_too(tmp_path):
    manager = manager_of(tmp_path, entry={"env_kwargs": {"g": 3.0}}, eval_freq=100)
    manager.setup_experiment()
    (callback,) = (each for each in manager.callbacks if isinstance(each, EvalCallback))
    assert callback.eval_env.get_attr("g") == [3.0]
    manager = manager_of(tmp_path, entry={"env_kwargs": {"g": 3.0}}, eval_env_kwargs={"g": 4.0}, eval_freq=100)
    manager.setup_experiment()
    assert manager.eval_env_kwargs == {"g": 4.0}


def test_the_critics_rate_of_a_file_may_be_the_actors(tmp_path):
    model = model_of(tmp_path, entry={"learning_rate": 2.0e-3, "critic_learning_rate": None})
    assert model.critic_lr_schedule(1.0) == 2.0e-3


def test_a_checkpoint_apart_from_its_folder_warns(tmp_path):
    path = tmp_path / "alone.zip"
    BNDDPG("MlpPolicy", "Pendulum-v1", learning_starts=5, buffer_size=100).learn(10).save_checkpoint(path)
    with pytest.warns(UserWarning, match=r"alone.zip has no Pendulum-v1/config.yml beside it: the model is the checkpoint's"):
        model = model_of(tmp_path, entry={"buffer_size": 1000}, trained_agent=str(path), n_timesteps=10)
    assert model.num_timesteps == 10


def test_a_resumed_run_can_begin_a_new_episode(tmp_path, monkeypatch):
    path = tmp_path / "alone.zip"
    BNDDPG("MlpPolicy", "Pendulum-v1", learning_starts=5, buffer_size=100).learn(10).save_checkpoint(path)
    begins = []
    try:
        for arguments in ([], ["--new-episode"]):
            assert cli._train_options(["--env", "Pendulum-v1", *arguments], zoo, False) == ["--env", "Pendulum-v1"]
            with pytest.warns(UserWarning, match="has no Pendulum-v1/config.yml beside it"):
                model = model_of(tmp_path, entry={"buffer_size": 1000}, trained_agent=str(path), n_timesteps=10)
            begins.append(model._last_obs is None)
    finally:
        zoo.register()
    assert begins == [False, True]


def test_a_resumed_run_begins_with_the_best_model_and_its_statistics(tmp_path):
    old = tmp_path / "old"
    (old / "Pendulum-v1").mkdir(parents=True)
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    model = BNDDPG("MlpPolicy", env, learning_starts=5, buffer_size=100).learn(10)
    model.save_checkpoint(old / "checkpoint.zip")
    model.save(old / "best_model.zip")
    env.save(old / "Pendulum-v1/vecnormalize.pkl")
    entry = {"buffer_size": 1000, "normalize": True}
    manager = manager_of(tmp_path, entry=entry, trained_agent=str(old / "checkpoint.zip"), n_timesteps=10)
    with pytest.warns(UserWarning, match="has no Pendulum-v1/config.yml beside it"):
        manager.setup_experiment()
    for name in ("best_model.zip", "Pendulum-v1/vecnormalize.pkl"):
        assert (Path(manager.save_path) / name).read_bytes() == (old / name).read_bytes()


# --- The search space


NOISE = ("noise_type", "noise_sigma", "noise_dt")


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("bn_ddpg", NOISE),
        ("bn_td3", (*NOISE, "n_critics", "actor_loss_critics", "target_policy_noise")),
        ("bn_sac", ("norm_order", "critic_input_norm", "n_critics", "ent_coef", "target_entropy")),
    ],
)
def test_sampler_covers_what_a_search_should_vary(algo, more):
    (_, trial), *_ = trials(1, algo)
    assert set(trial.params) == {
        *more,
        *("one_minus_gamma", "learning_rate", "critic_learning_rate", "critic_weight_decay", "tau", "batch_size_pow"),
        *("train_freq_pow", "updates_per_step", "net_arch", "normalization", "norm_momentum", "policy_delay"),
        *("critic_norm_layers", "action_layer", "use_target_networks"),
    }


@pytest.mark.parametrize("algo", [algo for algo, row in zoo.ALGORITHMS.items() if not row.needs_dataset])
def test_every_sample_is_a_model_and_comes_back_from_a_storage_as_the_same(algo, tmp_path):
    """What the search tried is what ``--trial-id`` trains, whatever the sample."""
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(storage=open_storage(str(tmp_path / "study.log")), study_name="all", sampler=sampler)
    tried = []

    def objective(trial):
        sampled = HYPERPARAMS_SAMPLER[algo](trial, 1, 1, NO_HER)
        model = zoo.ALGORITHMS[algo].algorithm("MlpPolicy", "Pendulum-v1", **sampled)
        tried.append((trial.params, repr(model.action_noise), str(model.policy)))
        assert trial.user_attrs["gamma"] == model.gamma
        return 0.0

    study.optimize(objective, n_trials=40)
    n_values = {"noise_type": 3, "normalization": 5, "net_arch": 4, "updates_per_step": 4, "ent_coef": 5, "target_entropy": 2}
    for name in n_values.keys() & tried[0][0].keys():
        assert len({params[name] for params, *_ in tried}) == n_values[name]
    for trial_id, (params, noise, policy) in enumerate(tried):
        kwargs = dict(storage=str(tmp_path / "study.log"), study_name="all", trial_id=trial_id)
        entry = {"noise_type": "normal", "noise_std": 0.1} if "noise_type" in params else {}
        model, saved = manager_of(tmp_path, algo=algo, entry=entry, **kwargs).setup_experiment()
        assert (repr(model.action_noise), str(model.policy)) == (noise, policy)
        assert model.gamma == 1 - params["one_minus_gamma"]
        assert model.learning_rate(1.0) == params["learning_rate"]
        assert model.critic_learning_rate(1.0) == params["critic_learning_rate"]
        assert model.critic_weight_decay == params["critic_weight_decay"]
        assert model.tau == params["tau"]
        assert model.use_target_networks == params["use_target_networks"]
        assert model.target_statistics == ("batch" if model.use_target_networks else "joint")
        assert model.policy_delay == params["policy_delay"]
        assert model.batch_size == 2 ** params["batch_size_pow"]
        assert model.train_freq.frequency == 2 ** params["train_freq_pow"]
        assert model.gradient_steps == max(int(model.train_freq.frequency * params["updates_per_step"]), 1)
        assert not {"noise_type", "noise_std"} & saved.keys()
        if algo == "bn_td3":
            assert len(model.critic.q_networks) == params["n_critics"]
            assert model.actor_loss_critics == params["actor_loss_critics"]
            assert (model.target_policy_noise, model.target_noise_clip) == (params["target_policy_noise"], 0.5)
        if algo == "bn_sac":
            assert model.action_noise is None
            assert len(model.critic.q_networks) == params["n_critics"]
            assert model.ent_coef == params["ent_coef"]
            assert model.target_entropy == {"auto": -1.0, "auto_0.5": -0.5}[params["target_entropy"]]
            assert model.policy_kwargs["norm_order"] == params["norm_order"]
            sees_action = params["critic_input_norm"] == "state_action" and params["action_layer"] == 1
            assert model.policy_kwargs["critic_input_norm"] == ("state_action" if sees_action else "state")


@pytest.mark.parametrize(
    "policy_kwargs", [{"final_init": 0.01, "net_arch": [8]}, "dict(final_init=0.01, net_arch=[8], activation_fn=nn.Tanh)"]
)
def test_sampled_policy_kwargs_keep_the_files_other_entries(policy_kwargs, tmp_path):
    """In the search, and again when a trial is trained."""
    entry = {"policy_kwargs": policy_kwargs, "learning_starts": 50, "buffer_size": 1000}
    seen = []

    class Spy(BNDDPG):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self.policy_kwargs)

    ALGOS["bn_ddpg"] = Spy
    try:
        search = manager_of(
            tmp_path, entry=entry, optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, no_optim_plots=True
        )
        search.setup_experiment()
        search.hyperparameters_optimization()
        retrained = manager_of(tmp_path, entry=entry, trial_id=0).setup_experiment()[0]
        (best_file,) = tmp_path.glob("logs/bn_ddpg/optuna/*/best.yml")
        pasted = manager_of(tmp_path, config=str(best_file)).setup_experiment()[0]
    finally:
        ALGOS["bn_ddpg"] = BNDDPG
    assert len(seen) == 3
    for kwargs in seen:
        assert kwargs["final_init"] == 0.01
        assert kwargs["net_arch"] != [8]
        assert "norm_momentum" in kwargs
        assert kwargs.get("activation_fn") is (th.nn.Tanh if isinstance(policy_kwargs, str) else None)
        assert kwargs == retrained.policy_kwargs == pasted.policy_kwargs


def test_hindsight_replay_is_sampled_and_comes_back():
    her = {"using_her_replay_buffer": True, "her_kwargs": {"copy_info_dict": True}}
    for sampled, trial in trials(5, additional_args=her):
        assert sampled["replay_buffer_kwargs"]["copy_info_dict"]
        converted = HYPERPARAMS_CONVERTER["bn_ddpg"](trial.params)["replay_buffer_kwargs"]
        assert set(converted) == {"n_sampled_goal", "goal_selection_strategy"}
        assert converted.items() <= sampled["replay_buffer_kwargs"].items()


@pytest.mark.parametrize(("noise_type", "expected"), [("normal", 0.3), (None, 0.1)])
def test_trial_of_the_zoos_ddpg_can_be_trained(noise_type, expected, tmp_path):
    """Its sampler leaves words behind that its constructor does not know; without noise, it keeps the file's."""
    params = {"one_minus_gamma": 0.01, "batch_size_pow": 4, "train_freq": 1, "tau": 0.01, "learning_rate": 1e-3}
    params |= {"net_arch": "small", "noise_type": noise_type, "noise_std": 0.3}
    storage = open_storage(f"sqlite:///{tmp_path}/logs/optuna.db")
    study = optuna.create_study(storage=storage, study_name="ddpg_Pendulum-v1_a")
    study.enqueue_trial(params)
    study.optimize(lambda trial: len(HYPERPARAMS_SAMPLER["ddpg"](trial, 1, 1, NO_HER)), n_trials=1)
    entry = {"noise_type": "normal", "noise_std": 0.1, "buffer_size": 1000}
    model = model_of(tmp_path, algo="ddpg", entry=entry, trial_id=0)
    assert model.action_noise._sigma == expected
    assert model.gamma == 0.99


class MatrixActions(gym.ActionWrapper):
    """Pendulum with six numbers for an action."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (2, 3))

    def action(self, action):
        return action[0, :1]


gym.register("MatrixActions-v0", lambda: MatrixActions(gym.make("Pendulum-v1")), max_episode_steps=200)


@pytest.mark.parametrize("noise_type", ["ou", "normal"])
def test_noise_of_actions_in_two_dimensions(tmp_path, noise_type):
    entry = {"buffer_size": 1000, "noise_type": noise_type, "noise_std": 0.3}
    manager = manager_of(tmp_path, "MatrixActions-v0", entry=entry)
    assert manager.setup_experiment()[0].action_noise().shape[-2:] == (2, 3)
    sampled = [hyperparams["action_noise"] for hyperparams, _ in trials(8, n_actions=manager.n_actions)]
    assert {np.shape(noise())[-2:] for noise in sampled if noise is not None} == {(2, 3)}


def test_threads_do_not_share_policy_kwargs():
    with file_policy_kwargs({"final_init": 0.01}):
        assert all(sampled["policy_kwargs"]["final_init"] == 0.01 for sampled, _ in trials(2))
    assert all("final_init" not in sampled["policy_kwargs"] for sampled, _ in trials(2))


def test_trials_do_not_share_the_files_noise(tmp_path):
    noise = OrnsteinUhlenbeckNoise(np.zeros(1), seed=1)
    models = [BNDDPG("MlpPolicy", "Pendulum-v1", action_noise=noise) for _ in range(2)]
    assert len({id(noise), *(id(model.action_noise) for model in models)}) == 3


def test_values_as_code_that_the_zoo_evaluates():
    value = {"net_arch": [64, 2.5], "betas": (0.9, None), "activation_fn": th.nn.Tanh, "word": "it's"}
    for zoos in (rl_zoo3.utils, exp_manager):  # its command line, its files
        assert eval(as_code(value), vars(zoos)) == value
    for unwritable in (object(), type("Local", (), {})):
        with pytest.raises(ValueError, match="cannot be written as text"):
            as_code({"value": unwritable})


# --- Hyperparameters in a Python file


@pytest.fixture
def python_file(tmp_path):
    (path := tmp_path / "a folder.v2" / "conf.py").parent.mkdir()
    path.write_text(PYTHON_FILE)
    return path


def forget_python_files():
    """As in another process."""
    for name in [name for name in sys.modules if name.startswith(python_files.PREFIX)]:
        del sys.modules[name]


@pytest.mark.parametrize("algo", ["bn_ddpg", "ddpg"])
def test_classes_of_a_python_file_are_found_again(algo, python_file, tmp_path):
    """By what reads a run's ``config.yml``, as ``enjoy`` and a resumed training do."""
    manager = manager_of(tmp_path, algo=algo, config=str(python_file))
    _, saved = manager.setup_experiment()
    forget_python_files()
    read, _ = rl_zoo3.utils.get_saved_hyperparams(manager.params_path)
    extractor_class = read["policy_kwargs"]["features_extractor_class"]
    assert extractor_class.__name__ == "Sets"
    assert extractor_class is not saved["policy_kwargs"]["features_extractor_class"]
    forget_python_files()
    python_file.unlink()
    with pytest.raises(yaml.YAMLError, match=rf"there is no file {python_file}"):
        rl_zoo3.utils.get_saved_hyperparams(manager.params_path)


def test_a_training_of_a_python_file_is_resumed(python_file, tmp_path):
    manager = manager_of(tmp_path, config=str(python_file))
    model, _ = manager.setup_experiment()
    manager.learn(model)
    forget_python_files()
    checkpoint = f"{manager.save_path}/checkpoint.zip"
    again = manager_of(tmp_path, trained_agent=checkpoint, n_timesteps=10)
    resumed, _ = again.setup_experiment()
    again.learn(resumed)
    assert resumed.num_timesteps == 70
    configs = [yaml.unsafe_load(Path(each.params_path, "config.yml").read_text()) for each in (manager, again)]
    assert configs[0] == configs[1]


def test_a_model_needs_no_python_file(python_file, tmp_path):
    """The class is in the model's own file, whichever way it was found."""
    folder = tmp_path / "models"
    folder.mkdir()
    model = model_of(tmp_path, config=str(python_file))
    model.save(folder / "from_file")
    forget_python_files()
    extractor_class = rl_zoo3.utils.get_class_by_name(f"{python_files.module_name(str(python_file))}.Sets")
    BNDDPG("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(features_extractor_class=extractor_class)).save(folder / "by_name")
    forget_python_files()
    python_file.unlink()
    for name in ("from_file", "by_name"):
        assert type(BNDDPG.load(folder / name).actor.features_extractor).__name__ == "Sets"


def test_a_python_file_is_read_anew(python_file, tmp_path):
    """As its text is now, and as it was before the Zoo changed the hyperparameters in place."""
    for _ in range(2):
        model = model_of(tmp_path, config=str(python_file), hyperparams={"batch_size": 4})
        assert (model.batch_size, model.actor.features_extractor.features_dim) == (4, 5)
        model = model_of(tmp_path, config=str(python_file))
        assert (model.batch_size, type(model.learning_starts)) == (8, int)
    python_file.write_text(PYTHON_FILE.replace("features_dim=5", "features_dim=6"))
    assert model_of(tmp_path, config=str(python_file)).actor.features_extractor.features_dim == 6


def test_search_with_a_python_file(python_file, tmp_path, capsys):
    """What it found is trained from its file and from the study, and the same command goes on with it."""
    kwargs = dict(optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, no_optim_plots=True)

    def search():
        manager = manager_of(tmp_path, config=str(python_file), **kwargs)
        manager.setup_experiment()
        manager.hyperparameters_optimization()
        return manager

    first = search()
    assert capsys.readouterr().out.count("bn-ddpg train ") == 2
    forget_python_files()
    (best_file,) = tmp_path.glob("logs/bn_ddpg/optuna/*/best.yml")
    from_file = model_of(tmp_path, config=str(best_file))
    from_study = model_of(tmp_path, config=str(python_file), trial_id=0)
    assert str(from_file.policy) == str(from_study.policy)
    assert type(from_file.actor.features_extractor).__name__ == "Sets"
    assert type(from_file.actor.mu[2]).__name__ == type(from_study.actor.mu[2]).__name__
    (moved := tmp_path / "moved").mkdir()
    python_file = python_file.rename(moved / "conf.py")
    assert search().study_name == first.study_name


def test_search_with_what_no_text_stands_for(python_file, tmp_path, capsys):
    """The study trains it all the same, with the Python file."""
    python_file.write_text(PYTHON_FILE.replace("activation_fn=rounded", "activation_fn=lambda: nn.Softplus()"))
    kwargs = dict(optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, no_optim_plots=True)
    search = manager_of(tmp_path, config=str(python_file), **kwargs)
    search.args.conf_file = str(python_file)
    search.setup_experiment()
    search.hyperparameters_optimization()
    *_, words, command = capsys.readouterr().out.splitlines()
    assert words.endswith("best.yml cannot hold policy_kwargs, which no text stands for")
    assert command.startswith("Train with it: bn-ddpg train --algo bn_ddpg --env Pendulum-v1 --storage sqlite:///")
    assert shlex.split(command)[-4:] == ["--trial-id", "0", "--conf-file", str(python_file)]


# --- Searches that go wrong


class Unstable(PendulumEnv):
    """A simulation that says, in the first trial, that it has left its bounds."""

    steps = 0
    error: type[Exception] = AssertionError

    def step(self, action):
        Unstable.steps += 1
        if Unstable.steps == 60:
            raise self.error("unstable simulation")
        return super().step(action)


gym.register("Unstable-v0", Unstable, max_episode_steps=20)


@pytest.mark.parametrize(("algo", "error"), [("bn_ddpg", AssertionError), ("bn_ddpg", ValueError), ("ddpg", AssertionError)])
def test_a_trial_whose_environment_raises_is_pruned_and_the_search_goes_on(algo, error, tmp_path, monkeypatch, capsys):
    """If it raises what the Zoo prunes for."""
    monkeypatch.setattr(Unstable, "steps", 0)
    monkeypatch.setattr(Unstable, "error", error)
    entry = {"learning_starts": 50, "buffer_size": 1000}
    kwargs = dict(optimize_hyperparameters=True, n_trials=2, n_eval_episodes=1, no_optim_plots=True, pruner="none")
    search = manager_of(tmp_path, "Unstable-v0", algo, entry=entry, **kwargs)
    search.setup_experiment()
    search.hyperparameters_optimization()
    study = load_study(None, None, str(tmp_path / "logs"), algo, "Unstable-v0")
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE"]
    output = capsys.readouterr().out
    assert "unstable simulation\n============\nSampled hyperparams:" in output
    assert "Best of 1 finished trials" in output


def test_what_the_zoo_does_not_prune_for_ends_a_search_as_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(Unstable, "steps", 0)
    monkeypatch.setattr(Unstable, "error", ConnectionError)
    kwargs = dict(optimize_hyperparameters=True, n_trials=3, n_eval_episodes=1, no_optim_plots=True, pruner="none")
    search = manager_of(tmp_path, "Unstable-v0", entry={"learning_starts": 50, "buffer_size": 1000}, **kwargs)
    search.setup_experiment()
    with pytest.raises(ConnectionError, match="unstable simulation"):
        search.hyperparameters_optimization()


def test_a_search_that_cannot_train_says_so(tmp_path):
    """With an exit code, not as a search in which no trial has finished yet."""
    kwargs = dict(optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, storage=str(tmp_path / "search.log"))
    search = manager_of(tmp_path, "CartPole-v1", entry={"learning_starts": 50}, **kwargs)
    search.setup_experiment()
    with pytest.raises(ValueError, match="the action space Discrete"):
        search.hyperparameters_optimization()
    assert not list(tmp_path.glob("logs/bn_ddpg/CartPole-v1*"))


gym.register(
    "Goals-v0",
    "stable_baselines3.common.envs:BitFlippingEnv",
    max_episode_steps=30,
    kwargs=dict(continuous=True, max_steps=99),
)


@pytest.mark.parametrize("learning_starts", [20, 30])
def test_a_search_with_goals_does_not_start_within_the_first_episode(learning_starts, tmp_path):
    """Else each trial would be pruned, one after another."""
    entry = {"policy": "MultiInputPolicy", "replay_buffer_class": "HerReplayBuffer", "n_timesteps": 40, "buffer_size": 1000}
    kwargs = dict(optimize_hyperparameters=True, n_trials=2, n_eval_episodes=1, no_optim_plots=True)
    search = manager_of(tmp_path, "Goals-v0", entry=entry | {"learning_starts": learning_starts}, **kwargs)
    search.setup_experiment()
    if learning_starts < 30:
        with pytest.raises(ValueError, match="`learning_starts=20` is not allowed with HerReplayBuffer"):
            search.hyperparameters_optimization()
    else:
        search.hyperparameters_optimization()
    study = load_study(None, None, str(tmp_path / "logs"), "bn_ddpg", "Goals-v0")
    assert [trial.state.name for trial in study.trials] == (["FAIL"] if learning_starts < 30 else ["COMPLETE"] * 2)


@pytest.mark.parametrize(
    ("arguments", "hyperparams", "message"),
    [
        (dict(n_eval_envs=0), {}, "`n_eval_envs=0` is not allowed"),
        (dict(algo="crossq", optimize_hyperparameters=True), {}, "`algo='crossq'` is not allowed with `--optimize`"),
        ({}, dict(nosuch=3), r"gives no usable hyperparameters with `-params nosuch:3`: TypeError: .*nosuch"),
        ({}, {}, None),
    ],
)
def test_mistakes_of_the_command_line_are_told_as_such(arguments, hyperparams, message, tmp_path):
    def set_up():
        kwargs = {"log_folder": str(tmp_path), "eval_freq": -1, "verbose": 0, "hyperparams": hyperparams} | arguments
        given, algo = Namespace(env="Pendulum-v1", hyperparams=hyperparams), kwargs.pop("algo", "bn_ddpg")
        return exp_manager.ExperimentManager(given, algo, "Pendulum-v1", **kwargs).setup_experiment()

    if message is None:
        assert set_up() is not None
        return
    with pytest.raises(ValueError, match=message):
        set_up()


@pytest.mark.parametrize("env_kwargs", [{}, {"env_kwargs": {"is_broken": False}, "eval_env_kwargs": {"is_broken": True}}])
def test_nan_trials_are_pruned(env_kwargs, tmp_path, capsys):
    """NaN in training, and NaN in the evaluation only: neither ends the search, nor counts as a result."""
    entry = {"learning_starts": 50, "buffer_size": 1000}
    kwargs = dict(
        optimize_hyperparameters=True, n_trials=2, n_eval_episodes=1, pruner="none", storage=str(tmp_path / "nan.log")
    )
    search = manager_of(tmp_path, "NaNRewards-v0", entry=entry, **kwargs, **env_kwargs)
    search.setup_experiment()
    search.hyperparameters_optimization()
    assert "No trial has finished yet" in capsys.readouterr().out
    study = load_study(kwargs["storage"], None, str(tmp_path), "bn_ddpg", "NaNRewards-v0")
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]
    assert finished_trials(study) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"trial_id": -1}, "`trial_id=-1` is not allowed"),
        ({"trial_id": 0}, "`storage=None` is not allowed: there is no file 'logs/optuna.db'"),
        ({"trial_id": 0, "storage": "nowhere.log"}, "`storage='nowhere.log'` is not allowed: there is no file 'nowhere.log'"),
        ({"trial_id": 0, "storage": "study"}, "`storage='study'` is not allowed: it must be a path that ends in '.log' or"),
        ({"trial_id": 1, "storage": "one.log"}, "`trial_id=1` is not allowed: it must be an integer >= 0 and <= 0"),
        ({"trial_id": 0, "storage": "one.log"}, "`trial_id=0` is not allowed: the trial was never started"),
        ({"trial_id": 0, "storage": "one.log", "study_name": "two"}, "`study_name='two'` is not allowed: it must be one of"),
        ({"trial_id": 0, "storage": "two.log"}, "it must be one of the studies in 'two.log': 'bn_ddpg_Pendulum-v1_a', 'bn_"),
    ],
)
def test_wrong_trial(kwargs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(storage=open_storage("one.log"), study_name="bn_ddpg_Pendulum-v1_a")
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING))
    for name in "ab":
        optuna.create_study(storage=open_storage("two.log"), study_name=f"bn_ddpg_Pendulum-v1_{name}")
    with pytest.raises(ValueError, match=message):
        model_of(tmp_path, **({"log_folder": "logs"} | kwargs))


def test_names_of_studies_have_no_addresses():
    """Else the same command would start a new study in each process."""
    settings = [{"env_kwargs": {"reward": object()}} for _ in range(3)]
    assert len({default_study_name("bn_ddpg", "Pendulum-v1", each) for each in settings}) == 1


def test_searches_whose_trials_cannot_be_compared_are_kept_apart(tmp_path):
    """The same command resumes its study; with another number of steps or other fixed hyperparameters it is another one."""
    names = []
    for kwargs in ({}, {}, {"n_timesteps": 60}, {"hyperparams": {"learning_starts": 51}}, {"n_eval_episodes": 2}):
        entry = {"learning_starts": 50, "buffer_size": 1000}
        arguments = {"optimize_hyperparameters": True, "n_trials": 1, "n_eval_episodes": 1, "no_optim_plots": True} | kwargs
        search = manager_of(tmp_path, entry=entry, **arguments)
        search.setup_experiment()
        search.hyperparameters_optimization()
        names.append(search.study_name)
    assert names[0] == names[1]
    assert len(set(names)) == 4
    storage = open_storage(f"sqlite:///{tmp_path}/logs/optuna.db")
    assert len(optuna.load_study(study_name=names[0], storage=storage).trials) == 2
