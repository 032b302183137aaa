"""The page of offline results, from the stored units alone: ``python -m benchmarks.offline.report``."""

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.learning.figures import (
    FINAL_EVALUATIONS,
    SEEDS_FOR_INTERVALS,
    Estimate,
    compare,
    complete,
    estimate,
    final,
    final_matrix,
    mean,
    read,
)
from benchmarks.learning.matrix import OFFLINE, Budget, Unit
from benchmarks.learning.plots import save
from benchmarks.learning.report import interval, p_text
from benchmarks.learning.store import PAGE, header_text
from benchmarks.learning.unit import add_budget_arguments, budget_of
from benchmarks.markdown import MISSING, number, replace_results, table
from benchmarks.offline.plots import plot_scores
from benchmarks.offline.variants import CHANGES, KINDS, LABELS, PEER, TASKS, Change, variant_name

NAME = "offline_results.md"
COLUMNS = {"none": "no normalisation", "batch": "batch norm", "layer": "layer norm", PEER: "d3rlpy"}
COMPARED = (
    "Final scores, over the datasets on which both have all seeds; each dataset counts alike. p is a permutation test's: "
    "how often runs exchanged at random within each dataset differ as much."
)
TIMED = (
    "Median CPU seconds of a run, its evaluations included, on the machine (below) that most of the algorithm's runs are of. "
    "The other core was at work, too."
)
QUESTIONS = (("batch", "none"), ("layer", "none"), ("none", PEER), ("batch", PEER))
"""Which of :data:`COLUMNS` is better?"""
CAPTION = (
    f"Normalised scores, final (mean of the last {FINAL_EVALUATIONS} evaluations) / best (largest evaluation): means over the "
    f"stored seeds, from {SEEDS_FOR_INTERVALS} seeds on with the 95 % interval of a bootstrap. 0 is a random policy, 1 the "
    "reference of the learning benchmark."
)


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE.with_name(NAME))
    add_budget_arguments(parser)
    arguments = parser.parse_args()
    write(arguments.results, arguments.page, budget_of(arguments))


def units() -> list[Unit]:
    """
    :return: Those of the page
    """
    return [unit for group in OFFLINE.values() for unit in group.units()]


def write(folder: Path, page: Path, budget: Budget) -> None:
    """
    Replace the results in the page.

    :param folder: The results
    :param page: The page
    :param budget: The extent of the runs
    """
    declared = [unit for unit in units() if unit.variant != "random"]
    rows = read(folder, budget, units())
    all_trained = rows[rows["variant"] != "random"]
    n_stored = len(all_trained[["task", "variant", "seed"]].drop_duplicates())
    trained = all_trained[~all_trained["variant"].isin([change.variant for change in CHANGES])]
    parts = [f"{n_stored} of {len(declared)} runs are stored."]
    if n_stored:
        parts += [CAPTION]
        for algorithm, label in LABELS.items():
            lines = table_lines(trained, algorithm)
            if lines:
                parts += [f"### {label}", table(["Dataset", *COLUMNS.values()], lines)]
        for change in CHANGES:
            parts += change_parts(all_trained, change)
        cells = by_dataset(trained)
        parts[2:2] = ["### Who is better?", COMPARED, questions_table(cells), below_text(cells)]
        parts += [
            "### CPU time",
            TIMED,
            times_table(cells),
            "## Machine and versions",
            datasets_text(cells),
            header_text(folder, units(), budget),
        ]
        parts.insert(1, save(plot_scores(cells, final(cells), COLUMNS), page.with_suffix(""), "scores"))
    replace_results(page, parts)


def table_lines(rows: pd.DataFrame, algorithm: str) -> list[list[str]]:
    """
    :param rows: The stored evaluations
    :param algorithm: An algorithm
    :return: A line for each dataset of which something is stored
    """
    lines = []
    for task in TASKS:
        for kind in KINDS:
            cells = [score_cell(rows, task, variant_name(kind, algorithm, column)) for column in COLUMNS]
            if any(cell != MISSING for cell in cells):
                lines.append([f"{task} {kind}", *cells])
    return lines


def change_parts(rows: pd.DataFrame, change: Change) -> list[str]:
    """
    :param rows: The stored evaluations
    :param change: What is changed in one of d3rlpy's algorithms
    :return: What it scores before and after, if that is stored
    """
    variants = (variant_name(change.kind, change.algorithm, PEER), change.variant)
    lines = [[f"{task} {change.kind}", *(score_cell(rows, task, variant) for variant in variants)] for task in TASKS]
    if all(line[-1] == MISSING for line in lines):
        return []
    return [f"### {change.title}", table(["Dataset", *change.columns], lines)]


def score_cell(rows: pd.DataFrame, task: str, variant: str) -> str:
    """
    :param rows: The stored evaluations
    :param task: A task
    :param variant: A variant
    :return: Its final and its best score, with what they are worth
    """
    own = rows[(rows["task"] == task) & (rows["variant"] == variant)]
    if own.empty:
        return MISSING
    last, best = final(own), own.groupby("seed")["score"].max()
    seeds = len(last)
    if seeds < SEEDS_FOR_INTERVALS:
        return f"{last.mean():.2f} / {best.mean():.2f} ({seeds} of {SEEDS_FOR_INTERVALS} seeds)"
    return " / ".join(interval(estimate(mean, each.to_numpy()[:, None]), 2) for each in (last, best))


