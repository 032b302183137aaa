"""Batch norm, pass by pass: which statistics each forward pass normalises with, which it updates, and what targets get."""

import copy
import io
import pickle
import threading

import numpy as np
import pytest
import torch as th
from conftest import SMALL, joint_pass, random_batch, td_target
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_bn_ddpg.deterministic.step import actor_loss, gradient_step
from sb3_bn_ddpg.networks.actor_critic import move_targets
from sb3_bn_ddpg.networks.norm_layers import mode_of
from sb3_bn_ddpg.networks.normalization import NormalizationConfig
from sb3_bn_ddpg.networks.statistics import PassStatistics, StatisticsMixin

NORMALIZATIONS = ["batch", "batch_renorm"]
NAMES = ("actor", "critic", "actor_target", "critic_target")


def buffers(model) -> dict[str, dict[str, th.Tensor]]:
    return {name: {key: b.clone() for key, b in getattr(model, name).named_buffers()} for name in NAMES}


def moved(model, before) -> set[str]:
    """The networks of which any statistic changed; all of a network's layers must move, or none."""
    result = set()
    for name in NAMES:
        changes = [not th.equal(buffer, before[name][key]) for key, buffer in getattr(model, name).named_buffers()]
        assert all(changes) or not any(changes), name
        if any(changes):
            result.add(name)
    return result


def counts(model) -> dict[str, set[int]]:
    """How often each network's layers were updated: batch norm's counters, or batch renorm's."""
    counters = ("num_batches_tracked", "steps")
    return {name: {int(b) for key, b in getattr(model, name).named_buffers() if key.endswith(counters)} for name in NAMES}


@pytest.fixture
def trained(make_model):
    """A function: a model whose statistics have left their initial values, the targets' included."""

    def make(normalization="batch", **kwargs):
        policy_kwargs = dict(SMALL, normalization=normalization, renorm_warmup_steps=5)
        model = make_model(policy_kwargs=policy_kwargs, **kwargs)
        model.learn(40)
        return model

    return make


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_acting_moves_nothing(trained, normalization):
    model = trained(normalization)
    before = buffers(model)
    model.policy.set_training_mode(True)  # as an update leaves it
    model.predict(np.full((3, 4), 50.0, dtype=np.float32))
    model.gradient_steps = 0
    model.learn(30)  # collects, never trains
    assert moved(model, before) == set()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_td_target_moves_nothing(trained, normalization):
    model = trained(normalization)
    before = buffers(model)
    td_target(model._networks, random_batch(model), 0.99, PassStatistics())
    assert moved(model, before) == set()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        (dict(), {"actor"}),
        (dict(actor_loss_actor="running_update"), {"actor"}),
        (dict(actor_loss_critic="batch"), {"actor"}),
        (dict(actor_loss_critic="batch_update"), {"actor", "critic"}),
        (dict(actor_loss_critic="running_update"), {"actor", "critic"}),
    ],
)
def test_actor_loss_moves(trained, normalization, statistics, expected):
    model = trained(normalization)
    before = buffers(model)
    actor_loss(model._networks, random_batch(model), PassStatistics(**statistics)).backward()
    assert moved(model, before) == expected


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("running", set()),
        ("batch", set()),
        ("running_update", {"actor_target", "critic_target"}),
        ("batch_update", {"actor_target", "critic_target"}),
    ],
)
def test_target_statistics_move(trained, normalization, target, expected):
    model = trained(normalization)
    before = buffers(model)
    td_target(model._networks, random_batch(model), 0.99, PassStatistics(target=target))
    assert moved(model, before) == expected


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_critic_loss_moves_the_critic_once(trained, normalization, monkeypatch):
    """In a whole default step the critic's counter advances by one, the actor's by one, and the targets get both."""
    model = trained(normalization)
    assert counts(model) == {name: {20} for name in NAMES}
    gradient_step(model._networks, random_batch(model), 0.99, 0.001, model._pass_statistics)
    # With batch renorm these are the step counters, which switch a layer from its warm-up to renormalisation
    assert counts(model) == {name: {21} for name in NAMES}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_statistics_are_copied_to_the_targets_exactly(trained, normalization):
    model = trained(normalization)
    state = buffers(model)
    assert len(state["actor"]) == 9
    assert len(state["critic"]) == 6
    for name in ("actor", "critic"):
        for key, value in state[name].items():
            assert th.equal(value, state[f"{name}_target"][key]), key
            assert not th.equal(value, th.zeros_like(value)), key


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_joint_pass_moves_the_critic_once(trained, normalization):
    model = trained(normalization, use_target_networks=False, target_statistics="joint")
    before = buffers(model)
    joint_pass(model._networks, random_batch(model), 0.99, model._pass_statistics)
    assert moved(model, before) == {"critic", "critic_target"}  # which are one
    assert counts(model) == dict(actor={20}, actor_target={20}, critic={21}, critic_target={21})


