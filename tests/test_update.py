"""One gradient step: against SB3's DDPG and TD3, against finite differences, and against Algorithm 1 written out."""

import copy
import importlib.util
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from conftest import SMALL, DoubleExtractor, VectorEnv, as_double, joint_pass, random_batch, td_target, with_modes
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update

import sb3_bn_ddpg.critic_step.step as of_critics
import sb3_bn_ddpg.deterministic.step as definition
import sb3_bn_ddpg.fast.support as fast_update_module
from sb3_bn_ddpg import BNDDPG, BNTD3
from sb3_bn_ddpg.common.steps import UpdateInfo, averages
from sb3_bn_ddpg.deterministic.step import actor_loss, gradient_step
from sb3_bn_ddpg.fast import torch_operations
from sb3_bn_ddpg.networks.actor_critic import Networks, move_targets
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.policies import MlpPolicy
from sb3_bn_ddpg.networks.statistics import PassStatistics


class FixedBuffer:
    """A replay buffer that returns one batch, whoever asks."""

    def __init__(self, batch: ReplayBufferSamples) -> None:
        self.batch = batch

    def sample(self, batch_size, env=None) -> ReplayBufferSamples:
        return self.batch


SMOOTHED = dict(policy_delay=2, target_policy_noise=0.4, target_noise_clip=0.3)
"""With a noise of which much is clipped"""
ALGORITHMS = [(BNDDPG, dict()), (BNTD3, SMOOTHED)]
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the extra `compiled` is not installed")
UPDATES = pytest.mark.parametrize("fast_update", [False, True, pytest.param("compiled", marks=needs_numba)])


def sb3_pair(
    fast_update: bool | str, algorithm: type[BNDDPG] | type[BNTD3] = BNDDPG, **kwargs
) -> tuple[BNDDPG | BNTD3, DDPG | TD3]:
    """The algorithm without batch norm, laid out as SB3's networks, and SB3's DDPG or TD3, with the same weights."""
    common = dict(learning_rate=1e-3, tau=0.05, gamma=0.97, buffer_size=100, device="cpu", seed=1) | kwargs
    env = VectorEnv(obs_dim=5, action_dim=3)
    # In float64, in which two libraries agree whatever the processor
    extractor = dict(features_extractor_class=DoubleExtractor)
    model = algorithm(
        "MlpPolicy",
        env,
        critic_learning_rate=1e-3,
        critic_weight_decay=0.0,
        fast_update=fast_update,
        policy_kwargs=dict(normalization=None, action_layer=1, net_arch=[24, 16], final_init="fan_in", **extractor),
        **common,
    )
    sb3_algorithm = TD3 if algorithm is BNTD3 else DDPG
    sb3 = sb3_algorithm("MlpPolicy", env, policy_kwargs=dict(net_arch=[24, 16], **extractor), **common)
    for each in (model, sb3):
        each.policy.double()
    assert all(len(q_network.state_net) == 0 for q_network in model.critic.q_networks)
    for name in ("actor", "actor_target", "critic", "critic_target"):
        ours, theirs = getattr(model, name).state_dict(), getattr(sb3, name).state_dict()
        getattr(sb3, name).load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    # Networks all different, so that a mix-up of two shows, and neither critic's value is smaller in every state
    for each in (model, sb3):
        generator = th.Generator().manual_seed(5)
        for network in (each.actor, each.critic, each.actor_target, each.critic_target):
            for param in network.parameters():
                param.data += 0.2 * th.randn(param.shape, generator=generator, dtype=th.float64)
    for each in (model, sb3):
        each.learn(0)  # sets up the logger
        each.replay_buffer = FixedBuffer(as_double(random_batch(model, size=48)))
    return model, sb3


def train(model: BNDDPG | BNTD3, sb3: DDPG | TD3, gradient_steps: int) -> None:
    """The same steps of both, with the same noise on the targets' actions."""
    for each in (model, sb3):
        th.manual_seed(2)
        each.train(gradient_steps, batch_size=48)


