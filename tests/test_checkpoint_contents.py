"""What a checkpoint holds: nothing of the passed environment but its state, and classes of the user as they are."""

import importlib
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.saving import stored_buffer
from sb3_bn_ddpg.saving.checkpoint import _generators, _restore_generators, read_manifest


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


def test_a_buffer_within_the_replay_buffer_is_tried_without_its_arrays(make_model, tmp_path, monkeypatch):
    """A dataset would take its memory twice more at each checkpoint. What else it has is tried as all else."""
    tried, pack = [], stored_buffer.pack
    monkeypatch.setattr(stored_buffer, "pack", lambda *args, **kw: tried.append(pack(*args, **kw)) or tried[-1])
    model = make_model(replay_buffer_class=ExpertBuffer).learn(20)
    model.replay_buffer.expert.rewards = np.zeros((10**6, 1), dtype=np.float32)
    model.save_checkpoint(tmp_path / "checkpoint")
    assert sum(map(len, tried)) < 10**6
    model.replay_buffer.expert.instrument = PassesOn(object())
    with pytest.warns(UserWarning, match="leave out of the replay buffer .*'expert': 'RecursionError"):
        model.save_checkpoint(tmp_path / "checkpoint")


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
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VecNormalize(same, clip_obs=5.0), device="cpu")
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


def test_numpys_numbers_are_equal_in_each_of_its_versions(make_model, tmp_path):
    """NumPy 1 writes 9.5 and NumPy 2 np.float64(9.5): an episode would end for it."""

    def env():
        return gym.make("Pendulum-v1", g=np.float64(9.5))

    make_model(env()).learn(30).save_checkpoint(tmp_path / "checkpoint")
    with np.printoptions(legacy="1.25"), warnings.catch_warnings():
        warnings.simplefilter("error")
        BNDDPG.resume(tmp_path / "checkpoint", env())


def test_the_generator_of_another_device_is_kept(make_model, monkeypatch):
    model, states = make_model(), [th.tensor([7], dtype=th.uint8)]
    monkeypatch.setattr(th.mps, "get_rng_state", lambda: states[0])
    monkeypatch.setattr(th.mps, "set_rng_state", states.append)
    model.device = th.device("mps")
    kept = _generators(model)
    _restore_generators(model, kept)
    assert states[1] is states[0]
    model.device = th.device("cpu")
    _restore_generators(model, kept)
    model.device = th.device("meta")  # which has none that PyTorch knows
    with pytest.warns(UserWarning, match="leave out the generator of meta"):
        _restore_generators(model, _generators(model))


@pytest.mark.parametrize("other", [dict(gamma=0.9), dict(clip_obs=5.0), dict(norm_reward=False), dict(training=False)])
def test_other_settings_of_vec_normalize_are_told(make_model, other, tmp_path):
    model = make_model(VecNormalize(make_vec_env("Pendulum-v1"))).learn(30)
    model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match=f"VecNormalize was made with other parameters .`{next(iter(other))}`"):
        BNDDPG.resume(tmp_path / "checkpoint", VecNormalize(make_vec_env("Pendulum-v1"), **other))
