"""
Operations in PyTorch for learning from stored actions: losses of a policy that imitates them, and of a value function.
:mod:`sb3_bn_ddpg.fast.torch_operations` offers them with all others.
"""

import math

import torch as th

from sb3_bn_ddpg.networks.actors import FIXED_LOG_STD_MAX, FIXED_LOG_STD_MIN, SIGMOID_LOG_STD_MIN

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def expectile_error(q: th.Tensor, v: th.Tensor, expectile: float, reports: list[th.Tensor | None], place: int) -> th.Tensor:
    """
    The loss mean(\\|expectile - 1[u < 0]\\| u^2) of errors u = q - v.

    :param q: Targets, (n, 1)
    :param v: Values, likewise
    :param expectile: The expectile, in (0, 1)
    :param reports: Takes the loss and the mean of the values
    :param place: Where the first of these goes
    :return: Gradient of the values
    """
    error = q - v
    weighted = (expectile - (error < 0).to(error.dtype)).abs_().mul_(error)
    reports[place : place + 2] = [weighted * error, v]
    return weighted.mul_(-2 / len(v))


def advantage_weights(advantages: th.Tensor, beta: float, limit: float) -> th.Tensor:
    """
    :param advantages: (n, 1)
    :param beta: Inverse temperature, >= 0
    :param limit: Largest weight, > 0
    :return: The weights min(exp(beta A), limit)
    """
    return (beta * advantages).exp_().clamp_(max=limit)


def softmax_weights(advantages: th.Tensor, beta: float) -> th.Tensor:
    """
    :param advantages: (n, 1)
    :param beta: Inverse temperature, >= 0
    :return: The weights n softmax(beta A)
    """
    return th.softmax(beta * advantages, dim=0).mul_(len(advantages))


def clamped_log_std(log_std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param log_std: Logarithm of the standard deviation of IQL's actor, (action_dim,)
    :return: It within its bounds, and the derivative of that
    """
    clamped = log_std.clamp(FIXED_LOG_STD_MIN, FIXED_LOG_STD_MAX)
    return clamped, (clamped == log_std).to(log_std.dtype)


def sigmoid_log_std(log_std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param log_std: As of :func:`clamped_log_std`, of AWAC's actor
    :return: Likewise
    """
    share = th.sigmoid(-log_std)
    return SIGMOID_LOG_STD_MIN * share, -SIGMOID_LOG_STD_MIN * share * (1 - share)


def gaussian_actions(means: th.Tensor, log_std: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    :param means: (n, action_dim)
    :param log_std: Logarithm of the standard deviation, within its bounds, (action_dim,)
    :param noise: Standard normal noise, (n, action_dim)
    :return: The actions that it makes, clipped to [-1, 1]
    """
    return (log_std.exp() * noise).add_(means).clamp_(-1, 1)


def regression(
    means: th.Tensor,
    log_std: th.Tensor,
    slope: th.Tensor,
    log_std_grad: th.Tensor,
    actions: th.Tensor,
    weights: th.Tensor,
    reports: list[th.Tensor | None],
    place: int,
) -> th.Tensor:
    """
    The loss -mean(w log pi(a)) of a Gaussian that has the same standard deviation in each row, and is not squashed.

    :param means: Its means, (n, action_dim)
    :param log_std: Logarithm of its standard deviation, within its bounds, (action_dim,)
    :param slope: The derivative of that
    :param log_std_grad: Where the gradient of what is bounded goes
    :param actions: Actions, of the shape of the means
    :param weights: Their weights, (n, 1)
    :param reports: Takes the loss
    :param place: Where it goes
    :return: Gradient of the means
    """
    n, action_dim = means.shape
    inverse = th.exp(-log_std)
    distances = (actions - means).mul_(inverse)
    squares = distances.square()
    densities = squares.sum(dim=1, keepdim=True).mul_(0.5).add_(log_std.sum()).add_(action_dim * HALF_LOG_2_PI)
    reports[place] = weights * densities
    share = weights / -n
    th.sum(squares.sub_(1).mul_(share), dim=0, out=log_std_grad)
    log_std_grad.mul_(slope)
    return distances.mul_(inverse).mul_(share)


def imitation(
    action_grad: th.Tensor,
    policy_actions: th.Tensor,
    actions: th.Tensor,
    q: th.Tensor,
    alpha: float,
    reports: list[th.Tensor | None],
    place: int,
) -> th.Tensor:
    """
    The loss -lambda mean(Q) + mean((mu - a)^2), with lambda = alpha / mean(\\|Q\\|), which has no gradient.

    :param action_grad: Gradient of -mean(Q) with respect to mu, (n, action_dim), which is overwritten
    :param policy_actions: mu, of the same shape
    :param actions: The actions a, of the same shape
    :param q: Q(s, mu), (n, 1)
    :param alpha: How much the value counts, >= 0
    :param reports: Takes the loss and its second term
    :param place: Where the first of these goes
    :return: Gradient of mu
    """
    distances = policy_actions - actions
    factor = alpha / q.abs().mean()
    second = distances.square().mean(dim=1, keepdim=True)
    reports[place : place + 2] = [second - factor * q, second]
    return action_grad.mul_(factor).add_(distances, alpha=2 / distances.numel())
