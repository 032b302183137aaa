"""
Taking the state out of vectorised environments and putting it back, so that a training can go on in another process in the
middle of an episode. That is done where all of the state is known; elsewhere a new episode begins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_bn_ddpg.common.vec_env_layers import layers_of
from sb3_bn_ddpg.saving import known_environments as known
from sb3_bn_ddpg.saving.environment_levels import (
    EnvironmentState,
    LevelState,
    are_same,
    capture_environment,
    capture_level,
    chain_of,
    changed_parameters,
    compare,
    in_words,
    may_be_reset,
    name_of,
    names_of,
    restore_environment,
    restore_level,
    result_of,
)
from sb3_bn_ddpg.saving.known_environments import StateNotOfferedError
from sb3_bn_ddpg.saving.pickling import Place, pack, unpack

RESULT = "_bn_ddpg_result"
"""The attribute of an environment in a worker process through which a function's result comes back."""
KNOWN_BASES = (DummyVecEnv, SubprocVecEnv)
"""Vectorised environments without a state of their own between two steps"""
PROCESS_BOUND = ("venv", "class_attributes")
"""Attributes of a ``VecEnvWrapper`` that are no settings."""


@dataclass
class VecEnvState:
    """
    The state of a vectorised environment.

    :param num_envs: How many environments it has
    :param wrappers: Its wrappers, outermost first
    :param settings: For :func:`rebuild`: each wrapper's class and attributes, packed; None for one that is not known
    :param uses_processes: Whether the environments are in worker processes
    :param seeds: The seeds that its next reset uses, None if it has none
    :param environments: Its environments, None if they are out of reach
    :param not_offered: Why the training cannot go on in the middle of an episode, or None
    """

    num_envs: int
    wrappers: list[LevelState]
    settings: list[bytes | None]
    uses_processes: bool
    seeds: Any
    environments: list[EnvironmentState] | None
    not_offered: str | None


def capture(venv: VecEnv) -> VecEnvState:
    """
    Take the state out of a vectorised environment, which stays as it is.

    :param venv: The environment
    :return: Its state, as far as it is known
    """
    wrappers, base = _layers(venv)
    states = [capture_level(wrapper) for wrapper in wrappers]
    reasons = [reason for _, reason in states]
    environments: list[EnvironmentState] | None = None
    try:
        environments = _call_in_each(base, [capture_environment] * venv.num_envs)
        reasons += [environment.not_offered for environment in environments]
    except StateNotOfferedError as reason:
        reasons.append(str(reason))
    if type(base) not in KNOWN_BASES:
        reasons.append(f"the state of a {type(base).__name__} is not known")
    return VecEnvState(
        int(venv.num_envs),
        [state for state, _ in states],
        [_pack_settings(wrapper, wrappers, base) for wrapper in wrappers],
        isinstance(base, SubprocVecEnv),
        list(seeds) if isinstance(seeds := getattr(base, "_seeds", None), list) else None,
        environments,
        next(filter(None, reasons), None),
    )


def restore(venv: VecEnv, state: VecEnvState, new_episode: bool = False) -> str | None:
    """
    Put a state into a vectorised environment that is built as the captured one was. What is no state stays its own.

    :param venv: The environment, of as many environments
    :param state: The state
    :param new_episode: Whether a reset follows in any case, so that only what outlasts it counts
    :return: None if the environment is where the captured one was, else why a new episode must begin
    :raises ValueError: if it is built differently
    """
    wrappers, base = _layers(venv)
    names, expected = [name_of(wrapper) for wrapper in wrappers], [level.name for level in state.wrappers]
    if not are_same(names, expected):
        short = [[name.rpartition(".")[2] for name in each] for each in (names, expected)]
        raise ValueError(f"`env` with the wrappers {short[0]} is not allowed: the checkpoint's environment has {short[1]}")
    reason = "a new episode was asked for" if new_episode else state.not_offered
    of_wrappers = changed_parameters(wrappers, state.wrappers)
    if reason is None and type(base) not in KNOWN_BASES:
        reason = f"the state of a {type(base).__name__} is not known"
    environments = state.environments
    try:
        if environments is not None:  # all are looked at before one is changed
            compared = _call_in_each(base, [partial(compare, saved=saved) for saved in environments])
            others = [difference for is_same, difference in compared if not is_same]
            if reason is None and others:
                raise ValueError(
                    f"`env` is not allowed, it is not like the checkpoint's: {others[0]}. With "
                    "`new_episode=True` the training goes on with a new episode"
                )
            differences = [*(difference for _, difference in compared), of_wrappers]
            reason = reason or next(filter(None, differences), None)
            functions = [partial(restore_environment, saved=saved, reason=reason) for saved in environments]
            reason = next(filter(None, _call_in_each(base, functions)), None)
    except StateNotOfferedError as missing:  # out of reach, where they were not then
        reason = reason or str(missing)
    reason = reason or of_wrappers  # where the environments are out of reach
    for wrapper, saved in zip(wrappers, state.wrappers, strict=True):
        reason = restore_level(wrapper, saved, reason)
    if state.seeds is not None and hasattr(base, "_seeds"):
        # Setting a model up has seeded its environment, whose next reset must not start the generators anew
        base._seeds = list(state.seeds)
    return reason


