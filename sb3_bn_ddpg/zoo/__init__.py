"""RL Zoo with this package's algorithm: after ``register()`` its scripts and classes know ``bn_ddpg``."""

import importlib.util

if importlib.util.find_spec("rl_zoo3") is None:
    raise ImportError("RL Zoo (rl-zoo3) is not installed: run `pip install sb3-bn-ddpg[zoo]`")

from sb3_bn_ddpg.zoo.manager import CHECKPOINT_FREQ
from sb3_bn_ddpg.zoo.profiles import ALGO, PROFILES, profile_path
from sb3_bn_ddpg.zoo.registration import register
from sb3_bn_ddpg.zoo.studies import WorkerRecovery

__all__ = ["ALGO", "CHECKPOINT_FREQ", "PROFILES", "WorkerRecovery", "profile_path", "register"]
