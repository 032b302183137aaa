"""Values that change over a training, as a hyperparameter file spells them."""

from dataclasses import dataclass
from typing import Any

from sb3_bn_ddpg.common.checks import check_number

SCHEDULED = ("learning_rate", "critic_learning_rate")
"""Hyperparameters that may be spelled as a schedule."""


@dataclass(frozen=True)
class LinearToZero:
    """
    A schedule that falls linearly from its first value to 0, with the numbers of RL Zoo's ``SimpleLinearSchedule``.

    :param initial_value: The value at the start, >= 0
    """

    initial_value: float

    def __call__(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: From 1 at the start to 0 at the end of the training
        :return: The value
        """
        return progress_remaining * self.initial_value


def parse_linear_schedule(name: str, value: str) -> LinearToZero:
    """
    :param name: Name of the hyperparameter, for the message
    :param value: ``"lin_"`` and a number >= 0, the Zoo's spelling of a value that falls linearly to 0
    :return: The schedule
    :raises ValueError: if it is spelled differently
    """
    prefix, _, initial_value = value.partition("_")
    try:
        number = float(initial_value)
        check_number(name, number, low=0)
    except ValueError:
        prefix = ""
    if prefix != "lin":
        raise ValueError(
            f"`{name}={value!r}` is not allowed: it must be a number >= 0 or 'lin_<number>' "
            "(YAML reads 1e-3 as a word: write 1.0e-3 or 0.001)"
        )
    return LinearToZero(number)


def build_schedules(hyperparams: dict[str, Any]) -> None:
    """
    Put schedules in the place of their spelling.

    :param hyperparams: Hyperparameters, which are changed
    :raises ValueError: if one is spelled differently
    """
    for name in SCHEDULED:
        if isinstance(hyperparams.get(name), str):
            hyperparams[name] = parse_linear_schedule(name, hyperparams[name])
