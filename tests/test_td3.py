"""BNTD3 beside BNDDPG: the same numbers where it has the same arguments, and the same guarantees where it has not."""

import copy
import importlib.util
import inspect
import re
from contextlib import suppress
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv, learns, random_batch
from gymnasium import spaces
from stable_baselines3 import TD3, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from benchmarks.reliability.resumes import InterruptAt, Interrupted, fingerprint
from sb3_bn_ddpg import BNDDPG, BNTD3, CheckpointEvery, FrameReplayBuffer
from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.networks.policies import BNDDPGPolicy, BNTD3Policy

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the extra `compiled` is not installed")
UPDATES = pytest.mark.parametrize("fast_update", [False, True, pytest.param("compiled", marks=needs_numba)])


def make_td3(env=None, policy="MlpPolicy", **kwargs) -> BNTD3:
    """A small seeded model; keyword arguments override."""
    arguments = dict(buffer_size=1000, learning_starts=20, batch_size=16, policy_kwargs=SMALL, seed=0, device="cpu")
    return BNTD3(policy, VectorEnv(ep_length=7) if env is None else env, **(arguments | kwargs))


# --- Beside BNDDPG and SB3's TD3


@UPDATES
@pytest.mark.parametrize(
    "kwargs", [dict(), dict(target_statistics="joint", use_target_networks=False, policy_delay=2, weight_normalization="both")]
)
def test_with_one_critic_it_is_bnddpg(fast_update, kwargs):
    """Random numbers, replay buffer and noise, too."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(BNDDPG).parameters.items()}
    del defaults["policy"], defaults["env"]
    arguments = defaults | dict(buffer_size=1000, learning_starts=20, seed=3, device="cpu", fast_update=fast_update) | kwargs
    ddpg = BNDDPG("MlpPolicy", VectorEnv(), **arguments | dict(policy_kwargs=SMALL))
    td3 = BNTD3("MlpPolicy", VectorEnv(), **arguments | dict(policy_kwargs=dict(SMALL, n_critics=1), target_policy_noise=0.0))
    fingerprints = []
    for model in (ddpg, td3):
        model.set_random_seed(3)
        fingerprints.append(fingerprint(model.learn(90)))
    assert type(td3._fast_update) is type(ddpg._fast_update)
    assert fingerprints[0].keys() == fingerprints[1].keys()
    assert [name for name, value in fingerprints[0].items() if value != fingerprints[1][name]] == []


def test_arguments_are_sb3s():
    """By position until its last own one, and all with SB3's values but for the noise, which the paper has."""
    ours, theirs = (inspect.signature(each).parameters for each in (BNTD3, TD3))
    assert theirs.keys() <= ours.keys()
    n_shared = [*theirs].index("target_noise_clip") + 1
    assert [*ours][:n_shared] == [*theirs][:n_shared]
    defaults = {name for name, parameter in theirs.items() if ours[name].default != parameter.default}
    assert defaults == {"action_noise"}
    assert [ours[name].default for name in ("action_noise", "critic_learning_rate", "critic_weight_decay")] == [
        "normal",
        None,
        0,
    ]
    model, sb3 = (each("MlpPolicy", VectorEnv(), buffer_size=10, device="cpu") for each in (BNTD3, TD3))
    for network in ("actor", "critic"):
        groups, (expected,) = (getattr(each, network).optimizer.param_groups for each in (model, sb3))
        for group in groups:
            assert {name: value for name, value in group.items() if name != "params"} == {
                name: value for name, value in expected.items() if name != "params"
            }
    np.testing.assert_array_equal(model.action_noise._mu, np.zeros(2))
    np.testing.assert_array_equal(model.action_noise._sigma, np.full(2, 0.1))


def test_arguments_by_position():
    env, buffer = VectorEnv(), dict(handle_timeout_termination=True)
    values = (1e-4, 200, 10, 8, 0.1, 0.9, 2, 3, None, None, buffer, False, 2, 4, 0.3, 0.7)
    model = BNTD3("MlpPolicy", env, *values)
    names = ["learning_rate", "buffer_size", "learning_starts", "batch_size", "tau", "gamma", "train_freq", "gradient_steps"]
    names += ["action_noise", "replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage", "n_steps"]
    names += ["policy_delay", "target_policy_noise", "target_noise_clip"]
    for name, value in zip(names, values, strict=True):
        if name not in ("train_freq", "replay_buffer_class"):
            assert getattr(model, name) == value, name
    assert model.train_freq.frequency == 2


