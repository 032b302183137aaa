"""Environments, and evaluations that never touch the training's episodes, random numbers or clock."""

import logging
import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import DtypeObservation, FlattenObservation
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_bn_ddpg.pixels.dm_control import import_suite

EVALUATION_SEED = 1_000_003
"""Seed of the first evaluation environment; the following ones count on from here. Far from the seeds of training."""


def make_env(env_id: str) -> gym.Env[Any, Any]:
    """
    :param env_id: A task of the matrix
    :return: The environment with observations as a flat array of float32
    """
    # Gymnasium's warnings on float64 bounds and dm_control's on a missing display say nothing about a run
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if env_id.startswith("dm_control/"):
            import_suite()
        env: gym.Env[Any, Any] = gym.make(env_id, disable_env_checker=True)
        if isinstance(env.observation_space, gym.spaces.Dict):
            env = FlattenObservation(env)
        return Monitor(DtypeObservation(env, np.float32))


class Evaluation(NamedTuple):
    """
    :param return_mean: Mean of the episodes' returns
    :param return_std: Their standard deviation
    :param length_mean: Mean of their lengths, in steps
    """

    return_mean: float
    return_std: float
    length_mean: float


class Evaluator:
    """
    Noise-free episodes from the same initial states each time, one in each of as many environments.

    :param env_id: The task
    :param episodes: Number of episodes
    """

    def __init__(self, env_id: str, episodes: int) -> None:
        self.env = DummyVecEnv([lambda: make_env(env_id)] * episodes)
        self.episodes = episodes

    def evaluate(self, policy: Any) -> Evaluation:
        """
        :param policy: Anything with SB3's ``predict``
        :return: What its episodes came to
        """
        self.env.seed(EVALUATION_SEED)
        returns, lengths = evaluate_policy(policy, self.env, self.episodes, return_episode_rewards=True)
        return Evaluation(float(np.mean(returns)), float(np.std(returns)), float(np.mean(lengths)))


class RandomPolicy:
    """
    Uniformly random actions.

    :param action_space: Where from
    :param seed: Seed
    """

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        assert isinstance(action_space, gym.spaces.Box)
        self.space, self.rng = action_space, np.random.default_rng(seed)

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        """SB3's signature; only the number of observations counts."""
        return self.rng.uniform(self.space.low, self.space.high, (len(obs), *self.space.shape)), state
