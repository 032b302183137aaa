"""What a training run leaves behind: evaluations, clocks and the means of what its algorithm logged."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from benchmarks.learning.evaluation import Evaluator
from benchmarks.learning.matrix import Budget
from benchmarks.learning.store import CLOCKS, UnitFile

VANISHED = 1e-6
"""A smaller weight passes nothing on: with inputs of size 1, all 400 of a layer together come to less than a thousandth."""


class MeanLogger(Logger):
    """Keeps the mean of every value of ``train/`` that an algorithm recorded since the last evaluation."""

    def __init__(self) -> None:
        super().__init__(folder=None, output_formats=[])
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        if key.startswith("train/"):
            self.sums[key] += float(value)
            self.counts[key] += 1

    def take(self) -> dict[str, float]:
        """
        :return: The means by their names without ``train/``; counting starts anew
        """
        means = {key.removeprefix("train/"): self.sums[key] / self.counts[key] for key in self.sums}
        self.sums.clear()
        self.counts.clear()
        return means


def weight_statistics(critic: th.nn.Module) -> dict[str, float]:
    """
    The paper's weight decay is added to the gradient, which Adam scales to steps of one size: where the loss has a small
    gradient, as with small rewards, the decay alone decides and takes the weights to zero.

    :param critic: A critic
    :return: The norm of its linear layers' weights, and the share of them that have vanished
    """
    weights = th.cat([parameter.detach().flatten() for parameter in critic.parameters() if parameter.ndim > 1])
    vanished = (weights.abs() < VANISHED).float().mean()
    return dict(critic_weight_norm=weights.norm().item(), critic_weights_vanished=vanished.item())


class Recorder(BaseCallback):
    """
    Evaluates at step 0 and at the budget's interval, with the training's clocks stopped. Then it writes a checkpoint, if the
    unit's file has a place for one.

    :param file: Where the rows go
    :param task: The task
    :param budget: How often
    :param weights: Whether the rows hold :func:`weight_statistics`
    """

    def __init__(self, file: UnitFile, task: str, budget: Budget, weights: bool = False) -> None:
        super().__init__()
        self.file, self.budget, self.weights = file, budget, weights
        self.evaluator = Evaluator(task, budget.episodes)
        self.means = MeanLogger()
        self.wall = self.cpu = 0.0

    def _on_training_start(self) -> None:
        if self.file.rows:  # of the training that is resumed
            self.wall, self.cpu = (float(self.file.rows[-1][clock]) for clock in CLOCKS)
        else:
            self._write()
        self._start_clocks()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:  # after the update that belongs to the last step
        # A resumed training begins where it was evaluated
        if self.num_timesteps % self.budget.every == 0 and self.num_timesteps != int(self.file.rows[-1]["step"]):
            self._evaluate()
            if self.file.checkpoint is not None:  # after the row: a row too many is dropped, a missing one would be lost
                self.model.save_checkpoint(self.file.checkpoint)
            self._start_clocks()

    def _on_training_end(self) -> None:  # the last step's update is done; no rollout follows it
        self._evaluate()

    def _evaluate(self) -> None:
        self.wall += time.perf_counter() - self.wall_start
        self.cpu += self._process_time() - self.cpu_start
        self._write()

    def _write(self) -> None:
        evaluation = self.evaluator.evaluate(self.model)
        clocks = dict(wall_seconds=round(self.wall, 3), cpu_seconds=round(self.cpu, 3))
        row = dict(step=self.num_timesteps) | evaluation._asdict() | clocks | self.means.take()
        if self.weights:
            row |= weight_statistics(self.model.critic)
        self.file.add(row)

    def _start_clocks(self) -> None:
        self.wall_start, self.cpu_start = time.perf_counter(), self._process_time()

    def _process_time(self) -> float:
        """CPU seconds of the process that learns, this one unless the model has one of its own."""
        clock: Callable[[], float] = getattr(self.model, "process_time", time.process_time)
        return clock()
