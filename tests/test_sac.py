"""BNSAC: SB3's interface, and what its stochastic policy and entropy coefficient add."""

import copy
import inspect
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, StopAt, VectorEnv, learns, random_batch
from fast_updates import COMPILED
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvBox, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from test_frame_buffer import CountingEnv
from test_her import PointGoal
from test_update import FixedBuffer

from sb3_bn_ddpg import BNDDPG, BNSAC, CROSSQ, CheckpointEvery, FrameReplayBuffer, PixelObservation
from sb3_bn_ddpg.networks.actors import GaussianActor
from sb3_bn_ddpg.networks.policies import BNDDPGPolicy

WAYS = pytest.mark.parametrize("way", [False, True, COMPILED])


def small_model(env=None, policy="MlpPolicy", **kwargs) -> BNSAC:
    arguments = dict(buffer_size=1000, learning_starts=20, batch_size=16, policy_kwargs=SMALL, seed=0, device="cpu")
    return BNSAC(policy, VectorEnv() if env is None else env, **(arguments | kwargs))


def crossq(**policy_kwargs) -> dict:
    """CrossQ with other settings of its networks."""
    return CROSSQ | dict(policy_kwargs=CROSSQ["policy_kwargs"] | policy_kwargs)


# SB3's interface


def test_the_parameters_of_sb3_come_first_and_in_its_order():
    ours, theirs = (list(inspect.signature(kind).parameters.values()) for kind in (BNSAC, SAC))
    names = [parameter.name for parameter in theirs]
    common = names[: names.index("stats_window_size")]
    assert [parameter.name for parameter in ours][: len(common)] == common
    assert set(names) <= {parameter.name for parameter in ours}
    defaults = {parameter.name: parameter.default for parameter in ours}
    for parameter in theirs:
        assert defaults[parameter.name] == parameter.default, parameter.name
    model = BNSAC("MlpPolicy", VectorEnv(), 1e-3, 500, 10, 8, 0.1, 0.9, 1, 1, None, None, None, False, 1, "auto_0.5", 2, -1.5)
    assert (model.ent_coef, model.target_update_interval, model.target_entropy) == ("auto_0.5", 2, -1.5)
    assert (model.learning_rate, model.buffer_size, model.batch_size, model.tau) == (1e-3, 500, 8, 0.1)


class Seen(BaseCallback):
    """The names that are logged."""

    def _on_training_start(self):
        self.names, record = set(), self.logger.record

        def seen(key, value, exclude=None):
            self.names.add(key)
            record(key, value, exclude)

        self.logger.record = seen

    def _on_step(self):
        return True


@pytest.mark.parametrize("ent_coef", ["auto", 0.1])
def test_what_is_logged(ent_coef, tmp_path):
    pytest.importorskip("tensorboard")
    model = small_model(ent_coef=ent_coef, tensorboard_log=str(tmp_path), policy_delay=2)
    model.learn(60, callback=(seen := Seen()))
    expected = {"ent_coef", "entropy", "actor_loss", "critic_loss", "n_updates", "actor_grad_norm"}
    expected |= {"ent_coef_loss"} if ent_coef == "auto" else set()
    assert {f"train/{name}" for name in expected} <= seen.names
    assert ("train/ent_coef_loss" in seen.names) == (ent_coef == "auto")
    assert [folder.name for folder in tmp_path.iterdir()] == ["BNSAC_1"]


def test_the_entropy_coefficient_has_sb3s_names():
    model, sb3 = (kind("MlpPolicy", VectorEnv(), ent_coef="auto_0.3", device="cpu") for kind in (BNSAC, SAC))
    assert th.equal(model.log_ent_coef.detach(), sb3.log_ent_coef.detach())
    assert isinstance(model.ent_coef_optimizer, th.optim.Adam)
    assert model.ent_coef_optimizer.param_groups[0]["params"][0] is model.log_ent_coef
    assert model.ent_coef_optimizer.param_groups[0]["lr"] == sb3.ent_coef_optimizer.param_groups[0]["lr"]
    assert model.target_entropy == sb3.target_entropy == -2.0
    model = BNSAC("MlpPolicy", VectorEnv(), ent_coef=0.3)
    assert model.log_ent_coef is None
    assert model.ent_coef_optimizer is None


def test_evaluation(tmp_path):
    model = small_model().learn(40)
    rewards = [evaluate_policy(model, make_vec_env(VectorEnv, seed=1), n_eval_episodes=2, warn=False) for _ in range(2)]
    assert rewards[0] == rewards[1]


