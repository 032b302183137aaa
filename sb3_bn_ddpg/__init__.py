"""The batch-normalised DDPG of Lillicrap et al. (arXiv 1509.02971), and TD3, SAC and CrossQ with it, for Stable-Baselines3."""

from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.common.guards import EnvironmentFailureError
from sb3_bn_ddpg.common.noise import OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.datasets.dataset_buffer import dataset_buffer
from sb3_bn_ddpg.datasets.recording import record_dataset, store_dataset
from sb3_bn_ddpg.ddpg.bn_ddpg import BNDDPG
from sb3_bn_ddpg.export.files import load_policy
from sb3_bn_ddpg.networks.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_bn_ddpg.offline.awac import BNAWAC
from sb3_bn_ddpg.offline.bcq import BNBCQ
from sb3_bn_ddpg.offline.iql import BNIQL
from sb3_bn_ddpg.offline.td3_bc import BNTD3BC
from sb3_bn_ddpg.pixels.dm_control import register_environments
from sb3_bn_ddpg.pixels.frame_buffer import FrameReplayBuffer
from sb3_bn_ddpg.pixels.observation import PixelObservation
from sb3_bn_ddpg.profiles.hyperparameters import Hyperparameters, hyperparameters
from sb3_bn_ddpg.sac.bn_sac import BNSAC, CROSSQ, XQC
from sb3_bn_ddpg.saving.callbacks import CheckpointEvery
from sb3_bn_ddpg.td3.bn_td3 import BNTD3
from sb3_bn_ddpg.version import __version__

__all__ = [
    "BNAWAC",
    "BNBCQ",
    "BNDDPG",
    "BNIQL",
    "BNSAC",
    "BNTD3",
    "BNTD3BC",
    "CROSSQ",
    "XQC",
    "CheckpointEvery",
    "CnnPolicy",
    "EnvironmentFailureError",
    "FileError",
    "FrameReplayBuffer",
    "Hyperparameters",
    "MlpPolicy",
    "MultiInputPolicy",
    "OrnsteinUhlenbeckNoise",
    "PixelObservation",
    "__version__",
    "dataset_buffer",
    "hyperparameters",
    "load_policy",
    "record_dataset",
    "store_dataset",
]

register_environments()
