"""What a hyperparameter file says of the environment, which no constructor of an algorithm takes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize, is_vecenv_wrapped

from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.profiles.words import evaluated, wrapper_of

ENVIRONMENT_KEYS = ("env_kwargs", "env_wrapper", "vec_env_wrapper", "normalize", "frame_stack", "n_envs", "monitor_kwargs")
NOTHING: tuple[Any, ...] = (None, False, {}, [])


@dataclass(frozen=True)
class EnvironmentSettings:
    """
    How an entry's environment is made.

    :param said: The entry's settings of the environment, exactly as given, for messages
    :param env_kwargs: The environment's arguments
    :param wrapper: What wraps each environment
    :param vec_env_wrapper: What wraps all of them
    :param normalize: The arguments of ``VecNormalize``; None for no normalisation
    :param frame_stack: How many observations ``VecFrameStack`` puts together; None for no stack
    :param n_envs: Number of environments
    :param monitor_kwargs: The arguments of ``Monitor``
    """

    said: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    wrapper: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] | None = None
    vec_env_wrapper: Callable[[VecEnv], VecEnv] | None = None
    normalize: dict[str, Any] | None = None
    frame_stack: int | None = None
    n_envs: int = 1
    monitor_kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_entry(cls, file: Path, said: dict[str, Any], gamma: float | None) -> "EnvironmentSettings":
        """
        :param file: The hyperparameter file
        :param said: What its entry says of the environment
        :param gamma: The entry's discount factor, which ``VecNormalize`` takes too
        :return: The settings
        :raises FileError: if an expression fails, a name is unknown or a value is not allowed
        """
        normalize = evaluated(file, "normalize", said.get("normalize", False)) or None
        if normalize is not None:
            normalize = (normalize if isinstance(normalize, dict) else {}) | ({} if gamma is None else {"gamma": gamma})
        for key in ("n_envs", "frame_stack"):
            if said.get(key) is not None and (type(said[key]) is not int or said[key] < 1):
                raise FileError(file, f"has no usable `{key}`: {said[key]!r} must be an integer >= 1")
        if not isinstance(said.get("env_kwargs") or {}, dict):
            raise FileError(file, f"has no usable `env_kwargs`: {said['env_kwargs']!r} must be a mapping")
        return cls(
            said={key: value for key, value in said.items() if value not in NOTHING and (key, value) != ("n_envs", 1)},
            env_kwargs=said.get("env_kwargs") or {},
            wrapper=wrapper_of(file, "env_wrapper", said.get("env_wrapper")),
            vec_env_wrapper=wrapper_of(file, "vec_env_wrapper", said.get("vec_env_wrapper")),
            normalize=normalize,
            frame_stack=said.get("frame_stack"),
            n_envs=said.get("n_envs", 1),
            monitor_kwargs=evaluated(file, "monitor_kwargs", said.get("monitor_kwargs")) or {},
        )

    def with_gamma(self, gamma: float | None) -> "EnvironmentSettings":
        """
        :param gamma: A discount factor
        :return: The settings with it for ``VecNormalize``; if None, as they are
        """
        return self if gamma is None or self.normalize is None else replace(self, normalize=self.normalize | {"gamma": gamma})

    def missing_in(self, env: GymEnv) -> list[str]:
        """
        :param env: An environment that was made elsewhere
        :return: The wrappers for all environments that the entry asks for by name, and that are not around it
        """
        wanted: dict[type[VecEnvWrapper], Any] = {VecNormalize: self.normalize, VecFrameStack: self.frame_stack}
        return [
            wrapper.__name__
            for wrapper, setting in wanted.items()
            if setting is not None and not (isinstance(env, VecEnv) and is_vecenv_wrapped(env, wrapper))
        ]

    def make(self, env_id: str, n_envs: int | None, seed: int | None, evaluation: bool, **kwargs: Any) -> VecEnv:
        """
        :param env_id: The environment's id
        :param n_envs: Number of environments (if None: the entry's)
        :param seed: Their seed
        :param evaluation: Whether rewards and the statistics of ``VecNormalize`` stay as they are
        :param kwargs: Further arguments of ``make_vec_env``
        :return: The environments in their wrappers, in the Zoo's order
        """
        env = make_vec_env(
            partial(gym.make, env_id),
            self.n_envs if n_envs is None else n_envs,
            seed,
            wrapper_class=self.wrapper,
            env_kwargs=self.env_kwargs,
            monitor_kwargs=self.monitor_kwargs,
            **kwargs,
        )
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        if self.normalize is not None:
            env = VecNormalize(env, **(self.normalize | ({"norm_reward": False, "training": False} if evaluation else {})))
        if self.frame_stack is not None:
            env = VecFrameStack(env, self.frame_stack)
        return BaseAlgorithm._wrap_env(env, verbose=0)  # images' channels first