def test_polyak_and_no_sync(trained):
    model = trained(target_statistics_sync="polyak", target_statistics="batch")
    for sync, share in (("polyak", 0.25), (None, 0.0)):
        with th.no_grad():
            for buffer in model.actor.buffers():
                buffer.copy_(th.full_like(buffer, 8))
            for buffer in model.actor_target.buffers():
                buffer.copy_(th.full_like(buffer, 4))
        move_targets(model._networks, 0.25, PassStatistics(target="batch", target_sync=sync))
        for key, buffer in model.actor_target.named_buffers():
            expected = 8 if sync and "num_batches" in key else 4 + share * 4
            assert th.equal(buffer, th.full_like(buffer, expected)), key


class OneLayer(StatisticsMixin):
    """A single normalisation layer, whose output can be calculated by hand."""

    def __init__(self, kind: str, momentum: float = 0.2, warmup_steps: int = 1000) -> None:
        super().__init__()
        (self.norm,) = NormalizationConfig(kind, momentum, 1e-5, warmup_steps).hidden_layers(3)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.norm(x)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("statistics", ["running", "batch", "running_update", "batch_update"])
def test_what_a_pass_normalises_with(kind, statistics):
    """The four words, calculated by hand on one layer."""
    network = OneLayer(kind)
    mean, var = (buffer for buffer in network.buffers() if buffer.ndim)
    mean += 1.5
    var *= 4
    x = th.randn(10, 3, generator=th.Generator().manual_seed(0)) * 3 - 1
    new_mean, new_var = 0.8 * mean + 0.2 * x.mean(0), 0.8 * var + 0.2 * x.var(0)
    with_mean, with_var = {
        "running": (mean.clone(), var.clone()),
        # PyTorch's batch norm normalises with the biased variance, sb3-contrib's batch renorm with the unbiased one
        "batch": (x.mean(0), x.var(0, unbiased=kind == "batch_renorm")),
        "running_update": (new_mean, new_var),
    }[statistics.replace("batch_update", "batch")]
    after = (new_mean, new_var) if statistics.endswith("update") else (mean.clone(), var.clone())

    output = network.forward_with(statistics, x)
    assert th.allclose(output, (x - with_mean) / (with_var + 1e-5).sqrt(), atol=1e-5)
    mean, var = (buffer for buffer in network.buffers() if buffer.ndim)
    assert th.allclose(mean, after[0])
    assert th.allclose(var, after[1])


def test_discarded_updates_leave_the_backward_pass_intact():
    """A pass on batch statistics, then one that updates, then both backward: autograd's saved buffers are untouched."""
    network = OneLayer("batch")
    x = th.randn(10, 3, requires_grad=True)
    first = network.forward_with("running", x)
    second = network.forward_with("batch", x)
    (first.sum() + second.square().sum()).backward()
    assert x.grad is not None


def test_statistics_of_custom_extractors_count():
    """Layers are found by their type, wherever they are, and a layer without running statistics is left alone."""
    network = OneLayer("batch")
    network.extractor = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2))
    assert network.norm_layers == (network.norm, network.extractor[0])


class Encoder(BaseFeaturesExtractor):
    """Of a user's, with batch norm of PyTorch's and of a class of the user's."""

    class Norm(nn.BatchNorm1d):
        pass

    def __init__(self, observation_space):
        super().__init__(observation_space, 6)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), self.Norm(6))

    def forward(self, observations):
        return self.layers(observations)


POLICIES = {
    "batch": dict(),
    "batch_renorm": dict(normalization="batch_renorm", renorm_warmup_steps=5),
    "a user's layers": dict(features_extractor_class=Encoder),
}


