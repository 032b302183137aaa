"""Demonstrations in the minibatches of the algorithms that act: which transitions they are, files, and what is refused."""

import warnings

import numpy as np
import pytest
from conftest import SMALL, SpaceEnv, VectorEnv
from gymnasium import spaces
from offline_models import data, same_parameters
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3, CheckpointEvery, FileError, dataset_buffer
from sb3_bn_ddpg.datasets.mixed_buffer import MixedNStepReplayBuffer, MixedReplayBuffer
from sb3_bn_ddpg.datasets.transitions import transitions_of

ALL = [BNDDPG, BNTD3, BNSAC]
PAY = 100.0
"""The reward of a demonstration"""


def paid(**changes):
    return data() | dict(rewards=np.full(200, PAY)) | changes


def make(cls=BNDDPG, env=None, demonstrations=None, **kwargs):
    arguments = dict(buffer_size=500, learning_starts=10, batch_size=16, policy_kwargs=SMALL, seed=0, device="cpu")
    demonstrations = paid() if demonstrations is None else demonstrations
    return cls("MlpPolicy", VectorEnv() if env is None else env, demonstrations=demonstrations, **(arguments | kwargs))


def n_demonstrated(model, batch_size=16):
    return int((model.replay_buffer.sample(batch_size).rewards >= PAY / 2).sum())


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 8), (0.25, 4), (0.0, 0), (1.0, 16)])
def test_how_many_of_a_minibatch_are_demonstrations(cls, ratio, expected):
    model = make(cls, demonstration_ratio=ratio).learn(20)
    assert (model._n_updates, model.replay_buffer.size()) == (10, 20)
    assert [n_demonstrated(model) for _ in range(5)] == [expected] * 5
    model.demonstration_ratio = 0.75
    model.learn(1)
    assert n_demonstrated(model) == 12
    assert model.demonstrations is None  # they are in memory once


def test_one_replay_buffer_of_both():
    model = make(demonstration_ratio=None, learning_starts=1000).learn(50)
    counts = [n_demonstrated(model) for _ in range(500)]
    assert np.mean(counts) == pytest.approx(16 * 200 / 250, rel=0.03)


@pytest.mark.parametrize("cls", ALL)
def test_the_networks_see_them(cls, monkeypatch):
    """A gradient step's minibatch, fast update included, is the one that was sampled of both."""
    seen = []
    step = cls._gradient_step
    monkeypatch.setattr(cls, "_gradient_step", lambda self, batch, **kw: seen.append(batch) or step(self, batch, **kw))
    model = make(cls).learn(12)
    assert model._current_fast_update() is not None
    assert [int((batch.rewards == PAY).sum()) for batch in seen] == [8, 8]
    expected = dataset_buffer(paid(), model.observation_space, model.action_space)
    rows = {row.tobytes() for row in expected.observations[:, 0]}
    assert {row.tobytes() for row in seen[0].observations[:8].numpy()} <= rows
    assert not {row.tobytes() for row in seen[0].observations[8:].numpy()} & rows


@pytest.mark.parametrize("cls", ALL)
def test_returns_of_several_steps(cls):
    """Of demonstrations too, not beyond the end of an episode, and bootstrapped where it was cut off."""
    rewards = np.arange(200.0) + 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SB3 knows nothing of the replay buffer that is chosen for demonstrations
        model = make(cls, demonstrations=paid(rewards=rewards), n_steps=3, gamma=0.9).learn(20)
    assert type(model.replay_buffer) is MixedNStepReplayBuffer
    batch = model.replay_buffer.sample(4000)
    first = {row.tobytes(): number for number, row in enumerate(model.replay_buffer.dataset.observations[:, 0])}
    ends = data()["terminations"] | data()["truncations"]
    numbers = [first[row.tobytes()] for row in batch.observations[:2000].numpy()]
    assert {24, 48, 49, 199, 0} <= {*numbers}
    for row, number in enumerate(numbers):
        last = min([*np.flatnonzero(ends[number : number + 3]), 2, 199 - number]) + number
        discounted = sum(0.9 ** (k - number) * rewards[k] for k in range(number, last + 1))
        assert batch.rewards[row].item() == pytest.approx(discounted, rel=1e-5)
        assert batch.discounts[row].item() == pytest.approx(0.9 ** (last - number + 1), rel=1e-5)
        assert batch.dones[row].item() == data()["terminations"][last]
        np.testing.assert_allclose(batch.next_observations[row], data()["next_observations"][last], rtol=1e-5)
    # They shorten with those of the environment
    model = make(cls, demonstrations=paid(rewards=rewards), n_steps=3, n_steps_final=1).learn(20)
    assert (model.replay_buffer.n_steps, model.replay_buffer.dataset.n_steps) == (1, 1)


