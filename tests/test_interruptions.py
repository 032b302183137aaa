"""A training that ends in the middle of something, and goes on: no transition, return or episode reaches across the seam."""

import copy
import traceback
import warnings

import gymnasium as gym
import numpy as np
import pytest
from conftest import StopAt, VectorEnv
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.common.guards import EnvironmentFailureError


class CountingEnv(gym.Env):
    """Observes 100 times the number of the episode, and the step in it; ten steps an episode; rewards of 1, 10, 100, ..."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), 10.0 ** (self.episode - 1), self.steps == 10, False, {}

    def get_checkpoint_state(self):
        return self.episode, self.steps

    def set_checkpoint_state(self, state):
        self.episode, self.steps = state

    def _observation(self):
        return np.array([100 * self.episode + self.steps], np.float32)


def assert_within_episodes(model):
    """Each stored transition, of as many steps as it has, is one of its episode, and so are its rewards."""
    buffer = model.replay_buffer
    samples = buffer._get_samples(np.arange(buffer.size()))
    observations, next_observations = samples.observations[:, 0].numpy(), samples.next_observations[:, 0].numpy()
    episodes = observations // 100
    np.testing.assert_array_equal(next_observations // 100, episodes)
    steps = next_observations - observations
    if isinstance(buffer, NStepReplayBuffer):
        assert ((steps >= 1) & (steps <= buffer.n_steps)).all()
    else:
        assert (steps == 1).all()
    np.testing.assert_allclose(samples.rewards[:, 0].numpy(), steps * 10.0 ** (episodes - 1))


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("step", [25, 30])  # in an episode, and at its end
@pytest.mark.parametrize("interrupts", [False, True])
def test_an_episode_that_lost_a_step_does_not_go_on(make_model, tmp_path, interrupts, step, n_steps):
    model = make_model(CountingEnv(), n_steps=n_steps, gamma=1.0)
    try:
        model.learn(100, StopAt(step, interrupts))
    except KeyboardInterrupt:
        assert interrupts
    assert model.replay_buffer.size() == step - 1
    model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", CountingEnv())
    for each in (model, resumed):
        each.learn(15, reset_num_timesteps=False)
        assert each.num_timesteps == step + 15
        assert each.replay_buffer.size() == step + 14
        assert_within_episodes(each)


class InterruptedEnv(CountingEnv):
    """Is interrupted once after its simulator has made a step, or a reset."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _observation(self):
        if 100 * self.episode + self.steps == self.at:
            self.at = 0
            raise KeyboardInterrupt
        return super()._observation()


@pytest.mark.parametrize("at", [305, 400])
@pytest.mark.parametrize("saves", [False, True])
def test_an_interrupt_in_the_environment(make_model, tmp_path, at, saves):
    """SB3 has not counted the step yet that the environment has made."""
    model = make_model(InterruptedEnv(at), gamma=1.0)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100)
    if saves:
        model.save_checkpoint(tmp_path / "checkpoint")
        model = BNDDPG.resume(tmp_path / "checkpoint", InterruptedEnv(0))
    model.learn(15, reset_num_timesteps=False)
    assert model.replay_buffer.size() == {305: 24, 400: 29}[at] + 15
    assert_within_episodes(model)


def test_saving_in_the_middle_of_a_step_is_refused(make_model, tmp_path):
    class Save(BaseCallback):
        def _on_step(self):
            self.model.save_checkpoint(tmp_path / "checkpoint")

    model = make_model(CountingEnv(), gamma=1.0)
    with pytest.raises(RuntimeError, match=r"in the middle of a step, .*CheckpointEvery\(save_freq, path\)"):
        model.learn(30, Save())
    model.save(tmp_path / "model")
    model.save_checkpoint(tmp_path / "checkpoint")  # the training is over
    BNDDPG.load(tmp_path / "model", CountingEnv(), force_reset=False).save_checkpoint(tmp_path / "checkpoint")


def test_a_new_episode_has_new_noise(make_model, tmp_path):
    def trained(saves):
        model = make_model(VectorEnv()).learn(100, StopAt(50))
        if saves:
            model.save_checkpoint(tmp_path / "checkpoint")
        return model.learn(5, reset_num_timesteps=False)

    np.testing.assert_array_equal(trained(True).replay_buffer.actions, trained(False).replay_buffer.actions)


def test_a_lost_step_counts_without_a_checkpoint_too(make_model):
    model = make_model(CountingEnv(), n_steps=3, gamma=1.0).learn(100, StopAt(25))
    model.learn(15, reset_num_timesteps=False)
    assert_within_episodes(model)


@pytest.mark.parametrize("loads", [False, True])
def test_returns_of_several_steps_end_where_the_environment_is_reset(make_model, tmp_path, loads):
    env = CountingEnv()
    model = make_model(env, n_steps=5, gamma=1.0).learn(25)
    if loads:
        model.save(tmp_path / "model")
        model.save_replay_buffer(tmp_path / "buffer")
        model = BNDDPG.load(tmp_path / "model", env=env)
        model.load_replay_buffer(tmp_path / "buffer")
    model.learn(15, reset_num_timesteps=not loads)
    assert model.replay_buffer.size() == 40
    assert_within_episodes(model)


