"""A replay buffer in a checkpoint: without its empty rows, and without what could not be read back."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import BaseBuffer, DictReplayBuffer, ReplayBuffer

from sb3_bn_ddpg.saving.pickling import Pickler, Unpickler, pack

BUFFERS = (BaseBuffer,)  # one may hold others, as of an expert's transitions
INDEPENDENT = (ReplayBuffer, DictReplayBuffer)
"""SB3's replay buffers that make nothing of transitions that follow each other, unless they save memory."""


@dataclass
class _Trimmed:
    """The filled rows of an array, and how many it has with the empty ones."""

    rows: Any
    length: int


def write_buffer(buffer: Any, file: Any) -> None:
    """
    :param buffer: A replay buffer of :func:`readable_buffer`
    :param file: An open file
    """
    Pickler(file, allowed=BUFFERS).dump(_trimmed(buffer))


def read_buffer(file: Any) -> Any:
    """
    :param file: A file of :func:`write_buffer`
    :return: The replay buffer
    """
    return _expanded(Unpickler(file).load())


def readable_buffer(buffer: Any) -> Any:
    """
    :param buffer: A replay buffer
    :return: It, or a copy without those attributes that could not be read back, of which a warning tells
    """
    state = buffer.__getstate__() if hasattr(type(buffer), "__getstate__") else vars(buffer)
    bad = {}
    for name, value in state.items() if isinstance(state, dict) else ():
        if _is_of_arrays(value):
            continue  # the large part of the file, and known to be readable
        try:
            pack(_without_arrays(value), allowed=BUFFERS)
        except Exception as error:
            bad[name] = f"{type(error).__name__}: {error}"
    if not bad:
        return buffer
    warnings.warn(f"Checkpoints leave out of the replay buffer what cannot be read back: {bad}", stacklevel=3)
    readable = copy.copy(buffer)
    for name in bad:
        vars(readable).pop(name, None)
    return readable


def _without_arrays(value: Any) -> Any:
    """
    :param value: An attribute of a replay buffer
    :return: If it is a replay buffer, such as a dataset, a copy without the large part of it; else itself
    """
    if not isinstance(value, BaseBuffer) or hasattr(type(value), "__setstate__"):  # which may need all of it
        return value
    small = copy.copy(value)
    for name in [name for name, each in vars(small).items() if _is_of_arrays(each)]:
        del vars(small)[name]
    return small


def _is_of_arrays(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(part, np.ndarray) for part in parts)


def _trimmed(buffer: Any) -> Any:
    """
    :param buffer: A replay buffer
    :return: A copy of it whose arrays end where the zeros begin
    """
    if buffer.full:
        return buffer
    small = copy.copy(buffer)

    def trim(value: Any) -> Any:
        if type(value) is dict:
            return _changed(value, trim)
        if not isinstance(value, np.ndarray) or value.ndim == 0 or len(value) != buffer.buffer_size:
            return value
        # Objects have no zeros; memory-optimised buffers have one row more than their position says
        if value.dtype.hasobject or value[buffer.pos + 1 :].any():
            return value
        return _Trimmed(value[: buffer.pos + 1], len(value))

    vars(small).update({name: trim(value) for name, value in vars(small).items()})
    return small


def _expanded(buffer: Any) -> Any:
    """
    :param buffer: What :func:`_trimmed` returned
    :return: The replay buffer
    """

    def expand(value: Any) -> Any:
        if type(value) is dict:
            return _changed(value, expand)
        if not isinstance(value, _Trimmed):
            return value
        array = np.zeros((value.length, *value.rows.shape[1:]), dtype=value.rows.dtype)
        array[: len(value.rows)] = value.rows
        return array

    vars(buffer).update({name: expand(value) for name, value in vars(buffer).items()})
    return buffer


def _changed(entries: dict[Any, Any], change: Callable[[Any], Any]) -> dict[Any, Any]:
    """
    :param entries: A dictionary
    :param change: What becomes of an entry
    :return: The changed dictionary; the same one if no entry becomes another, for it may have a meaning to its owner
    """
    changed = {key: change(entry) for key, entry in entries.items()}
    return entries if all(changed[key] is entry for key, entry in entries.items()) else changed


def cut_off_episodes(buffer: Any) -> None:
    """
    Let the unfinished episodes of a replay buffer end where they are, as a time limit ends them.

    :param buffer: The replay buffer, if there is one
    """
    if buffer is None or buffer.size() == 0:
        return
    if hasattr(buffer, "truncate_last_trajectory"):  # HER
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does
            buffer.truncate_last_trajectory()
        return
    if not isinstance(getattr(buffer, "dones", None), np.ndarray):
        return  # it keeps its transitions in its own way
    is_independent = type(buffer) in INDEPENDENT or getattr(buffer, "is_independent", False)
    if is_independent and not buffer.handle_timeout_termination and not buffer.optimize_memory_usage:
        return  # an end would be a terminal state, and each transition has its own next observation
    last = (buffer.pos - 1) % buffer.buffer_size
    unfinished = buffer.dones[last] == 0
    buffer.dones[last] = 1
    if buffer.handle_timeout_termination:
        buffer.timeouts[last, unfinished] = 1