def test_the_schedule_is_the_entropy_coefficients_too():
    model = small_model(learning_rate=lambda progress: 1e-2 * progress + 1e-4).learn(50)
    assert model.ent_coef_optimizer.param_groups[0]["lr"] == model.actor.optimizer.param_groups[0]["lr"]
    assert 1e-4 <= model.ent_coef_optimizer.param_groups[0]["lr"] < 1e-3


# Policies, environments, buffers

IMAGES = dict(screen_height=36, screen_width=36, n_channels=3, discrete=False)
SMALL_IMAGES = dict(net_arch=[16, 12], normalization="batch", features_extractor_kwargs=dict(conv_normalization="batch"))
SHARED = SMALL_IMAGES | dict(share_features_extractor=True)


def goals(**kwargs):
    return small_model(PointGoal(), "MultiInputPolicy", replay_buffer_class=HerReplayBuffer, learning_starts=30, **kwargs)


def frames():
    kwargs = dict(replay_buffer_class=FrameReplayBuffer, buffer_size=100, batch_size=8)
    return small_model(PixelObservation(CountingEnv(truncates_at=15), size=(36, 36)), "CnnPolicy", **kwargs)


KINDS = {
    "vectors": lambda **kwargs: small_model(**kwargs),
    "CrossQ": lambda **kwargs: small_model(**crossq(net_arch=[16, 12]) | kwargs),
    "images": lambda **kwargs: small_model(
        FakeImageEnv(**IMAGES), "CnnPolicy", policy_kwargs=SMALL_IMAGES, batch_size=8, buffer_size=100, **kwargs
    ),
    "dictionaries": lambda **kwargs: small_model(SimpleMultiObsEnv(discrete_actions=False), "MultiInputPolicy", **kwargs),
    "HER": goals,
    "environments": lambda **kwargs: small_model(make_vec_env(VectorEnv, n_envs=3), **kwargs),
    "VecNormalize": lambda **kwargs: small_model(VecNormalize(make_vec_env(VectorEnv)), **kwargs),
    "n_steps": lambda **kwargs: small_model(n_steps=3, **kwargs),
    "noise": lambda **kwargs: small_model(action_noise="ou", **kwargs),
    "unequal bounds": lambda **kwargs: small_model(VectorEnv(high=3.0), **kwargs),
} | {
    f"shared, {loss}'s": lambda loss=loss, **kwargs: small_model(
        FakeImageEnv(**IMAGES),
        "CnnPolicy",
        policy_kwargs=SHARED | dict(shared_extractor_loss=loss),
        batch_size=8,
        buffer_size=100,
        **kwargs,
    )
    for loss in ("actor", "critic")
}
"""Models of all kinds of observations, environments and replay buffers."""


def observations_of(model, n=20):
    space = model.observation_space
    space.seed(0)
    if isinstance(space, spaces.Dict):
        return {key: np.stack([space[key].sample() for _ in range(n)]) for key in space.spaces}
    return np.stack([space.sample() for _ in range(n)])


@pytest.mark.parametrize("kind", KINDS)
def test_learn_save_load_and_predict(kind, tmp_path):
    model = KINDS[kind]().learn(50)
    assert model._n_updates > 0
    observations, before = observations_of(model), copy.deepcopy(model.policy.state_dict())
    actions = model.predict(observations, deterministic=True)[0]
    model.save(tmp_path / "model")
    loaded = BNSAC.load(tmp_path / "model", env=model.env)
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)
    # Random unless it is deterministic, by PyTorch's generator, within the bounds
    drawn = []
    for each in (model, model, loaded):
        th.manual_seed(3)
        drawn.append(each.predict(observations)[0])
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0], other)
    another = model.predict(observations)[0]
    assert (np.abs(another - drawn[0]) > 0).any(axis=1).all()
    for each in (actions, another):
        assert all(model.action_space.contains(action) for action in each)
    assert th.equal(loaded.log_ent_coef, model.log_ent_coef)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name]), name
        assert th.equal(value, loaded.policy.state_dict()[name]), name
    loaded.learn(30)
    if kind == "n_steps":
        assert isinstance(model.replay_buffer, NStepReplayBuffer)


def test_frame_replay_buffer():
    model = frames().learn(40)
    assert isinstance(model.replay_buffer, FrameReplayBuffer)
    assert model._n_updates == 20