# --- Whatever it learns from


def square() -> FakeImageEnv:
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False, channel_first=True)


def shared(loss: str, **kwargs) -> dict:
    return dict(policy_kwargs=dict(SMALL, share_features_extractor=True, shared_extractor_loss=loss, **kwargs))


def bits() -> BitFlippingEnv:
    return BitFlippingEnv(n_bits=4, continuous=True)


ALONE = dict(use_target_networks=False)
VARIANTS = {
    "default": (VectorEnv, {}),
    "autograd": (VectorEnv, dict(fast_update=False)),
    "compiled": (VectorEnv, dict(fast_update="compiled")),
    "three critics": (VectorEnv, dict(policy_kwargs=dict(SMALL, n_critics=3))),
    "images": (square, dict(policy="CnnPolicy")),
    "images, shared features, the actor's": (square, dict(policy="CnnPolicy") | shared("actor", normalization="batch")),
    "images, shared features, the critics'": (
        square,
        dict(policy="CnnPolicy")
        | shared("critic", normalization="batch", features_extractor_kwargs=dict(conv_normalization="batch")),
    ),
    "shared features, joint": (square, dict(policy="CnnPolicy", target_statistics="joint") | ALONE | shared("critic")),
    "dictionaries": (partial(SimpleMultiObsEnv, discrete_actions=False), dict(policy="MultiInputPolicy")),
    "shared features of dictionaries": (
        partial(SimpleMultiObsEnv, discrete_actions=False),
        dict(policy="MultiInputPolicy", actor_loss_critics="smallest") | shared("critic"),
    ),
    "HER": (bits, dict(policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer)),
    "HER, two environments": (
        partial(make_vec_env, bits, n_envs=2),
        dict(policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer, gradient_steps=-1),
    ),
    "frames": (
        lambda: VecFrameStack(make_vec_env(square), 3, channels_order="first"),
        dict(
            policy="CnnPolicy",
            replay_buffer_class=FrameReplayBuffer,
            replay_buffer_kwargs=dict(random_shift=2, n_steps=3),
        ),
    ),
    "three environments": (partial(make_vec_env, VectorEnv, n_envs=3), dict(gradient_steps=-1)),
    "three environments, OU noise": (partial(make_vec_env, VectorEnv, n_envs=3), dict(action_noise="ou")),
    "VecNormalize": (lambda: VecNormalize(make_vec_env(VectorEnv)), {}),
    "n-step": (VectorEnv, dict(n_steps=3)),
    "one rollout an episode": (VectorEnv, dict(train_freq=(1, "episode"), gradient_steps=-1)),
    "no target networks": (VectorEnv, ALONE),
    "joint": (VectorEnv, dict(target_statistics="joint") | ALONE),
    "joint by autograd": (VectorEnv, dict(target_statistics="joint", fast_update=False) | ALONE),
    "the smallest": (VectorEnv, dict(actor_loss_critics="smallest")),
    "weight normalization": (VectorEnv, dict(weight_normalization="both")),
    "running statistics": (VectorEnv, dict(target_statistics="running", target_statistics_sync="polyak")),
    "no noise": (VectorEnv, dict(action_noise=None, target_policy_noise=0.0)),
    "no noise is left by the clip": (VectorEnv, dict(target_noise_clip=0)),
    "CrossQ's layers": (
        VectorEnv,
        dict(
            policy_kwargs=dict(
                SMALL,
                normalization="batch_renorm",
                norm_order="after_activation",
                critic_input_norm="state_action",
                critic_norm_layers="all",
                action_layer=1,
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_numba) if name == "compiled" else name for name in VARIANTS])
def test_it_learns_is_saved_and_goes_on(name, tmp_path):
    make_env, kwargs = VARIANTS[name]
    model = make_td3(make_env(), **kwargs)
    start = copy.deepcopy(model.policy.state_dict())
    model.learn(60)
    unmoved = {key for key, value in model.policy.state_dict().items() if th.equal(value, start[key])}
    # Statistics that nobody updates, and the counts of renormalisation's correction
    assert not {key for key in unmoved if key.endswith(("weight", "bias"))}
    model.save(tmp_path / "model")
    loaded = BNTD3.load(tmp_path / "model", env=make_env(), device="cpu")
    assert len(loaded.critic.q_networks) == len(model.critic.q_networks)
    assert loaded._n_updates == model._n_updates
    states, loaded_states = model.policy.state_dict(), loaded.policy.state_dict()
    assert states.keys() == loaded_states.keys()
    assert [key for key, value in states.items() if not th.equal(value, loaded_states[key])] == []
    obs = model.env.reset()
    np.testing.assert_array_equal(loaded.predict(obs)[0], model.predict(obs)[0])
    loaded.learn(40)
    assert loaded._n_updates > model._n_updates


# --- Going on in the middle of the delay


@pytest.mark.parametrize("half", [40, 41, 42])
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(fast_update=False),
        dict(action_noise="ou", n_steps=3),
        dict(actor_loss_critics="smallest", learning_rate=LinearSchedule(1e-3, 0.0, 1.0)),
        dict(n_envs=2),
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, half, kwargs):
    """Exploration noise and that on the targets' actions go on where they were, as the turns of the actor do."""
    kwargs = dict(kwargs)
    n_envs = kwargs.pop("n_envs", 1)

    def make_env():
        return make_vec_env(VectorEnv, n_envs, env_kwargs=dict(ep_length=7))

    def make():
        return make_td3(make_env(), policy_delay=3, **kwargs)

    half *= n_envs
    expected = fingerprint(make().learn(2 * half))
    with suppress(Interrupted):
        make().learn(2 * half, [CheckpointEvery(half, tmp_path / "checkpoint"), InterruptAt(half + 4)])
    np.random.seed(99)
    th.manual_seed(99)
    resumed = BNTD3.resume(tmp_path / "checkpoint", make_env(), device="cpu")
    assert resumed.num_timesteps == half
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert [name for name, value in fingerprint(resumed).items() if value != expected[name]] == []


