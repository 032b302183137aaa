"""RL Zoo's manager of experiments for a test, and sampled hyperparameters."""

from argparse import Namespace

import pytest

pytest.importorskip("rl_zoo3")

import optuna
import yaml
from rl_zoo3 import exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

from sb3_bn_ddpg import zoo

zoo.register()

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}


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
