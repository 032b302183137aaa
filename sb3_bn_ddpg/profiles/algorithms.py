"""The algorithms that have profiles, and where their files are."""

from dataclasses import dataclass
from pathlib import Path

from sb3_bn_ddpg.ddpg.bn_ddpg import BNDDPG
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.offline.awac import BNAWAC
from sb3_bn_ddpg.offline.bcq import BNBCQ
from sb3_bn_ddpg.offline.iql import BNIQL
from sb3_bn_ddpg.offline.td3_bc import BNTD3BC
from sb3_bn_ddpg.sac.bn_sac import BNSAC
from sb3_bn_ddpg.td3.bn_td3 import BNTD3


@dataclass(frozen=True)
class ProfiledAlgorithm:
    """
    An algorithm and its profiles.

    :param algorithm: Its class
    :param profiles: The hyperparameter file of each profile, in RL Zoo's format: a name in the folder ``hyperparams``, or an
        absolute path. The first profile is the default.
    """

    algorithm: type[BNOffPolicyAlgorithm]
    profiles: dict[str, str]


SHIPPED: dict[str, ProfiledAlgorithm] = {
    "bn_ddpg": ProfiledAlgorithm(BNDDPG, {"tuned": "bn_ddpg.yml", "paper": "bn_ddpg_paper.yml"}),
    "bn_td3": ProfiledAlgorithm(BNTD3, {"tuned": "bn_td3.yml", "paper": "bn_td3_paper.yml"}),
    "bn_sac": ProfiledAlgorithm(BNSAC, {"tuned": "bn_sac.yml", "crossq": "bn_sac_crossq.yml", "sac": "bn_sac_paper.yml"}),
    "bn_iql": ProfiledAlgorithm(BNIQL, {"authors": "bn_iql.yml"}),
    "bn_td3_bc": ProfiledAlgorithm(BNTD3BC, {"authors": "bn_td3_bc.yml"}),
    "bn_awac": ProfiledAlgorithm(BNAWAC, {"authors": "bn_awac.yml"}),
    "bn_bcq": ProfiledAlgorithm(BNBCQ, {"authors": "bn_bcq.yml"}),
}
"""By the algorithm's name on the command line"""


def file_of(name: str) -> Path:
    """
    :param name: Name of a hyperparameter file of this package, or an absolute path
    :return: The file
    """
    package = Path(__file__).parents[1]
    installed = package / "hyperparams" / name
    # In a checkout the files lie beside the package; building a wheel puts them into it
    return installed if installed.is_file() else package.parent / "hyperparams" / name
