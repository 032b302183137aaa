"""From stored units to figures: scores, their aggregates with intervals, and rates of time."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rliable import library

from benchmarks.learning.matrix import GROUPS, VARIANTS, Budget, Unit
from benchmarks.learning.store import is_done, read_done
from benchmarks.learning.tasks import ALL_TASKS

REPETITIONS = 2_000
"""Bootstrap samples of every interval."""
SEEDS_FOR_INTERVALS = 3
"""From fewer, a bootstrap's interval is too narrow to decide anything; from one it has no width."""
FINAL_EVALUATIONS = 4
"""A run's final score is the mean of its last evaluations (10,000 steps): a single one is noisy."""
PERMUTATIONS = 10_000
"""Random exchanges of runs between two variants, for the p-value of their difference."""
SIGNIFICANT = 0.05
"""The p-value below which a difference counts as decided."""


class Estimate(NamedTuple):
    """A figure with its 95% interval; arrays for curves."""

    value: Any
    low: Any
    high: Any


class Comparison(NamedTuple):
    """
    One variant beside another.

    :param seeds: Numbers of seeds
    :param gain: The first's interquartile mean less the other's
    :param p_value: That of the gain
    :param probability: That a run of the first scores higher on a task than one of the other
    :param mean_gain: The first's mean less the other's, without trimming
    :param mean_p_value: That of this one
    """

    seeds: tuple[int, int]
    gain: Estimate
    p_value: float
    probability: Estimate
    mean_gain: float
    mean_p_value: float

    @property
    def is_decided(self) -> bool:
        """Whether chance alone makes a gain of this size too seldom."""
        return self.p_value < SIGNIFICANT


def all_units() -> list[Unit]:
    """
    :return: The whole matrix but the long runs, each unit once
    """
    return list(dict.fromkeys(unit for group in GROUPS.values() for unit in group.units()))


def read(folder: Path, budget: Budget, units: Iterable[Unit] | None = None) -> pd.DataFrame:
    """
    :param folder: The results
    :param budget: The extent of the runs
    :param units: Which (if None: :func:`all_units`)
    :return: The rows of every unit that is stored as the matrix has it, with ``task``, ``variant``, ``seed`` and ``score``,
        the ``machine``, and a digest of the ``dataset`` (None if the unit has none, or is from before it was stored)
    """
    frames = []
    for unit in all_units() if units is None else units:
        if stored := read_done(folder, unit, budget):
            frame = pd.DataFrame(stored.rows).apply(pd.to_numeric)
            known = dict(machine=stored.header["machine"], dataset=stored.header.get("dataset"))
            frames.append(frame.assign(task=unit.task, variant=unit.variant, seed=unit.seed, **known))
    if not frames:
        return pd.DataFrame(columns=["task", "variant", "seed", "step", "return_mean", "score"])
    rows = pd.concat(frames, ignore_index=True)
    random = rows[rows["variant"] == "random"].groupby("task")["return_mean"].mean()
    zero = rows["task"].map(random)
    one = rows["task"].map({name: task.reference for name, task in ALL_TASKS.items()})
    return rows.assign(score=(rows["return_mean"] - zero) / (one - zero))


def read_pixels(folder: Path) -> pd.DataFrame:
    """
    :param folder: The results of ``benchmarks.pixels.train``
    :return: ``task``, ``seed``, ``step`` and ``return_mean`` of its evaluations, until the shortest run of a task ends; a step
        is one of the task, of which an action from pixels takes three
    """
    frames = [pd.DataFrame(columns=["task", "seed", "step", "return_mean"])]
    for path in sorted(folder.glob("*/evaluations.csv")):
        task, seed = path.parent.name.rsplit("-", 1)
        own = pd.read_csv(path)
        columns = dict(task=f"dm_control/{task}-v0", seed=int(seed), step=3 * own["step"], return_mean=own["mean_return"])
        frames.append(pd.DataFrame(columns))
    rows = pd.concat(frames[1:] or frames, ignore_index=True)
    ends = rows.groupby(["task", "seed"])["step"].max().groupby("task").min()
    return rows[rows["step"] <= rows["task"].map(ends)]