@pytest.mark.parametrize("steps", [60, 61, 62])
@pytest.mark.parametrize("fast_update", [True, False])
def test_a_loaded_model_takes_the_same_turns(tmp_path, steps, fast_update):
    model = make_td3(policy_delay=3, fast_update=fast_update).learn(steps)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = BNTD3.load(tmp_path / "model", env=VectorEnv(ep_length=7), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    loaded.set_logger(model.logger)
    for _ in range(4):
        actors = []
        for each in (model, loaded):
            each.set_random_seed(3)
            actor = copy.deepcopy(each.actor.state_dict())
            each.train(1, 16)
            actors.append(any(not th.equal(value, actor[key]) for key, value in each.actor.state_dict().items()))
        assert actors == [model._n_updates % 3 == 0] * 2
        for key, value in model.policy.state_dict().items():
            assert th.equal(value, loaded.policy.state_dict()[key]), key


def test_each_way_draws_the_same_noise():
    """So that a training by autograd and a fast one meet the same numbers, and a resumed one may change the way."""
    states = []
    for fast_update in (True, False):
        make_td3(fast_update=fast_update).learn(40)
        states.append(th.get_rng_state())
    assert th.equal(*states)
    without = make_td3(target_policy_noise=0.0)
    before = th.get_rng_state()
    without.learn(40)
    assert th.equal(th.get_rng_state(), before)


# --- What goes wrong


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("target_policy_noise", -1, "a finite number >= 0"),
        ("target_policy_noise", None, "a finite number >= 0"),
        ("target_noise_clip", "x", "a finite number >= 0"),
        ("target_noise_clip", -0.1, "a finite number >= 0"),
        ("actor_loss_critics", "both", "one of 'first', 'smallest'"),
        ("policy_delay", 0, "an integer >= 1"),
        ("action_noise", "gaussian", "'ou', 'normal', None or an `ActionNoise`"),
        ("n_critics", 0, "an integer >= 1"),
        ("policy", BNDDPGPolicy, "a subclass of BNTD3Policy"),
    ],
)
def test_bad_arguments(argument, value, allowed, tmp_path):
    kwargs = dict(policy_kwargs=dict(n_critics=value)) if argument == "n_critics" else {argument: value}
    name = getattr(value, "__name__", repr(value))
    message = rf"`{argument}={re.escape(name)}` is not allowed: it must be .*{re.escape(allowed)}"
    with pytest.raises(ValueError, match=message):
        make_td3(**kwargs)
    if argument in ("policy", "n_critics", "action_noise"):
        return
    model = make_td3()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        BNTD3.load(tmp_path / "model", **kwargs)
    setattr(model, argument, value)
    with pytest.raises(ValueError, match=message):
        model.learn(30)


