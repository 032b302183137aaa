"""Networks that DDPG has no use for: several critics, CrossQ's layers, the Gaussian actor, the value function."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.torch_layers import BatchRenorm
from sb3_contrib.crossq.policies import CrossQPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_bn_ddpg.networks.actors import Actor, BaseActor, GaussianActor
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy
from sb3_bn_ddpg.networks.critics import Critic, QNetwork, ValueNetwork
from sb3_bn_ddpg.networks.norm_layers import BatchNorm1d, BatchRenorm1d
from sb3_bn_ddpg.networks.normalization import NormalizationConfig, scale_free_weights
from sb3_bn_ddpg.networks.policies import BNTD3CnnPolicy, BNTD3MultiInputPolicy, BNTD3Policy, CnnPolicy, MultiInputPolicy

OBSERVATIONS, ACTIONS = spaces.Box(-np.inf, np.inf, (5,)), spaces.Box(-1, 1, (2,))
IMAGES = spaces.Box(0, 255, (3, 36, 36), np.uint8)

CROSSQ = dict(
    net_arch=dict(pi=[12, 10], qf=[14, 11]),
    normalization="batch_renorm",
    norm_momentum=0.01,
    norm_eps=1e-3,
    norm_order="after_activation",
    action_layer=1,
    critic_norm_layers="all",
    critic_input_norm="state_action",
    final_init="fan_in",
    n_critics=2,
)
"""CrossQ's networks, but for their sizes."""


class GaussianPolicy(BNActorCriticPolicy):
    actor_class = GaussianActor


def make(policy_class=BNTD3Policy, observation_space=OBSERVATIONS, **kwargs) -> BNActorCriticPolicy:
    return policy_class(observation_space, ACTIONS, lambda progress_remaining: 1e-3, **kwargs)


def random_inputs(n: int = 16, seed: int = 0, dtype=th.float32) -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(seed)
    obs, actions = (th.randn(n, *space.shape, generator=generator, dtype=dtype) for space in (OBSERVATIONS, ACTIONS))
    return obs * 2 + 1, actions.clamp(-1, 1)


def types(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network]


# Several critics


@pytest.mark.parametrize("n_critics", [1, 2, 5])
def test_values_of_several_critics(n_critics):
    critic = make(n_critics=n_critics, net_arch=[8, 6]).critic
    obs, actions = random_inputs()
    values = critic(obs, actions)
    assert isinstance(values, tuple)
    assert [value.shape for value in values] == [(16, 1)] * n_critics
    assert all(type(q_network) is QNetwork for q_network in critic.q_networks)
    assert [name for name, _ in critic.named_children()] == [
        "features_extractor",
        *[f"qf{index}" for index in range(n_critics)],
    ]
    for value, of_features in zip(values, critic.values_of(critic.features(obs), actions), strict=True):
        assert th.equal(value, of_features)
    assert th.equal(critic.q1_forward(obs, actions), values[0])
    # The first one's, by the names that the single critic has them under
    assert critic.state_net is critic.qf0.state_net
    assert critic.q_net is critic.qf0.q_net


def test_q1_is_calculated_alone():
    critic = make().critic
    critic.qf1.register_forward_hook(lambda *args: pytest.fail("the second critic was asked"))
    critic.q1_forward(*random_inputs())


def test_critics_start_different_and_targets_as_copies():
    policy = make(net_arch=[8, 6])
    first, second = policy.critic.q_networks
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        assert ours.ndim < 2 or not th.equal(ours, theirs), name
    for name, value in policy.critic.state_dict().items():
        target = policy.critic_target.state_dict()[name]
        assert th.equal(value, target)
        assert value.data_ptr() != target.data_ptr()


def test_the_first_critic_of_two_is_the_single_one():
    """With the same seed: the second one's weights are drawn after the first one's."""
    policies = []
    for n_critics in (1, 2):
        th.manual_seed(0)
        policies.append(make(n_critics=n_critics, net_arch=[8, 6]))
    for name, value in policies[0].critic.state_dict().items():
        assert th.equal(value, policies[1].critic.state_dict()[name]), name


def test_one_optimizer_over_all_critics():
    critic = make(net_arch=[8, 6]).critic
    weights, spared = (group["params"] for group in critic.optimizer.param_groups)
    assert {id(param) for param in [*weights, *spared]} == {id(param) for param in critic.parameters()}
    assert len(weights) == 2 * 3
    assert all(param.ndim == 2 for param in weights)
    assert critic.optimizer.param_groups[1]["weight_decay"] == 0


