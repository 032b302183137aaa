"""The tables of known environments hold all of their state: by the sources of each class, and by restoring it."""

import ast
import importlib
import importlib.util
import inspect
import textwrap

import gymnasium as gym
import numpy as np
import pytest
from conftest import VectorEnv
from gymnasium import wrappers
from packaging.version import Version
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_bn_ddpg.pixels.dm_control import TASKS, import_suite
from sb3_bn_ddpg.saving import environment_state
from sb3_bn_ddpg.saving.known_environments import ENVIRONMENTS, MUJOCO_STATE, OF_RENDERING, VEC_WRAPPERS, WRAPPERS

OF_PROCESS = {
    *("screen", "surf", "clock", "isopen", "np_random", "_np_random", "_np_random_seed", "_cached_spec", "spec"),
    # SB3: the actions of the step that runs, what it warned of, how it records, and what loading sets
    *(
        "actions",
        "_actions",
        "_observations",
        "_user_warned",
        "training",
        "venv",
        "class_attributes",
        "num_envs",
        "render_mode",
    ),
    *("norm_obs_keys", "observation_space", "action_space", "_saved_kwargs", "_update_running_mean"),
    *("recording", "recorded_frames", "video_name", "video_path", "max_timesteps"),
}
"""What methods may assign without its being a state of the task"""
MUTATORS = {"append", "extend", "clear", "update", "pop", "add", "remove", "insert"}


def assigned_attributes(cls: type) -> set[str]:
    """The attributes of ``self`` that methods assign or change outside of the constructor, in a class and those it extends."""
    found = set()
    bases = [base for base in cls.__mro__ if base.__module__.startswith(cls.__module__.split(".")[0])]
    for base in bases:
        if base.__name__ in ("Env", "Wrapper", "VecEnv", "VecEnvWrapper", "RecordConstructorArgs"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        for method in ast.walk(tree):
            if not isinstance(method, ast.FunctionDef) or method.name in ("__init__", "render", "_render_frame", "close"):
                continue
            if method.name.startswith(("__", "set_venv", "load")):
                continue
            for node in ast.walk(method):
                targets = node.targets if isinstance(node, ast.Assign) else []
                targets = [node.target] if isinstance(node, (ast.AugAssign, ast.AnnAssign)) else targets
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
                    targets = [node.func.value]
                for target in targets:
                    parts = target.elts if isinstance(target, ast.Tuple) else [target]
                    for part in parts:
                        while isinstance(part, ast.Subscript):
                            part = part.value
                        while isinstance(part, ast.Attribute) and isinstance(part.value, ast.Attribute):
                            part = part.value
                        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                            found.add(part.attr)
    return found


def the_class(name: str) -> type:
    module, _, qualified_name = name.rpartition(".")
    skip_if_newer(module, qualified_name)
    return getattr(importlib.import_module(module), qualified_name)


def skip_if_newer(module: str, name: str) -> None:
    """Skip a test of a wrapper that an older Gymnasium does not have."""
    is_there = hasattr(importlib.import_module(module), name)
    if not is_there and module.startswith("gymnasium") and Version(gym.__version__) < Version("1.4"):
        pytest.skip(f"Gymnasium {gym.__version__} has no {name}")


@pytest.mark.parametrize("name", [*ENVIRONMENTS, *WRAPPERS, *VEC_WRAPPERS])
def test_no_method_changes_what_is_not_said_to_be_state(name):
    if name.startswith("sb3_bn_ddpg.dm_control"):
        pytest.importorskip("dm_control")
    table = ENVIRONMENTS | WRAPPERS | VEC_WRAPPERS
    said = {attribute for group in table[name] for attribute in group}
    assert assigned_attributes(the_class(name)) - said - OF_PROCESS - OF_RENDERING == set()


def trajectory(env: gym.Env, n_steps: int = 8) -> list:
    """Observations, rewards and ends under fixed actions, with what a reset observes after."""
    rng = np.random.default_rng(5)
    results = []
    for _ in range(n_steps):
        space = env.action_space
        action = (
            rng.uniform(space.low, space.high).astype(space.dtype) if isinstance(space, gym.spaces.Box) else rng.integers(2)
        )
        obs, reward, terminated, truncated, _ = env.step(action)
        results += [obs, np.array(reward), np.array(terminated), np.array(truncated)]
        if terminated or truncated:
            break
    return [*results, env.reset()[0]]


def flat(things: list) -> list:
    return [part for thing in things for part in (thing.values() if isinstance(thing, dict) else [thing])]


def assert_goes_on(make_env, n_steps: int = 7) -> None:
    """An environment that was given the state of another one goes on as that one."""
    first, second = make_env(), make_env()
    first.reset(seed=1)
    second.reset(seed=2)
    for _ in range(n_steps):
        first.step(first.action_space.sample())
        second.step(second.action_space.sample())
        second.step(second.action_space.sample())
    state = environment_state.capture(DummyVecEnv([lambda: first]))
    assert state.not_offered is None
    assert environment_state.restore(DummyVecEnv([lambda: second]), state) is None
    for one, other in zip(flat(trajectory(first)), flat(trajectory(second)), strict=True):
        np.testing.assert_array_equal(one, other)


WRAPPED = {
    "Autoreset": lambda env: wrappers.Autoreset(env),
    "RecordEpisodeStatistics": lambda env: wrappers.RecordEpisodeStatistics(env),
    "RepeatAction": lambda env: wrappers.RepeatAction(env, 2),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 2),
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 3),
    "MaxAndSkipObservation": lambda env: wrappers.MaxAndSkipObservation(env, 2),
    "NormalizeObservation": lambda env: wrappers.NormalizeObservation(env),
    "NormalizeReward": lambda env: wrappers.NormalizeReward(env),
    "TimeAwareObservation": lambda env: wrappers.TimeAwareObservation(env),
    "RescaleAction": lambda env: wrappers.RescaleAction(env, -1, 1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_go_on(name):
    skip_if_newer("gymnasium.wrappers", name)
    assert_goes_on(lambda: WRAPPED[name](gym.make("Pendulum-v1")))


@pytest.mark.parametrize("name", ["Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"])
def test_classic_control_goes_on(name):
    assert_goes_on(lambda: gym.make(name))


MUJOCO = (
    "Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Pusher Reacher Swimmer Walker2d"
)


@pytest.mark.parametrize("name", MUJOCO.split())
def test_mujoco_goes_on(name):
    pytest.importorskip("mujoco")
    assert_goes_on(lambda: gym.make(f"{name}-v5"), n_steps=3)


@pytest.mark.parametrize("name", MUJOCO.split())
def test_no_method_of_mujoco_changes_what_is_not_said_to_be_state(name):
    pytest.importorskip("mujoco")
    cls = type(gym.make(f"{name}-v5").unwrapped)
    assert assigned_attributes(cls) - {*MUJOCO_STATE, "data"} - OF_PROCESS - OF_RENDERING == set()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("dm_control") is None or importlib.util.find_spec("shimmy") is None, reason="needs dm_control"
)
@pytest.mark.parametrize("name", [f"{domain}-{task}" for domain, tasks in TASKS.items() for task in tasks])
def test_the_control_suite_goes_on(name):
    import_suite()

    try:
        assert_goes_on(lambda: wrappers.FlattenObservation(gym.make(f"dm_control/{name}-v0")))
    except Exception as error:
        if "OpenGL" not in str(error):
            raise
        pytest.skip("needs OpenGL, to upload its terrain")


