"""The exploration noise as a hyperparameter file and an Optuna study spell it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

from sb3_bn_ddpg.common.checks import check_choice, check_number, check_numbers
from sb3_bn_ddpg.common.noise import OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.profiles.schedules import parse_linear_schedule

NOISE_KEYS = {"ou": ("sigma", "theta", "dt", "initial_noise"), "normal": ("sigma",)}
"""What the mapping ``action_noise`` may hold besides ``type``, for each type."""

ZOO_NOISE_TYPES = ("normal", "ornstein-uhlenbeck")
"""The words of the Zoo's own ``noise_type``. Its Ornstein-Uhlenbeck process is SB3's, with a dt of 0.01."""


def build_action_noise(value: Any, action_shape: int | tuple[int, ...]) -> Any:
    """
    Turn the hyperparameter ``action_noise`` into a noise. The mapping ``{type: ou, sigma: ..., theta: ..., dt: ...}``
    has the arguments of :class:`~sb3_bn_ddpg.OrnsteinUhlenbeckNoise`, ``{type: normal, sigma: ...}`` is white noise;
    sigma is required for the latter only, and ``type`` is ``ou`` if left out.

    A sigma is a number or list of numbers >= 0, one for each entry of an action. That of ``ou`` may also be ``"lin_0.2"``,
    which falls linearly to 0, as the Zoo's learning rates do, or the mapping ``{start: 0.2, end: 0.05, end_fraction: 0.5}``,
    which stays at ``end`` after that share of the training.

    :param value: The mapping, or anything else that a model takes, which is returned as it is
    :param action_shape: Shape of one action
    :return: A value for a model's argument ``action_noise``
    :raises ValueError: if the mapping has an unknown key or a value out of its range
    """
    if not isinstance(value, Mapping):
        return value
    arguments = dict(value)
    noise_type = arguments.pop("type", "ou")
    check_choice("action_noise['type']", noise_type, NOISE_KEYS)
    allowed = NOISE_KEYS[noise_type]
    for key in arguments:
        if key not in allowed:
            raise ValueError(
                f"`action_noise[{key!r}]={arguments[key]!r}` is not allowed: with type {noise_type!r} its keys are "
                f"{', '.join(map(repr, allowed))}"
            )
    mean = np.zeros(action_shape)
    if noise_type == "normal":
        sigma = arguments.get("sigma")
        check_numbers("action_noise['sigma']", sigma)
        try:
            return NormalActionNoise(mean, np.broadcast_to(np.asarray(sigma, dtype=np.float64), mean.shape).copy())
        except ValueError:
            raise ValueError(
                f"`action_noise['sigma']={sigma!r}` is not allowed: it must be a number or fit actions of shape {mean.shape}"
            ) from None
    if "sigma" in arguments:
        arguments["sigma"] = _sigma(arguments["sigma"])
    return OrnsteinUhlenbeckNoise(mean, **arguments)


def _sigma(value: Any) -> Any:
    """
    :param value: ``action_noise['sigma']``
    :return: A schedule if the value spells one, else the value
    :raises ValueError: if the spelling is unknown
    """
    if isinstance(value, str):
        return parse_linear_schedule("action_noise['sigma']", value)
    if isinstance(value, Mapping):
        if set(value) != {"start", "end", "end_fraction"}:
            raise ValueError(
                f"`action_noise['sigma']={value!r}` is not allowed: a schedule needs 'start', 'end' and 'end_fraction'"
            )
        check_number("action_noise['sigma']['start']", value["start"], low=0)
        check_number("action_noise['sigma']['end']", value["end"], low=0)
        check_number("action_noise['sigma']['end_fraction']", value["end_fraction"], low=0, low_open=True, high=1)
        return LinearSchedule(**value)
    return value


def spells_noise(hyperparams: dict[str, Any]) -> bool:
    return "noise_type" in hyperparams or "action_noise" in hyperparams


def settle_noise_spelling(hyperparams: dict[str, Any], overrides: dict[str, Any]) -> None:
    """
    Let the noise of a trial or of the command line replace the file's, whichever of the two spellings each has.

    :param hyperparams: All hyperparameters, from which the replaced ones are removed
    :param overrides: Those of the trial and the command line
    :raises ValueError: if both spellings come from the same place
    """
    if not ("noise_type" in hyperparams and "action_noise" in hyperparams):
        return
    if ("noise_type" in overrides) == ("action_noise" in overrides):
        raise ValueError(
            f"`action_noise={hyperparams['action_noise']!r}` is not allowed beside `noise_type="
            f"{hyperparams['noise_type']!r}`: there must be one of the two"
        )
    for name in ("action_noise",) if "noise_type" in overrides else ("noise_type", "noise_std"):
        hyperparams.pop(name, None)


def translate_noise_type(hyperparams: dict[str, Any]) -> None:
    """
    Check the Zoo's ``noise_type`` and ``noise_std``, and turn the word ``ou`` into ``action_noise``. None disables noise.

    :param hyperparams: The hyperparameters, changed in place
    :raises ValueError: if ``noise_type`` is unknown, or a ``noise_std`` is missing or has no ``noise_type``
    """
    if "noise_type" not in hyperparams:
        if "noise_std" in hyperparams:
            raise ValueError(
                f"`noise_std={hyperparams['noise_std']!r}` is not allowed without `noise_type`: "
                "the sigma of `action_noise` is an entry of that mapping"
            )
        return
    noise_type = hyperparams["noise_type"]
    if isinstance(noise_type, str):
        noise_type = noise_type.strip()
    check_choice("noise_type", noise_type, (*ZOO_NOISE_TYPES, "ou", None))
    if noise_type in ZOO_NOISE_TYPES:
        check_numbers("noise_std", hyperparams.get("noise_std"))
    if noise_type == "ornstein-uhlenbeck":
        return
    del hyperparams["noise_type"]
    sigma = {"sigma": hyperparams.pop("noise_std")} if "noise_std" in hyperparams else {}
    hyperparams["action_noise"] = None if noise_type is None else {"type": noise_type, **sigma}
