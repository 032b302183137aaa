"""Prediction: single and batched, the same for the same state, without a trace in the statistics; determinism; spaces."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, SpaceEnv, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv

from sb3_bn_ddpg import BNDDPG, load_policy


@pytest.mark.parametrize("normalization", ["batch", "batch_renorm", "layer", "batch_layer", None])
def test_one_and_many_agree(make_model, normalization):
    """One observation, a batch of it, and it among others: the same action, and no statistic moves."""
    model = make_model(policy_kwargs=dict(SMALL, normalization=normalization))
    model.learn(60)
    model.policy.set_training_mode(True)  # as an update leaves it
    state = {key: value.clone() for key, value in model.policy.state_dict().items()}
    observations = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32) * 5
    batched, _ = model.predict(observations)
    assert batched.shape == (8, 2)
    for observation, action in zip(observations, batched, strict=True):
        single, _ = model.predict(observation)
        assert single.shape == (2,)
        np.testing.assert_allclose(single, action, atol=1e-6)
        np.testing.assert_allclose(model.policy.predict(observation[None])[0][0], action, atol=1e-6)
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], batched)
    assert all(th.equal(value, state[key]) for key, value in model.policy.state_dict().items())


def test_prediction_leaves_training_mode_wherever_it_is(make_model):
    """Also if one layer alone was put in training mode, by hand."""
    model = make_model()
    model.learn(40)
    model.policy.set_training_mode(False)
    model.actor.mu[2].train()
    before = model.actor.mu[2].running_mean.clone()
    model.predict(np.full((3, 4), 50.0, dtype=np.float32))
    assert th.equal(model.actor.mu[2].running_mean, before)


@pytest.mark.parametrize("fast_update", [True, False])
def test_networks_called_by_hand_use_running_statistics(make_model, tmp_path, fast_update):
    """Of a model that is new, has learnt, is loaded or resumed, and of a policy that is loaded by itself."""
    model = make_model(fast_update=fast_update)
    policies = [copy.deepcopy(model.policy)]
    model.learn(60)
    model.save(tmp_path / "model")
    model.save_checkpoint(tmp_path / "checkpoint")
    model.policy.save(tmp_path / "policy")
    policies += [
        model.policy,
        BNDDPG.load(tmp_path / "model").policy,
        BNDDPG.resume(tmp_path / "checkpoint", VectorEnv()).policy,
    ]
    policies.append(type(model.policy).load(tmp_path / "policy"))
    observations = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32) * 5
    for policy in policies:
        state = {key: value.clone() for key, value in policy.state_dict().items()}
        tensors = th.as_tensor(observations)
        with th.no_grad():
            actions = policy(tensors)
            np.testing.assert_array_equal(actions, policy.actor(tensors))
            single = [policy.critic(tensors[i : i + 1], actions[i : i + 1])[0].item() for i in range(8)]
            np.testing.assert_allclose(policy.critic(tensors, actions)[0][:, 0], single, rtol=1e-4)
        np.testing.assert_allclose(actions, policy.predict(observations)[0], atol=1e-6)
        assert all(th.equal(value, state[key]) for key, value in policy.state_dict().items())


def test_prediction_uses_running_statistics(make_model):
    """By hand: a shift of the actor's running mean of the state is a shift of the state."""
    model = make_model(policy_kwargs=dict(SMALL, final_init=0.5))
    model.learn(60)
    observation = np.array([1.0, -2.0, 3.0, 0.5], dtype=np.float32)
    expected, _ = model.predict(observation)
    model.actor.mu[0].running_mean += 2.5
    np.testing.assert_allclose(model.predict(observation + 2.5)[0], expected, atol=1e-5)
    assert not np.allclose(model.predict(observation)[0], expected, atol=1e-3)


def test_same_seed_same_model(make_model):
    states = []
    for _ in range(2):
        model = make_model(gym.make("Pendulum-v1"), seed=4)
        model.learn(80)
        states.append(model.policy.state_dict())
    assert all(th.equal(value, states[1][key]) for key, value in states[0].items())
    other = make_model(gym.make("Pendulum-v1"), seed=5)
    other.learn(80)
    assert not th.equal(other.policy.state_dict()["actor.mu.1.weight"], states[0]["actor.mu.1.weight"])