def test_returns_that_have_become_single_steps_with_and_without_a_demonstration(monkeypatch):
    """Minibatches that are drawn at once, some of which have demonstrations by chance."""
    arguments = dict(demonstrations=paid(), demonstration_ratio=None, n_steps=3, n_steps_final=1, gamma=0.9)
    model = make(BNTD3, train_freq=8, gradient_steps=8, **arguments).learn(400)
    model.replay_buffer.dataset_share = 0.0
    assert model.replay_buffer.n_steps == 1
    counts = iter([0, 3, 16, 0])
    monkeypatch.setattr("numpy.random.binomial", lambda *args: next(counts))
    model.replay_buffer.dataset_share = None
    discounts = [model.replay_buffer.sample(16).discounts for _ in range(4)]
    assert all(np.allclose(discount, 0.9) for discount in discounts)


def test_a_ratio_that_comes_to_nothing():
    with pytest.raises(ValueError, match=r"`demonstration_ratio=0\.01` is not allowed with `batch_size=16`: it comes to none"):
        make(BNDDPG, demonstrations=paid(), demonstration_ratio=0.01).learn(2)


def test_several_environments_and_vec_normalize():
    venv = VecNormalize(DummyVecEnv([VectorEnv, VectorEnv]))
    model = make(env=venv, learning_starts=4).learn(40)
    batch = model.replay_buffer.sample(16, env=venv)
    raw = model.replay_buffer.dataset.observations[:, 0]
    normalized = venv.normalize_obs(raw)
    assert all(np.isclose(normalized, row, atol=1e-5).all(axis=1).any() for row in batch.observations[:8].numpy())
    assert len(batch.rewards) == 16


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_checkpoint_resumes_to_the_bit_without_them(cls, n_steps, tmp_path):
    model = make(cls, n_steps=n_steps, demonstration_ratio=0.25)
    model.learn(25, callback=CheckpointEvery(20, tmp_path / "checkpoint"))
    model.learn(15, reset_num_timesteps=False)
    resumed = cls.resume(tmp_path / "checkpoint", VectorEnv(), device="cpu")
    assert resumed.num_timesteps == 25
    resumed.learn(15, reset_num_timesteps=False)
    assert same_parameters(model, resumed)
    assert n_demonstrated(resumed) == 4


@pytest.mark.filterwarnings("error")
def test_a_saved_model_asks_for_them_again(tmp_path):
    model = make().learn(15)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv(), demonstrations=paid(), device="cpu")
    assert loaded.learn(12)._n_updates > model._n_updates
    assert n_demonstrated(loaded) == 8
    without = BNDDPG.load(tmp_path / "model", env=VectorEnv(), device="cpu")
    with pytest.warns(UserWarning, match=r"learned with demonstrations, .* `BNDDPG\.load\(path, demonstrations=\.\.\.\)`"):
        without.learn(2)
    without.load_replay_buffer(tmp_path / "buffer")
    without.learn(2)
    assert n_demonstrated(without) == 8
    BNDDPG.load(tmp_path / "model", env=VectorEnv(), demonstration_ratio=0, device="cpu").learn(2)


