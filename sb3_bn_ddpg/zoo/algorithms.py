"""The algorithms that RL Zoo learns to know here, one row each. Nothing else of the command line names one."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_bn_ddpg.common.checks import check_choice
from sb3_bn_ddpg.offline.base import BNOfflineAlgorithm
from sb3_bn_ddpg.profiles.algorithms import SHIPPED, ProfiledAlgorithm, file_of
from sb3_bn_ddpg.zoo.search_space import BN_AWAC, BN_BCQ, BN_DDPG, BN_IQL, BN_SAC, BN_TD3, BN_TD3_BC


@dataclass(frozen=True)
class ZooAlgorithm(ProfiledAlgorithm):
    """
    What RL Zoo needs of an algorithm beside its class and its profiles.

    :param sampler: Draws a trial's hyperparameters, as in ``rl_zoo3.hyperparams_opt``
        (:meth:`SearchSpace.sample <sb3_bn_ddpg.zoo.search_space.SearchSpace.sample>` does)
    :param converter: Makes hyperparameters of what a trial has drawn
    """

    sampler: Callable[..., dict[str, Any]]
    converter: Callable[..., dict[str, Any]]

    @property
    def needs_dataset(self) -> bool:
        """Whether it learns from a dataset, by gradient steps, rather than by acting."""
        return issubclass(self.algorithm, BNOfflineAlgorithm)

    @property
    def dataset_argument(self) -> str | None:
        """The argument of its class that takes a dataset, None if there is none."""
        arguments = inspect.signature(self.algorithm).parameters
        return next((name for name in ("dataset", "demonstrations") if name in arguments), None)


SEARCHES = {
    "bn_ddpg": BN_DDPG,
    "bn_td3": BN_TD3,
    "bn_sac": BN_SAC,
    "bn_iql": BN_IQL,
    "bn_td3_bc": BN_TD3_BC,
    "bn_awac": BN_AWAC,
    "bn_bcq": BN_BCQ,
}
"""What a search varies of each algorithm"""
ALGORITHMS: dict[str, ZooAlgorithm] = {
    algo: ZooAlgorithm(SHIPPED[algo].algorithm, SHIPPED[algo].profiles, search.sample, search.convert)
    for algo, search in SEARCHES.items()
}
"""By the value of ``--algo``, which is also the folder in the logs."""
ALGO = next(iter(ALGORITHMS))
"""The one that the command line takes if none is named."""


def profile_path(profile: str | None = None, algo: str = ALGO) -> Path:
    """
    :param profile: Name of one of the algorithm's profiles (if None: its default)
    :param algo: The algorithm
    :return: The profile's hyperparameter file
    :raises ValueError: if there is no such profile or algorithm
    """
    check_choice("algo", algo, ALGORITHMS)
    profiles = ALGORITHMS[algo].profiles
    profile = next(iter(profiles)) if profile is None else profile
    check_choice("profile", profile, profiles)
    return file_of(profiles[profile])


def shipped_files(algo: str) -> list[Path]:
    """
    :param algo: Any algorithm
    :return: The hyperparameter files that this package ships for it
    """
    return [profile_path(profile, algo).resolve() for profile in ALGORITHMS[algo].profiles] if algo in ALGORITHMS else []