def assert_same_weights(model: BNDDPG | BNTD3, sb3: DDPG | TD3, **tolerance: float) -> None:
    for name in ("actor", "actor_target", "critic", "critic_target"):
        ours, theirs = getattr(model, name).state_dict(), getattr(sb3, name).state_dict()
        for (key, value), expected in zip(ours.items(), theirs.values(), strict=True):
            np.testing.assert_allclose(value.numpy(), expected.numpy(), err_msg=f"{name}.{key}", **tolerance)


@pytest.fixture
def double(monkeypatch):
    """The fast update knows the features extractor of the comparisons in float64."""
    monkeypatch.setattr(fast_update_module, "FlattenExtractor", DoubleExtractor)


@pytest.mark.numerics
@pytest.mark.parametrize(("algorithm", "kwargs"), ALGORITHMS)
@UPDATES
def test_single_gradient_steps_equal_sb3s(double, fast_update, algorithm, kwargs):
    """Until the first update of the actor, step by step."""
    model, sb3 = sb3_pair(fast_update, algorithm, **kwargs)
    for step in range(model.policy_delay):
        before = copy.deepcopy(model.policy.state_dict())
        train(model, sb3, 1)
        assert_same_weights(model, sb3, rtol=1e-9, atol=1e-12)
        # Adam's first step moves every parameter by about the learning rate: nothing may have stood still
        for key, value in model.policy.state_dict().items():
            moved = (value - before[key]).abs().max().item()
            is_updated = key.startswith("critic.") or step == model.policy_delay - 1
            assert moved > 1e-5 if is_updated else moved == 0, key


@pytest.mark.numerics
@pytest.mark.parametrize("policy_delay", [1, 3])
@pytest.mark.parametrize(("algorithm", "kwargs"), ALGORITHMS)
@UPDATES
def test_ten_gradient_steps_equal_sb3s(double, fast_update, algorithm, kwargs, policy_delay):
    """Adam's moments, zeroed gradients and targets are all carried from step to step as SB3 does, delayed as in its TD3."""
    model, sb3 = sb3_pair(fast_update, algorithm, **kwargs)
    model.policy_delay = sb3.policy_delay = policy_delay
    train(model, sb3, 10)
    assert_same_weights(model, sb3, rtol=1e-8, atol=1e-10)
    assert (model._fast_update is not None) == bool(fast_update)


@pytest.mark.parametrize("flaw", ["sign", "detach", "online", "mask"])
def test_the_comparison_with_sb3_sees_flaws(flaw, monkeypatch):
    """The test above is worth something: each of these mistakes makes it fail."""
    right = of_critics.td_target

    def without_ends(nets, batch, *args):
        return right(nets, batch._replace(dones=0 * batch.dones), *args)

    def without_targets(nets, *args):
        return right(Networks(nets.actor, nets.critic, nets.actor, nets.critic), *args)

    def with_a_gradient(nets, batch, *args):  # into the critic
        return right(nets, batch, *args) + 0.5 * q_of_batch(nets, batch)

    if flaw == "sign":
        monkeypatch.setattr(definition, "actor_loss", lambda *args: -actor_loss(*args))
    else:
        wrong = {"detach": with_a_gradient, "online": without_targets, "mask": without_ends}[flaw]
        monkeypatch.setattr(of_critics, "td_target", wrong)
    model, sb3 = sb3_pair(fast_update=False)
    train(model, sb3, 1)
    with pytest.raises(AssertionError):
        assert_same_weights(model, sb3, rtol=1e-9, atol=1e-12)


