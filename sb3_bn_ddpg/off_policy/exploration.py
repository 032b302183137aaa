"""The exploration noise of a model."""

import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise

from sb3_bn_ddpg.common.noise import OrnsteinUhlenbeckNoise, is_self_contained

NORMAL_SIGMA = 0.1
"""Standard deviation of the noise ``"normal"``, TD3's."""


def fitted_noise(noise: Any, n_envs: int, action_space: spaces.Box, seed: int | None) -> ActionNoise | None:
    """
    Build the noise if a word names it, and give it one process for each environment.

    :param noise: The argument ``action_noise``
    :param n_envs: Number of environments
    :param action_space: Their action space
    :param seed: The model's seed, for a noise with a generator of its own that is not seeded yet
    :return: The noise
    :raises ValueError: if it is not a noise, or does not fit the environment's actions
    """
    action_shape = action_space.shape
    if noise == "ou":
        noise = OrnsteinUhlenbeckNoise(np.zeros(action_shape))
    elif noise == "normal" and action_shape == ():
        raise ValueError(
            "`action_noise='normal'` is not allowed for actions of shape (), for which SB3's NormalActionNoise returns no "
            "array: it must be 'ou', None or an `ActionNoise` of your own"
        )
    elif noise == "normal":
        noise = NormalActionNoise(np.zeros(action_shape), np.full(action_shape, NORMAL_SIGMA))
    if noise is None:
        return None
    if not isinstance(noise, ActionNoise):
        raise ValueError(f"`action_noise={noise!r}` is not allowed: it must be 'ou', 'normal', None or an `ActionNoise`")
    if isinstance(noise, OrnsteinUhlenbeckNoise):
        noise.set_n_envs(n_envs)
        if not noise.is_seeded and seed is not None:
            noise.set_random_seed(seed)
    elif isinstance(noise, VectorizedActionNoise):
        if isinstance(noise.base_noise, OrnsteinUhlenbeckNoise):
            raise ValueError(
                f"`action_noise={noise!r}` is not allowed: `OrnsteinUhlenbeckNoise` must not be wrapped, "
                "it has one process for each environment by itself"
            )
        if noise.n_envs != n_envs:  # loaded for another number of environments
            noise = VectorizedActionNoise(noise.base_noise, n_envs)
    elif n_envs > 1:
        noise = VectorizedActionNoise(noise, n_envs)
    fitted: ActionNoise = noise
    if not is_self_contained(fitted):
        return fitted
    if isinstance(noise, OrnsteinUhlenbeckNoise) and not noise.has_schedule:
        noise_shape = noise.noise_prev.shape
    else:
        # Ask a copy for its shape, and leave the global generator that SB3's noises draw from as it was
        random_state = np.random.get_state()
        noise_shape = np.shape(copy.deepcopy(noise)())
        np.random.set_state(random_state)
    allowed = [(n_envs, *action_shape)] + ([action_shape] if n_envs == 1 else [])
    if noise_shape not in allowed:
        raise ValueError(
            f"`action_noise={noise!r}` is not allowed: it returns the shape {noise_shape}, "
            f"it must return {' or '.join(map(str, allowed))} for the action space {action_space}"
        )
    return fitted


def noise_to_go_on_with(
    present: ActionNoise | None, noise: Any, n_envs: int, action_space: spaces.Box, seed: int | None
) -> ActionNoise | None:
    """
    :param present: The noise of a model
    :param noise: The argument ``action_noise`` of its next training
    :param n_envs: As of :func:`fitted_noise`
    :param action_space: As of :func:`fitted_noise`
    :param seed: As of :func:`fitted_noise`
    :return: The present noise if a word names the same process, which goes on, or else a new one
    :raises ValueError: if it is not a noise, or does not fit the environment's actions
    """
    if isinstance(noise, OrnsteinUhlenbeckNoise) and noise is not present:
        noise = noise.copy_for_model()
    fitted = fitted_noise(noise, n_envs, action_space, seed)
    return present if isinstance(noise, str) and repr(fitted) == repr(present) else fitted
