"""The batch-normalised DDPG of Lillicrap et al. (arXiv 1509.02971) as a Stable-Baselines3 algorithm."""

from importlib.metadata import version

from sb3_bn_ddpg.bn_ddpg import BNDDPG
from sb3_bn_ddpg.callbacks import CheckpointEvery
from sb3_bn_ddpg.dm_control_pixels import register_environments
from sb3_bn_ddpg.export import load_policy
from sb3_bn_ddpg.frame_buffer import FrameReplayBuffer
from sb3_bn_ddpg.noise import OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.pixels import PixelObservation
from sb3_bn_ddpg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__version__ = version("sb3-bn-ddpg")

__all__ = [
    "BNDDPG",
    "CheckpointEvery",
    "CnnPolicy",
    "FrameReplayBuffer",
    "MlpPolicy",
    "MultiInputPolicy",
    "OrnsteinUhlenbeckNoise",
    "PixelObservation",
    "__version__",
    "load_policy",
]

register_environments()