def with_td3_flaw(monkeypatch, flaw: str) -> None:
    """Plant a mistake that only TD3 can have: in the definition, in the engine's operations, or in both."""

    def always_the_actor(self, batch, update_actor=True):
        return gradient_step_of_the_model(self, batch, True)

    def always_the_targets(self, batch, update_actor=True):
        info = gradient_step_of_the_model(self, batch, update_actor)
        if not update_actor:
            move_targets(self._networks, self.tau, self._pass_statistics)
        return info

    gradient_step_of_the_model = BNTD3._gradient_step
    if flaw == "no clip":
        monkeypatch.setattr(
            BNTD3, "_step_noise", lambda self, batch: th.empty_like(batch.actions).normal_(0, self.target_policy_noise)
        )
    elif flaw == "no noise":
        monkeypatch.setattr(BNTD3, "_step_noise", lambda self, batch: None)
    elif flaw == "beyond the bounds":
        monkeypatch.setattr(definition, "smoothed", lambda actions, noise: actions + noise)
        monkeypatch.setattr(torch_operations, "add_noise", lambda actions, noise: actions + noise)
    elif flaw == "first critic in the target":
        monkeypatch.setattr(of_critics, "smallest", lambda q_values: q_values[0])
        monkeypatch.setattr(torch_operations, "smaller", lambda least, q, is_first: q if is_first else least)
    elif flaw == "largest in the target":
        monkeypatch.setattr(of_critics, "smallest", lambda q_values: th.cat(q_values, dim=1).amax(dim=1, keepdim=True))
        monkeypatch.setattr(torch_operations, "smaller", lambda least, q, is_first: q if is_first else th.maximum(least, q))
    elif flaw == "no delay":
        monkeypatch.setattr(BNTD3, "_gradient_step", always_the_actor)
    elif flaw == "targets at every step":
        monkeypatch.setattr(BNTD3, "_gradient_step", always_the_targets)
    elif flaw == "actor at the first step":
        monkeypatch.setattr(
            BNTD3,
            "_gradient_step",
            lambda self, batch, update_actor=True: gradient_step_of_the_model(self, batch, self._n_updates % 2 == 1),
        )


TD3_FLAWS = [
    "no clip",
    "no noise",
    "beyond the bounds",
    "first critic in the target",
    "largest in the target",
    "no delay",
    "targets at every step",
    "actor at the first step",
    "the smallest in the actor's loss",
]


@pytest.mark.parametrize("fast_update", [False, True])
@pytest.mark.parametrize("flaw", [None, *TD3_FLAWS])
def test_the_comparison_with_sb3s_td3_sees_flaws(double, flaw, fast_update, monkeypatch):
    with_td3_flaw(monkeypatch, flaw)
    model, sb3 = sb3_pair(fast_update, BNTD3, **SMOOTHED)
    if flaw == "the smallest in the actor's loss":
        model.actor_loss_critics = "smallest"
    train(model, sb3, 3)
    assert (model._fast_update is not None) == fast_update
    with nullcontext() if flaw is None else pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_weights(model, sb3, rtol=1e-8, atol=1e-10)


def q_of_batch(nets: Networks, batch: ReplayBufferSamples) -> th.Tensor:
    return nets.critic(batch.observations, batch.actions)[0]


def double_networks(**kwargs) -> tuple[Networks, ReplayBufferSamples]:
    """Networks in float64 with statistics, gamma and beta away from where they start, and a batch for them."""
    th.manual_seed(3)
    policy = MlpPolicy(
        spaces.Box(-np.inf, np.inf, (4,)),
        spaces.Box(-1, 1, (2,)),
        lambda progress_remaining: 1e-3,
        features_extractor_class=DoubleExtractor,
        final_init=0.5,
        activation_fn=th.nn.Tanh,  # smooth: at a kink of ReLU finite differences are wrong
        **(dict(net_arch=[9, 7]) | kwargs),
    ).double()
    for name, value in policy.state_dict().items():
        if "mean" in name or "bias" in name:
            value += 0.3 * th.randn_like(value)
        elif "var" in name:
            value *= 1 + th.rand_like(value)
    policy.set_training_mode(True)
    nets = Networks(policy.actor, policy.critic, policy.actor_target, policy.critic_target)
    generator = th.Generator().manual_seed(0)

    def normal(*shape: int) -> th.Tensor:
        return th.randn(*shape, generator=generator, dtype=th.float64)

    batch = ReplayBufferSamples(normal(12, 4), normal(12, 2), normal(12, 4), th.zeros(12, 1), normal(12, 1))
    return nets, batch


