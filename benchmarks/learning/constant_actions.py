"""
Does a trained policy do more than sit at the bounds of its actions? ``python -m benchmarks.learning.constant_actions`` prints
the returns of constant actions, every combination of bounds, and the share of the stored evaluations that come to just these.
"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.learning.evaluation import Evaluator
from benchmarks.learning.figures import read
from benchmarks.learning.matrix import VARIANTS, Budget
from benchmarks.learning.store import RESULTS
from benchmarks.learning.tasks import TASKS
from benchmarks.markdown import MISSING, table

TOLERANCE = 0.005
"""Of the return: an actor whose tanh has saturated is not quite at the bound."""


class ConstantPolicy:
    """
    The same action in every state.

    :param action: It
    """

    def __init__(self, action: NDArray[Any]) -> None:
        self.action = action

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        """SB3's signature; only the number of observations counts."""
        return np.tile(self.action, (len(obs), 1)), state


def constant_returns(task: str, episodes: int) -> list[float]:
    """
    :param task: The id of an environment
    :param episodes: Number of episodes of an evaluation
    :return: The return of the benchmark's evaluation for every combination of the action's bounds
    """
    evaluator = Evaluator(task, episodes)
    space: Any = evaluator.env.action_space
    corners = itertools.product(*zip(space.low, space.high, strict=True))
    return [evaluator.evaluate(ConstantPolicy(np.array(corner, space.dtype))).return_mean for corner in corners]


def share_of(returns: pd.Series, constants: list[float]) -> float:
    """
    :param returns: Returns of evaluations
    :param constants: Returns of constant actions
    :return: The share of the former that are the latter, but for the tolerance
    """
    distance = np.abs(returns.to_numpy()[:, None] - np.array(constants)) / np.maximum(np.abs(constants), 1)
    return float((distance.min(axis=1) < TOLERANCE).mean())


def main() -> None:
    """Print the table."""
    budget = Budget()
    rows = read(RESULTS, budget)
    rows = rows[(rows["step"] > 0) & (rows["variant"] != "random")]
    constants = {task: constant_returns(task, budget.episodes) for task in TASKS}
    lines = [["constant actions: least to largest return", *(f"{min(c):.1f} to {max(c):.1f}" for c in constants.values())]]
    for variant in rows["variant"].drop_duplicates():
        own = {task: rows.loc[(rows["variant"] == variant) & (rows["task"] == task), "return_mean"] for task in TASKS}
        cells = [
            f"{share_of(part, constants[task]):.0%} of {len(part)}" if len(part) else MISSING for task, part in own.items()
        ]
        lines.append([VARIANTS[variant].label, *cells])
    print(table(["Evaluations that are a constant action's", *TASKS], lines))


if __name__ == "__main__":
    main()