@pytest.mark.parametrize("policy_kwargs", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("fast_update", [True, False])
def test_modes_change_nothing_outside_of_a_pass(make_model, policy_kwargs, fast_update):
    """Whatever puts the networks into training mode: one observation is no error, and no statistic moves."""
    model = make_model(fast_update=fast_update, policy_kwargs=SMALL | policy_kwargs).learn(40)
    obs = th.randn(5, 4) * 3
    expected = [model.policy(obs[:1]), model.policy(obs), model.critic(obs, th.zeros(5, 2))[0]]
    before = buffers(model)
    nn.ModuleList([model.actor, model.critic, model.actor_target, model.critic_target]).train()
    for _ in range(3):
        assert th.equal(model.actor(obs[:1]), expected[0])
        assert th.equal(model.policy(obs), expected[1])
        assert th.equal(model.critic(obs, th.zeros(5, 2))[0], expected[2])
    assert moved(model, before) == set()


@pytest.mark.parametrize("policy_kwargs", POLICIES.values(), ids=POLICIES)
def test_a_pass_of_one_thread_is_none_of_another(make_model, policy_kwargs):
    """In the middle of an update's pass on batch statistics, another thread predicts with the running ones."""
    model = make_model(fast_update=False, policy_kwargs=SMALL | policy_kwargs).learn(40)
    obs = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    expected, seen = model.predict(obs)[0], []

    main = threading.current_thread()

    def predict_in_a_thread(*_):
        if threading.current_thread() is main:
            thread = threading.Thread(target=lambda: seen.append(model.predict(obs)[0]))
            thread.start()
            thread.join()

    model.actor.register_forward_pre_hook(predict_in_a_thread)
    before = buffers(model)
    batch = random_batch(model)
    actor_loss(model._networks, batch, PassStatistics(actor_loss_critic="batch"))
    assert moved(model, before) == {"actor"}
    assert counts(model)["actor"] == {21}
    np.testing.assert_array_equal(seen, [expected])


@pytest.mark.parametrize("policy_kwargs", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("fast_update", [True, False])
def test_predicting_while_learning(make_model, policy_kwargs, fast_update):
    """A second thread serves predictions all the time; the training comes out as without."""
    alone = make_model(fast_update=fast_update, policy_kwargs=SMALL | policy_kwargs).learn(150)
    served = make_model(fast_update=fast_update, policy_kwargs=SMALL | policy_kwargs)
    obs = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    errors, done = [], threading.Event()

    def serve():
        while not done.is_set():
            try:
                served.predict(obs, deterministic=True)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        served.learn(150)
    finally:
        done.set()
        thread.join()
    assert not errors
    for key, value in alone.policy.state_dict().items():
        assert th.equal(value, served.policy.state_dict()[key]), key


@pytest.mark.parametrize("policy_kwargs", POLICIES.values(), ids=POLICIES)
def test_layers_are_copied_pickled_and_traced(make_model, policy_kwargs):
    model = make_model(policy_kwargs=SMALL | policy_kwargs).learn(40)
    obs = th.randn(3, 4)
    expected = model.actor(obs)
    model.actor.train()
    file = io.BytesIO()
    th.save(model.actor, file)
    file.seek(0)
    traced = th.jit.trace(model.actor, obs)
    assert th.allclose(traced(obs), expected)
    for network in (copy.deepcopy(model.actor), pickle.loads(pickle.dumps(model.actor)), th.load(file, weights_only=False)):
        assert th.equal(network(obs), expected)
        network.forward_with("batch_update", obs)
        assert th.equal(model.actor(obs), expected)
        assert not th.equal(network(obs), expected)
    if policy_kwargs.get("normalization") != "batch_renorm":  # which TorchScript cannot read in sb3-contrib's file
        features = model.actor.features(obs)
        assert th.allclose(th.jit.script(model.actor.mu.train())(features), expected)
        assert th.equal(model.actor.mu(features), expected)


class Pretrained(BaseFeaturesExtractor):
    """Keeps its encoder in evaluation mode, as PyTorch's users freeze one."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 6)
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, observations):
        return self.encoder(observations)


@pytest.mark.parametrize("share", [False, True])
def test_statistics_that_an_extractor_freezes_stay(make_model, share):
    policy_kwargs = dict(SMALL, features_extractor_class=Pretrained, share_features_extractor=share)
    model = make_model(policy_kwargs=policy_kwargs)
    before = copy.deepcopy(model.actor.features_extractor.state_dict())
    model.learn(40)
    after = model.actor.features_extractor.state_dict()
    assert all(th.equal(after[name], value) for name, value in before.items())
    assert not model.actor.features_extractor.encoder.training


class Standardiser(BaseFeaturesExtractor):
    """Statistics of its own, in buffers of its own."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 4)
        self.register_buffer("seen_mean", th.zeros(4))

    def forward(self, observations):
        if self.training:
            self.seen_mean.lerp_(observations.mean(dim=0), 0.1)
        return observations - self.seen_mean


def test_other_buffers_reach_the_targets(make_model):
    model = make_model(policy_kwargs=dict(SMALL, features_extractor_class=Standardiser)).learn(40)
    for network, target in ((model.actor, model.actor_target), (model.critic, model.critic_target)):
        assert network.features_extractor.seen_mean.abs().sum() > 0
        assert th.equal(target.features_extractor.seen_mean, network.features_extractor.seen_mean)


@pytest.mark.parametrize("fast_update", [True, False])
def test_layers_exchanged_after_construction_count(make_model, fast_update):
    model = make_model(fast_update=fast_update, policy_kwargs=dict(SMALL, normalization=None)).learn(30)
    for actor in (model.actor, model.actor_target):
        actor.mu = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2), nn.Tanh())
    model.actor.optimizer = th.optim.Adam(model.actor.parameters(), lr=1e-3)
    observation = np.ones(4, np.float32)
    actions = [model.predict(observation)[0] for _ in range(5)]
    assert all(np.array_equal(action, actions[0]) for action in actions)
    model.learn(30, reset_num_timesteps=False)
    assert model.actor.mu[1].num_batches_tracked > 0
    assert th.equal(model.actor_target.mu[1].running_mean, model.actor.mu[1].running_mean)


