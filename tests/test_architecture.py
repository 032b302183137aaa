"""The networks against the paper: layer sequence, initialisation, number of parameters, and every depth and normalisation."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import VectorEnv
from gymnasium import spaces
from torch import nn

from sb3_bn_ddpg import BNDDPG, MlpPolicy
from sb3_bn_ddpg.networks.norm_layers import BatchNorm1d, BatchRenorm1d


def make_policy(obs_dim=17, action_dim=6, **kwargs) -> MlpPolicy:
    return MlpPolicy(
        spaces.Box(-np.inf, np.inf, (obs_dim,)), spaces.Box(-1, 1, (action_dim,)), lambda progress_remaining: 1e-4, **kwargs
    )


def layers(network: nn.Module) -> list[tuple]:
    """The layers in order, each as its type and sizes."""

    def describe(module: nn.Module) -> tuple:
        if isinstance(module, nn.Linear):
            # Batch norm takes the place of the bias
            return nn.Linear, module.in_features, module.out_features, "bias" if module.bias is not None else "no bias"
        if isinstance(module, (BatchNorm1d, BatchRenorm1d)):
            return type(module), module.num_features
        if isinstance(module, nn.LayerNorm):
            return nn.LayerNorm, *module.normalized_shape
        return (type(module),)

    return [describe(module) for module in network]


def test_layers_of_the_actor():
    # "batch normalization on the state input and all layers of the mu network" (section 3), 400 and 300 units (section 7)
    assert layers(make_policy().actor.mu) == [
        (BatchNorm1d, 17),
        (nn.Linear, 17, 400, "no bias"),
        (BatchNorm1d, 400),
        (nn.ReLU,),
        (nn.Linear, 400, 300, "no bias"),
        (BatchNorm1d, 300),
        (nn.ReLU,),
        (nn.Linear, 300, 6, "bias"),
        (nn.Tanh,),
    ]


def test_layers_of_the_critic():
    # "all layers of the Q network prior to the action input" (section 3); the actions enter at the 2nd hidden layer (7)
    critic = make_policy().critic
    assert layers(critic.state_net) == [
        (BatchNorm1d, 17),
        (nn.Linear, 17, 400, "no bias"),
        (BatchNorm1d, 400),
        (nn.ReLU,),
    ]
    assert layers(critic.q_net) == [(nn.Linear, 406, 300, "bias"), (nn.ReLU,), (nn.Linear, 300, 1, "bias")]


def test_the_action_enters_at_the_second_hidden_layer():
    """By derivatives rather than by names: the state features do not depend on the action, the Q-value does."""
    policy = make_policy()
    policy.set_training_mode(False)
    obs, actions = th.randn(8, 17), th.randn(8, 6, requires_grad=True)
    seen = []
    policy.critic.q_net[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    (q_values,) = policy.critic(obs, actions)
    assert th.equal(seen[0][:, 400:], actions)
    assert (seen[0][:, :400] >= 0).all()  # behind a ReLU
    assert th.autograd.grad(q_values.sum(), actions)[0].abs().min() > 0


def test_number_of_parameters():
    # "about 130,000 parameters" a network (section 7), here for the dimensions of cheetah
    policy = make_policy()
    linear = {}
    for name, network in (("actor", policy.actor), ("critic", policy.critic)):
        linear[name] = sum(param.numel() for param in network.parameters())
    # With beta in the place of a bias, and gamma in addition
    assert linear == {
        "actor": 2 * 17 + 17 * 400 + 2 * 400 + 400 * 300 + 2 * 300 + 300 * 6 + 6,
        "critic": 2 * 17 + 17 * 400 + 2 * 400 + 406 * 300 + 300 + 300 + 1,
    }
    assert all(125_000 < n < 135_000 for n in linear.values())


def linear_bounds(network: nn.Module) -> list[tuple[nn.Linear, float]]:
    """Every linear layer with the bound the paper sets its initialisation."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return [(linear, linear.in_features**-0.5) for linear in linears[:-1]] + [(linears[-1], 3e-3)]


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_initialisation(name):
    """Uniform up to its bound in every layer, weights and biases: inside, not all near zero, and spread evenly."""
    n_checked = 0
    for linear, bound in linear_bounds(getattr(make_policy(), name)):
        for param in linear.parameters():
            values = param.detach().flatten() / bound
            assert values.abs().max() <= 1
            if values.numel() > 250:
                n_checked += 1
                assert values.abs().max() > 0.95
                assert abs(values.std().item() - 3**-0.5) < 0.06  # of U[-1, 1]
    assert n_checked >= 3


