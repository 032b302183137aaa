"""The hyperparameter files this package ships, one a profile, in RL Zoo's format."""

from pathlib import Path

from sb3_bn_ddpg.common.checks import check_choice

ALGO = "bn_ddpg"
"""The algorithm's name in RL Zoo: the value of ``--algo`` and the folder in the logs."""

PROFILES = {"tuned": f"{ALGO}.yml", "paper": f"{ALGO}_paper.yml"}
"""File of each profile. The first one is what ``bn-ddpg train`` uses by default."""


def profile_path(profile: str = "tuned") -> Path:
    """
    :param profile: ``"tuned"`` or ``"paper"``
    :return: The profile's hyperparameter file
    :raises ValueError: if there is no such profile
    """
    check_choice("profile", profile, PROFILES)
    package = Path(__file__).parents[1]
    installed = package / "hyperparams" / PROFILES[profile]
    # In a checkout the files lie beside the package; building a wheel puts them into it
    return installed if installed.is_file() else package.parent / "hyperparams" / PROFILES[profile]
