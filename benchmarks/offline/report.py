"""The page of offline results, from the stored units alone: ``python -m benchmarks.offline.report``."""

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.learning.figures import FINAL_EVALUATIONS, SEEDS_FOR_INTERVALS, estimate, final, mean, read
from benchmarks.learning.matrix import OFFLINE, Budget, Unit
from benchmarks.learning.report import interval
from benchmarks.learning.store import PAGE, header_text
from benchmarks.learning.unit import add_budget_arguments, budget_of
from benchmarks.markdown import MISSING, replace_results, table
from benchmarks.offline.variants import KINDS, LABELS, NORMALIZATIONS, PEER, TASKS, variant_name

NAME = "offline_results.md"
COLUMNS = {"none": "no normalisation", "batch": "batch norm", "layer": "layer norm", PEER: "d3rlpy"}
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
    trained = rows[rows["variant"] != "random"]
    n_stored = len(trained[["task", "variant", "seed"]].drop_duplicates())
    parts = [f"{n_stored} of {len(declared)} runs are stored."]
    if n_stored:
        parts += [CAPTION]
        for algorithm, label in LABELS.items():
            lines = table_lines(trained, algorithm)
            if lines:
                parts += [f"### {label}", table(["Dataset", *COLUMNS.values()], lines)]
        parts += ["### Does a normalisation help?", gains_table(trained), "## Machine and versions"]
        parts += [header_text(folder, units(), budget)]
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


def gains_table(rows: pd.DataFrame) -> str:
    """
    :param rows: The stored evaluations
    :return: By how much each normalisation's final scores are above those without, over the datasets that have both
    """
    scores = final(rows).groupby(["task", "variant"]).mean()
    lines = []
    for algorithm, label in LABELS.items():
        cells = []
        for normalization in NORMALIZATIONS:
            if normalization == "none":
                continue
            pairs = [
                tuple((task, variant_name(kind, algorithm, name)) for name in (normalization, "none"))
                for task in TASKS
                for kind in KINDS
            ]
            gains = [scores[one] - scores[other] for one, other in pairs if one in scores.index and other in scores.index]
            better = sum(gain > 0 for gain in gains)
            average = sum(gains) / len(gains) if gains else 0.0
            cells.append(f"{average:+.2f}, better on {better} of {len(gains)}" if gains else MISSING)
        if any(cell != MISSING for cell in cells):
            lines.append([label, *cells])
    header = ["Mean gain in the final score", *(COLUMNS[name] for name in NORMALIZATIONS if name != "none")]
    return table(header, lines)


if __name__ == "__main__":
    main()
