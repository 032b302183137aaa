"""The paper's pixel observations, on a small environment with a known picture. ``rendering.py`` has the tasks of the suite."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from sb3_bn_ddpg import PixelObservation


class CountingEnv(gym.Env):
    """Its picture is the number of steps since the reset, its reward too; it counts how often it renders."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(self, terminates_at=10**9, truncates_at=10**9, shape=(64, 64), render_mode="rgb_array") -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))
        self.terminates_at, self.truncates_at, self.shape = terminates_at, truncates_at, shape
        self.render_mode = render_mode
        self.n_rendered = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        terminated, truncated = self.steps >= self.terminates_at, self.steps >= self.truncates_at
        return np.zeros(2, np.float32), float(self.steps), terminated, truncated, {"steps": self.steps}

    def render(self):
        self.n_rendered += 1
        return np.full((*self.shape, 3), [self.steps, 100, 200], np.uint8)


def red(observation) -> list[int]:
    """The step that each frame of an observation shows."""
    assert observation.dtype == np.uint8
    assert (observation[1::3] == 100).all()
    assert (observation[2::3] == 200).all()
    return [int(np.unique(frame).item()) for frame in observation[::3]]


def test_three_steps_three_frames():
    env = PixelObservation(CountingEnv())
    assert env.observation_space == spaces.Box(0, 255, (9, 64, 64), np.uint8)
    observation, _ = env.reset()
    assert red(observation) == [0, 0, 0]  # one frame, three times
    observation, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert red(observation) == [1, 2, 3]
    assert reward == 1 + 2 + 3
    assert not terminated
    assert not truncated
    assert info == {"steps": 3}
    assert red(env.step(np.zeros(1))[0]) == [4, 5, 6]
    assert env.unwrapped.n_rendered == 1 + 6


@pytest.mark.parametrize(("end", "frames", "reward"), [(4, [2, 3, 4], 4), (5, [3, 4, 5], 4 + 5), (6, [4, 5, 6], 4 + 5 + 6)])
@pytest.mark.parametrize("kind", ["terminates_at", "truncates_at"])
def test_an_episode_that_ends_within_a_repetition(kind, end, frames, reward):
    """It ends there: no step is taken after the end, and the frames are the last three of the episode."""
    env = PixelObservation(CountingEnv(**{kind: end}))
    env.reset()
    env.step(np.zeros(1))
    observation, total, terminated, truncated, _ = env.step(np.zeros(1))
    assert env.unwrapped.steps == end
    assert red(observation) == frames
    assert total == reward
    assert (terminated, truncated) == (kind == "terminates_at", kind == "truncates_at")
    assert red(env.reset()[0]) == [0, 0, 0]
    assert env.unwrapped.n_rendered == 1 + end + 1


def test_an_episode_of_one_step():
    env = PixelObservation(CountingEnv(terminates_at=1))
    env.reset()
    assert red(env.step(np.zeros(1))[0]) == [0, 0, 1]


def test_render_returns_what_was_seen():
    env = PixelObservation(CountingEnv())
    env.reset()
    env.step(np.zeros(1))
    picture = env.render()
    assert picture.shape == (64, 64, 3)
    assert (picture[..., 0] == 3).all()
    assert env.unwrapped.n_rendered == 4


def test_observations_are_not_overwritten():
    env = PixelObservation(CountingEnv())
    first, _ = env.reset()
    second = env.step(np.zeros(1))[0]
    env.step(np.zeros(1))
    assert red(first) == [0, 0, 0]
    assert red(second) == [1, 2, 3]


def test_number_of_frames_and_size():
    env = PixelObservation(CountingEnv(), n_frames=2, size=(32, 48))
    observation, _ = env.reset()
    assert observation.shape == env.observation_space.shape == (6, 32, 48)
    assert red(env.step(np.zeros(1))[0]) == [1, 2]


def test_larger_pictures_are_averaged():
    class Halves(CountingEnv):
        def render(self):
            picture = np.zeros((128, 192, 3), np.uint8)
            picture[::2] = 200
            picture[:, 96:] = 40
            return picture

    observation, _ = PixelObservation(Halves()).reset()
    assert observation.shape == (9, 64, 64)
    assert (observation[:, :, :32] == 100).all()
    assert (observation[:, :, 32:] == 40).all()


def test_real_environment_of_gymnasium():
    pytest.importorskip("pygame")
    env = PixelObservation(gym.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=10))
    check_env_for_sb3(env)
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n_frames=0), r"`n_frames=0` is not allowed: it must be an integer >= 1"),
        (dict(size=(64,)), r"`size=\(64,\)` is not allowed: it must be height and width"),
        (dict(size=(64, 0)), r"`size=0` is not allowed: it must be an integer >= 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelObservation(CountingEnv(), **arguments)


def test_render_mode_is_needed():
    with pytest.raises(ValueError, match="`env` with the render mode None is not allowed: it must be 'rgb_array'"):
        PixelObservation(CountingEnv(render_mode=None))


def test_rendering():
    """All of ``rendering.py``."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", str(Path(__file__).with_name("rendering.py"))]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)  # what is skipped there


def test_frames_of_a_renderer_with_one_picture_memory():
    class Rendering(gym.Env):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
        render_mode = "rgb_array"
        observation_space = action_space = spaces.Box(-1, 1, (1,))
        picture = np.zeros((3, 8, 8), np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.picture[...] = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.picture[...] += 1
            return np.zeros(1, np.float32), 0.0, False, False, {}

        def render(self):
            return self.picture.transpose(1, 2, 0)

    env = PixelObservation(Rendering(), 3, (8, 8))
    env.reset()
    assert env.step(np.zeros(1))[0][::3, 0, 0].tolist() == [1, 2, 3]
