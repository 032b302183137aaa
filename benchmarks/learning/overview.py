"""The first page of results: one figure and one table of all algorithms, from the stored units alone."""

import math
from pathlib import Path

import pandas as pd

from benchmarks.learning import plots, step_time
from benchmarks.learning.figures import SEEDS_FOR_INTERVALS, compare, complete, read, seeds_of
from benchmarks.learning.matrix import FAMILY, HELD_OUT, PEERS, TASKS, TUNING, VARIANTS, Budget
from benchmarks.learning.report import aggregate_cell, interval, p_text
from benchmarks.markdown import MISSING, replace_results, table

NAME = "results.md"
"""Of the page, which lies beside the one in detail."""
ALGORITHMS = ("tuned", *FAMILY, *PEERS)
"""In the order of the table; the first is what the others are compared with."""
SCOPES = {"tuning tasks": TUNING, "held-out tasks": HELD_OUT, "all tasks": tuple(TASKS)}
CAPTION = (
    "Interquartile means of normalised scores over steps (0 is a random policy), with 95 % intervals of a bootstrap. Left: "
    "the tasks on which values were chosen. Right: all tasks; an algorithm that has not run on all of them has no curve there."
)


def write(folder: Path, page: Path, budget: Budget) -> None:
    """
    Replace the results in the page, and its figure.

    :param folder: The results
    :param page: The page
    :param budget: The extent of the runs
    """
    rows = read(folder, budget)
    names = complete(rows, ALGORITHMS, TUNING, SEEDS_FOR_INTERVALS)
    if not names:
        replace_results(page, [f"No algorithm has {SEEDS_FOR_INTERVALS} seeds of every tuning task yet."])
        return
    figure = plots.plot_overview(rows, names, {name: SCOPES[name] for name in ("tuning tasks", "all tasks")})
    parts = [
        plots.save(figure, page.with_suffix(""), "overview"),
        CAPTION,
        overview_table(rows, names, step_time.read(folder)),
    ]
    replace_results(page, parts)


def overview_table(rows: pd.DataFrame, names: list[str], step_times: pd.Series) -> str:
    """
    :param rows: The stored evaluations
    :param names: The variants that have seeds enough
    :param step_times: CPU seconds of a step by task and variant
    :return: A line for each: scores, its lead over the first on the tuning tasks, and what a step of it costs
    """
    first = ALGORITHMS[0]
    lines = []
    for name in names:
        found = compare(rows, name, first, TUNING) if name != first and first in names else None
        lead = MISSING if found is None else f"{interval(found.gain)} (p {p_text(found.p_value)})"
        seeds = len(seeds_of(rows, name, TUNING))
        scores = [aggregate_cell(rows, name, tasks) for tasks in SCOPES.values()]
        lines.append([VARIANTS[name].label, str(seeds), *scores, lead, cost(step_times, name)])
    header = [
        "Score after 50,000 steps",
        "seeds",
        *SCOPES,
        f"lead over {VARIANTS[first].label}, tuning tasks",
        "CPU time of a step",
    ]
    return table(header, lines)


def cost(step_times: pd.Series, name: str) -> str:
    """
    :param step_times: CPU seconds of a step by task and variant
    :param name: A variant
    :return: How many times the first algorithm's step it takes, median of the tasks that are measured
    """
    known = set(step_times.index.get_level_values("variant"))
    own, first = (
        step_times.xs(one, level="variant") if one in known else pd.Series(dtype=float) for one in (name, ALGORITHMS[0])
    )
    ratio = (own / first).median()
    return MISSING if math.isnan(ratio) else f"{ratio:.2f}"