@pytest.mark.parametrize("critic_statistics", ["running", "batch", "batch_update"])
@pytest.mark.parametrize("actor_statistics", ["batch_update", "running_update"])
@pytest.mark.parametrize("normalization", ["batch", "batch_renorm", "layer", "batch_layer", None])
@pytest.mark.parametrize("norm_layers", ["before_action", "all"])
def test_gradient_of_the_actor_through_the_critic(norm_layers, normalization, actor_statistics, critic_statistics):
    """Every entry of dL/dtheta by central differences in float64, with the statistics of each choice."""
    nets, batch = double_networks(normalization=normalization, renorm_warmup_steps=1000, critic_norm_layers=norm_layers)
    statistics = PassStatistics(actor_loss_actor=actor_statistics, actor_loss_critic=critic_statistics)
    buffers = copy.deepcopy([dict(nets.actor.named_buffers()), dict(nets.critic.named_buffers())])

    def loss() -> th.Tensor:
        # From the same statistics every time: a pass may move the running ones
        for network, saved in zip((nets.actor, nets.critic), buffers, strict=True):
            for name, buffer in network.named_buffers():
                buffer.copy_(saved[name])
        return actor_loss(nets, batch, statistics)

    loss().backward(inputs=nets.actor_parameters)
    if actor_statistics == "running_update":
        # The running statistics, once updated, are constants of the loss
        buffers[0] = copy.deepcopy(dict(nets.actor.named_buffers()))
        statistics = SimpleNamespace(actor_loss_actor="running", actor_loss_critic=critic_statistics)
    epsilon, n_nonzero = 1e-6, 0
    for name, param in nets.actor.named_parameters():
        numeric = th.empty(param.numel(), dtype=th.float64)
        for i in range(param.numel()):
            original = param.data.view(-1)[i].item()
            values = []
            for shift in (epsilon, -epsilon):
                param.data.view(-1)[i] = original + shift
                values.append(loss().item())
            param.data.view(-1)[i] = original
            numeric[i] = (values[0] - values[1]) / (2 * epsilon)
        np.testing.assert_allclose(param.grad.view(-1).numpy(), numeric.numpy(), rtol=1e-4, atol=1e-8, err_msg=name)
        n_nonzero += int((numeric.abs() > 1e-5).sum())
    assert n_nonzero > 0
    assert all(param.grad is None for param in nets.critic.parameters())


