"""What a worker can do with a contender, and the sizes it is asked for. Standard library and NumPy only."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEARN_ENV = "HalfCheetah-v5"
"""The environment of ``learn()``."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ModelSpec:
    """
    The sizes of a model, the same for every contender.

    :param obs_dim: Dimension of the synthetic environment's states
    :param action_dim: Dimension of its actions
    :param net_arch: Hidden units of actor and critic
    :param batch_size: Transitions in an update
    :param buffer_size: Transitions in the replay buffer, filled with synthetic ones unless ``n_envs`` is given
    :param n_envs: None for the synthetic environment, 0 for one ``HalfCheetah-v5`` in this process, otherwise this many in
        processes of their own
    :param obs_dtype: Number type of the synthetic states
    """

    obs_dim: int = 17
    action_dim: int = 6
    net_arch: tuple[int, ...] = (400, 300)
    batch_size: int = 64
    buffer_size: int = 50_000
    n_envs: int | None = None
    obs_dtype: str = "float32"


@dataclass(frozen=True)
class Transitions:
    """N synthetic transitions: standard normal states and rewards, uniform actions, one in a hundred ends its episode."""

    observations: Array
    next_observations: Array
    actions: Array
    rewards: Array
    dones: Array


def synthetic_transitions(spec: ModelSpec) -> Transitions:
    """
    :param spec: The sizes
    :return: As many transitions as the replay buffer holds, the same for the same sizes
    """
    rng = np.random.default_rng(0)
    size = spec.buffer_size
    return Transitions(
        observations=rng.standard_normal((size, spec.obs_dim), dtype=np.float32),
        next_observations=rng.standard_normal((size, spec.obs_dim), dtype=np.float32),
        actions=rng.uniform(-1, 1, (size, spec.action_dim)).astype(np.float32),
        rewards=rng.standard_normal(size, dtype=np.float32),
        dones=(rng.random(size) < 0.01).astype(np.float32),
    )


class Subject(ABC):
    """
    A contender inside its worker. A subclass imports its library when the first model is constructed, or later.

    :param imports: The module that holds the algorithm
    :param algorithm: Name of the algorithm's class
    :param kwargs: Further arguments of its constructor
    """

    def __init__(self, imports: str, algorithm: str, kwargs: dict) -> None:
        self.imports = imports
        self.algorithm = algorithm
        self.kwargs = kwargs

    @abstractmethod
    def construct(self, spec: ModelSpec) -> None:
        """
        Build the algorithm: what a user's constructor call does.

        :param spec: The sizes
        """

    @abstractmethod
    def fill(self) -> None:
        """Put the synthetic transitions into the replay buffer."""

    @abstractmethod
    def update(self, count: int, batch_size: int, per_call: int) -> None:
        """
        :param count: Number of updates, sampling from the replay buffer included
        :param batch_size: Transitions in each of them
        :param per_call: Updates that one call of ``train()`` makes; divides ``count``
        """

    def learn(self, count: int) -> None:
        """
        :param count: Number of environment steps, with one update after each (after each vectorised one if ``n_envs`` > 0)
        """
        raise NotImplementedError
