"""The state of single environments and each of their levels: what is called where they are, in worker processes too."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from sb3_bn_ddpg.saving import known_environments as known
from sb3_bn_ddpg.saving.known_environments import StateNotOfferedError
from sb3_bn_ddpg.saving.pickling import MAIN, RefusedError, pack, script_name, unpack

LARGEST_STATE = 2**24
"""Bytes of what an environment says or was made from. Whatever is larger is a table, and not where it is in an episode."""


@dataclass
class LevelState:
    """
    One level of an environment: the environment itself, or a wrapper.

    :param name: Its class
    :param state: Its state, packed; None if it is not known what all of it is
    :param lasting: What of a level that is not known its known parent class has, packed
    :param generators: The states of its spaces' random generators
    :param parameters: What it was made with
    """

    name: str
    state: bytes | None
    lasting: bytes | None
    generators: dict[str, list[Any]]
    parameters: dict[str, str]


@dataclass
class EnvironmentState:
    """
    A single environment.

    :param levels: Its wrappers, outermost first, and itself
    :param generator: The state of its random generator, or None
    :param spec: What Gymnasium made it from, packed, or None
    :param spec_id: Its id, or None
    :param not_offered: Why the state is not all of it, or None
    """

    levels: list[LevelState]
    generator: Any
    spec: bytes | None
    spec_id: str | None
    not_offered: str | None


def space_generators(space: spaces.Space[Any]) -> list[Any]:
    """
    :param space: A space
    :return: The states of its random generator and of those of the spaces in it
    """
    return [None if part._np_random is None else part._np_random.bit_generator.state for part in _parts(space)]


def set_space_generators(space: spaces.Space[Any], states: list[Any]) -> None:
    """
    :param space: A space
    :param states: What :func:`space_generators` returned for one like it
    """
    for part, state in zip(_parts(space), states, strict=True):
        if state is None:
            part._np_random = None  # type: ignore[assignment]  # as a new space has it
        else:
            part.np_random.bit_generator.state = state


def _parts(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    """A space and the spaces in it, each with a generator of its own."""
    inner = list(space.spaces.values()) if isinstance(space, spaces.Dict) else []
    return [space, *(part for child in inner for part in _parts(child))]


def chain_of(env: gym.Env[Any, Any]) -> list[Any]:
    """An environment's wrappers, outermost first, and the environment."""
    levels: list[Any] = [env]
    while isinstance(levels[-1], gym.Wrapper):
        levels.append(levels[-1].env)
    return levels


def capture_environment(env: gym.Env[Any, Any]) -> EnvironmentState:
    states = [capture_level(level) for level in chain_of(env)]
    made_from = env.unwrapped.spec
    spec = None
    try:
        # Gymnasium copies what it was made from when a wrapper is asked for it: not before it is known what that holds
        pack(made_from and made_from.kwargs, largest=LARGEST_STATE)
        if (complete := _spec(env)) is not None:
            spec = pack(complete, largest=LARGEST_STATE)
    except Exception:  # then it is not made anew
        spec = None
    return EnvironmentState(
        [state for state, _ in states],
        result_of(_generator_state, env)[0],
        spec,
        None if made_from is None else made_from.id,
        next((reason for _, reason in states if reason is not None), None),
    )


def capture_level(level: Any) -> tuple[LevelState, str | None]:
    """The state of one level, and why it is not all of it."""
    state, lasting, reason = None, None, None
    try:
        state = pack(known.get_state(level), largest=LARGEST_STATE if known.says_itself(level) else None)
    except Exception as error:
        reason = in_words(error)
        lasting, _ = result_of(lambda each: pack(known.get_lasting_state(each)), level)
    own_spaces = {name: value for name, value in vars(level).items() if isinstance(value, spaces.Space)}
    generators = {name: space_generators(space) for name, space in own_spaces.items()}
    parameters = result_of(known.parameters, level)[0] or {}
    return LevelState(name_of(level), state, lasting, generators, parameters), reason


def compare(env: gym.Env[Any, Any], saved: EnvironmentState) -> tuple[bool, str | None]:
    """
    :param env: An environment
    :param saved: The state of another one
    :return: Whether it is built of the same classes, and in what it differs, or None
    """
    names, expected = names_of(env), [level.name for level in saved.levels]
    if not are_same(names, expected):
        return False, f"it is built of {names}, the checkpoint's of {expected}"
    return True, changed_parameters(chain_of(env), saved.levels)


