"""
The paper's pixel observations of the tasks of the suite. ``test_pixels.py`` runs this in a process of its own: Mesa draws with
an LLVM, and so does Numba compile, and a process that has both may end without a word.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
import textwrap
import warnings

import gymnasium as gym
import numpy as np
import pytest
import test_docs
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecTransposeImage, is_vecenv_wrapped

from benchmarks.reliability.resumes import fingerprint
from sb3_bn_ddpg import BNDDPG, FrameReplayBuffer
from sb3_bn_ddpg.pixels import dm_control as suite_pixels

zoo_profiles = importlib.import_module("test_zoo_profiles") if importlib.util.find_spec("rl_zoo3") else None


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


@pytest.mark.slow
@pytest.mark.parametrize("page", test_docs.DRAWING, ids=lambda page: page.name)
def test_python_blocks_of_the_documentation(cartpole, page, tmp_path, monkeypatch, request):
    test_docs.run_blocks(page, tmp_path, monkeypatch, request)


@pytest.mark.parametrize(("algo", "profile"), zoo_profiles.ONLINE_PROFILES if zoo_profiles else [])
def test_profiles_for_pixels_build_a_model(cartpole, algo, profile, tmp_path):
    model = zoo_profiles.model_of(algo, profile, "bn_ddpg/cartpole-swingup-pixels-v0", tmp_path)
    assert type(model.replay_buffer) is FrameReplayBuffer
    assert type(model.policy) is zoo_profiles.policy_of(algo, "CnnPolicy")
    has_defaults = profile == zoo_profiles.DEFAULTS[algo]
    assert model.batch_size == (16 if has_defaults else 32)
    assert (model.critic.features_extractor is model.actor.features_extractor) == (not has_defaults)
    assert model.replay_buffer.gamma == model.gamma
