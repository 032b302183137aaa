"""
Taking the state out of vectorised environments and putting it back: wrappers, time limits, monitors, simulators and random
generators, so that a training can go on in another process in the middle of an episode.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

RESULT = "_bn_ddpg_result"
"""The attribute of an environment in a worker process through which a function's result comes back."""


PROCESS_BOUND = ("venv", "class_attributes")
"""Attributes of a ``VecEnvWrapper`` that are no state."""


class StateNotOfferedError(Exception):
    """The reason why an environment's state cannot be taken out of it."""


@dataclass
class VecEnvState:
    """
    The state of a vectorised environment.

    :param wrappers: Class and packed attributes of each of its ``VecEnvWrapper`` layers, outermost first; None for the
        attributes of one that does not offer them
    :param vec_env_class: The class below them
    :param seeds: The seeds that its next reset uses
    :param environments: The packed state of the environments of each process, or None if they do not offer it
    :param generators: The state of each environment's random generator, or None
    :param specs: What Gymnasium made each environment from, or None
    :param not_offered: Why something is None of what the middle of an episode needs
    """

    wrappers: list[tuple[type[VecEnvWrapper], bytes | None]]
    vec_env_class: type[VecEnv]
    seeds: Any
    environments: list[bytes] | None
    generators: list[Any]
    specs: list[Any]
    not_offered: str | None


def capture(venv: VecEnv) -> VecEnvState:
    """
    Take the state out of a vectorised environment, which stays as it is.

    :param venv: The environment
    :return: Its state, without the single environments' if they do not offer it
    """
    wrappers, base = _layers(venv)
    packed_wrappers: list[tuple[type[VecEnvWrapper], bytes | None]] = []
    environments, not_offered = None, None
    for wrapper in wrappers:  # one that does not offer its state takes that of no other with it
        packed = None
        try:
            packed = _pack([wrapper], PROCESS_BOUND, beside=[*wrappers, base])
        except StateNotOfferedError as reason:
            not_offered = str(reason)
        packed_wrappers.append((type(wrapper), packed))
    try:
        if isinstance(base, DummyVecEnv):  # together, so that what they share stays shared
            environments = [_pack_environments(*base.envs)]
        else:
            environments = _call_in_each(base, [_pack_environments] * base.num_envs)
    except StateNotOfferedError as reason:
        not_offered = str(reason)
    return VecEnvState(
        packed_wrappers,
        type(base),
        list(base._seeds),
        environments,
        _call_or_none(base, _generator_state),
        _call_or_none(base, _spec),
        not_offered,
    )


def restore(venv: VecEnv, state: VecEnvState) -> None:
    """
    Put a state into a vectorised environment that is built as the captured one was.

    :param venv: The environment, of as many environments
    :param state: The state
    :raises ValueError: if it is built differently
    """
    wrappers, base = _layers(venv)
    names, expected = [type(wrapper).__name__ for wrapper in wrappers], [cls.__name__ for cls, _ in state.wrappers]
    if names != expected:
        raise ValueError(f"`env` with the wrappers {names} is not allowed: the checkpoint's environment has {expected}")
    _unpack_wrappers(venv, state)
    try:
        if state.environments is not None and isinstance(base, DummyVecEnv):
            unpack = partial(_unpack_environments, packed=state.environments[0])
            _, error = _result(lambda envs: unpack(*envs), base.envs)
            if error is not None:
                raise StateNotOfferedError(error)
        elif state.environments is not None:
            _call_in_each(base, [partial(_unpack_environments, packed=packed) for packed in state.environments])
        elif all(state.generators):
            _call_in_each(base, [partial(_set_generator_state, saved=saved) for saved in state.generators])
    except StateNotOfferedError as reason:
        raise ValueError(f"`env` is not allowed, it is not like the checkpoint's: {reason}") from reason
    # Setting a model up has seeded its environment, whose next reset must not start the generators anew
    base._seeds = state.seeds