@pytest.mark.parametrize("loss", ["actor", "critic"])
@pytest.mark.parametrize("sync", ["copy", "polyak"])
def test_the_target_critics_own_features_extractor_follows(loss, sync):
    """There is no target actor, whose extractor it would be."""
    model = KINDS[f"shared, {loss}'s"](tau=0.25, target_statistics_sync=sync)
    assert model.actor_target is model.actor
    assert model.critic.features_extractor is model.actor.features_extractor
    extractor, target = model.critic.features_extractor, model.critic_target.features_extractor
    assert target is not extractor
    before, statistics = ([tensor.clone() for tensor in each] for each in (target.parameters(), target.buffers()))
    model.learn(21)
    assert model._n_updates == 1
    online = list(extractor.parameters())
    assert any(not th.equal(old, new) for old, new in zip(before, online, strict=True))
    for old, new, now in zip(before, online, target.parameters(), strict=True):
        assert th.allclose(now, 0.75 * old + 0.25 * new, atol=1e-6)
    for old, new, now in zip(statistics, extractor.buffers(), target.buffers(), strict=True):
        if new.is_floating_point():
            assert not th.equal(old, new)
            assert th.allclose(now, 0.75 * old + 0.25 * new if sync == "polyak" else new, atol=1e-6)
        else:
            assert now == new == 1


def test_targets_follow_once_an_interval():
    model, moved = small_model(target_update_interval=3, policy_delay=2).learn(0), []
    model.replay_buffer = FixedBuffer(random_batch(model))
    for _ in range(6):
        before = model.critic_target.q_net[-1].weight.clone()
        model.train(1, 16)
        moved.append(not th.equal(before, model.critic_target.q_net[-1].weight))
    assert moved == [False, False, True, False, False, True]


def test_the_target_entropy_is_reached():
    """The coefficient falls while the entropy is above its target, and rises while it is below."""
    for target_entropy, direction in ((-10.0, -1), (10.0, 1)):
        model = small_model(target_entropy=target_entropy, learning_rate=1e-2).learn(60)
        assert np.sign(model.log_ent_coef.item()) == direction


# Files


def state_of(model: BNSAC) -> dict:
    """All that a training leaves, by name."""
    state = dict(model.policy.state_dict()) | {"log_ent_coef": model.entropy_coefficient.log_ent_coef.detach()}
    learned = ["entropy_coefficient"] if model.log_ent_coef is not None else []
    for name in ("actor", "critic", *learned):
        for index, moments in getattr(model, name).optimizer.state_dict()["state"].items():
            state |= {f"{name}.{index}.{key}": th.as_tensor(value) for key, value in moments.items()}
    size = model.replay_buffer.size()
    state |= {key: th.as_tensor(getattr(model.replay_buffer, key)[:size].copy()) for key in ("actions", "rewards")}
    return state


def assert_equal(model: BNSAC, other: BNSAC) -> None:
    ours, theirs = state_of(model), state_of(other)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert th.equal(value, theirs[key]), key


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(policy_delay=3),
        dict(policy_delay=3, fast_update=False),
        pytest.param(dict(policy_delay=3, fast_update="compiled"), marks=COMPILED.marks),
        dict(ent_coef=0.1, target_update_interval=2),
        crossq(net_arch=[16, 12], renorm_warmup_steps=5),
    ],
    ids=["fast", "autograd", "compiled", "fixed", "CrossQ"],
)
def test_resumed_equals_uninterrupted(kwargs, tmp_path):
    whole = small_model(**kwargs).learn(70)
    half = small_model(**kwargs).learn(42, schedule_timesteps=70)
    assert half._n_updates % 3 == 1  # in the middle of the delay
    half.save_checkpoint(tmp_path / "half")
    resumed = BNSAC.resume(tmp_path / "half", VectorEnv(), device="cpu")
    assert_equal(half, resumed)
    resumed.learn(28, reset_num_timesteps=False)
    assert_equal(resumed, whole)


def test_resumed_after_an_interruption(tmp_path):
    whole = small_model(policy_delay=3).learn(70)
    with pytest.raises(KeyboardInterrupt):
        small_model(policy_delay=3).learn(70, [CheckpointEvery(10, tmp_path / "last"), StopAt(55, interrupts=True)])
    resumed = BNSAC.resume(tmp_path / "last", VectorEnv(), device="cpu")
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert_equal(resumed, whole)


