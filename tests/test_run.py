"""Everything that SB3's own DDPG does: environments, frequencies, buffers, callbacks, loggers, and that it learns."""

import os
from collections import Counter
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_bn_ddpg import BNDDPG

CHOICES = [
    dict(),
    dict(use_target_networks=False),
    dict(target_statistics="running"),
    dict(target_statistics="running_update", target_statistics_sync=None),
    dict(target_statistics="batch_update", target_statistics_sync="polyak"),
    dict(critic_loss_statistics="running_update", actor_loss_actor_statistics="running_update"),
    dict(actor_loss_critic_statistics="batch_update"),
    dict(use_target_networks=False, target_statistics="batch_update", actor_loss_critic_statistics="batch"),
]


def test_direct_subclass():
    assert issubclass(BNDDPG, OffPolicyAlgorithm)
    assert not issubclass(BNDDPG, TD3)


def test_parameters_of_sb3s_ddpg_in_its_order():
    import inspect

    theirs = list(inspect.signature(DDPG.__init__).parameters)
    ours = list(inspect.signature(BNDDPG.__init__).parameters)
    assert [name for name in ours if name in theirs] == theirs


def test_paper_defaults():
    model = BNDDPG("MlpPolicy", "Pendulum-v1")
    assert (model.gamma, model.tau, model.batch_size, model.buffer_size) == (0.99, 0.001, 64, 1_000_000)
    assert [group["lr"] for group in model.actor.optimizer.param_groups] == [1e-4]
    assert [group["lr"] for group in model.critic.optimizer.param_groups] == [1e-3, 1e-3]
    assert [group["weight_decay"] for group in model.critic.optimizer.param_groups] == [1e-2, 0]
    assert isinstance(model.actor.optimizer, th.optim.Adam)
    assert (model.n_steps, model.train_freq.frequency, model.gradient_steps) == (1, 1, 1)


@pytest.mark.parametrize("normalization", ["batch", "batch_renorm", "layer", "batch_layer", None])
@pytest.mark.parametrize("choices", CHOICES)
def test_every_choice_trains(make_model, normalization, choices):
    model = make_model(policy_kwargs=dict(SMALL, normalization=normalization, renorm_warmup_steps=10), **choices)
    before = {name: param.clone() for name, param in model.policy.named_parameters()}
    model.learn(60)
    for name, param in model.policy.named_parameters():
        assert th.isfinite(param).all()
        is_shift = isinstance(model.policy.get_submodule(name.rpartition(".")[0]), th.nn.Linear) and name.endswith("bias")
        # What shifts the inputs of batch renorm has a gradient that is zero but for rounding
        assert (normalization == "batch_renorm" and is_shift) or not th.equal(param, before[name]), name
    for buffer in model.policy.buffers():
        assert th.isfinite(buffer.float()).all()


@pytest.mark.parametrize("net_arch", [[], [8], [8, 8, 8], dict(pi=[8], qf=[8, 8]), dict(pi=[], qf=[8])])
def test_every_depth_trains(make_model, net_arch):
    make_model(policy_kwargs=dict(net_arch=net_arch)).learn(60)


@pytest.mark.parametrize(
    ("n_envs", "kwargs", "n_updates"),
    [
        (1, dict(), 40),
        (1, dict(train_freq=4, gradient_steps=2), 20),
        (1, dict(train_freq=(2, "episode"), gradient_steps=-1), 40),
        (1, dict(train_freq=(5, "step"), gradient_steps=-1), 40),
        (1, dict(gradient_steps=0), 0),
        (2, dict(gradient_steps=-1), 40),
        (2, dict(train_freq=5), 4),
    ],
)
def test_train_freq_and_gradient_steps(make_model, n_envs, kwargs, n_updates):
    """Sixty steps, learning after the first twenty, environments of ten-step episodes: updates counted by hand."""
    model = make_model(make_vec_env(lambda: VectorEnv(ep_length=10), n_envs=n_envs), **kwargs)
    model.learn(60)
    assert model.num_timesteps == 60
    assert model._n_updates == n_updates


def test_subprocess_environments(make_model):
    env = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    model = make_model(env, gradient_steps=-1)
    model.learn(60)
    env.close()
    assert model.num_timesteps == 60


def test_n_steps(make_model):
    model = make_model(n_steps=3)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    model.learn(60)
    batch = model.replay_buffer.sample(50)
    assert batch.discounts is not None
    assert batch.discounts.min().item() == pytest.approx(0.99**3)


