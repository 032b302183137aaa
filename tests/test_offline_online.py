"""From a dataset on into the environment."""

import numpy as np
import pytest
from conftest import VectorEnv
from offline_models import ALL, BNIQL, BNTD3BC, data, make, same_parameters
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_bn_ddpg import BNTD3, OrnsteinUhlenbeckNoise, dataset_buffer
from sb3_bn_ddpg.datasets.dataset_buffer import DatasetBuffer
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


@pytest.mark.parametrize("share", [0.5, None])
def test_on_into_several_environments(share, tmp_path):
    """One gradient step for each step of each of them. A file serves any number of them."""
    envs = DummyVecEnv([VectorEnv] * 3)
    model = make(BNIQL, env=envs).learn(5)
    model.learn_online(30, reset_num_timesteps=False, dataset_share=share)
    buffer = model.replay_buffer
    assert (model.num_timesteps, model._n_updates, buffer.size(), buffer.n_envs) == (35, 35, 10, 3)
    assert len(np.unique(buffer.observations[:10], axis=0)) == 10
    assert buffer.sample(16).observations.shape == (16, 4)
    transitions = transitions_of(buffer)
    assert len(transitions.rewards) == 200 + 30
    model.save(tmp_path / "model")
    loaded = BNIQL.load(tmp_path / "model", env=DummyVecEnv([VectorEnv] * 2), dataset=data())
    assert loaded.predict(envs.reset())[0].shape == (3, 2)
    loaded.learn_online(10)
    assert (loaded.num_timesteps, loaded.replay_buffer.n_envs) == (10, 2)


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


def test_rewards_scaled_once_stay_as_they_are(tmp_path):
    """Another word for it, set on the model, would count for nothing."""
    model = make(BNIQL, env=VectorEnv(), reward_scaling=0.25).learn(1)
    model.reward_scaling = None
    message = "`reward_scaling=None` is not allowed for a model of a dataset scaled by 0.25: save it, and load the model"
    for learn in (model.learn, model.learn_online):
        with pytest.raises(ValueError, match=message):
            learn(1)
    model.reward_scaling = 0.25
    model.learn_online(2)
    model.reward_scaling = "return_range"
    with pytest.raises(ValueError, match=r"`reward_scaling='return_range'` is not allowed .* scaled by 0.25"):
        model.learn_online(1)
    model.save(tmp_path / "model")
    data = transitions_of(model.replay_buffer)
    loaded = BNIQL.load(tmp_path / "model", env=VectorEnv(), dataset=data, reward_scaling=None).learn(1)
    np.testing.assert_allclose(loaded.replay_buffer.rewards[:, 0], data.rewards)


@pytest.mark.parametrize(("training", "norm"), [(True, {}), (True, dict(norm_obs=False)), (False, {})])
def test_a_normalisation_must_not_adapt(training, norm):
    env = VecNormalize(DummyVecEnv([VectorEnv]), training=training, **norm)
    if training:
        with pytest.raises(ValueError, match="`env` with a VecNormalize that adapts its statistics is not allowed"):
            make(BNIQL, env=env, reward_scaling=None)
        env.training = False
    model = make(BNIQL, env=env, reward_scaling=None)
    env.training = training
    for learn in (model.learn, model.learn_online):
        if training:
            with pytest.raises(ValueError, match="`env` with a VecNormalize that adapts its statistics is not allowed"):
                learn(3)
        else:
            assert learn(3).num_timesteps == 3


def test_a_model_of_normalized_observations_does_not_go_on_without(tmp_path):
    def env():
        normalized = VecNormalize(DummyVecEnv([VectorEnv]), training=False, norm_reward=False)
        normalized.obs_rms.mean[:] = 5
        return normalized

    make(BNIQL, env=env()).learn(2).save(tmp_path / "model")
    BNIQL.load(tmp_path / "model").predict(np.zeros(4))
    for other in (None, VectorEnv()):
        with pytest.raises(ValueError, match=r"`env` without VecNormalize is not allowed\. The model was trained on"):
            BNIQL.load(tmp_path / "model", env=other, dataset=data())
    loaded = BNIQL.load(tmp_path / "model", env=env(), dataset=data()).learn(2)
    loaded.set_env(VectorEnv())
    with pytest.raises(ValueError, match="`env` without VecNormalize is not allowed"):
        loaded.learn_online(2)


def test_noise_of_a_word_goes_on_in_the_next_call():
    model, draws = make(BNTD3BC, env=VectorEnv()), []

    def note(local_variables, global_variables):
        draws.append(model.action_noise.noise_prev.copy())

    for first in (True, False):
        model.learn_online(5, callback=note, action_noise="ou", reset_num_timesteps=first)
    assert not np.isin(draws[:5], draws[5:]).any()


def test_models_share_no_noise():
    noise = OrnsteinUhlenbeckNoise(np.zeros(2))
    models = [make(BNTD3BC, env=VectorEnv(), seed=seed) for seed in (1, 2)]
    for model in models:
        model.learn_online(2, action_noise=noise)
    first, second = (model.action_noise for model in models)
    assert len({id(noise), id(first), id(second)}) == 3
    assert (first.noise_prev != second.noise_prev).all()
    models[0].go_on_online(2, reset_num_timesteps=False)
    assert models[0].action_noise is first


