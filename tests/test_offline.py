"""Offline algorithms: losses and steps are their formulas by hand, in float64; learning leaves the environment alone."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SpaceEnv, VectorEnv, as_double, random_batch, with_modes
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_bn_ddpg import BNAWAC, BNBCQ, BNIQL, BNTD3BC, CheckpointEvery, load_policy
from sb3_bn_ddpg.networks.layers import PaperCNN, StandardizingExtractor
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

ALL = [BNIQL, BNTD3BC, BNAWAC, BNBCQ]
GAMMA, TAU = 0.97, 0.1


def data(n=200, seed=0):
    """Random transitions, for the spaces of ``VectorEnv``."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(2, 3, size=(n + 1, 4))
    return dict(
        observations=observations[:-1],
        actions=rng.uniform(-1, 1, size=(n, 2)),
        rewards=rng.normal(size=n),
        next_observations=observations[1:],
        terminations=np.arange(n) % 50 == 49,
        truncations=np.arange(n) % 50 == 24,
    )


class Untouchable(VectorEnv):
    """Fails when anybody acts in it."""

    def reset(self, **kwargs):
        raise AssertionError("learning touched the environment")

    def step(self, action):
        raise AssertionError("learning touched the environment")


def make(cls, env=None, dataset=None, policy_kwargs=None, **kwargs):
    arguments = dict(batch_size=16, seed=0, device="cpu")
    return cls(
        "MlpPolicy",
        Untouchable() if env is None else env,
        data() if dataset is None else dataset,
        policy_kwargs=dict(net_arch=[16, 12]) | ({"vae_arch": [16]} if cls is BNBCQ else {}) | (policy_kwargs or {}),
        **(arguments | kwargs),
    )


def same_parameters(model, other):
    ours, theirs = model.policy.state_dict(), other.policy.state_dict()
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


# --- Losses, each number by number

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


# --- Learning


@pytest.mark.parametrize("cls", ALL)
def test_gradient_steps_are_counted_and_the_environment_is_left_alone(cls):
    model = make(cls).learn(7)
    assert (model.num_timesteps, model._n_updates) == (7, 7)
    model.learn(3, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (10, 10)
    assert model.learn(4).num_timesteps == 4


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("normalization", ["batch", "batch_renorm", "layer", "batch_layer"])
def test_normalisations_by_a_word(cls, normalization):
    model = make(cls, policy_kwargs=dict(normalization=normalization)).learn(4)
    networks = [model.actor, model.critic]
    if cls is BNIQL:
        networks.append(model.value)
    elif cls is BNBCQ and normalization != "batch_layer":  # its inputs are not normalised
        networks.append(model.vae)
    for network in networks:
        assert bool(network.norm_layers) == (normalization != "layer")
    assert make(cls).actor.norm_layers == ()


@pytest.mark.parametrize("cls", ALL)
def test_save_load_and_learn_on(cls, tmp_path):
    model = make(cls, policy_kwargs=dict(normalization="batch")).learn(5)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_size < 200_000
    loaded = cls.load(tmp_path / "model", device="cpu")
    observation = np.ones(4, np.float32)
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))
    with pytest.raises(
        ValueError, match=rf"`dataset=None` is not allowed for learning: .*`{cls.__name__}.load\(path, dataset"
    ):
        loaded.learn(1)
    loaded = cls.load(tmp_path / "model", dataset=data(), device="cpu")
    for each in (model, loaded):
        each.set_random_seed(3)
        each.learn(5, reset_num_timesteps=False)
    assert same_parameters(model, loaded)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("env", [True, False])
def test_a_checkpoint_resumes_to_the_bit_without_the_dataset(cls, env, tmp_path):
    dataset = make(cls).replay_buffer
    kwargs = dict(dataset=dataset, policy_kwargs=dict(net_arch=[16, 12], normalization="batch"), device="cpu", batch_size=16)
    model = cls("MlpPolicy", Untouchable() if env else None, **kwargs)
    model.learn(9, callback=CheckpointEvery(5, tmp_path / "checkpoint"), schedule_timesteps=30)
    th.manual_seed(1)
    model.save_checkpoint(tmp_path / "checkpoint")
    model.learn(8, reset_num_timesteps=False, schedule_timesteps=30)
    resumed = cls.resume(tmp_path / "checkpoint", Untouchable() if env else None, device="cpu")
    assert resumed.num_timesteps == 9
    resumed.learn(8, reset_num_timesteps=False, schedule_timesteps=30)
    assert same_parameters(model, resumed)