def rebuild(state: VecEnvState) -> VecEnv:
    """
    Make a vectorised environment anew, from the ids that its environments were made from.

    :param state: The state of the old one
    :return: A new one, still to be given the state
    :raises ValueError: if they were not made from ids, or something was put around or into them afterwards
    """
    if any(packed is None for _, packed in state.wrappers) or any(spec is None for spec in state.specs):
        raise ValueError("`env=None` is not allowed: the checkpoint's environment was not made from an id, pass one like it")
    make_env: list[Callable[[], gym.Env[Any, Any]]] = [partial(_make_monitored, spec) for spec in state.specs]
    venv: VecEnv = SubprocVecEnv(make_env) if issubclass(state.vec_env_class, SubprocVecEnv) else DummyVecEnv(make_env)
    made = _call_or_none(venv, _classes)
    expected = [names for packed in state.environments or () for names in pickle.loads(packed)[0]]
    if expected and made != expected:
        venv.close()
        raise ValueError(
            f"`env=None` is not allowed: from their ids, environments are made that are built of {made}, the checkpoint's are "
            f"of {expected}: pass one like it"
        )
    for wrapper_class, _ in reversed(state.wrappers):
        wrapper = wrapper_class.__new__(wrapper_class)
        VecEnvWrapper.__init__(wrapper, venv)
        venv = wrapper
    _unpack_wrappers(venv, state)
    return venv


def pack_with_references(thing: Any, venv: VecEnv) -> bytes:
    """
    :param thing: An object that may refer to the environment, its wrappers and its single environments
    :param venv: The environment
    :return: The object without those, for :func:`unpack_with_references`
    """
    stream = io.BytesIO()
    _Pickler(stream, _places(_levels(venv))).dump(thing)
    return stream.getvalue()


def unpack_with_references(packed: bytes, venv: VecEnv) -> Any:
    """
    :param packed: An object of :func:`pack_with_references`
    :param venv: An environment that is built as the one then was
    :return: The object, which refers to this one
    """
    return _Unpickler(io.BytesIO(packed), _levels(venv)).load()


def _make_monitored(spec: Any) -> gym.Env[Any, Any]:
    """As SB3 wraps the environments that it makes."""
    return Monitor(gym.make(spec))


def _layers(venv: VecEnv) -> tuple[list[VecEnvWrapper], VecEnv]:
    """
    :param venv: A vectorised environment
    :return: Its wrappers, outermost first, and what they wrap
    """
    wrappers = []
    while isinstance(venv, VecEnvWrapper):
        wrappers.append(venv)
        venv = venv.venv
    return wrappers, venv


def _levels(venv: VecEnv) -> list[Any]:
    """
    :param venv: A vectorised environment
    :return: Its wrappers, itself, and the wrappers of each of its environments if they are in this process
    """
    wrappers, base = _layers(venv)
    chains = [_chain(env) for env in base.envs] if isinstance(base, DummyVecEnv) else []
    return [*wrappers, base, *chain.from_iterable(chains)]


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
            setattr(env, RESULT, _result(self.function, env))
        return True


def _result(function: Callable[[Any], Any], env: Any) -> tuple[Any, str | None]:
    """The function's result and no error, or the error's message."""
    try:
        return function(env), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _call_in_each(base: VecEnv, functions: list[Any]) -> list[Any]:
    """
    Call a function with each environment.

    :param base: A vectorised environment without wrappers
    :param functions: One function for each environment
    :return: Their results
    :raises StateNotOfferedError: if the environments are out of reach, or a function fails
    """
    if isinstance(base, DummyVecEnv):
        results = [_result(function, env) for function, env in zip(functions, base.envs, strict=True)]
    elif isinstance(base, SubprocVecEnv):
        results = []
        for index, function in enumerate(functions):
            call: Any = _Call(function)
            if not base.env_is_wrapped(call, indices=[index])[0]:
                raise StateNotOfferedError("an environment in a worker process needs a wrapper, such as `Monitor`")
            results += base.get_attr(RESULT, indices=[index])
            forget: Any = _Call(None)
            base.env_is_wrapped(forget, indices=[index])
    else:
        raise StateNotOfferedError(f"the environments of a {type(base).__name__} are out of reach")
    for index, (_, error) in enumerate(results):
        if error is not None:
            raise StateNotOfferedError(f"environment {index}: {error}")
    return [result for result, _ in results]


def _call_or_none(base: VecEnv, function: Callable[[Any], Any]) -> list[Any]:
    """Call one function with each environment: a list of None if that is impossible."""
    try:
        return _call_in_each(base, [function] * base.num_envs)
    except StateNotOfferedError:
        return [None] * base.num_envs