def test_returns_that_shorten(make_model, monkeypatch):
    """5 (1 / 5)^p, p the progress, rounded: 4 from p = 0.07 on, 3 from 0.22, 2 from 0.43, 1 from 0.75."""
    model, lengths = make_model(n_steps=5, n_steps_final=1, learning_starts=0), []
    sample = model.replay_buffer.sample
    monkeypatch.setattr(
        model.replay_buffer,
        "sample",
        lambda *args, **kwargs: lengths.append(model.replay_buffer.n_steps) or sample(*args, **kwargs),
    )
    model.set_logger(logger := configure(None, []))
    model.learn(100, log_interval=1_000)
    assert lengths == [5] * (len(lengths) - 94) + [4] * 16 + [3] * 21 + [2] * 31 + [1] * 26
    assert logger.name_to_value["train/n_steps"] == 1
    model.learn(5, reset_num_timesteps=False, schedule_timesteps=210)  # a part of a longer training
    assert lengths[-1] == 2


def test_returns_that_end_as_they_begin(make_model):
    whole, other = (make_model(n_steps=3, n_steps_final=final).learn(60) for final in (None, 3))
    for one, two in zip(whole.policy.parameters(), other.policy.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach(), two.detach())


def test_discount_and_steps_may_be_set_between_two_calls(make_model):
    model = make_model(n_steps=3, n_steps_final=1, gamma=0.9).learn(30)
    model.gamma, model.n_steps, model.n_steps_final = 0.5, 4, None
    model.learn(30, reset_num_timesteps=False)
    assert (model.replay_buffer.gamma, model.replay_buffer.n_steps) == (0.5, 4)
    assert model._sample(400).discounts.min().item() == pytest.approx(0.5**4)
    single = make_model().learn(30)
    single.n_steps = 2
    with pytest.raises(ValueError, match="`n_steps=2` is not allowed with a replay buffer of single steps"):
        single.learn(30, reset_num_timesteps=False)
    single.n_steps, single.train_freq = 1, 5
    single.learn(30, reset_num_timesteps=False)
    assert single._n_updates == 10 + 30 // 5


def test_memory_efficient_replay_buffer(make_model):
    make_model(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False)).learn(60)


def test_vec_normalize(make_model):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2))
    model = make_model(env)
    model.learn(60)
    # SB3's contract: the buffer holds what the environment returned, normalised when it is sampled
    assert np.abs(model.replay_buffer.observations[:30, :, :2]).max() <= 1
    assert model.get_vec_normalize_env() is env


def test_schedules_of_both_learning_rates(make_model):
    model = make_model(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0), critic_learning_rate=lambda p: 2e-3 * p)
    model.learn(50)
    actor_lr = model.actor.optimizer.param_groups[0]["lr"]
    critic_lrs = [group["lr"] for group in model.critic.optimizer.param_groups]
    # The last update runs after the last step, when no progress remains
    assert actor_lr == pytest.approx(1e-4)
    assert critic_lrs == [0, 0]


def test_schedules_stay_at_their_end(make_model):
    model = make_model(learning_rate=lambda p: 1e-3 * p**0.5, critic_learning_rate=LinearSchedule(1e-2, 1e-3, 1.0))
    model.learn(100, schedule_timesteps=50)
    assert model._current_progress_remaining == 0
    assert model.actor.optimizer.param_groups[0]["lr"] == 0
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_schedules_of_whole_episodes_stay_at_their_end(make_model):
    model = make_model(VectorEnv(ep_length=40), train_freq=(1, "episode"), learning_rate=lambda p: 1e-3 * p)
    model.learn(50)
    assert model.num_timesteps == 80
    assert model.actor.optimizer.param_groups[0]["lr"] == 0


def test_optimizer_class_and_kwargs(make_model):
    model = make_model(policy_kwargs=dict(SMALL, optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(betas=(0.5, 0.9))))
    model.learn(40)
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        assert isinstance(optimizer, th.optim.AdamW)
        assert all(group["betas"] == (0.5, 0.9) for group in optimizer.param_groups)


def test_learn_goes_on(make_model):
    model = make_model(VectorEnv(ep_length=1000))
    model.learn(40)
    last_obs = model._last_obs.copy()
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 60
    np.testing.assert_array_equal(model.replay_buffer.observations[40], last_obs)  # no reset in between
    model.learn(20)
    assert model.num_timesteps == 20


def test_callbacks(make_model, tmp_path):
    model = make_model(VectorEnv(ep_length=10))
    evaluation = EvalCallback(VectorEnv(), eval_freq=20, n_eval_episodes=1, log_path=str(tmp_path), verbose=0, warn=False)
    checkpoint = CheckpointCallback(30, str(tmp_path / "checkpoints"), save_replay_buffer=True)
    events = []
    every = EveryNTimesteps(25, StopTrainingOnMaxEpisodes(1000))
    function = lambda local_variables, _: events.append(local_variables["self"].num_timesteps) or True  # noqa: E731
    model.learn(60, callback=CallbackList([evaluation, checkpoint, every]))
    assert evaluation.evaluations_timesteps == [20, 40, 60]
    assert len(os.listdir(tmp_path / "checkpoints")) == 4
    model.learn(10, callback=function)
    assert events == list(range(1, 11))
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(2))
    assert model.num_timesteps == 20


