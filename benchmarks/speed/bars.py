"""The bars that the project set itself, evaluated from the measurements."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from benchmarks.speed.contenders import BASELINE, CONTENDERS, FLOOR, JAX_BASELINE, OURS
from benchmarks.speed.figures import UPDATES_PER_CALL, ratio, select


@dataclass(frozen=True)
class Bar:
    """
    A least ratio, or a greatest number of seconds.

    :param text: What is asked
    :param case: The columns that choose the rows
    :param bound: The bound
    :param other: The contender to be compared with, or None for seconds
    :param allows_options: Whether other settings than the default ones may meet it
    :param contender: Whose figure it is, if not BNDDPG's
    """

    text: str
    case: dict[str, Any] = field(hash=False)
    bound: float
    other: str | None = None
    allows_options: bool = True
    contender: str = OURS

    def measured(self, rows: pd.DataFrame, contender: str | None = None) -> float:
        """
        :param rows: All rows
        :param contender: Whose figure, if not that of the bar's own
        :return: The figure to hold against the bound, NaN if it was not measured
        """
        rows, contender = select(rows, **self.case), contender or self.contender
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


def _family(contender: str, other: str, bounds: dict[int, float], width: str = "256-256", per_call: int = 1) -> list[Bar]:
    case = dict(figure="family", threads=1, obs_dim=17, action_dim=6, width=width, per_call=per_call)
    many = "" if per_call == 1 else f", {per_call} updates a call"
    text = f"{CONTENDERS[contender].label}, over {CONTENDERS[other].label}, {width.replace('-', ' and ')} units{many}"
    return [
        Bar(f"{text}, batch {batch}", case | dict(batch_size=batch), bound, other, contender=contender)
        for batch, bound in bounds.items()
    ]


FAMILY_BARS = [
    *_family("bntd3", "sb3_td3", {64: 1.4, 256: 1.15}, "400-300"),
    *_family("bntd3_compiled", "sb3_td3", {64: 1.8, 256: 1.35}, "400-300"),
    *_family("bntd3_joint_compiled", "sbx_crossq", {64: 1.3, 256: 1.15}),
    *_family("bnsac", "sb3_sac", {64: 1.5, 256: 1.2}),
    *_family("bnsac_crossq", "crossq", {64: 1.7, 256: 1.4}),
    *_family("bnsac_crossq_compiled", "sbx_crossq", {64: 1.3, 256: 1.15}),
    *_family("bnsac_crossq_compiled", "sbx_crossq", {64: 1.0, 256: 1.0}, per_call=UPDATES_PER_CALL),
]
"""Medians on one core at cheetah dimensions: BNTD3 and BNSAC with batch norm, SB3's TD3 and SAC without."""
