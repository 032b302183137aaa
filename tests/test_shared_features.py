"""A features extractor that actor and critic share: whose loss trains it, whose pass moves its statistics, how it is saved."""

import copy

import numpy as np
import pytest
import torch as th
from conftest import td_target
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn
from torch.nn import functional as F

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.networks.norm_layers import BatchNorm1d, BatchNorm2d
from sb3_bn_ddpg.networks.statistics import Statistics

CONV_BATCH_NORM = dict(features_extractor_kwargs=dict(conv_normalization="batch"))
LOSSES = pytest.mark.parametrize("loss", ["actor", "critic"])


def make_model(loss: str, batch_norm: bool = True, **kwargs) -> BNDDPG:
    policy_kwargs = dict(net_arch=[16, 12], share_features_extractor=True, shared_extractor_loss=loss)
    policy_kwargs |= dict(normalization="batch", **CONV_BATCH_NORM) if batch_norm else {}
    return BNDDPG(
        "CnnPolicy",
        FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=False),
        **(
            dict(
                buffer_size=100,
                learning_starts=10,
                batch_size=8,
                tau=0.25,
                critic_weight_decay=0.0,
                policy_kwargs=policy_kwargs,
                seed=0,
                device="cpu",
            )
            | kwargs
        ),
    )


def image_batch(model: BNDDPG, size: int = 8) -> ReplayBufferSamples:
    generator = th.Generator().manual_seed(0)
    shape = (size, *model.observation_space.shape)
    first, second = (th.randint(0, 256, shape, generator=generator, dtype=th.uint8) for _ in range(2))
    actions = th.rand(size, *model.action_space.shape, generator=generator) * 2 - 1
    return ReplayBufferSamples(first, actions, second, th.zeros(size, 1), th.randn(size, 1, generator=generator))


def shared_norms(network) -> list[nn.BatchNorm2d]:
    return [module for module in network.features_extractor.modules() if isinstance(module, nn.BatchNorm2d)]


def n_updates(layers) -> set[int]:
    return {layer.num_batches_tracked.item() for layer in layers}


@LOSSES
def test_one_optimizer_has_the_shared_parameters(loss):
    model = make_model(loss)
    shared = set(model.actor.features_extractor.parameters())
    assert model.critic.features_extractor is model.actor.features_extractor
    for name in ("actor", "critic"):
        network = getattr(model, name)
        trained = [param for group in network.optimizer.param_groups for param in group["params"]]
        assert len(trained) == len(set(trained))
        assert set(trained) == set(network.parameters()) - (set() if name == loss else shared)


@LOSSES
@pytest.mark.parametrize("rates", [(0.0, 1e-3), (1e-3, 0.0)])
def test_only_its_loss_trains_it(loss, rates):
    model = make_model(loss, learning_rate=rates[0], critic_learning_rate=rates[1])
    before = [param.clone() for param in model.actor.features_extractor.parameters()]
    model._gradient_step(image_batch(model))
    is_trained = rates[("actor", "critic").index(loss)] > 0
    for old, new in zip(before, model.critic.features_extractor.parameters(), strict=True):
        assert th.equal(old, new) != is_trained


def test_step_trained_by_the_critic():
    """The critic learns as if it were alone; the actor ascends it after its step, on the features from before."""
    model = make_model("critic", batch_norm=False)
    actor, critic = copy.deepcopy((model.actor, model.critic))  # one copy of what they share
    batch = image_batch(model)
    target = td_target(model._networks, batch, model.gamma, model._pass_statistics)
    with th.no_grad():
        next_actions = model.actor_target(batch.next_observations)
        next_q = model.critic_target(batch.next_observations, next_actions)[0]
    assert th.allclose(target, batch.rewards + model.gamma * next_q)
    model._gradient_step(batch)

    optimizers = [th.optim.Adam(network.own_parameters, lr=lr) for network, lr in ((actor, 1e-4), (critic, 1e-3))]
    features = actor.extract_features(batch.observations, actor.features_extractor).detach()
    F.mse_loss(critic(batch.observations, batch.actions)[0], target).backward()
    optimizers[1].step()
    assert features.grad_fn is None
    loss = -critic.values_of(features, actor.mu(features))[0].mean()
    loss.backward(inputs=actor.own_parameters)
    optimizers[0].step()
    for network, expected in ((model.actor, actor), (model.critic, critic)):
        for (name, param), value in zip(network.named_parameters(), expected.parameters(), strict=True):
            assert th.allclose(param, value, atol=1e-6), name


def test_the_convolutions_run_once_for_each_observation():
    model = make_model("critic")
    counts = {"online": 0, "target": 0}
    for name, network in (("online", model.critic), ("target", model.critic_target)):
        hook = lambda *_, name=name: counts.update({name: counts[name] + 1})  # noqa: E731
        network.features_extractor.cnn[0].register_forward_hook(hook)
    model._gradient_step(image_batch(model))
    assert counts == {"online": 1, "target": 1}


