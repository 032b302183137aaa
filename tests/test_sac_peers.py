"""BNSAC's step beside SB3's SAC and sb3-contrib's CrossQ, which are settings of it: the same numbers."""

import copy
import inspect
import itertools

import numpy as np
import pytest
import torch as th
from conftest import DoubleExtractor, VectorEnv, as_double, random_batch
from fast_updates import CLASSES, COMPILED
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm
from sb3_contrib.crossq.policies import CrossQPolicy
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from test_sac import WAYS, crossq, small_model

from sb3_bn_ddpg import BNSAC, CROSSQ
from sb3_bn_ddpg.fast import support
from sb3_bn_ddpg.networks.entropy import EntropyCoefficient
from sb3_bn_ddpg.sac import step as sac_step

# Against SB3's SAC and sb3-contrib's CrossQ, in float64, in which two libraries agree whatever the processor


class Noise:
    """
    Standard normal numbers of a step, handed to both libraries: of the next actions, and of those in the actor's loss.

    It stands in the place of their replay buffer, for they do not always draw both.
    """

    def __init__(self, ours: BNSAC, theirs: SAC | CrossQ, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]) -> None:
        self.order, self.pending, self.buffer, shape = order, [], theirs.replay_buffer, (2, 24, 3)
        generators = [th.Generator().manual_seed(7) for _ in range(2)]
        self.draw = lambda generator: th.randn(*shape, generator=generator, dtype=th.float64)
        self.generator = generators[1]
        ours._step_noise = lambda batch: self.draw(generators[0])
        monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *args, **kwargs: self.pending.pop(0))

    def sample(self, batch_size, env=None):
        both = self.draw(self.generator)
        self.pending = [both[index] for index in self.order]
        return self.buffer.sample(batch_size, env)


class Batches:
    """A replay buffer of different batches in order."""

    def __init__(self, batches) -> None:
        self.batches = itertools.cycle(batches)

    def sample(self, batch_size, env=None):
        return next(self.batches)


def pair(monkeypatch, way, theirs_class, ours_kwargs, theirs_kwargs, order, **common) -> tuple[BNSAC, SAC | CrossQ]:
    """Our model and SB3's (or sb3-contrib's), in float64, with the same weights, minibatches and noise."""
    monkeypatch.setattr(support, "FlattenExtractor", DoubleExtractor)
    env = VectorEnv(obs_dim=5, action_dim=3)
    common = dict(buffer_size=100, device="cpu", seed=1) | common
    extractor = dict(features_extractor_class=DoubleExtractor)
    ours_kwargs["policy_kwargs"] = ours_kwargs["policy_kwargs"] | extractor
    ours = BNSAC("MlpPolicy", env, fast_update=way, **ours_kwargs | common)
    theirs = theirs_class("MlpPolicy", env, policy_kwargs=theirs_kwargs | extractor, **common)
    for model in (ours, theirs):
        model.policy.double()
    generator = th.Generator().manual_seed(5)
    with th.no_grad():
        for param in theirs.policy.parameters():  # away from where gamma and beta start, and targets from the online networks
            param.add_(0.1 * th.randn(param.shape, generator=generator, dtype=th.float64))
    for name in networks_of(theirs):
        mine, others = getattr(ours, name), getattr(theirs, name).state_dict()
        mine.load_state_dict(dict(zip(mine.state_dict(), others.values(), strict=True)))
    ours.entropy_coefficient.double()
    if theirs.log_ent_coef is not None:
        theirs.log_ent_coef.data = theirs.log_ent_coef.data.double()
        with th.no_grad():
            ours.log_ent_coef.copy_(theirs.log_ent_coef)
    else:
        theirs.ent_coef_tensor = theirs.ent_coef_tensor.double().fill_(theirs.ent_coef)
    for model in (ours, theirs):
        model.learn(0)  # sets up the logger
        model.replay_buffer = Batches([as_double(random_batch(ours, size=24, seed=seed)) for seed in range(20)])
    theirs.replay_buffer = Noise(ours, theirs, monkeypatch, order)
    return ours, theirs