def test_checkpoints_are_written_between_steps(tmp_path):
    class Look(BaseCallback):
        seen = ()

        def _on_step(self):
            if (tmp_path / "checkpoint").exists() and not self.seen:
                self.seen = (self.num_timesteps,)
            return self.num_timesteps < 8

    look = Look()
    make(BNIQL).learn(20, callback=[CheckpointEvery(5, tmp_path / "checkpoint"), look])
    assert look.seen == (6,)
    assert BNIQL.resume(tmp_path / "checkpoint", Untouchable(), device="cpu").num_timesteps == 8


def test_callbacks_log_and_progress_bar(tmp_path):
    pytest.importorskip("tensorboard")
    evaluation = EvalCallback(VectorEnv(), n_eval_episodes=1, eval_freq=4, log_path=str(tmp_path), verbose=0)
    model = make(BNIQL, tensorboard_log=str(tmp_path), batch_size=8)
    model.learn(9, callback=evaluation, log_interval=3, progress_bar=True)
    assert evaluation.evaluations_timesteps == [4, 8]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "BNIQL_1")).Reload()
    assert [event.step for event in events.Scalars("train/value_loss")] == [3, 4, 6, 8, 9]
    assert {"train/advantage", "train/weight", "train/critic_loss", "time/fps", "eval/mean_reward"} <= {
        *events.Tags()["scalars"]
    }


def test_schedules_count_gradient_steps():
    rates = []

    class Rates(BaseCallback):
        def _on_step(self):
            rates.append((self.model.actor.optimizer.param_groups[0]["lr"], self.model.value.optimizer.param_groups[0]["lr"]))
            return True

    make(BNIQL, learning_rate=1e-3).learn(4, callback=Rates())
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates == [(pytest.approx(rate), 1e-3) for rate in cosine]
    rates.clear()
    make(BNIQL, learning_rate=lambda left: left, actor_learning_rate_decay=None, critic_learning_rate=0.5).learn(2, Rates())
    assert rates == [(1.0, 0.5), (0.5, 0.5)]


def test_no_environment_to_act_in():
    model = BNIQL("MlpPolicy", None, make(BNIQL).replay_buffer, device="cpu", batch_size=8).learn(2)
    with pytest.raises(RuntimeError, match="The model has no environment to act in"):
        model.get_env().reset()


def test_observations_are_standardised_by_the_dataset(tmp_path):
    dataset = data()
    model = make(BNTD3BC, dataset=dataset)
    for network in (model.actor, model.critic, model.actor_target, model.critic_target):
        features = network.features(th.as_tensor(dataset["observations"], dtype=th.float32)).detach().numpy()
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-3)
    model.save(tmp_path / "model")
    other = BNTD3BC.load(tmp_path / "model", dataset=data(seed=1), device="cpu")
    assert other.actor.features_extractor.mean.equal(model.actor.features_extractor.mean)  # what its networks know
    assert make(BNTD3BC, normalize_observations=False).actor.features_extractor.mean.eq(0).all()


@pytest.mark.parametrize(
    ("space", "normalized"),
    [
        (spaces.Box(-np.inf, np.inf, (4,)), True),
        (spaces.Discrete(5), False),
        (spaces.MultiDiscrete([3, 4]), False),
        (spaces.Box(0, 255, (1, 8, 8), np.uint8), False),
    ],
)
def test_what_is_standardised_is_what_the_networks_get(space, normalized):
    """Not what the dataset holds: VecNormalize and SB3's preprocessing come between."""
    space.seed(0)
    observations = np.stack([100 + np.float32(5) * space.sample() if normalized else space.sample() for _ in range(5001)])
    dataset = data(5000) | dict(observations=observations[:-1], next_observations=observations[1:])
    env = SpaceEnv(space, spaces.Box(-1, 1, (2,)))
    if normalized:
        env = VecNormalize(DummyVecEnv([lambda: SpaceEnv(space, spaces.Box(-1, 1, (2,)))]), norm_reward=False)
        env.obs_rms.update(observations * 0.9)
        env.training = False
    model = make(BNTD3BC, env=env, dataset=dataset)
    obs = th.as_tensor(env.normalize_obs(observations[:-1]) if normalized else observations[:-1])
    for network in (model.actor, model.critic_target):
        features = network.features(obs).detach().double().numpy()
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
        deviation = network.features_extractor.scale.numpy() - 1e-3
        np.testing.assert_allclose(features.std(axis=0), deviation / (deviation + 1e-3), atol=1e-4)
    assert model.learn(2).num_timesteps == 2


