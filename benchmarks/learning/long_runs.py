"""
The page on the paper's length: ``python -m benchmarks.learning.long_runs`` draws it from what is stored of the long runs, of
which some may be missing.
"""

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.learning import plots
from benchmarks.learning.contenders import CHANGE_LONG, FIGURE2_LONG, LONG_STEPS, MILLION, SILENT_LONG
from benchmarks.learning.figures import final, read
from benchmarks.learning.matrix import GROUPS, LONG_GROUPS, LONG_TASKS, MILLION_LONG, PAPER_TASKS, VARIANTS, Budget, Unit
from benchmarks.learning.store import PAGE, header_text
from benchmarks.learning.tasks import CHEETAH
from benchmarks.learning.unit import add_budget_arguments, budget_of
from benchmarks.markdown import MISSING, number, numbers, replace_results, table

NAME = "paper_length.md"
SHORT_STEPS = 50_000
"""The length of all other runs."""
SEEDS = LONG_GROUPS["figure2_long"].seeds

# Average / best, low-dimensional
PAPER_DDPG = {"dm_control/cartpole-swingup-v0": "cartpole: .844 / 1.115", CHEETAH: "cheetah: .903 / 1.206"}
PAPER_CONTROL = {"dm_control/cartpole-swingup-v0": "cartpole: .244 / .755", CHEETAH: "cheetah: -.008 / .425"}
"""Original DPG with replay buffer and batch norm, so without target networks."""

WHAT_IS_COMPARABLE = f"""\
What can be compared is the order of the variants on a task, and whether a variant is near 0, where a random policy is in both.
The figures themselves cannot: the paper's 1 is the score of a planner that knows the physics (iLQG), here 1 is the Control
Suite's largest return, 1,000 (only a policy that is perfect from the first step would have it). The suite's tasks have bodies
like the paper's, but rewards of their own. The paper trained for up to 2.5 million steps and reports five runs; these are
{LONG_STEPS:,} steps and up to {SEEDS} seeds. A run's score here is the mean of its last four evaluations, "best" that of the
best run. The paper has no figures for target networks without batch norm, only a curve."""

LOGGED_CAPTION = """\
From Q on, means over the last four evaluations and over seeds. The value of the evaluated policy is its mean reward a step
times the discounted number of steps left, so a rough one. A weight counts as vanished below 1e-6."""
SILENT_HEADING = "## Where the paper says nothing: the other choice"
SILENT_CAPTION = """\
Returns at the end of one seed each, which is no more than a hint, beside the same seed of the first line, which has the
minibatch's statistics in the target, a `dt` of 1 and 1,000 random steps."""
CHANGE_HEADING = "## Other values than the paper's"
CHANGE_CAPTION = """\
Returns at the end of one seed each. The first three lines have the paper's weight decay of 1e-2 on the critic."""
MILLION_HEADING = f"## {MILLION:,} steps"
MILLION_CAPTION = """\
The first seed's best and worst cell, run anew for twice as long. (The first half is the shorter run again.)"""


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE.with_name(NAME), help="plots go into a folder of its name")
    add_budget_arguments(parser)
    arguments = parser.parse_args()
    write(arguments.results, arguments.page, budget_of(arguments))


def long_units() -> list[Unit]:
    """
    :return: Those that the page is about, and the random policy on their tasks
    """
    random = [unit for unit in GROUPS["random"].units() if unit.task in LONG_TASKS]
    return [*random, *(unit for group in LONG_GROUPS.values() for unit in group.units())]


def write(folder: Path, page: Path, budget: Budget) -> None:
    """
    Replace the results in the page, and its plots.

    :param folder: The results
    :param page: The page
    :param budget: The extent of the runs
    """
    rows = read(folder, budget, long_units())
    trained = rows[rows["variant"] != "random"]
    parts = [stored_text(trained)]
    if len(trained):
        pictures = page.with_suffix("")
        figure2 = [name for name in FIGURE2_LONG if name in set(trained["variant"])]
        parts += ["## Beside the paper's Table 1", score_table(rows), WHAT_IS_COMPARABLE]
        if figure2:
            parts += [
                "## Learning curves",
                plots.save(plots.plot_returns(rows, FIGURE2_LONG, tasks=LONG_TASKS), pictures, "figure2_long"),
                "Means over the seeds that are stored; of a single one there is no band.",
                "## What the runs logged",
                logged_table(trained),
                LOGGED_CAPTION,
                plots.save(plots.plot_statistics(trained, figure2), pictures, "figure2_long_logged"),
            ]
        both = FIGURE2_LONG[:1]
        parts += beside_the_papers(
            rows, SILENT_HEADING, SILENT_CAPTION, both, SILENT_LONG, PAPER_TASKS, pictures / "silent_long"
        )
        parts += beside_the_papers(
            rows, CHANGE_HEADING, CHANGE_CAPTION, FIGURE2_LONG, CHANGE_LONG, LONG_TASKS, pictures / "change_long"
        )
        parts += twice_as_long(trained)
        parts += ["## Machine and versions", header_text(folder, long_units(), budget)]
    replace_results(page, parts)


def seeds_stored(rows: pd.DataFrame, task: str, variant: str) -> int:
    """
    :param rows: The stored evaluations
    :param task: A task
    :param variant: A variant
    :return: Number of seeds
    """
    return int(rows.loc[(rows["task"] == task) & (rows["variant"] == variant), "seed"].nunique())


