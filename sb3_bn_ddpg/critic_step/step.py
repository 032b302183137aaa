"""
The critics' half of a gradient step, by autograd: TD target, loss of each critic, step of their optimizer. What the policy
does in the next states is handed over, so it serves any policy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_bn_ddpg.common.steps import Batch, concatenated, discounted
from sb3_bn_ddpg.networks.actor_critic import Networks, restore_norms
from sb3_bn_ddpg.networks.actors import BaseActor
from sb3_bn_ddpg.networks.categorical import expectation, projected
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics

Act = Callable[[BaseActor, Statistics, Any, bool], tuple[th.Tensor, th.Tensor | None]]
"""
What a policy does: of an actor, the statistics of its pass, observations or features, and whether they are features, the
actions, of shape ``(batch_size, action_dim)``, and what is taken from the value of their state, ``(batch_size, 1)``, or None.
"""


class CriticStep(NamedTuple):
    """What the critics' half of a step leaves for the actor's half, and reports."""

    features: th.Tensor | None
    """Features of the observations, without a gradient, if the critics' loss trains what extracts them for the actor too"""
    critic_loss: th.Tensor
    q_value: th.Tensor
    abs_q_value: th.Tensor
    td_target: th.Tensor

    @property
    def reported(self) -> dict[str, th.Tensor]:
        """What :class:`~sb3_bn_ddpg.common.steps.UpdateInfo` says of the critics, by name."""
        return {name: value for name, value in self._asdict().items() if name != "features"}


def critic_step(
    nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics, act: Act, factor: float = 1.0
) -> CriticStep:
    """
    Minimise the critics' loss, the sum of their mean squared errors; with atoms, of their cross-entropies.

    :param nets: The networks, with the optimizer of the critics
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param act: What the policy does in the next states
    :param factor: Of the squared errors: 1 in DDPG and TD3, 0.5 in SAC
    :return: What the actor's half needs, and what is reported
    """
    critic, use, features = nets.critic, statistics.critic_loss, None
    if statistics.target == "joint":
        outputs, target, features = joint_pass(nets, batch, gamma, statistics, act)
    else:
        target = td_target(nets, batch, gamma, statistics, act)
        # Normalises with the statistics of the replayed states s and updates the critics' running ones by them (default)
        if nets.actor.owns_features_extractor:
            outputs = critic.forward_with(use, batch.observations, batch.actions, part=critic.outputs)
        else:
            # The same in two parts, of which the first, with the statistics of the shared layers, serves the actor's loss too
            features = critic.forward_with(use, batch.observations, part=critic.features)
            outputs = critic.forward_with(use, features, batch.actions, part=critic.outputs_of)
    # Shared features are those of before this step: the convolutions are the most expensive part of a pass, and one step of
    # theirs changes little
    return fit(nets, outputs, target, None if features is None else features.detach(), factor)


def fit(
    nets: Networks,
    outputs: tuple[th.Tensor, ...],
    target: th.Tensor,
    features: th.Tensor | None = None,
    factor: float = 1.0,
) -> CriticStep:
    """
    One step of the critics' optimizer towards a target.

    :param nets: The networks, with the optimizer of the critics
    :param outputs: Each critic's Q-values, of shape ``(batch_size, 1)`` each; with atoms the logits of their probabilities,
        ``(batch_size, n_atoms)``
    :param target: The target, of the same shape, without a gradient; with atoms their probabilities
    :param features: Features for the actor's half, without a gradient
    :param factor: Of the squared errors
    :return: What the actor's half needs, and what is reported
    """
    atoms = nets.critic.atoms
    if atoms is None:
        loss, target_values = factor * th.stack([F.mse_loss(q, target) for q in outputs]).sum(), target
    else:
        loss = th.stack([F.cross_entropy(logits, target) for logits in outputs]).sum()
        target_values = expectation(target, atoms)
    nets.critic.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nets.critic.optimizer.step()
    restore_norms(nets.fixed_norm_critic_weights)
    values = th.cat([nets.critic.values_from(output) for output in outputs], dim=1).detach()
    return CriticStep(features, loss.detach(), values.mean(), values.abs().mean(), target_values.mean())


@th.no_grad()
def td_target(nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics, act: Act) -> th.Tensor:
    """
    The TD target y = r + gamma min Q'(s', a'). A true termination does not bootstrap; a time limit does. With atoms it is a
    distribution: see :func:`target_from`.

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param act: What the policy does in the next states
    :return: The targets, of the shape of a Q-network's outputs
    """
    assert statistics.target != "joint", "that has no pass of its own: see joint_pass"
    # Both normalise with the statistics of the next states s' and update nothing (default): the running statistics are
    # for "exploration or evaluation" (section 3), and those of the online network do not fit the targets' older weights
    actor, critic, next_obs, use = nets.actor_target, nets.critic_target, batch.next_observations, statistics.target
    if actor.features_extractor is critic.features_extractor:
        # Their owner's pass: under "..._update" it alone updates the statistics of shared layers
        owner: BaseActor | Critic = actor if actor.owns_features_extractor else critic
        features = owner.forward_with(use, next_obs, part=owner.features)
        next_actions, loss_of_value = act(actor, use, features, True)
        next_outputs = critic.forward_with(use, features, next_actions, part=critic.outputs_of)
    else:
        next_actions, loss_of_value = act(actor, use, next_obs, False)
        next_outputs = critic.forward_with(use, next_obs, next_actions, part=critic.outputs)
    return target_from(next_outputs, critic, batch, gamma, loss_of_value)


