"""The model that RL Zoo makes of a hyperparameter file."""

from argparse import Namespace
from pathlib import Path

from rl_zoo3 import exp_manager
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_bn_ddpg import zoo

zoo.register()


def model_from(path: Path, folder: Path) -> BaseAlgorithm:
    """
    :param path: A hyperparameter file with an entry for Pendulum-v1
    :param folder: Where the Zoo writes
    :return: The model
    """
    manager = exp_manager.ExperimentManager(
        Namespace(env="Pendulum-v1"),
        zoo.ALGO,
        "Pendulum-v1",
        log_folder=str(folder / "logs"),
        eval_freq=-1,
        verbose=0,
        config=str(path),
        device="cpu",
    )
    setup = manager.setup_experiment()
    assert setup is not None
    return setup[0]
