"""Losses and gradient steps of the offline algorithms, each number by hand."""

import copy
import math

import numpy as np
import pytest
import torch as th
from conftest import as_double, random_batch, with_modes
from offline_models import ALL, make

from sb3_bn_ddpg import BNAWAC, BNBCQ, BNIQL, BNTD3BC
from sb3_bn_ddpg.networks.layers import StandardizingExtractor
from sb3_bn_ddpg.offline import awac_step, bcq_step, iql_step, td3_bc
from sb3_bn_ddpg.offline.losses import (
    awac_weights,
    expectile_loss,
    iql_weights,
    soft_clipped_value,
    td3_bc_loss,
    vae_loss,
    weighted_regression_loss,
)

# --- Losses, each number by number

GAMMA, TAU = 0.97, 0.1
RNG = np.random.default_rng(5)
Q, V, LOG_PROB = (th.tensor(RNG.normal(size=(12, 1))) for _ in range(3))
MU, A = (th.tensor(RNG.uniform(-1, 1, size=(12, 2))) for _ in range(2))


def columns(*tensors):
    return zip(*(tensor[:, 0].tolist() for tensor in tensors), strict=True)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_expectile_loss(expectile):
    by_hand = sum((expectile if q > v else 1 - expectile) * (q - v) ** 2 for q, v in columns(Q, V)) / 12
    assert expectile_loss(Q - V, expectile).item() == pytest.approx(by_hand, rel=1e-12)
    if expectile != 0.5:  # planted: the other way round
        assert expectile_loss(V - Q, expectile).item() != pytest.approx(by_hand, rel=1e-3)


def test_iql_weights():
    by_hand = [min(math.exp(3.0 * (q - v)), 2.5) for q, v in columns(Q, V)]
    assert iql_weights(Q - V, 3.0, 2.5)[:, 0].tolist() == pytest.approx(by_hand, rel=1e-12)
    assert 2.5 in by_hand
    assert min(by_hand) < 2.5


def test_awac_weights():
    by_hand = [math.exp((q - v) / 0.5) for q, v in columns(Q, V)]
    assert awac_weights(Q - V, 0.5, 2.5, "exp")[:, 0].tolist() == pytest.approx([min(w, 2.5) for w in by_hand], rel=1e-12)
    total = sum(by_hand)
    assert awac_weights(Q - V, 0.5, 2.5, "softmax")[:, 0].tolist() == pytest.approx(
        [12 * w / total for w in by_hand], rel=1e-12
    )


def test_weighted_regression_loss():
    by_hand = -sum(w * log_prob for w, log_prob in columns(Q.abs(), LOG_PROB)) / 12
    assert weighted_regression_loss(LOG_PROB, Q.abs()).item() == pytest.approx(by_hand, rel=1e-12)


def test_td3_bc_loss():
    q = Q.clone().requires_grad_()
    loss, bc_loss = td3_bc_loss(q, MU, A, 2.5)
    distance = sum((m - a) ** 2 for m, a in zip(MU.flatten().tolist(), A.flatten().tolist(), strict=True)) / 24
    factor = 2.5 / (sum(abs(value) for (value,) in columns(Q)) / 12)
    assert bc_loss.item() == pytest.approx(distance, rel=1e-12)
    assert loss.item() == pytest.approx(-factor * sum(value for (value,) in columns(Q)) / 12 + distance, rel=1e-12)
    loss.backward()
    # The factor has no gradient
    assert q.grad[:, 0].tolist() == pytest.approx([-factor / 12] * 12, rel=1e-12)


def test_vae_loss():
    log_std = th.tensor(RNG.normal(size=(12, 2)))
    terms = zip(Q.expand(12, 2).flatten().tolist(), log_std.flatten().tolist(), strict=True)
    divergence = sum(0.5 * (mean**2 + math.exp(2 * log) - 1 - 2 * log) for mean, log in terms) / 24
    distance = sum((m - a) ** 2 for m, a in zip(MU.flatten().tolist(), A.flatten().tolist(), strict=True)) / 24
    assert vae_loss(MU, A, Q.expand(12, 2), log_std).item() == pytest.approx(distance + 0.5 * divergence, rel=1e-12)


