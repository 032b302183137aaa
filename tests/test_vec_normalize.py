"""``VecNormalize`` among other wrappers: what the replay buffer stores is what the policy sees, before it is normalised."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import SMALL
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3


class Counter(gym.Env):
    """Its observations are the number of steps of the episode, which ends after fifteen."""

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, shape, dtype=np.uint8):
        self.observation_space = spaces.Box(0, 255, shape, dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), float(self.steps), False, self.steps == 15, {}

    def _observation(self):
        return np.full(self.observation_space.shape, self.steps, self.observation_space.dtype)


def make_env(shape, dtype=np.uint8):
    return DummyVecEnv([lambda: Counter(shape, dtype)])


def stack(env):
    return VecFrameStack(env, 3, channels_order="first")


CHANNELS_FIRST, CHANNELS_LAST = (1, 40, 40), (40, 40, 3)
WRAPPED = {
    "channels moved around it": lambda: VecNormalize(make_env(CHANNELS_LAST), norm_obs=False),
    "channels moved within it": lambda: VecNormalize(VecTransposeImage(make_env(CHANNELS_LAST)), norm_obs=False),
    "frames stacked around it": lambda: stack(VecNormalize(make_env(CHANNELS_FIRST), norm_obs=False)),
    "frames stacked within it": lambda: VecNormalize(stack(make_env(CHANNELS_FIRST)), norm_obs=False),
}


@pytest.mark.parametrize("cls", [BNDDPG, BNTD3, BNSAC])
@pytest.mark.parametrize("name", WRAPPED)
def test_of_rewards_alone_leaves_observations_as_the_policy_sees_them(cls, name):
    """SB3 stores those that come to it, before other wrappers have stacked frames or moved channels."""
    model = cls("CnnPolicy", WRAPPED[name](), buffer_size=100, learning_starts=1000, policy_kwargs=SMALL, device="cpu")
    seen = []
    predict = model.policy.predict

    def predicted(observation, *args, **kwargs):
        seen.append(np.array(observation[0]))
        return predict(observation, *args, **kwargs)

    model.policy.predict = predicted
    model.learning_starts = 0
    model.gradient_steps = 0
    model.learn(40)
    buffer = model.replay_buffer
    np.testing.assert_array_equal(buffer.observations[:40, 0], np.stack(seen))
    within = buffer.dones[:39, 0] == 0
    np.testing.assert_array_equal(buffer.next_observations[:39, 0][within], np.stack(seen)[1:][within])
    assert buffer.next_observations[14, 0].max() == 15  # the last one of an episode, not the next one's first
    assert buffer.rewards[:15, 0].tolist() == list(range(1, 16))  # not normalised, either


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: VecFrameStack(VecNormalize(make_env((2,), np.float32)), 3),
        lambda: VecFrameStack(VecMonitor(VecNormalize(make_env((1,), np.float32))), 3),
    ],
)
def test_of_observations_is_the_last_to_change_them(wrapped):
    expected = (
        r"`env` with VecFrameStack around VecNormalize is not allowed: .* Make it VecNormalize\(VecFrameStack\(\.\.\.\)\), or"
    )
    with pytest.raises(ValueError, match=expected):
        BNDDPG("MlpPolicy", wrapped(), policy_kwargs=SMALL)


def test_an_environment_that_is_set_is_checked_when_it_learns():
    model = BNDDPG("MlpPolicy", VecFrameStack(make_env((1,), np.float32), 3), policy_kwargs=SMALL, buffer_size=100)
    model.set_env(VecFrameStack(VecNormalize(make_env((1,), np.float32)), 3))
    with pytest.raises(ValueError, match="around VecNormalize is not allowed"):
        model.learn(1)
    model.set_env(VecMonitor(VecNormalize(VecFrameStack(make_env((1,), np.float32), 3))))
    assert model.learn(3).replay_buffer.observations[2, 0].tolist() == [0, 1, 2]
