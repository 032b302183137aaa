"""One gradient step of the paper's Algorithm 1, by autograd: the definition that all faster ways are held to."""

import torch as th
from torch.nn import functional as F

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo, concatenated, discounted
from sb3_bn_ddpg.networks.actor_critic import Networks, move_targets, restore_norms
from sb3_bn_ddpg.networks.actors import Actor
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.statistics import PassStatistics


def gradient_step(
    nets: Networks, batch: Batch, gamma: float, tau: float, statistics: PassStatistics, update_actor: bool = True
) -> UpdateInfo:
    """
    Minimise the critic's loss, ascend the deterministic policy gradient, move the target networks.

    :param nets: The networks, with the optimizers of actor and critic
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param tau: Polyak coefficient of the target networks, in [0, 1]
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param update_actor: Whether this step is more than the critic's: without it the actor, its running statistics and the
        target networks stay as they are, but for statistics that the target's own pass updates
    :return: Losses and values of this step
    """
    features = None
    if statistics.target == "joint":
        q_values, target, features = joint_pass(nets, batch, gamma, statistics)
    else:
        target = td_target(nets, batch, gamma, statistics)
        # Normalises with the statistics of the replayed states s and updates the critic's running ones by them (default)
        if nets.actor.owns_features_extractor:
            q_values = nets.critic.forward_with(statistics.critic_loss, batch.observations, batch.actions)[0]
        else:
            # The same in two parts, of which the first, with the statistics of the shared layers, serves the actor's loss too
            features = nets.critic.forward_with(statistics.critic_loss, batch.observations, part=nets.critic.features)
            q_values = nets.critic.forward_with(statistics.critic_loss, features, batch.actions, part=nets.critic.values_of)[0]
    critic_loss = F.mse_loss(q_values, target)
    nets.critic.optimizer.zero_grad()
    critic_loss.backward()  # type: ignore[no-untyped-call]
    nets.critic.optimizer.step()
    restore_norms(nets.fixed_norm_critic_weights)

    values = q_values.detach()
    reported = critic_loss.detach(), values.mean(), values.abs().mean(), target.mean()
    if not update_actor:
        return UpdateInfo(None, *reported)

    # Shared features are those of before the critic's step: the convolutions are the most expensive part of a pass, and one
    # step of theirs changes little
    loss = actor_loss(nets, batch, statistics, None if features is None else features.detach())
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
def td_target(nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics) -> th.Tensor:
    """
    The TD target y = r + gamma Q'(s', mu'(s')). A true termination does not bootstrap; a time limit does.

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :return: The targets, of shape ``(batch_size, 1)``
    """
    assert statistics.target != "joint", "that has no pass of its own: see joint_pass"
    # Both normalise with the statistics of the next states s' and update nothing (default): the running statistics are
    # for "exploration or evaluation" (section 3), and those of the online network do not fit the targets' older weights
    actor, critic, next_obs = nets.actor_target, nets.critic_target, batch.next_observations
    if nets.shares_features:
        # Their owner's pass: under "..._update" it alone updates the statistics of shared layers
        owner: Actor | Critic = actor if actor.owns_features_extractor else critic
        features = owner.forward_with(statistics.target, next_obs, part=owner.features)
        next_actions = actor.forward_with(statistics.target, features, part=actor.actions_of)
        next_q_values = critic.forward_with(statistics.target, features, next_actions, part=critic.values_of)[0]
    else:
        next_actions = actor.forward_with(statistics.target, next_obs)
        next_q_values = critic.forward_with(statistics.target, next_obs, next_actions)[0]
    return discounted(batch, gamma, next_q_values)


def joint_pass(
    nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Q(s, a) and the TD target y = r + gamma Q(s', mu(s')) from one pass of the critic, which normalises states and next states
    with the statistics of both. Where the two are distributed differently, as where episodes end early, the statistics of each
    alone hide from the critic how they differ (`CrossQ <https://arxiv.org/abs/1902.05605>`_).

    :param nets: The networks, without target networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :return: Q-values and targets, of shape ``(batch_size, 1)`` each; features of the states if the critic's loss trains what
        extracts them for both networks
    """
    actor, critic, use, n = nets.actor, nets.critic, statistics.critic_loss, len(batch.actions)
    all_obs = concatenated(batch.observations, batch.next_observations)
    # What the policy would do at s': the actor normalises with its running statistics and updates nothing. The critic
    # normalises with the statistics of s and s' together and updates its running ones by them, once (default). The gradient
    # of the loss of Q(s, a) reaches s' through these statistics only.
    if actor.owns_features_extractor:
        shared_features = None
        with th.no_grad():
            next_actions = actor.forward_with("running", batch.next_observations)
        all_q_values = critic.forward_with(use, all_obs, th.cat([batch.actions, next_actions]))[0]
    else:
        features = critic.forward_with(use, all_obs, part=critic.features)
        shared_features = features[:n]
        with th.no_grad():
            next_actions = actor.forward_with("running", features[n:], part=actor.actions_of)
        actions = th.cat([batch.actions, next_actions])
        all_q_values = critic.forward_with(use, features, actions, part=critic.values_of)[0]
    q_values, next_q_values = all_q_values.split(n)
    return q_values, discounted(batch, gamma, next_q_values.detach()), shared_features


def actor_loss(nets: Networks, batch: Batch, statistics: PassStatistics, features: th.Tensor | None = None) -> th.Tensor:
    """
    The loss -mean Q(s, mu(s)), whose negative gradient is the deterministic policy gradient (equation 6).

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param features: Features of the observations without a gradient, if the critic's loss trains what extracts them; their
        statistics are then those of its pass, and the choices for this loss concern the layers behind them
    :return: The loss, a scalar
    """
    actor, critic = nets.actor, nets.critic
    # The actor normalises with the statistics of this batch and updates its running ones by them (default), the critic
    # normalises with its running statistics and updates nothing (default)
    if features is None:
        actions = actor.forward_with(statistics.actor_loss_actor, batch.observations)
        q_values = critic.forward_with(statistics.actor_loss_critic, batch.observations, actions)[0]
    else:
        actions = actor.forward_with(statistics.actor_loss_actor, features, part=actor.actions_of)
        q_values = critic.forward_with(statistics.actor_loss_critic, features, actions, part=critic.values_of)[0]
    loss: th.Tensor = -q_values.mean()
    return loss
