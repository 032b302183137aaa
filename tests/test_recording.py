"""From a trained model, and from transitions that are there, to a Minari dataset."""

import io

import gymnasium as gym
import numpy as np
import pytest
from conftest import SpaceEnv, VectorEnv
from gymnasium import spaces
from offline_models import BNBCQ, BNIQL, Untouchable, data, make
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_bn_ddpg import BNDDPG, BNTD3, dataset_buffer, record_dataset, store_dataset
from sb3_bn_ddpg.datasets.recording import reference_scores
from sb3_bn_ddpg.datasets.transitions import transitions_of

minari = pytest.importorskip("minari")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _datasets_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


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


def test_a_recorded_dataset():
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


def test_recording_in_a_wrapper_that_no_text_stands_for():
    """A class among its arguments, as NumPy's types are: the dataset does not name the environment."""
    env = gym.wrappers.DtypeObservation(gym.make("Pendulum-v1"), np.float32)
    model = BNDDPG("MlpPolicy", env, policy_kwargs=dict(net_arch=[4]), device="cpu")
    assert record_dataset(model, "test/wrapped-v0", 5, env).total_steps == 5


def test_minari_makes_the_environment_of_a_dataset_again():
    """SB3 puts a Monitor around it, whose arguments no description has."""
    model = BNDDPG("MlpPolicy", gym.make("Pendulum-v1", g=5.0, max_episode_steps=9), policy_kwargs=dict(net_arch=[4]))
    env = record_dataset(model, "test/again-v0", 20).recover_environment()
    assert (env.unwrapped.g, env.spec.max_episode_steps) == (5.0, 9)
    assert env.spec.additional_wrappers == ()
    in_wrapper = gym.wrappers.RescaleAction(model.get_env().envs[0], -2, 2)
    again = store_dataset("test/again-v0", "test/wrapped-v0", in_wrapper).recover_environment()
    assert [each.name for each in again.spec.additional_wrappers] == ["RescaleAction"]


def test_a_model_that_has_lost_its_normalization_records_nothing(tmp_path):
    env = VecNormalize(DummyVecEnv([VectorEnv]))
    BNDDPG("MlpPolicy", env, policy_kwargs=dict(net_arch=[4]), learning_starts=100).learn(5).save(tmp_path / "model")
    model = BNDDPG.load(tmp_path / "model")
    for call in (
        lambda: record_dataset(model, "test/none-v0", 5, VectorEnv()),
        lambda: reference_scores(model, 1, VectorEnv()),
    ):
        with pytest.raises(ValueError, match="`model` is not allowed without the VecNormalize on whose observations"):
            call()


def test_recording_in_the_models_environment():
    assert record_dataset(make(BNIQL, env=VectorEnv()), "test/own-v0", 5).total_steps == 5
    with pytest.raises(ValueError, match="`n_steps=0` is not allowed"):
        record_dataset(make(BNIQL), "test/none-v0", 0)
    with pytest.raises(AssertionError, match="touched"):
        record_dataset(make(BNIQL, env=Untouchable()), "test/none-v0", 1)


def test_reference_scores_and_stored_transitions():
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
    model = make(BNIQL, env=VecFrameStack(DummyVecEnv([VectorEnv]), 1))
    with pytest.raises(ValueError, match="`env` in a VecFrameStack is not allowed: a dataset is recorded of what a single"):
        record_dataset(model, "test/none-v0", 1)


def small(env, policy="MlpPolicy", **kwargs):
    return BNTD3(policy, env, **(dict(learning_starts=100, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8])) | kwargs))


@pytest.mark.parametrize(("wrapped", "n_steps"), [(False, 1), (False, 3), (True, 3)])
def test_the_training_that_goes_on_begins_an_episode(wrapped, n_steps):
    """Its own environment has been reset and has acted: a transition from before to after never happened."""
    env = VecNormalize(DummyVecEnv([VectorEnv])) if wrapped else VectorEnv()
    model = small(env, n_steps=n_steps).learn(7)
    record_dataset(model, "test/own-v0", 5, seed=1)
    model.learn(30, reset_num_timesteps=False)
    buffer = model.replay_buffer
    if n_steps > 1:  # returns must not reach across
        assert np.flatnonzero(buffer.timeouts[:, 0]).tolist() == [6, 26]
    following = buffer.observations[1:37, 0] == buffer.next_observations[:36, 0]
    assert np.flatnonzero(~following.all(axis=1)).tolist() == [6, 26]
    other = model.replay_buffer.pos
    reference_scores(model, 1)
    assert model._last_obs is None
    model.learn(1, reset_num_timesteps=False)
    record_dataset(model, "test/other-v0", 5, VectorEnv())
    assert model._last_obs is not None
    assert model.replay_buffer.pos == other + 1


