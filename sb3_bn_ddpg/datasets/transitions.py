"""Transitions out of everything that holds some: Minari datasets, replay buffers, arrays and their files."""

import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

from sb3_bn_ddpg.common.atomic_files import FileError, clear_errors, existing_file
from sb3_bn_ddpg.common.checks import check_installed
from sb3_bn_ddpg.saving.whole_files import check_pickle

Array = NDArray[Any]
Dataset = Any
"""
A ``minari.MinariDataset`` or its id, an SB3 ``ReplayBuffer`` or the path of a saved one, a dictionary of arrays or the path of
an ``.npz`` file of arrays. Arrays have the names ``observations``, ``actions``, ``rewards``, ``next_observations``,
``terminations`` and, if there are any, ``truncations``. Observations of Minari and of replay buffers that are dictionaries
become vectors, as by ``gymnasium.wrappers.FlattenObservation``.
"""

KEYS = ("observations", "actions", "rewards", "next_observations", "terminations")
OPTIONAL_KEYS = ("truncations",)
MINARI_ID = re.compile(r"([\w-][\w/-]*[\w-]/)?[\w-]+-v\d+")
ROWS_AT_ONCE = 4096
"""How many observations are compared at once: images would take eight times their memory."""


@dataclass(frozen=True, repr=False)
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
    :param flattened_from: The space of the dictionaries that observations were made of, if they were
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
    flattened_from: spaces.Dict | None = None

    def __repr__(self) -> str:
        return f"{len(self.rewards)} transitions"  # not the arrays

    def digest(self) -> str:
        """
        :return: A word that is another one for other transitions
        """
        arrays = (self.observations, self.actions, self.rewards, self.next_observations, self.terminations, self.truncations)
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(b"None" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()[:8]


def transitions_of(dataset: Dataset) -> Transitions:
    """
    :param dataset: See :data:`Dataset`
    :return: Its transitions, and its spaces if it knows them
    :raises ValueError: if it is empty, or of none of these kinds
    :raises ImportError: if the package minari is missing and needed (the extra ``offline``)
    """
    is_file = isinstance(dataset, str) and any(pathlib.Path(name).is_file() for name in (dataset, f"{dataset}.pkl"))
    if isinstance(dataset, str) and MINARI_ID.fullmatch(dataset) and not is_file:
        dataset = _minari_dataset(dataset)
    if isinstance(dataset, (str, pathlib.Path)):
        dataset = _file_of_arrays(dataset) if pathlib.Path(dataset).suffix == ".npz" else _saved_buffer(dataset)
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
            f"or the path of one, or a dictionary of arrays, or the path of an .npz file, with the keys {', '.join(KEYS)}"
        )
    if len(data.rewards) == 0:
        raise ValueError("`dataset` without transitions is not allowed: it must hold at least one")
    return data


def starts_elsewhere(observations: Array, next_observations: Array) -> NDArray[np.bool_]:
    """
    :param observations: Of N transitions, in order, of shape ``(N, ...)``
    :param next_observations: Likewise
    :return: After which of them the next one starts from another state than it led to, but for rounding, of shape ``(N,)``.
        The last one has no next one.
    """
    n = len(observations)
    elsewhere = np.zeros(n, dtype=bool)
    for start in range(0, n - 1, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, n - 1))
        led_to = next_observations[rows].reshape(rows.stop - start, -1).astype(np.float64)
        begun_from = observations[start + 1 : rows.stop + 1].reshape(rows.stop - start, -1)
        elsewhere[rows] = (np.abs(begun_from - led_to) > 1e-6 * (1 + np.abs(led_to))).any(axis=1)
    return elsewhere


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
            f"`dataset={dataset_id!r}` is not allowed: it cannot be loaded from this machine, {_in_one_line(error)}. "
            f"`minari list local` shows what can; `minari download {dataset_id}` fetches a published one"
        ) from error


