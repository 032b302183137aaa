"""Ctrl-C in a training or a search: at once where that does no harm, else at the next moment at which it does none."""

import contextlib
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import optuna

from sb3_bn_ddpg.saving.callbacks import CheckpointEvery

EnvWrapper = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


def left_to_parent(wrapper: EnvWrapper | None) -> EnvWrapper:
    """
    A Ctrl-C in a terminal goes to all processes of the command: those of environments shall leave it to the one that trains.

    :param wrapper: What wraps each environment, in its process (if None: nothing)
    :return: What does so, and lets the process ignore Ctrl-C if it is a child
    """

    def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return env if wrapper is None else wrapper(env)

    return wrap


class Interrupts:
    """
    Remembers a Ctrl-C, and raises it at once only within :meth:`at_once`, or if it is the second.

    Python ignores one that falls into a garbage collection, and Optuna collects garbage after every trial. One between
    Optuna's start of a trial's heartbeat and the trial itself would let that thread live forever, and with it the process.
    """

    def __init__(self) -> None:
        self.happened = False
        """Whether there was a Ctrl-C, also one that Python ignored"""
        self._raises_at_once = False

    def stop_if_happened(self, *args: object) -> bool:
        """
        For each step and each trial, also in the threads of ``--n-jobs``, which no signal reaches.

        :param args: What a callback is given, unused
        :return: True: go on
        :raises KeyboardInterrupt: if there was a Ctrl-C
        """
        if self.happened:
            raise KeyboardInterrupt
        return True

    @contextlib.contextmanager
    def remembered(self) -> Iterator[None]:
        """
        Remember each Ctrl-C here. Only the main thread can, to which signals go; and a background job, which ignores them,
        goes on doing so.
        """

        def interrupt(signal_number: int, frame: FrameType | None) -> None:
            is_second, self.happened = self.happened, True
            if is_second or self._raises_at_once:
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            yield
            return
        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextlib.contextmanager
    def at_once(self, is_allowed: bool = True) -> Iterator[None]:
        """
        Raise the first Ctrl-C at once here: what called this cleans up.

        :param is_allowed: Whether to do so
        """
        if not is_allowed or threading.current_thread() is not threading.main_thread():
            yield
            return
        try:
            self._raises_at_once = True
            yield
        finally:
            self._raises_at_once = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Within :meth:`at_once`, raise the first Ctrl-C after this."""
        raises_at_once, self._raises_at_once = self._raises_at_once, False
        try:
            yield
        finally:
            self._raises_at_once = raises_at_once
        if raises_at_once:
            self.stop_if_happened()


class UninterruptedTrial:
    """
    An Optuna trial in whose methods a Ctrl-C waits. Raised in the middle of a transaction it would live, in its traceback, as
    long as Optuna writes down that the trial failed, and with it the cursor that keeps SQLite's file locked to that.

    :param trial: The trial
    :param interrupts: The Ctrl-C
    """

    def __init__(self, trial: optuna.Trial, interrupts: Interrupts) -> None:
        self._trial, self._interrupts = trial, interrupts

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trial, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._interrupts.held_back():
                return value(*args, **kwargs)

        return call


class CheckpointUntilInterrupted(CheckpointEvery):
    """
    A :class:`~sb3_bn_ddpg.CheckpointEvery` that after a Ctrl-C writes a last checkpoint, when the step is done and learnt
    from, and ends the training.

    :param save_freq: Steps of the training (all environments together) between two checkpoints, >= 1
    :param path: The file
    :param interrupts: The Ctrl-C
    """

    def __init__(self, save_freq: int, path: str | Path, interrupts: Interrupts) -> None:
        super().__init__(save_freq, path)
        self.interrupts = interrupts

    def _on_rollout_start(self) -> None:
        if self.interrupts.happened:
            try:
                self._on_training_end()
            except OSError as error:  # as of a full disk. There is still the model to save
                warnings.warn(f"No checkpoint at the Ctrl-C, the one before stands: {error}", stacklevel=2)
            raise KeyboardInterrupt
        super()._on_rollout_start()