@pytest.mark.parametrize("fast_update", [True, False])
def test_targets_follow_layers_exchanged_between_trainings(make_model, fast_update):
    kwargs = dict(tau=0.5, learning_rate=1e-2, weight_normalization="critic")
    model = make_model(fast_update=fast_update, policy_kwargs=dict(SMALL, activation_fn=nn.LeakyReLU), **kwargs).learn(30)
    for critic in (model.critic, model.critic_target):
        critic.state_net[1] = nn.Linear(4, 16, bias=False)
        critic.q_net[-1] = nn.Linear(12, 1)
    model.critic_target.load_state_dict(model.critic.state_dict())
    model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=1e-3)
    before = model.critic_target.q_net[-1].weight.clone()
    model.learn(60, reset_num_timesteps=False)
    moved, distance = (
        (model.critic_target.q_net[-1].weight - other).abs().max() for other in (before, model.critic.q_net[-1].weight)
    )
    assert moved > distance
    assert model.critic.state_net[1].weight.norm().item() == pytest.approx((16 / 3) ** 0.5, rel=1e-5)  # the new one's


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("n_updates", [1, 3])
def test_drift_by_its_definition(kind, n_updates):
    network = OneLayer(kind)
    earlier = network.running_statistics()
    assert network.statistics_drift(earlier) is None  # nothing was updated
    x = th.randn(50, 3, generator=th.Generator().manual_seed(0)) * 2 + 1
    for _ in range(n_updates):
        network.forward_with("batch_update", x)
    running = th.distributions.Normal(th.zeros(3), th.ones(3))
    batch = th.distributions.Normal(x.mean(0), x.std(0))
    expected = th.distributions.kl_divergence(batch, running).mean().item()
    assert network.statistics_drift(earlier) == pytest.approx(expected, rel=1e-3)


def test_no_drift_of_layers_that_stay():
    network = OneLayer("batch")
    network.norm_layers[0].momentum = 0.0
    earlier = network.running_statistics()
    network.forward_with("batch_update", th.randn(50, 3))
    assert network.statistics_drift(earlier) is None


def test_drift_vanishes_when_statistics_agree():
    network = OneLayer("batch", momentum=1.0)
    x = th.randn(50, 3)
    network.forward_with("batch_update", x)
    earlier = network.running_statistics()
    network.forward_with("batch_update", x)
    assert network.statistics_drift(earlier) == pytest.approx(0, abs=1e-5)


def test_training_mode_reaches_actor_and_critic_only(make_model):
    model = make_model()
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        for network in (model.actor, model.critic):
            assert all(mode_of(module) == mode for module in network.modules())
            assert not any(layer.training for layer in network.norm_layers)  # which each pass says
        assert not any(module.training for module in model.actor_target.modules())
        assert not any(module.training for module in model.critic_target.modules())


def test_targets_stay_in_evaluation_mode_while_learning(make_model):
    """Their dropout never drops, and a pass on batch statistics does not leave their norm layers in training mode."""
    model = make_model(policy_kwargs=dict(SMALL, activation_fn=lambda: nn.Dropout(0.5)))
    model.learn(60)
    for target in (model.actor_target, model.critic_target):
        assert not any(module.training for module in target.modules())


def test_batch_renorm_target_on_running_statistics_in_warmup(make_model):
    """Whatever the step counter says, an entry's target does not depend on the rest of the batch."""
    model = make_model(policy_kwargs=dict(SMALL, normalization="batch_renorm", renorm_warmup_steps=10**6))
    model.learn(60)
    batch = random_batch(model, size=8)
    single = type(batch)(*(None if entry is None else entry[:1] for entry in batch))
    statistics = PassStatistics(target="running")
    whole = td_target(model._networks, batch, 0.99, statistics)
    assert th.allclose(whole[:1], td_target(model._networks, single, 0.99, statistics), atol=1e-6)


def test_batch_renorm_of_equal_states(make_model):
    """After its warm-up too: as after loading a model without its replay buffer."""
    model = make_model(policy_kwargs=dict(SMALL, normalization="batch_renorm", renorm_warmup_steps=0), learning_starts=0)
    model.learn(5)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())
