"""The declared matrix: tasks x variants x seeds. Plain data, so that its hash says whether a stored result is still valid."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from benchmarks.learning.contenders import (
    CHANGE_LONG,
    CONTENDERS,
    DOUBLED,
    FACTORS,
    FAMILY,
    FIGURE2,
    FIGURE2_LONG,
    FIRST_FAMILY,
    PEERS,
    SILENT_LONG,
    TUNED_NORMS,
    TWO_UPDATES,
    Variant,
)
from benchmarks.learning.profile_search import LATER_RULE_TASKS, LATER_RULES, RULE_TASKS, RULES
from benchmarks.learning.tasks import ALL_TASKS, CHEETAH, HELD_OUT, NEW_TASKS, TASKS, TUNING, WALKER, XQC
from benchmarks.offline import variants as offline

PROTOCOL = 1
"""Raised when the way of training or evaluating changes: every stored unit is then run anew."""
LEARNING_STARTS = 1_000
"""Random steps before the first update, of every contender: the Zoo's 10,000 would be a fifth of this budget."""

VARIANTS = CONTENDERS | RULES | LATER_RULES | {name: Variant(*fields) for name, fields in offline.VARIANTS.items()}

DOUBLED_TASKS = ("HalfCheetah-v5", "Hopper-v5", WALKER)
"""Those on which XQC's and CrossQ's papers report, and which runs of 50,000 steps leave unfinished."""
NORM_TASKS = ("HalfCheetah-v5", "Hopper-v5")
"""Where the tuned profile is furthest ahead of itself without batch norm."""
TWICE_TASKS = ("dm_control/cartpole-swingup-v0", "InvertedDoublePendulum-v5")
WIDE_TASKS = ("HalfCheetah-v5", "dm_control/cartpole-swingup-v0")
PAPER_TASKS = ("dm_control/cartpole-swingup-v0", CHEETAH)
"""Those of the long runs that are in the paper's Table 1, or near to its tasks."""
LONG_TASKS = (*PAPER_TASKS, "HalfCheetah-v5")
MILLION_LONG = ((LONG_TASKS[-1], "million_no_targets"), (CHEETAH, "million_no_norm"))
"""The best and the worst cell"""


@dataclass(frozen=True)
class Budget:
    """
    The extent of a run.

    :param steps: Environment steps (if None: the variant's)
    :param every: Steps between evaluations (if None: the variant's)
    :param episodes: Episodes of an evaluation
    """

    steps: int | None = None
    every: int | None = None
    episodes: int = 5

    def of(self, variant: str) -> "Budget":
        """
        :param variant: Name of a variant
        :return: The extent with the variant's steps and evaluations filled in
        """
        own = VARIANTS[variant]
        return replace(
            self,
            steps=own.steps if self.steps is None else self.steps,
            every=own.every if self.every is None else self.every,
        )


class Unit(NamedTuple):
    """One training run: a task, a variant and a seed."""

    task: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} {self.variant} seed {self.seed}"


@dataclass(frozen=True)
class Group:
    """
    A part of the matrix that answers one question.

    :param question: The question
    :param cells: Tasks and variants
    :param seeds: Number of seeds of each cell
    """

    question: str
    cells: tuple[tuple[str, str], ...]
    seeds: int

    def units(self) -> Iterator[Unit]:
        """Breadth first: all cells' first seed, then all cells' second, so that an unfinished matrix is an even one."""
        for seed in range(self.seeds):
            for task, variant in self.cells:
                yield Unit(task, variant, seed)


def _cells(variants: Iterable[str], tasks: tuple[str, ...] = tuple(TASKS)) -> tuple[tuple[str, str], ...]:
    return tuple((task, variant) for variant in variants for task in tasks)


