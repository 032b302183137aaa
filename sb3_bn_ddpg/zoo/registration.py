"""Making this package's algorithms known to RL Zoo."""

import rl_zoo3.exp_manager
import rl_zoo3.train
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_bn_ddpg.zoo.algorithms import ALGORITHMS
from sb3_bn_ddpg.zoo.search import FamilyExperimentManager
from sb3_bn_ddpg.zoo.studies import WorkerRecovery
from sb3_bn_ddpg.zoo.training import CHECKPOINT_FREQ


def register(
    recovery: WorkerRecovery | None = None,
    checkpoint_freq: int = CHECKPOINT_FREQ,
    new_episode: bool = False,
    dataset: str | None = None,
    online_steps: int = 0,
) -> None:
    """
    Add this package's algorithms to RL Zoo's in this process, for its scripts, its classes and your own code.

    Do this before the Zoo reads a command line. Doing it again is harmless.

    :param recovery: What becomes of a search's trials whose worker died (if None: the defaults)
    :param checkpoint_freq: Steps between two checkpoints of a training; none is written if it is < 1
    :param new_episode: Whether a training that is resumed from a checkpoint begins a new episode in any case
    :param dataset: The dataset of trainings and searches: the id of one of Minari's, or the path of a saved replay buffer or
        of an ``.npz`` file of arrays (if None: what the hyperparameters name, if anything)
    :param online_steps: Environment steps after the gradient steps of an algorithm for stored data (>= 0)
    """
    for name, row in ALGORITHMS.items():
        ALGOS[name] = row.algorithm
        HYPERPARAMS_SAMPLER[name] = row.sampler
        HYPERPARAMS_CONVERTER[name] = row.converter
    FamilyExperimentManager.recovery = recovery or WorkerRecovery()
    FamilyExperimentManager.checkpoint_freq = checkpoint_freq
    FamilyExperimentManager.new_episode = new_episode
    FamilyExperimentManager.dataset = dataset
    FamilyExperimentManager.online_steps = online_steps
    # The two places from which the Zoo and its users take the class
    rl_zoo3.exp_manager.ExperimentManager = FamilyExperimentManager  # type: ignore[misc]
    rl_zoo3.train.ExperimentManager = FamilyExperimentManager  # type: ignore[attr-defined]
