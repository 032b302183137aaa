"""
Environments whose state is not known, or out of reach: a resumed training begins a new episode, says so once, when the first
checkpoint is written, and its first transition is a true one.
"""

import importlib.util
import threading
import warnings
from collections import Counter
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from conftest import SMALL, StopAt, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from benchmarks.reliability import simulators
from sb3_bn_ddpg import BNDDPG, CheckpointEvery
from sb3_bn_ddpg.saving.checkpoint import read_manifest

WORLDS: dict[int, list[float]] = {}
"""Stands for the memory of a simulator's library, which no attribute holds"""


class Simulated(gym.Env):
    """Its attributes pickle well, its state is in the library, and it disconnects when it is collected."""

    observation_space = spaces.Box(-50, 50, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    disconnected: ClassVar[Counter] = Counter()

    def __init__(self, ep_length: int = 50) -> None:
        self.client = max(WORLDS, default=-1) + 1
        WORLDS[self.client] = []
        self.ep_length = ep_length
        self.seen: list[np.ndarray] = []

    def __del__(self) -> None:
        Simulated.disconnected[self.client] += 1

    def _observation(self) -> np.ndarray:
        self.seen.append(np.array(WORLDS[self.client][1:], np.float32))
        return self.seen[-1]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        WORLDS[self.client] = [0, float(self.np_random.normal()), 0.0]
        return self._observation(), {}

    def step(self, action):
        world = WORLDS[self.client]
        world[0] += 1
        world[2] += 0.1 * float(action[0])
        world[1] += 0.1 * world[2]
        return self._observation(), -abs(world[1]), False, world[0] >= self.ep_length, {}


def assert_first_transition_is_true(model, seen) -> None:
    """What the first transition after a resume stores is what the environment returned: by a reset, then by a step."""
    before = model.replay_buffer.pos
    model.learn(30, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.replay_buffer.observations[before, 0], seen[0])
    np.testing.assert_array_equal(model.replay_buffer.next_observations[before, 0], seen[1])
    assert model.replay_buffer.dones[before - 1, 0] == 1


def test_a_simulator_outside_of_python(make_model, tmp_path):
    Simulated.disconnected.clear()
    first = Simulated()
    model = make_model(first)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.learn(120, [CheckpointEvery(30, tmp_path / "checkpoint"), StopAt(100)])
    assert ["new episode" in str(warning.message) for warning in told] == [True]  # of four checkpoints
    assert read_manifest(tmp_path / "checkpoint")["resumes"] == "with a new episode"
    env = Simulated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither at the resume nor at its checkpoints
        resumed = BNDDPG.resume(tmp_path / "checkpoint", env)
        assert_first_transition_is_true(resumed, env.seen)
        resumed.save_checkpoint(tmp_path / "checkpoint")
    assert Simulated.disconnected == {}  # as a copy would do that is made to look at it
    assert model.env.envs[0].unwrapped is first


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pybullet_envs_gymnasium") is None, reason="needs pybullet_envs_gymnasium")
def test_pybullet():
    result = simulators.kill_and_resume("PyBullet")
    assert "with a new episode; its first transition is the environment's own (warnings before the kill: 1)" in result


@pytest.mark.slow
def test_a_known_simulator_is_killed_and_resumed():
    result = simulators.kill_and_resume("Gymnasium's classic control")
    assert (
        "in the middle of the episode; its first transition is the environment's own (warnings before the kill: 0)" in result
    )


def test_a_new_episode_can_be_asked_for(make_model, tmp_path):
    make_model(VectorEnv()).learn(30).save_checkpoint(tmp_path / "checkpoint")
    env = VectorEnv()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = BNDDPG.resume(tmp_path / "checkpoint", env, new_episode=True)
    assert resumed._last_obs is None
    assert resumed.replay_buffer.dones[29] == 1
    resumed.learn(7, reset_num_timesteps=False)
    assert env.steps == 7
    # Even if the environment is built differently
    resumed = BNDDPG.resume(tmp_path / "checkpoint", gym.wrappers.TimeLimit(VectorEnv(), 5), new_episode=True)
    assert resumed.learn(10, reset_num_timesteps=False).num_timesteps == 40


def test_a_wrapper_with_statistics_around_an_unknown_environment(make_model, tmp_path):
    """A new episode does not take from the networks what they were trained on."""
    env = gym.wrappers.NormalizeObservation(Simulated())
    with pytest.warns(UserWarning, match="begin a new episode"):
        make_model(env).learn(60).save_checkpoint(tmp_path / "checkpoint")
    fresh = gym.wrappers.NormalizeObservation(Simulated())
    BNDDPG.resume(tmp_path / "checkpoint", fresh)
    np.testing.assert_array_equal(fresh.obs_rms.mean, env.obs_rms.mean)


# --- Vectorised environments


class Engine:
    """A batch simulator with an interface of its own, as EnvPool: no ``VecEnv``, without seeds and ``get_attr``."""

    render_mode = None

    def __init__(self, n_envs: int) -> None:
        self.num_envs, self.steps = n_envs, np.zeros(n_envs, int)
        self.observation_space = spaces.Box(-5, 5, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.rng = np.random.default_rng(0)
        self.seen: list[np.ndarray] = []

    def observations(self) -> np.ndarray:
        self.seen.append(self.rng.normal(size=(self.num_envs, 3)).astype(np.float32))
        return self.seen[-1].copy()

    def advance(self):
        self.steps += 1
        done = self.steps >= 20
        self.steps[done] = 0
        return self.observations(), done


class Adapter(VecEnvWrapper):
    """Puts it in the place of a ``VecEnv``; ``dones`` are a list."""

    def seed(self, seed=None):
        return [None] * self.num_envs

    def reset(self):
        return self.venv.observations()

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        obs, done = self.venv.advance()
        infos = [{"terminal_observation": obs[index]} if done[index] else {} for index in range(self.num_envs)]
        return obs, -np.abs(self.actions[:, 0]), done.tolist(), infos


class RefusingVecEnv(VecEnv):
    """As simulators on a GPU have it: nothing can be asked of a single environment."""

    def __init__(self, n_envs: int) -> None:
        self.engine, self.seen = Engine(n_envs), None
        self.seen = self.engine.seen
        super().__init__(n_envs, self.engine.observation_space, self.engine.action_space)

    def reset(self):
        return self.engine.observations()

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        obs, done = self.engine.advance()
        infos = [{"terminal_observation": obs[index]} if done[index] else {} for index in range(self.num_envs)]
        return obs, -np.abs(self.actions[:, 0]), done, infos

    def close(self): ...

    def get_attr(self, name, indices=None):
        if name == "render_mode":
            return [None] * self.num_envs
        raise NotImplementedError(name)

    def set_attr(self, name, value, indices=None):
        raise NotImplementedError(name)

    def env_method(self, name, *args, indices=None, **kwargs):
        raise NotImplementedError(name)

    def env_is_wrapped(self, wrapper_class, indices=None):
        raise NotImplementedError(wrapper_class)


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize(
    "make_env",
    [
        lambda n_envs: VecMonitor(Adapter(Engine(n_envs))),
        lambda n_envs: RefusingVecEnv(n_envs),
        lambda n_envs: VecNormalize(RefusingVecEnv(n_envs), norm_obs=False),
    ],
)
def test_vectorised_environments_out_of_reach(make_model, tmp_path, make_env, n_envs):
    with pytest.warns(UserWarning, match=r"will begin a new episode"):
        make_model(make_env(n_envs)).learn(60, CheckpointEvery(20, tmp_path / "checkpoint"))
    env = make_env(n_envs)
    resumed = BNDDPG.resume(tmp_path / "checkpoint", env)
    before = resumed.replay_buffer.pos
    resumed.learn(5 * n_envs, reset_num_timesteps=False)
    innermost = env
    while isinstance(innermost, VecEnvWrapper):
        innermost = innermost.venv
    np.testing.assert_array_equal(resumed.replay_buffer.observations[before], innermost.seen[0])
    np.testing.assert_array_equal(resumed.replay_buffer.next_observations[before], innermost.seen[1])


# --- When checkpoints come


class Continuing(Simulated):
    """A plant behind a connection whose task never ends."""

    def __init__(self, ends_at: int | None = None, fails_at: int | None = None) -> None:
        super().__init__()
        self.connection, self.total_steps, self.ends_at, self.fails_at = threading.Lock(), 0, ends_at, fails_at

    def step(self, action):
        self.total_steps += 1
        if self.total_steps == self.fails_at:
            raise ConnectionError("the plant does not answer")
        obs, reward, *_ = super().step(action)
        return obs, reward, False, self.total_steps == self.ends_at, {}


class Times(CheckpointEvery):
    def _save(self):
        super()._save()
        self.times = [*getattr(self, "times", []), self.model.num_timesteps]


@pytest.mark.filterwarnings("ignore:Resuming from")
@pytest.mark.parametrize(
    ("ends_at", "times"),
    [(None, [40, 60, 80, 100, 120]), (50, [40, 80, 100, 120]), (65, [40, 60, 100, 120]), (90, [40, 60, 80, 120])],
)
def test_a_task_without_end_gets_its_checkpoints(make_model, tmp_path, ends_at, times):
    """The first one waits for ``save_freq`` steps in vain; the next ones do not, until an episode has ended."""
    callback = Times(20, tmp_path / "checkpoint")
    make_model(Continuing(ends_at)).learn(120, callback)
    assert callback.times == times


@pytest.mark.filterwarnings("ignore:Resuming from")
def test_what_is_left_when_a_plant_fails(make_model, tmp_path):
    with pytest.raises(Exception, match="the plant does not answer"):
        make_model(Continuing(fails_at=95)).learn(1000, CheckpointEvery(20, tmp_path / "checkpoint"))
    env = Continuing()
    resumed = BNDDPG.resume(tmp_path / "checkpoint", env)
    assert resumed.num_timesteps == 80
    assert_first_transition_is_true(resumed, env.seen)


class StoresItself(BNDDPG):
    """Does not call what it overrides, so nobody is told that a step is stored."""

    def _store_transition(self, replay_buffer, buffer_action, new_obs, reward, dones, infos):
        replay_buffer.add(self._last_obs, new_obs, buffer_action, reward, np.array(dones), infos)
        self._last_obs = new_obs


@pytest.mark.parametrize("train_freq", [1, 4])
def test_a_subclass_that_stores_transitions_by_itself(tmp_path, train_freq):
    env = VectorEnv(ep_length=1000)
    model = StoresItself("MlpPolicy", env, policy_kwargs=SMALL, buffer_size=200, learning_starts=5, train_freq=train_freq)
    model.learn(40, CheckpointEvery(20, tmp_path / "checkpoint"))
    model.learn(20, reset_num_timesteps=False)
    assert env.steps == 60  # one episode
    model.save_checkpoint(tmp_path / "checkpoint")
    resumed = StoresItself.resume(tmp_path / "checkpoint", fresh := VectorEnv(ep_length=1000))
    resumed.learn(4, reset_num_timesteps=False)
    assert fresh.steps == 64
    assert resumed.replay_buffer.dones.sum() == 0


def test_without_timeouts_a_new_episode_is_no_end(make_model, tmp_path):
    """Nothing else tells the last transition from one into a terminal state."""
    buffer = dict(replay_buffer_kwargs=dict(handle_timeout_termination=False))

    class OwnEnv(VectorEnv):
        get_checkpoint_state = None  # its state is not known

    model = make_model(OwnEnv(), **buffer).learn(30)
    with pytest.warns(UserWarning, match="new episode"):
        model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", OwnEnv())
    assert resumed._last_obs is None
    np.testing.assert_array_equal(resumed.replay_buffer.dones, model.replay_buffer.dones)
    assert not model.replay_buffer.dones[29].any()