@WAYS
def test_a_loaded_model_makes_the_same_step(way, tmp_path):
    model = small_model(policy_delay=2, fast_update=way, ent_coef="auto_0.3", target_entropy=-0.7).learn(41)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = BNSAC.load(tmp_path / "model", env=VectorEnv(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert (loaded.ent_coef, loaded.target_entropy) == ("auto_0.3", -0.7)
    assert_equal(loaded, model)
    for each in (model, loaded):
        for seed in range(3):
            th.manual_seed(seed)
            each._gradient_step(random_batch(each, seed=seed))
    assert_equal(loaded, model)


@pytest.mark.parametrize("fast_update", [True, False])
def test_load_with_another_entropy_coefficient(tmp_path, fast_update):
    model = small_model(learning_rate=1e-2, fast_update=fast_update).learn(60)
    learned = model.log_ent_coef.item()
    assert abs(learned) > 0.1
    model.save(tmp_path / "learned")
    # A learned one goes on where it was, with its moments
    loaded = BNSAC.load(tmp_path / "learned", env=VectorEnv(), ent_coef="auto_0.1")
    assert loaded.log_ent_coef.item() == learned
    assert loaded.ent_coef_optimizer.state_dict()["state"][0]["step"] == 40
    # A fixed one is the number
    fixed = BNSAC.load(tmp_path / "learned", env=VectorEnv(), ent_coef=0.25)
    assert fixed.log_ent_coef is None
    assert fixed.entropy_coefficient.coefficient.item() == 0.25
    fixed.learn(30)
    assert fixed.logger.name_to_value.get("train/ent_coef", 0.25) == 0.25
    assert fixed.entropy_coefficient.coefficient.item() == 0.25
    fixed.save(tmp_path / "fixed")
    # One that is learned again knows nothing of before
    for ent_coef, expected in (("auto", 0.0), ("auto_0.1", np.log(0.1))):
        again = BNSAC.load(tmp_path / "fixed", env=VectorEnv(), ent_coef=ent_coef)
        assert again.log_ent_coef.item() == pytest.approx(expected)
        assert not again.ent_coef_optimizer.state_dict()["state"]
        again.learn(30)
        assert again.log_ent_coef.item() != pytest.approx(expected)
        assert again.ent_coef_optimizer.state_dict()["state"][0]["step"] == 10


def test_an_entropy_coefficient_set_between_two_trainings_counts():
    model = small_model().learn(30)
    model.ent_coef, model.target_entropy = 0.2, -3
    model.learn(30)
    assert model.log_ent_coef is None
    assert model.entropy_coefficient.coefficient.item() == pytest.approx(0.2)
    model.ent_coef = "auto_0.2"
    model.learn(30)
    assert model.log_ent_coef.item() != pytest.approx(np.log(0.2), abs=1e-6)
    model.ent_coef = "often"
    with pytest.raises(ValueError, match="`ent_coef='often'` is not allowed"):
        model.learn(30)


def test_get_and_set_parameters(tmp_path):
    model, other = small_model().learn(40), small_model(seed=1)
    parameters = model.get_parameters()
    assert {"policy", "entropy_coefficient", "entropy_coefficient.optimizer"} <= parameters.keys()
    other.set_parameters(copy.deepcopy(parameters))
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[key]), key
    assert th.equal(other.log_ent_coef, model.log_ent_coef)
    assert other.ent_coef_optimizer.state_dict()["state"][0]["step"] == 20
    before = copy.deepcopy(other.get_parameters())
    with pytest.raises(ValueError, match="entropy_coefficient"):
        other.set_parameters({key: value for key, value in parameters.items() if key != "entropy_coefficient"})
    other.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    assert th.equal(other.log_ent_coef, before["entropy_coefficient"]["log_ent_coef"])
    model.save(tmp_path / "model")
    other.set_parameters(tmp_path / "model")
    assert th.equal(other.log_ent_coef, model.log_ent_coef)


def test_a_copy_goes_on_by_itself():
    model = small_model().learn(40)
    copied = copy.deepcopy(model)
    before = model.log_ent_coef.item()
    copied.learn(30)
    assert model.log_ent_coef.item() == before != copied.log_ent_coef.item()
    assert copied.ent_coef_optimizer.param_groups[0]["params"][0] is copied.log_ent_coef


def test_a_policy_by_itself(tmp_path):
    model = small_model().learn(40)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    observations = observations_of(model)
    for each in (model.policy, policy):
        assert type(each.actor) is GaussianActor
    np.testing.assert_array_equal(
        policy.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )


# Bad input and trouble


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        *(
            ("ent_coef", value, "'auto', 'auto_' and a first value > 0 (as 'auto_0.1'), or a number >= 0")
            for value in ("aut", "auto_0", "auto_-1", "auto_", "auto_auto", "auto_inf", "autopilot", -0.1, None, True, np.nan)
        ),
        *(("target_entropy", value, "'auto' or a finite number") for value in ("x", None, np.inf, False, [1])),
        ("target_update_interval", 0, "an integer >= 1"),
        ("target_update_interval", 1.5, "an integer >= 1"),
        ("use_sde", True, "state-dependent exploration"),
        ("policy_delay", 0, "an integer >= 1"),
    ],
)
def test_arguments(argument, value, allowed):
    with pytest.raises(ValueError, match="is not allowed") as error:
        small_model(**{argument: value})
    assert str(error.value).startswith(f"`{argument}={value!r}`")
    assert allowed in str(error.value)