@pytest.mark.parametrize("cls", ALL)
def test_predicted_actions_are_in_the_space(cls):
    space = spaces.Box(np.array([-3.0, 1.0], np.float32), np.array([0.0, 4.0], np.float32))
    env = VectorEnv()
    env.action_space = space
    model = make(cls, env=env, dataset=data() | dict(actions=np.full((200, 2), [-1.0, 2.0])))
    for deterministic in (True, False):
        actions, _ = model.predict(
            np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), deterministic=deterministic
        )
        assert (actions >= space.low).all()
        assert (actions <= space.high).all()


BAD = [
    (BNIQL, "expectile", 0.0),
    (BNIQL, "expectile", 1.0),
    (BNIQL, "beta", -1.0),
    (BNIQL, "weight_limit", 0.0),
    (BNIQL, "actor_learning_rate_decay", "linear"),
    (BNIQL, "reward_scaling", 0),
    (BNIQL, "target_statistics", "joint"),
    (BNTD3BC, "alpha", -0.1),
    (BNTD3BC, "normalize_observations", 2),
    (BNTD3BC, "policy_delay", 0),
    (BNTD3BC, "target_policy_noise", -1.0),
    (BNBCQ, "lmbda", 1.1),
    (BNBCQ, "n_target_actions", 0),
    (BNAWAC, "beta", 0.0),
    (BNAWAC, "weighting", "sum"),
]


@pytest.mark.parametrize(("cls", "name", "value"), BAD, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_arguments(cls, name, value):
    with pytest.raises(ValueError, match=f"`{name}={value!r}` is not allowed"):
        make(cls, **{name: value})


def test_bcq_chooses_the_best_of_its_samples():
    model = make(BNBCQ, policy_kwargs=dict(n_sampled_actions=7)).learn(3)
    policy, observation = model.policy, th.randn(1, 4)
    actions = [policy.actor.perturbed_in(observation, policy.vae.generated_in(observation, z[None])) for z in policy.latents]
    values = [policy.critic.q1_forward(observation, action).item() for action in actions]
    chosen, _ = model.predict(observation.numpy(), deterministic=True)
    np.testing.assert_allclose(chosen, actions[np.argmax(values)].detach(), atol=1e-6)
    assert not np.array_equal(*(model.predict(observation.numpy())[0] for _ in range(2)))
    with pytest.raises(ValueError, match="`phi=-1` is not allowed"):
        make(BNBCQ, policy_kwargs=dict(phi=-1))


@pytest.mark.parametrize("cls", ALL)
def test_onnx_holds_the_deterministic_policy(cls, tmp_path):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    model = make(cls, policy_kwargs=dict(normalization="batch")).learn(3)
    model.export_onnx(tmp_path / "policy.onnx")
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    (actions,) = session.run(None, {"observation": observations})
    np.testing.assert_allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-5)


@pytest.mark.parametrize("normalization", ["batch", "layer", None])
@pytest.mark.parametrize("cls", ALL)
def test_exported_policies_act_as_the_model(cls, normalization, tmp_path):
    """With TD3+BC's standardisation; BCQ's policy, three networks and a choice, is refused."""
    pytest.importorskip("safetensors")
    model = make(cls, policy_kwargs=dict(normalization=normalization)).learn(3)
    path = tmp_path / "policy"
    if cls is BNBCQ:
        with pytest.raises(
            ValueError, match=r"actor=.*` cannot be exported: only Actor, .* can, which need no code in the file"
        ):
            model.export_policy(path)
        return
    model.export_policy(path)
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        load_policy(path).predict(observations)[0], model.predict(observations, deterministic=True)[0]
    )


