"""The datasets of the offline benchmark: Minari datasets of this project's own agents, made where they are missing."""

import os
from pathlib import Path
from typing import Any

import torch as th
from filelock import FileLock  # which PyTorch asks for
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.learning.algorithms import build
from benchmarks.learning.evaluation import make_env
from benchmarks.learning.matrix import VARIANTS
from benchmarks.offline.variants import Recipe
from sb3_bn_ddpg import record_dataset, store_dataset

FOLDER = Path(__file__).parent / "datasets"


def dataset(task: str, kind: str, recipe: Recipe, folder: Path = FOLDER) -> Any:
    """
    :param task: A task
    :param kind: ``"medium"`` or ``"replay"``
    :param recipe: How it is made, if it is not there: both kinds take a quarter of an hour, once a machine
    :param folder: Where the datasets lie
    :return: The ``minari.MinariDataset``
    """
    import minari

    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{task}.lock"):  # other units wait for the one that makes them
        if dataset_id(task, "replay", recipe) not in minari.list_local_datasets():  # the last that is made
            make(task, recipe)
    return minari.load_dataset(dataset_id(task, kind, recipe))


def dataset_id(task: str, kind: str, recipe: Recipe) -> str:
    """
    :param task: A task
    :param kind: A kind
    :param recipe: How it is made
    :return: The dataset's name, another one for another recipe
    """
    numbers = "-".join(str(entry).replace(".", "_") for entry in recipe)
    return f"{task.lower()}/{numbers}/{kind}-v0"


def make(task: str, recipe: Recipe) -> None:
    """
    Train, and store both datasets of a task.

    :param task: The task
    :param recipe: How
    """
    import minari

    medium, replay = (dataset_id(task, kind, recipe) for kind in ("medium", "replay"))
    if medium in minari.list_local_datasets():  # of a process that ended before the other was stored
        minari.delete_dataset(medium)
    model = build(VARIANTS[recipe.teacher], DummyVecEnv([lambda: make_env(task)]), recipe.seed)
    model.learn(recipe.half_steps, log_interval=None)
    th.manual_seed(recipe.seed)
    env = make_env(task)
    record_dataset(model, medium, recipe.medium_steps, env, deterministic=True, noise=recipe.noise, seed=recipe.seed)
    model.learn(recipe.steps - recipe.half_steps, log_interval=None, reset_num_timesteps=False)
    store_dataset(model.replay_buffer, replay, env)