class InPlace(gym.Env):
    """Gives its state away, and changes that and the action."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.steps = np.zeros(1, np.float32), 0
        return self.state, {}

    def step(self, action):
        action *= 0.1
        self.state += action
        self.steps += 1
        return self.state, 0.0, False, self.steps >= 6, {}


def test_what_an_environment_changes_in_place():
    episode = next(iter(record_dataset(small(InPlace()), "test/place-v0", 6, noise=0.5, seed=0).iterate_episodes()))
    np.testing.assert_allclose(np.diff(episode.observations, axis=0), 0.1 * episode.actions, atol=1e-6)
    assert np.abs(episode.actions).max() > 0.2


def test_dictionaries():
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(-9, 9, (1,)))
    env = SpaceEnv(space, spaces.Box(-1, 1, (1,)))
    env.reset, reset, seen = lambda **kwargs: seen.append(reset(**kwargs)) or seen[-1], env.reset, []
    model = small(env, "MultiInputPolicy")
    dataset = record_dataset(model, "test/dictionaries-v0", 15, env, seed=1)
    assert dataset.observation_space == space
    recorded = transitions_of(dataset)
    assert recorded.observations.shape == (15, 3)
    for number in (0, 10):  # where its episodes begin
        np.testing.assert_array_equal(recorded.observations[number], spaces.flatten(space, seen[number // 10][0]))
    episode = next(iter(dataset.iterate_episodes()))
    before = {key: values[:-1] for key, values in episode.observations.items()}
    assert (episode.actions.shape, before["a"].shape) == ((10, 1), (10, 2))


def test_images_of_a_replay_buffer():
    env = SpaceEnv(spaces.Box(0, 255, (36, 40, 3), np.uint8), spaces.Box(-1, 1, (1,)))
    model = small(env, buffer_size=30, policy_kwargs=dict(net_arch=[8], normalize_images=True)).learn(20)
    dataset = store_dataset(model.replay_buffer, "test/images-v0")
    assert dataset.observation_space.shape == (36, 40, 3)
    stored = dataset_buffer(dataset, model.observation_space, model.action_space)
    np.testing.assert_allclose(stored.actions, model.replay_buffer.actions[:20], atol=1e-6)
    first = Image.fromarray(np.moveaxis(model.replay_buffer.observations[0, 0], 0, -1))
    file = io.BytesIO()
    first.save(file, format="JPEG")
    np.testing.assert_array_equal(np.moveaxis(stored.observations[0, 0], 0, -1), np.array(Image.open(file)))


@pytest.mark.parametrize("shape", [(8, 8, 3), (36, 36, 1), (36, 36, 4)])
def test_images_that_minari_cannot_keep(shape):
    """Smaller ones it writes as JPEG and reads as numbers; others it cannot write."""
    space = spaces.Box(0, 255, shape, np.uint8)
    for observations in (space, spaces.Dict(a=space)):
        env = SpaceEnv(observations, spaces.Box(-1, 1, (1,)))
        env.step = None
        model = small(env, "MlpPolicy" if observations is space else "MultiInputPolicy", buffer_size=30)
        with pytest.raises(ValueError, match="is not allowed: Minari keeps images of bytes"):
            record_dataset(model, "test/images-v0", 5)
    data = dict(observations=np.zeros((3, *shape)), next_observations=np.zeros((3, *shape)), actions=np.zeros((3, 1)))
    data |= dict(rewards=np.zeros(3), terminations=np.zeros(3))
    with pytest.raises(ValueError, match="is not allowed: Minari keeps images of bytes"):
        store_dataset(data, "test/images-v0", SpaceEnv(space, spaces.Box(-1, 1, (1,))))


def test_nothing_is_left_of_what_cannot_be_written(monkeypatch, capsys):
    model = make(BNIQL, env=VectorEnv())

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", fail)
        with pytest.raises(OSError, match="disk full"):
            record_dataset(model, "test/half-v0", 5)
    assert "test/half-v0" not in minari.list_local_datasets()
    assert capsys.readouterr().out == ""
    assert record_dataset(model, "test/half-v0", 5).total_steps == 5


def test_errors_come_before_the_first_step():
    model, discrete = make(BNIQL, env=Untouchable()), PPO("MlpPolicy", "CartPole-v1", device="cpu")
    larger = VectorEnv(high=5.0)
    for arguments, error, message in (
        (dict(model=model, autor="me"), TypeError, "unknown arguments autor: further ones must be some of action_space, al"),
        (
            dict(model=discrete),
            ValueError,
            r"`env` with the action space Discrete\(2\) is not allowed: it must be a bounded Box",
        ),
        (dict(model=model, env=DummyVecEnv([VectorEnv])), ValueError, "`env` of type DummyVecEnv is not allowed"),
        (dict(model=model, env=larger), ValueError, r"`env` with the action space Box.* it must be the model's"),
    ):
        with pytest.raises(error, match=message):
            record_dataset(dataset_id="test/none-v0", n_steps=3, **arguments)
    with pytest.raises(TypeError, match="unknown arguments autor"):
        store_dataset(data(), "test/none-v0", VectorEnv(), autor="me")
    assert minari.list_local_datasets() == {}


def test_environments_made_by_name_are_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(VectorEnv, "close", lambda self: closed.append(self))
    monkeypatch.setitem(gym.registry, "Closed-v0", gym.envs.registration.EnvSpec("Closed-v0", entry_point=VectorEnv))
    model = make(BNIQL, env=VectorEnv())
    record_dataset(model, "test/closed-v0", 20, "Closed-v0")
    store_dataset(data(), "test/stored-v0", "Closed-v0")
    assert len(closed) == 2
    env = VectorEnv()
    record_dataset(model, "test/open-v0", 20, env)
    assert env not in closed