def final(rows: pd.DataFrame, column: str = "score") -> pd.Series:
    """
    :param rows: As from :func:`read`
    :param column: A column
    :return: Its mean over each run's last evaluations, by task, variant and seed
    """
    last = rows.groupby(["task", "variant", "seed"]).tail(FINAL_EVALUATIONS)
    return last.groupby(["task", "variant", "seed"])[column].mean()


def seeds_of(rows: pd.DataFrame, variant: str, tasks: Sequence[str]) -> list[int]:
    """
    :param rows: As from :func:`read`
    :param variant: A variant
    :param tasks: Tasks
    :return: The seeds that are stored for every one of the tasks
    """
    own = rows[rows["variant"] == variant]
    seeds = [set(own.loc[own["task"] == task, "seed"]) for task in tasks]
    return sorted(set.intersection(*seeds)) if seeds else []


def final_matrix(rows: pd.DataFrame, variant: str, tasks: Sequence[str]) -> NDArray[np.float64]:
    """
    :param rows: As from :func:`read`
    :param variant: A variant
    :param tasks: Tasks
    :return: Final scores, of shape ``(n_seeds, n_tasks)``
    """
    scores = final(rows[rows["variant"] == variant])
    return np.array([[scores[task, variant, seed] for task in tasks] for seed in seeds_of(rows, variant, tasks)])


def curve_matrix(rows: pd.DataFrame, variant: str, tasks: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    :param rows: As from :func:`read`
    :param variant: A variant
    :param tasks: Tasks
    :return: The steps, and scores of shape ``(n_seeds, n_tasks, n_steps)``
    """
    own = rows[(rows["variant"] == variant) & rows["task"].isin(tasks)]
    table = own.pivot_table(index="step", columns=["seed", "task"], values="score")
    seeds = seeds_of(rows, variant, tasks)
    return table.index.to_numpy(float), np.array([[table[seed, task] for task in tasks] for seed in seeds])


def over_time(
    rows: pd.DataFrame, step_times: pd.Series, variant: str, tasks: Sequence[str], seconds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    :param rows: As from :func:`read`
    :param step_times: CPU seconds of a step by task and variant
    :param variant: A variant
    :param tasks: Tasks
    :param seconds: Points in time
    :return: Those points that every task's runs reach and the last such moment, and scores there, of shape
        ``(n_seeds, n_tasks, n_points)``
    """
    steps, scores = curve_matrix(rows, variant, tasks)
    clocks = [steps * step_times[task, variant] for task in tasks]
    end = min(clock[-1] for clock in clocks)
    points = np.append(seconds[seconds < end], end)
    by_time = [[np.interp(points, clock, run) for clock, run in zip(clocks, seed, strict=True)] for seed in scores]
    return points, np.array(by_time)


def interquartile_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    :param scores: Of shape ``(n_seeds, n_tasks)`` or ``(n_seeds, n_tasks, n_points)``
    :return: rliable's interquartile mean over seeds and tasks, one for each point
    """
    # SciPy's trim_mean, which rliable calls, spends fifty times as long on checking its arguments as on the mean
    runs = np.sort(scores.reshape(-1, *scores.shape[2:]), axis=0)
    cut = len(runs) // 4
    return np.atleast_1d(runs[cut : len(runs) - cut].mean(axis=0))


def mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    :param scores: Of shape ``(n_seeds, n_tasks)`` or ``(n_seeds, n_tasks, n_points)``
    :return: The mean over seeds and tasks, one for each point
    """
    return np.atleast_1d(scores.mean(axis=(0, 1)))


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    :param one: Scores, of shape ``(n_seeds, n_tasks)``
    :param other: Likewise
    :return: The first's interquartile mean less the other's
    """
    return interquartile_mean(one) - interquartile_mean(other)


def improvement(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    :param one: Scores, of shape ``(n_seeds, n_tasks)``
    :param other: Likewise
    :return: rliable's probability that a run of the first scores higher on a task than one of the other
    """
    # rliable's own asks SciPy for a whole test of each task and sample; its statistic is this count of pairs, ties half
    pairs = np.sign(one[:, None] - other[None]) / 2 + 0.5
    return np.atleast_1d(pairs.mean())


def permutation_p(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] = interquartile_mean,
) -> float:
    """
    A bootstrap's interval of three to five runs is too narrow: of two variants that do not differ, it excludes 0 in 10 to 15 %
    of cases. This p-value is right for any number of runs.

    :param one: Scores, of shape ``(n_seeds, n_tasks)``
    :param other: Likewise
    :param statistic: What is compared
    :return: How probable a difference of this size, of either sign, is between two variants that do not differ:
        its share among random exchanges of runs between the two within each task
    """
    runs = np.concatenate([one, other])
    order = np.random.default_rng(0).random((*runs.shape, PERMUTATIONS)).argsort(axis=0)
    exchanged = np.take_along_axis(runs[..., None], order, axis=0)
    sizes = np.abs(statistic(exchanged[: len(one)]) - statistic(exchanged[len(one) :]))
    rounding = 1e-12  # of sums in another order
    return float(1 + np.sum(sizes >= np.abs(statistic(one) - statistic(other)) - rounding)) / (1 + PERMUTATIONS)


