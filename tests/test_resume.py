"""A training that is interrupted and resumed in another process ends with the same bits as one that was not."""

import warnings
from collections import defaultdict
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import StopAt, VectorEnv
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize, VecVideoRecorder

from benchmarks.reliability import resumes
from benchmarks.reliability.resumes import TRAININGS, fingerprint, whole
from sb3_bn_ddpg import BNDDPG, CheckpointEvery
from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.saving.checkpoint import VERSIONS

# The processes that these need are started once: a few trainings stand for all, which `benchmarks.reliability.resumes` does
QUICK = ("MlpPolicy", "MlpPolicy by autograd", "three environments", "n-step", "OU noise with a schedule", "TD3", "SAC")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """For each training, what a second process made of its checkpoint."""
    return resumes.resume_in_another_process(tmp_path_factory.mktemp("checkpoints"), QUICK)


@pytest.fixture(scope="module")
def resumed_slowly(tmp_path_factory):
    return resumes.resume_in_another_process(tmp_path_factory.mktemp("checkpoints"), [*TRAININGS.keys() - set(QUICK)])


def _assert_equal(name, result, folder) -> None:
    expected = fingerprint(whole(TRAININGS[name], folder))
    assert "error" not in result, result
    assert [thing for thing in expected if result.get(thing) != expected[thing]] == []


@pytest.mark.parametrize("name", QUICK)
def test_resumed_equals_uninterrupted(name, resumed, tmp_path):
    _assert_equal(name, resumed[name], tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in QUICK])
def test_resumed_equals_uninterrupted_slow(name, resumed_slowly, tmp_path):
    _assert_equal(name, resumed_slowly[name], tmp_path)


def test_two_halves_that_know_of_each_other(make_model, tmp_path):
    """`learn(2N)` is `learn(N)`, twice, also on a schedule, if the first half is told where the schedule ends."""
    kwargs = dict(learning_rate=LinearSchedule(1e-3, 0.0, 1.0))
    expected = fingerprint(make_model(**kwargs).learn(120))
    model = make_model(**kwargs).learn(60, schedule_timesteps=120)
    assert model._current_progress_remaining == 0.5
    model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv(), device="cpu")
    resumed.learn(60, reset_num_timesteps=False)
    assert {name for name, value in fingerprint(resumed).items() if value != expected[name]} == set()


class Stateless(gym.Wrapper):
    """Says that it has no state of its own."""

    def get_checkpoint_state(self):
        return None

    def set_checkpoint_state(self, state):
        assert state is None


class RandomStart(Stateless):
    """Begins each episode with random actions, from the same action space as the model's warm-up."""

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        for _ in range(3):
            obs, *_ = self.env.step(self.env.action_space.sample())
        return obs, info


def test_an_environment_that_draws_from_its_action_space(make_model, tmp_path):
    def make(env):
        return make_model(env, learning_starts=100)

    def make_env():
        return RandomStart(VectorEnv(ep_length=7))

    whole = make(make_env()).learn(60)
    half = make(make_env()).learn(30, schedule_timesteps=60)
    half.save_checkpoint(tmp_path / "half")
    resumed = BNDDPG.resume(tmp_path / "half", make_env()).learn(30, reset_num_timesteps=False)
    for model in (whole, resumed):
        assert model.action_space is model.env.envs[0].action_space
    np.testing.assert_array_equal(resumed.replay_buffer.actions[:60], whole.replay_buffer.actions[:60])
    np.testing.assert_array_equal(resumed.replay_buffer.observations[:60], whole.replay_buffer.observations[:60])


class SharedCount(VectorEnv):
    """Rewards that depend on how many steps all the environments have made together."""

    def __init__(self, count):
        super().__init__(ep_length=7)
        self.count = count

    def step(self, action):
        self.count[0] += 1
        obs, reward, *rest = super().step(action)
        return obs, reward + self.count[0], *rest

    def get_checkpoint_state(self):
        return self.steps, self.count[0]

    def set_checkpoint_state(self, state):
        self.steps, self.count[0] = state


def test_environments_that_share_an_object(make_model, tmp_path):
    def make_env():
        count = [0]
        return DummyVecEnv([lambda: SharedCount(count)] * 2)

    whole = make_model(make_env()).learn(60)
    make_model(make_env()).learn(30, schedule_timesteps=60).save_checkpoint(tmp_path / "half")
    resumed = BNDDPG.resume(tmp_path / "half", make_env()).learn(30, reset_num_timesteps=False)
    assert fingerprint(resumed) == fingerprint(whole)


