"""Checks of spaces: what the replay buffers, preprocessing and networks cannot take is refused when the model is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import nn


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], policy: Any) -> None:
    """
    :param observation_space: The environment's observation space
    :param action_space: The environment's action space
    :param policy: The ``policy`` argument
    :raises ValueError: if they cannot be learned with
    """
    _check_action_space(action_space)
    _check_observation_space(observation_space)
    if policy == "MultiInputPolicy" and not isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"`policy={policy!r}` is not allowed with {observation_space}: it must be a `Dict`; "
            "MlpPolicy is for vectors, CnnPolicy for images"
        )


@contextmanager
def value_errors() -> Iterator[None]:
    """Turn what SB3 throws when it is set up with something that it does not support into a ``ValueError``."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        is_known = isinstance(error, (AssertionError, NotImplementedError)) or "Kernel size" in str(error)
        if not is_known:  # of the device, for instance
            raise
        raise ValueError(f"The model cannot be made: {error}") from error


def _check_action_space(action_space: spaces.Space[Any]) -> None:
    """
    :param action_space: The environment's action space
    :raises ValueError: if it is not a bounded ``Box`` of floating-point numbers
    """
    allowed = "a `Box` of at least one floating-point number with finite bounds, low < high"
    is_allowed = isinstance(action_space, spaces.Box) and action_space.low.size > 0 and action_space.low.dtype.kind == "f"
    if is_allowed:
        assert isinstance(action_space, spaces.Box)
        low, high = action_space.low, action_space.high
        # Their distance, by which actions are scaled, must be finite too
        is_allowed = bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
        with np.errstate(over="ignore", invalid="ignore"):
            is_allowed = is_allowed and bool(np.isfinite(high - low).all())
    if not is_allowed:
        raise ValueError(f"`env` with the action space {action_space} is not allowed: it must be {allowed}")


def _check_observation_space(space: spaces.Space[Any], in_dict: bool = False) -> None:
    """
    :param space: The environment's observation space, or an entry of it
    :param in_dict: Whether it is an entry
    :raises ValueError: if it is of another kind than SB3 supports, or holds no numbers
    """
    allowed = "a `Box` of at least one dimension and one number, `Discrete` and `MultiDiscrete` from 0 on, `MultiBinary`"
    if isinstance(space, spaces.Dict) and not in_dict:
        for key, entry in space.spaces.items():
            # The networks keep a module for each under its name
            if not key or "." in key or hasattr(nn.ModuleDict(), key):
                raise ValueError(
                    f"`env` with an observation {key!r} is not allowed: its name must not be empty, nor have dots, nor be "
                    "that of an attribute of `torch.nn.ModuleDict`"
                )
            _check_observation_space(entry, in_dict=True)
        is_allowed = len(space.spaces) > 0
    elif isinstance(space, spaces.Box):
        is_allowed = len(space.shape) > 0 and space.low.size > 0
    elif isinstance(space, spaces.MultiDiscrete):
        is_allowed = space.nvec.ndim == 1 and space.nvec.size > 0 and not np.any(space.start)
    elif isinstance(space, spaces.MultiBinary):
        is_allowed = len(space.shape) > 0 and int(np.prod(space.shape)) > 0
    else:
        is_allowed = isinstance(space, spaces.Discrete) and space.start == 0
    if not is_allowed:
        kinds = allowed if in_dict else f"{allowed}, or a `Dict` of these"
        raise ValueError(f"`env` with the observation space {space} is not allowed: it must be {kinds}")
