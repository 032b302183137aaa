"""What compiled code is made of: the files and numbers by which kept code is told from that of changed ones."""

from collections.abc import Iterable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

Stamps = tuple[tuple[str, float, int], ...]


def stamps(files: Iterable[str]) -> Stamps:
    """
    :param files: Paths; what is no file, as the input of a console, is left out
    :return: Path, time of the last change and size of each
    """
    paths = [path for path in map(Path, sorted(set(files))) if path.is_file()]
    statuses = [(str(path), path.stat()) for path in paths]
    return tuple((path, status.st_mtime, status.st_size) for path, status in statuses)


def package_stamps() -> Stamps:
    """
    :return: Those of all files of the package
    """
    return stamps(map(str, Path(__file__).parents[1].rglob("*.py")))


AT_IMPORT = package_stamps()
"""Those when the package was imported, whose code a process has from then on."""


class Sources(NamedTuple):
    """
    :param files: Paths
    :param constants: Names and values of numbers, words and arrays, which a compiler takes for constants
    """

    files: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


def sources_of(function: FunctionType) -> Sources:
    """
    :param function: A function
    :return: What it is made of, with the functions that it calls
    """
    files, constants, seen = set(), set(), set()
    left: list[tuple[str, Any]] = [(function.__name__, function)]
    while left:
        name, value = left.pop()
        value = getattr(value, "py_func", value)  # of one that Numba compiles
        if isinstance(value, FunctionType) and value not in seen:
            seen.add(value)
            files.add(value.__code__.co_filename)
            left += [(each, value.__globals__.get(each)) for each in value.__code__.co_names]
        elif isinstance(value, ModuleType) and value.__spec__ is not None:
            files.add(value.__spec__.origin or "")
        elif isinstance(value, (int, float, complex, str, tuple, np.ndarray)):
            constants.add(f"{name}={value.tolist() if isinstance(value, np.ndarray) else value!r}")
    return Sources(tuple(sorted(files)), tuple(sorted(constants)))
