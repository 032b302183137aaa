"""
One gradient step of BCQ by autograd (`Fujimoto et al. <https://arxiv.org/abs/1812.02900>`_), in the order of its authors'
code: generative model, critics, perturbation, targets.
"""

import torch as th

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo, discounted
from sb3_bn_ddpg.critic_step.step import fit
from sb3_bn_ddpg.networks.actor_critic import Networks, descend, move_targets
from sb3_bn_ddpg.networks.generative import ActionVAE, PerturbationActor
from sb3_bn_ddpg.networks.statistics import PassStatistics
from sb3_bn_ddpg.offline.losses import soft_clipped_value, vae_loss


def gradient_step(
    nets: Networks,
    batch: Batch,
    gamma: float,
    tau: float,
    statistics: PassStatistics,
    noise: th.Tensor,
    lmbda: float,
) -> UpdateInfo:
    """
    Fit the generative model to the data's actions; the critics to the best of some generated ones in the next states; ascend
    the first critic's value by the perturbation; move the target networks.

    :param nets: Perturbation, critics, their targets and the generative model, with their optimizers
    :param batch: Transitions sampled from the dataset
    :param gamma: Discount factor
    :param tau: Polyak coefficient of the target networks, in [0, 1]
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param noise: Standard normal noise of shape ``((n + 2) batch_size, latent_dim)``: of the encoder, of n actions in each
        next state, of one action in each state
    :param lmbda: Weight of the smallest value, in [0, 1]
    :return: Losses and values of this step
    """
    actor, actor_target, vae = nets.actor, nets.actor_target, nets.auxiliary
    assert isinstance(actor, PerturbationActor)
    assert isinstance(actor_target, PerturbationActor)
    assert isinstance(vae, ActionVAE)
    assert statistics.target != "joint"
    size = len(batch.actions)
    of_encoder, of_next, of_actor = noise[:size], noise[size:-size], noise[-size:]
    n_actions = len(of_next) // size

    # As the actor's own pass: the statistics of the minibatch, which update the running ones (default)
    decoded, mean, log_std = vae.forward_with(statistics.actor_loss_actor, batch.observations, batch.actions, of_encoder)
    loss_of_vae = vae_loss(decoded, batch.actions, mean, log_std)
    vae.optimizer.zero_grad()
    loss_of_vae.backward()  # type: ignore[no-untyped-call]
    vae.optimizer.step()

    with th.no_grad():
        # Generating normalises with running statistics, here and when it acts. The target networks normalise with those of the
        # next states, each of them n times, with its n actions (default)
        next_obs = batch.next_observations.repeat_interleave(n_actions, dim=0)  # type: ignore[union-attr]  # no dictionary
        actions = vae.forward_with("running", next_obs, of_next, part=vae.generated_in)
        actions = actor_target.forward_with(statistics.target, next_obs, actions, part=actor_target.perturbed_in)
        q_values = nets.critic_target.forward_with(statistics.target, next_obs, actions)
        target = discounted(batch, gamma, soft_clipped_value(q_values, lmbda, n_actions))
    critics = fit(nets, nets.critic.forward_with(statistics.critic_loss, batch.observations, batch.actions), target)

    with th.no_grad():
        actions = vae.forward_with("running", batch.observations, of_actor, part=vae.generated_in)
    # The perturbation normalises with the statistics of this batch, which update its running ones; the critic with its running
    # ones, and updates nothing (defaults)
    perturbed = actor.forward_with(statistics.actor_loss_actor, batch.observations, actions, part=actor.perturbed_in)
    critic = nets.critic
    loss = -critic.forward_with(statistics.actor_loss_critic, batch.observations, perturbed, part=critic.q1_forward).mean()
    descend(nets, loss)

    move_targets(nets, tau, statistics)
    return UpdateInfo(loss.detach(), **critics.reported, vae_loss=loss_of_vae.detach())
