"""What stands in the place of an environment, of a model that has none."""

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec


class NoEnvironment(gym.Env[Any, Any]):
    """
    Stands where SB3 asks for an environment, of a model that has none: it has spaces, and cannot be acted in.

    :param observation_space: Observation space
    :param action_space: Action space
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """
        :param seed: Without effect
        :param options: Without effect
        :raises RuntimeError: in any case
        """
        raise RuntimeError(
            "The model has no environment to act in: give it one with `set_env`, or evaluate it in one of yours"
        )

    def step(self, action: Any) -> Any:
        """
        :param action: Without effect
        :raises RuntimeError: in any case
        """
        return self.reset()


def no_environment(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> gym.Env[Any, Any]:
    """
    :param observation_space: Observation space
    :param action_space: Action space
    :return: A :class:`NoEnvironment` made as Gymnasium makes environments, so that a checkpoint can make it anew
    """
    kwargs = dict(observation_space=observation_space, action_space=action_space)
    entry_point: Any = NoEnvironment
    spec = EnvSpec("NoEnvironment-v0", entry_point=entry_point, kwargs=kwargs, disable_env_checker=True)
    env: gym.Env[Any, Any] = gym.make(spec)
    return env