def test_files_and_policies_of_the_other_algorithm(make_model, tmp_path):
    """Their policies differ, so none is taken for the other's: no TD3 with a single critic by mistake."""
    with pytest.raises(ValueError, match=r"`policy=BNTD3Policy` is not allowed: .* a subclass of BNDDPGPolicy"):
        BNDDPG(BNTD3Policy, VectorEnv())
    for model, other in ((make_td3(), BNDDPG), (make_model(), BNTD3)):
        name = type(model).__name__
        model.learn(25).save(tmp_path / name)
        with pytest.raises(FileError, match=rf"cannot be loaded: ValueError: `policy={name}Policy` is not allowed"):
            other.load(tmp_path / name)
        model.save_checkpoint(tmp_path / "checkpoint")
        with pytest.raises(FileError, match=rf"use `{name}\.resume`"):
            other.resume(tmp_path / "checkpoint", VectorEnv())


def test_parameters_of_another_number_of_critics():
    """After the error, those from before are there."""
    model = make_td3().learn(40)
    before = copy.deepcopy(model.get_parameters())
    with pytest.raises(RuntimeError, match=r"critic\.qf2"):
        model.set_parameters(make_td3(policy_kwargs=dict(SMALL, n_critics=3)).get_parameters())
    for key, value in model.get_parameters()["policy"].items():
        assert th.equal(value, before["policy"][key]), key
    model.learn(10, reset_num_timesteps=False)


class FaultyEnv(VectorEnv):
    """Goes wrong at one step."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.total_steps = fault, 0

    def step(self, action):
        self.total_steps += 1
        obs, reward, *rest = super().step(action)
        if self.total_steps == 45:
            if self.fault == "error":
                raise KeyError("sensor")
            reward = np.nan
        return obs, reward, *rest


def test_rewards_that_are_not_finite():
    model = make_td3(FaultyEnv("nan"))
    with pytest.raises(ValueError, match=r"reward.*nan"):
        model.learn(100)
    assert model.replay_buffer.size() == 44


def test_errors_of_the_environment_keep_their_type():
    with pytest.raises(KeyError, match="sensor") as caught:
        make_td3(FaultyEnv("error")).learn(100)
    assert "At step 44 of the training, environment 0 raised this." in caught.value.__notes__


@pytest.mark.parametrize("network", ["critic.qf0", "critic.qf1", "actor"])
@UPDATES
def test_numbers_that_are_not_finite(network, fast_update):
    """The second critic's, too, of which the first one's loss knows nothing."""
    model = make_td3(fast_update=fast_update).learn(41)
    with th.no_grad():
        next(model.policy.get_submodule(network).parameters()).fill_(th.nan)
    with pytest.raises(ValueError, match=r"step 4\d \(update 2\d\) .*not finite: training cannot go on"):
        model.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("fast_update", [True, False])
def test_exploding_q_values(fast_update):
    model = make_td3(fast_update=fast_update, gamma=0.9)
    with pytest.warns(UserWarning, match=r"Q-values explode: they reach .* Try a lower critic_learning_rate, a smaller tau"):
        model.learn(40, Shout())


class Shout(BaseCallback):
    """Makes one critic's values huge."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 30:
            with th.no_grad():
                self.model.critic.q_networks[1].q_net[-1].bias.fill_(1e6)
        return True


# --- SB3's own interface


