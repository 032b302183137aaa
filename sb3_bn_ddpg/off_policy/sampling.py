"""Minibatches as SB3's replay buffer draws them, in less time."""

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_bn_ddpg.common.steps import joined

_METHODS = frozenset(vars(ReplayBuffer)) | frozenset(vars(BaseBuffer))


def sample(buffer: ReplayBuffer, batch_size: int, env: VecNormalize | None, n_batches: int = 1) -> ReplayBufferSamples:
    """
    What calls of ``buffer.sample`` return, with the same random numbers. SB3's own replay buffer on the CPU is read with one
    index instead of two for each array, and nothing is copied twice; any other buffer samples itself.

    :param buffer: The replay buffer
    :param batch_size: Number of transitions of a minibatch
    :param env: What normalises observations and rewards
    :param n_batches: Number of minibatches
    :return: The transitions of the first minibatch, then those of the second and so on
    """
    if (
        type(buffer) is not ReplayBuffer
        or env is not None
        or buffer.optimize_memory_usage
        or buffer.device.type != "cpu"
        or not _METHODS.isdisjoint(vars(buffer))  # which this object has others of
    ):
        batches = [buffer.sample(batch_size, env=env) for _ in range(n_batches)]
        return batches[0] if n_batches == 1 else joined(batches)
    size = buffer.buffer_size if buffer.full else buffer.pos
    drawn = []
    for _ in range(n_batches):
        rows = np.random.randint(0, size, size=batch_size)
        if buffer.n_envs > 1:  # of one there is nothing to draw, and SB3 then uses no random number
            rows = rows * buffer.n_envs + np.random.randint(0, high=buffer.n_envs, size=(batch_size,))
        drawn.append(rows)
    rows = drawn[0] if n_batches == 1 else np.concatenate(drawn)

    def taken(array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(-1, *array.shape[2:]).take(rows, axis=0)

    dones = (taken(buffer.dones) * (1 - taken(buffer.timeouts))).reshape(-1, 1)
    arrays = (buffer.observations, buffer.actions, buffer.next_observations)
    data = (*map(taken, arrays), dones, taken(buffer.rewards).reshape(-1, 1))
    return ReplayBufferSamples(*map(th.from_numpy, data))
