"""The algorithms that RL Zoo learns to know here, one row each. Nothing else of the command line names one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_bn_ddpg.common.checks import check_choice
from sb3_bn_ddpg.ddpg.bn_ddpg import BNDDPG
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.sac.bn_sac import BNSAC
from sb3_bn_ddpg.td3.bn_td3 import BNTD3
from sb3_bn_ddpg.zoo.search_space import BN_DDPG, BN_SAC, BN_TD3


@dataclass(frozen=True)
class ZooAlgorithm:
    """
    What RL Zoo needs of an algorithm.

    :param algorithm: Its class
    :param profiles: The hyperparameter file of each profile, in RL Zoo's format: a name in the folder ``hyperparams``, or an
        absolute path. The first profile is the default.
    :param sampler: Draws a trial's hyperparameters, as in ``rl_zoo3.hyperparams_opt``
        (:meth:`SearchSpace.sample <sb3_bn_ddpg.zoo.search_space.SearchSpace.sample>` does)
    :param converter: Makes hyperparameters of what a trial has drawn
    """

    algorithm: type[BNOffPolicyAlgorithm]
    profiles: dict[str, str]
    sampler: Callable[..., dict[str, Any]]
    converter: Callable[..., dict[str, Any]]


ALGORITHMS: dict[str, ZooAlgorithm] = {
    "bn_ddpg": ZooAlgorithm(
        BNDDPG,
        {"tuned": "bn_ddpg.yml", "paper": "bn_ddpg_paper.yml"},
        BN_DDPG.sample,
        BN_DDPG.convert,
    ),
    "bn_td3": ZooAlgorithm(
        BNTD3,
        {"prototype": "bn_td3.yml", "paper": "bn_td3_paper.yml"},
        BN_TD3.sample,
        BN_TD3.convert,
    ),
    "bn_sac": ZooAlgorithm(
        BNSAC,
        {"crossq": "bn_sac.yml", "sac": "bn_sac_paper.yml"},
        BN_SAC.sample,
        BN_SAC.convert,
    ),
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
    package = Path(__file__).parents[1]
    installed = package / "hyperparams" / profiles[profile]
    # In a checkout the files lie beside the package; building a wheel puts them into it
    return installed if installed.is_file() else package.parent / "hyperparams" / profiles[profile]


def shipped_files(algo: str) -> list[str]:
    """
    :param algo: Any algorithm
    :return: The hyperparameter files that this package ships for it
    """
    return [str(profile_path(profile, algo)) for profile in ALGORITHMS[algo].profiles] if algo in ALGORITHMS else []
