"""Algorithms with SB3's interface: SB3's own, sb3-contrib's, SBX's and BNDDPG."""

from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

from benchmarks.speed.subject import LEARN_ENV, ModelSpec, Subject, synthetic_transitions


class SyntheticEnv(gym.Env):
    """
    The spaces that an algorithm is built for; never stepped.

    :param spec: The sizes
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (spec.obs_dim,), dtype=np.dtype(spec.obs_dtype).type)
        self.action_space = spaces.Box(-1, 1, (spec.action_dim,))


class SB3Subject(Subject):
    """An algorithm with SB3's interface, everything else than the sizes at its defaults."""

    def construct(self, spec: ModelSpec) -> None:
        kwargs = dict(self.kwargs)
        policy_kwargs = dict(net_arch=list(spec.net_arch)) | kwargs.pop("policy_kwargs", {})
        self.spec = spec
        self.model: Any = getattr(import_module(self.imports), self.algorithm)(
            "MlpPolicy",
            self._make_env(spec),
            buffer_size=spec.buffer_size,
            batch_size=spec.batch_size,
            learning_starts=100,
            train_freq=1,
            gradient_steps=1,
            policy_kwargs=policy_kwargs,
            seed=0,
            device="auto",  # the GPU, if the worker lets it see one
            **kwargs,
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))

    @staticmethod
    def _make_env(spec: ModelSpec) -> gym.Env | SubprocVecEnv:
        if spec.n_envs is None:
            return SyntheticEnv(spec)
        if spec.n_envs == 0:
            return gym.make(LEARN_ENV)
        # Forked, the environments share this process's pages of imported libraries: 64 of them fit into memory
        return SubprocVecEnv([lambda: Monitor(gym.make(LEARN_ENV))] * spec.n_envs, start_method="fork")

    def fill(self) -> None:
        transitions, buffer = synthetic_transitions(self.spec), self.model.replay_buffer
        buffer.observations[:, 0] = transitions.observations
        if not buffer.optimize_memory_usage:  # otherwise they are the following row of the observations
            buffer.next_observations[:, 0] = transitions.next_observations
        buffer.actions[:, 0] = transitions.actions
        buffer.rewards[:, 0] = transitions.rewards
        buffer.dones[:, 0] = transitions.dones
        buffer.timeouts[:] = 0
        buffer.pos, buffer.full = 0, True

    def update(self, count: int, batch_size: int, per_call: int) -> None:
        for _ in range(count // per_call):
            self.model.train(gradient_steps=per_call, batch_size=batch_size)

    def learn(self, count: int) -> None:
        self.model.learn(count, reset_num_timesteps=False)
