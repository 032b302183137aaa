"""Tianshou's DDPG: its own networks, optimisers, buffer, collector and trainer, all at their defaults but for the sizes."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from tianshou.algorithm import DDPG
from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, ReplayBuffer, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorDeterministic, ContinuousCritic
from tianshou.utils.torch_utils import policy_within_training_step

from benchmarks.speed.subject import LEARN_ENV, ModelSpec, Subject, synthetic_transitions

RANDOM_STEPS = 100
"""Steps of random actions before learning, SB3's ``learning_starts``."""


class TianshouSubject(Subject):
    """
    ``algorithm.update`` stands for ``train()``, its ``OffPolicyTrainer`` for ``learn()``.

    The trainer looks for NaN in the whole filled part of the replay buffer before every update, so that its steps become
    slower as the buffer fills: it is measured while that part is small.
    """

    def construct(self, spec: ModelSpec) -> None:
        if spec.n_envs:
            raise NotImplementedError("Environments in processes of their own are measured with SB3's interface only")
        self.spec = spec
        self.envs = None if spec.n_envs is None else DummyVectorEnv([lambda: gym.make(LEARN_ENV)])
        if self.envs is None:
            action_space: Any = spaces.Box(-1, 1, (spec.action_dim,))
            obs_shape: tuple[int, ...] = (spec.obs_dim,)
            self.buffer: Any = ReplayBuffer(spec.buffer_size)
        else:
            action_space = self.envs.action_space[0]
            obs_shape = self.envs.observation_space[0].shape
            self.buffer = VectorReplayBuffer(spec.buffer_size, buffer_num=1)
        hidden_sizes = list(spec.net_arch)
        policy = ContinuousDeterministicPolicy(
            actor=ContinuousActorDeterministic(
                preprocess_net=Net(state_shape=obs_shape, hidden_sizes=hidden_sizes), action_shape=action_space.shape
            ),
            exploration_noise="default",
            action_space=action_space,
        )
        self.model = DDPG(
            policy=policy,
            policy_optim=AdamOptimizerFactory(),
            critic=ContinuousCritic(
                preprocess_net=Net(
                    state_shape=obs_shape, action_shape=action_space.shape, hidden_sizes=hidden_sizes, concat=True
                )
            ),
            critic_optim=AdamOptimizerFactory(),
        )
        if self.envs is not None:
            self.collector = Collector(policy, self.envs, self.buffer, exploration_noise=True)
            self.collector.reset()
            self.collector.collect(n_step=RANDOM_STEPS, random=True)

    def fill(self) -> None:
        transitions = synthetic_transitions(self.spec)
        ends = transitions.dones.astype(bool)
        # The buffer offers no way to add many rows at once: its first row makes the arrays, the rest is written into them
        for _ in range(2):
            self.buffer.add(
                Batch(
                    obs=transitions.observations[0],
                    act=transitions.actions[0],
                    rew=np.float64(transitions.rewards[0]),
                    terminated=False,
                    truncated=False,
                    obs_next=transitions.next_observations[0],
                    info={},
                )
            )
        self.buffer.obs[:] = transitions.observations
        self.buffer.obs_next[:] = transitions.next_observations
        self.buffer.act[:] = transitions.actions
        self.buffer.rew[:] = transitions.rewards
        self.buffer.terminated[:] = self.buffer.done[:] = ends
        self.buffer._size = self.spec.buffer_size

    def update(self, count: int, batch_size: int, per_call: int) -> None:
        # It knows only single updates, so per_call has no effect
        with policy_within_training_step(self.model.policy):
            for _ in range(count):
                self.model.update(buffer=self.buffer, sample_size=batch_size)

    def learn(self, count: int) -> None:
        params = OffPolicyTrainerParams(
            max_epochs=1,
            epoch_num_steps=count,
            training_collector=self.collector,
            collection_step_num_env_steps=1,
            update_step_num_gradient_steps_per_sample=1.0,
            batch_size=self.spec.batch_size,
            show_progress=False,
            verbose=False,
        )
        self.model.create_trainer(params).run(reset_collectors=False)
