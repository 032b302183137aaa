"""
Environments whose state is not known, or out of reach: a resumed training begins a new episode, says so once, when the first
checkpoint is written, and its first transition is a true one.
"""

import importlib.util
import subprocess
import sys
import threading
import warnings
from collections import Counter
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from conftest import SMALL, StopAt, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from benchmarks.reliability import simulators
from sb3_bn_ddpg import BNDDPG, CheckpointEvery
from sb3_bn_ddpg.checkpoint import read_manifest
from sb3_bn_ddpg.guards import EnvironmentFailureError

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


# --- Objects of the environment


class PassesOn:
    """Pickles, but its pickle cannot be read: all attributes that it lacks are another object's."""

    def __init__(self, other):
        self.other = other

    def __getattr__(self, name):
        return getattr(self.other, name)


class Saying(VectorEnv):
    """Says a state of the test's choice."""

    state = None

    def get_checkpoint_state(self):
        return self.state

    def set_checkpoint_state(self, state):
        self.restored = state


def test_what_cannot_be_read_back_is_found_when_it_is_written(make_model, tmp_path):
    env = Saying()
    env.state = PassesOn(object())
    with pytest.warns(UserWarning, match="begin a new episode: RecursionError"):
        make_model(env).learn(30).save_checkpoint(tmp_path / "checkpoint")
    assert BNDDPG.resume(tmp_path / "checkpoint", Saying()).learn(5, reset_num_timesteps=False).num_timesteps == 35


class OwnModel(BNDDPG):
    instrument = None


class OwnBuffer(ReplayBuffer):
    instrument = None


class OwnNoise(ActionNoise):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __call__(self):
        return np.full(2, 0.01)


def test_attributes_of_model_and_buffer_that_cannot_be_read_back(tmp_path):
    model = OwnModel("MlpPolicy", VectorEnv(), policy_kwargs=SMALL, buffer_size=100, replay_buffer_class=OwnBuffer)
    model.learn(20)
    model.instrument = model.replay_buffer.instrument = PassesOn(object())
    with warnings.catch_warnings(record=True) as told:
        model.save_checkpoint(tmp_path / "checkpoint")
    assert [str(warning.message).split(" what ")[0] for warning in told] == [
        "Checkpoints leave out of the model",
        "Checkpoints leave out of the replay buffer",
    ]
    assert all("instrument" in str(warning.message) for warning in told)
    resumed = OwnModel.resume(tmp_path / "checkpoint", VectorEnv())
    assert resumed.instrument is resumed.replay_buffer.instrument is None
    np.testing.assert_array_equal(resumed.replay_buffer.rewards, model.replay_buffer.rewards)


def test_an_argument_that_cannot_be_read_back_leaves_the_checkpoint_before(make_model, tmp_path):
    model = make_model().learn(20)
    model.save_checkpoint(tmp_path / "checkpoint")
    model.policy_kwargs = dict(SMALL, extra=PassesOn(object()))
    model.num_timesteps = 25
    with pytest.raises(ValueError, match="`policy_kwargs` of the model cannot be read back: no checkpoint was written"):
        model.save_checkpoint(tmp_path / "checkpoint")
    assert BNDDPG.resume(tmp_path / "checkpoint", VectorEnv()).num_timesteps == 20


def test_a_noise_that_cannot_be_read_back(make_model, tmp_path):
    model = make_model(action_noise=OwnNoise(PassesOn(object()))).learn(20)
    with pytest.warns(UserWarning, match="leave out `action_noise`, which cannot be read back: RecursionError"):
        model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match="`action_noise` is missing in the resumed training: it was left out"):
        resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    assert resumed.action_noise is None


