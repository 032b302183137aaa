"""The operations of :mod:`sb3_bn_ddpg.fast.torch_imitation`, where they are described, compiled by Numba."""

import numpy as np

from sb3_bn_ddpg.fast.numba_compiler import compiled
from sb3_bn_ddpg.fast.torch_imitation import HALF_LOG_2_PI
from sb3_bn_ddpg.networks.actors import FIXED_LOG_STD_MAX, FIXED_LOG_STD_MIN


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
def regression(means, log_std, log_std_grad, actions, weights, reports, place):  # type: ignore[no-untyped-def]
    n, action_dim, dtype = means.shape[0], means.shape[1], means.dtype.type
    low, high, one = dtype(FIXED_LOG_STD_MIN), dtype(FIXED_LOG_STD_MAX), dtype(1)
    grad, inverse, slopes = np.empty_like(means), np.empty_like(log_std), np.zeros(action_dim)
    constant = action_dim * HALF_LOG_2_PI
    for j in range(action_dim):
        clamped = log_std[j]
        if clamped < low:  # (the comparisons leave NaN what it is)
            clamped = low
        elif clamped > high:
            clamped = high
        inverse[j] = np.exp(-clamped)
        constant += clamped
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
        is_clamped = log_std[j] < low or log_std[j] > high
        log_std_grad[j] = dtype(0) if is_clamped else dtype(slopes[j])
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
