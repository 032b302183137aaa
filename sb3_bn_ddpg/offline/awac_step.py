"""
One gradient step of AWAC by autograd (`Nair et al. <https://arxiv.org/abs/2006.09359>`_, Algorithm 1): critics of the policy,
then the actor with the new critics, then the targets.
"""

from typing import Any

import torch as th

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.critic_step.step import Act, critic_step, smallest
from sb3_bn_ddpg.networks.actor_critic import Networks, descend, move_critic_target
from sb3_bn_ddpg.networks.actors import BaseActor, FixedStdActor
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics
from sb3_bn_ddpg.offline.losses import Weighting, awac_weights, weighted_regression_loss


def gradient_step(
    nets: Networks,
    batch: Batch,
    gamma: float,
    tau: float,
    statistics: PassStatistics,
    noise: th.Tensor,
    beta: float,
    weighting: Weighting,
    weight_limit: float,
) -> UpdateInfo:
    """
    Minimise the critics' loss; fit the actor to the data's actions weighted by their advantage; move the target critics.

    :param nets: Actor, critics and target critics, with their optimizers
    :param batch: Transitions sampled from the dataset
    :param gamma: Discount factor
    :param tau: Polyak coefficient of the target critics, in [0, 1]
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param noise: Standard normal noise of shape ``(2, batch_size, action_dim)``: of the actions in the next states, and of
        those that the data's actions are compared with
    :param beta: Temperature of the weights, > 0
    :param weighting: See :data:`~sb3_bn_ddpg.offline.losses.Weighting`
    :param weight_limit: Largest weight of ``"exp"``, > 0
    :return: Losses and values of this step
    """
    assert isinstance(nets.actor, FixedStdActor)
    # The critics' half is SAC's without entropy: in the target, actor and target critics normalise with the statistics of the
    # next states and update nothing; in their loss, the critics with those of the states, which they update by (defaults)
    critics = critic_step(nets, batch, gamma, statistics, acting(noise[0]))

    # One pass of the actor gives the density of the data's actions and actions of its own; it normalises with the statistics
    # of the states and updates its running ones by them (default)
    log_prob, own_actions = nets.actor.forward_with(
        statistics.actor_loss_actor,
        batch.observations,
        batch.actions,
        noise[1],
        part=nets.actor.log_prob_and_sampled_in,
    )
    with th.no_grad():
        # Both passes of the critics normalise with their running statistics and update nothing (default): data's actions and
        # the policy's are judged by the same function
        values, own_values = (
            smallest(nets.critic.forward_with(statistics.actor_loss_critic, batch.observations, actions))
            for actions in (batch.actions, own_actions)
        )
        advantages = values - own_values
        weights = awac_weights(advantages, beta, weight_limit, weighting)
    loss = weighted_regression_loss(log_prob, weights)
    descend(nets, loss)

    move_critic_target(nets, tau, statistics)
    return UpdateInfo(loss.detach(), **critics.reported, advantage=advantages.mean(), weight=weights.mean())


def acting(noise: th.Tensor) -> Act:
    """
    :param noise: Standard normal noise, of shape ``(batch_size, action_dim)``
    :return: What the policy does in the next states, with this noise; nothing is taken from their value
    """

    def act(actor: BaseActor, use: Statistics, inputs: Any, are_features: bool) -> tuple[th.Tensor, None]:
        assert isinstance(actor, FixedStdActor)
        assert not are_features, "the offline algorithms share no features extractor"
        actions: th.Tensor = actor.forward_with(use, inputs, noise, part=actor.sampled_in)
        return actions, None

    return act