def test_a_loaded_replay_buffer_goes_beside_them(tmp_path):
    plain = BNDDPG("MlpPolicy", VectorEnv(), buffer_size=500, n_steps=3, policy_kwargs=SMALL, device="cpu").learn(30)
    assert type(plain.replay_buffer) is NStepReplayBuffer
    plain.save_replay_buffer(tmp_path / "buffer")
    model = make(n_steps=3)
    model.load_replay_buffer(tmp_path / "buffer")
    assert (type(model.replay_buffer), model.replay_buffer.size()) == (MixedNStepReplayBuffer, 30)
    assert n_demonstrated(model) == 8
    model.learn(3, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 33


def test_a_ratio_holds_for_demonstrations_of_a_file(tmp_path):
    make().learn(30).save_replay_buffer(tmp_path / "buffer")
    model = BNDDPG("MlpPolicy", VectorEnv(), demonstration_ratio=0.25, learning_starts=10, policy_kwargs=SMALL, batch_size=16)
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.learn(3, reset_num_timesteps=False).replay_buffer.dataset_share == 0.25


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_model_keeps_its_demonstrations_beside_those_of_a_file(n_steps, tmp_path):
    """Whoever names a dataset learns from it: RL Zoo loads a replay buffer that lies beside a model by itself."""
    first = make(n_steps=n_steps).learn(30)
    first.save_replay_buffer(tmp_path / "buffer")
    model = make(n_steps=n_steps, demonstrations=paid(rewards=np.zeros(200)), demonstration_ratio=0.25)
    own = model.replay_buffer.dataset
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.dataset is own
    assert not own.rewards.any()
    np.testing.assert_array_equal(model.replay_buffer.observations, first.replay_buffer.observations)
    assert model.learn(3, reset_num_timesteps=False).replay_buffer.size() == 33
    assert model.replay_buffer.dataset_share == 0.25


def test_where_learning_begins_anew_no_terminal_state_is_made():
    """Single steps have their own next observations, demonstrations beside them or not."""
    model = make(replay_buffer_kwargs=dict(handle_timeout_termination=False), learning_starts=1000)
    for _ in range(2):
        model.learn(10)
    assert not model.replay_buffer.dones[:20].any()


def test_exploding_q_values_are_measured_by_their_rewards_too():
    model = make(demonstrations=paid(rewards=np.full(200, -5e6)))
    model._learning_guard.note_rewards(model)
    assert model._learning_guard.largest_reward == 5e6


def test_what_is_learned_differs():
    """Planted: without demonstrations, from the same seed, the networks are others."""
    models = [make(demonstration_ratio=ratio, seed=1).learn(15) for ratio in (0.5, 0.0, 0.0)]
    assert not same_parameters(*models[:2])
    assert same_parameters(*models[1:])


def test_images():
    space, action_space = spaces.Box(0, 255, (36, 40, 1), np.uint8), spaces.Box(-1, 1, (2,))
    images = np.random.default_rng(0).integers(0, 256, (201, *space.shape), np.uint8)
    demonstrations = paid(observations=images[:-1], next_observations=images[1:])
    arguments = dict(buffer_size=50, learning_starts=5, batch_size=4, device="cpu")
    model = BNTD3("CnnPolicy", SpaceEnv(space, action_space), demonstrations=demonstrations, **arguments).learn(8)
    assert model.replay_buffer.sample(4).observations.shape == (4, 1, 36, 40)
    assert n_demonstrated(model, 4) == 2


DICT = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(-1, 1, (2,)))
BAD = {
    "a ratio": (dict(demonstration_ratio=1.5), r"`demonstration_ratio=1\.5` is not allowed: it must be a finite number >= 0"),
    "no dataset": (dict(demonstrations=3), "`demonstrations` of type int is not allowed"),
    "no file": (dict(demonstrations="nothing.npz"), "`demonstrations='nothing.npz'` is not allowed: there is no file"),
    "NaN": (dict(demonstrations=paid(rewards=np.full(200, np.nan))), "`demonstrations` with rewards that are not finite"),
    "other observations": (
        dict(demonstrations=paid(observations=np.zeros((200, 3)))),
        r"`demonstrations` with observations of shape \(200, 3\)",
    ),
    "empty": (
        dict(demonstrations={name: value[:0] for name, value in data().items()}),
        "`demonstrations` without transitions",
    ),
    "lost ends": (dict(demonstrations=paid(truncations=np.zeros(200), observations=np.zeros((200, 4)))), "some of its ends"),
    "a buffer of one's own": (
        dict(replay_buffer_class=HerReplayBuffer),
        "`replay_buffer_class=HerReplayBuffer` is not allowed with `demonstrations`: it must be None",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_demonstrations(name):
    kwargs, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_more_that_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`demonstrations` with the observation space Dict.* is not allowed: .*FlattenObser"):
        BNDDPG("MultiInputPolicy", SpaceEnv(DICT, spaces.Box(-1, 1, (2,))), demonstrations=paid())
    (tmp_path / "short.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileError, match=r"short\.npz is damaged or of another kind"):
        make(demonstrations=tmp_path / "short.npz")


def test_without_demonstrations_nothing_is_mixed():
    model = BNSAC("MlpPolicy", VectorEnv(), buffer_size=50, policy_kwargs=SMALL, device="cpu", demonstration_ratio=0.5)
    assert not isinstance(model.replay_buffer, MixedReplayBuffer)


def test_one_replay_buffer_of_both_with_several_environments():
    """Any transition is as probable as any other, of whichever environment."""
    model = make(env=DummyVecEnv([VectorEnv] * 4), demonstration_ratio=None, learning_starts=1000).learn(200)
    counts = [n_demonstrated(model) for _ in range(500)]
    assert np.mean(counts) == pytest.approx(16 * 200 / 400, rel=0.05)


def test_a_saved_replay_buffer_that_is_named_like_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make().learn(30).save_replay_buffer("Pendulum-v1")
    assert len(transitions_of("Pendulum-v1").rewards) >= 30


def test_an_array_that_is_none():
    with pytest.raises(ValueError, match="`demonstrations` without rewards is not allowed"):
        make(demonstrations=data() | dict(rewards=None))
