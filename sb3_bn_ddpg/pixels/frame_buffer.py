"""A replay buffer for stacked frames that holds each frame once, however many observations show it."""

import math
import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_bn_ddpg.common.checks import check_number

try:
    import psutil
except ImportError:
    psutil = None

CHUNK_SIZE = 1024
"""Frames are kept in arrays of so many, made when they are needed."""

Slots = NDArray[np.int32]


class FrameReplayBuffer(NStepReplayBuffer):
    """
    SB3's replay buffer for images of several frames, at half the memory or less, with the very same contents and samples.

    The next observation of a transition is the observation of the following one, but at an episode's end, and stacked
    frames may show the same moment again (after a reset, and always with ``VecFrameStack``). Whatever is equal to what was
    seen just before is stored once. Memory is taken as the buffer fills. Time limits and n-step returns are SB3's.

    :param buffer_size: Max number of transitions in the buffer
    :param observation_space: Images of shape ``(n_frames * channels, height, width)``
    :param action_space: Action space
    :param device: PyTorch device
    :param n_envs: Number of parallel environments
    :param optimize_memory_usage: Must be False: this buffer is the memory-efficient one, and exact at episode ends
    :param handle_timeout_termination: Whether a time limit is not a termination
    :param n_frames: Number of frames in an observation
    :param n_steps: Number of steps to accumulate rewards for n-step returns
    :param gamma: Discount factor of the n-step returns: the model's
    :param random_shift: Samples are moved by up to so many pixels in both directions, at random and each by itself, against
        overfitting (`Kostrikov et al. <https://arxiv.org/abs/2004.13649>`_); 0 leaves them as they are
    :raises ValueError: if an argument is out of its range, or the observations are no stacks of ``n_frames`` frames
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_frames: int = 3,
        n_steps: int = 1,
        gamma: float = 0.99,
        random_shift: int = 0,
    ) -> None:
        check_number("n_frames", n_frames, low=1, integer=True)
        check_number("n_steps", n_steps, low=1, integer=True)
        check_number("random_shift", random_shift, low=0, integer=True)
        if optimize_memory_usage:
            raise ValueError("`optimize_memory_usage=True` is not allowed: `FrameReplayBuffer` shares observations by itself")
        shape = observation_space.shape
        if not isinstance(observation_space, spaces.Box) or shape is None or len(shape) != 3 or shape[0] % n_frames:
            raise ValueError(
                f"`observation_space={observation_space}` is not allowed: it must be images of shape "
                f"(channels, height, width), the channels a multiple of `n_frames={n_frames}`"
            )
        # SB3 would allocate both observations of all transitions, so it is shown empty ones
        nothing = spaces.Box(0, 1, (0,))
        super().__init__(
            buffer_size,
            nothing,
            action_space,
            device,
            n_envs,
            handle_timeout_termination=handle_timeout_termination,
            n_steps=n_steps,
            gamma=gamma,
        )
        self.observation_space, self.obs_shape = observation_space, shape
        self.n_frames, self.random_shift = n_frames, random_shift
        frame_shape = (shape[0] // n_frames, *shape[1:])
        self.frames = Frames(frame_shape, observation_space.dtype)
        # They index and assign as SB3's arrays of shape (buffer_size, n_envs, *obs_shape)
        seen: list[Slots] = [np.zeros(0, np.int32) for _ in range(n_envs)]
        self.observations = StackedFrames(self.frames, seen, self.buffer_size, n_envs, n_frames)  # type: ignore[assignment]
        self.next_observations = StackedFrames(  # type: ignore[assignment]
            self.frames, seen, self.buffer_size, n_envs, n_frames
        )
        needed = self.buffer_size * n_envs * n_frames * self.frames.frame_bytes
        available = math.inf if psutil is None else psutil.virtual_memory().available
        if needed > available:
            warnings.warn(
                f"The replay buffer may grow to {needed / 1e9:.2f}GB, more than the {available / 1e9:.2f}GB of memory "
                "available: a smaller `buffer_size` avoids that",
                stacklevel=2,
            )

    @property
    def bytes_per_transition(self) -> float:
        """Bytes of the observations in the buffer, divided by its transitions: SB3's replay buffer takes two observations."""
        n_transitions: int = max(self.size() * self.n_envs, 1)
        return self.frames.n_used * self.frames.frame_bytes / n_transitions + 2 * self.n_frames * np.dtype(np.int32).itemsize

    def _get_samples(self, batch_inds: NDArray[Any], env: VecNormalize | None = None) -> ReplayBufferSamples:
        buffer_class = NStepReplayBuffer if self.n_steps > 1 else ReplayBuffer
        samples = buffer_class._get_samples(self, batch_inds, env)
        if not self.random_shift:
            return samples
        observations, next_observations = (
            self.to_torch(randomly_shifted(images.cpu().numpy(), self.random_shift), copy=False)
            for images in (samples.observations, samples.next_observations)
        )
        return samples._replace(observations=observations, next_observations=next_observations)


