"""From rows to figures: medians, quartiles, ratios and slopes."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.speed.contenders import CONTENDERS

PROCESSORS = Path(__file__).parent / "results" / "processors"
"""One thread on each kind of processor, a folder each."""

UPDATES_PER_CALL = 32
"""In the measurement of many updates in one call of ``train()``."""

ALONE, BESIDE = "alone", "beside"
"""A training without another one on the same cores, and with it."""

CASE = ["figure", "threads", "obs_dim", "action_dim", "width", "batch_size", "per_call", "n_envs", "variant"]
"""The columns that say what was measured, but for the contender and the round."""


def read(folder: Path) -> pd.DataFrame:
    """
    :param folder: A run's results
    :return: Its rows, without contenders that are no longer in the table
    """
    rows = pd.read_csv(folder / "measurements.csv", keep_default_na=False, na_values=[])
    return rows[rows["contender"].isin(CONTENDERS)].astype({"value": float, "seconds": float})


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """
    :param rows: As from :func:`read`
    :return: For each case and contender the ``median``, the quartiles ``low`` and ``high`` and the number of ``rounds``
    """
    groups = rows.groupby([*CASE, "contender"])["value"]
    return pd.DataFrame(
        {"median": groups.median(), "low": groups.quantile(0.25), "high": groups.quantile(0.75), "rounds": groups.size()}
    ).reset_index()


def ratio(rows: pd.DataFrame, contender: str, other: str, column: str = "contender") -> float:
    """
    The median of the rounds' ratios: within a round both were measured at nearly the same moment.

    :param rows: Those of one case
    :param contender: The dividend
    :param other: The divisor
    :param column: In which both stand, if they are not contenders
    :return: The ratio, NaN if one of them is missing
    """
    rounds = rows.pivot_table(index="round", columns=column, values="value")
    if contender not in rounds or other not in rounds:
        return float("nan")
    return float((rounds[contender] / rounds[other]).median())


def select(rows: pd.DataFrame, **case: object) -> pd.DataFrame:
    """
    :param rows: Rows
    :param case: Columns and their values
    :return: The rows that have them
    """
    for column, value in case.items():
        rows = rows[rows[column] == value]
    return rows


def threads_text(threads: int) -> str:
    """
    :param threads: A number of threads
    :return: It in words
    """
    return "1 thread" if threads == 1 else f"{threads} threads"


def slope(x: pd.Series, y: pd.Series, points: int) -> float:
    """
    The exponent of the power law that fits the largest sizes, where fixed costs no longer hide it.

    :param x: Sizes, in rising order
    :param y: Rates
    :param points: How many of the last sizes to fit
    :return: The slope in the log-log plot
    """
    return float(np.polyfit(np.log(x.to_numpy(float)[-points:]), np.log(y.to_numpy(float)[-points:]), 1)[0])
