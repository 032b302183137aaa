"""The figure of the offline benchmark."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from benchmarks.learning.plots import grid
from benchmarks.offline.variants import KINDS, LABELS, TASKS

COLORS = ("tab:gray", "tab:red", "tab:orange", "tab:blue")


def plot_scores(cells: pd.DataFrame, finals: pd.Series, columns: dict[str, str]) -> Figure:
    """
    :param cells: The stored evaluations, with ``algorithm`` and ``column`` beside ``task`` (a dataset) and ``variant``
    :param finals: Their final scores, by ``task``, ``variant`` and ``seed``
    :param columns: What is compared, with its name in the legend
    :return: A panel for each algorithm: the final score of each seed, and their mean, on each dataset
    """
    algorithms = [name for name in LABELS if name in set(cells["algorithm"])]
    datasets = [f"{task} {kind}" for task in TASKS for kind in KINDS if f"{task} {kind}" in set(cells["task"])]
    names = cells.drop_duplicates("variant").set_index("variant")[["algorithm", "column"]]
    points = finals.rename("score").reset_index().join(names, on="variant")
    points["dataset"] = points["task"].str.replace("-v5 ", "\n")
    points["column"] = points["column"].map(columns)
    figure, panels = grid(len(algorithms), 1, sharey=True)
    figure.set_size_inches(1.6 * len(datasets) + 2, 2.6 * len(algorithms) + 0.4)
    layout = dict(
        x="dataset",
        y="score",
        hue="column",
        hue_order=list(columns.values()),
        order=[name.replace("-v5 ", "\n") for name in datasets],
        palette=dict(zip(columns.values(), COLORS, strict=True)),
        legend=False,
    )
    for axes, algorithm in zip(panels[:, 0], algorithms, strict=True):
        own = points[points["algorithm"] == algorithm]
        sns.stripplot(own, ax=axes, dodge=True, jitter=False, size=4, alpha=0.6, **layout)
        sns.pointplot(
            own, ax=axes, dodge=0.6, errorbar=None, linestyle="none", marker="_", markersize=14, **layout | dict(legend="auto")
        )
        axes.set(title=LABELS[algorithm], xlabel="", ylabel="final score")
        handles, labels = axes.get_legend_handles_labels()
        axes.get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(columns))
    return figure
