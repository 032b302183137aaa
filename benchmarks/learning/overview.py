"""The first page of results: one figure and one table of all algorithms, from the stored units alone."""

from pathlib import Path

import pandas as pd

from benchmarks.learning import plots, step_time
from benchmarks.learning.contenders import FAMILY
from benchmarks.learning.figures import SEEDS_FOR_INTERVALS, compare, complete, read, seeds_of
from benchmarks.learning.matrix import VARIANTS, Budget
from benchmarks.learning.report import aggregate_cell, interval, p_text
from benchmarks.learning.tasks import ALL_TASKS, TASKS, UNSEEN
from benchmarks.markdown import MISSING, replace_results, table

NAME = "results.md"
"""Of the page, which lies beside the one in detail."""
PEER = "crossq_256"
"""What the others are compared with, the strongest of the peers."""
ALGORITHMS = ("tuned", *FAMILY, "sb3_ddpg", "sb3_td3", PEER)
"""In the order of the table."""
SCOPES = {"first five tasks": tuple(TASKS), "all eight tasks": tuple(ALL_TASKS), "three held-out tasks": UNSEEN}
"""By what they are called together. Those on which no algorithm has seeds enough yet are left out of figure and table."""
CAPTION = (
    "Interquartile means of normalised scores over steps (0 is a random policy), with 95 % intervals of a bootstrap. An "
    "algorithm has a curve where it has run on all of the tasks. [CPU times](results_in_detail.md#cpu-time-of-a-step) are "
    "those of the tasks and processors on which all of these algorithms were measured."
)


def write(folder: Path, page: Path, budget: Budget) -> None:
    """
    Replace the results in the page, and its figure.

    :param folder: The results
    :param page: The page
    :param budget: The extent of the runs
    """
    rows = read(folder, budget)
    names = complete(rows, ALGORITHMS, tuple(TASKS), SEEDS_FOR_INTERVALS)
    if not names:
        replace_results(page, [f"No algorithm has {SEEDS_FOR_INTERVALS} seeds of the first five tasks yet."])
        return
    scopes = {scope: tasks for scope, tasks in SCOPES.items() if complete(rows, names, tasks, SEEDS_FOR_INTERVALS)}
    figure = plots.plot_overview(rows, names, scopes)
    parts = [
        plots.save(figure, page.with_suffix(""), "overview"),
        CAPTION,
        overview_table(rows, names, scopes, step_time.ratios(folder, PEER, names)),
    ]
    replace_results(page, parts)


def overview_table(rows: pd.DataFrame, names: list[str], scopes: dict[str, tuple[str, ...]], costs: pd.Series) -> str:
    """
    :param rows: The stored evaluations
    :param names: The variants that have seeds enough
    :param scopes: The columns of scores
    :param costs: How many times the peer's step that of each takes
    :return: A line for each: scores, its lead over the peer, and what a step of it costs
    """
    lines = []
    for name in names:
        scores = [aggregate_cell(rows, name, tasks) for tasks in scopes.values()]
        cost = f"{costs[name]:.2f}" if name in costs else MISSING
        lines.append([VARIANTS[name].label, seeds_text(rows, name), *scores, lead(rows, name, scopes), cost])
    peer = VARIANTS[PEER].label
    return table(["Score after 50,000 steps", "seeds", *scopes, f"lead over {peer}", "CPU time of a step over its"], lines)


def seeds_text(rows: pd.DataFrame, name: str) -> str:
    """
    :param rows: The stored evaluations
    :param name: A variant
    :return: How many seeds it has on the first five tasks, and after a comma on all eight, if that is another number
    """
    first, everywhere = (len(seeds_of(rows, name, SCOPES[scope])) for scope in ("first five tasks", "all eight tasks"))
    return f"{first}, {everywhere}" if everywhere not in (0, first) else str(first)


def lead(rows: pd.DataFrame, name: str, scopes: dict[str, tuple[str, ...]]) -> str:
    """
    :param rows: The stored evaluations
    :param name: A variant
    :param scopes: The columns of scores
    :return: Its interquartile mean less the peer's. The tasks are all eight if both have seeds enough there, else the first
        five; the cell then names them if the table also has a column of all eight
    """
    if name == PEER:
        return MISSING
    for scope in ("all eight tasks", "first five tasks"):
        note = f", {scope}" if scope == "first five tasks" and "all eight tasks" in scopes else ""
        if scope in scopes and (found := compare(rows, name, PEER, scopes[scope])):
            return f"{interval(found.gain)} (p {p_text(found.p_value)}{note})"
    return MISSING