@pytest.mark.parametrize("kwargs", [dict(net_arch=[8, 6]), CROSSQ])
def test_statistics_of_all_critics_are_updated(kwargs):
    critic = make(**kwargs).critic
    inputs = random_inputs()
    layers = critic.own_norm_layers
    assert len(layers) == sum(isinstance(module, (BatchNorm1d, BatchRenorm)) for module in critic.modules())
    assert len(layers) == 2 * len([layer for layer in layers if layer in set(critic.qf0.modules())]) > 0
    before = critic.running_statistics()
    critic.forward_with("batch", *inputs)
    assert all(th.equal(new[0], old[0]) for new, old in zip(critic.running_statistics(), before, strict=True))
    critic.forward_with("batch_update", *inputs)
    for new, old in zip(critic.running_statistics(), before, strict=True):
        assert new[2] == old[2] + 1
        assert not th.equal(new[0], old[0])


def test_statistics_of_all_critics_reach_the_targets():
    policy = make(net_arch=[8, 6])
    policy.critic.forward_with("batch_update", *random_inputs())
    policy.critic_target.follow_statistics(policy.critic, "copy", 0.1)
    for ours, theirs in zip(policy.critic.buffers(), policy.critic_target.buffers(), strict=True):
        assert th.equal(ours, theirs)


def test_critics_share_one_features_extractor():
    policy = make(BNTD3CnnPolicy, IMAGES, share_features_extractor=True, shared_extractor_loss="critic", net_arch=[8, 6])
    assert policy.critic.features_extractor is policy.actor.features_extractor
    assert sum(isinstance(module, nn.Conv2d) for module in policy.critic.modules()) == 3
    calls = []
    policy.critic.features_extractor.register_forward_hook(lambda *args: calls.append(1))
    assert len(policy.critic(th.zeros(4, 3, 36, 36), th.zeros(4, 2))) == 2
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("policy_class", "kwargs"),
    [(BNTD3Policy, dict(net_arch=[8, 6])), (BNTD3Policy, CROSSQ | dict(n_critics=3)), (GaussianPolicy, CROSSQ)],
)
def test_save_and_load_of_the_policy(tmp_path, policy_class, kwargs):
    policy = make(policy_class, **kwargs)
    obs, actions = random_inputs()
    policy.critic.forward_with("batch_update", obs, actions)
    policy.save(tmp_path / "policy.pt")
    loaded = policy_class.load(tmp_path / "policy.pt")
    assert repr(loaded) == repr(policy)
    assert loaded._get_constructor_parameters().keys() == policy._get_constructor_parameters().keys()
    for name, value in policy.state_dict().items():
        assert th.equal(value, loaded.state_dict()[name]), name
    for ours, theirs in zip(policy.critic(obs, actions), loaded.critic(obs, actions), strict=True):
        assert th.equal(ours, theirs)
    assert th.equal(policy.actor(obs), loaded.actor(obs))


@pytest.mark.parametrize("name", ["state_net", "q_net"])
def test_layers_are_assigned_to_a_q_network(name):
    critic = make(net_arch=[8, 6]).critic
    with pytest.raises(AttributeError, match=f"`critic.{name}` cannot be assigned: assign to `critic.qf0.{name}`"):
        setattr(critic, name, nn.Sequential())
    setattr(critic.qf0, name, layers := nn.Sequential())
    assert getattr(critic, name) is layers


def test_policies_of_td3():
    assert len(make(BNTD3Policy).critic.q_networks) == 2
    assert len(make(BNTD3Policy, n_critics=1).critic.q_networks) == 1
    dictionary = spaces.Dict(image=IMAGES, vector=OBSERVATIONS)
    for ours, of_ddpg, space in (
        (BNTD3CnnPolicy, CnnPolicy, IMAGES),
        (BNTD3MultiInputPolicy, MultiInputPolicy, dictionary),
    ):
        first, second = make(ours, space), make(of_ddpg, space)
        assert repr(first.actor) == repr(second.actor)
        assert len(first.critic.q_networks) == 2
        for q_network in first.critic.q_networks:
            assert repr(q_network) == repr(second.critic.qf0)
            assert q_network.q_net[-1].weight.abs().max() <= 3e-4


# Order and input


