"""What the runs that look for a profile have come to so far: a table of their returns, seed by seed."""

from pathlib import Path

import pandas as pd

from benchmarks.learning.contenders import ABLATION_STEPS, FAMILY
from benchmarks.learning.figures import final, read
from benchmarks.learning.matrix import EXPLORATION, GROUPS, VARIANTS, Budget, Unit
from benchmarks.learning.profile_search import LATER_RULE_TASKS, LATER_RULES, RULE_TASKS, RULES
from benchmarks.markdown import MISSING, numbers, table

BESIDE = ("tuned", "td3_prototype", "td3_twice", *FAMILY, "sac_crossq", "crossq_256")
"""Whose runs are longer; in the first table they count up to the same step."""


def section(folder: Path, budget: Budget) -> list[str]:
    """
    :param folder: The results
    :param budget: The extent of the runs
    :return: A heading and the table; nothing if nothing is stored
    """
    beside = [
        Unit(task, variant, seed) for variant in BESIDE for task in LATER_RULE_TASKS for seed in range(GROUPS["peers"].seeds)
    ]
    rows = read(folder, budget, EXPLORATION["one_rule"].units())
    if not len(rows):
        return []
    longer = read(folder, budget, [*EXPLORATION["one_rule_later"].units(), *beside])
    both = pd.concat([rows, longer[longer["step"] <= ABLATION_STEPS]])
    return [
        "## The search for one rule",
        f"Mean returns of the last four evaluations up to {ABLATION_STEPS:,} steps, a number for each seed. The settings were "
        "declared before they ran; one or two seeds are leads and no comparison.",
        returns_table(both, (*RULES, *BESIDE), RULE_TASKS),
        f"The same up to {VARIANTS[BESIDE[0]].steps:,} steps, of runs of that length:",
        returns_table(longer, (*LATER_RULES, *BESIDE), LATER_RULE_TASKS),
    ]


def returns_table(rows: pd.DataFrame, variants: tuple[str, ...], tasks: tuple[str, ...]) -> str:
    """
    :param rows: The stored evaluations
    :param variants: The lines
    :param tasks: The columns
    :return: Final returns of each seed
    """
    returns = final(rows, "return_mean")
    cells = returns.groupby(["variant", "task"]).agg(numbers)
    lines = [
        [VARIANTS[variant].label, *(cells.get((variant, task), MISSING) for task in tasks)]
        for variant in variants
        if variant in cells
    ]
    return table(["Return", *tasks], lines)
