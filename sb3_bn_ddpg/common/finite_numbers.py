"""Which numbers of an environment are stored: finite ones, and NaN where a features extractor gives it a meaning."""

import warnings
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


def check_transition(
    model: OffPolicyAlgorithm,
    allow_nan: bool | None,
    new_obs: NDArray[Any] | dict[str, NDArray[Any]],
    reward: NDArray[Any],
    dones: NDArray[Any],
    infos: list[dict[str, Any]],
) -> None:
    """
    :param model: The model that is about to store a step of its environments
    :param allow_nan: Its ``allow_nan_observations``
    :param new_obs: Observations after the step
    :param reward: Rewards
    :param dones: Whether episodes ended
    :param infos: What else the environments said
    :raises ValueError: if there are numbers that are not allowed
    """
    step = model.num_timesteps
    check_finite("reward", reward, step)
    check_observation(model, allow_nan, new_obs)
    normalized = model._vec_normalize_env
    if normalized is not None:  # it clips infinite numbers, but what the buffer stores is not normalised
        check_finite("reward", normalized.get_original_reward(), step)
        check_finite("observation", normalized.get_original_obs(), step, allow_nan=allow_nan is not False)
    for index in np.flatnonzero(dones):
        last_obs = infos[index].get("terminal_observation")
        check_observation(model, allow_nan, last_obs, "terminal_observation", int(index))


def check_observation(
    model: OffPolicyAlgorithm, allow_nan: bool | None, value: Any, field: str = "observation", env_index: int | None = None
) -> None:
    """
    :param model: The model
    :param allow_nan: Its ``allow_nan_observations``
    :param value: What it sees: as of :func:`check_finite`
    :param field: What that is, for the message
    :param env_index: The environment, if the value belongs to a single one
    :raises ValueError: if it holds numbers that are not allowed
    """
    step = model.num_timesteps
    try:
        check_finite(field, value, step, env_index)
    except ValueError:
        if allow_nan is False or not (allow_nan or _leaves_out_nan(model.policy, value)):
            raise
        check_finite(field, value, step, env_index, allow_nan=True)
        normalized: Any = model._vec_normalize_env
        if normalized is not None and normalized.norm_obs:
            of_keys = normalized.obs_rms.values() if isinstance(normalized.obs_rms, dict) else [normalized.obs_rms]
            if not all(np.isfinite(statistics.mean).all() for statistics in of_keys):
                raise ValueError(
                    f"`{field}={value}` at step {step} is not allowed with a VecNormalize that averages it: its `norm_obs` "
                    "must be False, or its `norm_obs_keys` without what can be NaN"
                ) from None


def _leaves_out_nan(policy: Any, obs: Any) -> bool:
    """
    :param policy: A policy
    :param obs: Observations with NaN
    :return: Whether its features extractors make finite numbers of them
    """
    with th.no_grad():
        tensors = policy.obs_to_tensor(obs)[0]
        if not all(bool(th.isfinite(network.features(tensors)).all()) for network in (policy.actor, policy.critic)):
            return False
    # Python itself shows a warning of one text and one place once, and this one names no step
    warnings.warn(
        f"There is NaN in observations, which the features extractor {type(policy.actor.features_extractor).__name__} leaves "
        "out: the training goes on. Pass `allow_nan_observations=True` if that is meant, False if it is to end the training",
        stacklevel=2,
    )
    return True


def check_finite(field: str, value: Any, step: int, env_index: int | None = None, allow_nan: bool = False) -> None:
    """
    :param field: What the value is, for the message
    :param value: An array with one row for each environment, a dictionary of such arrays, or None
    :param step: The environment step, for the message
    :param env_index: The environment, if the value belongs to a single one
    :param allow_nan: Whether it may hold NaN
    :raises ValueError: if it holds NaN, an infinite number, or one that becomes infinite as float32
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            check_finite(f"{field}[{key!r}]", entry, step, env_index, allow_nan)
        return
    if value is None:
        return
    value = np.asarray(value)
    if value.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):  # which the user may have told NumPy to raise
        as_seen = value.astype(np.float32, copy=False)  # by the networks
    is_finite = ~np.isinf(as_seen) if allow_nan else np.isfinite(as_seen)
    if is_finite.all():
        return
    if env_index is None:
        env_index = int(np.argwhere(~is_finite)[0, 0])
        value = value[env_index]
    raise ValueError(
        f"`{field}={value}` of environment {env_index} at step {step} is not allowed: it must hold finite numbers"
        f"{' or NaN' if allow_nan else ''} only, within the range of float32 (nothing of this step was stored)"
    )