@pytest.mark.parametrize("state", [lambda model: model, lambda model: model.replay_buffer, lambda model: np.zeros(10**7)])
def test_models_and_tables_stay_out(make_model, tmp_path, state):
    env = Saying()
    model = make_model(env).learn(30)
    env.state = state(model)
    with pytest.warns(
        UserWarning, match=r"begin a new episode: (a \w+ must not be in a checkpoint of another one|80,\d+,\d+ bytes are too)"
    ):
        model.save_checkpoint(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").stat().st_size < 200_000


def test_arguments_of_an_id_stay_out_too(tmp_path, monkeypatch):
    """As of an environment that is made with the table of prices it replays."""
    gym.register("TestTable-v0", lambda table: VectorEnv())
    try:
        env = gym.make("TestTable-v0", table=np.zeros(10**7))
        model = BNDDPG("MlpPolicy", env, policy_kwargs=SMALL, buffer_size=100).learn(20)
        model.save_checkpoint(tmp_path / "checkpoint")
        assert (tmp_path / "checkpoint").stat().st_size < 200_000
        with pytest.raises(ValueError, match="`env=None` is not allowed"):
            BNDDPG.resume(tmp_path / "checkpoint")
        assert BNDDPG.resume(tmp_path / "checkpoint", env).num_timesteps == 20
    finally:
        del gym.registry["TestTable-v0"]


def test_an_id_made_with_a_connection(tmp_path):
    """Gymnasium copies what an environment was made from when a wrapper is asked for it, and the copy would disconnect."""

    class Connection:
        disconnected = 0

        def __del__(self) -> None:
            Connection.disconnected += 1

    connection = Connection()
    gym.register("TestConnection-v0", lambda connection: VectorEnv())
    try:
        env = gym.make("TestConnection-v0", connection=connection)
        model = BNDDPG("MlpPolicy", env, policy_kwargs=SMALL, buffer_size=100).learn(20)
        model.save_checkpoint(tmp_path / "checkpoint")
        assert Connection.disconnected == 0
        assert read_manifest(tmp_path / "checkpoint")["environment"] == ["TestConnection-v0"]
    finally:
        del gym.registry["TestConnection-v0"]


class ExpertBuffer(ReplayBuffer):
    """Holds another one."""

    def __init__(self, buffer_size, *args, **kwargs):
        super().__init__(buffer_size, *args, **kwargs)
        self.expert = ReplayBuffer(10, *args, **kwargs)
        self.expert.rewards += 7


def test_buffers_within_the_replay_buffer_stay(make_model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(replay_buffer_class=ExpertBuffer).learn(20).save_checkpoint(tmp_path / "checkpoint")
        assert BNDDPG.resume(tmp_path / "checkpoint", VectorEnv()).replay_buffer.expert.rewards.max() == 7


def test_dictionaries_of_arrays_stay(tmp_path):
    class DictEnv(gym.ObservationWrapper):
        def __init__(self):
            super().__init__(VectorEnv())
            self.observation_space = spaces.Dict(a=self.env.observation_space)

        def observation(self, observation):
            return {"a": observation}

        def get_checkpoint_state(self):
            return None

        def set_checkpoint_state(self, state): ...

    model = BNDDPG("MultiInputPolicy", DictEnv(), policy_kwargs=SMALL, buffer_size=100).learn(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", DictEnv())
    np.testing.assert_array_equal(resumed.replay_buffer.observations["a"], model.replay_buffer.observations["a"])


class Plays(gym.Wrapper):
    """Reads an object that others hold too: an opponent, a curriculum."""

    def __init__(self, env, shared):
        super().__init__(env)
        self.shared, self.levels = shared, []

    def step(self, action):
        self.levels.append(self.shared["level"])
        return super().step(action)


class Advance(BaseCallback):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def _on_step(self):
        self.shared["level"] = self.num_timesteps // 10
        return True


def test_what_the_environment_shares_stays_shared(make_model, tmp_path):
    other = make_model()
    shared = {"level": 0, "opponent": other}
    model = make_model(Plays(VectorEnv(), shared)).learn(30, Advance(shared))
    model.save_checkpoint(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").stat().st_size < 200_000
    shared = {"level": 0, "opponent": other}
    env = Plays(VectorEnv(), shared)
    resumed = BNDDPG.resume(tmp_path / "checkpoint", env).learn(30, Advance(shared), reset_num_timesteps=False)
    assert resumed.env.envs[0].unwrapped is env.unwrapped
    assert env.shared is shared
    assert env.shared["opponent"] is other
    assert env.levels[-1] == 5


def test_a_noise_shares_what_it_shared_with_the_environment(make_model, tmp_path):
    class Wind:
        force = 0.5

    def make():
        env = VectorEnv()
        env.wind = Wind()
        return env

    env = make()
    make_model(env, action_noise=OwnNoise(env.wind)).learn(30).save_checkpoint(tmp_path / "checkpoint")
    env = make()
    assert BNDDPG.resume(tmp_path / "checkpoint", env).action_noise.reads is env.wind


def test_a_noise_refers_to_the_model_that_was_resumed(make_model, tmp_path):
    model = make_model(action_noise=OwnNoise(None)).learn(20)
    model.action_noise.reads = [model, model.policy, model.replay_buffer]
    model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    assert all(
        a is b for a, b in zip(resumed.action_noise.reads, [resumed, resumed.policy, resumed.replay_buffer], strict=True)
    )


def test_parameters_stay_those_of_the_environment_that_was_passed(tmp_path):
    arguments = dict(policy_kwargs=SMALL, buffer_size=100, learning_starts=5, device="cpu")
    env = VecNormalize(make_vec_env("Pendulum-v1", env_kwargs=dict(g=10.0)), clip_obs=5.0)
    BNDDPG("MlpPolicy", env, **arguments).learn(30).save_checkpoint(tmp_path / "checkpoint")
    changed = VecNormalize(make_vec_env("Pendulum-v1", env_kwargs=dict(g=2.0)), clip_obs=7.0)
    with pytest.warns(UserWarning, match=r"begins a new episode: the PendulumEnv was made .* \(`g` 10.0 then, 2.0 now\)"):
        resumed = BNDDPG.resume(tmp_path / "checkpoint", changed, device="cpu")
    resumed.learn(10, reset_num_timesteps=False)
    assert changed.get_attr("g") == [2.0]
    assert changed.clip_obs == 7.0
    assert resumed.replay_buffer.dones[29] == 1
    same = make_vec_env("Pendulum-v1", env_kwargs=dict(g=10.0))
    same.envs[0].unwrapped.viewer = "another"  # attributes that are nobody's parameter
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VecNormalize(same), device="cpu")
    assert resumed._last_obs is not None
    assert same.envs[0].unwrapped.viewer == "another"


def test_an_environment_that_does_not_take_its_state(make_model, tmp_path):
    class Refuses(VectorEnv):
        def set_checkpoint_state(self, state):
            raise LookupError("no such body")

    make_model(Refuses()).learn(30).save_checkpoint(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match="begins a new episode: a Refuses does not take its state: LookupError: no such body"):
        resumed = BNDDPG.resume(tmp_path / "checkpoint", Refuses())
    assert resumed.learn(30, reset_num_timesteps=False).num_timesteps == 60


def test_a_state_whose_module_is_gone(make_model, tmp_path, monkeypatch):
    """Networks and replay buffer are reachable, whatever the environment's state is made of."""
    (tmp_path / "gone_simulator.py").write_text("class State:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    env = Saying()
    env.state = importlib.import_module("gone_simulator").State()
    make_model(env).learn(30).save_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "gone_simulator.py").unlink()
    monkeypatch.delitem(sys.modules, "gone_simulator")
    importlib.invalidate_caches()
    with pytest.warns(UserWarning, match="begins a new episode: a Saying does not take its state: ModuleNotFoundError"):
        resumed = BNDDPG.resume(tmp_path / "checkpoint", Saying())
    assert resumed.replay_buffer.pos == resumed.num_timesteps == 30


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
    with pytest.raises((ConnectionError, EnvironmentFailureError)):
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


# --- Scripts

SCRIPT = """
import enum, sys
import gymnasium as gym, numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from sb3_bn_ddpg import BNDDPG, MlpPolicy

class Phase(enum.Enum):
    FIRST = 1

class OwnBuffer(ReplayBuffer):
    pass

class OwnPolicy(MlpPolicy):
    pass

class Walk(gym.Env):
    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.phase, self.steps, self.x = Phase.FIRST, 0, self.np_random.normal(size=2).astype(np.float32)
        return self.x, {}

    def step(self, action):
        assert self.phase is Phase.FIRST, self.phase
        self.steps += 1
        self.x = np.clip(self.x + 0.1 * np.float32(action[0]), -10, 10)
        return self.x, 0.0, False, False, {}

    def get_checkpoint_state(self):
        return self.phase, self.steps, self.x

    def set_checkpoint_state(self, state):
        self.phase, self.steps, self.x = state

def train():
    arguments = dict(policy_kwargs=dict(net_arch=[8, 8]), learning_starts=5, buffer_size=100, replay_buffer_class=OwnBuffer)
    model = BNDDPG(OwnPolicy, Walk(), **arguments).learn(15)
    model.save_checkpoint("checkpoint")

def resume():
    model = BNDDPG.resume("checkpoint", Walk())
    model.learn(10, reset_num_timesteps=False)
    assert model.env.envs[0].unwrapped.steps == 25, "it went on in the middle of the episode"
    assert type(model.replay_buffer) is OwnBuffer
    assert type(model.policy) is model.policy_class is OwnPolicy
    assert model.replay_buffer_class is OwnBuffer
    print("resumed")

if __name__ == "__main__":
    train() if sys.argv[1] == "train" else resume()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trains", "resumes"),
    [
        (["script.py", "train"], ["script.py", "resume"]),
        (["script.py", "train"], ["-c", "import script; script.resume()"]),
        (["-c", "import script; script.train()"], ["script.py", "resume"]),
        (["package/script.py", "train"], ["-m", "package.script", "resume"]),
        (["-c", "from package import script; script.train()"], ["package/script.py", "resume"]),
    ],
)
def test_classes_of_the_users_script_are_its_own(tmp_path, trains, resumes):
    """Of a script that is run again, or imported by another one, or the other way round."""
    (tmp_path / "package").mkdir()
    for path in ("script.py", "package/script.py"):
        (tmp_path / path).write_text(SCRIPT)
    for arguments in (trains, resumes):
        result = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "resumed"