def test_final_init_is_a_parameter():
    policy = make_policy(final_init=3e-4)
    for last in (policy.actor.mu[-2], policy.critic.q_net[-1]):
        assert last.weight.abs().max() <= 3e-4


def test_first_actions_and_values_are_near_zero():
    # What the small final layers are for (section 7)
    policy = make_policy()
    obs = th.randn(256, 17) * 100
    actions = policy.actor.forward_with("batch", obs)
    assert actions.abs().max() < 0.2
    assert policy.critic.forward_with("batch", obs, actions)[0].abs().max() < 0.2


def test_targets_start_as_copies():
    policy = make_policy()
    for network, target in ((policy.actor, policy.actor_target), (policy.critic, policy.critic_target)):
        for (name, value), (target_name, target_value) in zip(
            network.state_dict().items(), target.state_dict().items(), strict=True
        ):
            assert name == target_name
            assert th.equal(value, target_value)
            assert value.data_ptr() != target_value.data_ptr()


@pytest.mark.parametrize(
    ("net_arch", "actor_layers", "state_layers", "joint_layers"),
    [
        ([], [(5, 2)], [], [(7, 1)]),
        ([8], [(5, 8), (8, 2)], [], [(7, 8), (8, 1)]),
        ([8, 7], [(5, 8), (8, 7), (7, 2)], [(5, 8)], [(10, 7), (7, 1)]),
        ([8, 7, 6], [(5, 8), (8, 7), (7, 6), (6, 2)], [(5, 8)], [(10, 7), (7, 6), (6, 1)]),
        (dict(pi=[8], qf=[9, 6]), [(5, 8), (8, 2)], [(5, 9)], [(11, 6), (6, 1)]),
        (dict(pi=[9, 6], qf=[]), [(5, 9), (9, 6), (6, 2)], [], [(7, 1)]),
    ],
)
def test_net_arch(net_arch, actor_layers, state_layers, joint_layers):
    policy = make_policy(obs_dim=5, action_dim=2, net_arch=net_arch)

    def sizes(network: nn.Module) -> list[tuple[int, int]]:
        return [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]

    assert sizes(policy.actor) == actor_layers
    assert sizes(policy.critic.state_net) == state_layers
    assert sizes(policy.critic.q_net) == joint_layers
    # The state is normalised whatever the depth
    assert isinstance(policy.actor.mu[0], BatchNorm1d)
    assert isinstance(policy.critic.state_net[0], BatchNorm1d)


@pytest.mark.parametrize(
    ("action_layer", "n_state_layers"),
    [(1, 0), (2, 1), (3, 2), (4, 2)],  # the last: a critic of three hidden layers has no fourth
)
def test_action_layer(action_layer, n_state_layers):
    critic = make_policy(net_arch=[8, 7, 6], action_layer=action_layer).critic
    assert sum(isinstance(module, nn.Linear) for module in critic.state_net) == n_state_layers
    assert sum(isinstance(module, BatchNorm1d) for module in critic.state_net) == n_state_layers + 1
    assert not any(isinstance(module, BatchNorm1d) for module in critic.q_net)


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_all_layers_of_the_critic_may_be_normalised(normalization):
    policy = make_policy(net_arch=[8, 7, 6], action_layer=2, normalization=normalization, critic_norm_layers="all")
    norm = BatchNorm1d if normalization == "batch" else nn.LayerNorm
    assert list(map(type, policy.critic.q_net)) == [
        *[nn.Linear, norm, nn.ReLU] * 2,  # the action enters here, as it is
        nn.Linear,  # the output layer
    ]
    assert policy.critic.q_net[0].in_features == 8 + policy.critic.action_space.shape[0]
    assert (policy.critic.q_net[0].bias is None) == (normalization == "batch")
    spared = policy.critic.optimizer.param_groups[1]["params"]
    assert any(policy.critic.q_net[1].weight is param for param in spared)


