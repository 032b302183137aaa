"""From a dataset on into the environment, and from a trained model to a dataset."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_offline import ALL, BNBCQ, BNIQL, BNTD3BC, Untouchable, data, make, same_parameters

from sb3_bn_ddpg import BNDDPG, dataset_buffer, record_dataset, store_dataset
from sb3_bn_ddpg.datasets.mixed_buffer import MixedReplayBuffer
from sb3_bn_ddpg.datasets.transitions import transitions_of


@pytest.mark.parametrize("cls", ALL)
def test_on_into_the_environment(cls):
    model = make(cls, env=VectorEnv()).learn(5)
    model.learn_online(30, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates, model.replay_buffer.size()) == (35, 35, 30)
    assert model.replay_buffer.dataset.size() == 200
    model.learn(4, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates, model.replay_buffer.size()) == (39, 39, 30)


def test_rewards_are_scaled_as_the_dataset():
    model = make(BNIQL, env=VectorEnv(), reward_scaling=0.25)
    model.learn_online(3)
    buffer = model.replay_buffer
    buffer.add(*np.zeros((2, 1, 4)), np.zeros((1, 2)), np.array([8.0]), np.zeros(1), [{}])
    assert buffer.rewards[3, 0] == 2.0
    assert buffer.dataset.reward_factor == 0.25


def test_a_dataset_made_of_what_learned_online_has_the_rewards_as_they_came():
    """And the transitions that were there before, the dataset's first."""
    scaled, plain = (make(BNIQL, env=VectorEnv(), reward_scaling=factor) for factor in (0.25, None))
    expected = plain.replay_buffer.rewards[:, 0]
    scaled.learn_online(7)
    new = scaled.replay_buffer.rewards[:7, 0] / 0.25
    data = transitions_of(scaled.replay_buffer)
    np.testing.assert_allclose(data.rewards, [*expected, *new], rtol=1e-6)
    np.testing.assert_array_equal(data.observations[:200], plain.replay_buffer.observations[:, 0])
    np.testing.assert_array_equal(data.observations[200:], scaled.replay_buffer.observations[:7, 0])
    assert data.truncations[199] or data.terminations[199]
    np.testing.assert_allclose(transitions_of(make(BNIQL, reward_scaling=0.25).replay_buffer).rewards, expected, rtol=1e-6)


@pytest.mark.parametrize(("training", "norm"), [(True, {}), (True, dict(norm_obs=False)), (False, {})])
def test_a_normalisation_must_not_adapt(training, norm):
    env = VecNormalize(DummyVecEnv([VectorEnv]), training=training, **norm)
    model = make(BNIQL, env=env).learn(2)
    if training:
        with pytest.raises(ValueError, match="`env` with a VecNormalize that adapts its statistics is not allowed"):
            model.learn_online(3)
    else:
        assert model.learn_online(3).num_timesteps == 3


@pytest.mark.parametrize(("share", "expected"), [(0.5, 8), (0.0, 0), (1.0, 16), (0.3, 5)])
def test_how_much_of_a_minibatch_is_from_the_dataset(share, expected):
    buffer = mixed(share, n_new=10)
    for _ in range(5):
        assert (buffer.sample(16).rewards != 100).sum() == expected


def test_one_replay_buffer_of_both():
    buffer = mixed(None, n_new=50)
    counts = [(buffer.sample(16).rewards != 100).sum().item() for _ in range(500)]
    assert np.mean(counts) == pytest.approx(16 * 200 / 250, rel=0.03)
    assert (mixed(0.0, n_new=0).sample(16).rewards != 100).all()


def mixed(share, n_new):
    """New transitions, whose reward is 100, beside a dataset of 200."""
    env = VectorEnv()
    dataset = dataset_buffer(data(), env.observation_space, env.action_space)
    spaces = (env.observation_space, env.action_space)
    buffer = MixedReplayBuffer(60, *spaces, "cpu", dataset=dataset, dataset_share=share)
    for _ in range(n_new):
        buffer.add(*np.zeros((2, 1, 4)), np.zeros((1, 2)), np.array([100.0]), np.zeros(1), [{}])
    return buffer


@pytest.mark.parametrize("cls", [BNIQL, BNTD3BC])
def test_a_checkpoint_resumes_to_the_bit_in_the_environment(cls, tmp_path):
    model = make(cls, env=VectorEnv()).learn(5)
    model.learn_online(13, reset_num_timesteps=False, action_noise="normal", dataset_share=None)
    model.save_checkpoint(tmp_path / "checkpoint")
    arguments = dict(reset_num_timesteps=False, dataset_share=None)
    model.learn_online(20, action_noise=model.action_noise, **arguments)
    resumed = cls.resume(tmp_path / "checkpoint", VectorEnv(), device="cpu")
    resumed.learn_online(20, action_noise=resumed.action_noise, **arguments)
    assert same_parameters(model, resumed)
    np.testing.assert_array_equal(model.replay_buffer.observations, resumed.replay_buffer.observations)


def test_no_dataset_or_no_environment(tmp_path):
    make(BNIQL).save(tmp_path / "model")
    with pytest.raises(ValueError, match="`dataset=None` is not allowed for learning"):
        BNIQL.load(tmp_path / "model", env=VectorEnv()).learn_online(3)
    with pytest.raises(ValueError, match="`env=None` is not allowed for learning in an environment"):
        BNIQL.load(tmp_path / "model", dataset=data()).learn_online(3)
    with pytest.raises(RuntimeError, match="The model has no environment to act in"):
        BNIQL("MlpPolicy", None, make(BNIQL).replay_buffer, device="cpu").learn_online(3)
    with pytest.raises(ValueError, match=r"`dataset_share=1\.5` is not allowed"):
        make(BNIQL).learn_online(3, dataset_share=1.5)