def sac_pair(monkeypatch, way=False, **common) -> tuple[BNSAC, SAC]:
    policy_kwargs = dict(normalization=None, action_layer=1, net_arch=[16, 12])
    common = dict(learning_rate=1e-3, tau=0.05, gamma=0.97) | common
    # SB3 draws the noise of the actor's loss first
    return pair(monkeypatch, way, SAC, dict(policy_kwargs=policy_kwargs), dict(net_arch=[16, 12]), (1, 0), **common)


def crossq_pair(monkeypatch, way=False, theirs_kwargs=None, **policy_kwargs) -> tuple[BNSAC, CrossQ]:
    return pair(monkeypatch, way, CrossQ, crossq(**policy_kwargs), theirs_kwargs or policy_kwargs, (0, 1))


def networks_of(theirs: SAC | CrossQ) -> tuple[str, ...]:
    return ("actor", "critic", "critic_target") if isinstance(theirs, SAC) else ("actor", "critic")


def assert_same(ours: BNSAC, theirs: SAC | CrossQ, **tolerance) -> None:
    """Parameters, statistics, counters, the entropy coefficient, and Adam's moments of all."""
    n_counters = 0
    for name in networks_of(theirs):
        mine, others = getattr(ours, name), getattr(theirs, name)
        pairs = zip(mine.state_dict().items(), others.state_dict().items(), strict=True)
        for (key, value), (other_key, expected) in pairs:
            assert key.rpartition(".")[2] == other_key.rpartition(".")[2]
            np.testing.assert_allclose(value.numpy(), expected.numpy(), err_msg=f"{name}.{key}", **tolerance)
            n_counters += key.endswith(".steps")
        if name != "critic_target":
            params = zip(mine.parameters(), others.parameters(), strict=True)
            assert_same_moments(mine.optimizer, others.optimizer, params, **tolerance)
    assert (n_counters > 0) == isinstance(theirs, CrossQ)
    assert (ours.log_ent_coef is None) == (theirs.log_ent_coef is None)
    if ours.log_ent_coef is not None:
        np.testing.assert_allclose(ours.log_ent_coef.detach().numpy(), theirs.log_ent_coef.detach().numpy(), **tolerance)
        params = [(ours.log_ent_coef, theirs.log_ent_coef)]
        assert_same_moments(ours.ent_coef_optimizer, theirs.ent_coef_optimizer, params, **tolerance)


def assert_same_moments(ours, theirs, params, **tolerance) -> None:
    assert {key: value for key, value in ours.defaults.items() if key != "lr"} == {
        key: value for key, value in theirs.defaults.items() if key != "lr"
    }
    for mine, other in params:
        state, expected = ours.state.get(mine, {}), theirs.state.get(other, {})
        assert state.get("step", 0) == expected.get("step", 0)
        if not expected:  # before the first update of the actor
            continue
        for key in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_allclose(state[key].numpy(), expected[key].numpy(), err_msg=key, **tolerance)
    rates = {group["lr"] for group in ours.param_groups} | {group["lr"] for group in theirs.param_groups}
    assert len(rates) == 1


ENT_COEFS = ["auto", "auto_0.1", 0.05]


@pytest.mark.numerics
@pytest.mark.parametrize("ent_coef", ENT_COEFS)
@WAYS
def test_one_and_ten_gradient_steps_equal_sb3s(monkeypatch, way, ent_coef):
    ours, theirs = sac_pair(monkeypatch, way, ent_coef=ent_coef)
    before = copy.deepcopy(ours.policy.state_dict())
    for n_steps, tolerance in ((1, dict(rtol=1e-8, atol=1e-12)), (9, dict(rtol=1e-7, atol=1e-10))):
        for model in (ours, theirs):
            model.train(gradient_steps=n_steps, batch_size=24)
        assert_same(ours, theirs, **tolerance)
        for name in ("ent_coef", "ent_coef_loss", "actor_loss", "critic_loss"):
            mine, other = (model.logger.name_to_value.get(f"train/{name}") for model in (ours, theirs))
            assert mine == (other if other is None else pytest.approx(other, rel=1e-6, abs=1e-8))
    for key, value in ours.policy.state_dict().items():
        assert (value - before[key]).abs().max().item() > 1e-5, key
    assert type(ours._fast_update).__name__ == CLASSES.get(way if way else None, "NoneType")