GROUPS: dict[str, Group] = {
    "random": Group("What does a random policy score?", _cells(["random"]), 5),
    "peers": Group("How do SB3's DDPG, TD3 and CrossQ learn?", _cells(PEERS), 5),
    "crossq_wide": Group("And CrossQ with its own wide critics?", _cells(["crossq_1024"], WIDE_TASKS), 3),
    "figure2": Group("Does batch norm help, and do target networks (the paper's Figure 2)?", _cells(FIGURE2), 5),
    "ablation": Group(
        "What matters of what the paper leaves unsaid?",
        _cells(["ablation_base", *(name for values in FACTORS.values() for name in values)], TUNING),
        3,
    ),
    "tuned_tuning": Group("How good is the tuned profile where it was tuned?", _cells(["tuned"], TUNING), 5),
    "tuned_norms": Group("Does batch norm help the tuned profile?", _cells(TUNED_NORMS[1:]), 5),
    "tuned_targets": Group("And would target networks do as well?", _cells(["tuned_targets"], NORM_TASKS), 5),
    "family": Group(
        "How do BNTD3's and BNSAC's first profiles learn where BNDDPG's was tuned?", _cells(FIRST_FAMILY, TUNING), 3
    ),
    "family_crossq": Group("Is BNSAC as CrossQ behind sb3-contrib's?", _cells(["sac_crossq"], TUNING), 5),
    "tuned_held_out": Group("And where it was not? (To be run once, at the end.)", _cells(["tuned"], HELD_OUT), 5),
    "family_tuned": Group("How good are BNTD3's and BNSAC's tuned profiles?", _cells(FAMILY, tuple(ALL_TASKS)), 5),
    "random_new": Group("What does a random policy score on the three new tasks?", _cells(["random"], tuple(NEW_TASKS)), 5),
    "tuned_new": Group("How does BNDDPG's tuned profile learn there?", _cells(["tuned"], tuple(NEW_TASKS)), 5),
    "crossq_new": Group("And CrossQ?", _cells(["crossq_256"], tuple(NEW_TASKS)), 5),
    "two_updates": Group("What do two updates a step add to BNSAC?", _cells([TWO_UPDATES], tuple(XQC)), 3),
    "doubled": Group("And after 100,000 steps?", _cells(DOUBLED, DOUBLED_TASKS), 3),
}
"""In the order in which they run."""

# A task's three variants come one after the other, so that the first runs already compare something
LONG_GROUPS: dict[str, Group] = {
    "random_long": Group("What does a random policy score on the paper's cheetah?", _cells(["random"], (CHEETAH,)), 5),
    "figure2_long": Group(
        "Figure 2 with the paper's own values, after 500,000 steps",
        tuple((task, variant) for task in LONG_TASKS for variant in FIGURE2_LONG),
        3,
    ),
    "silent_long": Group(
        "Where the paper says nothing: does the other choice do better after 500,000 steps?",
        tuple((task, variant) for task in PAPER_TASKS for variant in SILENT_LONG),
        1,
    ),
    "change_long": Group(
        "What is the smallest change with which the paper's values learn at this length?",
        tuple((task, variant) for task in LONG_TASKS for variant in CHANGE_LONG),
        1,
    ),
    "million_long": Group("Do the best and the worst cell change within 1,000,000 steps?", MILLION_LONG, 1),
}
"""Groups with a page of their own, which run after the others."""
EXPLORATION: dict[str, Group] = {
    "one_rule": Group("What lets one setting learn whether or not episodes end early?", _cells(RULES, RULE_TASKS), 3),
    "one_rule_later": Group("The same after 50,000 steps", _cells(LATER_RULES, LATER_RULE_TASKS), 2),
    # Declared for three seeds of BNDDPG's tuning tasks and the walker; BNTD3's first profile, which it is of, was given up
    "family_twice": Group(
        "Do two minibatches of 128 a step learn more than one of 256, for about the same time?",
        _cells(["td3_twice"], TWICE_TASKS),
        1,
    ),
}
"""Groups that look for a profile; their tables are no comparison with others."""
OFFLINE: dict[str, Group] = {
    "random_offline": Group("What does a random policy score on the offline tasks?", _cells(["random"], offline.TASKS), 5),
    "offline": Group("Does batch norm help IQL and TD3+BC?", _cells(offline.names("bn_iql", "bn_td3_bc"), offline.TASKS), 3),
    "offline_bcq": Group("And BCQ?", _cells(offline.names("bn_bcq"), offline.TASKS), 3),
    "offline_awac": Group("And AWAC?", _cells(offline.names("bn_awac"), offline.TASKS), 3),
    "offline_changes": Group(
        "By what do d3rlpy's scores differ?", _cells([change.variant for change in offline.CHANGES], offline.TASKS), 3
    ),
}
"""Groups that learn from datasets, with a page of their own."""
ALL_GROUPS = GROUPS | LONG_GROUPS | EXPLORATION | OFFLINE


def kwargs_of(unit: Unit) -> dict[str, Any]:
    """
    :param unit: A unit
    :return: Its variant's arguments, with the task's recipe where it learns from a dataset
    """
    kwargs = VARIANTS[unit.variant].kwargs
    if "recipe" in kwargs:
        kwargs = kwargs | dict(recipe=kwargs["recipe"] | offline.OWN_RECIPES.get(unit.task, {}))
    return kwargs


def config_hash(unit: Unit, budget: Budget) -> str:
    """
    Changes if and only if the unit would have to be run anew.

    :param unit: The unit
    :param budget: The extent of the run
    :return: 12 hexadecimal digits
    """
    variant = VARIANTS[unit.variant]
    config = [PROTOCOL, unit, variant.algorithm, kwargs_of(unit), LEARNING_STARTS, asdict(budget.of(unit.variant))]
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
