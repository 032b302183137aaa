"""A dataset as a replay buffer of exactly the transitions that are given, whichever form they have."""

import warnings
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.datasets.transitions import Array, Dataset, Transitions, starts_elsewhere, transitions_of

RewardScaling = float | Literal["return_range"] | None
"""What rewards are multiplied by: a number > 0, or 1000 / (largest - smallest return of an episode), as IQL's authors do."""

RETURN_RANGE = 1000.0
"""What ``"return_range"`` makes of the distance between the largest and the smallest return."""
OUTSIDE = 1e-3
"""How far actions may lie outside of their space, in units of its half width: rounding. They are clipped to it."""
ROUNDING = 1e-6
"""Returns that differ by no more than this, in units of an episode's absolute rewards, are equal but for rounding."""


class DatasetBuffer(NStepReplayBuffer):
    """
    A replay buffer made of a dataset. The parameters are those of SB3's, but of single steps unless ``n_steps`` is set.

    :ivar reward_factor: What the rewards were multiplied by
    :ivar reward_scaling: The argument of which that was made; unknown in the files of older versions
    :ivar has_discounts: Whether samples of single steps have discounts, too, as SB3's buffer of several steps gives them: for
        joining them with its samples
    """

    reward_factor: float = 1.0
    reward_scaling: RewardScaling | Literal["unknown"] = "unknown"
    has_discounts: bool = False

    def __init__(self, *args: Any, n_steps: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, n_steps=n_steps, **kwargs)

    def _get_samples(self, batch_inds: Array, env: VecNormalize | None = None) -> ReplayBufferSamples:
        # Of single steps as SB3's buffer of single steps, which has no discounts
        kind = NStepReplayBuffer if self.n_steps > 1 or self.has_discounts else ReplayBuffer
        return kind._get_samples(self, batch_inds, env)


def dataset_buffer(
    dataset: Dataset,
    observation_space: spaces.Space[Any],
    action_space: spaces.Box,
    device: th.device | str = "cpu",
    reward_scaling: RewardScaling = None,
    action_limit: float = 1.0,
) -> DatasetBuffer:
    """
    Make a replay buffer of a dataset, of just its size. The buffer's samples end (``dones``) where an episode terminated, and
    not where it was cut off.

    :param dataset: See :data:`Dataset`. The file of a replay buffer runs pickled code: name only files that you trust.
    :param observation_space: Observation space of the environment
    :param action_space: Its action space. Actions outside of it are refused, but for rounding.
    :param device: Device of the samples
    :param reward_scaling: See :data:`RewardScaling`
    :param action_limit: Actions, scaled to [-1, 1], are clipped to plus and minus this, in (0, 1]
    :return: A full replay buffer. Actions are scaled to [-1, 1], observations and rewards are in float32 (images in their own
        type)
    :raises ValueError: if the dataset is empty, is of other spaces, or holds numbers that are not finite or that the space's
        type cannot hold
    :raises ImportError: if the package minari is missing and needed (the extra ``offline``)
    """
    check_number("action_limit", action_limit, low=0, low_open=True, high=1)
    data = transitions_of(dataset)
    _check_spaces(data, observation_space, action_space)
    n, obs_shape, is_image = len(data.rewards), observation_space.shape, is_image_space(observation_space)
    assert obs_shape is not None
    assert action_space.shape is not None
    # One-hot and discrete observations keep the shape in which SB3 stores them
    stored_shape = obs_shape or (1,)
    shapes = dict(
        observations=(n, *obs_shape),
        next_observations=(n, *obs_shape),
        actions=(n, *action_space.shape),
        rewards=(n,),
        terminations=(n,),
        truncations=(n,),
    )
    arrays: dict[str, Array] = {}
    for name, shape in shapes.items():
        array = getattr(data, name)
        if array is None:
            continue
        array = np.asarray(array)
        if is_image and name in ("observations", "next_observations"):
            array = _channels_first(array, shape)
        if (name == "actions" and data.are_scaled) or name in ("rewards", "terminations", "truncations"):
            # SB3 keeps actions flat, and many files have a column of rewards
            shape = (n, int(np.prod(shape[1:], dtype=int))) if name == "actions" else shape
            array = array.reshape(shape) if array.size == np.prod(shape, dtype=int) else array
        is_stored = name in ("observations", "next_observations") and array.shape == (n, *stored_shape)
        if array.dtype.kind not in "fiub" or (array.shape != shape and not is_stored):
            raise ValueError(
                f"`dataset` with {name} of shape {array.shape} and type {array.dtype} is not allowed: they must be numbers of "
                f"shape {shape}"
            )
        _check_finite(name, array)
        if name in ("terminations", "truncations"):
            _check_flags(name, array)
        arrays[name] = array
    actions = arrays["actions"].reshape(n, -1).astype(np.float32)
    if not data.are_scaled:
        actions = _scaled(actions, action_space)
    if (largest := float(np.abs(actions).max())) > 1 + OUTSIDE:
        raise ValueError(
            f"`dataset` with actions outside of {action_space} is not allowed: scaled to [-1, 1], they reach {largest:.4g}. "
            "If the environment clips them, clip them to the space"
        )
    terminations, truncations = arrays["terminations"] != 0, arrays.get("truncations")
    ends = episode_ends(arrays["observations"], arrays["next_observations"], terminations, truncations)
    rewards = arrays["rewards"].astype(np.float64)
    factor = reward_factor(rewards, ends, reward_scaling)
    rewards = factor * rewards

    buffer = DatasetBuffer(n, observation_space, action_space, device=device)
    buffer.reward_factor, buffer.reward_scaling = factor, reward_scaling
    for name in ("observations", "next_observations"):
        setattr(buffer, name, _in_type_of(observation_space, name, arrays[name]).reshape(n, 1, *stored_shape))
    buffer.actions = actions.clip(-action_limit, action_limit)[:, np.newaxis]
    buffer.rewards = _in_float32("rewards", rewards)[:, np.newaxis]
    # Samples have dones * (1 - timeouts): an end that is not a terminal state is no end to them
    buffer.dones = ends.astype(np.float32)[:, np.newaxis]
    buffer.timeouts = (ends & ~terminations).astype(np.float32)[:, np.newaxis]
    buffer.pos, buffer.full = 0, True
    return buffer


