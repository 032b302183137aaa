"""
One gradient step of a deterministic policy by autograd: the definition that all faster ways are held to.

With one critic it is DDPG's (`Lillicrap et al. <https://arxiv.org/abs/1509.02971>`_, Algorithm 1). TD3
(`Fujimoto et al. <https://arxiv.org/abs/1802.09477>`_) adds a second critic, noise on the target's actions, and updates the
actor less often than the critics.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch as th
from torch.nn import functional as F

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo, concatenated, discounted
from sb3_bn_ddpg.networks.actor_critic import Networks, move_targets, restore_norms
from sb3_bn_ddpg.networks.actors import BaseActor
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.statistics import PassStatistics

ActorLossCritics = Literal["first", "smallest"]
"""Whose value the actor's loss ascends: the first critic's, as in TD3, or in each state the smallest, as in SAC and CrossQ."""


def gradient_step(
    nets: Networks,
    batch: Batch,
    gamma: float,
    tau: float,
    statistics: PassStatistics,
    update_actor: bool = True,
    noise: th.Tensor | None = None,
    actor_loss_critics: ActorLossCritics = "first",
) -> UpdateInfo:
    """
    Minimise the critics' loss, ascend the deterministic policy gradient, move the target networks.

    :param nets: The networks, with the optimizers of actor and critic
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param tau: Polyak coefficient of the target networks, in [0, 1]
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param update_actor: Whether this step is more than the critics': without it the actor, its running statistics and the
        target networks stay as they are, but for statistics that the target's own pass updates
    :param noise: What is added to the target's actions, of shape ``(batch_size, action_dim)`` (if None: nothing)
    :param actor_loss_critics: Whose value the actor's loss ascends
    :return: Losses and values of this step
    """
    features = None
    if statistics.target == "joint":
        q_values, target, features = joint_pass(nets, batch, gamma, statistics, noise)
    else:
        target = td_target(nets, batch, gamma, statistics, noise)
        # Normalises with the statistics of the replayed states s and updates the critics' running ones by them (default)
        if nets.actor.owns_features_extractor:
            q_values = nets.critic.forward_with(statistics.critic_loss, batch.observations, batch.actions)
        else:
            # The same in two parts, of which the first, with the statistics of the shared layers, serves the actor's loss too
            features = nets.critic.forward_with(statistics.critic_loss, batch.observations, part=nets.critic.features)
            q_values = nets.critic.forward_with(statistics.critic_loss, features, batch.actions, part=nets.critic.values_of)
    critic_loss = th.stack([F.mse_loss(q, target) for q in q_values]).sum()
    nets.critic.optimizer.zero_grad()
    critic_loss.backward()  # type: ignore[no-untyped-call]
    nets.critic.optimizer.step()
    restore_norms(nets.fixed_norm_critic_weights)

    values = th.cat(q_values, dim=1).detach()
    reported = critic_loss.detach(), values.mean(), values.abs().mean(), target.mean()
    if not update_actor:
        return UpdateInfo(None, *reported)

    # Shared features are those of before the critic's step: the convolutions are the most expensive part of a pass, and one
    # step of theirs changes little
    loss = actor_loss(nets, batch, statistics, None if features is None else features.detach(), actor_loss_critics)
    nets.actor.optimizer.zero_grad()
    # Only the actor's gradients: the critic's would be computed for nothing, and overwrite those of its own loss
    if trained := nets.actor_parameters:
        loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
    nets.actor.optimizer.step()
    restore_norms(nets.fixed_norm_actor_weights)

    if nets.actor_target is not nets.actor:
        move_targets(nets, tau, statistics)

    return UpdateInfo(loss.detach(), *reported)


@th.no_grad()
def td_target(
    nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics, noise: th.Tensor | None = None
) -> th.Tensor:
    """
    The TD target y = r + gamma min Q'(s', mu'(s') + noise). A true termination does not bootstrap; a time limit does.

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param noise: What is added to the actions (if None: nothing)
    :return: The targets, of shape ``(batch_size, 1)``
    """
    assert statistics.target != "joint", "that has no pass of its own: see joint_pass"
    # Both normalise with the statistics of the next states s' and update nothing (default): the running statistics are
    # for "exploration or evaluation" (section 3), and those of the online network do not fit the targets' older weights
    actor, critic, next_obs = nets.actor_target, nets.critic_target, batch.next_observations
    if nets.shares_features:
        # Their owner's pass: under "..._update" it alone updates the statistics of shared layers
        owner: BaseActor | Critic = actor if actor.owns_features_extractor else critic
        features = owner.forward_with(statistics.target, next_obs, part=owner.features)
        next_actions = smoothed(actor.forward_with(statistics.target, features, part=actor.actions_of), noise)
        next_q_values = critic.forward_with(statistics.target, features, next_actions, part=critic.values_of)
    else:
        next_actions = smoothed(actor.forward_with(statistics.target, next_obs), noise)
        next_q_values = critic.forward_with(statistics.target, next_obs, next_actions)
    return discounted(batch, gamma, smallest(next_q_values))


def smoothed(actions: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
    """
    :param actions: Actions, in [-1, 1]
    :param noise: What is added, of the same shape (if None: nothing)
    :return: Their sum, clipped to [-1, 1]
    """
    return actions if noise is None else (actions + noise).clamp(-1, 1)


def smallest(q_values: tuple[th.Tensor, ...]) -> th.Tensor:
    """
    :param q_values: Of each critic, of shape ``(batch_size, 1)``
    :return: In each row the smallest, of the same shape
    """
    return th.cat(q_values, dim=1).amin(dim=1, keepdim=True)


def joint_pass(
    nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics, noise: th.Tensor | None = None
) -> tuple[tuple[th.Tensor, ...], th.Tensor, th.Tensor | None]:
    """
    Q(s, a) and the TD target y = r + gamma min Q(s', mu(s') + noise) from one pass of the critics, which normalises states and
    next states with the statistics of both. Where the two are distributed differently, as where episodes end early, the
    statistics of each alone hide from the critic how they differ (`CrossQ <https://arxiv.org/abs/1902.05605>`_).

    :param nets: The networks, without target networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param noise: What is added to the next actions (if None: nothing)
    :return: Each critic's Q-values, and the targets, of shape ``(batch_size, 1)`` each; features of the states if the critic's
        loss trains what extracts them for both networks
    """
    actor, critic, use, n = nets.actor, nets.critic, statistics.critic_loss, len(batch.actions)
    all_obs = concatenated(batch.observations, batch.next_observations)
    # What the policy would do at s': the actor normalises with its running statistics and updates nothing. The critic
    # normalises with the statistics of s and s' together and updates its running ones by them, once (default). The gradient
    # of the loss of Q(s, a) reaches s' through these statistics only.
    if actor.owns_features_extractor:
        shared_features = None
        with th.no_grad():
            next_actions = smoothed(actor.forward_with("running", batch.next_observations), noise)
        all_q_values = critic.forward_with(use, all_obs, th.cat([batch.actions, next_actions]))
    else:
        features = critic.forward_with(use, all_obs, part=critic.features)
        shared_features = features[:n]
        with th.no_grad():
            next_actions = smoothed(actor.forward_with("running", features[n:], part=actor.actions_of), noise)
        actions = th.cat([batch.actions, next_actions])
        all_q_values = critic.forward_with(use, features, actions, part=critic.values_of)
    q_values, next_q_values = zip(*(values.split(n) for values in all_q_values), strict=True)
    return q_values, discounted(batch, gamma, smallest(next_q_values).detach()), shared_features


def actor_loss(
    nets: Networks,
    batch: Batch,
    statistics: PassStatistics,
    features: th.Tensor | None = None,
    critics: ActorLossCritics = "first",
) -> th.Tensor:
    """
    The loss -mean Q(s, mu(s)), whose negative gradient is the deterministic policy gradient (equation 6).

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param features: Features of the observations without a gradient, if the critic's loss trains what extracts them; their
        statistics are then those of its pass, and the choices for this loss concern the layers behind them
    :param critics: Whose value it ascends
    :return: The loss, a scalar
    """
    actor, critic = nets.actor, nets.critic
    # The actor normalises with the statistics of this batch and updates its running ones by them (default), the critics
    # normalise with their running statistics and update nothing (default); those whose value is not asked make no pass
    if features is None:
        actions = actor.forward_with(statistics.actor_loss_actor, batch.observations)
        inputs: tuple[Any, th.Tensor] = batch.observations, actions
        part: Callable[..., Any] = critic.q1_forward if critics == "first" else critic
    else:
        actions = actor.forward_with(statistics.actor_loss_actor, features, part=actor.actions_of)
        inputs = features, actions
        part = critic.first_value_of if critics == "first" else critic.values_of
    q_values = critic.forward_with(statistics.actor_loss_critic, *inputs, part=part)
    return -(q_values if critics == "first" else smallest(q_values)).mean()