def test_soft_clipped_value():
    mixed = [0.75 * min(q, v) + 0.25 * max(q, v) for q, v in columns(Q, V)]
    by_hand = [max(mixed[start : start + 4]) for start in (0, 4, 8)]
    assert soft_clipped_value((Q, V), 0.75, 4)[:, 0].tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("cls", [BNIQL, BNAWAC])
def test_density_of_the_gaussian(cls):
    model = make(cls)
    actor, batch = model.actor, random_batch(model)
    with th.no_grad():
        actor.log_std += th.tensor([0.3, -1.0])
        std = actor.bounded_log_std.exp()
        expected = th.distributions.Normal(actor(batch.observations), std).log_prob(batch.actions).sum(dim=1, keepdim=True)
        np.testing.assert_allclose(actor.log_prob_in(batch.observations, batch.actions), expected, rtol=1e-5)
        assert actor(batch.observations).abs().max() <= 1
        noise = th.randn(32, 2)
        drawn = actor.sampled_in(batch.observations, noise)
        np.testing.assert_allclose(drawn, (actor(batch.observations) + std * noise).clamp(-1, 1))
    limits = {BNIQL: (-5, 0, 2), BNAWAC: (-6, -3, 0)}[cls]
    for log_std, bounded in zip((-100.0, 0.0, 100.0), limits, strict=True):
        actor.log_std.data.fill_(log_std)
        np.testing.assert_allclose(actor.bounded_log_std.detach(), [bounded] * 2, atol=1e-6)


# --- Steps, by hand


class Double(StandardizingExtractor):
    def forward(self, observations):
        return super().forward(observations.double())