@pytest.mark.parametrize(
    ("normalization", "norm"),
    [("batch", "BatchNorm1d"), ("batch_renorm", "BatchRenorm1d"), ("layer", "LayerNorm"), ("batch_layer", "LayerNorm")],
)
def test_normalisation_after_the_activation(normalization, norm):
    policy = make(
        normalization=normalization, norm_order="after_activation", net_arch=[8, 6], action_layer=2, critic_norm_layers="all"
    )
    on_state = {"batch_layer": ["BatchNorm1d"], "layer": []}.get(normalization, [norm])
    hidden = ["Linear", "ReLU", norm]
    assert types(policy.actor.mu) == [*on_state, *hidden * 2, "Linear", "Tanh"]
    assert types(policy.critic.state_net) == [*on_state, *hidden]
    assert types(policy.critic.q_net) == [*hidden, "Linear"]
    # The normalisation does not take a bias away that the activation comes after
    assert all(module.bias is not None for module in policy.modules() if isinstance(module, nn.Linear))
    assert scale_free_weights(policy.actor) == ()


def test_without_normalisation_the_order_changes_nothing():
    kwargs = dict(normalization=None, net_arch=[8, 6])
    assert repr(make(**kwargs, norm_order="after_activation")) == repr(make(**kwargs))


def test_convolutions_are_normalised_before_their_activation():
    kwargs = dict(features_extractor_kwargs=dict(conv_normalization="batch"), normalization="batch", net_arch=[8])
    policy = make(BNTD3CnnPolicy, IMAGES, norm_order="after_activation", **kwargs)
    assert types(policy.actor.features_extractor.cnn)[:3] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert types(policy.actor.mu) == ["Linear", "ReLU", "BatchNorm1d", "Linear", "Tanh"]