def test_progress_bar(make_model, capfd):
    make_model().learn(40, progress_bar=True)
    output = "".join(capfd.readouterr())
    assert "40/40" in output


def test_logged_values(make_model, tmp_path):
    model = make_model(VectorEnv(ep_length=10))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(200, log_interval=2)
    with open(tmp_path / "progress.csv") as file:
        header, *rows = [line.strip().split(",") for line in file]
    row = dict(zip(header, map(float, rows[-1]), strict=True))
    assert row["train/n_updates"] > 100
    assert row["train/learning_rate"] == 1e-4
    assert row["train/critic_learning_rate"] == 1e-3
    assert row["rollout/noise_sigma"] == 0.2
    for name in ("actor_grad_norm", "critic_grad_norm", "critic_loss", "actor_statistics_drift", "critic_statistics_drift"):
        assert row[f"train/{name}"] > 0, name
    # -mean Q(s, mu(s)) and mean Q(s, a) and mean y over the same states lie close to each other
    assert row["train/actor_loss"] == pytest.approx(-row["train/q_value"], abs=1)
    assert row["train/td_target"] == pytest.approx(row["train/q_value"], abs=1)


def test_logged_gradient_norm_is_that_of_the_gradient(make_model):
    model = make_model()
    model.learn(21)
    logged = model.logger.name_to_value["train/critic_grad_norm"]
    squares = [param.grad.square().sum() for param in model.critic.parameters()]
    assert logged == pytest.approx(th.stack(squares).sum().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("path", [True, False])
def test_logged_saturation_is_that_of_predict(make_model, path):
    """Of actions in the environment's units: those that lie within a hundredth of the range from a bound."""
    model = make_model(VectorEnv(high=3.0), fast_update=path, learning_rate=0.0)
    model.learn(20)
    for bias, share in (((0.0, 0.0), 0), ((0.0, 9.0), 0.5), ((-9.0, 9.0), 1)):
        with th.no_grad():
            model.actor.mu[-2].bias.copy_(th.tensor(bias))
        model._n_updates = 0
        model.train(1, 16)
        assert model.logger.name_to_value["train/actor_saturation"] == share
        actions, _ = model.predict(np.ones((4, 4), np.float32))
        assert (np.abs(actions) > 0.98 * 3).mean() == share


@pytest.mark.parametrize("path", [True, False])
def test_policy_delay(make_model, path, tmp_path):
    """The actor and the target networks move at every third update, counted on when a saved model goes on."""
    model = make_model(policy_delay=3, learning_starts=10, fast_update=path, tau=0.5)
    actor, target = model.actor.mu[1].weight, model.critic_target.q_net[0].weight
    seen = []

    class Recorder(BaseCallback):
        def _on_step(self):
            seen.append((self.model._n_updates, actor.detach().clone(), target.detach().clone()))
            return True

    model.learn(22, callback=Recorder())  # the callback sees what the updates of the step before did
    moves = [
        (n_updates, *(not th.equal(x, y) for x, y in zip(last, now, strict=True)))
        for (_, *last), (n_updates, *now) in pairwise(seen)
    ]
    assert moves == [(n, n > 0 and n % 3 == 0, n > 0 and n % 3 == 0) for n in [0] * 10 + list(range(1, 12))]

    def actor_steps(model):
        return {int(state["step"]) for state in model.actor.optimizer.state_dict()["state"].values()}

    assert model._n_updates == 12
    assert actor_steps(model) == {4}
    model.train(1, 16)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=model.get_env())
    loaded.set_logger(model.logger)
    loaded.replay_buffer = model.replay_buffer
    loaded.train(1, 16)
    assert actor_steps(loaded) == {4}
    loaded.train(1, 16)
    assert actor_steps(loaded) == {5}


def test_actor_loss_is_logged_when_there_is_one(make_model):
    model = make_model(policy_delay=2)
    model.learn(20)
    model._n_updates = 0
    seen = []
    for gradient_steps in (1, 1, 1, 3):
        model.logger.name_to_value.clear()
        model.train(gradient_steps, 16)
        seen.append("train/actor_loss" in model.logger.name_to_value)
        assert "train/critic_loss" in model.logger.name_to_value
    assert seen == [False, True, False, True]


def test_diagnostics_are_those_of_an_actors_update(make_model):
    """With a delay, the updates measured are ones in which actor and statistics move: the 3rd, the 33rd and so on."""
    model = make_model(policy_delay=3)
    model.learn(20)
    model._n_updates = 0
    seen = []
    for _ in range(34):
        model.logger.name_to_value.clear()
        model.train(1, 16)
        if "train/actor_statistics_drift" in model.logger.name_to_value:
            seen.append(model._n_updates)
            assert model.logger.name_to_value["train/actor_statistics_drift"] > 0
    assert seen == [3, 33]


