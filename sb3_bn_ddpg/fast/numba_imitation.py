"""The operations of :mod:`sb3_bn_ddpg.fast.torch_imitation`, where they are described, compiled by Numba."""

import numpy as np

from sb3_bn_ddpg.fast.numba_compiler import compiled
from sb3_bn_ddpg.fast.torch_imitation import HALF_LOG_2_PI
from sb3_bn_ddpg.networks.actors import FIXED_LOG_STD_MAX, FIXED_LOG_STD_MIN, SIGMOID_LOG_STD_MIN


@compiled
def expectile_error(q, v, expectile, reports, place):  # type: ignore[no-untyped-def]
    n, dtype = v.shape[0], v.dtype.type
    grad = np.empty_like(v)
    above, below, slope = dtype(expectile), dtype(1 - expectile), dtype(-2.0 / n)
    loss, mean_v = 0.0, 0.0
    for i in range(n):
        error = q[i, 0] - v[i, 0]
        weighted = (below if error < 0 else above) * error
        grad[i, 0] = slope * weighted
        loss += weighted * error
        mean_v += v[i, 0]
    reports[place], reports[place + 1] = loss / n, mean_v / n
    return grad


@compiled
def advantage_weights(advantages, beta, limit):  # type: ignore[no-untyped-def]
    dtype = advantages.dtype.type
    weights = np.empty_like(advantages)
    for i in range(advantages.shape[0]):
        weight = np.exp(dtype(beta) * advantages[i, 0])
        # (the comparison leaves NaN what it is)
        weights[i, 0] = dtype(limit) if weight > dtype(limit) else weight
    return weights


@compiled
def softmax_weights(advantages, beta):  # type: ignore[no-untyped-def]
    n, dtype = advantages.shape[0], advantages.dtype.type
    weights = np.empty_like(advantages)
    largest, total = advantages[0, 0], 0.0
    for i in range(n):
        # (NaN is passed on)
        if advantages[i, 0] > largest or np.isnan(advantages[i, 0]):
            largest = advantages[i, 0]
    for i in range(n):
        weights[i, 0] = np.exp(dtype(beta) * (advantages[i, 0] - largest))
        total += weights[i, 0]
    share = dtype(n / total)
    for i in range(n):
        weights[i, 0] *= share
    return weights


@compiled
def clamped_log_std(log_std):  # type: ignore[no-untyped-def]
    dtype = log_std.dtype.type
    clamped, slope = np.empty_like(log_std), np.empty_like(log_std)
    low, high = dtype(FIXED_LOG_STD_MIN), dtype(FIXED_LOG_STD_MAX)
    for j in range(log_std.size):
        clamped[j], slope[j] = log_std[j], dtype(1)
        if log_std[j] < low:  # (the comparisons leave NaN what it is)
            clamped[j], slope[j] = low, dtype(0)
        elif log_std[j] > high:
            clamped[j], slope[j] = high, dtype(0)
    return clamped, slope


@compiled
def sigmoid_log_std(log_std):  # type: ignore[no-untyped-def]
    dtype = log_std.dtype.type
    bounded, slope = np.empty_like(log_std), np.empty_like(log_std)
    low, one = dtype(SIGMOID_LOG_STD_MIN), dtype(1)
    for j in range(log_std.size):
        share = one / (one + np.exp(log_std[j]))
        bounded[j], slope[j] = low * share, -low * share * (one - share)
    return bounded, slope


@compiled
def gaussian_actions(means, log_std, noise):  # type: ignore[no-untyped-def]
    one = means.dtype.type(1)
    actions = np.empty_like(means)
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            value = means[i, j] + np.exp(log_std[j]) * noise[i, j]
            # (the comparisons leave NaN what it is)
            actions[i, j] = one if value > one else -one if value < -one else value
    return actions


@compiled
def regression(means, log_std, slope, log_std_grad, actions, weights, reports, place):  # type: ignore[no-untyped-def]
    n, action_dim, dtype = means.shape[0], means.shape[1], means.dtype.type
    one = dtype(1)
    grad, inverse, slopes = np.empty_like(means), np.empty_like(log_std), np.zeros(action_dim)
    constant = action_dim * HALF_LOG_2_PI
    for j in range(action_dim):
        inverse[j] = np.exp(-log_std[j])
        constant += log_std[j]
    loss = 0.0
    for i in range(n):
        share, squares = weights[i, 0] / dtype(-n), 0.0
        for j in range(action_dim):
            distance = (actions[i, j] - means[i, j]) * inverse[j]
            grad[i, j] = distance * inverse[j] * share
            slopes[j] += (distance * distance - one) * share
            squares += distance * distance
        loss += weights[i, 0] * (0.5 * squares + constant)
    for j in range(action_dim):
        log_std_grad[j] = slope[j] * dtype(slopes[j])
    reports[place] = loss / n
    return grad


@compiled
def imitation(action_grad, policy_actions, actions, q, alpha, reports, place):  # type: ignore[no-untyped-def]
    n, action_dim, dtype = actions.shape[0], actions.shape[1], actions.dtype.type
    size, mean_q, squares = 0.0, 0.0, 0.0
    for i in range(n):
        size += abs(q[i, 0])
        mean_q += q[i, 0]
    factor = alpha / (size / n)
    share = dtype(2.0 / (n * action_dim))
    for i in range(n):
        for j in range(action_dim):
            distance = policy_actions[i, j] - actions[i, j]
            action_grad[i, j] = dtype(factor) * action_grad[i, j] + share * distance
            squares += distance * distance
    second = squares / (n * action_dim)
    reports[place], reports[place + 1] = second - factor * mean_q / n, second
    return action_grad