def episode_ends(observations: Array, next_observations: Array, terminations: Array, truncations: Array | None) -> Array:
    """
    :param observations: Of N transitions, in order
    :param next_observations: Likewise
    :param terminations: Where an episode terminated, of shape ``(N,)``
    :param truncations: Where it was cut off. If None, that is wherever the next transition starts from another state.
    :return: Where an episode ends, of shape ``(N,)``. The last transition is an end in any case.
    :raises ValueError: if a transition is no end, but the next one starts from another state
    """
    is_elsewhere = starts_elsewhere(observations, next_observations)
    ends: Array = terminations | (is_elsewhere if truncations is None else truncations != 0)
    if truncations is None and 2 * (n_elsewhere := (is_elsewhere & ~terminations).sum()) > len(ends):
        warnings.warn(
            f"`dataset` has no truncations, and after {n_elsewhere} of its {len(ends)} transitions the next one starts from "
            "another state, so each of these is taken as the end of an episode: are they in the order in which they happened?",
            stacklevel=2,
        )
    if (is_lost := is_elsewhere & ~ends).any():
        raise ValueError(
            f"`dataset` without some of its ends is not allowed: after {is_lost.sum()} of {len(ends)} transitions, the first "
            f"of them number {np.argmax(is_lost)}, the next one starts from another state, though no termination or "
            "truncation is there. Set `truncations`, or leave all of them out: an episode then ends wherever the next "
            "transition starts elsewhere"
        )
    ends[-1] = True
    return ends


def episode_returns(rewards: Array, ends: Array) -> Array:
    """
    :param rewards: Rewards, of shape ``(N,)``
    :param ends: Where an episode ends, of shape ``(N,)``
    :return: The return of each episode
    """
    starts = np.append(0, np.flatnonzero(ends)[:-1] + 1)
    returns: Array = np.add.reduceat(rewards, starts)
    return returns


def reward_factor(rewards: Array, ends: Array, reward_scaling: RewardScaling) -> float:
    """
    :param rewards: Rewards, of shape ``(N,)``
    :param ends: Where an episode ends, of shape ``(N,)``
    :param reward_scaling: See :data:`RewardScaling`
    :return: What rewards are multiplied by
    :raises ValueError: if it is ``"return_range"`` and all episodes have the same return
    """
    if reward_scaling is None:
        return 1.0
    check_number("reward_scaling", reward_scaling, low=0, low_open=True, words=("return_range",))
    if reward_scaling != "return_range":
        return float(reward_scaling)
    returns = episode_returns(rewards, ends)
    distance = float(returns.max() - returns.min())
    if distance <= ROUNDING * episode_returns(np.abs(rewards), ends).max():
        raise ValueError(
            f"`reward_scaling='return_range'` is not allowed with a dataset whose episodes all have the return "
            f"{returns[0]:.4g} ({len(returns)} of them): it must be a number, or None"
        )
    return RETURN_RANGE / distance