class ByHand:
    """
    A step written out with PyTorch's own batch norm: a network in training mode normalises with the minibatch and updates its
    running statistics; a copy of it does the former only.
    """

    def __init__(self, model):
        self.policy = with_modes(copy.deepcopy(model.policy))

    @staticmethod
    def copied(network):
        network = copy.deepcopy(network)
        network.train()
        return network

    @staticmethod
    def least(values):
        return th.min(*values)

    def minimise(self, network, loss):
        parameters = list(network.parameters())
        for param, grad in zip(parameters, th.autograd.grad(loss, parameters), strict=True):
            param.grad = grad
        network.optimizer.step()

    def fit_critics(self, batch, target):
        critic = self.policy.critic
        critic.train()
        first, second = critic(batch.observations, batch.actions)
        self.minimise(critic, (first - target).square().mean() + (second - target).square().mean())

    def follow(self, names=("critic",)):
        for name in names:
            online, target = getattr(self.policy, name), getattr(self.policy, f"{name}_target")
            for ours, theirs in zip(target.parameters(), online.parameters(), strict=True):
                ours.data = TAU * theirs.data + (1 - TAU) * ours.data
            for ours, theirs in zip(target.buffers(), online.buffers(), strict=True):
                ours.data.copy_(theirs)

    def log_prob(self, batch):
        actor = self.policy.actor
        actor.train()
        means = actor(batch.observations)
        std = actor.bounded_log_std.exp()
        return means, std, th.distributions.Normal(means, std).log_prob(batch.actions).sum(dim=1, keepdim=True)

    def iql(self, batch, noise):
        policy = self.policy
        s, a = batch.observations, batch.actions
        with th.no_grad():
            q = self.least(self.copied(policy.critic_target)(s, a))
        policy.value.train()
        u = q - policy.value(s)
        self.minimise(policy.value, ((0.7 - (u < 0).double()).abs() * u.square()).mean())
        with th.no_grad():
            advantage = q - self.copied(policy.value)(s)
            next_value = self.copied(policy.value)(batch.next_observations)
        _, _, log_prob = self.log_prob(batch)
        self.minimise(policy.actor, -((3.0 * advantage).exp().clamp(max=1.5) * log_prob).mean())
        self.fit_critics(batch, batch.rewards + GAMMA * (1 - batch.dones) * next_value)
        self.follow()

    def td3_bc(self, batch, noise):
        policy = self.policy
        with th.no_grad():
            next_actions = (self.copied(policy.actor_target)(batch.next_observations) + noise).clamp(-1, 1)
            q = self.least(self.copied(policy.critic_target)(batch.next_observations, next_actions))
        self.fit_critics(batch, batch.rewards + GAMMA * (1 - batch.dones) * q)
        policy.actor.train()
        policy.critic.eval()
        actions = policy.actor(batch.observations)
        q = policy.critic(batch.observations, actions)[0]
        factor = 2.5 / q.detach().abs().mean()
        self.minimise(policy.actor, -factor * q.mean() + (actions - batch.actions).square().mean())
        self.follow(("actor", "critic"))

    def awac(self, batch, noise):
        policy = self.policy
        with th.no_grad():
            means = self.copied(policy.actor)(batch.next_observations)
            next_actions = (means + policy.actor.bounded_log_std.exp() * noise[0]).clamp(-1, 1)
            q = self.least(self.copied(policy.critic_target)(batch.next_observations, next_actions))
        self.fit_critics(batch, batch.rewards + GAMMA * (1 - batch.dones) * q)
        means, std, log_prob = self.log_prob(batch)
        policy.critic.eval()
        with th.no_grad():
            own = (means + std * noise[1]).clamp(-1, 1)
            advantage = self.least(policy.critic(batch.observations, batch.actions)) - self.least(
                policy.critic(batch.observations, own)
            )
            weights = (advantage / 2).exp()
            weights = len(weights) * weights / weights.sum()
        self.minimise(policy.actor, -(weights * log_prob).mean())
        self.follow()

    def bcq(self, batch, noise):
        policy, size = self.policy, len(batch.actions)

        def generated(states, latents):
            policy.vae.eval()
            return policy.vae.decoder(th.cat([policy.vae.features(states), latents.clamp(-0.5, 0.5)], dim=1))

        def perturbed(actor, states, actions):
            change = actor.mu(th.cat([actor.features(states), actions], dim=1))
            return (actions + 0.05 * change).clamp(-1, 1)

        policy.vae.train()
        features = policy.vae.features(batch.observations)
        hidden = policy.vae.encoder(th.cat([features, batch.actions], dim=1))
        mean, std = policy.vae.mean(hidden), policy.vae.log_std(hidden).clamp(-4, 15).exp()
        decoded = policy.vae.decoder(th.cat([features, mean + std * noise[:size]], dim=1))
        divergence = th.distributions.kl_divergence(th.distributions.Normal(mean, std), th.distributions.Normal(0.0, 1.0))
        self.minimise(policy.vae, (decoded - batch.actions).square().mean() + 0.5 * divergence.mean())

        with th.no_grad():
            states = th.stack([batch.next_observations] * 10, dim=1).flatten(0, 1)
            actions = perturbed(self.copied(policy.actor_target), states, generated(states, noise[size:-size]))
            q1, q2 = self.copied(policy.critic_target)(states, actions)
            q = (0.75 * th.min(q1, q2) + 0.25 * th.max(q1, q2)).reshape(size, 10).max(dim=1, keepdim=True).values
        self.fit_critics(batch, batch.rewards + GAMMA * (1 - batch.dones) * q)
        with th.no_grad():
            actions = generated(batch.observations, noise[-size:])
        policy.actor.train()
        policy.critic.eval()
        actions = perturbed(policy.actor, batch.observations, actions)
        self.minimise(policy.actor, -policy.critic(batch.observations, actions)[0].mean())
        self.follow(("actor", "critic"))


STEPS = {BNIQL: ByHand.iql, BNTD3BC: ByHand.td3_bc, BNAWAC: ByHand.awac, BNBCQ: ByHand.bcq}