def rebuild(state: VecEnvState | None) -> VecEnv:
    """
    Make a vectorised environment anew, from the ids that its environments were made from.

    :param state: The state of the old one, None if it cannot be read
    :return: A new one, still to be given the state
    :raises ValueError: if they were not made from ids, or something was put around or into them afterwards
    """
    if state is None:
        raise ValueError(
            "`env=None` is not allowed: the state of the checkpoint's environment cannot be read, pass one like it"
        )
    environments = state.environments or []
    packed_specs = [environment.spec for environment in environments]
    if any(packed is None for packed in [*state.settings, *packed_specs]) or not environments:
        raise ValueError("`env=None` is not allowed: the checkpoint's environment was not made from an id, pass one like it")
    specs = [unpack(packed) for packed in packed_specs if packed is not None]
    make_env: list[Callable[[], gym.Env[Any, Any]]] = [partial(_make_monitored, spec) for spec in specs]
    venv: VecEnv = SubprocVecEnv(make_env) if state.uses_processes else DummyVecEnv(make_env)
    made = _call_in_each(venv, [names_of] * venv.num_envs)
    expected = [[level.name for level in environment.levels] for environment in environments]
    if not all(map(are_same, made, expected)):
        venv.close()
        raise ValueError(
            f"`env=None` is not allowed: from their ids, environments are made that are built of {made}, the checkpoint's are "
            f"of {expected}: pass one like it"
        )
    for number, packed in reversed(list(enumerate(state.settings))):
        assert packed is not None
        levels_below = _layers(venv)
        objects: dict[Place, Any] = dict.fromkeys((level,) for level in range(number + 1))
        # Places count from the outermost wrapper: those above this one do not exist yet, and it does not refer to them
        objects |= {(number + 1 + index,): level for index, level in enumerate([*levels_below[0], levels_below[1]])}
        wrapper_class, attributes = unpack(packed, objects)
        wrapper = wrapper_class.__new__(wrapper_class)
        VecEnvWrapper.__init__(wrapper, venv)
        vars(wrapper).update(attributes)
        venv = wrapper
    return venv


def without_wrappers(venv: VecEnv) -> Any:
    """
    :param venv: A vectorised environment
    :return: What its wrappers wrap, which may be no ``VecEnv`` at all
    """
    return _layers(venv)[1]


def allows_resets(venv: VecEnv) -> bool:
    """
    :param venv: A vectorised environment
    :return: Whether it is known that its environments can be reset in the middle of an episode
    """
    try:
        _, base = _layers(venv)
        return all(_call_in_each(base, [may_be_reset] * venv.num_envs))
    except StateNotOfferedError:
        return False


def pack_with_references(thing: Any, model: BaseAlgorithm) -> bytes:
    """
    :param thing: An object that may refer to a model, its environment, wrappers and single environments, and what is in them
    :param model: The model
    :return: The object without those, for :func:`unpack_with_references`
    :raises Exception: if it cannot be pickled or read back
    """
    return pack(thing, {place: target for place, target in _targets(model).items() if target is not thing})


