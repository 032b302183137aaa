"""How Numba compiles the engine's operations and the steps that are written on them."""

import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, cast

import numba

OPTIONS: dict[str, Any] = dict(error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
_has_warned = False


def compiled(function: Callable[..., Any], is_step: bool = False) -> Callable[..., Any]:
    """
    Compile at the first call, once a machine. Sums may be reordered; NaN and infinity stay what they are.

    :param function: The function
    :param is_step: Whether Python calls it, not only other compiled functions
    :return: The same, compiled
    """
    kernel: Any = numba.njit(**OPTIONS, no_cpython_wrapper=not is_step, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]
    try:
        kernel.enable_caching()
    except RuntimeError as reason:  # neither beside this file nor in the user's folder
        _say_that_nothing_is_kept(reason)
    else:
        # Compared before anything else of what is kept is read: that may hold classes which are no longer there
        kernel._cache._cache_file._version = (numba.__version__, _stamps())
        kernel._cache.load_overload = _or_nothing(kernel._cache.load_overload)
        kernel._cache.save_overload = _or_nothing(kernel._cache.save_overload)
    return cast(Callable[..., Any], kernel)


@cache
def _stamps() -> tuple[tuple[str, float, int], ...]:
    """
    :return: What changes with any file of the package. Numba looks only at the one that a function is in, though others are
        compiled into it, and would take what it has kept after a change of those
    """
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    statuses = [(str(path), path.stat()) for path in files]
    return tuple((path, status.st_mtime, status.st_size) for path, status in statuses)


def _or_nothing(use_cache: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Numba's cache, whose files may be unreadable, and whose disk may be full: it goes on without them."""

    def function(*args: Any) -> Any:
        try:
            return use_cache(*args)
        except (OSError, EOFError, pickle.UnpicklingError) as reason:
            _say_that_nothing_is_kept(reason)
            return None

    return function


def _say_that_nothing_is_kept(reason: Exception) -> None:
    """
    Warn, once a process.

    :param reason: What Numba says
    """
    global _has_warned
    if _has_warned:
        return
    _has_warned = True
    warnings.warn(
        f'Numba can keep no compiled code here, so `fast_update="compiled"` compiles in each process anew, for half a '
        f"minute ({reason}). To keep it, set the environment variable NUMBA_CACHE_DIR to a writable folder",
        stacklevel=2,
    )


def compiled_step(step: Callable[..., Any], operations: ModuleType) -> Callable[..., Any]:
    """
    Compile a step that is written on the operations of a module that its own module calls ``ops``.

    :param step: The step, a plain function; so are the ones it calls, apart from the operations
    :param operations: What is taken in the place of ``ops``
    :return: The same, compiled
    """

    def bound(function: FunctionType) -> FunctionType:
        namespace = dict(function.__globals__) | {"ops": operations}
        for name in function.__code__.co_names:
            if isinstance(called := namespace.get(name), FunctionType):
                namespace[name] = numba.njit(inline="always", **OPTIONS)(bound(called))
        copy = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
        copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
        return copy

    assert isinstance(step, FunctionType)
    return compiled(bound(step), is_step=True)
