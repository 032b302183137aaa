"""
One gradient step of a deterministic policy by autograd: the definition that all faster ways are held to.

With one critic it is DDPG's (`Lillicrap et al. <https://arxiv.org/abs/1509.02971>`_, Algorithm 1). TD3
(`Fujimoto et al. <https://arxiv.org/abs/1802.09477>`_) adds a second critic, noise on the target's actions, and updates the
actor less often than the critics.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch as th

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.critic_step.step import Act, critic_step, smallest
from sb3_bn_ddpg.networks.actor_critic import Networks, descend, move_targets
from sb3_bn_ddpg.networks.actors import BaseActor
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics

ActorLossCritics = Literal["first", "smallest"]
"""Whose value the actor's loss ascends: the first critic's, as in TD3, or in each state the smallest, as in SAC and CrossQ."""


ActorLoss = Callable[[Networks, Batch, PassStatistics, th.Tensor | None], tuple[th.Tensor, dict[str, th.Tensor]]]
"""
Of networks, minibatch, statistics and features (as for :func:`actor_loss`), the loss and what else
:class:`~sb3_bn_ddpg.common.steps.UpdateInfo` reports.
"""


def gradient_step(
    nets: Networks,
    batch: Batch,
    gamma: float,
    tau: float,
    statistics: PassStatistics,
    update_actor: bool = True,
    noise: th.Tensor | None = None,
    actor_loss_critics: ActorLossCritics = "first",
    loss_of: ActorLoss | None = None,
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
    :param loss_of: Another loss of the actor, as TD3+BC has (if None: :func:`actor_loss`)
    :return: Losses and values of this step
    """
    critics = critic_step(nets, batch, gamma, statistics, acting(noise))
    if not update_actor:
        return UpdateInfo(None, **critics.reported)

    reported: dict[str, th.Tensor] = {}
    if loss_of is None:
        loss = actor_loss(nets, batch, statistics, critics.features, actor_loss_critics)
    else:
        loss, reported = loss_of(nets, batch, statistics, critics.features)
    descend(nets, loss)

    if nets.actor_target is not nets.actor:
        move_targets(nets, tau, statistics)

    return UpdateInfo(loss.detach(), **critics.reported, **reported)


def acting(noise: th.Tensor | None) -> Act:
    """
    :param noise: What is added to the actions, of their shape (if None: nothing)
    :return: What the deterministic policy does in the next states, with this noise, clipped to [-1, 1]
    """

    def act(actor: BaseActor, use: Statistics, inputs: Any, are_features: bool) -> tuple[th.Tensor, None]:
        actions: th.Tensor = actor.forward_with(use, inputs, part=actor.actions_of if are_features else None)
        return actions if noise is None else smoothed(actions, noise), None

    return act


def clipped_noise(batch: Batch, sigma: float, limit: float) -> th.Tensor | None:
    """
    Draw the noise of TD3's target, as SB3's TD3 draws it, from the same generator.

    :param batch: Transitions sampled from the replay buffer
    :param sigma: Standard deviation of the noise, >= 0
    :param limit: Limit for its absolute value, >= 0
    :return: Noise of the shape of the actions, None if ``sigma`` is 0
    """
    if not sigma:
        return None
    return th.empty_like(batch.actions).normal_(0, sigma).clamp_(-limit, limit)


def smoothed(actions: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    :param actions: Actions, in [-1, 1]
    :param noise: What is added, of the same shape
    :return: Their sum, clipped to [-1, 1]
    """
    return (actions + noise).clamp(-1, 1)


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
    _, q_values = actions_and_values(nets, batch, statistics, features, critics)
    return -q_values.mean()


def actions_and_values(
    nets: Networks, batch: Batch, statistics: PassStatistics, features: th.Tensor | None, critics: ActorLossCritics
) -> tuple[th.Tensor, th.Tensor]:
    """
    What the policy does in the states of the minibatch, and what the critics think of it: the two passes of the actor's loss.

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param features: As for :func:`actor_loss`
    :param critics: Whose value it is
    :return: Actions of shape ``(batch_size, action_dim)`` and values of shape ``(batch_size, 1)``
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
    return actions, q_values if critics == "first" else smallest(q_values)
