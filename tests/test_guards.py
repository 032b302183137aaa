"""What goes wrong during training ends it with a clear error or a warning, and the last checkpoint is from before."""

import math
import os
import re
import signal
import traceback
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
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnvWrapper, VecNormalize

from sb3_bn_ddpg import BNDDPG, CheckpointEvery
from sb3_bn_ddpg.common.guards import LearningGuard, add_note


class FailingEnv(VectorEnv):
    """Raises, or ends its process, at one step."""

    def __init__(self, at_step: int = 10**9, dies: bool = False) -> None:
        super().__init__()
        self.at_step, self.dies, self.total_steps = at_step, dies, 0
        self.make_error: Callable[[], Exception] = ZeroDivisionError

    def step(self, action):
        self.total_steps += 1
        if self.total_steps == self.at_step:
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.make_error()
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


def test_actions_that_are_not_finite_do_not_reach_the_environment(make_model):
    class Robot(VectorEnv):
        def step(self, action):
            assert np.isfinite(action).all()
            return super().step(action)

    model = make_model(Robot(), gradient_steps=0, action_noise=None)
    with pytest.raises(ValueError, match=r"`actions=.*nan.*` of the policy after step 47 \(update 0\) are not finite"):
        model.learn(100, Poison(at_step=47, name="actor"))
    assert model.replay_buffer.size() == 47
    assert np.isfinite(model.replay_buffer.actions).all()


def test_checkpoint_of_numbers_that_are_not_finite(make_model, tmp_path):
    """The loss may still be finite when the parameters are not any more."""
    model = make_model(gradient_steps=0)
    with pytest.raises(ValueError, match=r"`critic\.qf0\.state_net\.0\.weight` of the policy .* not finite at step 50"):
        model.learn(100, [CheckpointEvery(10, tmp_path / "checkpoint"), Poison(at_step=47)])
    assert BNDDPG.resume(tmp_path / "checkpoint", VectorEnv()).num_timesteps == 40


class SimulatorError(Exception):
    """A user's, with a constructor of its own."""

    def __init__(self, code: int, *, simulator: str) -> None:
        super().__init__(f"{simulator} ended with {code}")
        self.code = code


@pytest.mark.parametrize("make_error", [ZeroDivisionError, AssertionError, partial(SimulatorError, 7, simulator="Bullet")])
def test_what_an_environment_raises_stays_what_it_is(make_model, tmp_path, make_error):
    env = make_vec_env(FailingEnv, n_envs=3)
    env.envs[1].unwrapped.at_step, env.envs[1].unwrapped.make_error = 15, make_error
    with pytest.raises(type(make_error())) as caught:
        make_model(env).learn(100, CheckpointEvery(30, tmp_path / "checkpoint"))
    assert caught.value.args == make_error().args
    printed = "".join(traceback.format_exception(caught.value))
    assert "At step 42 of the training, environment 1 raised this." in printed
    assert BNDDPG.resume(tmp_path / "checkpoint", make_vec_env(FailingEnv, n_envs=3)).num_timesteps == 30


def test_the_script_goes_on_with_a_new_simulator(make_model):
    env, model = FailingEnv(35), None
    model = make_model(env)
    with pytest.raises(ZeroDivisionError):
        model.learn(100)
    model.set_env(FailingEnv())
    model.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == 94
    assert model.replay_buffer.size() == 94


class Python310Error(Exception):
    """Has no notes, as exceptions in Python 3.10."""

    @property
    def add_note(self):
        raise AttributeError


@pytest.mark.parametrize("has_context", [False, True])
def test_notes_in_python_3_10(has_context):
    error = Python310Error("the simulator is broken")
    if has_context:
        error.__context__ = ConnectionResetError("by its peer")
    add_note(error, "At step 3.")
    assert error.__notes__ == ["At step 3."]
    printed = "".join(traceback.format_exception(error))
    assert "At step 3." in printed
    assert printed.index("At step 3.") < printed.index("Python310Error: the simulator is broken")
    assert ("ConnectionResetError: by its peer" in printed) == has_context


@pytest.mark.parametrize(("dies", "message"), [(True, r"died \(exit code -9"), (False, r"died \(exit code 1")])
@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize])
def test_environment_in_a_process_that_dies(make_model, tmp_path, wrap, dies, message):
    env = SubprocVecEnv([FailingEnv, partial(FailingEnv, 15, dies)])
    try:
        with pytest.raises((EOFError, ConnectionError)) as caught:  # SB3's
            make_model(wrap(env)).learn(100, CheckpointEvery(20, tmp_path / "checkpoint"))
        printed = "".join(traceback.format_exception(caught.value))
        assert re.search(rf"At step 28 of the training, the process of environment 1 {message}", printed)
    finally:
        for process in env.processes:
            process.kill()
    assert BNDDPG.resume(tmp_path / "checkpoint", wrap(make_vec_env(FailingEnv, n_envs=2))).num_timesteps == 20


class Engine:
    """Simulates all environments by itself, and is no VecEnv of SB3's."""

    render_mode, num_envs = None, 2

    def __init__(self) -> None:
        self.observation_space, self.action_space = VectorEnv().observation_space, VectorEnv().action_space
        self.n_steps = 0

    def step(self) -> None:
        self.n_steps += 1
        if self.n_steps == 12:
            raise SimulatorError(3, simulator="Engine")


class EngineAdapter(VecEnvWrapper):
    def reset(self):
        return np.zeros((2, 4), np.float32)

    def step_async(self, actions):
        pass

    def step_wait(self):
        self.venv.step()
        return self.reset(), np.zeros(2), np.zeros(2, bool), [{}, {}]

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False, False]

    def seed(self, seed=None):
        return [None, None]


def test_what_an_engine_below_an_adapter_raises(make_model):
    with pytest.raises(SimulatorError) as caught:
        make_model(EngineAdapter(Engine())).learn(100)
    printed = "".join(traceback.format_exception(caught.value))
    assert "At step 22 of the training, the environment (EngineAdapter) raised this." in printed


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
        LearningGuard().check(model, means, "a smaller tau")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LearningGuard().check(model, means | dict(abs_q_value=0.9 * limit), "a smaller tau")


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


def test_a_model_saved_without_its_replay_buffer_still_warns_of_exploding_values_later(make_model, tmp_path):
    model = make_model().learn(30)
    largest = model._learning_guard.largest_reward
    del model.replay_buffer  # to free its memory
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=VectorEnv())
    loaded.learn(30)
    assert largest <= loaded._learning_guard.largest_reward < math.inf
