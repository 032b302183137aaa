"""The report: ``python -m benchmarks.learning.report`` draws and writes everything from the stored units alone."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.learning import exploration, plots, step_time
from benchmarks.learning.contenders import DOUBLED, FACTORS, FAMILY, FIGURE2, FIRST_FAMILY, PEERS, TUNED_NORMS, TWO_UPDATES
from benchmarks.learning.figures import (
    SEEDS_FOR_INTERVALS,
    Comparison,
    Estimate,
    all_units,
    compare,
    complete,
    estimate,
    final,
    final_matrix,
    interquartile_mean,
    missing_text,
    read,
    read_pixels,
    seeds_of,
)
from benchmarks.learning.matrix import DOUBLED_TASKS, NORM_TASKS, VARIANTS, WIDE_TASKS, Budget
from benchmarks.learning.store import PAGE, header_text
from benchmarks.learning.tasks import ALL_TASKS, HELD_OUT, TASKS, TUNING, UNSEEN, XQC
from benchmarks.learning.unit import add_budget_arguments, budget_of
from benchmarks.markdown import MISSING, number, numbers, replace_results, table

PIXELS = Path(__file__).parents[1] / "pixels" / "results"
PIXELS_CAPTION = (
    " The curve from pixels is of other settings (layer norm on the hidden layers, other rates; see the page on pixels), and "
    "its steps are the task's, three an action."
)
CONTENDERS = ("tuned", "paper", *PEERS)
COMPARISONS = (
    ("paper", "paper_no_norm"),
    ("paper", "paper_no_targets"),
    ("tuned", "tuned_no_norm"),
    ("tuned", "tuned_layer_norm"),
    ("tuned_layer_norm", "tuned_no_norm"),
    ("tuned", "sb3_ddpg"),
    ("tuned", "sb3_td3"),
    ("tuned", "crossq_256"),
    ("paper", "sb3_ddpg"),
)
"""Each asks whether the first is better than the second."""
SCOPES = {"all": tuple(TASKS), "tuning": TUNING, "held-out": HELD_OUT}
WIDE_COMPARISONS = (("crossq_1024", "crossq_256"), ("tuned", "crossq_1024"))
"""The same where CrossQ's own wide critics have run."""
FAMILY_COMPARISONS = (
    *((name, "tuned") for name in ("td3_prototype", *FAMILY)),
    (FAMILY[1], FAMILY[0]),
    *((name, "crossq_256") for name in ("tuned", *FAMILY, *FIRST_FAMILY)),
)
"""The same of BNTD3 and BNSAC, on those of these tasks that both have run on."""
FAMILY_SCOPES = {
    "all eight": tuple(ALL_TASKS),
    "first five": tuple(TASKS),
    "three held-out": UNSEEN,
    "BNDDPG's tuning tasks": TUNING,
}
TWO_UPDATES_COMPARISONS = ((TWO_UPDATES, FAMILY[1]), (TWO_UPDATES, "crossq_256"))
"""The same of BNSAC's profile with two updates a step."""
DOUBLED_COMPARISONS = tuple((name, DOUBLED[-1]) for name in DOUBLED[:-1])
"""The same of runs of 100,000 steps."""
TARGETS_COMPARISONS = (("tuned", "tuned_targets"), ("tuned_targets", "tuned_no_norm"))
"""The same where the tuned profile has run with target networks in the place of batch norm."""
NORM_COMPARISONS = (
    ("ablation_layer_norm", "ablation_no_norm"),
    ("ablation_renorm", "ablation_no_norm"),
    ("ablation_renorm", "ablation_layer_norm"),
)
"""The same of the ablation's normalisations, beside its own comparisons with the base."""
SHORT_EPISODES, LARGEST_Q = "InvertedDoublePendulum-v5", 9.35 / (1 - 0.99)
"""Where the variances of states and next states differ most, and what a pendulum that stays up for good is worth."""
TARGETS = {
    "ablation_base": "base: batch norm, target networks",
    "ablation_targets_copied": "targets' statistics running, copied",
    "ablation_action_first": "action at the critic's first layer",
    "ablation_no_norm": "no normalisation",
    "tuned": VARIANTS["tuned"].label,
}


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go; plots go into a folder of its name")
    add_budget_arguments(parser)
    arguments = parser.parse_args()
    write(arguments.results, arguments.page, budget_of(arguments))


