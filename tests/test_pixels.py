"""The paper's pixel observations, on a small environment with a known picture and on the tasks of the suite."""

import itertools
import os
import subprocess
import sys
import textwrap
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.vec_env import SubprocVecEnv, VecTransposeImage, is_vecenv_wrapped

from benchmarks.reliability.resumes import fingerprint
from sb3_bn_ddpg import BNDDPG, FrameReplayBuffer, PixelObservation
from sb3_bn_ddpg.pixels import dm_control as suite_pixels


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


@pytest.fixture(scope="module")
def suite():
    """Both packages of the extra: RL Zoo brings Shimmy alone."""
    pytest.importorskip("dm_control")
    pytest.importorskip("shimmy")


@pytest.fixture(scope="module")
def cartpole(suite):
    try:
        env = gym.make("bn_ddpg/cartpole-swingup-pixels-v0")
    except ImportError as error:  # no library to render with
        pytest.skip(str(error))
    yield env
    env.close()


def test_all_tasks_are_registered():
    pytest.importorskip("dm_control")
    suite_pixels._choose_renderer()  # before dm_control does
    from dm_control import suite

    ours = {(domain, task) for domain, tasks in suite_pixels.TASKS.items() for task in tasks}
    assert ours == {(domain, task) for domain, task in suite.ALL_TASKS if domain != "lqr"}
    ids = {env_id for env_id in gym.registry if env_id.startswith("bn_ddpg/")}
    assert ids == {f"bn_ddpg/{domain}-{task}-pixels-v0" for domain, task in ours}


def test_cartpole(cartpole):
    assert cartpole.observation_space == spaces.Box(0, 255, (9, 64, 64), np.uint8)
    first, _ = cartpole.reset(seed=3)
    frames = first.reshape(3, 3, 64, 64)
    assert (frames == frames[0]).all()
    assert len(np.unique(first)) > 20  # a picture, not a plain colour
    observation, _, _, _, _ = cartpole.step(np.ones(1))
    frames = observation.reshape(3, 3, 64, 64)
    changes = [(a != b).any(axis=0).sum() for a, b in itertools.pairwise(frames)]
    assert all(0 < change < 400 for change in changes)  # cart and pole move, the rest stands still
    again, _ = cartpole.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(cartpole.reset(seed=4)[0], first)


def test_cartpole_renders_each_step_once(cartpole):
    camera = cartpole.unwrapped.physics
    wrapper = next(layer for layer in layers(cartpole) if isinstance(layer, suite_pixels.DmControlCamera))
    render, count = wrapper._camera.render, []
    wrapper._camera.render = lambda **kwargs: count.append(camera.data.time) or render(**kwargs)
    try:
        cartpole.reset(seed=0)
        for _ in range(5):
            cartpole.step(np.zeros(1))
        cartpole.get_wrapper_attr("render")()
    finally:
        wrapper._camera.render = render
    np.testing.assert_allclose(count, np.arange(16) * 0.01, atol=1e-9)


def test_frames_have_no_shadows_and_reflections(cartpole):
    observation, _ = cartpole.reset(seed=0)
    flags = dict(shadow=False, reflection=False)
    physics = cartpole.unwrapped.physics
    plain, full = (physics.render(64, 64, camera_id=0, render_flag_overrides=chosen) for chosen in (flags, {}))
    np.testing.assert_array_equal(observation[:3].transpose(1, 2, 0), plain)
    assert not np.array_equal(plain, full)


def layers(env):
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def test_a_whole_episode(cartpole):
    """A thousand simulator steps are 333 repetitions and one more step; the time limit truncates."""
    cartpole.reset(seed=0)
    n_steps, total, ended = 0, 0.0, False
    while not ended:
        _, reward, terminated, truncated, _ = cartpole.step(np.zeros(1))
        n_steps, total, ended = n_steps + 1, total + reward, terminated or truncated
    assert n_steps == 334
    assert (terminated, truncated) == (False, True)
    assert 0 <= total < 1000


def test_it_trains_on_the_suite_without_copies(cartpole):
    model = BNDDPG(
        "CnnPolicy",
        cartpole,
        batch_size=8,
        learning_starts=4,
        buffer_size=100,
        replay_buffer_class=FrameReplayBuffer,
        policy_kwargs=dict(net_arch=[16, 12]),
        seed=0,
    )
    assert not is_vecenv_wrapped(model.get_env(), VecTransposeImage)
    model.learn(10)
    # Three new frames a step, and one at the reset
    assert model.replay_buffer.frames.n_used <= 1 + 3 * 10


def test_a_training_from_pixels_is_resumed_to_the_bit(cartpole, tmp_path):
    """In the middle of an episode, with a camera made anew: also the next episode begins as it would have."""

    def make_env():
        return gym.make("bn_ddpg/cartpole-balance-pixels-v0", size=(16, 16), task_kwargs=dict(time_limit=0.3))

    def make_model():
        kwargs = dict(policy_kwargs=dict(net_arch=[8, 8]), replay_buffer_class=FrameReplayBuffer, seed=0, device="cpu")
        return BNDDPG("CnnPolicy", make_env(), batch_size=4, learning_starts=10, buffer_size=60, **kwargs)

    whole = make_model().learn(30)
    make_model().learn(15, schedule_timesteps=30).save_checkpoint(tmp_path / "checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = BNDDPG.resume(tmp_path / "checkpoint", make_env(), device="cpu")
    assert fingerprint(resumed.learn(15, reset_num_timesteps=False)) == fingerprint(whole)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["reacher-easy", "quadruped-walk", "ball_in_cup-catch"])
