"""The paper's pixel observations (section 7): an action repeated for three simulator steps, a frame of each, stacked."""

from collections import deque
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_bn_ddpg.common.checks import check_number

Frame = NDArray[np.uint8]


class PixelObservation(gym.Wrapper[Frame, NDArray[Any], Any, NDArray[Any]], RecordConstructorArgs):
    """
    Repeats each action for ``n_frames`` steps of the environment, renders each, and observes the last ``n_frames`` frames,
    from which velocities can be told. Rewards are summed. No frame is rendered twice: ``render`` returns the newest one.

    Observations are uint8 of shape ``(3 * n_frames, height, width)``, channels first as PyTorch has them, oldest frame first.
    After a reset there is one frame, which fills the stack. An episode that ends within a repetition ends there, and
    observes the last ``n_frames`` frames all the same, so that they are always consecutive in time.

    :param env: An environment made with ``render_mode="rgb_array"``
    :param n_frames: Steps of the environment, and frames, to an action (>= 1)
    :param size: Height and width of a frame in pixels; what is rendered larger is averaged over areas
    :raises ValueError: if an argument is out of its range, or the environment does not render arrays
    """

    def __init__(self, env: gym.Env[Any, NDArray[Any]], n_frames: int = 3, size: tuple[int, int] = (64, 64)) -> None:
        RecordConstructorArgs.__init__(self, n_frames=n_frames, size=size)
        gym.Wrapper.__init__(self, env)
        if env.render_mode != "rgb_array":
            raise ValueError(f"`env` with the render mode {env.render_mode!r} is not allowed: it must be 'rgb_array'")
        check_number("n_frames", n_frames, low=1, integer=True)
        if len(size) != 2:
            raise ValueError(f"`size={size!r}` is not allowed: it must be height and width")
        for length in size:
            check_number("size", length, low=1, integer=True)
        self.n_frames, self.size = n_frames, tuple(size)
        self.observation_space = spaces.Box(0, 255, (3 * n_frames, *size), np.uint8)
        self._frames: deque[Frame] = deque(maxlen=n_frames)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """
        :param seed: Seed of the environment's generator
        :param options: Options of the environment
        :return: The first frame, ``n_frames`` times, and the environment's information
        """
        _, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([self._rendered()] * self.n_frames)
        return self._observation(), info

    def step(self, action: NDArray[Any]) -> tuple[Frame, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: An action of the environment
        :return: The last frames, the sum of the rewards, and the rest as the environment's last step returned it
        """
        total_reward = 0.0
        for _ in range(self.n_frames):
            _, reward, terminated, truncated, info = self.env.step(action)
            total_reward += float(reward)
            self._frames.append(self._rendered())
            if terminated or truncated:
                break
        return self._observation(), total_reward, terminated, truncated, info

    def render(self) -> Any:
        """
        :return: The newest frame, of shape ``(height, width, 3)``: what the agent sees
        """
        return self._frames[-1].transpose(1, 2, 0).copy() if self._frames else None

    def _observation(self) -> Frame:
        return np.concatenate(self._frames)

    def _rendered(self) -> Frame:
        """
        :return: A new frame, of shape ``(3, height, width)``
        """
        image: Any = self.env.render()
        # A copy in any case: a renderer may draw each frame into the same memory
        frame: Frame = np.array(np.transpose(image, (2, 0, 1)), order="C")
        if frame.shape[1:] != self.size:
            pooled = th.nn.functional.interpolate(th.from_numpy(frame)[None].float(), self.size, mode="area")
            frame = pooled[0].round().byte().numpy()
        return frame
