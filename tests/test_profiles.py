"""Profiles in Python: the arguments that RL Zoo's own reading gives, its environment, and what is refused."""

import copy
import functools
import inspect
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from conftest import SpaceEnv, VectorEnv
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3, FileError, hyperparameters
from sb3_bn_ddpg.offline.base import BNOfflineAlgorithm
from sb3_bn_ddpg.profiles.algorithms import SHIPPED, file_of

ALL_PROFILES = [(algo, profile) for algo, row in SHIPPED.items() for profile in row.profiles]
PROFILES = [(algo, profile) for algo, profile in ALL_PROFILES if not issubclass(SHIPPED[algo].algorithm, BNOfflineAlgorithm)]
"""Those of the algorithms that act; the Zoo gives the others a dataset as well."""
ACTIONS = spaces.Box(-1, 1, (3,))
OBSERVATIONS = {
    "default": spaces.Box(-1, 1, (5,)),
    "default_dict": spaces.Dict(place=spaces.Box(-1, 1, (2,)), speed=spaces.Box(-9, 9, (3,))),
    "default_images": spaces.Box(0, 255, (36, 40, 1), np.uint8),
}
OF_TRAINING = {"env", "tensorboard_log", "seed", "verbose", "device"}
"""Arguments of the constructor that come from the command line alone"""

YAML_OF_ALL_KEYS = """
Pendulum-v1:
  n_timesteps: !!float 5e3
  policy: 'sb3_bn_ddpg.MlpPolicy'
  n_envs: 2
  env_kwargs: {g: 9.0}
  env_wrapper:
    - gymnasium.wrappers.ClipAction
    - gymnasium.wrappers.TimeLimit: {max_episode_steps: 7}
  vec_env_wrapper: stable_baselines3.common.vec_env.VecCheckNan
  normalize: "dict(norm_obs=False, clip_reward=5.0)"
  monitor_kwargs: "dict(info_keywords=())"
  frame_stack: 2
  callback:
    - stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes: {max_episodes: 9}
  gamma: 0.97
  learning_rate: lin_7e-4
  critic_learning_rate: lin_1.0e-3
  train_freq: [1, 'episode']
  noise_type: 'ornstein-uhlenbeck'
  noise_std: 0.3
  policy_kwargs: "dict(net_arch=[8], activation_fn=nn.ELU)"
  replay_buffer_class: "__import__('stable_baselines3').common.buffers.ReplayBuffer"
  replay_buffer_kwargs: "dict(handle_timeout_termination=bool(np.ones(1)))"
"""


def comparable(name, value):
    """Numbers and schedules by their values, noise by what it is made of."""
    if isinstance(value, ActionNoise):
        return type(value), repr(value)
    if name in ("learning_rate", "critic_learning_rate"):
        return [value(progress) if callable(value) else float(value) for progress in (1.0, 0.7, 1 / 3, 0.0)]
    return value


def layers_of(env):
    """The wrappers of a vectorised environment and of each environment in it."""
    vectorised = []
    while hasattr(env, "venv"):
        vectorised.append(type(env))
        env = env.venv
    return vectorised, [str(each) for each in env.envs]


def what_the_zoo_passes(monkeypatch, algo, env_id, config, folder):
    """The manager of a training, and what it gives to the constructor."""
    from rl_zoo3 import exp_manager
    from rl_zoo3.utils import ALGOS

    passed = {}
    monkeypatch.setitem(ALGOS, algo, lambda **arguments: passed.update(arguments))
    arguments = {"log_folder": str(folder), "eval_freq": -1, "verbose": 0, "config": str(config)}
    manager = exp_manager.ExperimentManager(Namespace(env=env_id), algo, env_id, **arguments)
    manager.setup_experiment()
    return manager, passed


def assert_same_as_the_zoos(settings, manager, passed):
    """The arguments, the number of steps, the environment's wrappers and the callbacks."""
    mine = {"policy": settings.policy} | settings.kwargs
    assert mine.keys() == passed.keys() - OF_TRAINING
    for name, value in mine.items():
        assert comparable(name, value) == comparable(name, passed[name]), name
    assert settings.n_timesteps == manager.n_timesteps
    env = settings.make_env()
    assert layers_of(env) == layers_of(passed["env"])
    assert [type(callback) for callback in settings.callbacks] == [type(callback) for callback in manager.callbacks]