class EpisodeNoise(ActionNoise):
    """Looks at the environment."""

    def __init__(self, env):
        super().__init__()
        self.env = env

    def __call__(self):
        return np.full(2, 0.01 * self.env.steps)


def test_noise_that_looks_at_the_environment(make_model, tmp_path):
    def make():
        env = VectorEnv(ep_length=7)
        return make_model(env, action_noise=EpisodeNoise(env))

    whole = make().learn(60)
    make().learn(30, schedule_timesteps=60).save_checkpoint(tmp_path / "half")
    resumed = BNDDPG.resume(tmp_path / "half", VectorEnv(ep_length=7))
    assert resumed.action_noise.env is resumed.env.envs[0].unwrapped
    assert fingerprint(resumed.learn(30, reset_num_timesteps=False)) == fingerprint(whole)


class VideoEnv(VectorEnv):
    metadata: ClassVar[dict] = dict(render_modes=["rgb_array"], render_fps=5)
    render_mode = "rgb_array"

    def render(self):
        return np.full((4, 4, 3), self.steps, np.uint8)


def test_a_wrapper_that_refers_to_what_it_wraps(make_model, tmp_path):
    pytest.importorskip("moviepy")  # the recorder asks for it, though it records nothing here

    def make_env():
        return VecVideoRecorder(VecNormalize(make_vec_env(VideoEnv)), str(tmp_path), lambda step: False)

    make_model(make_env()).learn(30).save_checkpoint(tmp_path / "checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = BNDDPG.resume(tmp_path / "checkpoint", make_env())
    assert resumed.env.env is resumed.env.venv
    assert resumed.env.env.render().max() == 10


class Unpicklable(VecEnvWrapper):
    def __init__(self, venv):
        super().__init__(venv)
        self.generator = (number for number in range(1))

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


@pytest.mark.parametrize("is_outside", [False, True])
def test_a_wrapper_that_hides_its_state_keeps_that_of_no_other(make_model, tmp_path, is_outside):
    def make_env():
        env = make_vec_env(VectorEnv)
        return Unpicklable(VecNormalize(env)) if is_outside else VecNormalize(Unpicklable(env))

    model = make_model(make_env()).learn(30)
    with pytest.warns(UserWarning, match=r"will begin a new episode: what the whole state of Unpicklable is, is not known"):
        model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", make_env())
    np.testing.assert_array_equal(resumed._vec_normalize_env.obs_rms.mean, model._vec_normalize_env.obs_rms.mean)
    resumed.learn(10, reset_num_timesteps=False)


def test_remaining_timesteps(make_model, tmp_path):
    model = make_model().learn(100, [CheckpointEvery(20, tmp_path / "checkpoint"), StopAt(45)])
    assert model.remaining_timesteps == 55
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    assert (resumed.num_timesteps, resumed.remaining_timesteps) == (45, 55)


class HidesItsState(VectorEnv):
    """Does not say what its state is."""

    get_checkpoint_state = None  # type: ignore[assignment]

    def __init__(self, ep_length: int = 25) -> None:
        super().__init__(ep_length=ep_length)


class RecordedCheckpoints(CheckpointEvery):
    """Knows when it wrote."""

    def _save(self) -> None:
        super()._save()
        self.times = [*getattr(self, "times", []), self.model.num_timesteps]


@pytest.mark.parametrize(
    ("train_freq", "ep_length", "times"),
    [
        (1, 25, [50, 100, 150, 200]),
        (16, 25, [64, 128, 160, 208]),  # an episode ends in the rollouts before
        (8, 27, [56, 112, 168, 200]),
        ((1, "episode"), 27, [54, 108, 162, 216]),
    ],
)
def test_checkpoints_of_an_environment_that_hides_its_state_come_with_any_train_freq(
    make_model, tmp_path, train_freq, ep_length, times
):
    callback = RecordedCheckpoints(50, tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match="will begin a new episode"):
        model = make_model(HidesItsState(ep_length), train_freq=train_freq).learn(200, callback)
    assert callback.times == times
    resumed = BNDDPG.resume(tmp_path / "checkpoint", HidesItsState(ep_length))
    buffers = (model.replay_buffer, resumed.replay_buffer)
    assert resumed.replay_buffer.dones[resumed.replay_buffer.pos - 1]
    for name in ("observations", "actions", "rewards", "timeouts"):
        np.testing.assert_array_equal(*(getattr(buffer, name)[: times[-2]] for buffer in buffers))


def test_a_monitor_that_forbids_resets_is_not_reset(make_model, tmp_path):
    callback = RecordedCheckpoints(30, tmp_path / "checkpoint")
    make_model(Monitor(HidesItsState(), allow_early_resets=False)).learn(100, [callback, StopAt(95)])
    assert callback.times == [30, 60, 90, 95]


def test_callbacks_go_on(make_model, tmp_path):
    """The best model so far is not forgotten, and the next evaluation is due when it would have been."""

    def callbacks() -> list:
        evaluation = EvalCallback(make_vec_env(VectorEnv), n_eval_episodes=1, eval_freq=15, verbose=0)
        return [evaluation, CheckpointEvery(20, tmp_path / "checkpoint")]

    first = callbacks()
    make_model().learn(70, first)
    second = callbacks()
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    assert resumed.num_timesteps == 70
    resumed.learn(10, CallbackList(second), reset_num_timesteps=False)
    assert second[0].evaluations_timesteps == []  # no log_path
    assert second[0].n_calls == 80
    assert second[0].best_mean_reward >= first[0].best_mean_reward > -np.inf


def test_an_environment_that_hides_its_state_starts_anew(tmp_path):
    """Between episodes nothing is lost; within one, what is stored of it ends as by a time limit, and is said to."""
    training = TRAININGS["an environment that hides its state"]
    model = training.model().learn(100)
    with pytest.warns(UserWarning, match=r"will begin a new episode: what the whole state of ClosedEnv is, is not known"):
        model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", training.make_env())
    buffer = resumed.replay_buffer
    assert (buffer.dones[99], buffer.timeouts[99]) == (1, 1)
    assert (buffer.dones[59], buffer.timeouts[59]) == (1, 1)  # the time limit
    assert buffer.dones.sum() == 2
    resumed.learn(10, reset_num_timesteps=False)
    assert resumed.replay_buffer.pos == 110


def test_environment_is_made_anew_from_its_id(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, env_kwargs=dict(g=3.0)), clip_obs=5.0)
    arguments = dict(learning_starts=5, buffer_size=100, policy_kwargs=resumes.SMALL, device="cpu")
    BNDDPG("MlpPolicy", env, **arguments).learn(20).save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint")
    assert isinstance(resumed.env, VecNormalize)
    assert resumed.env.clip_obs == 5.0
    assert resumed.env.get_attr("g") == [3.0, 3.0]
    np.testing.assert_array_equal(resumed.env.obs_rms.mean, env.obs_rms.mean)


