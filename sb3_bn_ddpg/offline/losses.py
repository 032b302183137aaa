"""The losses of the offline algorithms, functions of tensors. Each is a mean over the minibatch."""

from typing import Literal

import torch as th
from torch.nn import functional as F

from sb3_bn_ddpg.critic_step.step import smallest

Weighting = Literal["exp", "softmax"]
"""How AWAC makes weights of advantages: exp(A / beta) below a limit, or the batch size times the softmax of A / beta."""


def expectile_loss(errors: th.Tensor, expectile: float) -> th.Tensor:
    """
    IQL's loss of the value function, mean(\\|expectile - 1[u < 0]\\| u^2) of errors u = Q(s, a) - V(s). With an expectile near
    1, V is near the largest Q of the data's actions.

    :param errors: Q(s, a) - V(s), of shape ``(batch_size, 1)``
    :param expectile: The expectile, in (0, 1): with 0.5 it is half the mean squared error
    :return: The loss, a scalar
    """
    weights = (expectile - (errors < 0).to(errors.dtype)).abs()
    return (weights * errors.square()).mean()


def iql_weights(advantages: th.Tensor, beta: float, limit: float) -> th.Tensor:
    """
    :param advantages: Q(s, a) - V(s), of shape ``(batch_size, 1)``
    :param beta: Inverse temperature, >= 0: with 0, IQL's actor clones the data's behaviour
    :param limit: Largest weight, > 0
    :return: The weights min(exp(beta A), limit), of the same shape
    """
    return (beta * advantages).exp().clamp(max=limit)


def awac_weights(advantages: th.Tensor, beta: float, limit: float, weighting: Weighting) -> th.Tensor:
    """
    :param advantages: Q(s, a) - Q(s, a~) with a~ of the policy, of shape ``(batch_size, 1)``
    :param beta: Temperature, > 0
    :param limit: Largest weight of ``"exp"``, > 0
    :param weighting: See :data:`Weighting`
    :return: The weights, of the same shape
    """
    if weighting == "exp":
        return (advantages / beta).exp().clamp(max=limit)
    return len(advantages) * th.softmax(advantages / beta, dim=0)


def weighted_regression_loss(log_prob: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    The loss -mean(w log pi(a|s)) of the data's actions: the policy imitates what has a large weight.

    :param log_prob: Logarithms of the probability densities of the data's actions, of shape ``(batch_size, 1)``
    :param weights: Their weights, without a gradient, of the same shape
    :return: The loss, a scalar
    """
    return -(weights * log_prob).mean()


def td3_bc_loss(
    q_values: th.Tensor, policy_actions: th.Tensor, actions: th.Tensor, alpha: float
) -> tuple[th.Tensor, th.Tensor]:
    """
    The loss -lambda mean(Q(s, mu(s))) + mean((mu(s) - a)^2) with lambda = alpha / mean(\\|Q(s, mu(s))\\|), which has no
    gradient.

    :param q_values: Q(s, mu(s)), of shape ``(batch_size, 1)``
    :param policy_actions: mu(s), of shape ``(batch_size, action_dim)``
    :param actions: The data's actions, of the same shape
    :param alpha: How much the value counts beside imitation, >= 0
    :return: The loss, a scalar, and its second term
    """
    bc_loss = F.mse_loss(policy_actions, actions)
    factor = alpha / q_values.abs().mean().detach()
    return -factor * q_values.mean() + bc_loss, bc_loss.detach()


def vae_loss(decoded: th.Tensor, actions: th.Tensor, mean: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """
    BCQ's loss of the generative model: mean squared error of the decoded actions, and half the mean over the latent entries of
    the Kullback-Leibler divergence of the encoder's Gaussian from the standard normal one.

    :param decoded: Decoded actions, of shape ``(batch_size, action_dim)``
    :param actions: The data's actions, of the same shape
    :param mean: Mean of the encoder's Gaussian, of shape ``(batch_size, latent_dim)``
    :param log_std: Logarithm of its standard deviation, of the same shape
    :return: The loss, a scalar
    """
    divergence = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean()
    return F.mse_loss(decoded, actions) + 0.5 * divergence


def soft_clipped_value(q_values: tuple[th.Tensor, ...], lmbda: float, n_actions: int) -> th.Tensor:
    """
    BCQ's value of a state: the largest over sampled actions of lambda min Q + (1 - lambda) max Q.

    :param q_values: Each critic's values of the sampled actions, those of a state after each other, of shape
        ``(batch_size * n_actions, 1)`` each
    :param lmbda: Weight of the smallest value, in [0, 1]
    :param n_actions: Number of actions sampled in each state
    :return: The values, of shape ``(batch_size, 1)``
    """
    largest = th.cat(q_values, dim=1).amax(dim=1, keepdim=True)
    mixed = lmbda * smallest(q_values) + (1 - lmbda) * largest
    return mixed.reshape(-1, n_actions).amax(dim=1, keepdim=True)