def test_step_is_algorithm_1():
    """The whole step, batch norm on, against the paper's Algorithm 1 written out with plain autograd."""
    nets, batch = double_networks()
    batch = batch._replace(dones=(th.arange(12.0).view(12, 1) % 3 == 0).double())
    expected = copy.deepcopy(nets)
    # copy.deepcopy of an optimizer follows the copied parameters only within one deepcopy of both
    for network, original in ((expected.actor, nets.actor), (expected.critic, nets.critic)):
        groups = original.optimizer.param_groups
        by_name = {id(param): name for name, param in original.named_parameters()}
        own = dict(network.named_parameters())
        network.optimizer = th.optim.Adam(
            [dict(group, params=[own[by_name[id(param)]] for param in group["params"]]) for group in groups]
        )
    info = gradient_step(nets, batch, gamma=0.9, tau=0.01, statistics=PassStatistics())

    actor, critic, actor_target, critic_target = map(
        with_modes, (expected.actor, expected.critic, expected.actor_target, expected.critic_target)
    )
    with th.no_grad():
        # Statistics of the minibatch, in copies: the targets' running ones are not updated by this pass
        actor_copy, critic_copy = copy.deepcopy(actor_target).train(), copy.deepcopy(critic_target).train()
        next_q = critic_copy(batch.next_observations, actor_copy(batch.next_observations))[0]
        y = batch.rewards + 0.9 * (1 - batch.dones) * next_q
    critic.train()
    q_values = critic(batch.observations, batch.actions)[0]
    critic_loss = (y - q_values).square().sum() / len(y)
    critic.zero_grad()
    critic_loss.backward()
    critic.optimizer.step()
    # The deterministic policy gradient (equation 6): mean of grad_a Q(s, a) times grad_theta mu(s), ascended
    actor.train()
    critic.eval()
    actions = actor(batch.observations)
    leaf = actions.detach().requires_grad_()
    (action_gradient,) = th.autograd.grad(critic(batch.observations, leaf)[0].sum(), leaf)
    actor.zero_grad()
    actions.backward(-action_gradient / len(y))
    actor.optimizer.step()
    for network, target in ((actor, actor_target), (critic, critic_target)):
        for param, target_param in zip(network.parameters(), target.parameters(), strict=True):
            target_param.data = 0.01 * param.data + 0.99 * target_param.data
        for buffer, target_buffer in zip(network.buffers(), target.buffers(), strict=True):
            target_buffer.copy_(buffer)

    for name in ("actor", "critic", "actor_target", "critic_target"):
        ours, theirs = getattr(nets, name).state_dict(), getattr(expected, name).state_dict()
        for key, value in ours.items():
            np.testing.assert_allclose(value.numpy(), theirs[key].numpy(), rtol=1e-7, atol=1e-10, err_msg=f"{name}.{key}")
    assert info.critic_loss.item() == pytest.approx(critic_loss.item())
    assert info.q_value.item() == pytest.approx(q_values.mean().item())
    assert info.td_target.item() == pytest.approx(y.mean().item())


@pytest.mark.parametrize("fast_update", [False, True])
def test_a_step_without_the_actor(make_model, fast_update):
    """The critic's step is the same; actor, its statistics and optimizer, and the target networks stand still."""
    model, whole = (make_model(seed=0, tau=0.1, fast_update=fast_update) for _ in range(2))
    for seed in range(3):
        for each in (model, whole):
            each._gradient_step(random_batch(model, seed=seed))
    before = copy.deepcopy(model.get_parameters())
    info = model._gradient_step(random_batch(model, seed=3), update_actor=False)
    whole_info = whole._gradient_step(random_batch(model, seed=3))
    assert info.actor_loss is None
    assert averages([info]) == {name: value for name, value in averages([whole_info]).items() if name != "actor_loss"}
    after, expected = model.get_parameters(), whole.get_parameters()
    for key, value in after["policy"].items():
        is_critic = key.startswith("critic.")
        assert th.equal(value, (expected if is_critic else before)["policy"][key]), key
        assert is_critic or not key.endswith("weight") or not th.equal(value, expected["policy"][key]), key
    for (index, state), other in zip(
        after["actor.optimizer"]["state"].items(), before["actor.optimizer"]["state"].values(), strict=True
    ):
        for name, value in state.items():
            assert th.equal(value, other[name]), (index, name)


def test_averages_are_over_the_steps_that_have_a_value():
    info = UpdateInfo(th.tensor(5.0), *map(th.tensor, (1.0, 2.0, 3.0, 4.0)))
    other = UpdateInfo(None, *map(th.tensor, (3.0, 4.0, 5.0, 6.0)))
    assert averages([info, other]) == dict(actor_loss=5, critic_loss=2, q_value=3, abs_q_value=4, td_target=5)
    assert list(averages([other])) == ["critic_loss", "q_value", "abs_q_value", "td_target"]