def joint_pass(
    nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics, act: Act
) -> tuple[tuple[th.Tensor, ...], th.Tensor, th.Tensor | None]:
    """
    Q(s, a) and the TD target y = r + gamma min Q(s', a') from one pass of the critics, which normalises states and next states
    with the statistics of both. Where the two are distributed differently, as where episodes end early, the statistics of each
    alone hide from the critic how they differ (`CrossQ <https://arxiv.org/abs/1902.05605>`_).

    Target networks, if there are any, make a second such pass, of which they keep no statistics, for Q'(s', a')
    (`Palenicek et al. <https://arxiv.org/abs/2506.03758>`__).

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param act: What the policy does in the next states
    :return: Each critic's outputs for s and a, and the targets, of the same shape; features of the states if the critics'
        loss trains what extracts them for both networks
    """
    actor, critic, use, n = nets.actor_target, nets.critic, statistics.critic_loss, len(batch.actions)
    target_critic = nets.critic_target
    all_obs = concatenated(batch.observations, batch.next_observations)
    # What the policy would do at s': the actor normalises with its running statistics and updates nothing. The critics
    # normalise with the statistics of s and s' together and update their running ones by them, once (default). The gradient
    # of the loss of Q(s, a) reaches s' through these statistics only.
    features = None
    if not nets.actor.owns_features_extractor:
        features = critic.forward_with(use, all_obs, part=critic.features)
    # The actor acts on the features of the critic whose pass they come from, if both have one features extractor
    shares_features = features is not None and actor.features_extractor is critic.features_extractor
    with th.no_grad():
        next_inputs = features[n:] if shares_features and features is not None else batch.next_observations
        next_actions, loss_of_value = act(actor, "running", next_inputs, shares_features)
    actions = th.cat([batch.actions, next_actions])
    if features is None:
        all_outputs = critic.forward_with(use, all_obs, actions, part=critic.outputs)
    else:
        all_outputs = critic.forward_with(use, features, actions, part=critic.outputs_of)
    outputs, next_outputs = zip(*(rows.split(n) for rows in all_outputs), strict=True)
    if target_critic is not critic:
        with th.no_grad():
            all_outputs = target_critic.forward_with("batch", all_obs, actions, part=target_critic.outputs)
            next_outputs = tuple(rows[n:] for rows in all_outputs)
    target = target_from(next_outputs, critic, batch, gamma, loss_of_value)
    return outputs, target, None if features is None else features[:n]


@th.no_grad()
def target_from(
    next_outputs: tuple[th.Tensor, ...], critic: Critic, batch: Batch, gamma: float, loss_of_value: th.Tensor | None
) -> th.Tensor:
    """
    r + gamma (min Q'(s', a') - the loss of value). With atoms, the distribution of that: in each next state, of the Q-network
    whose mean is smallest, the atoms moved and shrunk like a value, and projected onto the atoms again
    (`Palenicek et al. <https://arxiv.org/abs/2509.25174>`__).

    :param next_outputs: What each Q-network returned for s' and a'
    :param critic: Says how these are values
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param loss_of_value: What is taken from the value of the next states, of shape ``(batch_size, 1)``, or None
    :return: The targets, of the shape of a Q-network's outputs
    """
    atoms = critic.atoms
    if atoms is None:
        return discounted(batch, gamma, _less(smallest(next_outputs), loss_of_value))
    moved = discounted(batch, gamma, _less(atoms, loss_of_value))  # (batch_size, n_atoms)
    return projected(least_distribution(next_outputs, atoms), moved, atoms)


def least_distribution(logits: tuple[th.Tensor, ...], atoms: th.Tensor) -> th.Tensor:
    """
    :param logits: Of each Q-network, of shape ``(batch_size, n_atoms)``
    :param atoms: The atoms
    :return: In each row the probabilities of the Q-network with the smallest mean, the first of several
    """
    least, *others = (each.softmax(dim=1) for each in logits)
    for probabilities in others:
        least = th.where(expectation(probabilities, atoms) < expectation(least, atoms), probabilities, least)
    return least


def smallest(q_values: tuple[th.Tensor, ...]) -> th.Tensor:
    """
    :param q_values: Of each critic, of shape ``(batch_size, 1)``
    :return: In each row the smallest, of the same shape
    """
    return th.cat(q_values, dim=1).amin(dim=1, keepdim=True)


def _less(values: th.Tensor, loss_of_value: th.Tensor | None) -> th.Tensor:
    return values if loss_of_value is None else values - loss_of_value
