"""Where the trials of a search are kept, and what a search leaves behind for people."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rl_zoo3.utils import get_class_by_name
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.zoo.python_files import without_path

TABLE_CREATION_RETRIES = 4
"""Workers that start at the same moment on an empty database all create its tables, and all but one of them fail."""

EVALUATED = ("monitor_kwargs", "normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
"""Hyperparameters that RL Zoo evaluates as Python if they are words."""
IMPORTED = ("callback", "env_wrapper", "vec_env_wrapper")
"""Those that name classes, which it imports."""


@dataclass(frozen=True)
class WorkerRecovery:
    """
    What becomes of a trial whose worker died without a word. Databases only: the journal file has no heartbeat.

    :param heartbeat_interval: A running trial records that it is alive once in so many seconds (an integer >= 1). One silent
        for twice as long is failed by the next worker that starts a trial.
    :param max_retries: How often such a trial is put back in the queue (an integer >= 0)
    :raises ValueError: if an argument is out of its range
    """

    heartbeat_interval: int = 60
    max_retries: int = 3

    def __post_init__(self) -> None:
        check_number("heartbeat_interval", self.heartbeat_interval, low=1, integer=True)
        check_number("max_retries", self.max_retries, low=0, integer=True)


def default_storage(log_folder: str) -> str:
    """
    :param log_folder: The Zoo's ``--log-folder``
    :return: Address of the file that keeps searches without ``--storage``
    """
    # An SQLite file rather than a journal: only a database notices that a worker was killed
    return f"sqlite:///{Path(log_folder, 'optuna.db').as_posix()}"


def open_storage(address: str, recovery: WorkerRecovery | None = None) -> BaseStorage:
    """
    Open the storage of studies, creating it if needed.

    :param address: The Zoo's ``--storage``: a path that ends in ``.log`` (journal file) or a database's address
    :param recovery: What becomes of trials whose worker died (if None: nothing, for reading)
    :return: The storage
    :raises ValueError: if it is no address
    :raises ImportError: if the database's driver is not installed
    """
    file = _file_of(address)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    if address.endswith(".log"):
        return JournalStorage(JournalFileBackend(address))
    # A connection may have died during a long trial. Optuna makes this choice itself for MySQL only.
    engine_kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if file is not None:
        # Other processes write too: wait for them instead of giving up after 5 seconds
        engine_kwargs["connect_args"] = {"timeout": 60}
    connect = partial(
        RDBStorage,
        address,
        engine_kwargs=engine_kwargs,
        heartbeat_interval=None if recovery is None else recovery.heartbeat_interval,
        heartbeat_stale_trial_callback=None if recovery is None else RetryHeartbeatStaleTrialCallback(recovery.max_retries),
    )
    try:
        for _ in range(TABLE_CREATION_RETRIES):
            try:
                return connect()
            except DBAPIError:
                time.sleep(0.5)
        return connect()
    except ImportError as error:
        raise ImportError(
            f"The driver of `storage={address!r}` is not installed: for PostgreSQL run "
            "`pip install sb3-bn-ddpg[distributed]` and write 'postgresql+psycopg://...'"
        ) from error


def _file_of(address: str) -> Path | None:
    """
    :param address: Address of a storage
    :return: The file it is in, or None if it is in a database server
    :raises ValueError: if it is no address
    """
    if address.endswith(".log"):
        return Path(address)
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise ValueError(
            f"`storage={address!r}` is not allowed: it must be a path that ends in '.log' or a database's address such as "
            "'sqlite:///logs/optuna.db' or 'postgresql+psycopg://user@host/database'"
        ) from error
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def default_study_name(algo: str, env_name: str, objective: dict[str, Any]) -> str:
    """
    Name a study after what its trials have in common, so that the same command resumes it and another one, whose trials
    could not be compared, starts its own.

    :param algo: Algorithm
    :param env_name: Environment, as a file name
    :param objective: All that determines what a trial's value means
    :return: The name
    """
    digest = hashlib.sha256(json.dumps(objective, sort_keys=True, default=_described).encode()).hexdigest()[:8]
    return f"{_study_prefix(algo, env_name)}{digest}"


def _described(value: Any) -> str:
    """What ``repr`` says of an object but for its address and its file's: these are others in each process or checkout."""
    return without_path(re.sub(" at 0x[0-9a-fA-F]+", "", repr(value)))


def _study_prefix(algo: str, env_name: str) -> str:
    return f"{algo}_{env_name}_"


