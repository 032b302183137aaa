"""Hindsight experience replay, as SB3's own DDPG does it, and on a task that is hopeless without."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, learns
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_bn_ddpg import BNDDPG


class PointGoal(gym.Env):
    """A point in a square is pushed to a random goal; -1 a step until it is within 0.1, of a square of width 2."""

    def __init__(self, max_steps: int = 25) -> None:
        box = spaces.Box(-1, 1, (2,), np.float64)
        velocity = spaces.Box(-0.2, 0.2, (2,), np.float64)
        self.observation_space = spaces.Dict(observation=velocity, achieved_goal=box, desired_goal=box)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.max_steps = max_steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.velocity = 0, np.zeros(2)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        self.velocity = np.clip(0.5 * self.velocity + 0.1 * action, -0.2, 0.2)
        self.position = np.clip(self.position + self.velocity, -1, 1)
        reward = self.compute_reward(self.position, self.goal, {})
        return self._observation(), float(reward), False, self.steps >= self.max_steps, {"is_success": bool(reward == 0)}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.1).astype(np.float32)

    def _observation(self):
        return dict(observation=self.velocity.copy(), achieved_goal=self.position.copy(), desired_goal=self.goal.copy())


def make_model(env, **kwargs) -> BNDDPG:
    arguments = dict(
        buffer_size=2000,
        learning_starts=50,
        batch_size=16,
        replay_buffer_class=HerReplayBuffer,
        policy_kwargs=SMALL,
        seed=0,
        device="cpu",
    )
    return BNDDPG("MultiInputPolicy", env, **(arguments | kwargs))


@pytest.mark.parametrize("image_obs_space", [False, True])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_bit_flipping(image_obs_space, n_envs):
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=True, image_obs_space=image_obs_space), n_envs=n_envs)
    model = make_model(env, train_freq=4, gradient_steps=n_envs, learning_starts=20)
    model.learn(80)
    assert model._n_updates > 0


def test_loading_without_an_environment(tmp_path):
    make_model(PointGoal()).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model\.zip is whole but cannot be loaded: .* You must pass an environment"):
        BNDDPG.load(tmp_path / "model")


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_goal_selection_strategies(strategy):
    model = make_model(PointGoal(), replay_buffer_kwargs=dict(goal_selection_strategy=strategy, n_sampled_goal=2))
    model.learn(100)
    batch = model.replay_buffer.sample(200)
    # Two thirds of the goals were exchanged for what was achieved, and rewarded accordingly
    reached = (batch.rewards == 0).float().mean()
    assert reached > 0.05
    distance = (batch.next_observations["achieved_goal"] - batch.next_observations["desired_goal"]).norm(dim=1)
    assert th.equal(batch.rewards[:, 0] == 0, distance <= 0.1)


def test_vec_normalize():
    env = VecNormalize(make_vec_env(PointGoal, n_envs=2))
    model = make_model(env, gradient_steps=-1)
    model.learn(150)
    assert model._n_updates == 100


@pytest.mark.parametrize("normalization", ["batch", None])
def test_save_and_load(normalization, tmp_path):
    model = make_model(PointGoal(), policy_kwargs=dict(SMALL, normalization=normalization))
    model.learn(110)  # into the fifth episode
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    env = PointGoal()
    loaded = BNDDPG.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=True)
    observation, _ = env.reset(seed=1)
    np.testing.assert_array_equal(model.predict(observation)[0], loaded.predict(observation)[0])
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 170


class LongSteps(gym.Wrapper):
    """Repeats each action."""

    def step(self, action):
        self.env.step(action)
        return self.env.step(action)


class SameObservation(gym.ObservationWrapper):
    def observation(self, observation):
        return observation


class EndsEarly(gym.Wrapper):
    """Terminates after ten steps."""

    def reset(self, **kwargs):
        self.steps = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.steps += 1
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.steps >= 10, truncated, info


def limited(steps=25):
    return gym.wrappers.TimeLimit(PointGoal(max_steps=1000), steps)


gym.register("PointGoal-v0", PointGoal, max_episode_steps=25, kwargs=dict(max_steps=1000))


@pytest.mark.parametrize(
    ("make_env", "arguments", "message"),
    [
        (limited, dict(learning_starts=10), "`learning_starts=10` .* up to 25 steps: .* at least 25$"),
        (limited, dict(learning_starts=23), "`learning_starts=23` .* up to 25 steps"),
        (lambda: gym.make("PointGoal-v0"), dict(learning_starts=0), "`learning_starts=0` .* up to 25 steps"),
        (lambda: "PointGoal-v0", dict(learning_starts=0), "`learning_starts=0` .* up to 25 steps"),
        (
            lambda: RecordEpisodeStatistics(SameObservation(limited())),
            dict(learning_starts=10),
            "`learning_starts=10` .* up to 25 steps",
        ),
        (limited, dict(learning_starts=2, train_freq=8), "`learning_starts=2` .* up to 25 steps"),
        (
            lambda: VecNormalize(make_vec_env(limited, n_envs=2)),
            dict(learning_starts=40),
            "`learning_starts=40` .* up to 25 steps in 2 environments: .* at least 50$",
        ),
    ],
)
def test_learning_that_starts_within_the_first_episode_is_refused_at_once(make_env, arguments, message):
    model = make_model(make_env(), **arguments)
    with pytest.raises(ValueError, match=message):
        model.learn(60)
    assert model.num_timesteps == 0


@pytest.mark.parametrize(
    ("make_env", "arguments"),
    [
        (limited, dict(learning_starts=24)),
        (limited, dict(learning_starts=0, train_freq=(1, "episode"))),
        (limited, dict(learning_starts=3, train_freq=25)),
        (limited, dict(learning_starts=18, train_freq=9)),
        (limited, dict(learning_starts=0, gradient_steps=0)),
        (lambda: LongSteps(limited(50)), dict(learning_starts=25)),
        (lambda: make_vec_env(limited, n_envs=2), dict(learning_starts=48)),
        (lambda: EndsEarly(limited()), dict(learning_starts=10)),
        (lambda: PointGoal(max_steps=10), dict(learning_starts=10)),
    ],
)
def test_learning_that_starts_after_the_first_episode_is_not_refused(make_env, arguments):
    """As little as SB3 does."""
    # (a copy, into which SB3's DDPG writes the number of its critics)
    kwargs = dict(buffer_size=200, batch_size=4, replay_buffer_class=HerReplayBuffer, policy_kwargs=dict(SMALL))
    model = DDPG("MultiInputPolicy", make_env(), **kwargs, **arguments).learn(60)
    assert make_model(make_env(), **arguments).learn(60)._n_updates == model._n_updates


@pytest.mark.parametrize(
    "make_env", [PointGoal, pytest.param(lambda: make_vec_env(limited, vec_env_cls=SubprocVecEnv), marks=pytest.mark.slow)]
)
def test_an_episode_of_unknown_length_that_is_too_long(make_env):
    """Nobody knows before learning starts."""
    env = make_env()
    model = make_model(env, learning_starts=10)
    with pytest.raises(ValueError, match=r"`learning_starts=10` .* more than 11 steps: at step 11 none has ended"):
        model.learn(60)
    env.close()


def test_learning_goes_on_with_a_replay_buffer_and_not_without(tmp_path):
    """A loaded model takes one, or is told to wait for an episode, before it takes a step."""
    model = make_model(limited()).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    env = limited()
    loaded = BNDDPG.load(tmp_path / "model", env=env)
    message = (
        r"`learning_starts=50` .* up to 25 steps: .* at least 85 \(or the replay buffer of the 60 steps before be loaded\)"
    )
    with pytest.raises(ValueError, match=message):
        loaded.learn(60, reset_num_timesteps=False)
    loaded.learning_starts = 85
    assert loaded.learn(60, reset_num_timesteps=False)._n_updates == model._n_updates + 35
    loaded = BNDDPG.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.learn(10, reset_num_timesteps=False)._n_updates == model._n_updates + 10
    loaded = BNDDPG.load(tmp_path / "model", env=env)
    assert loaded.learn(10)._n_updates == model._n_updates  # it ends before it learns


def test_a_new_model_learns_from_a_replay_buffer_that_is_loaded(tmp_path):
    make_model(limited()).learn(60).save_replay_buffer(tmp_path / "buffer")
    model = make_model(limited(), learning_starts=0)
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.learn(10)._n_updates == 10


def test_a_replay_buffer_without_hindsight_is_refused(tmp_path):
    make_model(limited(), replay_buffer_class=None).learn(60).save_replay_buffer(tmp_path / "buffer")
    model = make_model(limited())
    before = model.replay_buffer
    with pytest.raises(ValueError, match="a DictReplayBuffer is not allowed for a model with `replay_buffer_class=HerReplay"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is before


def success_rate(model: BNDDPG, n_episodes: int = 50) -> float:
    env, successes = PointGoal(), []
    for seed in range(n_episodes):
        obs, _ = env.reset(seed=1000 + seed)
        truncated = False
        while not truncated:
            obs, _, _, truncated, info = env.step(model.predict(obs)[0])
        successes.append(info["is_success"])
    return float(np.mean(successes))


@pytest.mark.slow
def test_goals_are_reached():
    """From the few per cent of an untrained model to nearly all."""
    model = make_model(
        PointGoal(),
        buffer_size=10_000,
        learning_starts=500,
        batch_size=128,
        learning_rate=1e-3,
        critic_weight_decay=0.0,
        tau=0.05,
        gamma=0.95,
        policy_kwargs=dict(net_arch=[64, 64]),
    )
    assert success_rate(model) < 0.3
    assert learns(model, 4000, lambda: success_rate(model) > 0.9)


def test_another_environment_calculates_the_rewards():
    env = PointGoal()
    model = make_model(env).learn(60)
    model.set_env(PointGoal())
    assert model.replay_buffer.env is model.env
    assert model.env.envs[0].unwrapped is not env
    model.learn(60)


def test_a_training_that_goes_on_within_its_first_episode(tmp_path):
    """Its steps so far count: learning starts after the time limit, as in one call."""

    def env():
        return TimeLimit(BitFlippingEnv(n_bits=24, continuous=True, max_steps=50), 50)

    model = make_model(env())
    model.learn(20)
    model.save_checkpoint(tmp_path / "checkpoint")
    for each in (model, BNDDPG.resume(tmp_path / "checkpoint", env())):
        each.learn(40, reset_num_timesteps=False)
        assert each._n_updates == 10