@pytest.mark.parametrize("critic_norm_layers", ["before_action", "all"])
def test_joint_step(critic_norm_layers):
    """One pass of the critic over states and next states, written out: statistics of both, gradient of the states' Q alone."""
    nets, batch = double_networks(critic_norm_layers=critic_norm_layers)
    nets = Networks(nets.actor, nets.critic, nets.actor, nets.critic)
    batch = batch._replace(dones=(th.arange(12.0).view(12, 1) % 3 == 0).double())
    critic, actor = with_modes(copy.deepcopy(nets.critic)).train(), with_modes(copy.deepcopy(nets.actor)).eval()
    before = copy.deepcopy(nets.critic.state_dict())
    captured = {}
    nets.critic.optimizer.register_step_pre_hook(
        lambda *_: captured.update({name: param.grad.clone() for name, param in nets.critic.named_parameters()})
    )
    info = gradient_step(nets, batch, gamma=0.9, tau=0.01, statistics=PassStatistics(target="joint"))

    obs = th.cat([batch.observations, batch.next_observations])
    with th.no_grad():
        actions = th.cat([batch.actions, actor(batch.next_observations)])
    q_values = critic(obs, actions)[0]
    y = (batch.rewards + 0.9 * (1 - batch.dones) * q_values[12:]).detach()
    critic_loss = (y - q_values[:12]).square().mean()
    critic.zero_grad()
    critic_loss.backward()
    assert info.critic_loss.item() == pytest.approx(critic_loss.item())
    assert info.q_value.item() == pytest.approx(q_values[:12].mean().item())
    assert info.td_target.item() == pytest.approx(y.mean().item())
    for name, param in critic.named_parameters():
        np.testing.assert_allclose(captured[name].numpy(), param.grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)
    # The running statistics moved once, by those of both
    for name, buffer in critic.named_buffers():
        assert th.allclose(nets.critic.state_dict()[name], buffer), name
        assert not th.equal(buffer, before[name]), name


def test_joint_pass_sees_what_separate_passes_hide():
    """Next states that are the states, shifted: each normalised alone they look the same, together they do not."""
    nets, batch = double_networks(action_layer=1)
    nets = Networks(nets.actor, nets.critic, nets.actor, nets.critic)
    nets.actor.mu[-2].weight.data.zero_()  # one action everywhere, so that only the states count
    shifted = batch._replace(next_observations=batch.observations + 5)
    same = batch._replace(next_observations=batch.observations.clone())
    separate = [td_target(nets, each, 1.0, PassStatistics()) for each in (same, shifted)]
    assert th.allclose(*separate)
    joint = [joint_pass(nets, each, 1.0, PassStatistics(target="joint"))[1].detach() for each in (same, shifted)]
    assert (joint[0] - joint[1]).abs().max() > 0.1


def test_target_networks_beside_the_joint_pass():
    """They take the joint minibatch, normalise with its statistics, and keep none of it; Q(s, a) is the online critic's."""
    nets, batch = double_networks(critic_norm_layers="all", action_layer=1)
    with th.no_grad():
        for param in [*nets.critic_target.parameters(), *nets.actor_target.parameters()]:
            param.add_(0.1 * th.randn_like(param))
    statistics = PassStatistics(target="joint")
    before = copy.deepcopy(nets.critic_target.state_dict())
    # (PyTorch's own batch norm in training mode, in copies)
    online, target = (with_modes(copy.deepcopy(critic)).train() for critic in (nets.critic, nets.critic_target))
    with th.no_grad():
        next_actions = with_modes(copy.deepcopy(nets.actor_target)).eval()(batch.next_observations)
        inputs = th.cat([batch.observations, batch.next_observations]), th.cat([batch.actions, next_actions])
        expected = batch.rewards + 0.9 * (1 - batch.dones) * target(*inputs)[0][len(batch.actions) :]
        expected_q = online(*inputs)[0][: len(batch.actions)]
    q_values, y, _ = joint_pass(nets, batch, 0.9, statistics)
    assert th.allclose(q_values, expected_q)
    assert th.allclose(y, expected)
    assert not y.requires_grad
    for name, value in nets.critic_target.state_dict().items():
        assert th.equal(value, before[name]), name
    without = joint_pass(Networks(nets.actor, nets.critic, nets.actor, nets.critic), batch, 0.9, statistics)[1]
    assert not th.allclose(y, without)


