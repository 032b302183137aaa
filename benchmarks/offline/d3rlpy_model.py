"""A training of d3rlpy that looks like a model of SB3 to the benchmark: the same evaluations, at the same steps."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from benchmarks.learning.matrix import VARIANTS, Unit
from benchmarks.offline.variants import PEER
from benchmarks.speed.worker import thread_variables
from sb3_bn_ddpg.datasets.transitions import Transitions

ROOT = Path(__file__).parents[2]
PYTHON = Path(__file__).parent / "envs" / "d3rlpy" / "bin" / "python"
"""Of the environment that ``make bench-offline`` builds"""


def require_environment() -> None:
    """End the process, with a message, if d3rlpy's environment is not there."""
    if not PYTHON.exists():
        sys.exit(f"There is no {PYTHON.relative_to(ROOT)}: `make bench-offline` builds it")


class D3rlpyModel:
    """
    d3rlpy's algorithm in a process of its own.

    :param unit: A unit of one of d3rlpy's variants
    :param data: What it learns from
    """

    logger: Logger

    def __init__(self, unit: Unit, data: Transitions) -> None:
        require_environment()
        variant = VARIANTS[unit.variant]
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        self.every, self.num_timesteps, self.cpu = variant.every, 0, 0.0
        self.process = subprocess.Popen(
            [PYTHON, "-m", "benchmarks.offline.d3rlpy_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=thread_variables(1) | {"PYTHONPATH": str(ROOT)},
        )
        self._send((variant.algorithm.removeprefix(f"{PEER}_"), unit.seed, {name: getattr(data, name) for name in names}))

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()

    def _ask(self, what: str, argument: Any) -> Any:
        self._send((what, argument))
        assert self.process.stdout is not None
        return pickle.load(self.process.stdout)

    def set_logger(self, logger: Logger) -> None:
        """
        :param logger: What the callback writes to; d3rlpy's losses do not go there
        """
        self.logger = logger

    def get_env(self) -> None:
        """It has none: d3rlpy's process does not act."""

    def process_time(self) -> float:
        """
        :return: CPU seconds of d3rlpy's process at the end of its last steps
        """
        return self.cpu

    def learn(
        self, total_timesteps: int, callback: BaseCallback, log_interval: int = 1, reset_num_timesteps: bool = True
    ) -> "D3rlpyModel":
        """
        Make gradient steps, and call the callback wherever it evaluates.

        :param total_timesteps: Number of gradient steps
        :param callback: The callback
        :param log_interval: Without effect
        :param reset_num_timesteps: Without effect: it learns once
        :return: Itself
        """
        model: Any = self
        callback.init_callback(model)
        callback.on_training_start({}, {})
        while self.num_timesteps < total_timesteps:
            callback.on_rollout_start()
            n_steps = min(self.every, total_timesteps - self.num_timesteps)
            self.cpu = self._ask("fit", n_steps)
            self.num_timesteps += n_steps
            callback.on_step()
        callback.on_training_end()
        self.process.communicate()
        return self

    def predict(
        self, observation: NDArray[Any], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[Any], Any]:
        """SB3's signature; the actions are those that d3rlpy acts with."""
        actions: NDArray[Any] = self._ask("predict", np.asarray(observation))
        return actions, state