@pytest.fixture
def zoo(zoo_registrations, monkeypatch, tmp_path):
    """RL Zoo, which reads its files once, and what it would train with."""
    from sb3_bn_ddpg import zoo

    zoo.register()
    read = functools.cache(functools.partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    monkeypatch.setattr(yaml, "safe_load", lambda file: copy.deepcopy(read(file if isinstance(file, str) else file.read())))
    return functools.partial(what_the_zoo_passes, monkeypatch, folder=tmp_path)


def register_stand_in(monkeypatch, env_id, observation_space):
    """An environment of that id whose simulator is not needed: what the Zoo passes depends on its spaces alone."""
    spec = EnvSpec(env_id, lambda: SpaceEnv(observation_space, ACTIONS), disable_env_checker=True)
    monkeypatch.setitem(gym.registry, env_id, spec)


@pytest.mark.parametrize(("algo", "profile"), PROFILES)
def test_every_entry_is_what_the_command_line_uses(algo, profile, zoo, monkeypatch):
    file = file_of(SHIPPED[algo].profiles[profile])
    entries = yaml.safe_load(file.read_text())
    assert len(entries) > 100
    for name, entry in entries.items():
        env_id = f"Unlisted{name}-v0" if name in OBSERVATIONS else name
        observation_space = OBSERVATIONS[
            name if name in OBSERVATIONS else "default_dict" if "env_wrapper" in entry else "default"
        ]
        register_stand_in(monkeypatch, env_id, observation_space)
        settings = hyperparameters(algo, env_id, profile)
        assert settings.algorithm is SHIPPED[algo].algorithm
        assert_same_as_the_zoos(settings, *zoo(algo, env_id, file))


def test_every_key_of_the_zoo_is_read_as_the_zoo_reads_it(zoo, tmp_path):
    config = tmp_path / "own.yml"
    config.write_text(YAML_OF_ALL_KEYS)
    settings = hyperparameters("bn_ddpg", "Pendulum-v1", config=config)
    manager, passed = zoo("bn_ddpg", "Pendulum-v1", config)
    assert_same_as_the_zoos(settings, manager, passed)
    mine, theirs = settings.make_env(), passed["env"]
    assert mine.num_envs == theirs.num_envs == 2
    assert mine.observation_space == theirs.observation_space
    assert mine.get_attr("g") == theirs.get_attr("g") == [9.0, 9.0]
    assert (mine.venv.gamma, mine.venv.clip_reward) == (theirs.venv.gamma, theirs.venv.clip_reward) == (0.97, 5.0)


@pytest.mark.parametrize(
    ("spelling", "noise"),
    [("ou", "'ou'"), ("{sigma: lin_0.2}", "theta=0.15, dt=1.0"), ("{type: normal, sigma: [0.1]}", "Normal"), ("null", "None")],
)
def test_noise(spelling, noise, tmp_path):
    config = tmp_path / "own.yml"
    config.write_text(f"default: {{n_timesteps: 10, policy: MlpPolicy, action_noise: {spelling}}}")
    assert noise in repr(hyperparameters("bn_ddpg", "Pendulum-v1", config=config)["action_noise"])


def test_one_line():
    env = gym.make("Pendulum-v1")
    for algo, algorithm in (("bn_ddpg", BNDDPG), ("bn_td3", BNTD3), ("bn_sac", BNSAC)):
        model = algorithm("MlpPolicy", env, **hyperparameters(algo, "Pendulum-v1"))
        assert (model.batch_size, model.gamma, model.learning_starts) == (256, 0.98, 200)
    by_env = hyperparameters("bn_ddpg", make_vec_env("Pendulum-v1"))
    assert (by_env.env_id, by_env["gamma"]) == (None, 0.98)


@pytest.mark.parametrize("algo", ["bn_ddpg", "bn_td3", "bn_sac"])
@pytest.mark.parametrize("entry", ["default", *OBSERVATIONS])
def test_an_environment_without_an_id(algo, entry):
    env = VectorEnv() if entry == "default" else SpaceEnv(OBSERVATIONS[entry], spaces.Box(-1, 1, (2,)))
    for made in (env, DummyVecEnv([lambda: env])):
        settings = hyperparameters(algo, made)
        assert repr(entry) in settings.entry
        model = settings.make_model(made, buffer_size=10, device="cpu")
        assert model.observation_space == (env if entry == "default" else model).observation_space
        with pytest.raises(ValueError, match="`env` cannot be made anew, since `hyperparameters` was given the environment"):
            settings.make_env()


def test_a_given_environment_is_not_replaced_by_another_of_its_id():
    env = gym.make("Pendulum-v1", g=2.0, max_episode_steps=7)
    settings = hyperparameters("bn_td3", env)
    with pytest.raises(ValueError, match="give `make_model` the environment, or `hyperparameters` its id"):
        settings.make_model()
    assert settings.make_model(env, buffer_size=10).get_env().get_attr("g") == [2.0]


def test_models_share_nothing():
    settings = hyperparameters("bn_ddpg", "Pendulum-v1")
    first, second = (settings.make_model(seed=3, learning_starts=10, policy_kwargs=dict(net_arch=[8])) for _ in range(2))
    first.learn(15)
    assert second.num_timesteps == 0
    assert first.learning_starts == 10
    assert settings.kwargs["learning_starts"] == 200
    settings["policy_kwargs"]["action_layer"] = 7
    assert settings["policy_kwargs"]["action_layer"] == 1


def test_what_the_constructor_does_not_take_is_not_lost(monkeypatch):
    register_stand_in(monkeypatch, "dm_control/reacher-easy-v0", OBSERVATIONS["default_dict"])
    settings = hyperparameters("bn_td3", "dm_control/reacher-easy-v0")
    with pytest.raises(ValueError, match=r"the entry 'dm_control/reacher-easy-v0' of .*bn_td3.yml also sets env_wrapper"):
        BNTD3("MlpPolicy", settings.env_id, **settings)
    model = settings.make_model()
    assert model.observation_space.shape == (5,)
    assert type(model) is BNTD3


def test_evaluations_change_no_statistics(tmp_path):
    config = tmp_path / "own.yml"
    config.write_text("default: {n_timesteps: 10, policy: MlpPolicy, normalize: true, gamma: 0.5, n_envs: 3}")
    settings = hyperparameters("bn_ddpg", "Pendulum-v1", config=config)
    training, evaluation = settings.make_env(seed=1), settings.make_env(1, evaluation=True)
    assert (training.num_envs, training.training, training.norm_reward, training.gamma) == (3, True, True, 0.5)
    assert (evaluation.num_envs, evaluation.training, evaluation.norm_reward) == (1, False, False)
    assert isinstance(training, VecNormalize)


def test_a_model_brings_its_own_discount_to_the_environment_made_for_it(tmp_path):
    config = tmp_path / "own.yml"
    config.write_text(
        "default: {n_timesteps: 10, policy: MlpPolicy, normalize: dict(norm_obs=False), gamma: 0.5, frame_stack: 2}"
    )
    settings = hyperparameters("bn_ddpg", "Pendulum-v1", config=config)
    for env in (None, "Pendulum-v1"):
        model = settings.make_model(env, gamma=0.9, buffer_size=10)
        assert (model.gamma, model.get_vec_normalize_env().gamma) == (0.9, 0.9)
        assert model.observation_space.shape == (6,)
    assert settings.make_env().venv.gamma == 0.5


def test_a_given_environment_without_the_entrys_normalization_warns(tmp_path):
    config = tmp_path / "own.yml"
    config.write_text(
        "default: {n_timesteps: 10, policy: MlpPolicy, normalize: dict(norm_obs=False), frame_stack: 2, n_envs: 2}"
    )
    settings = hyperparameters("bn_ddpg", "Pendulum-v1", config=config)
    settings.make_model(settings.make_env(), buffer_size=10)
    for env in (gym.make("Pendulum-v1"), make_vec_env("Pendulum-v1")):
        with pytest.warns(UserWarning, match="own.yml asks for VecNormalize and VecFrameStack, and the environment has none"):
            settings.make_model(env, buffer_size=10)
    with pytest.warns(UserWarning, match="asks for VecFrameStack, and"):
        settings.make_model(VecNormalize(make_vec_env("Pendulum-v1")), buffer_size=10)


def test_normalised_observations_of_an_entry_are_stacked_before(tmp_path):
    config = tmp_path / "own.yml"
    config.write_text("default: {n_timesteps: 10, policy: MlpPolicy, normalize: true, frame_stack: 2}")
    with pytest.raises(
        ValueError, match=r"VecFrameStack around VecNormalize is not allowed: .* as `vec_env_wrapper` in the place"
    ):
        hyperparameters("bn_ddpg", "Pendulum-v1", config=config).make_model()
    stack = "{stable_baselines3.common.vec_env.VecFrameStack: {n_stack: 2}}"
    config.write_text(f"default: {{n_timesteps: 10, policy: MlpPolicy, normalize: true, vec_env_wrapper: {stack}}}")
    model = hyperparameters("bn_ddpg", "Pendulum-v1", config=config).make_model(buffer_size=10)
    assert model.observation_space.shape == (6,)
    assert isinstance(model.env, VecNormalize)


def test_each_training_gets_callbacks_of_its_own(tmp_path):
    config = tmp_path / "own.yml"
    callback = "{stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes: {max_episodes: 2}}"
    config.write_text(f"default: {{n_timesteps: 10, policy: MlpPolicy, callback: {callback}}}")
    settings = hyperparameters("bn_ddpg", "Pendulum-v1", config=config)
    for _ in range(2):
        model = settings.make_model(learning_starts=10_000, buffer_size=1000)
        model.learn(1000, callback=settings.callbacks)
        assert model.num_timesteps == 400
    config.write_text(config.read_text().replace("max_episodes", "no_such_argument"))
    with pytest.raises(TypeError, match="no_such_argument"):
        hyperparameters("bn_ddpg", "Pendulum-v1", config=config)


def test_an_id_may_name_the_module_that_registers_it():
    settings = hyperparameters("bn_ddpg", "sb3_bn_ddpg:Pendulum-v1")
    assert settings.entry == hyperparameters("bn_ddpg", "Pendulum-v1").entry
    assert settings.make_model(buffer_size=10).observation_space.shape == (3,)


def test_images_come_channels_first(monkeypatch):
    register_stand_in(monkeypatch, "Image-v7", OBSERVATIONS["default_images"])
    settings = hyperparameters("bn_ddpg", "Image-v7")
    assert settings.policy == "CnnPolicy"
    assert isinstance(settings.make_env(), VecTransposeImage)


def test_no_environment_is_made_that_is_not_needed(monkeypatch):
    """A profile can be read where the simulator is missing, if its noise does not depend on the action's shape."""
    monkeypatch.setitem(gym.registry, "Ant-v5", EnvSpec("Ant-v5", "no_such_module:Env"))
    assert hyperparameters("bn_sac", "Ant-v5").n_timesteps == 1e6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("ddpg", "Pendulum-v1"), ValueError, "`algo='ddpg'` is not allowed: it must be one of 'bn_ddpg', 'bn_td3', 'bn_sac'"),
        (
            ("bn_td3", "Pendulum-v1", "crossq"),
            ValueError,
            "`profile='crossq'` is not allowed: it must be one of 'tuned', 'paper'",
        ),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        hyperparameters(*arguments)


