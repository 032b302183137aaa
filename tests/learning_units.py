"""
What the tests of the learning benchmark share. It is skipped, and with it whatever imports it, where a package is missing
that the benchmark needs.
"""

from pathlib import Path

import pytest

pytest.importorskip("mujoco")
pytest.importorskip("rl_zoo3")
pytest.importorskip("rliable")
pytest.importorskip("seaborn")
pytest.importorskip("dm_control")
pytest.importorskip("shimmy")

from benchmarks.learning.matrix import VARIANTS, Budget, Unit
from benchmarks.learning.store import UnitFile

PENDULUM = "InvertedDoublePendulum-v5"
UNIT = Unit(PENDULUM, "sb3_ddpg", 0)


def synthetic(folder: Path, units: list[Unit], budget: Budget) -> None:
    """Units that reach the returns (their variant's rank among the variants) x step, and whose steps take 2 ms."""
    for unit in units:
        rank = list(VARIANTS).index(unit.variant)
        with UnitFile(folder, unit, budget.of(unit.variant)) as file:
            for step in [0] if unit.variant == "random" else range(0, 10_001, 2_500):
                statistics = dict(q_value=1.0 + step, actor_loss=-1.0, critic_loss=0.1) if step else {}
                clocks = dict(wall_seconds=step * 0.003, cpu_seconds=step * 0.002)
                evaluation = dict(return_mean=10.0 + rank * step / 10 + unit.seed, return_std=1.0, length_mean=5.0)
                file.add(dict(step=step) | evaluation | clocks | statistics)