@pytest.mark.parametrize("cls", ALL)
def test_images(cls, tmp_path):
    """Each network has convolutions of its own, which learn; a saved model acts the same."""
    space = spaces.Box(0, 255, (36, 40, 1), np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (201, *space.shape), np.uint8)
    env = Untouchable()
    env.observation_space = space
    dataset = data() | dict(observations=images[:-1], next_observations=images[1:])
    arguments = dict(batch_size=8, device="cpu", policy_kwargs=dict(normalization="batch"))
    model = cls("CnnPolicy", env, dataset, **arguments)
    networks = [model.actor, model.critic, *([model.value] if cls is BNIQL else [model.vae] if cls is BNBCQ else [])]
    assert len({*map(id, networks)}) == len({id(network.features_extractor) for network in networks})
    before = [copy.deepcopy(network.features_extractor) for network in networks]
    model.learn(3)
    for network, extractor in zip(networks, before, strict=True):
        assert type(extractor) is PaperCNN
        assert not extractor.cnn[0].weight.equal(network.features_extractor.cnn[0].weight)
    model.save(tmp_path / "model")
    action, _ = model.predict(images[0], deterministic=True)
    loaded = cls.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(images[0], deterministic=True)[0], action)


def test_bad_environments_and_calls():
    with pytest.raises(ValueError, match="`env` with 2 environments is not allowed: it must be a single one"):
        make(BNIQL, env=DummyVecEnv([VectorEnv, VectorEnv]))
    with pytest.raises(ValueError, match="`share_features_extractor=True` is not allowed"):
        make(BNIQL, policy_kwargs=dict(share_features_extractor=True))
    with pytest.raises(ValueError, match="`log_interval=0` is not allowed"):
        make(BNIQL).learn(3, log_interval=0)
    with pytest.raises(ValueError, match="`batch_size=1` is not allowed: it must be an integer >= 2 with batch norm"):
        make(BNIQL, batch_size=1, policy_kwargs=dict(normalization="batch"))


# --- It learns


class PointMass(gym.Env):
    """A point on a line that is to be held at 0; episodes of 30 steps, cut off."""

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.speed, self.steps = self.np_random.uniform(-2, 2), 0.0, 0
        return np.array([self.place, self.speed], np.float32), {}

    def step(self, action):
        self.speed += 0.3 * float(action[0])
        self.place += 0.3 * self.speed
        self.steps += 1
        return np.array([self.place, self.speed], np.float32), -(self.place**2), False, self.steps >= 30, {}


def controller(observation):
    return np.clip([-1.5 * observation[0] - 1.5 * observation[1]], -1, 1)


def rollouts(policies, n_episodes=60, seed=0):
    """Transitions of policies that take turns, and the return of each episode."""
    env, rows, returns = PointMass(), [], []
    env.reset(seed=seed)
    for episode in range(n_episodes):
        observation, _ = env.reset()
        policy, done, total = policies[episode % len(policies)], False, 0.0
        while not done:
            action = np.asarray(policy(observation), np.float32)
            following, reward, _, done, _ = env.step(action)
            rows.append((observation, action, reward, following, False, done))
            observation, total = following, total + reward
        returns.append(total)
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}, np.array(returns)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("cls", ALL)
def test_it_acts_better_than_the_data(cls, normalization):
    rng = np.random.default_rng(0)
    dataset, returns = rollouts([lambda _: rng.uniform(-1, 1, 1), controller])
    kwargs = dict(batch_size=128) if cls is BNAWAC else {}
    policy_kwargs = dict(net_arch=[64, 64], normalization=normalization)
    model = make(
        cls,
        env=PointMass(),
        dataset=dataset,
        policy_kwargs=policy_kwargs,
        learning_rate=1e-3,
        **({"batch_size": 128} | kwargs),
    )
    model.learn(1_500)
    _, learned = rollouts([lambda observation: model.predict(observation, deterministic=True)[0]], n_episodes=12, seed=1)
    good, bad = returns[1::2].mean(), returns[::2].mean()
    assert learned.mean() > returns.mean() + 0.5 * (good - returns.mean()), (learned.mean(), good, bad)