def stored_text(rows: pd.DataFrame) -> str:
    """
    :param rows: The stored evaluations
    :return: How many runs there are of how many
    """
    groups = {name: len(list(group.units())) for name, group in LONG_GROUPS.items() if name != "random_long"}
    variants = {name: {variant for _, variant in LONG_GROUPS[name].cells} for name in groups}
    found = {
        name: len(rows.loc[rows["variant"].isin(variants[name]), ["task", "variant", "seed"]].drop_duplicates())
        for name in groups
    }
    counts = ", ".join(f"{found[name]} of {groups[name]} runs of `{name}`" for name in groups)
    return f"Stored, each of {LONG_STEPS:,} steps (`million_long`: {MILLION:,}): {counts}."


def seeds_text(stored: int, declared: int = SEEDS) -> str:
    """
    :param stored: Number of seeds that are stored
    :param declared: Number of seeds that the matrix has
    :return: Words for a table
    """
    return f"{stored} of {declared} seeds stored"


def score_cell(rows: pd.DataFrame, task: str, variant: str) -> str:
    """
    :param rows: The stored evaluations
    :param task: A task
    :param variant: A variant
    :return: Average / best final score, and of how many seeds
    """
    stored = seeds_stored(rows, task, variant)
    own = final(rows[(rows["task"] == task) & (rows["variant"] == variant)])
    if own.isna().any():  # nothing is stored of the random policy, which has the score 0
        return f"{MISSING} ({seeds_text(stored)})"
    return f"{own.mean():.3f} / {own.max():.3f} ({seeds_text(stored)})" if stored else seeds_text(0)


def score_table(rows: pd.DataFrame) -> str:
    """
    :param rows: The stored evaluations
    :return: The paper's scores and those of the long runs
    """
    both, no_norm, no_targets = FIGURE2_LONG
    columns = [
        "Average / best",
        "paper: DDPG",
        f"here: {VARIANTS[both].label}",
        "paper: control (no target networks)",
        f"here: {VARIANTS[no_targets].label}",
        f"here: {VARIANTS[no_norm].label}",
    ]
    lines = []
    for task in PAPER_TASKS:
        own = {variant: score_cell(rows, task, variant) for variant in FIGURE2_LONG}
        lines.append([task, PAPER_DDPG[task], own[both], PAPER_CONTROL[task], own[no_targets], own[no_norm]])
    return table(columns, lines)


LOGGED = {
    "overestimation": "Q less the policy's value",
    "actor_saturation": "actions at a bound",
    "critic_statistics_drift": "critic's drift",
    "critic_weight_norm": "norm of the critic's weights",
    "critic_weights_vanished": "of them vanished",
}
"""Columns of the table of what the runs logged."""
SHARES = ("actor_saturation", "critic_weights_vanished")


def logged_table(rows: pd.DataFrame) -> str:
    """
    :param rows: The stored evaluations of trained policies
    :return: Returns on the way and at the end, and what may be their cause
    """
    rows = plots.with_estimates(rows, q_is_actor_loss=False)
    lines = []
    for task in LONG_TASKS:
        for variant in FIGURE2_LONG:
            own = rows[(rows["task"] == task) & (rows["variant"] == variant)]
            line = [task, VARIANTS[variant].label, seeds_text(seeds_stored(rows, task, variant))]
            short = own.loc[own["step"] == SHORT_STEPS, "return_mean"]
            line += [number(short.mean()), numbers(final(own, "return_mean")), number(own["return_mean"].max())]
            for column in LOGGED:
                value = final(own, column).mean() if column in own else float("nan")
                line.append(f"{value:.0%}" if column in SHARES and value == value else number(value))
            lines.append(line)
    columns = ["", "", "seeds", f"return after {SHORT_STEPS:,} steps", "return at the end, each seed's", "largest evaluation"]
    return table([*columns, *LOGGED.values()], lines)


def beside_the_papers(
    rows: pd.DataFrame,
    heading: str,
    caption: str,
    papers: tuple[str, ...],
    variants: tuple[str, ...],
    tasks: tuple[str, ...],
    picture: Path,
) -> list[str]:
    """
    :param rows: The stored evaluations
    :param heading: Of the section
    :param caption: What stands before the table
    :param papers: Variants with the paper's own values
    :param variants: Such as differ from them by one word
    :param tasks: Their tasks
    :param picture: Where the curves go, without a suffix
    :return: The section: final returns of one seed, and curves; nothing if nothing is stored
    """
    if not set(variants) & set(rows["variant"]):
        return []
    compared = (*papers, *variants)
    first = rows[(rows["seed"] == 0) | (rows["variant"] == "random")]
    returns = final(first, "return_mean")
    lines = [
        [VARIANTS[variant].label, *(number(returns.get((task, variant, 0), float("nan"))) for task in tasks)]
        for variant in compared
    ]
    curves = plots.save(plots.plot_returns(first, compared, tasks=tasks), picture.parent, picture.name)
    return [heading, caption, table(["Return", *tasks], lines), curves]


def twice_as_long(rows: pd.DataFrame) -> list[str]:
    """
    :param rows: The stored evaluations
    :return: The section on the runs of 1,000,000 steps; nothing if none is stored
    """
    lines = []
    for task, variant in MILLION_LONG:
        own = rows[(rows["task"] == task) & (rows["variant"] == variant)]
        if not len(own):
            continue
        # As at the end of all runs, the mean of the last four evaluations
        returns = [final(own[own["step"] <= steps], "return_mean").iloc[0] for steps in (LONG_STEPS, MILLION)]
        lines.append([task, VARIANTS[variant].label, *map(number, returns), number(own["return_mean"].max())])
    if not lines:
        return []
    columns = ["", "", f"return after {LONG_STEPS:,} steps", f"after {MILLION:,}", "largest evaluation"]
    return [MILLION_HEADING, MILLION_CAPTION, table(columns, lines)]


if __name__ == "__main__":
    main()