def write(folder: Path, page: Path, budget: Budget) -> None:
    """
    Replace the results in the page, and its plots. What the stored units do not suffice for is left out and named.

    :param folder: The results
    :param page: The page
    :param budget: The extent of the runs
    """
    rows = read(folder, budget)
    missing = missing_text(folder, budget)
    parts = [f"Not all stored yet, and so not all in the figures:\n\n{missing}"] if missing else []
    pictures = page.with_suffix("")
    if len(rows):
        everything = tuple(TASKS)
        compared = comparisons(rows, COMPARISONS, SCOPES)
        parts += ["## In one table", comparison_table(compared)]
        pixels, step_times = read_pixels(PIXELS), step_time.read(folder)
        parts += section(rows, "Figure 2: batch norm, target networks, both", FIGURE2, pictures, "figure2", pixels)
        parts += section(rows, "The tuned profile, with and without its batch norm", TUNED_NORMS, pictures, "tuned_norms")
        parts += some_tasks(rows, "Target networks in the place of batch norm", TARGETS_COMPARISONS, NORM_TASKS, "both")
        parts += section(rows, "The peers", CONTENDERS, pictures, "peers")
        if complete(rows, CONTENDERS, everything):
            parts += [
                "### All tasks together",
                plots.save(plots.plot_aggregate(rows, step_times, CONTENDERS, everything), pictures, "aggregate"),
                plots.save(plots.plot_profiles(rows, (*CONTENDERS, *FIGURE2[:2]), everything), pictures, "profiles"),
            ]
        parts += improvements(compared, pictures)
        if len(step_times):
            parts += [
                "### CPU time of a step",
                time_table(step_times, step_time.ratios(folder, "tuned")),
                step_time.conditions_text(folder),
            ]
        parts += some_tasks(rows, "CrossQ's wide critics", WIDE_COMPARISONS, WIDE_TASKS, "both")
        parts += family(rows)
        parts += two_updates(rows)
        parts += some_tasks(rows, "After 100,000 steps", DOUBLED_COMPARISONS, DOUBLED_TASKS, "these three")
        parts += split(rows)
        parts += ablation(rows, pictures)
        parts += exploration.section(folder, budget)
        parts += ["## Machine and versions", header_text(folder, all_units(), budget)]
    replace_results(page, parts)


def section(
    rows: pd.DataFrame,
    title: str,
    variants: Sequence[str],
    pictures: Path,
    name: str,
    pixels: pd.DataFrame | None = None,
) -> list[str]:
    """
    :param rows: The stored evaluations
    :param title: Its title
    :param variants: Who is compared
    :param pictures: Folder of the plots
    :param name: Name of the plot of returns
    :param pixels: Evaluations from pixels, for that plot
    :return: Returns over steps, scores and returns at the end, logged statistics; nothing if nothing is stored
    """
    if not present(rows, variants):
        return []
    return [
        f"## {title}",
        plots.save(plots.plot_returns(rows, variants, pixels), pictures, name),
        "Means over seeds; the bands, 95 % of bootstrap samples of these, are too narrow with so few runs."
        + (PIXELS_CAPTION if pixels is not None and len(pixels) else ""),
        "Scores at the end, average / best of the seeds, as in the paper's Table 1:",
        score_table(rows, variants, tuple(TASKS)),
        "Returns at the end, each seed's:",
        return_table(rows, variants, tuple(TASKS)),
        "What the algorithms logged, means over seeds and their range. The value of the evaluated policy is its mean reward "
        "a step times the discounted number of steps left, so a rough one; Q far above it is overestimation. Q is that of "
        "stored actions, of DDPG and TD3 that of the actor's own:",
        plots.save(plots.plot_statistics(rows, present(rows, variants)), pictures, f"{name}_logged"),
    ]