def flaw_in_acting(change):
    right = sac_step.acting

    def plant(monkeypatch):
        monkeypatch.setattr(sac_step, "acting", lambda noise, ent_coef: change(right, noise, ent_coef))

    return plant


def without_entropy_in_the_target(right, noise, ent_coef):
    return right(noise, 0 * ent_coef)


def with_the_coefficient_of_after_the_step(monkeypatch):
    right = EntropyCoefficient.loss

    def loss(self, log_prob, target_entropy):
        value = right(self, log_prob, target_entropy)
        # Adam's first step of the logarithm, taken at once
        with th.no_grad():
            rate = self.optimizer.param_groups[0]["lr"]
            self.shifted = -rate * th.sign(-(log_prob + target_entropy).mean())
        return value

    monkeypatch.setattr(EntropyCoefficient, "loss", loss)
    right_loss = sac_step.actor_loss

    def actor_loss(nets, batch, statistics, noise, ent_coef, features=None):
        _, log_prob = right_loss(nets, batch, statistics, noise, ent_coef, features)
        nets.entropy.loss(log_prob.detach(), -3.0)
        return right_loss(nets, batch, statistics, noise, ent_coef * nets.entropy.shifted.exp(), features)

    monkeypatch.setattr(sac_step, "actor_loss", actor_loss)


def with_the_mean_in_the_actors_loss(monkeypatch):
    monkeypatch.setattr(sac_step, "smallest", lambda q_values: th.cat(q_values, dim=1).mean(dim=1, keepdim=True))


def with_the_mean_in_the_target(monkeypatch):
    mean = lambda q_values: th.cat(q_values, dim=1).mean(dim=1, keepdim=True)  # noqa: E731
    monkeypatch.setattr("sb3_bn_ddpg.critic_step.step.smallest", mean)


def with_the_whole_loss(monkeypatch):
    monkeypatch.setattr(sac_step, "CRITIC_LOSS_FACTOR", 1.0)


def with_the_target_entropys_sign(monkeypatch):
    right = EntropyCoefficient.loss
    monkeypatch.setattr(EntropyCoefficient, "loss", lambda self, log_prob, target: right(self, log_prob, -target))


def with_the_noise_exchanged(monkeypatch):
    right = BNSAC._defined_step
    monkeypatch.setattr(BNSAC, "_defined_step", lambda self, batch, update, noise: right(self, batch, update, noise.flip(0)))


def with_targets_that_stay(monkeypatch):
    monkeypatch.setattr(BNSAC, "_updates_targets", lambda self, update_actor: False)


@pytest.mark.numerics
@pytest.mark.parametrize("mean", [3.0, 6.0, 7.5, 20.0])
@pytest.mark.parametrize("way", [True, COMPILED])
def test_saturated_actions_in_float32(way, mean):
    """Where tanh is nearly one, its derivative is as small as what is added to it before the logarithm."""
    reports, gradients = [], []
    for fast_update in (False, way):
        model = small_model(fast_update=fast_update, ent_coef=1.0, actor_loss_critic_statistics="batch")
        with th.no_grad():
            model.actor.mu.bias.copy_(th.tensor([mean, -mean]))
            model.actor.log_std.bias.fill_(-4.0)
        th.manual_seed(0)
        reports.append(model._gradient_step(random_batch(model, size=512)))
        gradients.append(model.actor.mu.bias.grad.clone())
    assert type(model._fast_update).__name__ == CLASSES[way]
    # In float32, one unit in the last place of the action is a tenth of what is added
    # compiled code reports numbers, PyTorch tensors
    entropies = [float(report.entropy) for report in reports]
    assert entropies[1] == pytest.approx(entropies[0], abs=1e-4 if mean in (3.0, 20.0) else 1e-2)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=2e-2, atol=1e-4)