def test_normalizations():
    sequences = {}
    for normalization in ("batch", "batch_renorm", "layer", "batch_layer", None):
        policy = make_policy(normalization=normalization, net_arch=[8, 7], norm_eps=2e-3, activation_fn=nn.Tanh)
        sequences[normalization] = [layer[0].__name__ for layer in layers(policy.actor.mu)]
        for module in policy.modules():
            if isinstance(module, (BatchNorm1d, BatchRenorm1d, nn.LayerNorm)):
                assert module.eps == 2e-3
    hidden = {name: ["Linear", name, "Tanh"] for name in ("BatchNorm1d", "BatchRenorm1d", "LayerNorm")}
    end = ["Linear", "Tanh"]
    assert sequences == {
        "batch": ["BatchNorm1d", *hidden["BatchNorm1d"] * 2, *end],
        "batch_renorm": ["BatchRenorm1d", *hidden["BatchRenorm1d"] * 2, *end],
        "layer": [*hidden["LayerNorm"] * 2, *end],
        "batch_layer": ["BatchNorm1d", *hidden["LayerNorm"] * 2, *end],
        None: end * 3,
    }


def test_momentum_and_warmup_reach_every_layer():
    policy = make_policy(normalization="batch_renorm", norm_momentum=0.03, renorm_warmup_steps=7)
    renorms = [module for module in policy.modules() if isinstance(module, BatchRenorm1d)]
    assert len(renorms) == 2 * (3 + 2)
    assert {(module.momentum, module.warmup_steps) for module in renorms} == {(0.03, 7)}
    norms = [module for module in make_policy(norm_momentum=0.2).modules() if isinstance(module, BatchNorm1d)]
    assert len(norms) == 2 * (3 + 2)
    assert {module.momentum for module in norms} == {0.2}


def test_weight_decay_spares_biases_and_normalisation():
    model = BNDDPG("MlpPolicy", VectorEnv(), critic_weight_decay=0.02, buffer_size=10)
    decays = {id(param): group["weight_decay"] for group in model.critic.optimizer.param_groups for param in group["params"]}
    names = {name: decays[id(param)] for name, param in model.critic.named_parameters()}
    assert {name: decay for name, decay in names.items() if decay} == {
        "qf0.state_net.1.weight": 0.02,
        "qf0.q_net.0.weight": 0.02,
        "qf0.q_net.2.weight": 0.02,
    }
    assert len(names) == len(decays) == 9
    assert all(group["weight_decay"] == 0 for group in model.actor.optimizer.param_groups)


def test_weight_decay_of_the_optimizer_is_the_actors():
    kwargs = dict(optimizer_kwargs=dict(weight_decay=0.03))
    model = BNDDPG("MlpPolicy", VectorEnv(), critic_weight_decay=0.02, buffer_size=10, policy_kwargs=kwargs)
    assert [group["weight_decay"] for group in model.actor.optimizer.param_groups] == [0.03]
    assert [group["weight_decay"] for group in model.critic.optimizer.param_groups] == [0.02, 0.0]


def test_weight_decay_pulls_by_its_own_measure():
    """One SGD step with a zero loss gradient shrinks weights by lr * decay, and nothing else."""
    model = BNDDPG(
        "MlpPolicy",
        VectorEnv(),
        critic_learning_rate=0.5,
        critic_weight_decay=0.1,
        buffer_size=10,
        policy_kwargs=dict(optimizer_class=th.optim.SGD),
    )
    before = {name: param.detach().clone() for name, param in model.critic.named_parameters()}
    for param in model.critic.parameters():
        param.grad = th.zeros_like(param)
    model.critic.optimizer.step()
    for name, param in model.critic.named_parameters():
        is_weight = name in ("qf0.state_net.1.weight", "qf0.q_net.0.weight", "qf0.q_net.2.weight")
        assert th.allclose(param, before[name] * (0.95 if is_weight else 1.0)), name


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_default_networks_of_real_environments(env_id):
    model = BNDDPG("MlpPolicy", gym.make(env_id), buffer_size=10)
    assert model.actor.mu[1].in_features == model.observation_space.shape[0]
    assert model.actor.mu[-2].out_features == model.action_space.shape[0]
