"""
Pickles for checkpoints: a class of the user's script is the script's own again when it is read, and an environment, another
model or its replay buffer never get in.
"""

import importlib.util
import io
import os
import pickle
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.vec_env import VecEnv

MAIN = ("__main__", "__mp_main__")
"""Names of the script's module: in its own process, and in worker processes that are not forked"""
NOT_THE_USERS = {
    *sys.stdlib_module_names,
    "gymnasium",
    "numpy",
    "sb3_bn_ddpg",
    "sb3_contrib",
    "stable_baselines3",
    "torch",
} - {*MAIN}
"""Packages whose classes are the same ones in every script"""
LARGE = (BaseAlgorithm, BaseBuffer)
SIMULATORS = (gym.Env, VecEnv)
Place = tuple[Any, ...]


class RefusedError(Exception):
    """An object that must not be in a checkpoint."""


class OwnsOutsideError(RefusedError):
    """An object that owns something outside of Python: a copy that is collected would give that back for the original too."""


def pack(
    thing: Any,
    objects: Mapping[Place, Any] | None = None,
    largest: int | None = None,
    allowed: tuple[type, ...] = (),
) -> bytes:
    """
    :param thing: An object
    :param objects: What is not pickled, but referred to by its place
    :param largest: The largest size allowed, in bytes (if None: any)
    :param allowed: Classes of models, replay buffers or environments that get in
    :return: The object for :func:`unpack`
    :raises Exception: if it cannot be pickled, cannot be read back, or is too large
    """
    stream = io.BytesIO()
    Pickler(stream, {id(target): place for place, target in (objects or {}).items()}, allowed).dump(thing)
    if largest is not None and stream.tell() > largest:
        raise RefusedError(f"{stream.tell():,} bytes are too many for a checkpoint, which takes {largest:,}")
    packed = stream.getvalue()
    # An object that passes unknown attributes on to another one is pickled well, but its pickle cannot be read
    unpack(packed, objects)
    return packed


def unpack(packed: bytes, objects: Mapping[Place, Any] | None = None) -> Any:
    """
    :param packed: An object of :func:`pack`
    :param objects: What is at each place
    :return: The object
    """
    return Unpickler(io.BytesIO(packed), objects or {}).load()


class _RefusingPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """
    :param file: An open file
    :param allowed: Classes of models, replay buffers or environments that get in
    """

    def __init__(self, file: Any, allowed: tuple[type, ...] = ()) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.allowed = allowed

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, self.allowed):
            if isinstance(obj, SIMULATORS) or hasattr(type(obj), "__del__"):
                raise OwnsOutsideError(f"a {type(obj).__name__} must not be in a checkpoint, as it may own a simulator")
            if isinstance(obj, LARGE):
                raise RefusedError(f"a {type(obj).__name__} must not be in a checkpoint of another one")
        return super().reducer_override(obj)


class Pickler(_RefusingPickler):
    """
    :param file: An open file
    :param places: What stands for objects, by their ``id``, that are referred to and not pickled
    :param allowed: Classes of models, replay buffers or environments that get in
    """

    def __init__(self, file: Any, places: Mapping[int, Place] | None = None, allowed: tuple[type, ...] = ()) -> None:
        super().__init__(file, allowed)
        self.places = places or {}
        self.has_met_user_code = False

    def persistent_id(self, obj: Any) -> Place | None:
        return self.places.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, types.FunctionType)):
            self.has_met_user_code |= str(obj.__module__).partition(".")[0] not in NOT_THE_USERS
            main = sys.modules["__main__"]
            if obj.__module__ in MAIN and _attribute(main, obj.__qualname__) is obj:
                return _of_script, (script_name(main), obj.__qualname__, _by_value(obj))
        return super().reducer_override(obj)  # refuses, too


class Unpickler(pickle.Unpickler):
    """
    :param file: An open file
    :param objects: What is at each place
    """

    def __init__(self, file: Any, objects: Mapping[Place, Any] | None = None) -> None:
        super().__init__(file)
        self.objects = objects or {}

    def persistent_load(self, pid: Any) -> Any:
        return self.objects[pid]

    def find_class(self, module_name: str, name: str) -> Any:
        main = sys.modules["__main__"]
        if _is_script(main, module_name) and (found := _attribute(main, name)) is not None:
            return found
        return super().find_class(module_name, name)


def script_name(main: types.ModuleType) -> str:
    """
    :param main: The module of the script that runs
    :return: The name by which other scripts import it; ``__main__`` in an interactive session
    """
    if getattr(main, "__spec__", None) is not None:  # python -m
        return str(main.__spec__.name)  # type: ignore[union-attr]
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _is_script(main: types.ModuleType, module_name: str) -> bool:
    """Whether a module is the script that runs, which others import by this name."""
    if module_name.rpartition(".")[2] != script_name(main).rpartition(".")[2]:
        return False
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):  # as of a package from whose folder the script is run
        return True
    try:
        return spec is None or os.path.samefile(str(spec.origin), str(getattr(main, "__file__", None)))
    except OSError:
        return False


def _attribute(module: types.ModuleType | None, qualified_name: str) -> Any:
    """The attribute of an attribute of a module, None if there is none."""
    found: Any = module
    for name in qualified_name.split("."):
        found = getattr(found, name, None)
    return found


def _by_value(obj: Any) -> bytes | None:
    """A class or function with all its code, None if that leads to what must not be in a checkpoint."""
    stream = io.BytesIO()
    try:
        _RefusingPickler(stream).dump(obj)
    except Exception:
        return None
    return stream.getvalue()


def _of_script(script: str, name: str, by_value: bytes | None) -> Any:
    """
    :param script: The name by which others import the script that wrote the checkpoint
    :param name: The name of a class or function in it
    :param by_value: A copy of it
    :return: That of the script that runs, or of the module that was then the script; the copy if there is neither
    """
    main = sys.modules["__main__"]
    imported = [module for key, module in list(sys.modules.items()) if key == script or key.endswith(f".{script}")]
    candidates = [main, *imported] if script_name(main) == script else [*imported, main]
    for module in candidates:
        if (found := _attribute(module, name)) is not None:
            return found
    if by_value is None:
        raise AttributeError(f"{name} of the script {script} is neither here nor could it be copied")
    return pickle.loads(by_value)
