"""What ``register()`` changes inside a process: the algorithms, their noise and schedules in files."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize

pytest.importorskip("rl_zoo3")

import rl_zoo3.train
import rl_zoo3.utils
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from zoo_managers import manager_of, model_of

from sb3_bn_ddpg import BNDDPG, OrnsteinUhlenbeckNoise, cli, zoo
from sb3_bn_ddpg.common.atomic_files import FileError

zoo.register()


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
