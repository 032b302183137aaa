"""
One gradient step of SAC by autograd: the definition that all faster ways are held to
(`Haarnoja et al. <https://arxiv.org/abs/1812.05905>`_, with the entropy coefficient learned on its logarithm as in SB3).

With a joint pass, no target networks and a delayed actor it is CrossQ's (`Bhatt et al. <https://arxiv.org/abs/1902.05605>`_).
"""

from typing import Any

import torch as th

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.critic_step.step import Act, critic_step, smallest
from sb3_bn_ddpg.networks.actor_critic import Networks, descend, move_critic_target
from sb3_bn_ddpg.networks.actors import BaseActor, GaussianActor
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics

CRITIC_LOSS_FACTOR = 0.5
"""Of the sum of mean squared errors"""


def gradient_step(
    nets: Networks,
    batch: Batch,
    gamma: float,
    tau: float,
    statistics: PassStatistics,
    noise: th.Tensor,
    target_entropy: float,
    update_actor: bool = True,
    update_targets: bool = True,
) -> UpdateInfo:
    """
    Minimise the critics' loss and the actor's, alpha log pi - min Q; fit the entropy coefficient; move the target critics.

    :param nets: The networks and the entropy coefficient, with their optimizers
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param tau: Polyak coefficient of the target critics, in [0, 1]
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param noise: Standard normal noise of shape ``(2, batch_size, action_dim)``: of the actions in the next states, and of
        those in the actor's loss
    :param target_entropy: The entropy that the policy is to have on average
    :param update_actor: Whether to update the actor and the entropy coefficient
    :param update_targets: Whether to move the target critics
    :return: Losses and values of this step
    """
    assert nets.entropy is not None
    # Of before this step, for all its losses
    ent_coef = nets.entropy.coefficient
    critics = critic_step(nets, batch, gamma, statistics, acting(noise[0], ent_coef), CRITIC_LOSS_FACTOR)
    reported: dict[str, Any] = critics.reported | dict(actor_loss=None, ent_coef=ent_coef.squeeze())

    if update_actor:
        loss, log_prob = actor_loss(nets, batch, statistics, noise[1], ent_coef, critics.features)
        if nets.entropy.is_learned:
            ent_coef_loss = nets.entropy.loss(log_prob.detach(), target_entropy)
            nets.entropy.optimizer.zero_grad()
            ent_coef_loss.backward()  # type: ignore[no-untyped-call]
            nets.entropy.optimizer.step()
            reported["ent_coef_loss"] = ent_coef_loss.detach()
        descend(nets, loss)
        reported |= dict(actor_loss=loss.detach(), entropy=-log_prob.detach().mean())

    if update_targets and nets.critic_target is not nets.critic:
        move_critic_target(nets, tau, statistics)
    return UpdateInfo(**reported)


def acting(noise: th.Tensor, ent_coef: th.Tensor) -> Act:
    """
    :param noise: Standard normal noise, of shape ``(batch_size, action_dim)``
    :param ent_coef: The entropy coefficient
    :return: What the policy does in the next states, with this noise; alpha log pi is taken from their value
    """

    def act(actor: BaseActor, use: Statistics, inputs: Any, are_features: bool) -> tuple[th.Tensor, th.Tensor]:
        actions, log_prob = sampled(actor, use, inputs, are_features, noise)
        return actions, ent_coef * log_prob

    return act


def sampled(
    actor: BaseActor, use: Statistics, inputs: Any, are_features: bool, noise: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param actor: The actor
    :param use: Which batch-norm statistics its pass normalises with and updates
    :param inputs: Observations, or features
    :param are_features: Which of them
    :param noise: Standard normal noise, of shape ``(batch_size, action_dim)``
    :return: Actions, of the same shape, and the logarithms of their probability densities, ``(batch_size, 1)``
    """
    assert isinstance(actor, GaussianActor)
    part = actor.action_and_log_prob if are_features else actor.action_and_log_prob_in
    actions, log_prob = actor.forward_with(use, inputs, noise, part=part)
    return actions, log_prob


def actor_loss(
    nets: Networks,
    batch: Batch,
    statistics: PassStatistics,
    noise: th.Tensor,
    ent_coef: th.Tensor,
    features: th.Tensor | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    The loss mean(alpha log pi(a|s) - min Q(s, a)) of actions a that the policy draws.

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param noise: Standard normal noise, of shape ``(batch_size, action_dim)``
    :param ent_coef: The entropy coefficient
    :param features: Features of the observations without a gradient, if the critics' loss trains what extracts them; their
        statistics are then those of its pass, and the choices for this loss concern the layers behind them
    :return: The loss, a scalar, and the logarithms of the actions' probability densities, ``(batch_size, 1)``
    """
    actor, critic = nets.actor, nets.critic
    are_features = features is not None
    inputs = batch.observations if features is None else features
    # The actor normalises with the statistics of this batch and updates its running ones by them (default), the critics
    # normalise with their running statistics and update nothing (default)
    actions, log_prob = sampled(actor, statistics.actor_loss_actor, inputs, are_features, noise)
    part = critic.values_of if are_features else None
    q_values = critic.forward_with(statistics.actor_loss_critic, inputs, actions, part=part)
    return (ent_coef * log_prob - smallest(q_values)).mean(), log_prob
