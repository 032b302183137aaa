"""The plots, each as PNG and SVG, the same bytes for the same results."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.learning.figures import (
    SEEDS_FOR_INTERVALS,
    Estimate,
    complete,
    curve_matrix,
    estimate,
    final_matrix,
    interquartile_mean,
    over_time,
    performance_profile,
    seeds_of,
)
from benchmarks.learning.matrix import VARIANTS
from benchmarks.learning.tasks import ALL_TASKS, TASKS
from sb3_bn_ddpg.common.atomic_files import atomic_write

mpl.use("Agg")
mpl.rcParams.update(
    {"svg.hashsalt": "learning", "svg.fonttype": "none", "figure.dpi": 110, "axes.grid": True, "grid.alpha": 0.3}
)

COLORS = {
    "tuned": "tab:red",
    "tuned_no_norm": "tab:brown",
    "tuned_layer_norm": "tab:orange",
    "paper": "tab:purple",
    "paper_no_norm": "tab:brown",
    "paper_no_targets": "tab:olive",
    "sb3_ddpg": "tab:blue",
    "sb3_td3": "tab:cyan",
    "crossq_256": "tab:green",
    "crossq_1024": "tab:gray",
    "td3_three": "black",
    "td3_prototype": "slategray",
    "td3_twice": "dimgray",
    "sac_crossq": "tab:pink",
    "crossq_scaled_two_falling": "tab:purple",
    "sac_two_updates": "indigo",
    "long_paper": "tab:purple",
    "long_paper_no_norm": "tab:brown",
    "long_paper_no_targets": "tab:olive",
    "long_targets_copied": "tab:blue",
    "long_ou_slow": "tab:orange",
    "long_warmup": "tab:green",
    "long_no_decay": "tab:red",
    "long_no_decay_no_norm": "tab:pink",
    "long_no_decay_no_targets": "tab:cyan",
}
"""Of each variant, the same in all plots."""
PIXELS = "from pixels, with target networks and batch norm (docs/pixels.md)"
GAMMA, TIME_LIMIT = 0.99, 1000
"""Of all variants and all tasks."""
POINTS = 40
"""Points of a curve over time or thresholds."""
STATISTICS = {
    "q_estimate": "mean Q(s, a) of the minibatch",
    "overestimation": "Q less the policy's value",
    "critic_loss": "critic's loss",
    "actor_statistics_drift": "actor's statistics drift",
    "critic_statistics_drift": "critic's statistics drift",
    "actor_grad_norm": "actor's gradient norm",
    "actor_saturation": "actions at a bound, share",
    "critic_weight_norm": "norm of the critic's weights",
    "critic_weights_vanished": "vanished weights of the critic, share",
}
"""Rows of the plot of what the algorithms logged. DDPG and TD3 log no Q: it is the negative of their actor's loss."""
LINEAR = ("q_estimate", "actor_saturation", "critic_weights_vanished")
"""Those of them that are not drawn by their logarithm."""


def save(figure: Figure, folder: Path, name: str) -> str:
    """
    :param figure: A figure, which is closed
    :param folder: Where it goes
    :param name: Its name without extension
    :return: Markdown that shows it
    """
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with atomic_write(folder / f"{name}.{kind}") as file:
            figure.savefig(file, format=kind, metadata=metadata)
    plt.close(figure)
    return f"![{name}]({folder.name}/{name}.png)\n\n[As SVG]({folder.name}/{name}.svg)"