# --- Recording


class Ending(VectorEnv):
    """Every second episode terminates, with its step of the time limit."""

    episodes = 0

    def reset(self, **kwargs):
        self.episodes += 1
        return super().reset(**kwargs)

    def step(self, action):
        observation, reward, _, has_ended, info = super().step(action)
        is_terminated = has_ended and self.episodes % 2 == 0
        return observation, reward, is_terminated, has_ended and not is_terminated, info


def test_a_recorded_dataset(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    model = make(BNIQL, env=VectorEnv())
    dataset = record_dataset(model, "test/recorded-v0", 50, Ending(ep_length=20), noise=0.1, seed=3, ref_min_score=-1.0)
    episodes = list(dataset.iterate_episodes())
    assert [len(episode.rewards) for episode in episodes] == [20, 20, 10]
    assert [episode.terminations.sum() for episode in episodes] == [0, 1, 0]
    assert [episode.truncations.sum() for episode in episodes] == [1, 0, 1]
    buffer = dataset_buffer("test/recorded-v0", model.observation_space, model.action_space)
    assert np.flatnonzero(buffer.dones[:, 0] * (1 - buffer.timeouts[:, 0])).tolist() == [39]
    again = record_dataset(model, "test/again-v0", 50, Ending(ep_length=20), noise=0.1, seed=3, deterministic=True)
    deterministic = record_dataset(model, "test/exact-v0", 5, VectorEnv(), seed=3, deterministic=True)
    first = next(iter(deterministic.iterate_episodes()))
    np.testing.assert_allclose(first.actions, model.predict(first.observations[:-1], deterministic=True)[0], atol=1e-6)
    assert again.total_steps == 50
    assert make(BNBCQ, env=VectorEnv(), dataset="test/recorded-v0").learn(2).num_timesteps == 2


def test_recording_in_a_wrapper_that_no_text_stands_for(tmp_path, monkeypatch):
    """A class among its arguments, as NumPy's types are: the dataset does not name the environment."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gym.wrappers.DtypeObservation(gym.make("Pendulum-v1"), np.float32)
    model = BNDDPG("MlpPolicy", env, policy_kwargs=dict(net_arch=[4]), device="cpu")
    assert record_dataset(model, "test/wrapped-v0", 5, env).total_steps == 5


def test_recording_in_the_models_environment(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert record_dataset(make(BNIQL, env=VectorEnv()), "test/own-v0", 5).total_steps == 5
    with pytest.raises(ValueError, match="`n_steps=0` is not allowed"):
        record_dataset(make(BNIQL), "test/none-v0", 0)
    with pytest.raises(AssertionError, match="touched"):
        record_dataset(make(BNIQL, env=Untouchable()), "test/none-v0", 1)


def test_reference_scores_and_stored_transitions(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    model = make(BNIQL, env=VectorEnv())
    env = Paid(ep_length=10)
    dataset = record_dataset(model, "test/scores-v0", 25, env, seed=3, n_reference_episodes=2)
    returns = {}
    for name, act in (("min", None), ("max", lambda state: model.predict(state, deterministic=True)[0])):
        generator, totals = np.random.default_rng(3), []
        for episode in range(2):
            observation, _ = env.reset(seed=None if episode else 3)
            total, has_ended = 0.0, False
            while not has_ended:
                action = generator.uniform(-1, 1, 2).astype(np.float32) if act is None else act(observation)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, has_ended = total + reward, terminated or truncated
            totals.append(total)
        returns[name] = np.mean(totals)
    metadata = dataset.storage.metadata
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == pytest.approx((returns["min"], returns["max"]))
    np.testing.assert_allclose(minari.get_normalized_score(dataset, np.array([*returns.values()])), [0, 1], atol=1e-9)
    stored = store_dataset(data(), "test/stored-v0", VectorEnv(), description="random")
    assert (stored.total_steps, stored.total_episodes, stored.storage.metadata["description"]) == (200, 8, "random")
    buffer = dataset_buffer("test/stored-v0", model.observation_space, model.action_space)
    expected = dataset_buffer(data(), model.observation_space, model.action_space)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_allclose(getattr(buffer, name), getattr(expected, name), atol=1e-6)
    with pytest.raises(ValueError, match="`dataset_id='test/stored-v0'` is not allowed: there is such a dataset"):
        store_dataset(data(), "test/stored-v0", VectorEnv())
    with pytest.raises(ValueError, match="`env=None` is not allowed with a dataset that does not know its spaces"):
        store_dataset(data(), "test/none-v0")
    with pytest.raises(ValueError, match="`dataset` without transitions is not allowed"):
        store_dataset({name: value[:0] for name, value in data().items()}, "test/none-v0", VectorEnv())


class Paid(VectorEnv):
    """Pays for the first action."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action[0]), *rest


def test_recording_of_stacked_frames_is_refused():
    pytest.importorskip("minari")
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

    model = make(BNIQL, env=VecFrameStack(DummyVecEnv([VectorEnv]), 1))
    with pytest.raises(ValueError, match="`env` in a VecFrameStack is not allowed: a dataset is recorded of what a single"):
        record_dataset(model, "test/none-v0", 1)
