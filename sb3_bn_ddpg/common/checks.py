"""Argument checks shared by the algorithm, its policies and its noise: every message names argument, value and range."""

import importlib.util
import math
import operator
from collections.abc import Collection
from typing import Any

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    integer: bool = False,
    words: Collection[str] = (),
) -> None:
    """
    Check that an argument is a finite number in an interval.

    :param name: Name of the argument, for the message
    :param value: What was passed
    :param low: Smallest allowed value
    :param high: Largest allowed value
    :param low_open: Whether ``low`` itself is excluded
    :param integer: Whether only integers are allowed, of Python or NumPy
    :param words: Words that are allowed, too
    :raises ValueError: if ``value`` is anything else
    """
    if isinstance(value, str) and value in words:
        return
    kind = "an integer" if integer else "a finite number"
    bounds = []
    if low > -math.inf:
        bounds.append(f"{'>' if low_open else '>='} {low}")
    if high < math.inf:
        bounds.append(f"<= {high}")
    allowed = " or ".join([" ".join([kind, " and ".join(bounds)]).strip(), *map(repr, words)])
    try:
        # Not even 4.0 is an integer: layers and buffers cannot be made of it
        number = float(operator.index(value) if integer else value)
        is_valid = (
            not isinstance(value, (bool, str))
            and math.isfinite(number)
            and (low < number if low_open else low <= number)
            and number <= high
        )
    except (TypeError, ValueError, OverflowError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"`{name}={value!r}` is not allowed: it must be {allowed}")


def check_numbers(name: str, value: Any) -> None:
    """
    Check that an argument is a number >= 0 or a list of such, nested at will.

    :param name: Name of the argument, for the message
    :param value: What was passed
    :raises ValueError: if it is anything else
    """
    if isinstance(value, (list, tuple)) and value:
        for index, entry in enumerate(value):
            check_numbers(f"{name}[{index}]", entry)
    else:
        check_number(name, value, low=0)


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """
    Check that an argument is one of a few values.

    :param name: Name of the argument, for the message
    :param value: What was passed
    :param allowed: The allowed values
    :raises ValueError: if ``value`` is anything else
    """
    # A list or a dict is never a choice, and cannot be looked up in a mapping
    if not (value is None or isinstance(value, (str, bool))) or value not in allowed:
        raise ValueError(f"`{name}={value!r}` is not allowed: it must be one of {', '.join(map(repr, allowed))}")


def check_schedule(name: str, value: float | Schedule) -> None:
    """
    Check that an argument is a number >= 0, or a schedule that starts and ends at one.

    :param name: Name of the argument, for the message
    :param value: A number, or a function of the progress remaining (from 1 to 0) that returns a number
    :raises ValueError: if it is neither
    """
    if not callable(value):
        check_number(name, value, low=0)
        return
    schedule = FloatSchedule(value)
    for progress_remaining in (1.0, 0.0):
        check_number(f"{name}({progress_remaining})", schedule(progress_remaining), low=0)


def check_installed(extra: str, *packages: str) -> None:
    """
    :param extra: The extra of this package that brings them
    :param packages: What is needed
    :raises ImportError: if one of them is missing
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{package} is not installed: run `pip install sb3-bn-ddpg[{extra}]`")
