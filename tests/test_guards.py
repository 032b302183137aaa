"""What goes wrong during training ends it with a clear error or a warning, and the last checkpoint is from before."""

import os
import signal
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_bn_ddpg import BNDDPG, CheckpointEvery
from sb3_bn_ddpg.guards import EnvironmentFailureError, LearningGuard


class FailingEnv(VectorEnv):
    """Raises, or ends its process, at one step."""

    def __init__(self, at_step: int = 10**9, dies: bool = False) -> None:
        super().__init__()
        self.at_step, self.dies, self.total_steps = at_step, dies, 0

    def step(self, action):
        self.total_steps += 1
        if self.total_steps == self.at_step:
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the simulator is broken")
        return super().step(action)


class Poison(BaseCallback):
    """Makes a parameter of the critic NaN after some steps."""

    def __init__(self, at_step: int, name: str = "critic") -> None:
        super().__init__()
        self.at_step, self.name = at_step, name

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at_step:
            with th.no_grad():
                next(getattr(self.model, self.name).parameters()).fill_(th.nan)
        return True


@pytest.mark.parametrize("fast_update", [True, False])
def test_losses(make_model, tmp_path, fast_update):
    model = make_model(fast_update=fast_update)
    with pytest.raises(ValueError, match=r"`actor_loss=nan` at step 47 \(update \d+\) is not finite"):
        model.learn(100, [CheckpointEvery(10, tmp_path / "checkpoint"), Poison(at_step=47)])
    resumed = BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    assert resumed.num_timesteps == 40
    resumed.learn(30, reset_num_timesteps=False)
    assert resumed.num_timesteps == 70


def test_checkpoint_of_numbers_that_are_not_finite(make_model, tmp_path):
    """The loss may still be finite when the parameters are not any more."""
    model = make_model(gradient_steps=0)
    with pytest.raises(ValueError, match=r"`actor\.mu\.0\.weight` of the policy .* not finite at step 50"):
        model.learn(100, [CheckpointEvery(10, tmp_path / "checkpoint"), Poison(at_step=47, name="actor")])
    assert BNDDPG.resume(tmp_path / "checkpoint", VectorEnv()).num_timesteps == 40


def test_environment_that_raises(make_model, tmp_path):
    env = make_vec_env(FailingEnv, n_envs=3)
    env.envs[1].unwrapped.at_step = 15
    with pytest.raises(
        EnvironmentFailureError, match="At step 42 environment 1 raised ZeroDivisionError: the simulator"
    ) as error:
        make_model(env).learn(100, CheckpointEvery(30, tmp_path / "checkpoint"))
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert BNDDPG.resume(tmp_path / "checkpoint", make_vec_env(FailingEnv, n_envs=3)).num_timesteps == 30


@pytest.mark.parametrize(("dies", "message"), [(True, r"died \(exit code -9"), (False, r"died \(exit code 1")])
def test_environment_in_a_process_that_dies(make_model, tmp_path, dies, message):
    env = SubprocVecEnv([FailingEnv, partial(FailingEnv, 15, dies)])
    try:
        with pytest.raises(EnvironmentFailureError, match=rf"At step 28 the process of environment 1 {message}"):
            make_model(env).learn(100, CheckpointEvery(20, tmp_path / "checkpoint"))
    finally:
        for process in env.processes:
            process.kill()
    assert BNDDPG.resume(tmp_path / "checkpoint", make_vec_env(FailingEnv, n_envs=2)).num_timesteps == 20


def test_errors_of_callbacks_are_left_alone(make_model):
    class Callback(BaseCallback):
        def _on_step(self) -> bool:
            raise LookupError

    with pytest.raises(LookupError):
        make_model().learn(30, Callback())


class RewardEnv(VectorEnv):
    """A constant reward."""

    def __init__(self, reward: float) -> None:
        super().__init__()
        self.reward = reward

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, self.reward, terminated, truncated, info