def changed_parameters(levels: Sequence[Any], saved: Sequence[LevelState]) -> str | None:
    """
    :param levels: Levels of an environment
    :param saved: The states of as many of the same classes
    :return: What the first of them was made with that the saved one was not, or None
    """
    for level, saved_level in zip(levels, saved, strict=True):
        now = known.parameters(level)
        changed = [
            f"`{name}` {then} then, {now[name]} now"
            for name, then in saved_level.parameters.items()
            if then != now.get(name, then)
        ]
        if changed:
            return f"the {type(level).__name__} was made with other parameters ({'; '.join(changed)[:300]})"
    return None


def restore_environment(env: gym.Env[Any, Any], saved: EnvironmentState, reason: str | None) -> str | None:
    """
    :param env: An environment
    :param saved: The state of one like it
    :param reason: Why a new episode begins, or None
    :return: The reason, or a new one
    """
    levels = chain_of(env)
    if are_same(names_of(env), [level.name for level in saved.levels]):
        for level, saved_level in reversed(list(zip(levels, saved.levels, strict=True))):
            reason = restore_level(level, saved_level, reason)
    if saved.generator is not None:
        _, error = result_of(partial(_set_generator_state, saved=saved.generator), env)
        reason = reason or error
    return reason


def restore_level(level: Any, saved: LevelState, reason: str | None) -> str | None:
    """
    :param level: A level of an environment
    :param saved: The state of one like it
    :param reason: Why a new episode begins, or None
    :return: The reason, or a new one: the level does not take its state
    """
    packed = saved.state if saved.state is not None else saved.lasting
    try:
        for name, states in saved.generators.items():
            if isinstance(space := vars(level).get(name), spaces.Space):
                set_space_generators(space, states)
        if packed is not None:
            known.set_state(level, unpack(packed), new_episode=reason is not None or saved.state is None)
    except Exception as error:
        return reason or f"a {type(level).__name__} does not take its state: {in_words(error)}"
    return reason


def names_of(env: gym.Env[Any, Any]) -> list[str]:
    return [name_of(level) for level in chain_of(env)]


def name_of(level: Any) -> str:
    """The name of a level's class, as other scripts see it if this one defined it."""
    name = known.class_name(level)
    module, _, rest = name.partition(".")
    if module not in MAIN:
        return name
    return f"{script_name(sys.modules['__main__'])}.{rest}"


def are_same(names: list[str], expected: list[str]) -> bool:
    """Whether classes are the same ones; a script is imported from a package by a longer name than its own."""
    return len(names) == len(expected) and all(
        name == other or name.endswith(f".{other}") or other.endswith(f".{name}")
        for name, other in zip(names, expected, strict=True)
    )


def may_be_reset(env: gym.Env[Any, Any]) -> bool:
    return all(level.allow_early_resets for level in chain_of(env) if isinstance(level, Monitor))


def _generator_state(env: gym.Env[Any, Any]) -> Any:
    generator: Any = env.unwrapped.np_random
    is_old = isinstance(generator, np.random.RandomState)  # as the DeepMind Control Suite has them
    return generator.get_state() if is_old else generator.bit_generator.state


def _set_generator_state(env: gym.Env[Any, Any], saved: Any) -> None:
    generator: Any = env.unwrapped.np_random
    if isinstance(generator, np.random.RandomState):
        generator.set_state(saved)
    else:
        generator.bit_generator.state = saved


def _spec(env: gym.Env[Any, Any]) -> Any:
    """What ``gym.make`` needs to make the environment again, below SB3's monitor; None if that is impossible."""
    inner = env.env if isinstance(env, Monitor) else env
    spec = inner.spec
    if not isinstance(env, Monitor) or spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
        return None
    return spec


def result_of(function: Callable[[Any], Any], env: Any) -> tuple[Any, str | None]:
    """The function's result and no error, or the error's message."""
    try:
        return function(env), None
    except Exception as error:
        return None, in_words(error)


def in_words(error: Exception) -> str:
    detail = " ".join(str(error).split())[:300]
    return detail if isinstance(error, (RefusedError, StateNotOfferedError)) else f"{type(error).__name__}: {detail}"