def estimate(function: Callable[..., NDArray[np.float64]], *scores: NDArray[np.float64]) -> Estimate:
    """
    :param function: The figure
    :param scores: One matrix of scores, or two that are drawn from independently
    :return: Value and 95% interval of the bootstrap stratified by tasks, the same at every call
    """
    np.random.seed(0)  # rliable draws from the global generator
    data: Any = {"": scores[0] if len(scores) == 1 else list(scores)}
    values, intervals = library.get_interval_estimates(data, function, reps=REPETITIONS)
    value, (low, high) = values[""], intervals[""]
    return Estimate(*(part.item() if part.size == 1 else part for part in (value, low, high)))


def compare(rows: pd.DataFrame, one: str, other: str, tasks: Sequence[str]) -> Comparison | None:
    """
    :param rows: As from :func:`read`
    :param one: A variant
    :param other: Another
    :param tasks: Tasks
    :return: The first beside the other; None if one of them has too few seeds, or scores that are not numbers, as where no
        random policy's return is stored
    """
    if len(complete(rows, (one, other), tasks, SEEDS_FOR_INTERVALS)) < 2:
        return None
    scores = final_matrix(rows, one, tasks), final_matrix(rows, other, tasks)
    if not all(np.isfinite(matrix).all() for matrix in scores):
        return None
    return Comparison(
        seeds=(len(scores[0]), len(scores[1])),
        gain=estimate(difference, *scores),
        p_value=permutation_p(*scores),
        probability=estimate(improvement, *scores),
        mean_gain=(mean(scores[0]) - mean(scores[1])).item(),
        mean_p_value=permutation_p(*scores, statistic=mean),
    )


def performance_profile(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> Estimate:
    """
    :param scores: Final scores, of shape ``(n_seeds, n_tasks)``
    :param thresholds: Scores to exceed
    :return: The share of runs above each of them
    """
    return estimate(lambda sample: (sample.reshape(-1, 1) > thresholds).mean(axis=0), scores)


def complete(rows: pd.DataFrame, variants: Iterable[str], tasks: Sequence[str], seeds: int = 1) -> list[str]:
    """
    :param rows: As from :func:`read`
    :param variants: Names
    :param tasks: Tasks
    :param seeds: How many seeds it takes
    :return: The variants that have so many seeds on every task
    """
    return [name for name in variants if len(seeds_of(rows, name, tasks)) >= seeds]


def missing_text(folder: Path, budget: Budget) -> str:
    """
    :param folder: The results
    :param budget: The extent of the runs
    :return: What of the matrix is not stored, as a Markdown list; empty if nothing is
    """
    lines = []
    for name, group in GROUPS.items():
        units = list(group.units())
        gaps = [unit for unit in units if not is_done(folder, unit, budget)]
        if gaps:
            cells = ", ".join(
                f"{VARIANTS[variant].label} {sum(unit.variant == variant for unit in gaps)}"
                for variant in dict.fromkeys(unit.variant for unit in gaps)
            )
            stored = len(units) - len(gaps)
            lines.append(f"- `{name}`: {stored} of {len(units)} runs stored" + (f" (missing: {cells})" if stored else ""))
    return "\n".join(lines)
