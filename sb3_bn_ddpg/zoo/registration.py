"""Making ``bn_ddpg`` one of RL Zoo's algorithms."""

import rl_zoo3.exp_manager
import rl_zoo3.train
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_bn_ddpg.ddpg.bn_ddpg import BNDDPG
from sb3_bn_ddpg.zoo.manager import CHECKPOINT_FREQ, BNDDPGExperimentManager
from sb3_bn_ddpg.zoo.profiles import ALGO
from sb3_bn_ddpg.zoo.search_space import convert_bn_ddpg_params, sample_bn_ddpg_params
from sb3_bn_ddpg.zoo.studies import WorkerRecovery


def register(
    recovery: WorkerRecovery | None = None, checkpoint_freq: int = CHECKPOINT_FREQ, new_episode: bool = False
) -> None:
    """
    Make ``bn_ddpg`` one of RL Zoo's algorithms in this process, for its scripts, its classes and your own code.

    Do this before the Zoo reads a command line. Doing it again is harmless.

    :param recovery: What becomes of a search's trials whose worker died (if None: the defaults)
    :param checkpoint_freq: Steps between two checkpoints of a training; none is written if it is < 1
    :param new_episode: Whether a training that is resumed from a checkpoint begins a new episode in any case
    """
    ALGOS[ALGO] = BNDDPG
    HYPERPARAMS_SAMPLER[ALGO] = sample_bn_ddpg_params
    HYPERPARAMS_CONVERTER[ALGO] = convert_bn_ddpg_params
    BNDDPGExperimentManager.recovery = recovery or WorkerRecovery()
    BNDDPGExperimentManager.checkpoint_freq = checkpoint_freq
    BNDDPGExperimentManager.new_episode = new_episode
    # The two places from which the Zoo and its users take the class
    rl_zoo3.exp_manager.ExperimentManager = BNDDPGExperimentManager  # type: ignore[misc]
    rl_zoo3.train.ExperimentManager = BNDDPGExperimentManager  # type: ignore[attr-defined]
