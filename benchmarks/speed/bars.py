"""The bars that the project set itself, evaluated from the measurements."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from benchmarks.speed.contenders import BASELINE, FLOOR, JAX_BASELINE, OURS
from benchmarks.speed.figures import ratio, select


@dataclass(frozen=True)
class Bar:
    """
    A least ratio, or a greatest number of seconds.

    :param text: What is asked
    :param case: The columns that choose the rows
    :param bound: The bound
    :param other: The contender to be compared with, or None for seconds
    :param allows_options: Whether other settings than the default ones may meet it
    """

    text: str
    case: dict[str, Any] = field(hash=False)
    bound: float
    other: str | None = None
    allows_options: bool = True

    def measured(self, rows: pd.DataFrame, contender: str = OURS) -> float:
        """
        :param rows: All rows
        :param contender: Whose figure
        :return: The figure to hold against the bound, NaN if it was not measured
        """
        rows = select(rows, **self.case)
        if self.other is not None:
            return ratio(rows, contender, self.other)
        return float(select(rows, contender=contender)["value"].median())

    def met(self, value: float) -> bool:
        """
        :param value: The figure
        :return: Whether it meets the bound
        """
        return value >= self.bound if self.other is not None else value <= self.bound


def _case(figure: str, batch_size: int) -> dict[str, Any]:
    return dict(figure=figure, threads=2, obs_dim=17, action_dim=6, width="400-300", batch_size=batch_size, per_call=1)


BARS = [
    Bar("`train()`, batch 64, over SB3 DDPG", _case("train", 64), 3.5, BASELINE),
    Bar("`train()`, batch 64, over SBX DDPG", _case("train", 64), 1.5, JAX_BASELINE),
    Bar("`train()`, batch 256, over SB3 DDPG", _case("train", 256), 2.0, BASELINE),
    Bar("`train()`, batch 256, over SBX DDPG", _case("train", 256), 1.2, JAX_BASELINE),
    Bar("`learn()` on HalfCheetah-v5, batch 64, over SB3 DDPG", _case("learn", 64), 3.0, BASELINE),
    Bar("`learn()` on HalfCheetah-v5, batch 64, over SBX DDPG", _case("learn", 64), 1.5, JAX_BASELINE),
    Bar("`train()`, batch 256, over the floor (at most 2 times slower)", _case("train", 256), 0.5, FLOOR),
    Bar("Default settings, `train()`, batch 64, over SB3 DDPG", _case("train", 64), 2.5, BASELINE, False),
    Bar("Default settings, warm-up: the first `train()` of a process", _case("first_train", 256), 1.0, None, False),
]
"""Medians on two cores at cheetah dimensions, batch norm on."""