def grid(n_rows: int, n_columns: int, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    """
    :param n_rows: Number of rows of panels
    :param n_columns: Number of columns
    :param sharey: Whether their values have one scale
    :return: The figure and its panels
    """
    return plt.subplots(
        n_rows,
        n_columns,
        figsize=(4.2 * n_columns, 3 * n_rows + 0.6),
        squeeze=False,
        layout="constrained",
        sharey=sharey,
    )


def legend(figure: Figure, panels: np.ndarray, columns: int = 3) -> None:
    """
    One legend below all panels.

    :param figure: The figure
    :param panels: Its panels
    :param columns: Number of the legend's columns
    """
    entries: dict[str, Artist] = {}
    for axes in panels.flat:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        if axes.get_legend():
            axes.get_legend().remove()
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def plot_returns(
    rows: pd.DataFrame, variants: Sequence[str], pixels: pd.DataFrame | None = None, tasks: Sequence[str] = tuple(TASKS)
) -> Figure:
    """
    Returns over steps, a panel a task: means over seeds with 95% bootstrap intervals.

    :param rows: The stored evaluations
    :param variants: The curves
    :param pixels: Evaluations from pixels, one more curve in the panels of their tasks (if None: no such curve)
    :param tasks: The panels
    :return: The figure
    """
    n_rows = 1 if len(tasks) <= 3 else 2
    figure, panels = grid(n_rows, -(-len(tasks) // n_rows))
    for axes, task in zip(panels.flat, tasks, strict=False):
        for variant in variants:
            own = rows[(rows["task"] == task) & (rows["variant"] == variant)]
            if len(own):
                label = VARIANTS[variant].label
                sns.lineplot(own, x="step", y="return_mean", ax=axes, label=label, color=COLORS[variant], seed=0, n_boot=500)
        seen = pixels[pixels["task"] == task] if pixels is not None else rows[:0]
        if len(seen):
            sns.lineplot(seen, x="step", y="return_mean", ax=axes, label=PIXELS, color="tab:pink", seed=0, n_boot=500)
        random = rows.loc[(rows["task"] == task) & (rows["variant"] == "random"), "return_mean"]
        if len(random):
            axes.axhline(random.mean(), color="black", linewidth=0.8, linestyle=":", label=VARIANTS["random"].label)
        axes.set(
            title=f"{task}{', held out' if ALL_TASKS[task].held_out else ''}", xlabel="environment steps", ylabel="return"
        )
    for axes in panels.flat[len(tasks) :]:
        axes.set_visible(False)
    legend(figure, panels)
    return figure


def with_estimates(rows: pd.DataFrame, q_is_actor_loss: bool) -> pd.DataFrame:
    """
    :param rows: The evaluations of a task and a variant
    :param q_is_actor_loss: Whether the algorithm logs Q only as the negative of its actor's loss
    :return: These with ``q_estimate``, and ``overestimation``: this less what the evaluated policy's rewards are worth
    """
    missing = pd.Series(np.nan, rows.index)
    q_estimate = rows.get("q_value", missing).fillna(-rows["actor_loss"] if q_is_actor_loss else missing)
    # Mean discounted number of steps left from the states of an episode of so many steps; time limits bootstrap
    length = rows["length_mean"]
    left = (1 - GAMMA * (1 - GAMMA**length) / (length * (1 - GAMMA))) / (1 - GAMMA)
    left = left.where(length < TIME_LIMIT, 1 / (1 - GAMMA))
    return rows.assign(q_estimate=q_estimate, overestimation=q_estimate - rows["return_mean"] / length * left)


def plot_statistics(rows: pd.DataFrame, variants: Sequence[str]) -> Figure:
    """
    What the algorithms logged, over steps: a row a statistic, a column a task; means over seeds and their range.

    :param rows: The stored evaluations
    :param variants: The curves, of each of which something is stored
    :return: The figure
    """
    own = pd.concat(
        with_estimates(rows[rows["variant"] == name], VARIANTS[name].algorithm in ("ddpg", "td3")) for name in variants
    )
    columns = [column for column in STATISTICS if column in own and own[column].notna().any()]
    tasks = [task for task in ALL_TASKS if task in set(own["task"])]
    figure, panels = grid(max(len(columns), 1), max(len(tasks), 1))
    for line, column in zip(panels, columns, strict=False):
        for axes, task in zip(line, tasks, strict=True):
            for variant in variants:
                cell = own[(own["task"] == task) & (own["variant"] == variant)]
                if cell[column].notna().any():
                    label = VARIANTS[variant].label
                    sns.lineplot(cell, x="step", y=column, ax=axes, label=label, color=COLORS[variant], errorbar=("pi", 100))
            axes.set_yscale("linear" if column in LINEAR else "symlog" if column == "overestimation" else "log")
            axes.set(title=task, xlabel="environment steps", ylabel=STATISTICS[column] if axes is line[0] else "")
    legend(figure, panels)
    return figure


def plot_targets(rows: pd.DataFrame, task: str, variants: dict[str, str], largest_q: float) -> Figure:
    """
    Returns beside what the critic takes them for: means over seeds and their range.

    :param rows: The stored evaluations
    :param task: The task
    :param variants: The curves, and what each is called
    :param largest_q: The largest value that a state of the task can have
    :return: The figure
    """
    figure, panels = grid(1, 2)
    for axes, column, unit in zip(panels[0], ("return_mean", "q_value"), ("return", STATISTICS["q_estimate"]), strict=True):
        for variant, label in variants.items():
            own = rows[(rows["task"] == task) & (rows["variant"] == variant)]
            sns.lineplot(own, x="step", y=column, ax=axes, label=label, errorbar=("pi", 100))
        axes.set(title=task, xlabel="environment steps", ylabel=unit, yscale="log")
    panels[0, 1].axhline(largest_q, color="black", linewidth=0.8, linestyle=":", label="largest possible Q")
    legend(figure, panels)
    return figure


def band(axes: Axes, x: np.ndarray, curve: Estimate, variant: str, seeds: int) -> None:
    """
    :param axes: Where to draw
    :param x: Points
    :param curve: Values and intervals there
    :param variant: Whose they are
    :param seeds: Of how many runs a task. Of few there is no interval.
    """
    label = f"{VARIANTS[variant].label} ({seeds} {'seed' if seeds == 1 else 'seeds'})"
    axes.plot(x, curve.value, color=COLORS[variant], label=label)
    if seeds >= SEEDS_FOR_INTERVALS:
        axes.fill_between(x, curve.low, curve.high, color=COLORS[variant], alpha=0.15)


def plot_aggregate(rows: pd.DataFrame, step_times: pd.Series, variants: Sequence[str], tasks: Sequence[str]) -> Figure:
    """
    Interquartile means over steps and over CPU seconds.

    :param rows: The stored evaluations
    :param step_times: CPU seconds of a step by task and variant; of a variant without, there is no curve over seconds
    :param variants: The curves; those without a seed for every task are left out
    :param tasks: The tasks that are aggregated
    :return: The figure
    """
    figure, panels = grid(1, 2, sharey=True)
    names = complete(rows, variants, tasks)
    timed = [name for name in names if all((task, name) in step_times.index for task in tasks)]
    longest = max((step_times[task, name] * rows["step"].max() for name in timed for task in tasks), default=1.0)
    for name in names:
        seeds = len(seeds_of(rows, name, tasks))
        band(panels[0, 0], *_curve(*curve_matrix(rows, name, tasks)), name, seeds)
        if name in timed:
            points = np.linspace(0, longest, POINTS * 2)
            band(panels[0, 1], *_curve(*over_time(rows, step_times, name, tasks, points)), name, seeds)
    panels[0, 0].set(xlabel="environment steps", ylabel="interquartile mean of scores")
    panels[0, 1].set(xlabel="CPU seconds of training")
    figure.set_size_inches(10, 4.5)
    legend(figure, panels)
    return figure


def plot_overview(rows: pd.DataFrame, variants: Sequence[str], scopes: dict[str, tuple[str, ...]]) -> Figure:
    """
    Interquartile means over steps.

    :param rows: The stored evaluations
    :param variants: The curves
    :param scopes: The tasks that are aggregated, by the title of their panel; a panel has the variants with seeds enough there
    :return: The figure
    """
    figure, panels = grid(1, len(scopes), sharey=True)
    for panel, (title, tasks) in zip(panels[0], scopes.items(), strict=True):
        for name in complete(rows, variants, tasks, SEEDS_FOR_INTERVALS):
            band(panel, *_curve(*curve_matrix(rows, name, tasks)), name, len(seeds_of(rows, name, tasks)))
        panel.set(title=title, xlabel="environment steps")
    panels[0, 0].set(ylabel="interquartile mean of scores")
    figure.set_size_inches(10, 4.5)
    legend(figure, panels)
    return figure


def _curve(x: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, Estimate]:
    return x, estimate(interquartile_mean, scores)


def plot_profiles(rows: pd.DataFrame, variants: Sequence[str], tasks: Sequence[str]) -> Figure:
    """
    Performance profiles: the share of runs whose final score exceeds a threshold.

    :param rows: The stored evaluations
    :param variants: The curves
    :param tasks: The tasks that are aggregated
    :return: The figure
    """
    figure, panels = grid(1, 1)
    scores = {name: final_matrix(rows, name, tasks) for name in complete(rows, variants, tasks)}
    thresholds = np.linspace(0, max((matrix.max() for matrix in scores.values()), default=1.0), POINTS)
    for name, matrix in scores.items():
        band(panels[0, 0], thresholds, performance_profile(matrix, thresholds), name, len(matrix))
    panels[0, 0].set(xlabel="score", ylabel="share of runs above it")
    figure.set_size_inches(6, 4.5)
    legend(figure, panels, 2)
    return figure


def plot_forest(sections: dict[str, dict[str, tuple[Estimate, bool]]], neutral: float, label: str) -> Figure:
    """
    A line an estimate, with its interval.

    :param sections: Estimates, and whether each is to be red, by name, by heading (none is drawn for an empty heading)
    :param neutral: The value that says: no difference
    :param label: What they estimate
    :return: The figure
    """
    figure, panels = grid(1, 1)
    axes, names = panels[0, 0], []
    for heading, entries in sections.items():
        if heading:
            names.append(heading)
        for name, (entry, is_red) in entries.items():
            color = "tab:red" if is_red else "tab:gray"
            axes.plot([entry.low, entry.high], [len(names)] * 2, color=color)
            axes.plot(entry.value, len(names), "o", color=color)
            names.append(name)
    axes.axvline(neutral, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    for tick in axes.get_yticklabels():
        if tick.get_text() in sections:
            tick.set_fontweight("bold")
    axes.set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(label, fontsize="medium")  # not the axes': beside long names they are narrower than it
    figure.set_size_inches(8, 0.28 * len(names) + 1)
    return figure
