"""Python in hyperparameter files: expressions, and the names of classes. Read as RL Zoo reads them."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from sb3_bn_ddpg.common.atomic_files import FileError

NAMES = {
    "HerReplayBuffer": HerReplayBuffer,
    "RMSpropTFLike": RMSpropTFLike,
    "gym": gym,
    "nn": nn,
    "np": np,
    "sb3": sb3,
    "spaces": spaces,
    "th": th,
}
"""What an expression may name without importing it"""


def evaluated(file: Path, key: str, value: Any) -> Any:
    """
    :param file: The hyperparameter file
    :param key: The hyperparameter
    :param value: Its value, an expression if it is a word
    :return: The value of the expression, or the value as it is
    :raises FileError: if the expression fails
    """
    if not isinstance(value, str):
        return value
    try:
        return eval(value, dict(NAMES))
    except Exception as error:
        raise FileError(file, f"has no usable `{key}`: {value!r} gives {type(error).__name__}: {error}") from error


def class_of(file: Path, key: str, name: Any) -> Any:
    """
    :param file: The hyperparameter file
    :param key: The hyperparameter
    :param name: The full name of a class or function, or the class
    :return: The class or function
    :raises FileError: if there is none of that name
    """
    if not isinstance(name, str):
        return name
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (AttributeError, ImportError, ValueError) as error:
        raise FileError(file, f"has no usable `{key}`: {name!r} gives {type(error).__name__}: {error}") from error


def classes_of(file: Path, key: str, value: Any) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """
    :param file: The hyperparameter file
    :param key: The hyperparameter
    :param value: None, a name, a mapping from one name to keyword arguments, or a list of these
    :return: The classes and their arguments
    :raises FileError: if one is none of these
    """
    found = []
    for each in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(each, dict) and len(each) != 1:
            raise FileError(
                file, f"has no usable `{key}`: {each!r} must map one name to its arguments (look at the indentation)"
            )
        name, arguments = next(iter(each.items())) if isinstance(each, dict) else (each, {})
        found.append((class_of(file, key, name), dict(arguments or {})))
    return found


def wrapper_of(file: Path, key: str, value: Any) -> Callable[[Any], Any] | None:
    """
    :param file: The hyperparameter file
    :param key: The hyperparameter
    :param value: As for :func:`classes_of`
    :return: What wraps an environment in all of them, the first one innermost; None if there are none
    """
    wrappers = classes_of(file, key, value)

    def wrap(env: Any) -> Any:
        for wrapper, arguments in wrappers:
            env = wrapper(env, **arguments)
        return env

    return wrap if wrappers else None
