"""The exploration noise of DDPG: the Ornstein-Uhlenbeck process of the paper's section 3."""

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import Schedule

from sb3_bn_ddpg.common.checks import check_number, check_schedule

NOISE_STREAM = 0x0E_4015E
"""
Sets the noise's random numbers apart from those of the environment and its action space, which Gymnasium draws from the same
kind of generator with the same seed: the noise would foretell the environment's own draws.
"""


PARAMETERS = frozenset({"_mean", "_sigma", "_theta", "_dt", "_dtype", "initial_noise"})
"""Attributes that are set at construction."""


class OrnsteinUhlenbeckNoise(VectorizedActionNoise):
    """
    The paper's temporally correlated noise: an Ornstein-Uhlenbeck process in discrete time
    (`Lillicrap et al. <https://arxiv.org/abs/1509.02971>`_, sections 3 and 7), one for each environment,

    ``x[t + 1] = x[t] + theta * (mean - x[t]) * dt + sigma * sqrt(dt) * N(0, 1)``,

    started at ``initial_noise`` at the beginning of each episode. Its stationary standard deviation is
    ``sigma * sqrt(dt / (1 - (1 - theta * dt) ** 2))`` and its autocorrelation after ``k`` steps ``(1 - theta * dt) ** k``:
    with the defaults 0.38 and a memory of about 7 steps.

    Differences from SB3's ``OrnsteinUhlenbeckActionNoise``: the paper's sigma and a ``dt`` of 1 are the defaults, sigma may
    follow a schedule, the random numbers come from a generator of its own (saved with the model, so a loaded model draws on
    where the saved one stopped), and one object holds the processes of all environments. It is therefore
    an SB3 ``VectorizedActionNoise`` itself: do not wrap it in another one, which would copy the generator and give
    every environment the same noise.

    The unit is that of SB3's scaled actions, in which an action space reaches from -1 to 1.

    :param mean: Mean of the noise, an array of the shape of one action
    :param sigma: Scale of the noise (>= 0): a number, an array that broadcasts to the shape of one action,
        or a schedule, a function of the progress remaining (from 1 to 0) that returns a number
    :param theta: Rate of mean reversion, >= 0
    :param dt: Length of one step of the process in its own time, > 0. The paper does not give it; ``theta * dt``
        must stay below 2, beyond which the discretised process diverges.
    :param initial_noise: State of the process at the start of an episode (if None: ``mean``'s shape of zeros)
    :param dtype: Type of the noise that is returned
    :param n_envs: Number of parallel environments (>= 1). ``BNDDPG`` sets it to its environment's.
    :param seed: Seed of the generator, or a generator to draw from (if None: ``BNDDPG`` seeds it from its own ``seed``;
        without that, fresh entropy)
    :raises ValueError: if an argument is out of its range, or shapes do not match
    """

    def __init__(
        self,
        mean: NDArray[np.floating],
        sigma: float | NDArray[np.floating] | Schedule = 0.2,
        theta: float = 0.15,
        dt: float = 1.0,
        initial_noise: NDArray[np.floating] | None = None,
        dtype: DTypeLike = np.float32,
        n_envs: int = 1,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        # VectorizedActionNoise.__init__ would build one copied noise object an environment: here one array holds them all
        self._mean = _finite_array("mean", mean)
        if callable(sigma):
            check_schedule("sigma", sigma)
        else:
            sigma = _finite_array("sigma", sigma, broadcast_to=self._mean.shape)
            check_number("min(sigma)", sigma.min(initial=np.inf) if sigma.size else 0.0, low=0)
        check_number("theta", theta, low=0)
        check_number("dt", dt, low=0, low_open=True)
        if theta * dt >= 2:
            raise ValueError(f"`theta={theta!r}` times `dt={dt!r}` is not allowed: it must be < 2, or the process diverges")
        self._sigma = sigma
        self._theta = float(theta)
        self._dt = float(dt)
        self._dtype = dtype
        self._progress_remaining = 1.0
        self.initial_noise = (
            np.zeros_like(self._mean)
            if initial_noise is None
            else _finite_array("initial_noise", initial_noise, broadcast_to=self._mean.shape)
        )
        self._rng: np.random.Generator | None = None
        if seed is not None:
            self.set_random_seed(seed)
        self.set_n_envs(n_envs)

    def copy_for_model(self) -> "OrnsteinUhlenbeckNoise":
        """
        :return: A copy with its own generator. From then on, whoever changes a parameter of the original is warned that the
            model's noise stays as it is.
        """
        copied = copy.deepcopy(self)
        vars(copied).pop("_was_copied", None)
        self._was_copied = True
        for value in vars(self).values():
            if isinstance(value, np.ndarray) and value is not self.noise_prev:
                value.setflags(write=False)  # there is no way to warn of a change within
        return copied

    def __setattr__(self, name: str, value: Any) -> None:
        if name in PARAMETERS and vars(self).get("_was_copied"):
            warnings.warn(
                f"`{name}` is changed of the noise that was passed to a model, which has a copy of its own: change "
                "`model.action_noise` instead, or pass a schedule as `sigma`",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    @property
    def sigma(self) -> NDArray[np.floating]:
        """The scale of the noise at the present progress: an array of the shape of one action, or of shape ``()``."""
        return np.asarray(self._sigma(self._progress_remaining) if callable(self._sigma) else self._sigma, dtype=np.float64)

    @property
    def has_schedule(self) -> bool:
        """Whether sigma is a schedule, which may return any shape."""
        return callable(self._sigma)

    @property
    def is_seeded(self) -> bool:
        """Whether the generator exists, seeded by the user, by ``BNDDPG`` or by a first draw."""
        return self._rng is not None

    def set_random_seed(self, seed: int | np.random.Generator | None) -> None:
        """
        Start a new generator. The state of the process stays as it is.

        :param seed: Seed of the generator (>= 0), or a generator to draw from (if None: fresh entropy)
        :raises ValueError: if ``seed`` is anything else
        """
        if seed is not None and not isinstance(seed, np.random.Generator):
            check_number("seed", seed, low=0, integer=True)
            seed = np.random.default_rng([NOISE_STREAM, int(seed)])
        self._rng = np.random.default_rng(seed)  # a generator is itself

    def set_n_envs(self, n_envs: int) -> None:
        """
        Set the number of parallel environments. If it changes, all processes start anew.

        :param n_envs: Number of parallel environments (>= 1)
        :raises ValueError: if ``n_envs`` is not a positive integer
        """
        check_number("n_envs", n_envs, low=1, integer=True)
        if getattr(self, "n_envs", None) == n_envs:
            return
        self.n_envs = int(n_envs)
        self.noise_prev = np.empty((self.n_envs, *self._mean.shape))
        self.reset()

    def update_progress(self, progress_remaining: float) -> None:
        """
        Tell the schedule of sigma how far the training has come.

        :param progress_remaining: Remaining share of the training, from 1 (start) to 0 (end)
        """
        self._progress_remaining = progress_remaining

    def reset(self, indices: Iterable[int] | None = None) -> None:
        """
        Start the process of an environment anew: the end of an episode.

        :param indices: Indices of the environments (if None: all)
        :raises ValueError: if there is no such environment
        """
        for index in range(self.n_envs) if indices is None else indices:
            check_number("indices", index, low=0, high=self.n_envs - 1, integer=True)
            self.noise_prev[index] = self.initial_noise

    def __call__(self) -> NDArray[np.floating]:
        """
        Take one step of every environment's process.

        :return: The noise, of shape ``(n_envs, *action_shape)``
        """
        if self._rng is None:
            self._rng = np.random.default_rng()
        with np.errstate(under="ignore"):  # where sigma is zero, the noise decays
            drift = self._theta * (self._mean - self.noise_prev) * self._dt
            diffusion = self.sigma * np.sqrt(self._dt) * self._rng.standard_normal(self.noise_prev.shape)
            self.noise_prev = self.noise_prev + drift + diffusion
            return self.noise_prev.astype(self._dtype)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(mean={self._mean}, sigma={self._sigma}, theta={self._theta}, dt={self._dt}, "
            f"n_envs={self.n_envs})"
        )


def is_self_contained(noise: Any) -> bool:
    """
    :param noise: The ``action_noise`` argument
    :return: Whether a copy of it does what it does: not of a user's class, which may refer to the environment
    """
    base = getattr(noise, "base_noise", noise)
    return not isinstance(base, ActionNoise) or type(base).__module__.startswith(("sb3_bn_ddpg.", "stable_baselines3."))


def _finite_array(name: str, value: object, broadcast_to: tuple[int, ...] | None = None) -> NDArray[np.floating]:
    """
    Convert an argument to an array of finite numbers.

    :param name: Name of the argument, for the message
    :param value: What was passed
    :param broadcast_to: A shape to which the array must broadcast (if None: any)
    :return: A new float64 array
    :raises ValueError: if it holds anything but finite numbers, or does not broadcast
    """
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}={value!r}` is not allowed: it must be an array of finite numbers") from error
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}={value!r}` is not allowed: it must hold finite numbers only")
    if broadcast_to is not None:
        try:
            np.broadcast_to(array, broadcast_to)
        except ValueError as error:
            raise ValueError(f"`{name}={value!r}` is not allowed: it must broadcast to the shape {broadcast_to}") from error
    return array