def after_steps(cls, normalization, n_steps=3):
    """The policy after some steps, and by hand."""
    kwargs = dict(weight_limit=1.5) if cls is BNIQL else dict(policy_delay=1) if cls is BNTD3BC else {}
    # A larger eps: where a gradient is 0 but for rounding, as before batch norm, Adam would make a step of it
    optimizer_kwargs = dict(eps=1e-3, weight_decay=1e-4 if cls is BNAWAC else 0.0)
    policy_kwargs = dict(normalization=normalization, features_extractor_class=Double, optimizer_kwargs=optimizer_kwargs)
    model = make(cls, gamma=GAMMA, tau=TAU, policy_kwargs=policy_kwargs, learning_rate=1e-2, **kwargs)
    model.policy.double()
    for network in (model.actor, model.critic):  # the rates are set by train, which this leaves out
        for group in network.optimizer.param_groups:
            group["lr"] = 1e-2
    by_hand = ByHand(model)
    for seed in range(n_steps):
        batch = as_double(random_batch(model, seed=seed))
        th.manual_seed(seed)
        noise = model._step_noise(batch)
        model._defined_step(batch, True, noise)
        STEPS[cls](by_hand, batch, noise)
    return model.policy.state_dict(), by_hand.policy.state_dict()


def largest_difference(states):
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
@pytest.mark.parametrize("cls", ALL)
def test_steps_are_those_by_hand(cls, normalization):
    assert largest_difference(after_steps(cls, normalization)) < 1e-9


def swapped(errors, expectile):
    return expectile_loss(errors, 1 - expectile)


PLANTED = {
    "the expectile of small Q": (BNIQL, iql_step, "expectile_loss", swapped),
    "beta divides": (BNIQL, iql_step, "iql_weights", lambda a, beta, limit: iql_weights(a, 1 / beta, limit)),
    "no limit": (BNIQL, iql_step, "iql_weights", lambda a, beta, limit: iql_weights(a, beta, 1e9)),
    "IQL has no targets": (BNIQL, iql_step, "move_critic_target", lambda *_: None),
    "the largest Q": (BNIQL, iql_step, "smallest", lambda q: th.cat(q, dim=1).amax(dim=1, keepdim=True)),
    "an end is none": (BNIQL, iql_step, "discounted", lambda batch, gamma, v: batch.rewards + gamma * v),
    "no weights": (BNIQL, iql_step, "weighted_regression_loss", lambda log_prob, w: -log_prob.mean()),
    "no imitation": (BNTD3BC, td3_bc, "td3_bc_loss", lambda q, mu, a, alpha: (-q.mean(), q.mean().detach())),
    "alpha is lambda": (
        BNTD3BC,
        td3_bc,
        "td3_bc_loss",
        lambda q, mu, a, alpha: (-alpha * q.mean() + (mu - a).square().mean(), q.mean().detach()),
    ),
    "beta multiplies": (BNAWAC, awac_step, "awac_weights", lambda a, beta, *rest: awac_weights(a, 1 / beta, *rest)),
    "not a softmax": (BNAWAC, awac_step, "awac_weights", lambda a, beta, limit, _: awac_weights(a, beta, limit, "exp")),
    "the smallest Q alone": (BNBCQ, bcq_step, "soft_clipped_value", lambda q, lmbda, n: soft_clipped_value(q, 1.0, n)),
    "no best action": (
        BNBCQ,
        bcq_step,
        "soft_clipped_value",
        lambda q, lmbda, n: soft_clipped_value(q, lmbda, 1).reshape(-1, n).mean(dim=1, keepdim=True),
    ),
    "no divergence": (BNBCQ, bcq_step, "vae_loss", lambda decoded, actions, *_: (decoded - actions).square().mean()),
    "BCQ has no targets": (BNBCQ, bcq_step, "move_targets", lambda *_: None),
    "AWAC has no targets": (BNAWAC, awac_step, "move_critic_target", lambda *_: None),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_comparison_sees_planted_mistakes(name, monkeypatch):
    cls, module, function, mistake = PLANTED[name]
    monkeypatch.setattr(module, function, mistake)
    assert largest_difference(after_steps(cls, None)) > 1e-4


def test_the_actor_uses_the_new_v(monkeypatch):
    """Planted: without the step of V before it, the actor's step is another one."""
    monkeypatch.setattr(ByHand, "minimise", skipping_value(ByHand.minimise))
    ours, theirs = after_steps(BNIQL, None, n_steps=1)
    actors = [{name: value for name, value in state.items() if name.startswith("actor.mu")} for state in (ours, theirs)]
    assert largest_difference(actors) > 1e-4


def skipping_value(minimise):
    return lambda self, network, loss: None if network is self.policy.value else minimise(self, network, loss)