def test_other_tasks(cartpole, env_id):
    env = gym.make(f"bn_ddpg/{env_id}-pixels-v0", size=(32, 32), samples=0, n_frames=2)
    assert env.reset(seed=0)[0].shape == (6, 32, 32)
    env.step(env.action_space.sample())
    env.close()


@pytest.mark.slow
def test_in_processes(cartpole):
    env = SubprocVecEnv([lambda: gym.make("sb3_bn_ddpg:bn_ddpg/cartpole-balance-pixels-v0")] * 2, start_method="spawn")
    assert env.reset().shape == (2, 9, 64, 64)
    env.close()


def run_python(code: str, **environment: str | None) -> subprocess.CompletedProcess:
    names = os.environ | {name: value for name, value in environment.items() if value is not None}
    kept = {name: value for name, value in names.items() if environment.get(name, value) is not None}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, timeout=120)


MAKE = 'import gymnasium as gym, sb3_bn_ddpg; gym.make("bn_ddpg/cartpole-swingup-pixels-v0")'


@pytest.mark.parametrize("module", ["dm_control", "shimmy"])
def test_a_missing_package_is_named(module):
    if module == "shimmy":
        pytest.importorskip("dm_control")  # is asked for first
    result = run_python(f"import sys; sys.modules[{module!r}] = None; {MAKE}")
    assert result.returncode != 0
    assert f"{module} is not installed: run `pip install sb3-bn-ddpg[pixels]`" in result.stderr


@pytest.mark.usefixtures("suite")
def test_a_missing_library_is_named():
    code = f"import ctypes.util; ctypes.util.find_library = lambda name: None; {MAKE}"
    result = run_python(code, MUJOCO_GL=None, DISPLAY=None, WAYLAND_DISPLAY=None)
    assert result.returncode != 0
    assert "ImportError: MuJoCo cannot render" in result.stderr
    assert "apt-get install libegl1 libgl1-mesa-dri" in result.stderr
    assert "apt-get install libosmesa6" in result.stderr


@pytest.mark.usefixtures("suite")
def test_dm_control_may_have_been_imported_before():
    """As ``import shimmy`` does, which makes dm_control choose a renderer that needs a display."""
    code = f"import dm_control.suite; {MAKE}.reset()"
    result = run_python(code, MUJOCO_GL=None, DISPLAY=None, WAYLAND_DISPLAY=None)
    if "apt-get install" in result.stderr:
        pytest.skip("no library to render with")
    assert result.returncode == 0, result.stderr


def test_triton_is_imported_before_the_renderer(cartpole, tmp_path):
    """The other way round the first optimizer ends the process: Triton's LLVM would call Mesa's."""
    (tmp_path / "triton.py").write_text("import sys; print('dm_control' in sys.modules)")
    result = run_python(MAKE, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False\n"


def test_warnings_are_filtered_as_before(cartpole):
    """dm_control has each DeprecationWarning of the process shown."""
    code = "import gymnasium, sb3_bn_ddpg, warnings; before = warnings.filters[:]"
    code += f"; {MAKE}; import scipy; print([f for f in warnings.filters if f[2] is DeprecationWarning and f not in before])"
    assert run_python(code).stdout == "[]\n"


@pytest.mark.usefixtures("suite")
def test_a_renderer_that_fails_is_named():
    # As on a machine without a graphics card where somebody asked for a window
    result = run_python(MAKE, MUJOCO_GL="glfw", DISPLAY=":12345", WAYLAND_DISPLAY=None)
    assert result.returncode != 0
    assert "ImportError: MuJoCo cannot render (MUJOCO_GL='glfw')" in result.stderr


@pytest.mark.parametrize(
    ("environment", "found", "expected"),
    [
        ({}, {"EGL", "OSMesa"}, "egl"),
        ({}, {"OSMesa"}, "osmesa"),
        ({"MUJOCO_GL": "osmesa"}, {"EGL"}, "osmesa"),
        ({"DISPLAY": ":0"}, {"EGL"}, None),
    ],
)
def test_the_renderer_is_chosen_where_nobody_has(monkeypatch, environment, found, expected):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: name if name in found else None)
    suite_pixels._choose_renderer()
    assert os.environ.get("MUJOCO_GL") == expected


def test_importing_the_package_imports_no_simulator():
    result = run_python("import sys, sb3_bn_ddpg; print('dm_control' in sys.modules, 'shimmy' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]


def test_render_modes():
    pytest.importorskip("shimmy")
    with pytest.raises(ValueError, match="`render_mode='depth'` is not allowed: it must be one of None, 'rgb_array'"):
        suite_pixels.make_dm_control_pixels("cartpole", "swingup", render_mode="depth")


def test_a_window_as_enjoy_opens_it(suite):
    """In a process of its own: when it closes, its library closes the display of all renderers beside it."""
    pytest.importorskip("pygame")
    try:
        gym.make("bn_ddpg/cartpole-swingup-pixels-v0").close()
    except ImportError as error:  # no library to render with
        pytest.skip(str(error))
    code = """
        import gymnasium as gym, sb3_bn_ddpg
        env = gym.make("bn_ddpg/cartpole-swingup-pixels-v0", render_mode="human")
        env.reset(seed=0)
        env.step(env.action_space.sample())
        print(env.get_wrapper_attr("screen_size"))
        env.close()
    """
    result = run_python(textwrap.dedent(code), SDL_VIDEODRIVER="dummy")
    assert result.stdout.strip().endswith("(64, 64)"), result.stderr