def _of_minari(dataset: Any) -> Transitions:
    """
    :param dataset: A ``MinariDataset``
    :return: Its transitions
    :raises ValueError: if it cannot be read, holds no episode, or its observations or actions are no arrays
    """
    space = dataset.observation_space
    parts: dict[str, list[Array]] = {name: [] for name in (*KEYS, *OPTIONAL_KEYS)}
    for episode in _episodes(dataset):
        observations = _flattened(space, episode.observations, n_leading=1)
        if not isinstance(observations, np.ndarray) or not isinstance(episode.actions, np.ndarray):
            raise ValueError(
                f"`dataset` with observations of {space} and actions of {dataset.action_space} is not allowed: they must be "
                "arrays, or observations a dictionary of arrays"
            )
        if len(observations) != len(episode.rewards) + 1:
            raise ValueError(
                f"`dataset` with an episode {episode.id} of {len(episode.rewards)} steps and {len(observations)} "
                "observations is not allowed: there must be one observation more"
            )
        terminations, truncations = (np.array(flags, dtype=bool) for flags in (episode.terminations, episode.truncations))
        truncations[-1:] |= ~terminations[-1:]  # an episode ends where its record does
        parts["observations"].append(observations[:-1])
        parts["next_observations"].append(observations[1:])
        for name, array in dict(
            actions=episode.actions, rewards=episode.rewards, terminations=terminations, truncations=truncations
        ).items():
            parts[name].append(np.asarray(array))
    if not parts["rewards"]:
        raise ValueError("`dataset` without episodes is not allowed: it must hold at least one")
    arrays: dict[str, Any] = {name: np.concatenate(part) for name, part in parts.items()}
    return Transitions(**arrays, **_about_observations(space), action_space=dataset.action_space)


def _episodes(dataset: Any) -> Iterator[Any]:
    """
    :param dataset: A ``MinariDataset``
    :return: Its episodes
    :raises ValueError: if they cannot be read
    """
    try:
        yield from dataset.iterate_episodes()
    except Exception as error:  # whatever the parser of its format makes of a damaged file
        raise ValueError(
            f"`dataset` {dataset.id!r} is not allowed: its episodes cannot be read, {type(error).__name__}: "
            f"{_in_one_line(error)}. Its files are damaged or incomplete: download or record it again"
        ) from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def _file_of_arrays(path: str | pathlib.Path) -> dict[str, Array]:
    """
    :param path: An ``.npz`` file
    :return: Its arrays by name
    :raises ValueError: if there is no such file
    :raises FileError: if it is truncated, is no ``.npz`` file, or holds pickled objects
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"`dataset={str(path)!r}` is not allowed: there is no file {path}")
    with clear_errors(path), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


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
    :param buffer: A replay buffer
    :return: Its transitions, the oldest first, those of each environment after each other, with the rewards as they came. A
        reset that cut an episode off between two of them truncates it. Those of a dataset beside new ones come first.
    :raises ValueError: if it keeps its observations in a way of its own
    """
    if not isinstance(getattr(buffer, "observations", None), (np.ndarray, dict)):
        raise ValueError(f"`dataset` of type {type(buffer).__name__} is not allowed: its observations must be arrays")
    if buffer.optimize_memory_usage:
        # The next observation is the next row's, which the newest transition has overwritten if the buffer is full
        rows = (np.arange(buffer.pos + 1, buffer.pos + buffer.buffer_size) if buffer.full else np.arange(buffer.pos)) % (
            buffer.buffer_size
        )
        next_rows, next_observations = (rows + 1) % buffer.buffer_size, buffer.observations
    else:
        rows = (np.arange(buffer.size()) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
        next_rows, next_observations = rows, buffer.next_observations

    def by_environment(array: Array) -> Array:
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    observations, next_observations = (
        by_environment(_flattened(buffer.observation_space, _rows_of(arrays, its_rows), n_leading=2))
        for arrays, its_rows in ((buffer.observations, rows), (next_observations, next_rows))
    )
    dones = by_environment(buffer.dones[rows]) != 0
    timeouts = by_environment(buffer.timeouts[rows]) != 0
    truncations = dones & timeouts | starts_elsewhere(observations, next_observations) & ~dones
    if len(rows):  # of each environment, the last episode need not have ended
        truncations.reshape(buffer.n_envs, -1)[:, -1] |= ~dones.reshape(buffer.n_envs, -1)[:, -1]
    arrays = dict(
        observations=observations,
        actions=by_environment(buffer.actions[rows]),
        rewards=by_environment(buffer.rewards[rows]) / np.float32(getattr(buffer, "reward_factor", 1.0)),
        next_observations=next_observations,
        terminations=dones & ~timeouts,
        truncations=truncations,
    )
    if isinstance(stored := getattr(buffer, "dataset", None), ReplayBuffer):  # beside which these are the new ones
        before = _of_buffer(stored)
        arrays = {name: np.concatenate([getattr(before, name), array]) for name, array in arrays.items()}
    about = _about_observations(buffer.observation_space)
    return Transitions(**arrays, are_scaled=True, action_space=buffer.action_space, **about)


def _rows_of(arrays: Any, rows: Array) -> Any:
    """
    :param arrays: An array, or a dictionary of arrays
    :param rows: Numbers of rows
    :return: The same of these rows
    """
    return {key: array[rows] for key, array in arrays.items()} if isinstance(arrays, dict) else arrays[rows]


def _flattened(space: spaces.Space[Any], observations: Any, n_leading: int) -> Any:
    """
    :param space: The space of observations
    :param observations: Many of them: an array, or a dictionary of arrays, or of dictionaries
    :param n_leading: How many dimensions of an array count observations
    :return: Of a dictionary, one array of vectors in the space's order, as ``FlattenObservation`` makes them; else what it was
    """
    if not isinstance(space, spaces.Dict):
        return observations
    if not _is_of_boxes(space):
        raise ValueError(f"`dataset` with observations of {space} is not allowed: its entries must be arrays of numbers (Box)")
    parts = [_flattened(entry, observations[key], n_leading) for key, entry in space.spaces.items()]
    return np.concatenate([part.reshape(*part.shape[:n_leading], -1) for part in parts], axis=n_leading)


def _about_observations(space: spaces.Space[Any]) -> dict[str, Any]:
    """
    :param space: The space of a dataset's observations
    :return: What :class:`Transitions` keep of it
    """
    if isinstance(space, spaces.Dict):
        return dict(observation_space=spaces.flatten_space(space), flattened_from=space)
    return dict(observation_space=space)


def check_order(data: Transitions, env: Any) -> None:
    """
    Check that the environment's wrapper and this file put the entries of dictionaries into one order. They need not: Gymnasium
    sorts those of a dictionary, but not those that are given to ``spaces.Dict`` by keywords; Minari sorts all.

    :param data: Transitions
    :param env: The environment, or a vectorised one. Where it cannot be looked into, nothing is checked.
    :raises ValueError: if the orders differ
    """
    while hasattr(env, "venv"):
        env = env.venv
    env = env.envs[0] if getattr(env, "envs", None) else env
    while data.flattened_from is not None and isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.FlattenObservation) and isinstance(env.env.observation_space, spaces.Dict):
            theirs, ours = _names(data.flattened_from), _names(env.env.observation_space)
            if theirs != ours:
                raise ValueError(
                    f"`dataset` with the entries {', '.join(theirs)} in its observations is not allowed: they must be those "
                    f"of the environment, {', '.join(ours)}, in this order (`spaces.Dict` sorts those of a dictionary)"
                )
        env = env.env