def load_study(storage: str | None, study_name: str | None, log_folder: str, algo: str, env_name: str) -> optuna.Study:
    """
    Load the study of an earlier search.

    :param storage: The Zoo's ``--storage`` (if None: the default one)
    :param study_name: The Zoo's ``--study-name`` (if None: the environment's only one)
    :param log_folder: The Zoo's ``--log-folder``
    :param algo: Algorithm
    :param env_name: Environment, as a file name
    :return: The study
    :raises ValueError: if there is none, or more than one that it could be
    """
    address = storage or default_storage(log_folder)
    file = _file_of(address)
    if file is not None and not file.is_file():
        raise ValueError(f"`storage={storage!r}` is not allowed: there is no file {str(file)!r}")
    opened = open_storage(address)
    names = optuna.get_all_study_names(opened)
    fitting = [name for name in names if name == (study_name or name)]
    if study_name is None:
        fitting = [name for name in names if name.startswith(_study_prefix(algo, env_name))]
    if len(fitting) != 1:
        raise ValueError(
            f"`study_name={study_name!r}` is not allowed: it must be one of the studies in {address!r}: "
            f"{', '.join(map(repr, fitting or names)) or 'none'}"
        )
    return optuna.load_study(study_name=fitting[0], storage=opened)


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """
    :param study: A study
    :return: Its trials that have a value
    """
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def as_code(value: Any) -> str:
    """
    :param value: A number, a word, None, a class or function of a module, or a list, tuple or mapping of such
    :return: What RL Zoo evaluates to it, on its command line and in the entries ``EVALUATED`` of a file
    :raises ValueError: if it is anything else
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_code(key)}: {as_code(entry)}" for key, entry in value.items()) + "}"
    if type(value) in (list, tuple):
        entries = f"[{', '.join(map(as_code, value))}]"
        return entries if type(value) is list else f"tuple({entries})"
    if isinstance(value, (type, FunctionType)):
        name = f"{value.__module__}.{value.__qualname__}"
        with suppress(AttributeError, ImportError):
            if get_class_by_name(name) is value:
                return f"get_class_by_name({name!r})"
    if value is None or type(value) in (bool, int, float, str):
        return repr(value)
    raise ValueError(f"{value!r} cannot be written as text")


def write_best_hyperparams(path: Path, env_id: str, hyperparams: dict[str, Any]) -> list[str]:
    """
    Write a hyperparameter file of one environment, ready for ``--conf-file`` or to paste into another file.

    :param path: Where to write it
    :param env_id: The environment
    :param hyperparams: Its hyperparameters
    :return: The names of those that such a file cannot hold, as an object that is no class
    """
    written = {name: _evaluated(value) if name in EVALUATED else value for name, value in hyperparams.items()}
    path.write_text(yaml.dump({env_id: written}, Dumper=_HyperparamsDumper, sort_keys=False))
    return [name for name, value in written.items() if not _is_held(name, value)]


def _is_held(name: str, value: Any) -> bool:
    """
    :param name: Name of a hyperparameter
    :param value: What was written of it
    :return: Whether RL Zoo reads the hyperparameter from that
    """
    try:
        if name in IMPORTED:
            as_code(value)
        else:
            yaml.safe_dump(value)
    except (ValueError, yaml.YAMLError):
        return False
    return True


def _evaluated(value: Any) -> Any:
    """
    :param value: A hyperparameter that RL Zoo evaluates if it is a word
    :return: Such a word if YAML cannot hold the value, else the value
    """
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError:
        with suppress(ValueError):
            return as_code(value)
    return value


class _HyperparamsDumper(yaml.SafeDumper):
    """Writes Python objects, which a command line can pass but a file cannot hold, as words rather than crash."""


_HyperparamsDumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(repr(value)))
# The Zoo imports a wrapper's class by this name
_HyperparamsDumper.add_multi_representer(
    type, lambda dumper, value: dumper.represent_str(f"{value.__module__}.{value.__qualname__}")
)


def write_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """
    Plot the history of a study and the importance of its parameters, as PNG files.

    :param study: The study
    :param folder: Where to write them
    :return: The files written. Importances need at least two finished trials with different values.
    """
    # Slow to import, and only needed here
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as visualization

    plots: dict[str, Callable[[optuna.Study], Any]] = {
        "history.png": visualization.plot_optimization_history,
        "importances.png": visualization.plot_param_importances,
    }
    written = []
    for name, plot in plots.items():
        try:
            figure = plot(study).figure
        except (ValueError, RuntimeError) as error:  # too few trials, or all of the same value
            print(f"No {name}: {error}")
            continue
        figure.savefig(folder / name, dpi=150, bbox_inches="tight")
        plt.close(figure)
        written.append(folder / name)
    return written