def present(rows: pd.DataFrame, variants: Iterable[str]) -> list[str]:
    """
    :param rows: The stored evaluations
    :param variants: Names
    :return: Those that have any
    """
    stored = set(rows["variant"])
    return [name for name in variants if name in stored]


def score_table(rows: pd.DataFrame, variants: Sequence[str], tasks: Sequence[str]) -> str:
    """
    :param rows: The stored evaluations
    :param variants: The columns
    :param tasks: The rows
    :return: Average / best final score (number of seeds)
    """
    names, scores = present(rows, variants), final(rows)
    lines = []
    for task in tasks:
        cells = [scores.get(task, pd.Series(dtype=float)).get(name, pd.Series(dtype=float)) for name in names]
        lines.append(
            [task, *(f"{cell.mean():.3f} / {cell.max():.3f} ({len(cell)})" if len(cell) else MISSING for cell in cells)]
        )
    aggregate = ["interquartile mean of all", *(aggregate_cell(rows, name, tasks) for name in names)]
    return table(["Average / best (seeds)", *(VARIANTS[name].label for name in names)], [*lines, aggregate])


def aggregate_cell(rows: pd.DataFrame, name: str, tasks: Sequence[str]) -> str:
    """
    :param rows: The stored evaluations
    :param name: A variant
    :param tasks: Tasks
    :return: Its interquartile mean over them, with an interval if there are seeds enough for one
    """
    seeds = len(seeds_of(rows, name, tasks))
    if not seeds:
        return MISSING
    entry = estimate(interquartile_mean, final_matrix(rows, name, tasks))
    return interval(entry) if seeds >= SEEDS_FOR_INTERVALS else f"{entry.value:.3f} (seeds: {seeds})"


def return_table(
    rows: pd.DataFrame,
    variants: Sequence[str],
    tasks: Sequence[str],
    text: Callable[[pd.Series], str] = numbers,
    published: dict[str, dict[str, float]] | None = None,
) -> str:
    """
    :param rows: The stored evaluations
    :param variants: The columns
    :param tasks: The rows
    :param text: What a cell says of its seeds' final returns
    :param published: More columns: others' mean returns by task, by heading
    :return: The final returns
    """
    names, others = present(rows, ("random", *variants)), published or {}
    cells = {key: text(of_seeds) for key, of_seeds in final(rows, "return_mean").groupby(["task", "variant"])}
    lines = [
        [
            task,
            *(cells.get((task, name), MISSING) for name in names),
            *(number(means[task]) if task in means else MISSING for means in others.values()),
        ]
        for task in tasks
    ]
    return table(["Return", *(VARIANTS[name].label for name in names), *others], lines)


def mean_and_spread(of_seeds: pd.Series) -> str:
    """
    :param of_seeds: Final returns
    :return: Their mean and standard deviation, or the single one
    """
    return f"{number(of_seeds.mean())} ± {number(of_seeds.std())}" if len(of_seeds) > 1 else numbers(of_seeds)


def interval(entry: Estimate, digits: int = 3) -> str:
    """
    :param entry: A figure
    :param digits: Digits after the point
    :return: It and its interval
    """
    return f"{entry.value:.{digits}f} [{entry.low:.{digits}f}, {entry.high:.{digits}f}]"


def p_text(p_value: float) -> str:
    """
    :param p_value: A p-value
    :return: Its digits, as far as so many random exchanges tell them apart
    """
    return f"{p_value:.4f}" if p_value >= 0.001 else "< 0.001"


def verdict(comparison: Comparison) -> str:
    """
    :param comparison: One variant beside another
    :return: Whether the first is better
    """
    if not comparison.is_decided:
        return "not decided"
    return "**better**" if comparison.gain.value > 0 else "**worse**"