def _explosions(learn: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn()
    return [str(warning.message) for warning in caught if "explode" in str(warning.message)]


def _set_q_values(model, value: float) -> None:
    with th.no_grad():
        for critic in (model.critic, model.critic_target):
            critic.q_net[-1].bias.fill_(value)


def _learn_from(make_model, reward: float, q_bias: float, normalize: bool = False, **kwargs):
    env = make_vec_env(lambda: RewardEnv(reward))
    model = make_model(VecNormalize(env, norm_obs=False) if normalize else env, critic_learning_rate=0.0, **kwargs)
    _set_q_values(model, q_bias)
    return model.learn(60)


@pytest.mark.parametrize("q_bias", [500.0, -500.0])
def test_exploding_q_values_warn_once(make_model, q_bias):
    with pytest.warns(UserWarning, match="Q-values explode: they reach") as caught:
        _learn_from(make_model, reward=2.0, q_bias=q_bias)  # no return exceeds 200
    explosions = [warning for warning in caught if "explode" in str(warning.message)]
    assert len(explosions) == 1
    assert "no return exceeds 200" in str(explosions[0].message)
    assert "critic_learning_rate" in str(explosions[0].message)


def test_q_values_of_both_signs_explode_too(make_model):
    model = make_model().learn(30)
    limit = 2 * np.abs(model.replay_buffer.rewards[:30]).max() / (1 - model.gamma) + 1
    means = dict(actor_loss=0.0, critic_loss=1.0, q_value=0.0, abs_q_value=1.1 * limit, td_target=0.0)
    with pytest.warns(UserWarning, match="Q-values explode"):
        LearningGuard().check(model, means)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LearningGuard().check(model, means | dict(abs_q_value=0.9 * limit))


@pytest.mark.parametrize(
    ("reward", "q_bias", "kwargs"),
    [
        (2.0, 190.0, {}),
        (6.0, 500.0, {}),
        (-6.0, -500.0, {}),
        (6.0, 500.0, dict(n_steps=3)),
        (0.0, 0.5, {}),
        (2.0, 500.0, dict(gamma=1.0)),  # no bound
        (1e-3, 15.0, dict(normalize=True)),  # the rewards that the update sees are larger
    ],
)
def test_plausible_q_values_do_not_warn(make_model, reward, q_bias, kwargs):
    assert _explosions(lambda: _learn_from(make_model, reward, q_bias, **kwargs)) == []


class GoalReward(BitFlippingEnv):
    """1 at the goal, else 0; with so many bits no goal is ever reached by chance."""

    def compute_reward(self, achieved_goal, desired_goal, info):
        return super().compute_reward(achieved_goal, desired_goal, info) + 1


def test_rewards_of_relabeled_goals_count():
    env = GoalReward(n_bits=40, max_steps=10, continuous=True)
    model = BNDDPG(
        "MultiInputPolicy",
        env,
        learning_starts=20,
        batch_size=16,
        critic_learning_rate=0.0,
        replay_buffer_class=HerReplayBuffer,
        policy_kwargs=SMALL,
        seed=0,
    )
    _set_q_values(model, 90.0)  # no return exceeds 100
    assert _explosions(lambda: model.learn(60)) == []
    assert model.replay_buffer.rewards.max() == 0
    _set_q_values(model, 500.0)
    assert "with rewards up to 1 " in _explosions(lambda: model.learn(30))[0]


def test_a_loaded_model_knows_the_rewards_of_its_training(make_model, tmp_path):
    model = _learn_from(make_model, reward=2.0, q_bias=0.0)
    _set_q_values(model, 190.0)
    model.save(tmp_path / "model")
    model = BNDDPG.load(tmp_path / "model", env=RewardEnv(0.0))
    assert _explosions(lambda: model.learn(60)) == []
    _set_q_values(model, 500.0)
    assert "no return exceeds 200" in _explosions(lambda: model.learn(30))[0]


@pytest.mark.parametrize(
    ("kwargs", "advice"),
    [
        (dict(), "a smaller tau,"),
        (dict(use_target_networks=False), "use_target_networks=True,"),
        (
            dict(use_target_networks=False, target_statistics="joint"),
            "use_target_networks=True with another target_statistics,",
        ),
    ],
)
def test_advice_is_what_the_model_takes(make_model, kwargs, advice):
    with pytest.warns(UserWarning, match=f"Try a lower critic_learning_rate, {advice}"):
        _learn_from(make_model, reward=2.0, q_bias=500.0, **kwargs)