def test_a_refused_call_leaves_nothing_behind():
    model = make(BNTD3BC, env=VectorEnv())
    with pytest.raises(ValueError, match="`action_noise='pink'` is not allowed"):
        model.learn_online(5, action_noise="pink", buffer_size=3)
    assert model.learn_online(5).replay_buffer.buffer_size == 1_000_000


def test_the_own_dataset_from_a_file_is_no_new_transitions(tmp_path):
    model = make(BNIQL, env=VectorEnv())
    model.save_replay_buffer(tmp_path / "dataset")
    model.learn_online(5)
    model.load_replay_buffer(tmp_path / "dataset")
    assert type(model.replay_buffer) is DatasetBuffer
    model.learn_online(3, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert (buffer.size(), buffer.buffer_size, buffer.dataset.size()) == (3, 1_000_000, 200)


def test_scaled_rewards_do_not_get_beside_others(tmp_path):
    learner = make(BNIQL, env=VectorEnv(), reward_scaling=0.25)
    learner.save_replay_buffer(tmp_path / "dataset")
    learner.learn_online(5).save_replay_buffer(tmp_path / "mixed")
    model = BNTD3("MlpPolicy", VectorEnv(), policy_kwargs=dict(net_arch=[8]))
    before = model.replay_buffer
    for name in ("dataset", "mixed"):
        with pytest.raises(ValueError, match=r"a replay buffer whose rewards were multiplied by 0\.25 .* is not allowed"):
            model.load_replay_buffer(tmp_path / name)
    assert model.replay_buffer is before


def test_rewards_are_scaled_once():
    env = VecNormalize(DummyVecEnv([VectorEnv]), training=False)
    with pytest.raises(ValueError, match="`reward_scaling='return_range'` is not allowed with a VecNormalize that scales"):
        make(BNIQL, env=env)
    env.norm_reward = False
    assert make(BNIQL, env=env).learn(2).num_timesteps == 2


def test_a_replay_buffer_without_the_dataset_is_no_dataset(tmp_path):
    """Its rewards are not scaled; beside the dataset, where they are new transitions, they become so."""
    plain = BNTD3("MlpPolicy", VectorEnv(), learning_starts=1000, policy_kwargs=dict(net_arch=[4]), device="cpu").learn(30)
    plain.save_replay_buffer(tmp_path / "buffer")
    model = make(BNIQL, env=VectorEnv(), reward_scaling=0.25).learn(2)
    model.save(tmp_path / "model")
    loaded = BNIQL.load(tmp_path / "model", env=VectorEnv(), device="cpu")
    for each in (model, loaded, make(BNTD3BC, env=VectorEnv())):
        before = each.replay_buffer
        with pytest.raises(
            ValueError, match=r"`path=.*`, a ReplayBuffer, is not allowed for a model that has not learned online"
        ):
            each.load_replay_buffer(tmp_path / "buffer")
        assert each.replay_buffer is before
    loaded.replay_buffer = plain.replay_buffer
    with pytest.raises(ValueError, match="`dataset=None` is not allowed for learning"):
        loaded.learn(2)
    model.learn_online(5)
    model.load_replay_buffer(tmp_path / "buffer")
    assert (model.replay_buffer.size(), model.replay_buffer.dataset.size()) == (30, 200)
    np.testing.assert_allclose(model.replay_buffer.rewards[:30], plain.replay_buffer.rewards[:30] / 4, rtol=1e-6)
    np.testing.assert_allclose(
        transitions_of(model.replay_buffer).rewards[200:], plain.replay_buffer.rewards[:30, 0], rtol=1e-6
    )


def test_a_saved_dataset_is_one_again(tmp_path):
    model = make(BNTD3BC, env=VectorEnv())
    model.save_replay_buffer(tmp_path / "buffer")
    other = BNTD3BC("MlpPolicy", VectorEnv(), device="cpu", policy_kwargs=dict(net_arch=[16, 12]))
    other.load_replay_buffer(tmp_path / "buffer")
    assert other.actor.features_extractor.mean.equal(model.actor.features_extractor.mean)
    other.learn(3)
    learned = other.actor.features_extractor.mean.clone()
    model.replay_buffer.observations += 1
    model.save_replay_buffer(tmp_path / "buffer")
    other.load_replay_buffer(tmp_path / "buffer")
    assert other.actor.features_extractor.mean.equal(learned)  # what its networks know


@pytest.mark.parametrize("reset", [True, False])
def test_steps_at_random_are_those_of_the_call(reset):
    model = make(BNTD3BC, env=VectorEnv()).learn(20)
    model.learn_online(30, reset_num_timesteps=reset, learning_starts=12)
    assert model._n_updates == 20 + 30 - 12
    model.go_on_online(5, reset_num_timesteps=False)
    assert model._n_updates == 20 + 30 - 12 + 5
    with pytest.raises(ValueError, match="`learning_starts=-1` is not allowed"):
        model.learn_online(3, learning_starts=-1)


def test_a_share_that_comes_to_nothing():
    model = make(BNIQL, env=VectorEnv())
    for share, word in ((0.01, "none"), (0.99, "all")):
        with pytest.raises(
            ValueError, match=f"`dataset_share={share}` is not allowed with `batch_size=16`: it comes to {word}"
        ):
            model.learn_online(3, dataset_share=share)


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
