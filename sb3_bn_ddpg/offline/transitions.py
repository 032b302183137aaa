"""Transitions out of everything that holds some: Minari datasets, replay buffers, arrays."""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

from sb3_bn_ddpg.common.atomic_files import FileError, clear_errors, existing_file
from sb3_bn_ddpg.common.checks import check_installed
from sb3_bn_ddpg.saving.models import check_pickle

Array = NDArray[Any]
Dataset = Any
"""
A ``minari.MinariDataset`` or its id, an SB3 ``ReplayBuffer`` or the path of a saved one, or a dictionary of arrays with the
keys ``observations``, ``actions``, ``rewards``, ``next_observations``, ``terminations`` and, if there are any,
``truncations``.
"""

KEYS = ("observations", "actions", "rewards", "next_observations", "terminations")
OPTIONAL_KEYS = ("truncations",)
MINARI_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")


@dataclass(frozen=True)
class Transitions:
    """
    N transitions. Those of an episode follow each other.

    :param observations: Of shape ``(N, ...)``
    :param actions: Of shape ``(N, action_dim)``, scaled to [-1, 1] if ``are_scaled``
    :param rewards: Of shape ``(N,)``
    :param next_observations: Of shape ``(N, ...)``
    :param terminations: Whether the episode ended in a terminal state, of shape ``(N,)``
    :param truncations: Whether it was cut off, as by a time limit, of shape ``(N,)``; None if nobody knows
    :param are_scaled: Whether actions are scaled to [-1, 1] already, as in SB3's replay buffers
    :param observation_space: The space of the observations, if the dataset knows it
    :param action_space: The space of the actions, if the dataset knows it
    """

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    terminations: Array
    truncations: Array | None = None
    are_scaled: bool = False
    observation_space: spaces.Space[Any] | None = None
    action_space: spaces.Space[Any] | None = None


def transitions_of(dataset: Dataset) -> Transitions:
    """
    :param dataset: See :data:`Dataset`
    :return: Its transitions, and its spaces if it knows them
    :raises ValueError: if it is empty, or of none of these kinds
    :raises ImportError: if the package minari is missing and needed (the extra ``offline``)
    """
    if isinstance(dataset, str) and MINARI_ID.fullmatch(dataset) and not pathlib.Path(dataset).is_file():
        dataset = _minari_dataset(dataset)
    if isinstance(dataset, (str, pathlib.Path)):
        dataset = _saved_buffer(dataset)
    if isinstance(dataset, Transitions):
        data = dataset
    elif isinstance(dataset, ReplayBuffer):
        data = _of_buffer(dataset)
    elif isinstance(dataset, Mapping):
        data = _of_arrays(dataset)
    elif hasattr(dataset, "iterate_episodes"):
        data = _of_minari(dataset)
    else:
        raise ValueError(
            f"`dataset` of type {type(dataset).__name__} is not allowed: it must be a MinariDataset or its id, a ReplayBuffer "
            f"or the path of one, or a dictionary of arrays with the keys {', '.join(KEYS)}"
        )
    if len(data.rewards) == 0:
        raise ValueError("`dataset` without transitions is not allowed: it must hold at least one")
    return data


def _minari_dataset(dataset_id: str) -> Any:
    """
    :param dataset_id: The id of a Minari dataset
    :return: The dataset, from the disk: nothing is downloaded
    """
    check_installed("offline", "minari")
    import minari

    try:
        return minari.load_dataset(dataset_id)
    except Exception as error:
        raise ValueError(
            f"`dataset={dataset_id!r}` cannot be loaded: {error}. `minari download {dataset_id}` fetches a published one, "
            "`minari list local` shows those on this machine"
        ) from error


