"""
CPU time of a step with its update: ``python -m benchmarks.learning.step_time`` measures all variants in turns, in one process
with one thread, and writes ``results/step_time.csv``.

The clocks of the runs themselves are not comparable: work beside them slows their core down, and differently each day.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm

from benchmarks.learning.algorithms import build
from benchmarks.learning.contenders import FAMILY, FIGURE2, FIRST_FAMILY, PEERS, TUNED_NORMS, TWO_UPDATES
from benchmarks.learning.evaluation import make_env
from benchmarks.learning.matrix import VARIANTS
from benchmarks.learning.store import RESULTS, machine, source_hash, versions
from benchmarks.learning.tasks import TASKS
from sb3_bn_ddpg.common.atomic_files import atomic_write

FILE = "step_time.csv"
FIELDS = ("task", "variant", "round", "steps", "cpu_seconds")
CONDITIONS = ("machine", "torch", "source")
"""Columns that say what a row was measured with: ``source`` is a digest of this package's code."""
MEASURED = tuple(dict.fromkeys(("tuned", *PEERS, *FIGURE2, *TUNED_NORMS, *FAMILY, *FIRST_FAMILY, TWO_UPDATES)))
WARM_UP = 2_000
"""Steps before the first round: 1,000 have no update, and Adam's moments of inactive units become denormal in the others."""


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(MEASURED), metavar="VARIANT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of each variant in a round")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the file")
    arguments = parser.parse_args()
    rows = []
    for task in tqdm(arguments.task, unit="task"):
        rows += measure(task, arguments.variant, arguments.rounds, arguments.steps)
        write(arguments.results, rows)


def measure(task: str, variants: list[str], rounds: int, steps: int) -> list[tuple[str, str, int, int, float]]:
    """
    :param task: A task
    :param variants: Names of variants
    :param rounds: How often each has its turn
    :param steps: Steps of a turn
    :return: Rows of ``FIELDS``
    """
    models = {name: build(VARIANTS[name], DummyVecEnv([lambda: make_env(task)]), seed=0) for name in variants}
    for model in models.values():
        model.set_logger(Logger(folder=None, output_formats=[]))
        model.learn(WARM_UP, log_interval=sys.maxsize)
    rows = []
    for index in range(rounds):
        turns = list(models.items())
        for name, model in turns[index % len(turns) :] + turns[: index % len(turns)]:
            start = time.process_time()
            model.learn(steps, reset_num_timesteps=False, log_interval=sys.maxsize)
            rows.append((task, name, index, steps, round(time.process_time() - start, 4)))
    return rows


def write(folder: Path, rows: list[tuple[str, str, int, int, float]]) -> None:
    """
    :param folder: The results
    :param rows: Rows of ``FIELDS``, which replace those of the same tasks, variants and machine
    """
    path = folder / FILE
    measured = pd.DataFrame(rows, columns=list(FIELDS))
    measured = measured.assign(machine=machine("cpu"), torch=versions()["torch"], source=source_hash())
    if path.exists():
        stored = pd.read_csv(path, float_precision="round_trip").reindex(columns=measured.columns)
        own = ["task", "variant", "machine"]
        is_new = pd.MultiIndex.from_frame(stored[own]).isin(pd.MultiIndex.from_frame(measured[own]))
        measured = pd.concat([stored[~is_new], measured])
    with atomic_write(path) as file:
        measured.to_csv(file, index=False, lineterminator="\r\n")


def read(folder: Path) -> pd.Series:
    """
    :param folder: The results
    :return: CPU seconds of a step by task and variant, the median of the rounds on all machines; empty if nothing was measured
    """
    return _medians(folder, ["task", "variant"])


def ratios(folder: Path, to: str, together: Iterable[str] = ()) -> pd.Series:
    """
    :param folder: The results
    :param to: A variant
    :param together: Variants whose figures are to be of the same tasks and machines: those on which all of them were measured,
        but for those that were never measured
    :return: How many times its step each variant's takes: the median of the tasks and machines that have both, by variant;
        without the variants that were never measured beside it
    """
    medians = _medians(folder, ["task", "machine", "variant"]).unstack()
    medians = medians.dropna(subset=[name for name in together if name in medians])
    return medians.div(medians[to], axis=0).median().dropna() if to in medians else pd.Series(dtype=float)


def _medians(folder: Path, by: list[str]) -> pd.Series:
    path = folder / FILE
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=FIELDS)
    rows = rows.reindex(columns=[*FIELDS, *CONDITIONS]).fillna(dict.fromkeys(CONDITIONS, ""))
    return (rows["cpu_seconds"] / rows["steps"]).groupby([rows[name] for name in by]).median()


def conditions_text(folder: Path) -> str:
    """
    :param folder: The results
    :return: What was measured with what, a sentence
    """
    rows = pd.read_csv(folder / FILE).reindex(columns=[*FIELDS, *CONDITIONS])
    known = rows.groupby(list(CONDITIONS))["variant"].unique()
    parts = [
        f"{', '.join(VARIANTS[name].label for name in names)} on {where}, PyTorch {torch}, source {source}"
        for (where, torch, source), names in known.items()
    ]
    if rows["machine"].isna().any():
        parts.append(f"{'the others ' if parts else ''}on a machine that was not recorded")
    return (
        "This package's by its compiled update, the peers' by PyTorch. The columns are not all of one machine: the last line, "
        f"which compares within each, is what to read. Measured: {'; '.join(parts)}."
    )


if __name__ == "__main__":
    main()