def _names(space: spaces.Dict) -> list[str]:
    """
    :param space: A space of dictionaries
    :return: The names of its entries in its order, those in inner dictionaries behind the outer name
    """
    names = []
    for name, entry in space.spaces.items():
        names += [f"{name}/{inner}" for inner in _names(entry)] if isinstance(entry, spaces.Dict) else [name]
    return names


def _is_of_boxes(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(_is_of_boxes(entry) for entry in space.spaces.values())
    return isinstance(space, spaces.Box)


def _of_arrays(arrays: Mapping[str, Any]) -> Transitions:
    """
    :param arrays: Arrays by name
    :return: The transitions
    """
    arrays = {name: value for name, value in arrays.items() if value is not None}
    names = {*arrays}
    if missing := sorted({*KEYS} - names):
        raise ValueError(
            f"`dataset` without {', '.join(missing)} is not allowed: it must have the keys {', '.join(KEYS)}, and has "
            f"{', '.join(sorted(map(str, names))) or 'none'}"
        )
    if unknown := sorted(map(str, names - {*KEYS, *OPTIONAL_KEYS})):
        raise ValueError(
            f"`dataset` with {', '.join(unknown)} is not allowed: its keys must be {', '.join((*KEYS, *OPTIONAL_KEYS))}"
        )
    values: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    lengths = {name: len(value) if value.ndim else 0 for name, value in values.items()}
    if len({*lengths.values()}) > 1:
        raise ValueError(f"`dataset` with arrays of the lengths {lengths} is not allowed: they must have one length")
    return Transitions(**values)
