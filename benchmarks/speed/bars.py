"""The bars that the project set itself, evaluated from the measurements: ratios of rates, which hold on any processor."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from benchmarks.speed.contenders import BASELINE, COMPILED, CONTENDERS, FLOOR, JAX_BASELINE, OURS
from benchmarks.speed.figures import ALONE, BESIDE, UPDATES_PER_CALL, ratio, select

ITSELF = "itself"
"""In the place of another contender: the same one without a second training beside it."""


@dataclass(frozen=True)
class Bar:
    """
    A least ratio of two rates.

    :param text: What is asked
    :param contender: Whose rate it is
    :param other: Whose rate it is divided by, or :data:`ITSELF`
    :param bound: The least ratio
    :param case: The columns that choose the rows
    """

    text: str
    contender: str
    other: str
    bound: float
    case: dict[str, Any] = field(hash=False)

    def measured(self, rows: pd.DataFrame) -> float:
        """
        :param rows: All rows of a processor
        :return: The median of the rounds' ratios, NaN if it was not measured
        """
        if self.other == ITSELF:
            return ratio(select(rows, **self.case, contender=self.contender), BESIDE, ALONE, column="variant")
        return ratio(select(rows, **self.case), self.contender, self.other)

    def met(self, value: float) -> bool:
        """
        :param value: The figure
        :return: Whether it meets the bound
        """
        return value >= self.bound


def _bars(text: str, contender: str, other: str, bounds: dict[int, float], **case: Any) -> list[Bar]:
    """A bar for each batch size, at cheetah's dimensions, with 400 and 300 units and on one thread unless ``case`` differs."""
    case = dict(threads=1, obs_dim=17, action_dim=6, width="400-300", per_call=1) | case
    units = "" if case["width"] == "400-300" else f", {case['width'].replace('-', ' and ')} units"
    many = "" if case["per_call"] == 1 else f", {case['per_call']} updates a call"
    text = f"{CONTENDERS[contender].label}, {text}{units}{many}"
    return [
        Bar(f"{text}, batch {batch}", contender, other, bound, case | dict(batch_size=batch))
        for batch, bound in bounds.items()
    ]


def _over(contender: str, other: str, bounds: dict[int, float], **case: Any) -> list[Bar]:
    return _bars(f"over {CONTENDERS[other].label}", contender, other, bounds, **dict(figure="family", width="256-256") | case)


def _floor(contender: str, floor: str, bounds: dict[int, float]) -> list[Bar]:
    return _bars("share of the floor", contender, floor, bounds, figure="train" if floor == FLOOR else "family")


def _beside(contender: str) -> list[Bar]:
    case: dict[str, Any] = dict(figure="neighbour", threads=2)
    return [
        *_bars("beside a second training, over alone", contender, ITSELF, {64: 0.45, 256: 0.45}, **case),
        *_bars("beside a second training, over SB3's", contender, BASELINE, {64: 1.0, 256: 1.0}, **case, variant=BESIDE),
    ]


OF_DEFAULT, OF_COMPILED = {64: 0.65, 256: 0.82}, {64: 0.8, 256: 0.92}

BARS = [
    *_floor(OURS, FLOOR, OF_DEFAULT),
    *_floor(COMPILED, FLOOR, OF_COMPILED),
    *_floor("bntd3", "floor_td3", OF_DEFAULT),
    *_floor("bntd3_compiled", "floor_td3", OF_COMPILED),
    *_floor("bnsac", "floor_sac", OF_DEFAULT),
    *_floor("bnsac_compiled", "floor_sac", OF_COMPILED),
    *_over(COMPILED, JAX_BASELINE, {64: 1.0, 256: 1.0}, figure="train", width="400-300", per_call=UPDATES_PER_CALL),
    *_bars("`learn()` on HalfCheetah-v5, over SB3 DDPG", COMPILED, BASELINE, {64: 1.7}, figure="learn"),
    *_bars("`learn()` on HalfCheetah-v5, over SBX DDPG (JAX)", COMPILED, JAX_BASELINE, {64: 1.15}, figure="learn"),
    *_beside(OURS),
    *_beside(COMPILED),
    *_over("bntd3", "sb3_td3", {64: 1.4, 256: 1.15}, width="400-300"),
    *_over("bntd3_compiled", "sb3_td3", {64: 1.8, 256: 1.35}, width="400-300"),
    *_over("bntd3_joint_compiled", "sbx_crossq", {64: 1.3, 256: 1.15}),
    *_over("bnsac", "sb3_sac", {64: 1.5, 256: 1.2}),
    *_over("bnsac_crossq", "crossq", {64: 1.7, 256: 1.4}),
    *_over("bnsac_crossq_compiled", "sbx_crossq", {64: 1.3, 256: 1.15}),
    *_over("bnsac_crossq_compiled", "sbx_crossq", {64: 1.0, 256: 1.0}, per_call=UPDATES_PER_CALL),
]
"""Ours with batch norm, SB3's and SBX's DDPG, TD3 and SAC without."""
