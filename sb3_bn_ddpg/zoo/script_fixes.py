"""What RL Zoo's scripts need to work with an algorithm from another package, and from an installed Zoo."""

import importlib
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import repocard
from huggingface_hub.errors import EntryNotFoundError
from requests.exceptions import HTTPError
from rl_zoo3 import utils
from rl_zoo3.utils import ALGOS

from sb3_bn_ddpg.zoo.algorithms import ALGORITHMS


@contextmanager
def own_child_processes() -> Iterator[None]:
    """
    Let ``benchmark`` and ``record_training`` start their child processes through this package, where its algorithms are known;
    ``benchmark`` would also look for its script in the current folder, which only holds in a checkout of the Zoo. They take
    the environment's id, also if the script has its name in folders.
    """
    call = subprocess.call

    def call_registered(args: Any, *rest: Any, **kwargs: Any) -> int:
        match args:
            case ["python", "enjoy.py", *options]:
                options = [getattr(option, "gym_id", option) for option in options]
                args = [sys.executable, "-m", "sb3_bn_ddpg", "enjoy", *options]
            case ["python", "-m", "rl_zoo3.record_video", *options]:
                args = [sys.executable, "-m", "sb3_bn_ddpg", "record_video", *options]
        return call(args, *rest, **kwargs)

    subprocess.call = call_registered
    try:
        yield
    finally:
        subprocess.call = call


@contextmanager
def names_of_folders() -> Iterator[None]:
    """Let ``benchmark`` find the folder of a model whose environment's id has a slash: a dash in the folder's name."""
    hub: Any = importlib.import_module("huggingface_sb3")
    get_trained_models = utils.get_trained_models

    def get_named_models(log_folder: str) -> dict[str, tuple[str, str]]:
        if not Path(log_folder).is_dir():
            raise ValueError(
                f"`--log-dir {log_folder}` is not allowed: there is no such folder; name the one of the trainings, as in "
                "`--log-dir logs`"
            )
        models = get_trained_models(log_folder)
        return {name: (algo, hub.EnvironmentName(env_id)) for name, (algo, env_id) in models.items()}

    utils.get_trained_models = get_named_models
    try:
        yield
    finally:
        utils.get_trained_models = get_trained_models


def run_benchmark(module: str) -> None:
    """
    Run the script ``benchmark``, which writes an empty table, or fails to, if it has evaluated no model.

    :param module: The script
    :raises ValueError: if it has evaluated none
    """
    failure: Exception | None = None
    try:
        variables = runpy.run_module(module, run_name="__main__")
    except Exception as error:
        failure = error
        of_frames = [frame.f_globals for frame, _ in traceback.walk_tb(error.__traceback__)]
        variables = next((each for each in of_frames if "n_experiments" in each), {})  # the script's
    if "results" in variables and not any(variables["results"].values()):
        folder, n_models = variables["args"].log_dir, variables["n_experiments"]
        why = f"none of its {n_models} models could be evaluated, as said above" if n_models else "it has no trained model"
        raise ValueError(f"`--log-dir {folder}` is not allowed: {why}") from failure
    if failure is not None:
        raise failure


@contextmanager
def small_replay_buffer() -> Iterator[None]:
    """
    Let ``enjoy`` and ``record_video`` load a model without the memory of its replay buffer, as the Zoo does for the off-policy
    algorithms that it lists by name. (Not ``push_to_hub``: it saves the loaded model, whose ``buffer_size`` then stayed 1.)
    """
    algos: dict[str, Any] = ALGOS
    own = {name: algos[name] for name in ALGORITHMS}
    # Loading is all that these two scripts ask of an algorithm
    algos |= {name: SimpleNamespace(load=partial(algorithm.load, buffer_size=1)) for name, algorithm in own.items()}
    try:
        yield
    finally:
        algos |= own


@contextmanager
def own_model_card() -> Iterator[None]:
    """Let ``push_to_hub`` write on a model's card the commands that know its algorithm, which the Zoo's own do not."""
    metadata_save = repocard.metadata_save

    def save_with_own_commands(local_path: str | Path, data: dict[Any, Any]) -> None:
        path = Path(local_path)
        card = path.read_text(encoding="utf-8")
        if any(f"--algo {name} " in card for name in ALGORITHMS):
            card = card.replace("python -m rl_zoo3.", "python -m sb3_bn_ddpg ")
            card = card.replace("pip install rl_zoo3", "pip install sb3-bn-ddpg[zoo]")
            path.write_text(card, encoding="utf-8")
        metadata_save(local_path, data)

    repocard.metadata_save = save_with_own_commands
    try:
        yield
    finally:
        repocard.metadata_save = metadata_save


@contextmanager
def optional_hub_files() -> Iterator[None]:
    """
    Let ``load_from_hub`` go on when a model has no file of VecNormalize's statistics: rl-zoo3 2.9 waits for the error of an
    earlier version of the hub's client.
    """
    hub: Any = importlib.import_module("huggingface_sb3")
    load_from_hub = hub.load_from_hub

    def load_or_http_error(repo_id: str, filename: str) -> str:
        try:
            path: str = load_from_hub(repo_id, filename)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error
        return path

    hub.load_from_hub = load_or_http_error
    try:
        yield
    finally:
        hub.load_from_hub = load_from_hub


def provide_generate_metadata() -> None:
    """Give ``push_to_hub`` of rl-zoo3 2.9 the function that sb3-team-hf-integration made private in version 3.2."""
    module: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(module, "generate_metadata"):
        module.generate_metadata = lambda *args: module._generate_metadata(*args).to_dict()