# --- Checks


def _check_spaces(data: Transitions, observation_space: spaces.Space[Any], action_space: spaces.Box) -> None:
    """
    :param data: Transitions
    :param observation_space: Observation space of the environment
    :param action_space: Its action space
    :raises ValueError: if the dataset knows that its spaces are others
    """
    if isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"`env` with the observation space {observation_space} is not allowed: it must not be a dictionary. Wrap it into "
            "`gymnasium.wrappers.FlattenObservation`, which makes vectors of them, as is made of a dataset's dictionaries"
        )
    for name, ours, its in (
        ("observation", observation_space, data.observation_space),
        ("action", action_space, data.action_space),
    ):
        if its is None:
            continue
        is_same = type(its) is type(ours) and its.shape == ours.shape
        if not is_same and is_image_space(ours) and is_image_space(its):  # SB3 puts the channels first
            assert its.shape is not None
            is_same = ours.shape == (its.shape[-1], *its.shape[:-1])
        if is_same and isinstance(ours, spaces.Box) and isinstance(its, spaces.Box) and name == "action":
            # They say how actions are scaled
            is_same = np.allclose(ours.low, its.low) and np.allclose(ours.high, its.high)
        if not is_same:
            raise ValueError(f"`dataset` with the {name} space {its} is not allowed: it must be the environment's, {ours}")


def _channels_first(images: Array, shape: tuple[int, ...]) -> Array:
    """
    :param images: Images, of shape ``(N, ...)``
    :param shape: The shape that they must have, ``(N, channels, height, width)``
    :return: The images; with the last dimension before the others if that makes them so
    """
    is_last = images.shape != shape and images.shape == (shape[0], *shape[2:], shape[1])
    return np.moveaxis(images, -1, 1) if is_last else images


def _check_finite(name: str, array: Array) -> None:
    """
    :param name: Name of an array, for the message
    :param array: The array, of shape ``(N, ...)``
    :raises ValueError: if a number is not finite
    """
    is_bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if is_bad.any():
        raise ValueError(
            f"`dataset` with {name} that are not finite is not allowed: {is_bad.sum()} of {len(array)} transitions have some, "
            f"the first is number {np.argmax(is_bad)}"
        )


def _check_flags(name: str, array: Array) -> None:
    """
    :param name: Name of an array of flags, for the message
    :param array: The array
    :raises ValueError: if it holds anything but 0 and 1
    """
    is_bad = (array != 0) & (array != 1)
    if is_bad.any():
        raise ValueError(
            f"`dataset` with {name} of {array[is_bad].flat[0]} is not allowed: they must be 0 or 1, False or True"
        )


def _in_float32(name: str, array: Array) -> Array:
    """
    :param name: Name of an array, for the message
    :param array: Finite numbers
    :return: The same in float32
    :raises ValueError: if some are too large for it
    """
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    _check_finite(f"{name}, in float32,", single)
    return single


def _in_type_of(space: spaces.Space[Any], name: str, array: Array) -> Array:
    """
    :param space: Observation space
    :param name: Name of an array, for the message
    :param array: Observations, of shape ``(N, ...)``
    :return: The same in the type in which SB3 stores them: the space's, or float32
    :raises ValueError: if that would change integers, or some are not in a discrete space
    """
    dtype = np.dtype(space.dtype)
    if dtype.kind == "f":
        return _in_float32(name, array)
    with np.errstate(invalid="ignore"):
        cast: Array = array.astype(dtype)
    is_bad = cast != array
    if isinstance(space, spaces.Discrete):
        is_bad |= (array < space.start) | (array >= space.start + space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        is_bad |= (array < space.start) | (array >= space.start + space.nvec)
    elif isinstance(space, spaces.MultiBinary):
        is_bad |= (array != 0) & (array != 1)
    if is_bad.any():
        raise ValueError(
            f"`dataset` with {name} such as {array[is_bad].flat[0]} is not allowed: they must be in {_in_short(space)}, of "
            f"the type {dtype}"
        )
    return cast


def _in_short(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 100 else f"a {type(space).__name__} of shape {space.shape}"


def _scaled(actions: Array, space: spaces.Box) -> Array:
    """
    :param actions: Actions of an environment, of shape ``(N, action_dim)``
    :param space: Its action space
    :return: The actions scaled to [-1, 1]
    """
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    scaled: Array = 2 * (actions - low) / (high - low) - 1
    return scaled
