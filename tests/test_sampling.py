"""Minibatches drawn as SB3's replay buffer draws them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.common.steps import minibatches
from sb3_bn_ddpg.off_policy.sampling import sample

SIZE = 20


def filled(
    n_envs: int = 1,
    n: int = 3 * SIZE,
    observation_space: spaces.Box = spaces.Box(-np.inf, np.inf, (3,)),  # noqa: B008
    kind: type[ReplayBuffer] = ReplayBuffer,
    **kwargs: Any,
) -> ReplayBuffer:
    """A replay buffer of 20 transitions an environment, into which n were put, some of them ends and some timeouts."""
    buffer = kind(SIZE * n_envs, observation_space, spaces.Box(-1, 1, (2,)), "cpu", n_envs, **kwargs)
    generator = np.random.default_rng(0)
    observation_space.seed(0)
    for _ in range(n):
        obs, next_obs = (np.stack([observation_space.sample() for _ in range(n_envs)]) for _ in range(2))
        infos = [{"TimeLimit.truncated": bool(generator.integers(2))} for _ in range(n_envs)]
        dones = generator.integers(2, size=n_envs).astype(bool)
        buffer.add(obs, next_obs, generator.uniform(-1, 1, (n_envs, 2)), generator.normal(size=n_envs), dones, infos)
    return buffer


BUFFERS = pytest.mark.parametrize(
    "buffer",
    [
        pytest.param(filled(), id="full"),
        pytest.param(filled(n=7), id="not full"),
        pytest.param(filled(n_envs=3), id="several environments"),
        pytest.param(filled(observation_space=spaces.Box(0, 255, (3, 8, 8), np.uint8)), id="images"),
        pytest.param(filled(observation_space=spaces.Box(-1, 1, (3,), np.float64)), id="float64"),
        pytest.param(filled(handle_timeout_termination=False), id="timeouts are ends"),
        pytest.param(filled(handle_timeout_termination=False, optimize_memory_usage=True), id="observations kept once"),
    ],
)


@BUFFERS
def test_the_same_transitions_and_the_same_random_numbers_afterwards(buffer):
    np.random.seed(5)
    expected, state = buffer.sample(32), np.random.get_state()[1]
    np.random.seed(5)
    found = sample(buffer, 32, None)
    assert np.array_equal(np.random.get_state()[1], state)
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or (one.dtype == other.dtype and th.equal(one, other))


@BUFFERS
def test_minibatches_at_once(buffer):
    """As one after the other, with the same random numbers."""
    np.random.seed(5)
    expected, state = [buffer.sample(6) for _ in range(4)], np.random.get_state()[1]
    np.random.seed(5)
    found = sample(buffer, 6, None, n_batches=4)
    assert np.array_equal(np.random.get_state()[1], state)
    for minibatch, other in zip(minibatches(found, 4), expected, strict=True):
        for one, another in zip(minibatch, other, strict=True):
            assert one is another is None or (one.dtype == another.dtype and th.equal(one, another))


def test_minibatches_of_dictionaries():
    entries = dict(a=th.arange(6), b=th.arange(12).view(6, 2))
    batch = DictReplayBufferSamples(entries, th.arange(6)[:, None], entries, th.zeros(6, 1), th.ones(6, 1))
    first, second, third = minibatches(batch, 3)
    assert th.equal(second.observations["b"], th.tensor([[4, 5], [6, 7]]))
    assert th.equal(third.actions, th.tensor([[4], [5]]))
    assert first.discounts is None


def test_a_minibatch_is_no_view_of_the_buffer():
    buffer = filled()
    stored = buffer.observations.copy()
    for entry in sample(buffer, 8, None)[:5]:
        entry.add_(1)
    assert np.array_equal(buffer.observations, stored)


def test_rewards_and_observations_are_normalised_as_ever():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    env.obs_rms.mean, env.ret_rms.var = np.array([0.5, -0.5, 2.0]), np.array(4.0)
    buffer = filled()
    np.random.seed(5)
    expected = buffer.sample(32, env)
    np.random.seed(5)
    assert th.equal(sample(buffer, 32, env).rewards, expected.rewards)


def test_other_buffers_sample_themselves():
    class OwnBuffer(ReplayBuffer):
        def _get_samples(self, batch_inds, env=None):
            samples = super()._get_samples(batch_inds, env)
            return samples._replace(rewards=samples.rewards + 100)

    assert sample(filled(kind=OwnBuffer), 8, None).rewards.min() > 50

    buffer = filled()
    own = buffer._get_samples
    buffer._get_samples = lambda *args, **kwargs: own(*args, **kwargs)._replace(rewards=th.full((8, 1), 7.0))
    assert (sample(buffer, 8, None).rewards == 7).all()

    buffer = filled()
    buffer._normalize_reward = lambda reward, env=None: 0 * reward + 3  # of its base class, which sampling asks too
    assert (sample(buffer, 8, None).rewards == 3).all()


def test_a_model_samples_so():
    model = BNDDPG("MlpPolicy", "Pendulum-v1", learning_starts=10, buffer_size=100, seed=0).learn(20)
    np.random.seed(5)
    expected = model.replay_buffer.sample(16)
    np.random.seed(5)
    assert th.equal(model._sample(16).observations, expected.observations)