def comparisons(
    rows: pd.DataFrame, pairs: Iterable[tuple[str, str]], scopes: dict[str, tuple[str, ...]]
) -> dict[tuple[str, str, str], Comparison]:
    """
    :param rows: The stored evaluations
    :param pairs: Pairs of variants
    :param scopes: Tasks, by the name that they have together
    :return: The answers to the questions that have seeds enough, by the two variants and the name of their tasks
    """
    return {
        (one, other, scope): found
        for one, other in pairs
        for scope, tasks in scopes.items()
        if (found := compare(rows, one, other, tasks)) is not None
    }


def comparison_table(compared: dict[tuple[str, str, str], Comparison]) -> str:
    """
    :param compared: As from :func:`comparisons`
    :return: A line for each
    """
    if not compared:
        return f"No two variants have {SEEDS_FOR_INTERVALS} seeds of every task yet."
    columns = ["", "tasks", "seeds", "difference of interquartile means", "p", "by p", "probability of improvement"]
    lines = []
    for (one, other, scope), found in compared.items():
        lines.append(
            [
                f"{VARIANTS[one].label} > {VARIANTS[other].label}?",
                scope,
                f"{found.seeds[0]}, {found.seeds[1]}",
                interval(found.gain),
                p_text(found.p_value),
                verdict(found),
                interval(found.probability, 2),
                f"{found.mean_gain:.3f} ({p_text(found.mean_p_value)})",
            ]
        )
    return table([*columns, "difference of means (p)"], lines)


def improvements(compared: dict[tuple[str, str, str], Comparison], pictures: Path) -> list[str]:
    """
    :param compared: As from :func:`comparisons`
    :param pictures: Folder of the plots
    :return: The plot of the probabilities of improvement over all tasks
    """
    entries = {
        f"{VARIANTS[one].label} > {VARIANTS[other].label}": (found.probability, found.is_decided)
        for (one, other, scope), found in compared.items()
        if scope == "all"
    }
    if not entries:
        return []
    label = "probability of improvement, all tasks (red: the interquartile means differ, p < 0.05)"
    return [plots.save(plots.plot_forest({"": entries}, 0.5, label), pictures, "improvement")]


def time_table(step_times: pd.Series, ratios: pd.Series) -> str:
    """
    :param step_times: CPU seconds of a step by task and variant
    :param ratios: How many times the tuned profile's step that of each takes
    :return: CPU milliseconds of an environment step with its update, and how many times the tuned profile's that is
    """
    milliseconds = step_times.unstack().mul(1000).reindex(index=[task for task in TASKS if task in step_times.index])
    names = [name for name in step_time.MEASURED if name in milliseconds]
    lines = [[task, *(number(line[name]) for name in names)] for task, line in milliseconds.iterrows()]
    cells = [f"{ratios[name]:.2f}" if name in ratios else MISSING for name in names]
    lines.append(["times the tuned profile's, median of the tasks and machines that have both", *cells])
    return table(["ms", *(VARIANTS[name].label for name in names)], lines)


def some_tasks(
    rows: pd.DataFrame, title: str, pairs: Sequence[tuple[str, str]], tasks: tuple[str, ...], scope: str
) -> list[str]:
    """
    :param rows: The stored evaluations
    :param title: Its title
    :param pairs: Pairs of variants
    :param tasks: The only ones that one of the variants has run on
    :param scope: What they are called together
    :return: Scores and comparisons on these; nothing unless all variants are stored
    """
    variants = tuple(dict.fromkeys(variant for pair in pairs for variant in pair))
    if set(variants) - set(present(rows, variants)):
        return []
    return [f"## {title}", score_table(rows, variants, tasks), comparison_table(comparisons(rows, pairs, {scope: tasks}))]


def family(rows: pd.DataFrame) -> list[str]:
    """
    :param rows: The stored evaluations
    :return: BNTD3 and BNSAC beside BNDDPG's tuned profile and CrossQ, on all tasks
    """
    variants = ("tuned", *FAMILY, *FIRST_FAMILY, "crossq_256")
    return [
        "## BNTD3 and BNSAC",
        score_table(rows, variants, tuple(ALL_TASKS)),
        "Returns at the end, mean ± standard deviation over seeds, and XQC's published means, with two updates a step:",
        return_table(rows, variants, tuple(ALL_TASKS), mean_and_spread, {"XQC, published": XQC}),
        comparison_table(comparisons(rows, FAMILY_COMPARISONS, FAMILY_SCOPES)),
    ]


