"""Ways to use a model that SB3 has, and that once went wrong without a word."""

import copy
import os
import stat

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, SpaceEnv, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_bn_ddpg import BNDDPG, BNTD3, EnvironmentFailureError, PixelObservation

ARGUMENTS = dict(policy_kwargs=SMALL, learning_starts=20, batch_size=16, buffer_size=200, seed=0, device="cpu")


def test_statistics_of_rewards_alone_go_on(tmp_path):
    """``VecNormalize(norm_obs=False)`` has no statistics of observations; those of rewards were lost with them."""

    def make():
        return VecNormalize(make_vec_env("Pendulum-v1", seed=0), norm_obs=False)

    model = BNDDPG("MlpPolicy", make(), **ARGUMENTS).learn(60)
    model.save_checkpoint(tmp_path / "checkpoint")
    variance = model.env.ret_rms.var
    model.learn(30, reset_num_timesteps=False)
    resumed = BNDDPG.resume(tmp_path / "checkpoint", make())
    assert resumed.env.ret_rms.var == variance > 1
    assert resumed._last_obs is not None
    resumed.learn(30, reset_num_timesteps=False)
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, resumed.policy.state_dict()[key]), key


@pytest.mark.parametrize("other", [dict(gamma=0.9), dict(clip_obs=5.0), dict(norm_reward=False), dict(training=False)])
def test_other_settings_of_vec_normalize_are_told(other, tmp_path):
    model = BNDDPG("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1")), **ARGUMENTS).learn(30)
    model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match=f"VecNormalize was made with other parameters .`{next(iter(other))}`"):
        BNDDPG.resume(tmp_path / "checkpoint", VecNormalize(make_vec_env("Pendulum-v1"), **other))


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_adams_state_of_a_layer_in_the_middle_counts(make_model, change):
    """As who resets dormant units sets it."""
    model = make_model().learn(40)
    optimizer = model.actor.optimizer
    param = optimizer.param_groups[0]["params"][3]
    if change == "replaced":
        optimizer.state[param] = {"step": th.tensor(0.0)} | {name: th.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
    else:
        del optimizer.state[param]
    model.train(3, 16)
    assert float(optimizer.state[param]["step"]) == 3


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


def test_without_timeouts_a_new_episode_is_no_end(tmp_path):
    """Nothing else tells the last transition from one into a terminal state."""
    buffer = dict(replay_buffer_kwargs=dict(handle_timeout_termination=False))

    class OwnEnv(VectorEnv):
        get_checkpoint_state = None  # its state is not known

    model = BNDDPG("MlpPolicy", OwnEnv(), **ARGUMENTS, **buffer).learn(30)
    with pytest.warns(UserWarning, match="new episode"):
        model.save_checkpoint(tmp_path / "checkpoint")
    resumed = BNDDPG.resume(tmp_path / "checkpoint", OwnEnv())
    assert resumed._last_obs is None
    np.testing.assert_array_equal(resumed.replay_buffer.dones, model.replay_buffer.dones)
    assert not model.replay_buffer.dones[29].any()


def test_onnx_of_a_dictionary_of_one_key(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    env = SpaceEnv(spaces.Dict(only=spaces.Box(-1, 1, (3,))), spaces.Box(-1, 1, (1,)))
    model = BNDDPG("MultiInputPolicy", env, **ARGUMENTS)
    model.export_onnx(tmp_path / "policy.onnx")
    obs = {"only": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    (actions,) = onnxruntime.InferenceSession(tmp_path / "policy.onnx").run(None, obs)
    np.testing.assert_allclose(actions, model.predict(obs, deterministic=True)[0], atol=1e-5)


def test_onnx_of_an_observation_called_as_the_output_is_refused(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnx")
    box = spaces.Box(-1, 1, (3,))
    model = BNDDPG("MultiInputPolicy", SpaceEnv(spaces.Dict(action=box, state=box), spaces.Box(-1, 1, (1,))), **ARGUMENTS)
    with pytest.raises(ValueError, match="the key 'action' is not allowed"):
        model.export_onnx(tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


def test_a_vec_normalize_in_another_is_not_exported(tmp_path):
    pytest.importorskip("safetensors")
    inner = VecNormalize(DummyVecEnv([VectorEnv]), norm_reward=False)
    model = BNDDPG("MlpPolicy", VecNormalize(inner, norm_obs=False), **ARGUMENTS)
    with pytest.raises(ValueError, match="one VecNormalize in another"):
        model.export_policy(tmp_path / "policy.safetensors")


def test_frames_of_a_renderer_with_one_picture_memory():
    class Rendering(gym.Env):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
        render_mode = "rgb_array"
        observation_space = action_space = spaces.Box(-1, 1, (1,))
        picture = np.zeros((3, 8, 8), np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.picture[...] = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.picture[...] += 1
            return np.zeros(1, np.float32), 0.0, False, False, {}

        def render(self):
            return self.picture.transpose(1, 2, 0)

    env = PixelObservation(Rendering(), 3, (8, 8))
    env.reset()
    assert env.step(np.zeros(1))[0][::3, 0, 0].tolist() == [1, 2, 3]


def test_normal_noise_for_actions_without_a_dimension_is_refused():
    with pytest.raises(ValueError, match="`action_noise='normal'` is not allowed for actions of shape"):
        BNTD3("MlpPolicy", SpaceEnv(spaces.Box(-1, 1, (3,)), spaces.Box(-1.0, 1.0, ())), **ARGUMENTS)


def test_parameters_of_unscaled_rewards_are_told_after_training_too(tmp_path):
    scaled, plain = (BNDDPG("MlpPolicy", VectorEnv(), reward_scaling=word, **ARGUMENTS) for word in ("return_std", None))
    scaled.learn(30)
    plain.save(tmp_path / "plain")
    with pytest.warns(UserWarning, match="critics of unscaled rewards"):
        scaled.set_parameters(tmp_path / "plain")


def test_a_dead_process_is_named_behind_a_wrapper():
    class Dying(VectorEnv):
        def step(self, action):
            if self.steps == 5:
                os._exit(3)
            return super().step(action)

    env = SubprocVecEnv([Dying], start_method="fork")
    model = BNDDPG("MlpPolicy", VecNormalize(env), **ARGUMENTS)
    with pytest.raises((EnvironmentFailureError, EOFError, ConnectionError)) as failure:
        model.learn(30)
    said = f"{failure.value} {getattr(failure.value, '__notes__', '')} {failure.value.__cause__}"
    assert "the process of environment 0 died (exit code 3" in said


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_that_is_replaced_keeps_its_permissions(make_model, tmp_path):
    model, path = make_model(), tmp_path / "model.zip"
    model.save(path)
    path.chmod(0o640)
    model.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_copy_made_in_a_callback_is_in_no_rollout(make_model, tmp_path):
    class Copying(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 25:
                self.copied = copy.deepcopy(self.model)
            return True

    callback = Copying()
    make_model().learn(30, callback=callback)
    callback.copied.save_checkpoint(tmp_path / "checkpoint")
