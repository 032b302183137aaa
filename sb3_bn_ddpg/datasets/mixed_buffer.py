"""A replay buffer of new transitions beside a dataset: learning from both."""

import copy
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_bn_ddpg.common.steps import joined
from sb3_bn_ddpg.datasets.dataset_buffer import DatasetBuffer


class MixedReplayBuffer(ReplayBuffer):
    """
    SB3's replay buffer, whose minibatches are partly from a dataset.

    :param args: As of SB3's
    :param dataset: The dataset
    :param dataset_share: How much of each minibatch is from the dataset, in [0, 1]. If None, any transition is as probable as
        any other, wherever it is from. Before there are new transitions, all of it is.
    :param kwargs: As of SB3's
    """

    is_independent: ClassVar[bool] = True
    """Whether it makes nothing of transitions that follow each other"""

    def __init__(self, *args: Any, dataset: DatasetBuffer, dataset_share: float | None = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataset, self.dataset_share = dataset, dataset_share

    @property
    def reward_factor(self) -> float:
        """What the rewards are multiplied by."""
        return self.dataset.reward_factor

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Add a transition, its reward scaled as the dataset's.

        :param obs: The observation
        :param next_obs: The next one
        :param action: The action, scaled to [-1, 1]
        :param reward: The reward
        :param done: Whether the episode ended
        :param infos: Whether by a time limit, among others
        """
        super().add(obs, next_obs, action, self.reward_factor * reward, done, infos)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_size: Number of transitions
        :param env: What normalises them
        :return: The minibatch, those of the dataset first
        """
        if self.size() == 0:
            n_stored = batch_size
        elif self.dataset_share is None:
            n_new = self.size() * self.n_envs  # SB3's size counts rows, of a transition of each environment
            n_stored = np.random.binomial(batch_size, self.dataset.size() / (self.dataset.size() + n_new))
        else:
            n_stored = round(self.dataset_share * batch_size)
        self.dataset.device = self.device
        if n_stored == batch_size:
            return self.dataset.sample(batch_size, env)
        new = super().sample(batch_size - n_stored, env)
        return new if n_stored == 0 else joined([self.dataset.sample(n_stored, env), new])

    def take_share(self, name: str, share: float | None, batch_size: int) -> None:
        """
        Set ``dataset_share``.

        :param name: Name of the argument that it was given as, for the message
        :param share: How much of each minibatch is from the dataset, as of the constructor
        :param batch_size: Number of transitions in a minibatch
        :raises ValueError: if a share between 0 and 1 comes to none of a minibatch, or to all of it
        """
        if share is not None and 0 < share < 1 and round(share * batch_size) in (0, batch_size):
            number = "none" if round(share * batch_size) == 0 else "all"
            raise ValueError(
                f"`{name}={share!r}` is not allowed with `batch_size={batch_size}`: it comes to {number} of them. It "
                f"must be 0, 1, None, or at least half of one away from both, in [{0.5 / batch_size:.4g}, "
                f"{1 - 0.5 / batch_size:.4g}]"
            )
        self.dataset_share = share

    def with_new(self, buffer: ReplayBuffer) -> "MixedReplayBuffer":
        """
        :param buffer: A replay buffer of SB3's, or one like this
        :return: One like this, with that one's new transitions in the place of its own, their rewards scaled as the dataset's
        """
        mixed = copy.copy(self)
        vars(mixed).update(vars(buffer) | dict(dataset=self.dataset, dataset_share=self.dataset_share))
        factor = self.reward_factor / getattr(buffer, "reward_factor", 1.0)
        if factor != 1:
            mixed.rewards = (factor * mixed.rewards).astype(mixed.rewards.dtype)
        return mixed


class MixedNStepReplayBuffer(MixedReplayBuffer, NStepReplayBuffer):
    """
    The same for returns of several steps, of the dataset's transitions too.

    :param args: As of SB3's
    :param dataset: The dataset
    :param dataset_share: As of :class:`MixedReplayBuffer`
    :param kwargs: As of SB3's, among them ``n_steps`` and ``gamma``
    """

    is_independent = False

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_size: Number of transitions
        :param env: What normalises them
        :return: The minibatch, those of the dataset first
        """
        self.dataset.n_steps, self.dataset.gamma, self.dataset.has_discounts = self.n_steps, self.gamma, True
        return super().sample(batch_size, env)