def test_diagnostics_are_taken_once_in_ten_updates(make_model):
    model = make_model()
    model.learn(20)
    seen = []
    for gradient_steps in (1, 9, 1, 3, 8):  # updates 0; 1 to 9; 10; 11 to 13; 14 to 21
        model.logger.name_to_value.clear()
        model.train(gradient_steps, 16)
        seen.append("train/actor_grad_norm" in model.logger.name_to_value)
    assert seen == [True, False, True, False, True]


def test_diagnostics_that_nobody_has_read_yet_are_taken_once_in_fifty_updates(make_model):
    """Until the logger writes them, which it does with the last ones."""
    model = make_model()
    model.learn(20)
    model._n_updates, taken = 0, []
    model.logger.dump()
    record = model.logger.record

    def recorded(key, *args, **kwargs):
        if key == "train/actor_saturation":
            taken.append(model._n_updates)
        record(key, *args, **kwargs)

    model.logger.record = recorded
    for n in range(120):
        model.train(1, 16)
        if n == 104:
            model.logger.dump()
    assert taken == [1, 51, 101, 111]


def test_tensorboard(make_model, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_model(VectorEnv(ep_length=10), tensorboard_log=str(tmp_path)).learn(60, tb_log_name="trial")
    (folder,) = os.listdir(tmp_path)
    assert folder == "trial_1"
    events = EventAccumulator(str(tmp_path / folder))
    events.Reload()
    assert {"train/actor_loss", "train/critic_loss", "rollout/ep_rew_mean"} <= set(events.Tags()["scalars"])


def test_default_tensorboard_name(make_model, tmp_path):
    make_model(tensorboard_log=str(tmp_path)).learn(1)
    assert os.listdir(tmp_path) == ["BNDDPG_1"]


@pytest.mark.parametrize("normalization", ["batch", "batch_renorm", "layer", "batch_layer", None])
def test_identity(normalization):
    """It learns to repeat its observation as its action: the end of every pipeline bug, SB3's own test."""
    env = IdentityEnvBox(eps=0.5)
    model = BNDDPG(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        gamma=0.4,
        tau=0.05,
        buffer_size=2000,
        learning_starts=100,
        policy_kwargs=dict(net_arch=[64, 64], normalization=normalization),
        seed=0,
    )
    model.learn(800)
    mean_return, _ = evaluate_policy(model, env, n_eval_episodes=5, warn=False)
    assert mean_return > 90  # of 100


class Watching(BaseCallback):
    """Registers what ``WandbCallback(gradient_save_freq=1)`` does, when it does: hooks of all layers and all parameters."""

    def _init_callback(self):
        self.calls = Counter()
        for name, module in self.model.policy.named_modules():
            module.register_forward_hook(lambda *args, name=name: self.calls.update([name]))
        for name, param in self.model.policy.named_parameters():
            param.register_hook(lambda grad, name=name: self.calls.update([f"gradient of {name}"]))

    def _on_step(self):
        return True


@pytest.mark.parametrize("n_steps_before", [0, 30])
def test_a_callback_that_watches_layers_and_gradients(make_model, capsys, n_steps_before):
    """It misses nothing, and the training says that it is slower for that."""
    model = make_model(verbose=1).learn(n_steps_before, log_interval=None)
    assert "Updating by autograd" not in capsys.readouterr().out
    watching = Watching()
    model.learn(30, callback=watching, log_interval=None)
    assert watching.calls["gradient of critic.qf0.q_net.0.weight"] >= 10
    assert watching.calls["critic.qf0.q_net.0"] >= 10
    assert capsys.readouterr().out.count("Updating by autograd: there are hooks in the network") == 1


def test_mujoco(make_model):
    model = make_model(gym.make("HalfCheetah-v5"))
    model.learn(40)
    assert model.actor.mu[0].num_features == 17


@pytest.mark.slow
def test_pendulum_is_learned():
    """A real task with the networks of the paper, from the -1,100 of a random policy."""
    model = BNDDPG("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, tau=0.005, critic_weight_decay=0.0, seed=0)
    # Rounding differs from machine to machine, and with it the step at which it succeeds: mostly between 5,000 and 8,000
    evaluation = EvalCallback(
        make_vec_env("Pendulum-v1", seed=0),
        callback_on_new_best=StopTrainingOnRewardThreshold(-250),
        n_eval_episodes=10,
        eval_freq=1000,
        verbose=0,
    )
    model.learn(20_000, callback=evaluation)
    assert evaluation.best_mean_reward > -250