@pytest.mark.parametrize(
    "observation_space",
    [
        spaces.Box(-1, 1, (3,)),
        spaces.Box(-1, 1, (3, 2)),
        spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64),
        spaces.Discrete(4),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
    ],
)
def test_observation_spaces(make_model, observation_space):
    env = SpaceEnv(observation_space, spaces.Box(-1, 1, (2,)))
    model = make_model(env)
    model.learn(40)
    assert model.predict(env.observation_space.sample())[0].shape == (2,)


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Box(-1, 1, (2,)),
        spaces.Box(-1, 1, (2,), dtype=np.float64),
        spaces.Box(np.array([-3.0, 0.0]), np.array([1.0, 10.0]), dtype=np.float64),
        spaces.Box(0, 255, (1,)),
        spaces.Box(-2, 2, (2, 3)),
    ],
)
def test_action_spaces(make_model, action_space):
    model = make_model(SpaceEnv(spaces.Box(-1, 1, (3,)), action_space))
    model.learn(40)
    actions, _ = model.predict(np.zeros((5, 3), dtype=np.float32))
    assert actions.shape == (5, *action_space.shape)
    assert all(action_space.contains(action.astype(action_space.dtype)) for action in actions)
    stored = model.replay_buffer.actions[:40]
    assert np.abs(stored).max() <= 1


def test_images():
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=False)
    model = BNDDPG("CnnPolicy", env, buffer_size=100, learning_starts=20, batch_size=8, seed=0)
    # Section 7: two layers of 200 units behind the convolutions
    assert [module.out_features for module in model.actor.mu if isinstance(module, th.nn.Linear)] == [200, 200, 5]
    model.learn(30)
    assert model.predict(env.observation_space.sample())[0].shape == env.action_space.shape


def test_dictionaries():
    env = SimpleMultiObsEnv(discrete_actions=False)
    model = BNDDPG("MultiInputPolicy", env, buffer_size=100, learning_starts=20, batch_size=8, seed=0)
    model.learn(30)
    observation, _ = env.reset()
    assert model.predict(observation)[0].shape == env.action_space.shape


def test_custom_policy_class(make_model):
    """A subclass with its own actor, given as a class: SB3's way to bring a network."""
    from sb3_bn_ddpg.networks.actors import Actor
    from sb3_bn_ddpg.networks.policies import BNDDPGPolicy

    class Biased(Actor):
        def forward(self, obs):
            return (super().forward(obs) * 0 + 0.25).clamp(-1, 1)

    class CustomPolicy(BNDDPGPolicy):
        def make_actor(self, features_extractor=None):
            return Biased(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    model = BNDDPG(CustomPolicy, VectorEnv(), buffer_size=100, learning_starts=20, batch_size=8, policy_kwargs=SMALL)
    model.learn(40)
    np.testing.assert_allclose(model.predict(np.zeros(4, dtype=np.float32))[0], [0.25, 0.25])


def test_the_test_environment_follows_the_gymnasium_rules():
    check_env(VectorEnv())


def test_actions_stay_within_bounds_that_rounding_would_leave(tmp_path):
    space = spaces.Box(np.array([100.0, -3.0], np.float32), np.array([101.0, 0.7], np.float32))
    model = BNDDPG("MlpPolicy", SpaceEnv(spaces.Box(-1, 1, (3,)), space), policy_kwargs=SMALL, device="cpu")
    for scaled, bound in ((1.0, space.high), (-1.0, space.low)):
        ones = np.full((1, 2), scaled, np.float32)
        np.testing.assert_array_equal(model.policy.unscale_action(ones), [bound])
        np.testing.assert_array_equal(model.actor.unscale_action(ones), [bound])
    with th.no_grad():
        output = [layer for layer in model.actor.modules() if isinstance(layer, th.nn.Linear)][-1]
        output.weight.zero_()
        output.bias.fill_(50.0)
    action, _ = model.predict(np.zeros((1, 3), np.float32))
    np.testing.assert_array_equal(action, [space.high])
    pytest.importorskip("safetensors")
    model.export_policy(tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(loaded.predict(np.zeros((1, 3), np.float32))[0], action)
    np.testing.assert_array_equal(loaded(th.zeros(1, 3)).detach(), action)