def test_an_environment_that_its_id_does_not_make_is_not_made_anew(tmp_path):
    """Gymnasium applies a time limit first, whatever it was put around."""
    env = gym.wrappers.TimeLimit(gym.wrappers.RescaleObservation(gym.make("Pendulum-v1").unwrapped, -1.0, 1.0), 50)
    model = BNDDPG("MlpPolicy", env, learning_starts=5, buffer_size=100, policy_kwargs=resumes.SMALL, device="cpu")
    model.learn(20).save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"`env=None` is not allowed: .*TimeLimit.*RescaleObservation.*: pass one like it"):
        BNDDPG.resume(tmp_path / "checkpoint")
    BNDDPG.resume(tmp_path / "checkpoint", env)


def test_another_environment_is_refused(make_model, tmp_path):
    path = tmp_path / "checkpoint"
    make_model().learn(30).save_checkpoint(path)
    with pytest.raises(ValueError, match=r"`env=None` is not allowed: .* not made from an id"):
        BNDDPG.resume(path)
    with pytest.raises(ValueError, match="`env` with 2 environments is not allowed: the checkpoint has 1"):
        BNDDPG.resume(path, make_vec_env(VectorEnv, n_envs=2))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        BNDDPG.resume(path, VectorEnv(obs_dim=5))
    with pytest.raises(ValueError, match=r"`env` with the wrappers \['VecNormalize'\] is not allowed"):
        BNDDPG.resume(path, VecNormalize(make_vec_env(VectorEnv)))
    with pytest.raises(ValueError, match=r"TimeLimit.* the checkpoint's of \[.*Monitor.*VectorEnv"):
        BNDDPG.resume(path, gym.wrappers.TimeLimit(VectorEnv(), 20))