def unpack_with_references(packed: bytes, model: BaseAlgorithm) -> Any:
    """
    :param packed: An object of :func:`pack_with_references`
    :param model: A model that is built as the one then was
    :return: The object, which refers to this one
    """
    return unpack(packed, _targets(model))


def _make_monitored(spec: Any) -> gym.Env[Any, Any]:
    """As SB3 wraps the environments that it makes."""
    return Monitor(gym.make(spec))


def _layers(venv: Any) -> tuple[list[VecEnvWrapper], Any]:
    """
    :param venv: A vectorised environment
    :return: Its wrappers, outermost first, and what they wrap, which may be no ``VecEnv`` at all
    """
    *wrappers, base = layers_of(venv)
    return wrappers, base


def _targets(model: BaseAlgorithm) -> dict[Place, Any]:
    """What may be referred to: a model, the levels of its environment, and objects that are attributes of these."""
    wrappers, base = _layers(model.env)
    chains = [chain_of(env) for env in base.envs] if isinstance(base, DummyVecEnv) else []
    targets: dict[Place, Any] = {}
    for number, level in enumerate([model, *wrappers, base, *chain.from_iterable(chains)]):
        targets[(number,)] = level
        for name, value in vars(level).items():
            if hasattr(value, "__dict__") and not isinstance(value, type):
                targets[number, name] = value
    return targets


# --- Calling functions where the environments are


class _Call:
    """
    A function to be called with an environment in a worker process of ``SubprocVecEnv``. Its workers only know a few
    commands, and the one that hands an environment to something sent from here is "is it wrapped by this class?".
    """

    def __init__(self, function: Callable[[Any], Any] | None) -> None:
        self.function = function

    def __instancecheck__(self, env: Any) -> bool:
        vars(env).pop(RESULT, None)
        if self.function is not None:
            setattr(env, RESULT, result_of(self.function, env))
        return True


def _call_in_each(base: Any, functions: list[Any]) -> list[Any]:
    """
    Call a function with each environment.

    :param base: A vectorised environment without wrappers
    :param functions: One function for each environment
    :return: Their results
    :raises StateNotOfferedError: if the environments are out of reach, or a function fails
    """
    if isinstance(base, DummyVecEnv):
        results = [result_of(function, env) for function, env in zip(functions, base.envs, strict=True)]
    elif isinstance(base, SubprocVecEnv):
        try:
            results = [_call_in_process(base, index, function) for index, function in enumerate(functions)]
        except (OSError, EOFError, NotImplementedError) as error:  # processes that died, or a class that does not allow it
            raise StateNotOfferedError(f"the environments' processes do not answer: {in_words(error)}") from error
    else:
        raise StateNotOfferedError(f"the environments of a {type(base).__name__} are out of reach")
    for index, (_, failure) in enumerate(results):
        if failure is not None:
            raise StateNotOfferedError(f"environment {index}: {failure}")
    return [result for result, _ in results]


def _call_in_process(base: SubprocVecEnv, index: int, function: Callable[[Any], Any]) -> Any:
    call: Any = _Call(function)
    if not base.env_is_wrapped(call, indices=[index])[0]:
        raise StateNotOfferedError("an environment in a worker process needs a wrapper, such as `Monitor`")
    result = base.get_attr(RESULT, indices=[index])[0]
    forget: Any = _Call(None)
    base.env_is_wrapped(forget, indices=[index])
    return result


def _pack_settings(wrapper: VecEnvWrapper, wrappers: list[VecEnvWrapper], base: Any) -> bytes | None:
    """A wrapper's class and attributes, None if its class is not known or they cannot be packed."""
    if known.class_name(wrapper) not in known.VEC_WRAPPERS:
        return None
    attributes = {name: value for name, value in vars(wrapper).items() if name not in PROCESS_BOUND}
    attributes |= {"results_writer": None} if "results_writer" in attributes else {}  # an open file
    levels = {(number,): level for number, level in enumerate([*wrappers, base])}
    settings: bytes | None = result_of(lambda each: pack((type(each), attributes), levels), wrapper)[0]
    return settings
