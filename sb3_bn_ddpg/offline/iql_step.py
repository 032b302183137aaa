"""
One gradient step of IQL by autograd (`Kostrikov et al. <https://arxiv.org/abs/2110.06169>`_), in the order of its authors'
code: value function, actor, critics, targets. No pass asks for the value of an action that is not in the data.
"""

import torch as th

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo, discounted
from sb3_bn_ddpg.critic_step.step import fit, smallest
from sb3_bn_ddpg.networks.actor_critic import Networks, descend, move_critic_target
from sb3_bn_ddpg.networks.actors import FixedStdActor
from sb3_bn_ddpg.networks.critics import ValueNetwork
from sb3_bn_ddpg.networks.statistics import PassStatistics
from sb3_bn_ddpg.offline.losses import expectile_loss, iql_weights, weighted_regression_loss


def gradient_step(
    nets: Networks,
    batch: Batch,
    gamma: float,
    tau: float,
    statistics: PassStatistics,
    expectile: float,
    beta: float,
    weight_limit: float,
    update_actor: bool = True,
) -> UpdateInfo:
    """
    Fit V to an expectile of Q, the actor to the data's actions weighted by their advantage, Q to r + gamma V(s'); move the
    target critics.

    :param nets: Actor, critics, target critics and value function, with their optimizers
    :param batch: Transitions sampled from the dataset
    :param gamma: Discount factor
    :param tau: Polyak coefficient of the target critics, in [0, 1]
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param expectile: The expectile, in (0, 1)
    :param beta: Inverse temperature of the weights, >= 0
    :param weight_limit: Largest weight, > 0
    :param update_actor: Whether to update the actor and the target critics, too
    :return: Losses and values of this step
    """
    value = nets.auxiliary
    assert isinstance(nets.actor, FixedStdActor)
    assert isinstance(value, ValueNetwork)
    assert statistics.target != "joint"
    # Passes whose output is only a target (Q' and V at s, V at s') normalise with the statistics of their own minibatch and
    # update nothing (default): the target critics at s as the critics do in their loss, V at s as V does in its loss. The
    # three passes with a gradient normalise with those of s and update the running ones of their network (default)
    with th.no_grad():
        q_values = smallest(nets.critic_target.forward_with(statistics.target, batch.observations, batch.actions))

    v_values = value.forward_with(statistics.critic_loss, batch.observations)
    value_loss = expectile_loss(q_values - v_values, expectile)
    value.optimizer.zero_grad()
    value_loss.backward()  # type: ignore[no-untyped-call]
    value.optimizer.step()

    with th.no_grad():  # with the new V
        advantages = q_values - value.forward_with(statistics.target, batch.observations)
        weights = iql_weights(advantages, beta, weight_limit)
        target = discounted(batch, gamma, value.forward_with(statistics.target, batch.next_observations))
    loss = None
    if update_actor:
        log_prob = nets.actor.forward_with(
            statistics.actor_loss_actor, batch.observations, batch.actions, part=nets.actor.log_prob_in
        )
        loss = weighted_regression_loss(log_prob, weights)
        descend(nets, loss)

    critics = fit(nets, nets.critic.forward_with(statistics.critic_loss, batch.observations, batch.actions), target)
    if update_actor:
        move_critic_target(nets, tau, statistics)
    return UpdateInfo(
        None if loss is None else loss.detach(),
        **critics.reported,
        value_loss=value_loss.detach(),
        v_value=v_values.detach().mean(),
        advantage=advantages.mean(),
        weight=weights.mean(),
    )