FLAWS = {
    "no entropy in the target": flaw_in_acting(without_entropy_in_the_target),
    "coefficient of after the step": with_the_coefficient_of_after_the_step,
    "mean in the actor's loss": with_the_mean_in_the_actors_loss,
    "mean in the target": with_the_mean_in_the_target,
    "no factor of a half": with_the_whole_loss,
    "sign of the target entropy": with_the_target_entropys_sign,
    "noise": with_the_noise_exchanged,
    "targets": with_targets_that_stay,
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_comparison_with_sb3_sees_flaws(monkeypatch, flaw):
    FLAWS[flaw](monkeypatch)
    ours, theirs = sac_pair(monkeypatch)
    for model in (ours, theirs):
        model.train(gradient_steps=1, batch_size=24)
    with pytest.raises(AssertionError):
        assert_same(ours, theirs, rtol=1e-8, atol=1e-12)


CROSSQ_SIZES = dict(net_arch=dict(pi=[12, 10], qf=[20, 14]))


@pytest.mark.numerics
@pytest.mark.parametrize("policy_kwargs", [CROSSQ_SIZES, CROSSQ_SIZES | dict(renorm_warmup_steps=10)], ids=["", "renorm"])
@WAYS
def test_one_and_a_hundred_gradient_steps_equal_crossqs(monkeypatch, way, policy_kwargs):
    ours, theirs = crossq_pair(monkeypatch, way, **policy_kwargs)
    for n_steps, tolerance in ((1, dict(rtol=1e-8, atol=1e-12)), (99, dict(rtol=1e-5, atol=1e-8))):
        for model in (ours, theirs):
            model.train(gradient_steps=n_steps, batch_size=24)
        assert_same(ours, theirs, **tolerance)
    assert {layer.steps.item() for layer in ours.critic.norm_layers} == {100}
    assert {layer.steps.item() for layer in ours.actor.norm_layers} == {33}
    assert ours._n_updates == theirs._n_updates == 100
    assert type(ours._fast_update).__name__ == CLASSES.get(way if way else None, "NoneType")


class Actions(BaseCallback):
    """The actions of a training."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.taken.append(self.locals["actions"][0].copy())
        return True


def replaying(buffer: ReplayBuffer, before=lambda: None):
    """A function that samples the same minibatches from equal buffers, in float64, which two libraries agree in."""
    generator = np.random.default_rng(3)

    def sample(batch_size, *args, **kwargs):
        before()
        np.random.seed(generator.integers(2**31))
        return as_double(ReplayBuffer.sample(buffer, batch_size))

    return sample


@pytest.mark.parametrize("way", [False, True])
def test_learn_equals_crossqs(monkeypatch, way):
    """From the first random action on: exploration, replay buffer and gradient steps with the same random numbers."""
    ours, theirs = crossq_pair(monkeypatch, way, **CROSSQ_SIZES)
    of_steps, of_updates = ([th.Generator().manual_seed(seed) for _ in range(2)] for seed in (7, 8))

    def drawn(generator, *shape):
        return th.randn(*shape, generator=generator, dtype=th.float64)

    noise: list[th.Tensor] = []
    monkeypatch.setattr(  # in both, an action is drawn for one state, and those of an update for 24
        "torch.distributions.normal._standard_normal",
        lambda shape, **kwargs: drawn(of_steps[1], 1, 3) if tuple(shape) == (1, 3) else noise.pop(0),
    )
    monkeypatch.setattr(th, "randn_like", lambda mean: drawn(of_steps[0], 1, 3))
    ours._step_noise = lambda batch: drawn(of_updates[0], 2, 24, 3)
    for model in (ours, theirs):
        model.learning_starts, model.batch_size = 20, 24
        model.replay_buffer = ReplayBuffer(100, model.observation_space, model.action_space, device="cpu")
    monkeypatch.setattr(ours, "_sample", replaying(ours.replay_buffer))

    def draw_theirs():
        noise[:] = drawn(of_updates[1], 2, 24, 3)

    theirs.replay_buffer.sample = replaying(theirs.replay_buffer, draw_theirs)
    actions = []
    for model in (ours, theirs):
        model.set_random_seed(1)
        model.learn(60, callback=(callback := Actions()))
        actions.append(callback.taken)
    assert ours._n_updates == theirs._n_updates == 40
    np.testing.assert_allclose(*actions, rtol=1e-6, atol=1e-7)
    assert_same(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@pytest.mark.numerics
def test_crossq_of_its_true_sizes(monkeypatch):
    ours, theirs = crossq_pair(monkeypatch)
    for model in (ours, theirs):
        model.train(gradient_steps=6, batch_size=24)
    assert_same(ours, theirs, rtol=1e-6, atol=1e-9)
    assert ours.actor.latent_pi[1].out_features == 256
    assert ours.critic.q_net[1].out_features == 1024


@pytest.mark.parametrize("change", [dict(norm_momentum=0.02), dict(norm_eps=1e-5), dict(norm_order="before_activation")])
def test_the_comparison_with_crossq_sees_other_settings(monkeypatch, change):
    ours, theirs = crossq_pair(monkeypatch, theirs_kwargs=CROSSQ_SIZES, **CROSSQ_SIZES | change)
    for model in (ours, theirs):
        model.train(gradient_steps=3, batch_size=24)
    with pytest.raises(AssertionError):
        assert_same(ours, theirs, rtol=1e-6, atol=1e-9)


def test_crossqs_settings_are_those_of_its_signature():
    """What sb3-contrib changes would be seen here."""
    theirs = {name: parameter.default for name, parameter in inspect.signature(CrossQ).parameters.items()}
    ours = {name: parameter.default for name, parameter in inspect.signature(BNSAC).parameters.items()} | CROSSQ
    assert theirs.keys() <= ours.keys()
    for name in theirs.keys() - {"policy", "env", "policy_kwargs"}:
        assert ours[name] == theirs[name], name
    assert CROSSQ.keys() - theirs.keys() == {"use_target_networks", "target_statistics"}
    assert theirs["learning_rate"] == 1e-3
    assert theirs["policy_delay"] == 3

    of_theirs = {name: parameter.default for name, parameter in inspect.signature(CrossQPolicy).parameters.items()}
    of_ours = CROSSQ["policy_kwargs"]
    assert of_ours["norm_momentum"] == of_theirs["batch_norm_momentum"]
    assert of_ours["norm_eps"] == of_theirs["batch_norm_eps"]
    model, crossq = (
        algorithm("MlpPolicy", VectorEnv(), device="cpu", buffer_size=10, **kwargs)
        for algorithm, kwargs in ((BNSAC, CROSSQ), (CrossQ, {}))
    )
    assert {**of_ours["net_arch"]} == crossq.policy.net_arch
    for mine, other in ((model.actor, crossq.actor), (model.critic, crossq.critic)):
        assert sum(param.numel() for param in mine.parameters()) == sum(param.numel() for param in other.parameters())
        assert mine.optimizer.defaults["betas"] == other.optimizer.defaults["betas"] == (0.5, 0.999)
        ours_norms, their_norms = ([m for m in net.modules() if isinstance(m, BatchRenorm)] for net in (mine, other))
        assert [m.warmup_steps for m in ours_norms] == [m.warmup_steps for m in their_norms]
    assert len(model.critic.q_networks) == crossq.critic.n_critics == 2


def test_the_settings_of_crossq_stay_as_they_are():
    before = copy.deepcopy(CROSSQ)
    small_model(**crossq(net_arch=[8])).learn(30)
    BNSAC("MlpPolicy", VectorEnv(), **CROSSQ | dict(batch_size=8, buffer_size=100, learning_starts=5)).learn(10)
    assert before == CROSSQ