def two_updates(rows: pd.DataFrame) -> list[str]:
    """
    :param rows: The stored evaluations
    :return: BNSAC's profile with two updates a step beside itself with one, CrossQ, and XQC's published means, on XQC's tasks
    """
    tasks, variants = tuple(XQC), (*FAMILY, TWO_UPDATES, "crossq_256")
    if TWO_UPDATES not in set(rows["variant"]):
        return []
    return [
        "## Two updates a step",
        "XQC makes two updates a step. BNSAC's profile with two, on the tasks of XQC's published means: returns at the end, "
        "mean ± standard deviation over seeds.",
        return_table(rows, variants, tasks, mean_and_spread, {"XQC, published": XQC}),
        score_table(rows, variants, tasks),
        comparison_table(comparisons(rows, TWO_UPDATES_COMPARISONS, {"XQC's four": tasks})),
    ]


def split(rows: pd.DataFrame) -> list[str]:
    """
    :param rows: The stored evaluations
    :return: The aggregates on tuning tasks and on held-out tasks
    """
    lines = []
    for name in present(rows, CONTENDERS):
        lines.append([VARIANTS[name].label, *(aggregate_cell(rows, name, tasks) for tasks in (TUNING, HELD_OUT))])
    return ["## Tuning tasks against held-out tasks", table(["Interquartile mean", "tuning", "held-out"], lines)]


def ablation(rows: pd.DataFrame, pictures: Path) -> list[str]:
    """
    :param rows: The stored evaluations
    :param pictures: Folder of the plots
    :return: One factor at a time: plot and tables
    """
    if not complete(rows, ["ablation_base"], TUNING):
        return []
    compared = {name: compare(rows, name, "ablation_base", TUNING) for values in FACTORS.values() for name in values}
    sections = {
        factor: {VARIANTS[name].label: (found.gain, found.is_decided) for name in values if (found := compared[name])}
        for factor, values in FACTORS.items()
    }
    sections = {factor: entries for factor, entries in sections.items() if entries}
    parts = ["## What the paper left unsaid: one factor at a time"]
    if sections:
        label = "difference of interquartile means from the base (red: decided)"
        parts.append(plots.save(plots.plot_forest(sections, 0, label), pictures, "ablation"))
    own = {name: TARGETS[name] for name in present(rows[rows["task"] == SHORT_EPISODES], TARGETS)}
    parts.append(plots.save(plots.plot_targets(rows, SHORT_EPISODES, own, LARGEST_Q), pictures, "targets"))
    lines = [_ablation_line(rows, "base", "ablation_base", None)]
    for factor, values in FACTORS.items():
        lines += [
            _ablation_line(rows, f"{factor}: {VARIANTS[name].label}", name, compared[name]) for name in present(rows, values)
        ]
    columns = ["Return at the end, each seed's", *TUNING, "seeds", "difference of interquartile means from the base", "p"]
    parts.append(table(columns, lines))
    if among := comparisons(rows, NORM_COMPARISONS, {"tuning": TUNING}):
        parts += ["The other normalisations among themselves:", comparison_table(among)]
    return parts


def _ablation_line(rows: pd.DataFrame, label: str, name: str, found: Comparison | None) -> list[str]:
    returns = final(rows[rows["variant"] == name], "return_mean")
    cells = [numbers(returns[returns.index.get_level_values("task") == task]) for task in TUNING]
    seeds = returns.groupby("task").size().reindex(TUNING, fill_value=0)
    gain = [interval(found.gain), p_text(found.p_value)] if found else [MISSING, MISSING]
    return [label, *cells, "-".join(map(str, sorted(set(seeds)))), *gain]


if __name__ == "__main__":
    main()