def test_statistics_that_others_share_stay_shared():
    """As an evaluation's environment has those of the training's."""
    first, second = (VecNormalize(VecMonitor(make_vec_env("Pendulum-v1", 2))) for _ in range(2))
    shared, lengths = second.obs_rms, second.venv.venv.envs[0].episode_lengths
    first.reset()
    first.venv.venv.envs[0].episode_lengths.append(7)
    second.reset()
    assert environment_state.restore(second, environment_state.capture(first)) is None
    assert second.obs_rms is shared
    assert lengths is second.venv.venv.envs[0].episode_lengths
    assert lengths == [7]
    np.testing.assert_array_equal(shared.mean, first.obs_rms.mean)


def test_stacked_frames_go_on():
    first, second = (VecFrameStack(make_vec_env("Pendulum-v1", 2, seed=0), 3) for _ in range(2))
    actions = np.zeros((2, 1), np.float32)
    for env, n_steps in ((first, 4), (second, 2)):
        env.reset()
        for _ in range(n_steps):
            env.step(actions)
    assert environment_state.restore(second, environment_state.capture(first)) is None
    np.testing.assert_array_equal(first.step(actions)[0], second.step(actions)[0])


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: reward),  # may remember something
        lambda: type("Child", (type(gym.make("Pendulum-v1").unwrapped),), {})(),
        lambda: type("Child", (wrappers.TimeLimit,), {})(gym.make("Pendulum-v1"), 20),
    ],
)
def test_what_may_have_more_state_than_is_known(make_env):
    env = make_env()
    env.reset(seed=0)
    assert "is not known" in environment_state.capture(DummyVecEnv([lambda: env])).not_offered


def test_a_method_that_was_replaced_makes_an_environment_unknown():
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    env.unwrapped.step = env.unwrapped.step
    assert environment_state.capture(DummyVecEnv([lambda: env])).not_offered == "`step` of the PendulumEnv was replaced"


def test_a_subclass_of_a_vectorised_environment_is_not_known():
    class Own(DummyVecEnv):
        pass

    env = Own([VectorEnv])
    env.reset()
    assert environment_state.capture(env).not_offered == "the state of a Own is not known"
