"""RL Zoo with this package's algorithms: after ``register()`` its scripts and classes know them."""

import importlib.util

if importlib.util.find_spec("rl_zoo3") is None:
    raise ImportError("RL Zoo (rl-zoo3) is not installed: run `pip install sb3-bn-ddpg[zoo]`")

from sb3_bn_ddpg.zoo.algorithms import ALGO, ALGORITHMS, ZooAlgorithm, profile_path
from sb3_bn_ddpg.zoo.registration import register
from sb3_bn_ddpg.zoo.studies import WorkerRecovery
from sb3_bn_ddpg.zoo.training import CHECKPOINT_FREQ

__all__ = [
    "ALGO",
    "ALGORITHMS",
    "CHECKPOINT_FREQ",
    "WorkerRecovery",
    "ZooAlgorithm",
    "profile_path",
    "register",
]