def test_numbers_as_sb3_takes_them():
    model = small_model(ent_coef="0.5", target_entropy="-3")
    assert (model.entropy_coefficient.value, model.target_entropy) == (0.5, -3.0)
    assert small_model(ent_coef=np.float64(0.0)).learn(30).entropy_coefficient.coefficient.item() == 0


def test_other_policies():
    with pytest.raises(ValueError, match=r"`policy=BNDDPGPolicy` is not allowed: it must be one of 'MlpPolicy'.*BNSACPolicy"):
        BNSAC(BNDDPGPolicy, VectorEnv())
    with pytest.raises(ValueError, match=r"`policy=BNSACPolicy` is not allowed: .*BNDDPGPolicy"):
        BNDDPG(BNSAC.policy_aliases["MlpPolicy"], VectorEnv())
    with pytest.raises(ValueError, match="`n_critics=0` is not allowed: it must be an integer >= 1"):
        small_model(policy_kwargs=SMALL | dict(n_critics=0))
    with pytest.raises(ValueError, match=r"is not allowed.*Box"):
        BNSAC("MlpPolicy", gym.make("CartPole-v1"))


class Poison(BaseCallback):
    """Makes the entropy coefficient, or a weight, NaN."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def _on_step(self):
        if self.num_timesteps == 40:
            with th.no_grad():
                next(getattr(self.model, self.name).parameters()).fill_(th.nan)
        return True


@pytest.mark.parametrize("name", ["entropy_coefficient", "critic"])
@WAYS
def test_numbers_that_are_not_finite_end_the_training(name, way):
    with pytest.raises(ValueError, match=r"`\w+=nan` at step 40 \(update 20\) is not finite: training cannot go on"):
        small_model(fast_update=way).learn(60, Poison(name))


class Rewarded(VectorEnv):
    """A constant reward."""

    def __init__(self, reward=0.0):
        super().__init__()
        self.reward = reward

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, self.reward, *rest


def explosions(q_bias, **kwargs) -> list[str]:
    model = small_model(Rewarded(), critic_learning_rate=0.0, **kwargs)
    with th.no_grad():
        for critic in (model.critic, model.critic_target):
            for q_network in critic.q_networks:
                q_network.q_net[-1].bias.fill_(q_bias)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(60)
    return [str(warning.message) for warning in caught if "explode" in str(warning.message)]


@pytest.mark.parametrize("policy_delay", [1, 3])
def test_what_the_entropy_is_rewarded_with_is_no_explosion(policy_delay):
    """Without any reward of the environment, soft Q-values are still those of the entropy."""
    assert not explosions(50.0, ent_coef=1.0, policy_delay=policy_delay)
    assert len(explosions(50.0, ent_coef=0.01, policy_delay=policy_delay)) == 1
    (message,) = explosions(1e4, ent_coef=1.0, policy_delay=policy_delay)
    bonus, largest_return = re.search(
        r"rewards up to 0, up to (\S+) for the entropy and .* exceeds (\S+)\. Try", message
    ).groups()
    assert float(largest_return) == pytest.approx(100 * float(bonus), rel=0.01)


# It learns


@pytest.mark.parametrize("kwargs", [dict(), dict(normalization=None, action_layer=1)], ids=["batch norm", "no norm"])
def test_identity(kwargs):
    """It learns to repeat its observation as its action: SB3's own test."""
    env = IdentityEnvBox(eps=0.5)
    model = BNSAC(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        gamma=0.4,
        tau=0.05,
        buffer_size=2000,
        batch_size=64,
        policy_kwargs=dict(net_arch=[64, 64], **kwargs),
        seed=0,
    )
    assert learns(model, 2500, lambda: evaluate_policy(model, env, n_eval_episodes=20, warn=False)[0] > 90)


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [dict(), crossq(net_arch=[64, 64])], ids=["default", "CrossQ"])
def test_pendulum(kwargs):
    """A random policy has -1200 on average."""
    arguments = dict(learning_rate=1e-3, batch_size=128, buffer_size=10_000, policy_kwargs=dict(net_arch=[64, 64]), seed=0)
    model, test_env = BNSAC("MlpPolicy", "Pendulum-v1", **arguments | kwargs), make_vec_env("Pendulum-v1", seed=1)
    assert learns(model, 15_000, lambda: evaluate_policy(model, test_env, n_eval_episodes=10)[0] > -500, every=1000)