def by_dataset(rows: pd.DataFrame) -> pd.DataFrame:
    """
    :param rows: The stored evaluations
    :return: The same, with a dataset in the place of a task, an algorithm and one of :data:`COLUMNS` in that of a variant
    """
    parts = {
        variant_name(kind, algorithm, column): (kind, algorithm, column)
        for kind in KINDS
        for algorithm in LABELS
        for column in COLUMNS
    }
    kinds, algorithms, columns = zip(*rows["variant"].map(parts), strict=True)
    rows = rows.assign(algorithm=algorithms, column=columns)
    return rows.assign(
        task=rows["task"] + " " + pd.Series(kinds, rows.index), variant=rows["algorithm"] + " " + rows["column"]
    )


def datasets_of(cells: pd.DataFrame, *variants: str) -> list[str]:
    """
    :param cells: As from :func:`by_dataset`
    :param variants: Some of its variants
    :return: Datasets on which all of them have seeds enough
    """
    names = [f"{task} {kind}" for task in TASKS for kind in KINDS]
    return [name for name in names if len(complete(cells, variants, [name], SEEDS_FOR_INTERVALS)) == len(variants)]


def questions_table(cells: pd.DataFrame) -> str:
    """
    :param cells: As from :func:`by_dataset`
    :return: The answers to :data:`QUESTIONS` for each algorithm, over the datasets that both sides have seeds enough on
    """
    lines = []
    for algorithm, label in LABELS.items():
        for one, other in QUESTIONS:
            pair = f"{algorithm} {one}", f"{algorithm} {other}"
            datasets = datasets_of(cells, *pair)
            if datasets and (found := compare(cells, *pair, datasets)):
                gain = estimate(difference_of_means, *(final_matrix(cells, variant, datasets) for variant in pair))
                lines.append(
                    [
                        f"{label}: {COLUMNS[one]} > {COLUMNS[other]}?",
                        str(len(datasets)),
                        interval(gain),
                        p_text(found.mean_p_value),
                        interval(found.probability, 2),
                    ]
                )
    if not lines:
        return f"No two columns have {SEEDS_FOR_INTERVALS} seeds of a dataset yet."
    return table(["", "datasets", "difference of means", "p", "probability of improvement"], lines)


def difference_of_means(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    :param one: Scores, of shape ``(n_seeds, n_tasks)``
    :param other: Likewise
    :return: The first's mean less the other's
    """
    return mean(one) - mean(other)


def below_text(cells: pd.DataFrame) -> str:
    """
    :param cells: As from :func:`by_dataset`
    :return: On which datasets an algorithm's interval, with its authors' settings, lies wholly below d3rlpy's, or above it
    """
    compared, below, above = 0, [], []
    for algorithm, label in LABELS.items():
        pair = f"{algorithm} none", f"{algorithm} {PEER}"
        for name in datasets_of(cells, *pair):
            ours, theirs = (interval_of(cells, variant, name) for variant in pair)
            compared += 1
            if ours.high < theirs.low:
                below.append(f"{label} on {name}")
            elif ours.low > theirs.high:
                above.append(f"{label} on {name}")
    if not compared:
        return f"No algorithm has {SEEDS_FOR_INTERVALS} seeds of a dataset beside d3rlpy's yet."
    told = [
        f"{where} d3rlpy's in {len(found)}" + f" ({', '.join(found)})" * bool(found)
        for where, found in (("below", below), ("above", above))
    ]
    return (
        f"Without normalisation, as the authors have it, the interval of an algorithm's final score lies wholly {told[0]} and "
        f"{told[1]} of {compared} cells; in the others they overlap."
    )


def interval_of(cells: pd.DataFrame, variant: str, dataset: str) -> Estimate:
    """
    :param cells: As from :func:`by_dataset`
    :param variant: One of its variants
    :param dataset: One of its datasets
    :return: The mean of its final scores
    """
    return estimate(mean, final_matrix(cells, variant, [dataset]))


def datasets_text(cells: pd.DataFrame) -> str:
    """
    :param cells: As from :func:`by_dataset`
    :return: A sentence on which datasets the runs learned from: whether those of one name are one
    """
    runs = cells.drop_duplicates(["task", "variant", "seed"])
    digests = runs.dropna(subset="dataset").groupby("task")["dataset"].agg(lambda each: sorted(set(each)))
    mixed = {name: found for name, found in digests.items() if len(found) > 1}
    if mixed:
        told = "; ".join(f"{name}: {', '.join(found)}" for name, found in mixed.items())
        return f"**Runs of one name learned from different datasets, and are not to be compared** (digests): {told}."
    told = ", ".join(f"{name} {found[0]}" for name, found in digests.items())
    unknown = f"Runs from before digests were stored: {runs['dataset'].isna().sum()}."
    return f"Digests of the datasets, one for all runs that name it: {told}. {unknown}" if told else unknown


def times_table(cells: pd.DataFrame) -> str:
    """
    :param cells: As from :func:`by_dataset`
    :return: CPU seconds of a run, evaluations included, for each algorithm
    """
    runs = cells.groupby(["algorithm", "machine", "variant", "task", "seed"])["cpu_seconds"].max()
    most = runs.groupby(["algorithm", "machine"]).size().sort_values().groupby("algorithm").tail(1).index
    seconds = runs[runs.index.droplevel([2, 3, 4]).isin(most)].groupby("variant").median()
    lines = [
        [label, *(number(seconds.get(f"{algorithm} {column}", math.nan)) for column in COLUMNS)]
        for algorithm, label in LABELS.items()
        if cells["algorithm"].eq(algorithm).any()
    ]
    return table(["Algorithm", *COLUMNS.values()], lines)


if __name__ == "__main__":
    main()