def _of_minari(dataset: Any) -> Transitions:
    """
    :param dataset: A ``MinariDataset``
    :return: Its transitions
    """
    parts: dict[str, list[Array]] = {name: [] for name in (*KEYS, *OPTIONAL_KEYS)}
    for episode in dataset.iterate_episodes():
        if not isinstance(episode.observations, np.ndarray) or not isinstance(episode.actions, np.ndarray):
            raise ValueError(
                f"`dataset` with observations of {dataset.observation_space} and actions of {dataset.action_space} is not "
                "allowed: they must be arrays"
            )
        if len(episode.observations) != len(episode.rewards) + 1:
            raise ValueError(
                f"`dataset` with an episode {episode.id} of {len(episode.rewards)} steps and {len(episode.observations)} "
                "observations is not allowed: there must be one observation more"
            )
        parts["observations"].append(episode.observations[:-1])
        parts["next_observations"].append(episode.observations[1:])
        for name in ("actions", "rewards", "terminations", "truncations"):
            parts[name].append(np.asarray(getattr(episode, name)))
    if not parts["rewards"]:
        raise ValueError("`dataset` without episodes is not allowed: it must hold at least one")
    arrays: dict[str, Any] = {name: np.concatenate(part) for name, part in parts.items()}
    return Transitions(**arrays, observation_space=dataset.observation_space, action_space=dataset.action_space)


def _saved_buffer(path: str | pathlib.Path) -> ReplayBuffer:
    """
    :param path: The file of a replay buffer
    :return: The replay buffer
    :raises FileError: if the file is truncated, was altered, or holds no replay buffer
    """
    try:
        file = existing_file(path, "pkl")
    except FileNotFoundError as error:
        raise ValueError(
            f"`dataset={str(path)!r}` is not allowed: {error}, and it is not the id of a Minari dataset"
        ) from None
    check_pickle(file)
    with clear_errors(file):
        buffer = load_from_pkl(file)
    if not isinstance(buffer, ReplayBuffer):
        raise FileError(file, f"holds a {type(buffer).__name__}, which is no replay buffer")
    return buffer


def _of_buffer(buffer: ReplayBuffer) -> Transitions:
    """
    :param buffer: A replay buffer of vectors or images
    :return: Its transitions, the oldest first, those of each environment after each other
    """
    if isinstance(buffer, DictReplayBuffer) or not isinstance(getattr(buffer, "observations", None), np.ndarray):
        raise ValueError(f"`dataset` of type {type(buffer).__name__} is not allowed: its observations must be an array")
    if buffer.optimize_memory_usage:
        # The next observation is the next row's, which the newest transition has overwritten if the buffer is full
        rows = (np.arange(buffer.pos + 1, buffer.pos + buffer.buffer_size) if buffer.full else np.arange(buffer.pos)) % (
            buffer.buffer_size
        )
        next_observations = buffer.observations[(rows + 1) % buffer.buffer_size]
    else:
        rows = (np.arange(buffer.size()) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
        next_observations = buffer.next_observations[rows]

    def by_environment(array: Array) -> Array:
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    dones = by_environment(buffer.dones[rows]) != 0
    timeouts = by_environment(buffer.timeouts[rows]) != 0
    truncations = dones & timeouts
    if len(rows):  # of each environment, the last episode need not have ended
        truncations.reshape(buffer.n_envs, -1)[:, -1] |= ~dones.reshape(buffer.n_envs, -1)[:, -1]
    return Transitions(
        by_environment(buffer.observations[rows]),
        by_environment(buffer.actions[rows]),
        by_environment(buffer.rewards[rows]),
        by_environment(next_observations),
        dones & ~timeouts,
        truncations,
        are_scaled=True,
        observation_space=buffer.observation_space,
        action_space=buffer.action_space,
    )


def _of_arrays(arrays: Mapping[str, Any]) -> Transitions:
    """
    :param arrays: Arrays by name
    :return: The transitions
    """
    names = {*arrays}
    if missing := sorted({*KEYS} - names):
        raise ValueError(f"`dataset` without {', '.join(missing)} is not allowed: it must have the keys {', '.join(KEYS)}")
    if unknown := sorted(map(str, names - {*KEYS, *OPTIONAL_KEYS})):
        raise ValueError(
            f"`dataset` with {', '.join(unknown)} is not allowed: its keys must be {', '.join((*KEYS, *OPTIONAL_KEYS))}"
        )
    values: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    lengths = {name: len(value) if value.ndim else 0 for name, value in values.items()}
    if len({*lengths.values()}) > 1:
        raise ValueError(f"`dataset` with arrays of the lengths {lengths} is not allowed: they must have one length")
    return Transitions(**values)