def test_joint_pass_asks_a_critic_of_ones_own():
    """A subclass may override ``forward`` alone, as every SB3 critic may."""

    class RaisedCritic(Critic):
        def forward(self, obs, actions):
            return (super().forward(obs, actions)[0] + 10,)

    nets, batch = double_networks()
    nets = Networks(nets.actor, nets.critic, nets.actor, nets.critic)
    batch = batch._replace(dones=th.zeros_like(batch.dones))
    q_values, target, _ = joint_pass(nets, batch, 0.5, PassStatistics(target="joint"))
    nets.critic.__class__ = RaisedCritic
    raised_q_values, raised_target, _ = joint_pass(nets, batch, 0.5, PassStatistics(target="joint"))
    assert th.allclose(raised_q_values[0], q_values[0] + 10)
    assert th.allclose(raised_target, target + 5)


def test_n_step_discounts_replace_gamma():
    nets, batch = double_networks()
    discounts = th.linspace(0.1, 0.9, 12, dtype=th.float64).view(12, 1)
    plain = td_target(nets, batch, 1.0, PassStatistics()) - batch.rewards
    discounted = td_target(nets, batch._replace(discounts=discounts), 0.123, PassStatistics()) - batch.rewards
    assert th.allclose(discounted, plain * discounts)


def test_without_target_networks_the_online_ones_give_the_target(make_model):
    model = make_model(use_target_networks=False)
    assert model.actor_target is model.actor is model.policy.actor_target
    assert model.critic_target is model.critic is model.policy.critic_target
    model.learn(60)
    batch = random_batch(model)
    model.policy.set_training_mode(False)
    with th.no_grad():
        next_q = model.critic(batch.next_observations, model.actor(batch.next_observations))[0]
    expected = batch.rewards + (1 - batch.dones) * 0.99 * next_q
    assert th.allclose(td_target(model._networks, batch, 0.99, PassStatistics(target="running")), expected)


def test_shared_features_extractor_is_trained_by_the_actor_and_moved_once():
    class Extractor(FlattenExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space)
            self.linear = th.nn.Linear(self.features_dim, self.features_dim)

        def forward(self, observations):
            return self.linear(super().forward(observations))

    model = BNDDPG(
        "MlpPolicy",
        VectorEnv(),
        buffer_size=100,
        tau=0.1,
        policy_kwargs=dict(net_arch=[8, 8], features_extractor_class=Extractor, share_features_extractor=True),
    )
    linear, target = model.actor.features_extractor.linear, model.actor_target.features_extractor.linear
    assert model.critic.features_extractor.linear is linear
    assert model.critic_target.features_extractor.linear is target
    in_critic = {id(param) for group in model.critic.optimizer.param_groups for param in group["params"]}
    assert id(linear.weight) not in in_critic
    before, target_before = linear.weight.detach().clone(), target.weight.detach().clone()
    gradient_step(model._networks, random_batch(model), 0.99, 0.1, PassStatistics())
    assert not th.equal(linear.weight, before)
    expected = [target_before.clone()]
    polyak_update([linear.weight], expected, 0.1)
    assert th.allclose(target.weight, expected[0])


@pytest.mark.parametrize("fast_update", [False, True])
def test_weight_normalization_keeps_norms_and_changes_no_output(make_model, fast_update):
    model = make_model(weight_normalization="both", learning_rate=0.1, critic_learning_rate=0.1, fast_update=fast_update)
    free = make_model(learning_rate=0.1, critic_learning_rate=0.1, fast_update=fast_update)
    layers = {"actor": ["mu.1", "mu.4"], "critic": ["qf0.state_net.1"]}  # all that batch norm follows
    for seed in range(5):
        batch = random_batch(model, seed=seed)
        model._gradient_step(batch)
        free._gradient_step(batch)
    for network, names in layers.items():
        for name in names:
            weight, free_weight = (getattr(each, network).get_submodule(name).weight for each in (model, free))
            fixed_norm = (weight.shape[0] / 3) ** 0.5  # the initial one, but for chance
            assert weight.norm().item() == pytest.approx(fixed_norm, rel=1e-5)
            assert abs(free_weight.norm().item() / fixed_norm - 1) > 0.05

    batch = random_batch(model, seed=9)
    before = model.actor.forward_with("batch", batch.observations)
    with th.no_grad():
        model.actor.mu[1].weight.mul_(3)
    after = model.actor.forward_with("batch", batch.observations)
    np.testing.assert_allclose(before.detach(), after.detach(), atol=1e-3)


