"""Searches that go wrong: trials that fail, and what cannot be searched."""

from argparse import Namespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv

pytest.importorskip("rl_zoo3")

import optuna
import yaml
from rl_zoo3 import exp_manager
from zoo_managers import manager_of, model_of

from sb3_bn_ddpg import zoo
from sb3_bn_ddpg.zoo.algorithms import profile_path
from sb3_bn_ddpg.zoo.studies import default_study_name, finished_trials, load_study, open_storage

zoo.register()


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


@pytest.mark.parametrize(
    ("algo", "entry", "message"),
    [
        ("bn_td3", {"policy_kwargs": {"action_layer": 1, "critic_input_norm": "state_action"}}, "`critic_input_norm="),
        ("bn_sac", {"weight_normalization": "critic"}, "`weight_normalization='critic'` is not allowed: batch norm"),
    ],
)
def test_what_does_not_go_with_the_file_is_pruned(algo, entry, message, tmp_path, capsys):
    """The search goes on: other draws fit."""
    entry |= {"learning_starts": 1000, "buffer_size": 1000, "n_timesteps": 10}
    kwargs = dict(n_eval_episodes=1, no_optim_plots=True, sampler="random", pruner="none", seed=1)
    kwargs |= dict(optimize_hyperparameters=True, n_trials=6)
    search = manager_of(tmp_path, "Pendulum-v1", algo=algo, entry=entry, **kwargs)
    search.setup_experiment()
    search.hyperparameters_optimization()
    study = load_study(None, None, str(tmp_path / "logs"), algo, "Pendulum-v1")
    states = [trial.state.name for trial in study.trials]
    assert (len(states), {*states}) == (6, {"COMPLETE", "PRUNED"})
    told = [line for line in capsys.readouterr().out.splitlines() if "is pruned, as what was sampled does not go" in line]
    assert len(told) == states.count("PRUNED")
    assert all(message in line for line in told)


def test_a_file_that_makes_no_model_ends_a_search(tmp_path):
    kwargs = dict(optimize_hyperparameters=True, n_trials=2, n_eval_episodes=1, no_optim_plots=True)
    search = manager_of(tmp_path, "Pendulum-v1", entry={"buffer_size": -5}, **kwargs)
    search.setup_experiment()
    with pytest.raises(ValueError, match="`buffer_size=-5` is not allowed"):
        search.hyperparameters_optimization()


class Sized(gym.Env):
    """Cannot be made without an argument, and shows vectors."""

    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, size):
        self.observation_space = gym.spaces.Box(0, 1, (size,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, True, {}


class Shown(gym.ObservationWrapper):
    """Makes images of them."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (3, 16, 16), np.uint8)

    def observation(self, observation):
        return self.observation_space.sample()


gym.register("Sized-v0", Sized)


def test_a_trial_is_trained_by_the_entry_of_its_search(tmp_path):
    """Which the environment's arguments and wrapper decide, where no entry has its name."""
    given = dict(env_wrapper=f"{__name__}.Shown", env_kwargs=dict(size=3), buffer_size=100, learning_starts=1000)
    kwargs = dict(optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, no_optim_plots=True)
    search = manager_of(tmp_path, "Sized-v0", hyperparams=given, n_timesteps=10, **kwargs)
    search.setup_experiment()
    search.hyperparameters_optimization()
    sampled = load_study(None, None, str(tmp_path / "logs"), "bn_ddpg", "Sized-v0").best_trial.params
    _, saved = manager_of(tmp_path, "Sized-v0", hyperparams=given, n_timesteps=10, trial_id=0).setup_experiment()
    unsampled = ("share_features_extractor", "shared_extractor_loss", "features_extractor_kwargs", "final_init")
    in_file = yaml.safe_load(profile_path(algo="bn_ddpg").read_text())["default_images"]["policy_kwargs"]
    assert saved["policy_kwargs"]["normalization"] == sampled["normalization"]
    assert {key: saved["policy_kwargs"].get(key) for key in unsampled} == {key: in_file[key] for key in unsampled}


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
