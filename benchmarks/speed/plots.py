"""The plots of a run, as PNG files beside the README."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from numpy.typing import NDArray

from benchmarks.speed.breakdown import PARTS
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.figures import select, slope, threads_text

COLORS = dict(zip(CONTENDERS, plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2], strict=False))
DIMENSIONS = {(3, 1): "small (3-1)", (17, 6): "cheetah (17-6)", (348, 17): "humanoid (348-17)"}
SLOPE_POINTS = 3
"""The largest sizes that a slope is fitted to."""

SCALES = {
    "scale_batch": ("batch_size", "batch size", "updates/s"),
    "scale_width": ("width", "units of both hidden layers", "updates/s"),
    "scale_envs": ("n_envs", "environments (SubprocVecEnv)", "environment steps/s"),
}


def line(axes: Axes, contender: str, x: pd.Series, figures: pd.DataFrame, label: str) -> None:
    """
    Medians with their quartiles over a size.

    :param axes: Where to
    :param contender: Its color
    :param x: Sizes
    :param figures: Medians and quartiles, in the same order
    :param label: Name in the legend
    """
    errors = [figures["median"] - figures["low"], figures["high"] - figures["median"]]
    axes.errorbar(x, figures["median"], errors, label=label, color=COLORS[contender], marker="o", markersize=3, capsize=2)


def log_axes(axes: Axes, sizes: list[int], x_label: str, y_label: str) -> None:
    """
    :param axes: Gets logarithmic scales
    :param sizes: The ticks of x
    :param x_label: Name of x
    :param y_label: Name of y
    """
    axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.tick_params(axis="x", labelsize="small")
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.grid(alpha=0.3)


def legend_beside(figure: Figure, grid: NDArray[Any]) -> None:
    """
    :param figure: Gets one legend of all that is in any of its panels, in the contenders' order where they are contenders
    :param grid: The panels
    """
    entries = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    order = [contender.label for contender in CONTENDERS.values()]
    labels = sorted(entries, key=lambda label: order.index(label) if label in order else -1)
    figure.legend([entries[label] for label in labels], labels, loc="outside right upper", fontsize="small")


def plot_train(figures: pd.DataFrame, path: Path) -> None:
    """
    Updates/s over the batch size, one panel for dimensions and threads each.

    :param figures: The summary
    :param path: The PNG
    """
    figures = select(figures, figure="train", per_call=1)
    dimensions = [pair for pair in DIMENSIONS if len(select(figures, obs_dim=pair[0]))]
    threads = sorted(figures["threads"].unique())
    figure, grid = plt.subplots(len(threads), len(dimensions), squeeze=False, sharey=True, layout="constrained")
    figure.set_size_inches(4.2 * len(dimensions) + 2, 3.4 * len(threads))
    for row, n_threads in zip(grid, threads, strict=True):
        for axes, (obs_dim, action_dim) in zip(row, dimensions, strict=True):
            panel = select(figures, threads=n_threads, obs_dim=obs_dim, action_dim=action_dim)
            axes.set_visible(len(panel) > 0)
            for contender in CONTENDERS:
                own = select(panel, contender=contender).sort_values("batch_size")
                if len(own):
                    line(axes, contender, own["batch_size"], own, CONTENDERS[contender].label)
            log_axes(axes, sorted(panel["batch_size"].unique()), "batch size", "updates/s")
            axes.set_title(f"{DIMENSIONS[obs_dim, action_dim]}, {threads_text(n_threads)}", fontsize="medium")
    legend_beside(figure, grid)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_learn(figures: pd.DataFrame, path: Path) -> None:
    """
    Environment steps/s of ``learn()``.

    :param figures: The summary
    :param path: The PNG
    """
    figures = select(figures, figure="learn")
    threads = sorted(figures["threads"].unique())
    names = [name for name in CONTENDERS if len(select(figures, contender=name))]
    figure, row = plt.subplots(1, len(threads), squeeze=False, sharey=True, layout="constrained")
    figure.set_size_inches(4.5 * len(threads) + 1.5, 3)
    for axes, n_threads in zip(row[0], threads, strict=True):
        own = select(figures, threads=n_threads).set_index("contender").reindex(names)
        errors = [own["median"] - own["low"], own["high"] - own["median"]]
        labels = [CONTENDERS[name].label for name in names]
        axes.barh(labels, own["median"], xerr=errors, color=[COLORS[name] for name in names], capsize=2)
        axes.set(title=threads_text(n_threads), xlabel="environment steps/s, HalfCheetah-v5, batch 64")
        axes.grid(axis="x", alpha=0.3)
    row[0, 0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_breakdown(figures: pd.DataFrame, path: Path) -> None:
    """
    Milliseconds of an update by part, one panel for threads and batch size each.

    :param figures: The summary
    :param path: The PNG
    """
    figures = select(figures, figure="breakdown")
    threads, batches = (sorted(figures[column].unique()) for column in ("threads", "batch_size"))
    figure, grid = plt.subplots(len(threads), len(batches), squeeze=False, sharex="col", sharey=True, layout="constrained")
    figure.set_size_inches(4 * len(batches) + 2, 1.9 * len(threads) + 0.5)
    for row, n_threads in zip(grid, threads, strict=True):
        for axes, batch in zip(row, batches, strict=True):
            panel = select(figures, threads=n_threads, batch_size=batch)
            names = [name for name in CONTENDERS if name in set(panel["contender"])]
            milliseconds = panel.pivot_table(index="contender", columns="variant", values="median").reindex(names) * 1e3
            left = np.zeros(len(names))
            for part in PARTS:
                axes.barh([CONTENDERS[name].label for name in names], milliseconds[part], left=left, label=part)
                left += milliseconds[part].to_numpy()
            axes.set_title(f"batch {batch}, {threads_text(n_threads)}", fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("ms")
    grid[0, 0].invert_yaxis()
    legend_beside(figure, grid)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def scale_lines(figures: pd.DataFrame, name: str) -> dict[str, tuple[pd.Series, pd.DataFrame, float]]:
    """
    :param figures: The summary
    :param name: A key of ``SCALES``
    :return: For each contender its sizes, their figures and the slope at the largest of them
    """
    column = SCALES[name][0]
    lines = {}
    for contender, own in select(figures, figure=name).groupby("contender"):
        sizes = own["width"].str.split("-").str[0].astype(int) if column == "width" else own[column]
        sizes = sizes.sort_values()
        own = own.loc[sizes.index]
        lines[str(contender)] = (sizes, own, slope(sizes, own["median"], SLOPE_POINTS))
    return {contender: lines[contender] for contender in CONTENDERS if contender in lines}


def plot_scale(figures: pd.DataFrame, path: Path) -> None:
    """
    Rates over batch size, width and number of environments, with the slopes at the largest sizes.

    :param figures: The summary
    :param path: The PNG
    """
    names = [name for name in SCALES if len(select(figures, figure=name))]
    figure, row = plt.subplots(1, len(names), squeeze=False, layout="constrained")
    figure.set_size_inches(4.8 * len(names), 3.8)
    for axes, name in zip(row[0], names, strict=True):
        all_sizes: set[int] = set()
        for contender, (sizes, own, exponent) in scale_lines(figures, name).items():
            line(axes, contender, sizes, own, f"{CONTENDERS[contender].label}: slope {exponent:.2f}")
            all_sizes |= set(sizes)
        log_axes(axes, sorted(all_sizes), *SCALES[name][1:])
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