@pytest.mark.parametrize("normalization", ["batch", "batch_renorm"])
@pytest.mark.parametrize("use_target_networks", [False, True])
def test_weight_normalization_of_a_trained_model_changes_no_output(make_model, tmp_path, normalization, use_target_networks):
    kwargs = dict(learning_rate=0.1, critic_learning_rate=0.1, use_target_networks=use_target_networks)
    model = make_model(policy_kwargs=SMALL | dict(normalization=normalization), **kwargs)
    model.learn(40)
    fixed_norm = (16 / 3) ** 0.5
    assert abs(model.actor.mu[1].weight.norm().item() / fixed_norm - 1) > 0.05
    model.save(tmp_path / "free")
    fixed = type(model).load(tmp_path / "free", env=model.get_env(), weight_normalization="both")
    fixed._setup_learn(0)
    assert fixed.actor.mu[1].weight.norm().item() == pytest.approx(fixed_norm, rel=1e-5)
    batch = random_batch(model, seed=9)
    for name in ("actor", "actor_target", "critic", "critic_target"):
        inputs = (batch.observations,) if "actor" in name else (batch.observations, batch.actions)
        for statistics in ("running", "batch"):
            before, after = (
                th.as_tensor(getattr(each, name).forward_with(statistics, *inputs)[0]).detach() for each in (model, fixed)
            )
            np.testing.assert_allclose(before, after, rtol=1e-3, atol=1e-4)
    weights = [weight.clone() for weight in fixed._networks.fixed_norm_critic_weights]
    fixed._setup_learn(0)  # another one changes nothing
    assert all(map(th.equal, weights, fixed._networks.fixed_norm_critic_weights))


def test_weight_normalization_leaves_frozen_weights(make_model):
    model = make_model(weight_normalization="both", learning_rate=0.1)
    weight = model.actor.mu[1].weight.requires_grad_(False)
    before = weight.clone()
    model.learn(40)
    assert th.equal(weight, before)
    assert model.actor.mu[4].weight.norm().item() == pytest.approx((12 / 3) ** 0.5, rel=1e-5)


def test_weight_normalization_of_the_critic_alone(make_model):
    nets = make_model(weight_normalization="critic")._networks
    assert (len(nets.fixed_norm_actor_weights), len(nets.fixed_norm_critic_weights)) == (0, 1)
    # The action enters at the critic's only normalised layer
    nets = make_model(weight_normalization="both", policy_kwargs=SMALL | dict(action_layer=1))._networks
    assert (len(nets.fixed_norm_actor_weights), len(nets.fixed_norm_critic_weights)) == (2, 0)
    with pytest.raises(ValueError, match="weight_normalization"):
        make_model(weight_normalization="actor")


@pytest.mark.parametrize(
    ("whose", "policy_kwargs"),
    [
        ("both", dict(normalization=None)),
        ("both", dict(normalization="layer")),
        ("both", dict(norm_order="after_activation")),  # a bias and a ReLU lie between
        ("critic", dict(action_layer=1)),
    ],
)
def test_weight_normalization_of_no_weight(make_model, whose, policy_kwargs):
    with pytest.raises(
        ValueError,
        match=f"`weight_normalization='{whose}'` is not allowed: batch norm follows no weight of .* It must be None, or",
    ):
        make_model(weight_normalization=whose, policy_kwargs=SMALL | policy_kwargs)
