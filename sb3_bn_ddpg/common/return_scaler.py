"""Scaling rewards by the spread of the discounted return."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_SPREAD = 1e-8
"""Is added to the spread, as by XQC's authors."""


class ReturnScaler:
    """
    The standard deviation of the discounted return G_t = gamma G_(t-1) + r_t over all steps of a training. G is that of the
    rewards since the episode began, the older ones the more discounted, as ``VecNormalize`` and XQC have it.

    :param n_envs: Number of environments, whose returns count together
    """

    def __init__(self, n_envs: int) -> None:
        self.returns = np.zeros(n_envs)
        self.count, self.mean, self.sum_of_squares = 0, 0.0, 0.0  # the last one of distances from the mean

    def update(self, rewards: NDArray[Any], dones: NDArray[Any], gamma: float) -> None:
        """
        Take in a step of the environments.

        :param rewards: Rewards, of shape ``(n_envs,)``
        :param dones: Whether episodes ended, by a termination or by a time limit, of the same shape
        :param gamma: Discount factor
        """
        self.returns = gamma * self.returns + rewards
        # The parallel algorithm of Chan et al.: sums of squares of large numbers would lose their digits
        n, mean = len(self.returns), self.returns.mean()
        total, distance = self.count + n, mean - self.mean
        self.sum_of_squares += float(((self.returns - mean) ** 2).sum() + distance**2 * self.count * n / total)
        self.mean += float(distance) * n / total
        self.count = total
        self.returns[np.asarray(dones, dtype=bool)] = 0.0

    def begin_episodes(self, n_envs: int) -> None:
        """
        New episodes begin, whatever became of those before.

        :param n_envs: Number of environments
        """
        self.returns = np.zeros(n_envs)

    def state_dict(self) -> dict[str, float]:
        """
        :return: What it has learned of returns, as ``get_parameters`` gives it; not those of the episodes that go on. Numbers
            and no tensors, as a file's are put onto the model's device, and not every device knows float64.
        """
        return dict(count=self.count, mean=self.mean, sum_of_squares=self.sum_of_squares)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: Of :meth:`state_dict`; in older files they are tensors
        """
        self.count, self.mean, self.sum_of_squares = (
            int(state["count"]),
            float(state["mean"]),
            float(state["sum_of_squares"]),
        )

    @property
    def scale(self) -> float:
        """What rewards are divided by: 1 until two returns differ."""
        spread = math.sqrt(self.sum_of_squares / self.count) if self.count else 0.0
        return spread + SMALLEST_SPREAD if spread else 1.0