@pytest.mark.parametrize(
    ("normalization", "on_input"),
    [
        ("batch", ["BatchNorm1d"]),
        ("batch_renorm", ["BatchRenorm1d"]),
        ("batch_layer", ["BatchNorm1d"]),
        ("layer", []),
        (None, []),
    ],
)
def test_state_and_action_are_normalised_together(normalization, on_input):
    critic = make(normalization=normalization, critic_input_norm="state_action", action_layer=1, net_arch=[8, 6]).critic
    assert len(critic.state_net) == 0
    assert types(critic.q_net) == [*on_input, "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    if on_input:
        assert critic.q_net[0].num_features == 5 + 2
        obs, actions = random_inputs(64)
        seen = []
        critic.q_net[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        critic.forward_with("batch", obs, actions * 0.1)
        assert th.allclose(seen[0].mean(0), th.zeros(7), atol=1e-5)
        assert th.allclose(seen[0].std(0), th.ones(7), atol=0.05)


def test_state_and_action_behind_an_extractor_that_normalises_its_inputs():
    space = spaces.Dict(vector=OBSERVATIONS)
    policy = make(BNTD3MultiInputPolicy, space, critic_input_norm="state_action", action_layer=1, net_arch=[8])
    assert types(policy.actor.mu)[0] == "Linear"  # its extractor has normalised the state
    assert policy.critic.q_net[0].num_features == 5 + 2


def test_final_layers_drawn_as_hidden_ones():
    policy = make(GaussianPolicy, net_arch=[400, 300], final_init="fan_in", n_critics=2)
    for linear in (policy.actor.mu, policy.actor.log_std, policy.critic.qf0.q_net[-1], policy.critic.qf1.q_net[-1]):
        largest, bound = linear.weight.abs().max().item(), 300**-0.5
        assert 0.9 * bound < largest <= bound
        assert linear.bias.abs().max() <= bound


# CrossQ


def leaves(network: nn.Module) -> list[nn.Module]:
    """All layers in order. (A `state_net` without layers has no children either.)"""
    return [module for module in network.modules() if not list(module.children()) and not isinstance(module, nn.Sequential)]


@pytest.mark.parametrize("default_sizes", [False, True])
def test_the_networks_of_crossq_are_a_setting(default_sizes):
    arch = dict(pi=[256, 256], qf=[1024, 1024]) if default_sizes else CROSSQ["net_arch"]
    ours = make(GaussianPolicy, **CROSSQ | dict(net_arch=arch))
    theirs = CrossQPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=None if default_sizes else arch)
    for mine, other in ((ours.actor, theirs.actor), (ours.critic, theirs.critic)):
        pairs = list(zip(leaves(mine), leaves(other), strict=True))
        assert len(pairs) > 8
        for ours_layer, their_layer in pairs:
            assert isinstance(ours_layer, type(their_layer))  # ours may be a subclass, which only asks its pass
            assert {n: p.shape for n, p in ours_layer.state_dict().items()} == {
                n: p.shape for n, p in their_layer.state_dict().items()
            }
            for setting in ("in_features", "out_features", "num_features", "eps", "momentum", "warmup_steps", "rmax", "dmax"):
                assert getattr(ours_layer, setting, None) == getattr(their_layer, setting, None), setting
            if isinstance(their_layer, nn.Linear):
                assert (ours_layer.bias is None) == (their_layer.bias is None)
            ours_layer.load_state_dict(their_layer.state_dict())
            if isinstance(their_layer, BatchRenorm):
                assert isinstance(ours_layer, BatchRenorm1d)
                for layer in (ours_layer, their_layer):  # other statistics than the first ones
                    layer.ra_mean.copy_(th.linspace(-1, 1, layer.num_features))
                    layer.ra_var.copy_(th.linspace(0.5, 2, layer.num_features))
    obs, actions = random_inputs()
    with th.no_grad():
        theirs.set_training_mode(False)
        for mine, other in zip(ours.critic(obs, actions), theirs.critic(obs, actions), strict=True):
            assert th.allclose(mine, other, rtol=1e-5, atol=1e-6)
        assert th.allclose(ours.actor(obs), theirs.actor(obs, deterministic=True), atol=1e-6)
        for mine, other in zip(
            ours.actor.gaussian_of(ours.actor.features(obs)), theirs.actor.get_action_dist_params(obs)[:2], strict=True
        ):
            assert th.allclose(mine, other, rtol=1e-5, atol=1e-6)
        # By the batch, which updates the statistics
        theirs.critic.set_bn_training_mode(True)
        for mine, other in zip(
            ours.critic.forward_with("batch_update", obs, actions), theirs.critic(obs, actions), strict=True
        ):
            assert th.allclose(mine, other, rtol=1e-5, atol=1e-6)
        theirs.critic.set_bn_training_mode(False)
        for mine, other in zip(ours.critic(obs, actions), theirs.critic(obs, actions), strict=True):
            assert th.allclose(mine, other, rtol=1e-5, atol=1e-6)


# The Gaussian actor


class DoubleObservations(FlattenExtractor):
    """SB3 converts observations to float32, which float64 networks do not take."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


def sac_pair(scale: float = 1.0) -> tuple[GaussianActor, nn.Module]:
    """
    Our actor and SB3's, in float64, with the same weights. ``scale`` multiplies those of the mean alone: SB3 divides by the
    standard deviation, in whose units a small one would make any rounding large.
    """
    th.manual_seed(0)  # whether actions saturate depends on it
    kwargs = dict(net_arch=[8, 6], features_extractor_class=DoubleObservations)
    ours = make(GaussianPolicy, normalization=None, **kwargs).actor.double()
    theirs = SACPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, **kwargs).actor.double()
    with th.no_grad():
        for param in theirs.mu.parameters():
            param.mul_(scale)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_log_probabilities_are_those_of_sac(scale):
    ours, theirs = sac_pair(scale)
    obs, _ = random_inputs(64, dtype=th.float64)
    mean, log_std, _ = theirs.get_action_dist_params(obs)
    noise = th.randn(mean.shape, generator=th.Generator().manual_seed(1), dtype=th.float64)
    gaussian = mean + log_std.exp() * noise
    theirs.action_dist.proba_distribution(mean, log_std)
    expected = theirs.action_dist.log_prob(th.tanh(gaussian), gaussian)
    actions, log_prob = ours.action_and_log_prob(ours.features(obs), noise)
    assert log_prob.shape == (64, 1)
    assert actions.dtype == log_prob.dtype == th.float64
    assert th.allclose(actions, th.tanh(gaussian), rtol=0, atol=1e-14)
    assert ((actions.abs() > 0.9999).double().mean() > 0.2) == (scale > 1)
    # Where an action is nearly 1, rounding it (1e-16) changes log(1 - action² + 1e-6) by a million times as much
    assert th.allclose(log_prob[:, 0], expected, rtol=0, atol=1e-8)
    assert th.allclose(ours(obs), theirs(obs, deterministic=True), rtol=0, atol=1e-14)
    assert th.equal(ours(obs), ours.actions_of(ours.features(obs)))
    # The gradients, too, through the action and its probability
    for outputs in ((log_prob.mean(), expected.mean()), (actions.sum(), th.tanh(gaussian).sum())):
        grads = [
            th.autograd.grad(output, list(actor.parameters()), retain_graph=True, allow_unused=True)
            for output, actor in zip(outputs, (ours, theirs), strict=True)
        ]
        for mine, other in zip(*grads, strict=True):
            assert th.allclose(mine, other, rtol=1e-8, atol=1e-8)


def test_log_probabilities_are_a_density():
    """Over the actions they integrate to one."""
    actor = GaussianActor(
        OBSERVATIONS, spaces.Box(-1, 1, (1,)), [], FlattenExtractor(OBSERVATIONS), 5, normalization=NormalizationConfig(None)
    ).double()
    noise = th.linspace(-8, 8, 20_001, dtype=th.float64)[:, None]
    with th.no_grad():
        actor.mu.bias.fill_(0.3)
        actor.log_std.bias.fill_(-0.5)
        actions, log_prob = actor.action_and_log_prob(th.zeros(len(noise), 5, dtype=th.float64), noise)
    assert th.trapezoid(log_prob[:, 0].exp(), actions[:, 0]).item() == pytest.approx(1, abs=1e-4)


def test_standard_deviation_is_clamped():
    actor = make(GaussianPolicy, net_arch=[8]).actor
    features = actor.features(random_inputs()[0])
    for value, clamped in ((50.0, 2.0), (-50.0, -20.0)):
        with th.no_grad():
            actor.log_std.bias.fill_(value)
        assert th.equal(actor.gaussian_of(features)[1], th.full((16, 2), clamped))


def test_predict_samples_unless_deterministic():
    policy = make(GaussianPolicy, net_arch=[8])
    obs = random_inputs()[0].numpy()
    deterministic = [policy.predict(obs, deterministic=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(*deterministic)
    th.manual_seed(0)
    first, second = (policy.predict(obs)[0] for _ in range(2))
    assert np.abs(first - second).min() > 0
    assert np.abs(first).max() <= 1
    th.manual_seed(0)
    noise = th.randn(16, 2)
    with th.no_grad():
        expected, _ = policy.actor.action_and_log_prob(policy.actor.features(th.as_tensor(obs)), noise)
    np.testing.assert_allclose(first, expected.numpy(), atol=1e-6)


def test_gaussian_actor_is_normalised_as_the_deterministic_one():
    for kwargs in (dict(), dict(normalization="batch_layer"), CROSSQ):
        gaussian, deterministic = make(GaussianPolicy, **kwargs).actor, make(**kwargs).actor
        assert types(gaussian.latent_pi) == types(deterministic.mu)[:-2]
        assert isinstance(gaussian, BaseActor)
        assert not isinstance(gaussian, Actor)
        assert gaussian.squash_output
        assert {id(param) for param in gaussian.own_parameters} == {id(param) for param in gaussian.parameters()}
    obs, _ = random_inputs()
    before = gaussian.running_statistics()
    gaussian.forward_with("batch_update", gaussian.features(obs), th.randn(16, 2), part=gaussian.action_and_log_prob)
    assert all(new[2] == old[2] + 1 for new, old in zip(gaussian.running_statistics(), before, strict=True))


# The value function


@pytest.mark.parametrize("config", [NormalizationConfig(), NormalizationConfig("batch_renorm", order="after_activation")])
def test_value_network(tmp_path, config):
    network = ValueNetwork(OBSERVATIONS, ACTIONS, [8, 6], FlattenExtractor(OBSERVATIONS), 5, normalization=config)
    actor = Actor(OBSERVATIONS, ACTIONS, [8, 6], FlattenExtractor(OBSERVATIONS), 5, normalization=config)
    assert types(network.v_net)[:-1] == types(actor.mu)[:-2]
    assert network.v_net[-1].out_features == 1
    assert network.v_net[-1].weight.abs().max() <= 3e-3
    obs, _ = random_inputs()
    values = network.forward_with("batch_update", obs)
    assert values.shape == (16, 1)
    assert th.equal(network(obs), network.values_of(network.features(obs)))
    assert {layer[2] for layer in network.running_statistics()} == {1}
    network.save(tmp_path / "value.pt")
    assert th.equal(ValueNetwork.load(tmp_path / "value.pt")(obs), network(obs))


@pytest.mark.parametrize("cls", [Actor, GaussianActor, Critic])
def test_networks_by_themselves(tmp_path, cls):
    """With the normalisation's options in the file."""
    config = NormalizationConfig("batch_renorm", 0.02, 2e-3, 7, "after_activation")
    network = cls(OBSERVATIONS, ACTIONS, [8], FlattenExtractor(OBSERVATIONS), 5, normalization=config, final_init="fan_in")
    network.save(tmp_path / "network.pt")
    loaded = cls.load(tmp_path / "network.pt")
    assert repr(loaded) == repr(network)
    assert loaded.constructor_parameters["normalization"] == config
    inputs = random_inputs()[: 2 if cls is Critic else 1]
    for ours, theirs in zip(network(*inputs), loaded(*inputs), strict=True):
        assert th.equal(ours, theirs)