def _unpack_wrappers(venv: VecEnv, state: VecEnvState) -> None:
    """Give the wrappers of a vectorised environment their attributes, as far as the state has them."""
    wrappers, base = _layers(venv)
    for wrapper, (_, packed) in zip(wrappers, state.wrappers, strict=True):
        if packed is not None:
            _unpack([wrapper], packed, PROCESS_BOUND, beside=[*wrappers, base])


# --- What is called


def _chain(env: gym.Env[Any, Any]) -> list[Any]:
    """An environment's wrappers, outermost first, and the environment."""
    levels: list[Any] = [env]
    while isinstance(levels[-1], gym.Wrapper):
        levels.append(levels[-1].env)
    return levels


def _classes(env: gym.Env[Any, Any]) -> list[str]:
    return _class_names(_chain(env))


def _class_names(levels: list[Any]) -> list[str]:
    classes = [type(level) for level in levels]
    # RL Zoo exchanges Gymnasium's time limit for a child with the same attributes in processes that import it
    classes = [cls.__base__ or cls if cls.__module__ == "rl_zoo3.gym_patches" else cls for cls in classes]
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in classes]


def _pack_environments(*envs: gym.Env[Any, Any]) -> bytes:
    chains = [_chain(env) for env in envs]
    return pickle.dumps(([_class_names(levels) for levels in chains], _pack([*chain.from_iterable(chains)], (RESULT,))))


def _unpack_environments(*envs: gym.Env[Any, Any], packed: bytes) -> None:
    all_names, attributes = pickle.loads(packed)
    chains = [_chain(env) for env in envs]
    for levels, names in zip(chains, all_names, strict=True):
        if _class_names(levels) != names:
            raise ValueError(f"it is built of {_class_names(levels)}, the checkpoint's of {names}")
    _unpack([*chain.from_iterable(chains)], attributes)


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


# --- Packing attributes


def _places(levels: list[Any]) -> dict[int, tuple[Any, ...]]:
    """Where those objects are that belong to the process, not to the state: the levels themselves, and open log files."""
    places: dict[int, tuple[Any, ...]] = {id(level): (number,) for number, level in enumerate(levels)}
    for number, level in enumerate(levels):
        for name, value in vars(level).items():
            if isinstance(value, ResultsWriter):
                places[id(value)] = (number, name)
    return places


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles attributes of environments; those that bring a reduced pickle of their own are taken whole."""

    def __init__(self, file: Any, places: dict[int, tuple[Any, ...]]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.places = places

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        return self.places.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        # EzPickle, the parent of Gymnasium's MuJoCo environments, would pickle the constructor's arguments only
        if isinstance(obj, (gym.Env, EzPickle)):
            return _new, (type(obj),), vars(obj), None, None, _set_attributes
        return super().reducer_override(obj)


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, levels: list[Any]) -> None:
        super().__init__(file)
        self.levels = levels

    def persistent_load(self, pid: Any) -> Any:
        level = self.levels[pid[0]]
        return level if len(pid) == 1 else vars(level).get(pid[1])


def _pack(levels: list[Any], hidden: tuple[str, ...], beside: list[Any] | None = None) -> bytes:
    """
    :param levels: Objects that refer to each other
    :param hidden: Attributes to leave out
    :param beside: All objects that they may refer to but for those in their attributes (if None: ``levels``)
    :return: Their attributes
    :raises StateNotOfferedError: if an attribute cannot be pickled
    """
    attributes = [{name: value for name, value in vars(level).items() if name not in hidden} for level in levels]
    stream = io.BytesIO()
    try:
        _Pickler(stream, _places(levels if beside is None else beside)).dump(attributes)
    except Exception as error:
        raise StateNotOfferedError(f"{type(levels[-1]).__name__} cannot be pickled: {error}") from error
    return stream.getvalue()


def _unpack(levels: list[Any], packed: bytes, hidden: tuple[str, ...] = (), beside: list[Any] | None = None) -> None:
    """
    :param levels: Objects of the same classes as the packed ones, in the same order
    :param packed: The attributes to give them
    :param hidden: Attributes that they keep
    :param beside: What stands for the objects that :func:`_pack` had beside them
    """
    attributes = _Unpickler(io.BytesIO(packed), levels if beside is None else beside).load()
    for level, values in zip(levels, attributes, strict=True):
        kept = {name: value for name, value in vars(level).items() if name in hidden}
        vars(level).clear()
        vars(level).update(values | kept)