@pytest.mark.parametrize("kwargs", [dict(n_steps=5), dict(optimize_memory_usage=True)])
def test_a_buffer_loaded_in_the_middle_of_an_episode(make_model, tmp_path, kwargs):
    if "n_steps" not in kwargs:
        kwargs["replay_buffer_kwargs"] = dict(handle_timeout_termination=False)
    make_model(CountingEnv(), gamma=1.0, **kwargs).learn(25).save_replay_buffer(tmp_path / "buffer")
    model = make_model(CountingEnv(), gamma=1.0, **kwargs).learn(33)
    model.load_replay_buffer(tmp_path / "buffer")
    model.learn(10, reset_num_timesteps=False)
    buffer = model.replay_buffer
    samples = buffer._get_samples(np.arange(34))
    reaches_across = (samples.observations // 100 != samples.next_observations // 100)[:, 0]
    assert reaches_across.any() == ("n_steps" not in kwargs)
    assert (samples.dones[reaches_across] == 1).all()
    assert (samples.rewards[20:25] <= 500).all()  # of the first buffer's third episode


def test_an_episode_that_goes_on_is_one(make_model):
    model = make_model(CountingEnv(), n_steps=5, gamma=1.0).learn(25)
    model.learn(15, reset_num_timesteps=False)
    assert_within_episodes(model)
    assert model.replay_buffer.dones[:40].sum() == 4


def test_goals_stay_in_their_episodes():
    env = BitFlippingEnv(n_bits=6, continuous=True, max_steps=6)
    model = BNDDPG("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, buffer_size=200, learning_starts=10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(9)
        model.learn(9)
    assert model.replay_buffer.ep_length.max() <= 6


def test_checkpoints_after_resuming_keep_the_records_of_callbacks(make_model, tmp_path):
    callback = EvalCallback(VectorEnv(), eval_freq=20, n_eval_episodes=1, verbose=0)
    model = make_model().learn(40, callback)
    model.save_checkpoint(tmp_path / "first")
    BNDDPG.resume(tmp_path / "first", VectorEnv()).save_checkpoint(tmp_path / "second")
    again = EvalCallback(VectorEnv(), eval_freq=10**6, verbose=0)
    BNDDPG.resume(tmp_path / "second", VectorEnv()).learn(10, again, reset_num_timesteps=False)
    assert again.best_mean_reward == callback.best_mean_reward
    assert again.n_calls == 50


def test_processes_that_owe_an_answer_are_not_asked_again(make_model, tmp_path):
    env = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    try:
        model = make_model(env).learn(40)

        def interrupted_step_wait():
            env.remotes[0].recv()
            raise KeyboardInterrupt

        step_wait, env.step_wait = env.step_wait, interrupted_step_wait
        with pytest.raises(KeyboardInterrupt):
            model.learn(40)
        env.step_wait = step_wait
        for act in (model.learn, model.save_checkpoint):
            with pytest.raises(EnvironmentFailureError, match="are out of step since: give the model a new environment"):
                act(40 if act == model.learn else tmp_path / "checkpoint")
        model.set_env(make_vec_env("Pendulum-v1", n_envs=2))
        model.learn(40, reset_num_timesteps=False)
    finally:
        for process in env.processes:  # to close them would wait for the answer
            process.kill()


def test_dead_processes_are_told_as_such(make_model):
    env = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    model = make_model(env).learn(40)
    env.processes[1].kill()
    env.processes[1].join()
    with pytest.raises((EOFError, ConnectionError)) as caught:
        model.learn(40, reset_num_timesteps=False)
    assert "the process of environment 1 died" in "".join(traceback.format_exception(caught.value))
    env.processes[0].kill()


def test_next_observations_that_are_not_stored_twice(make_model):
    """With one array for both, the first observation after a reset would be the last one's next."""
    kwargs = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    model = make_model(CountingEnv(), **kwargs).learn(60, callback=StopAt(25))
    model.learn(30, reset_num_timesteps=False)
    buffer = model.replay_buffer
    samples = buffer._get_samples(np.arange(buffer.size() - 1))
    reaches_across = samples.observations // 100 != samples.next_observations // 100
    assert reaches_across.any()
    assert (samples.dones[reaches_across] == 1).all()


class BaselinesVecEnv(DummyVecEnv):
    """Has the attributes of OpenAI Baselines' environments in processes."""

    ps, remotes = (), (None, None)


def test_environments_in_processes_of_another_kind(make_model):
    assert make_model(BaselinesVecEnv([VectorEnv] * 2)).learn(40).num_timesteps == 40


def test_noise_that_a_callback_sets_at_the_start(make_model):
    class SetNoise(BaseCallback):
        def _init_callback(self):
            self.model.action_noise = NormalActionNoise(np.zeros(2), np.ones(2))

        def _on_step(self):
            return True

    model = make_model().learn(25)
    model.learn(10, reset_num_timesteps=False, callback=SetNoise())
    assert isinstance(model.action_noise, NormalActionNoise)


def test_a_checkpoint_of_a_rollout_that_is_not_learned_from_is_refused(make_model, tmp_path):
    class Saving(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.save_checkpoint(tmp_path / "checkpoint")

    with pytest.raises(RuntimeError, match="not learned from yet"):
        make_model(train_freq=(1, "episode"), gradient_steps=-1).learn(40, callback=Saving())


def test_a_checkpoint_without_an_environment_is_refused(make_model, tmp_path):
    make_model().save(tmp_path / "model")
    with pytest.raises(RuntimeError, match="without an environment"):
        BNDDPG.load(tmp_path / "model").save_checkpoint(tmp_path / "checkpoint")


def test_a_copy_made_in_a_callback_is_in_no_rollout(make_model, tmp_path):
    class Copying(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 25:
                self.copied = copy.deepcopy(self.model)
            return True

    callback = Copying()
    make_model().learn(30, callback=callback)
    callback.copied.save_checkpoint(tmp_path / "checkpoint")