def test_a_training_as_scripts_for_sb3_have_it(tmp_path, capsys):
    """An id, TensorBoard, verbose output, evaluation."""
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = BNTD3(
        "MlpPolicy", "Pendulum-v1", policy_kwargs=SMALL, batch_size=16, tensorboard_log=str(tmp_path), verbose=1, seed=0
    )
    assert model.learn(250, log_interval=1) is model
    assert [path.name for path in tmp_path.iterdir()] == ["BNTD3_1"]
    events = tensorboard.EventAccumulator(str(tmp_path / "BNTD3_1")).Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/actor_loss", "train/critic_loss", "train/learning_rate", "rollout/ep_rew_mean", "time/fps"} <= names
    assert "train/n_updates" not in names  # as in SB3
    printed = capsys.readouterr().out
    assert f"Logging to {tmp_path}" in printed
    assert "critic_loss" in printed
    assert "Updating by autograd" not in printed
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)
    assert -2500 < mean < 0
    model.learn(10, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {"BNTD3_1", "other_1"}


def test_get_and_set_parameters(tmp_path):
    model, other = make_td3().learn(60), make_td3(seed=1)
    assert model.get_parameters().keys() == {"policy", "actor.optimizer", "critic.optimizer"}
    other.set_parameters(copy.deepcopy(model.get_parameters()))
    model.save(tmp_path / "model")
    third = make_td3(seed=2)
    third.set_parameters(tmp_path / "model")
    batch = random_batch(model)
    for each in (model, other, third):
        th.manual_seed(0)
        each._gradient_step(batch)
    for each in (other, third):
        for key, value in each.policy.state_dict().items():
            assert th.equal(value, model.policy.state_dict()[key]), key


def test_replay_buffer(tmp_path):
    model = make_td3().learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make_td3()
    other.load_replay_buffer(tmp_path / "buffer")
    assert other.replay_buffer.size() == 60
    np.testing.assert_array_equal(other.replay_buffer.rewards, model.replay_buffer.rewards)
    other.learn(30)


@UPDATES
def test_a_copy_goes_on_by_itself(fast_update):
    model = make_td3(fast_update=fast_update).learn(45)
    copied = copy.deepcopy(model)
    before = copy.deepcopy(model.policy.state_dict())
    copied.learn(30, reset_num_timesteps=False)
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, before[key]), key
    assert copied._n_updates == model._n_updates + 30
    assert copied.critic.q_networks[1] is not model.critic.q_networks[1]


def test_set_env():
    model = make_td3().learn(40)
    env = VectorEnv(ep_length=5)
    model.set_env(env)
    assert model.get_env().envs[0].unwrapped is env
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 80
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(VectorEnv(obs_dim=7))


def test_learning_rates():
    """The critics follow the one rate, as in SB3, unless they have their own."""

    def rates(model: BNTD3) -> tuple[float, float]:
        return tuple(getattr(model, name).optimizer.param_groups[0]["lr"] for name in ("actor", "critic"))

    schedule = LinearSchedule(1e-3, 1e-4, 1.0)
    model = make_td3(learning_rate=schedule).learn(60, schedule_timesteps=120)
    assert rates(model) == pytest.approx((5.5e-4, 5.5e-4), rel=0.02)
    own = make_td3(learning_rate=schedule, critic_learning_rate=LinearSchedule(1e-2, 0.0, 1.0)).learn(60)
    assert rates(own) == pytest.approx((1e-4, 0.0), abs=3e-4)
    assert rates(own)[1] < 3e-4
    constant = make_td3(critic_learning_rate=3e-3).learn(30)
    assert rates(constant) == (1e-3, 3e-3)


class Target(gym.Env):
    """The action is to be the state, which is drawn anew each step; a random one is 0.67 off on average, a constant 0.5."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._draw(), {}

    def step(self, action):
        self.steps += 1
        reward = -float(np.abs(action - self.state).mean())
        return self._draw(), reward, False, self.steps >= 10, {}

    def _draw(self) -> np.ndarray:
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state


@pytest.mark.parametrize("actor_loss_critics", ["first", "smallest"])
def test_it_learns(actor_loss_critics):
    model = make_td3(Target(), buffer_size=5000, batch_size=64, gamma=0.0, actor_loss_critics=actor_loss_critics)

    def off() -> float:
        return -evaluate_policy(model, Target(), n_eval_episodes=10, warn=False)[0] / 10

    assert off() > 0.4
    assert learns(model, 2500, lambda: off() < 0.1)
    assert type(model._fast_update).__name__ == "FastUpdate"