def test_what_a_checkpoint_is_not(make_model, tmp_path):
    model = make_model().learn(30)
    model.save(tmp_path / "model.zip")
    model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(FileError, match=r"model\.zip is no checkpoint"):
        BNDDPG.resume(tmp_path / "model.zip", VectorEnv())
    with pytest.raises(FileError, match=r"is a checkpoint: it takes `BNDDPG\.resume`, not `load`"):
        BNDDPG.load(tmp_path / "checkpoint")
    with pytest.raises(FileNotFoundError):
        BNDDPG.resume(tmp_path / "nothing")
    content = (tmp_path / "checkpoint").read_bytes()
    (tmp_path / "earlier").write_bytes(content.replace(b"checkpoint 5 ", b"checkpoint 4 ", 1))
    with pytest.raises(FileError, match="of version 4: only version 5 is known"):
        BNDDPG.resume(tmp_path / "earlier", VectorEnv())


def test_other_versions_are_told(make_model, tmp_path, monkeypatch):
    make_model().learn(30).save_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setitem(VERSIONS, "torch", "99")
    with pytest.warns(UserWarning, match=r"need not give the same numbers: .*torch .* then, 99 now"):
        BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())


class CountingBuffer(ReplayBuffer):
    """Has dictionaries of its own, one of them by two names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: dict[int, int] = defaultdict(int)
        self.plain: dict[str, int] = {}
        self.same = self.plain

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.counts[self.pos] += 1
        super().add(*args, **kwargs)


def test_dictionaries_of_a_replay_buffer_stay_what_they_are(make_model, tmp_path):
    make_model(replay_buffer_class=CountingBuffer).learn(30).save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    assert resumed.replay_buffer.same is resumed.replay_buffer.plain
    resumed.learn(5, reset_num_timesteps=False)
    assert dict(resumed.replay_buffer.counts) == dict.fromkeys(range(35), 1)


def test_checkpoints_of_large_empty_buffers_are_small(make_model, tmp_path):
    model = make_model(buffer_size=1_000_000).learn(30)
    model.save_checkpoint(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").stat().st_size < 200_000
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    assert resumed.replay_buffer.observations.shape == model.replay_buffer.observations.shape


def test_a_callback_that_would_never_save(make_model, tmp_path):
    callback = EveryNTimesteps(10, CallbackList([CheckpointEvery(10, tmp_path / "checkpoint")]))
    with pytest.raises(ValueError, match="`CheckpointEvery` is not allowed in `EveryNTimesteps`"):
        make_model().learn(30, callback)


def test_save_freq():
    with pytest.raises(ValueError, match="`save_freq=0` is not allowed"):
        CheckpointEvery(0, "checkpoint")


def test_statistics_of_rewards_alone_go_on(make_model, tmp_path):
    """``VecNormalize(norm_obs=False)`` has no statistics of observations; those of rewards were lost with them."""

    def make():
        return VecNormalize(make_vec_env("Pendulum-v1", seed=0), norm_obs=False)

    model = make_model(make()).learn(60)
    model.save_checkpoint(tmp_path / "checkpoint")
    variance = model.env.ret_rms.var
    model.learn(30, reset_num_timesteps=False)
    resumed = BNDDPG.resume(tmp_path / "checkpoint", make())
    assert resumed.env.ret_rms.var == variance > 1
    assert resumed._last_obs is not None
    resumed.learn(30, reset_num_timesteps=False)
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, resumed.policy.state_dict()[key]), key


def test_which_of_several_environments_is_another(tmp_path):
    def environments(*wrappers):
        return DummyVecEnv([lambda wrap=wrap: Monitor(wrap(gym.make("Pendulum-v1"))) for wrap in wrappers])

    same = gym.wrappers.RecordEpisodeStatistics
    model = BNDDPG("MlpPolicy", environments(same, same), learning_starts=100, policy_kwargs=dict(net_arch=[8, 8]))
    model.learn(4)
    model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"it is not like the checkpoint's: .*NormalizeReward"):
        BNDDPG.resume(tmp_path / "checkpoint", environments(same, gym.wrappers.NormalizeReward))