def randomly_shifted(images: NDArray[Any], pixels: int) -> NDArray[Any]:
    """
    Move each image by a random number of pixels, drawn from NumPy's generator as SB3's samples are; its border is repeated.

    :param images: Images, of shape ``(n_images, channels, height, width)``
    :param pixels: Most pixels in each direction
    :return: New images of the same shape
    """
    n_images, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    rows, columns = np.random.randint(0, 2 * pixels + 1, (2, n_images))
    shifted: NDArray[Any] = windows[np.arange(n_images), :, rows, columns]
    return shifted


class Frames:
    """
    Frames in numbered slots, which are used again once nothing refers to them.

    :param shape: Shape of a frame
    :param dtype: Its type
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.frame_bytes: int = math.prod(shape) * self.dtype.itemsize
        self.chunks: list[NDArray[Any]] = []
        self.references: list[int] = []
        self.free: list[int] = []

    @property
    def n_used(self) -> int:
        """Number of frames that something refers to."""
        return len(self.references) - len(self.free)

    def __getitem__(self, slot: int) -> NDArray[Any]:
        frame: NDArray[Any] = self.chunks[slot // CHUNK_SIZE][slot % CHUNK_SIZE]
        return frame

    def add(self, frame: NDArray[Any]) -> int:
        """
        :param frame: A new frame
        :return: Its slot, to which nothing refers yet
        """
        if not self.free:
            first = len(self.references)
            self.chunks.append(np.zeros((CHUNK_SIZE, *self.shape), self.dtype))
            self.references += [0] * CHUNK_SIZE
            self.free = list(range(first + CHUNK_SIZE - 1, first - 1, -1))
        slot = self.free.pop()
        self[slot][...] = frame
        return slot

    def refer(self, slots: Slots, change: int) -> None:
        """
        :param slots: Slots that are referred to once more or less
        :param change: 1 or -1
        """
        for slot in slots.tolist():
            self.references[slot] += change
            if change < 0 and self.references[slot] == 0:
                self.free.append(slot)


class StackedFrames:
    """
    An array of stacks of frames, of shape ``(buffer_size, n_envs, n_frames * channels, height, width)``, as far as SB3's
    replay buffers use it: rows are assigned, and read by indices of rows and environments.

    :param frames: Where the frames are
    :param seen: The slots of each environment's last stack, in whichever array it was assigned
    :param buffer_size: Number of rows
    :param n_envs: Number of environments
    :param n_frames: Number of frames of a stack
    """

    def __init__(self, frames: Frames, seen: list[Slots], buffer_size: int, n_envs: int, n_frames: int) -> None:
        self.frames, self.seen = frames, seen
        self.slots = np.full((buffer_size, n_envs, n_frames), -1, np.int32)
        n_channels, *size = frames.shape
        self.shape = (buffer_size, n_envs, n_frames * n_channels, *size)

    def __setitem__(self, row: int, stacks: NDArray[Any]) -> None:
        n_frames = self.slots.shape[2]
        for env, stack in enumerate(stacks.reshape(len(self.seen), n_frames, *self.frames.shape)):
            slots: list[int] = []
            for index, frame in enumerate(stack):
                # Most likely first: the frame at the same place of the last stack, then all of that and of this stack
                candidates = [*self.seen[env][index : index + 1], *self.seen[env], *slots[-1:]]
                equal = (slot for slot in candidates if np.array_equal(self.frames[slot], frame))
                slot = next(equal, None)
                slots.append(self.frames.add(frame) if slot is None else int(slot))
            self.seen[env] = np.array(slots, np.int32)
            self.frames.refer(self.seen[env], 1)
            overwritten = self.slots[row, env].copy()
            # In this order a Ctrl-C in between leaves frames that nobody needs, rather than free ones that somebody does
            self.slots[row, env] = slots
            if overwritten[0] >= 0:
                self.frames.refer(overwritten, -1)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        slots = self.slots[index[:2] if isinstance(index, tuple) else index]
        stacks = np.empty((*slots.shape, *self.frames.shape), self.frames.dtype)
        flat = stacks.reshape(-1, *self.frames.shape)
        for position, slot in enumerate(slots.ravel().tolist()):
            flat[position] = self.frames[slot]
        return stacks.reshape(*slots.shape[:-1], *self.shape[2:])
