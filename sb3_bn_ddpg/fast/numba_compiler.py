"""How Numba compiles the engine's operations and the steps that are written on them."""

import hashlib
import pickle
import sys
import warnings
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, cast

import numba
from numba.core import types
from numba.extending import register_jitable

from sb3_bn_ddpg.fast.numba_references import referenced
from sb3_bn_ddpg.fast.parts import Transitions
from sb3_bn_ddpg.fast.stamps import AT_IMPORT, Sources, package_stamps, sources_of, stamps

OPTIONS: dict[str, Any] = dict(error_model="numpy", fastmath={"contract", "arcp", "nsz"})
"""
Sums are not reordered ("reassoc"): how they are depends on what a function is compiled into; the process that compiles then
has other last digits than those that read what it kept. A resumed training would not go on to the same numbers.
"""
NO_SOURCES = Sources()
_has_warned = False


def compiled(function: Callable[..., Any], is_step: bool = False, sources: Sources = NO_SOURCES) -> Callable[..., Any]:
    """
    Compile at the first call, once a machine. Sums keep their order; NaN and infinity stay what they are.

    :param function: The function
    :param is_step: Whether Python calls it, not only other compiled functions
    :param sources: What else it is made of, beside the package
    :return: The same, compiled
    """
    kernel: Any = numba.njit(**OPTIONS, no_cpython_wrapper=not is_step, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]
    _compile_for_types_alone(kernel)
    try:
        kernel.enable_caching()
    except RuntimeError as reason:  # neither beside this file nor in the user's folder
        _say_that_nothing_is_kept(reason)
    else:
        # Numba looks only at the file that a function is in, though others are compiled into it. Compared before anything else
        # of what is kept is read: that may hold classes which are no longer there
        version = (numba.__version__, AT_IMPORT, stamps(sources.files), sources.constants)
        kernel._cache._cache_file._version = version
        _name_by_content(kernel._cache._cache_file)
        load = _or_nothing(kernel._cache.load_overload)
        kernel._cache.load_overload = _announced(load) if is_step else load
        kernel._cache.save_overload = _or_nothing(_unless_changed(kernel._cache.save_overload, sources.files))
    return cast(Callable[..., Any], kernel)


def _compile_for_types_alone(kernel: Any) -> None:
    """
    Let compiled callers share one code of a function: Numba takes a constant that is passed, as a pass's mode, for a type of
    its own, and would compile the function, and all that it calls, for each constant anew.

    :param kernel: A compiled function
    """
    template, unliteral = kernel.get_call_template, cast(Callable[..., Any], types.unliteral)

    def of_types(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return template(tuple(map(unliteral, args)), {name: unliteral(of) for name, of in kws.items()})

    kernel.get_call_template = of_types


def compiled_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param function: A part of several operations
    :return: The same: compiled where compiled code calls it, and as it is where Python does
    """
    made: Callable[..., Any] = register_jitable(**OPTIONS)(function)
    return made


def _name_by_content(file: Any) -> None:
    """
    Let Numba name what it keeps by its content, and what it is for, and not by the next number: two processes that compile for
    different types at a time would take the same number, and one's types could then lead to the other's code. Of two keys of
    one content, as of processors with one name, Numba would look for a second name for ever.

    :param file: What keeps the code of a function
    """
    save, pattern = file.save, file._data_name_pattern

    def save_by_content(key: Any, data: Any) -> None:
        digest = hashlib.sha256(file._dump((key, data))).hexdigest()[:24]
        file._data_name = lambda number: pattern.replace("{number:d}", digest)
        save(key, data)

    file.save = save_by_content


def _unless_changed(save: Callable[..., Any], files: tuple[str, ...]) -> Callable[..., Any]:
    """A function of Numba's cache that keeps nothing where a file has changed since: what was compiled is no longer its."""
    before = stamps(files)

    def function(*args: Any) -> Any:
        return save(*args) if (package_stamps(), stamps(files)) == (AT_IMPORT, before) else None

    return function


def _or_nothing(use_cache: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Numba's cache, whose files may be unreadable, and whose disk may be full: it goes on without them."""

    def function(*args: Any) -> Any:
        try:
            return use_cache(*args)
        except (OSError, EOFError, pickle.UnpicklingError) as reason:
            _say_that_nothing_is_kept(reason)
            return None

    return function


def _announced(load: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a step's cache that reads what is kept: if that is nothing, a line says what takes so long now."""

    def function(*args: Any) -> Any:
        kept = load(*args)
        if kept is None:
            print(
                "Compiling the gradient step for networks of this kind: some 20 seconds, once on this machine",
                file=sys.stderr,
                flush=True,
            )
        return kept

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
        f'Numba can keep no compiled code here, so `fast_update="compiled"` compiles in each process anew, for some '
        f"20 seconds ({reason}). To keep it, set the environment variable NUMBA_CACHE_DIR to a writable folder",
        stacklevel=2,
    )


def compiled_steps(step: Callable[..., Any], operations: ModuleType) -> Callable[..., Any]:
    """
    Compile a step that is written on the operations of a module that its own module calls ``ops``, in a loop: what Python does
    before and after a call takes as long for many steps as for one.

    :param step: The step, a plain function; so are the ones it calls, apart from the operations
    :param operations: What is taken in the place of ``ops``
    :return: As :func:`steps`, compiled
    """

    def bound(function: FunctionType) -> FunctionType:
        namespace = dict(function.__globals__) | {"ops": operations}
        for name in function.__code__.co_names:
            if isinstance(called := namespace.get(name), FunctionType):
                namespace[name] = numba.njit(inline="always", **OPTIONS)(bound(called))
        return like(function, function, namespace)

    def like(function: FunctionType, named: FunctionType, namespace: dict[str, Any]) -> FunctionType:
        # What is kept of it is found by file, line and name: those of the step, as it differs from all others
        of_step = named.__code__
        code = function.__code__.replace(
            co_filename=of_step.co_filename, co_firstlineno=of_step.co_firstlineno, co_name=of_step.co_name
        )
        copy = FunctionType(code, namespace, named.__name__, function.__defaults__)
        copy.__qualname__, copy.__module__ = named.__qualname__, named.__module__
        return copy

    assert isinstance(step, FunctionType)
    assert isinstance(steps, FunctionType)
    # Else it would be compiled by itself, and then once more with the loop
    one = numba.njit(inline="always", **OPTIONS)(bound(step))
    return compiled(like(steps, step, dict(steps.__globals__) | {"one_step": one}), is_step=True, sources=sources_of(step))


def steps(  # type: ignore[no-untyped-def]
    parts, transitions, noise, reports, rates, tau, updates_actor, updates_targets, choices
):
    """
    As a step's function (:class:`~sb3_bn_ddpg.fast.parts.EngineStep`), with a row for each step in all that differs from step
    to step: ``transitions``, ``noise``, ``reports``, each of the ``rates``, ``updates_actor`` and ``updates_targets``.
    """
    by_reference = referenced(parts)
    for i in range(reports.shape[0]):
        of_step = Transitions(
            transitions.obs[i],
            transitions.actions[i],
            transitions.next_obs[i],
            transitions.rewards[i],
            transitions.discounts[i],
        )
        rates_of_step = rates[0][i], rates[1][i], rates[2][i], rates[3][i]
        one_step(
            by_reference,
            referenced(of_step),
            noise[i],
            reports[i],
            rates_of_step,
            tau,
            updates_actor[i],
            updates_targets[i],
            choices,
        )


def one_step(*arguments: Any) -> None:
    """In :func:`steps`, the compiled step."""
    raise NotImplementedError