@LOSSES
@pytest.mark.parametrize("sync", ["copy", "polyak"])
def test_statistics_move_once_a_step(loss, sync):
    """Both networks normalise the shared features as their passes say, but only the owner's pass updates their statistics."""
    model = make_model(loss, target_statistics_sync=sync)
    batch, norms = image_batch(model), shared_norms(model.actor)
    before = [buffer.clone() for buffer in model.actor_target.features_extractor.buffers()]
    other = dict(actor="critic", critic="actor")[loss]
    inputs = [batch.observations] + ([batch.actions] if other == "critic" else [])
    getattr(model, other).forward_with("batch_update", *inputs)
    assert n_updates(norms) == {0}
    model._gradient_step(batch)
    assert n_updates(norms) == {1}
    # The other's own layers were updated by both of its passes
    assert n_updates(getattr(model, other).own_norm_layers) == {2}
    assert n_updates(set(getattr(model, loss).own_norm_layers) - set(norms)) == {1}
    share = 1.0 if sync == "copy" else 0.25
    targets = model.actor_target.features_extractor.buffers()
    for old, online, target in zip(before, model.actor.features_extractor.buffers(), targets, strict=True):
        if old.is_floating_point():
            assert th.allclose(target, old + share * (online - old))


@LOSSES
@pytest.mark.parametrize("statistics", ["running", "batch", "running_update", "batch_update"])
def test_statistics_of_the_target_pass(loss, statistics: Statistics):
    model = make_model(loss, target_statistics=statistics)
    outputs = []
    norm = shared_norms(model.critic_target)[0]
    norm.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    td_target(model._networks, image_batch(model), 0.99, model._pass_statistics)
    is_updated = statistics.endswith("update")
    assert n_updates([*model.actor_target.norm_layers, *model.critic_target.norm_layers]) == {int(is_updated)}
    is_normalised_by_batch = outputs[-1].mean((0, 2, 3)).abs().max() < 1e-4  # beta is zero yet
    assert is_normalised_by_batch == statistics.startswith("batch")


def test_shared_features_are_normalised_as_in_the_critics_loss():
    """One pass serves both losses: what is said for the actor's loss concerns the layers behind the shared ones."""
    norms_of = dict(critic_loss_statistics="running_update", actor_loss_actor_statistics="batch_update")
    model = make_model("critic", **norms_of)
    modes = []
    for norm in (shared_norms(model.critic)[0], model.actor.own_norm_layers[0]):
        norm.register_forward_hook(lambda module, *_: modes.append((type(module), module.training)))
    model._gradient_step(image_batch(model))
    assert modes == [(BatchNorm2d, True), (BatchNorm2d, False), (BatchNorm1d, True)]


@LOSSES
def test_without_target_networks(loss):
    model = make_model(loss, use_target_networks=False)
    model.learn(20)
    assert model.critic_target.features_extractor is model.actor.features_extractor


@LOSSES
def test_joint_pass(loss):
    """The critic's pass is one over all observations; shared statistics move once a step, by their owner's pass."""
    model = make_model(loss, use_target_networks=False, target_statistics="joint")
    batch, norms = image_batch(model), shared_norms(model.actor)
    sizes = []
    model.critic.features_extractor.cnn[0].register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    model._gradient_step(batch)
    # The actor's loss: the actor's pass over next states, the critic's over both, and once each in its loss
    assert sizes == ([16] if loss == "critic" else [8, 16, 8, 8])
    assert n_updates(norms) == {1}
    assert n_updates(model.critic.own_norm_layers) == {1}
    assert n_updates(model.actor.own_norm_layers) == {1}
    model.learn(20)


@LOSSES
def test_save_load_and_go_on(loss, tmp_path):
    model = make_model(loss)
    model.learn(30)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", device="cpu")
    observations = np.stack([model.observation_space.sample() for _ in range(3)])
    np.testing.assert_array_equal(model.predict(observations)[0], loaded.predict(observations)[0])
    assert loaded.policy.shared_extractor_loss == loss
    assert loaded.critic.features_extractor is loaded.actor.features_extractor
    for each in (model, loaded):
        each._gradient_step(image_batch(each))
    for (name, value), other in zip(model.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True):
        assert th.equal(value, other), name


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="`shared_extractor_loss='both'` is not allowed: it must be one of 'actor', 'critic'"):
        make_model("both")
    with pytest.raises(ValueError, match="`shared_extractor_loss='critic'` is not allowed without `share_features_extractor"):
        make_model("critic", policy_kwargs=dict(shared_extractor_loss="critic"))