ENTRY = "n_timesteps: 10, policy: MlpPolicy"


def test_files_are_utf_8(tmp_path):
    """Whatever the locale; another encoding is an error that names the file."""
    (tmp_path / "own.yml").write_bytes(f"# für später\ndefault: {{{ENTRY}}}".encode())
    code = "import sys; from sb3_bn_ddpg import hyperparameters; hyperparameters('bn_ddpg', 'Pendulum-v1', config=sys.argv[1])"
    environment = os.environ | dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "own.yml")], check=True, env=environment)
    (tmp_path / "own.yml").write_bytes(f"# für später\ndefault: {{{ENTRY}}}".encode("latin-1"))
    with pytest.raises(FileError, match=r"own\.yml is no YAML"):
        hyperparameters("bn_ddpg", "Pendulum-v1", config=tmp_path / "own.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML"),
        ("- 1", "has no hyperparameters"),
        ("default: {policy: MlpPolicy}", "has no `n_timesteps` in its entry 'default'"),
        ("default: {n_timesteps: 1}", "has no `policy` in its entry 'default'"),
        (
            f"default: {{{ENTRY}, policy_kwargs: 'dict(a=b)'}}",
            "has no usable `policy_kwargs`: 'dict\\(a=b\\)' gives NameError",
        ),
        (f"default: {{{ENTRY}, env_wrapper: gymnasium.wrappers.No}}", "has no usable `env_wrapper`: .* gives AttributeError"),
        (f"default: {{{ENTRY}, env_wrapper: {{a.b: {{}}, c.d: {{}}}}}}", "must map one name to its arguments"),
        (
            "default: {policy: MlpPolicy, n_timesteps: 1e6}",
            "has no usable `n_timesteps`: '1e6' must be a number > 0 .YAML takes",
        ),
        ("default: {policy: MlpPolicy, n_timesteps: .inf}", "has no usable `n_timesteps`: inf must be a number > 0"),
        (f"default: {{{ENTRY}, n_envs: '2'}}", "has no usable `n_envs`: '2' must be an integer >= 1"),
        (f"default: {{{ENTRY}, frame_stack: 0}}", "has no usable `frame_stack`: 0 must be an integer >= 1"),
        (f"default: {{{ENTRY}, env_kwargs: g}}", "has no usable `env_kwargs`: 'g' must be a mapping"),
        (
            f"default: {{{ENTRY}, learnin_rate: 1.0}}",
            "has an unknown `learnin_rate` in its entry 'default': BNDDPG has no such",
        ),
        (f"default: {{{ENTRY}, learning_rate: 1e-3}}", "`learning_rate='1e-3'` is not allowed"),
        (f"default: {{{ENTRY}, action_noise: ou, noise_type: ou}}", "there must be one of the two"),
        (f"Ant-v5: {{{ENTRY}}}", "`env='Pendulum-v1'` is not allowed: .* neither an entry of that name nor `default`"),
    ],
)
def test_refused_files(text, message, tmp_path):
    config = tmp_path / "own.yml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        hyperparameters("bn_ddpg", "Pendulum-v1", config=config)
    assert isinstance(raised.value, FileError) == message.startswith(("is no", "has ", "must map"))
    with pytest.raises(ValueError, match="`profile='tuned'` is not allowed beside `config="):
        hyperparameters("bn_ddpg", "Pendulum-v1", "tuned", config=config)


def test_without_yaml_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"yaml is not installed: run `pip install sb3-bn-ddpg\[profiles\]`"):
        hyperparameters("bn_ddpg", "Pendulum-v1")


def test_every_argument_of_a_profile_is_one_of_the_constructor():
    for algo, profile in ALL_PROFILES:
        arguments = inspect.signature(SHIPPED[algo].algorithm).parameters.keys()
        assert hyperparameters(algo, "Pendulum-v1", profile).kwargs.keys() <= arguments
        assert Path(file_of(SHIPPED[algo].profiles[profile])).is_file()


def test_a_profile_of_an_offline_algorithm_and_a_dataset():
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(41, 3)).astype(np.float32)
    dataset = dict(
        observations=observations[:-1],
        next_observations=observations[1:],
        actions=generator.uniform(-2, 2, (40, 1)).astype(np.float32),
        rewards=generator.normal(size=40),
        terminations=np.arange(40) % 10 == 9,
        truncations=np.zeros(40, bool),
    )
    model = hyperparameters("bn_td3_bc", "Pendulum-v1").make_model(dataset=dataset)
    assert isinstance(model, SHIPPED["bn_td3_bc"].algorithm)
    assert model.learn(2)._n_updates == 2
