"""
The operations of a gradient step, compiled by Numba: the same ones as in :mod:`sb3_bn_ddpg.fast.torch_operations`, where they
are described, by the same names and arguments.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_bn_ddpg.fast.numba_categorical import (
    cross_entropy,
    expected,
    projected_targets,
    q_backward,
    q_of_outputs,
    smaller_outputs,
)
from sb3_bn_ddpg.fast.numba_compiler import compiled
from sb3_bn_ddpg.fast.numba_generative import (
    best_values,
    clipped_latents,
    larger,
    latents,
    latents_backward,
    perturbed,
    perturbed_backward,
    reconstruction,
    repeated,
)
from sb3_bn_ddpg.fast.numba_imitation import (
    advantage_weights,
    clamped_log_std,
    expectile_error,
    gaussian_actions,
    imitation,
    regression,
    sigmoid_log_std,
    softmax_weights,
)
from sb3_bn_ddpg.fast.numba_passes import backward, forward, infer, last_inputs_gradient, output
from sb3_bn_ddpg.fast.parts import COPY, POLYAK, STAY
from sb3_bn_ddpg.fast.torch_imitation import HALF_LOG_2_PI
from sb3_bn_ddpg.networks.actors import LOG_STD_MAX, LOG_STD_MIN, SQUASH_EPS

N_SUMS = 16
"""How many sums :func:`sum_of_squares` takes side by side, as many as a processor adds at a time."""

__all__ = [
    "advantage_weights",
    "backward",
    "best_values",
    "clamped_log_std",
    "clipped_latents",
    "cross_entropy",
    "expected",
    "expectile_error",
    "forward",
    "gaussian_actions",
    "imitation",
    "infer",
    "larger",
    "last_inputs_gradient",
    "latents",
    "latents_backward",
    "output",
    "perturbed",
    "perturbed_backward",
    "projected_targets",
    "q_backward",
    "q_of_outputs",
    "reconstruction",
    "regression",
    "repeated",
    "sigmoid_log_std",
    "smaller_outputs",
    "softmax_weights",
]
"""Further operations, which are defined elsewhere"""


class Storage(NamedTuple):
    """
    :param values: Parameters
    :param grads: Their gradients, like all of the following flat arrays laid out alike
    :param exp_avg: Adam's first moments
    :param exp_avg_sq: Its second moments
    :param bounds: First and last entry of each group of parameters, (groups, 2)
    :param fixed_norms: First entry, size and number of rows of the weights of a fixed norm, (weights, 3)
    :param target_values: Parameters of the target network; of no entries if there is none, like the other two
    :param stats: Running statistics
    :param target_stats: Those of the target network
    :param counts: How often they were updated
    :param target_counts: Likewise
    """

    values: NDArray[Any]
    grads: NDArray[Any]
    exp_avg: NDArray[Any]
    exp_avg_sq: NDArray[Any]
    bounds: NDArray[np.int64]
    fixed_norms: NDArray[np.int64]
    target_values: NDArray[Any]
    stats: NDArray[Any]
    target_stats: NDArray[Any]
    counts: NDArray[np.int64]
    target_counts: NDArray[np.int64]


@compiled
def join(features, actions, joined):  # type: ignore[no-untyped-def]
    n_features = features.shape[1]
    for i in range(features.shape[0]):
        for j in range(n_features):
            joined[i, j] = features[i, j]
        for j in range(actions.shape[1]):
            joined[i, n_features + j] = actions[i, j]
    return joined


@compiled
def rows(first, second, memory):  # type: ignore[no-untyped-def]
    n = first.shape[0]
    for i in range(n):
        for j in range(first.shape[1]):
            memory[i, j] = first[i, j]
            memory[n + i, j] = second[i, j]
    return memory


@compiled
def squash(x):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = np.tanh(x[i, j])
    return x


@compiled
def squash_backward(grad, y):  # type: ignore[no-untyped-def]
    one = grad.dtype.type(1)
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            grad[i, j] *= one - y[i, j] * y[i, j]
    return grad


@compiled
def add_noise(actions, noise):  # type: ignore[no-untyped-def]
    one = actions.dtype.type(1)
    for i in range(noise.shape[0]):
        for j in range(noise.shape[1]):
            value = actions[i, j] + noise[i, j]
            # (the comparisons leave NaN what it is)
            actions[i, j] = one if value > one else -one if value < -one else value
    return actions


@compiled
def like(x):  # type: ignore[no-untyped-def]
    return np.empty_like(x)


@compiled
def smaller(least, values, is_first):  # type: ignore[no-untyped-def]
    for i in range(least.shape[0]):
        # (NaN is passed on)
        if is_first or values[i, 0] < least[i, 0] or np.isnan(values[i, 0]):
            least[i, 0] = values[i, 0]
    return least


@compiled
def td_targets(rewards, discounts, next_q, loss_of_value):  # type: ignore[no-untyped-def]
    for i in range(loss_of_value.shape[0]):
        next_q[i, 0] -= loss_of_value[i, 0]
    for i in range(next_q.shape[0]):
        next_q[i, 0] = rewards[i, 0] + discounts[i, 0] * next_q[i, 0]
    return next_q


@compiled
def squared_error(q, y, factor, reports, place):  # type: ignore[no-untyped-def]
    n = y.shape[0]
    slope = q.dtype.type(2.0 * factor / n)
    grad = np.zeros_like(q)
    loss, mean_q, mean_abs_q = 0.0, 0.0, 0.0
    for i in range(n):
        error = q[i, 0] - y[i, 0]
        grad[i, 0] = slope * error
        loss += error * error
        mean_q += q[i, 0]
        mean_abs_q += abs(q[i, 0])
    reports[place], reports[place + 1], reports[place + 2] = factor * loss / n, mean_q / n, mean_abs_q / n
    return grad


@compiled
def report(reports, place, values, factor):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(values.shape[0]):
        total += values[i, 0]
    reports[place] = factor * total / values.shape[0]


@compiled
def ascent(q, least, n_least, is_only):  # type: ignore[no-untyped-def]
    grad = np.empty_like(q)
    share, zero = q.dtype.type(-1.0 / q.shape[0]), q.dtype.type(0)
    for i in range(q.shape[0]):
        if is_only:
            grad[i, 0] = share
        else:
            grad[i, 0] = share / n_least[i, 0] if q[i, 0] == least[i, 0] else zero
    return grad


@compiled
def count_least(n_least, q, least, is_first):  # type: ignore[no-untyped-def]
    for i in range(q.shape[0]):
        n_least[i, 0] = (0 if is_first else n_least[i, 0]) + (q[i, 0] == least[i, 0])
    return n_least


@compiled
def add(total, x, is_first):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            total[i, j] = x[i, j] if is_first else total[i, j] + x[i, j]
    return total


@compiled
def scale(x, factor):  # type: ignore[no-untyped-def]
    y = np.empty_like(x)
    for i in range(x.shape[0]):
        y[i, 0] = x[i, 0] * factor
    return y


@compiled
def subtract(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        x[i, 0] -= y[i, 0]
    return x


@compiled
def exponential(storage, is_learned, value):  # type: ignore[no-untyped-def]
    dtype = storage.values.dtype.type
    return np.exp(storage.values[0]) if is_learned else dtype(value)


@compiled
def entropy_gradient(storage, log_prob, target_entropy, reports, place):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(log_prob.shape[0]):
        total += log_prob[i, 0] + target_entropy
    mean = total / log_prob.shape[0]
    reports[place] = -storage.values[0] * mean
    storage.grads[0] = -mean


@compiled
def sample(mean, log_std, noise):  # type: ignore[no-untyped-def]
    dtype = mean.dtype.type
    actions, log_prob = np.empty_like(mean), np.empty((mean.shape[0], 1), mean.dtype)
    half, low, high = dtype(0.5), dtype(LOG_STD_MIN), dtype(LOG_STD_MAX)
    for i in range(mean.shape[0]):
        total = dtype(mean.shape[1] * HALF_LOG_2_PI)
        for j in range(mean.shape[1]):
            log_scale = log_std[i, j]
            if log_scale < low:  # (the comparisons leave NaN what it is)
                log_scale = low
            elif log_scale > high:
                log_scale = high
            action = np.tanh(mean[i, j] + np.exp(log_scale) * noise[i, j])
            actions[i, j] = action
            # In float64, where it does not matter in which order the compiler adds epsilon
            slope = 1.0 - np.float64(action) * np.float64(action)
            total += dtype(np.log(slope + SQUASH_EPS)) + log_scale + half * noise[i, j] * noise[i, j]
        log_prob[i, 0] = -total
    return actions, log_prob


@compiled
def sample_backward(action_grad, actions, log_std, noise, ent_coef):  # type: ignore[no-untyped-def]
    dtype = actions.dtype.type
    mean_grad, log_std_grad = np.empty_like(actions), np.empty_like(actions)
    share = dtype(ent_coef / actions.shape[0])
    for i in range(actions.shape[0]):
        for j in range(actions.shape[1]):
            action = actions[i, j]
            slope = 1.0 - np.float64(action) * np.float64(action)  # in float64 as in sample
            grad = dtype((action_grad[i, j] + 2.0 * share * action / (slope + SQUASH_EPS)) * slope)
            mean_grad[i, j] = grad
            is_clamped = log_std[i, j] < dtype(LOG_STD_MIN) or log_std[i, j] > dtype(LOG_STD_MAX)
            log_std_grad[i, j] = dtype(0) if is_clamped else grad * np.exp(log_std[i, j]) * noise[i, j] - share
    return mean_grad, log_std_grad


@compiled
def report_number(reports, place, number, column):  # type: ignore[no-untyped-def]
    reports[place] = number


@compiled
def sum_of_squares(x):  # type: ignore[no-untyped-def]
    """Of all entries, in sums side by side, since the order of a single one is kept."""
    sums, n_whole = np.zeros(N_SUMS), x.size - x.size % N_SUMS
    for i in range(0, n_whole, N_SUMS):
        for k in range(N_SUMS):
            sums[k] += x[i + k] * x[i + k]
    for i in range(n_whole, x.size):
        sums[0] += x[i] * x[i]
    total = 0.0
    for k in range(N_SUMS):
        total += sums[k]
    return total


@compiled
def adam(storage, rates):  # type: ignore[no-untyped-def]
    """
    :param rates: Of each group: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), beta1, beta2, eps, weight decay
    """
    bounds, dtype = storage.bounds, storage.values.dtype.type
    for g in range(bounds.shape[0]):
        # Slices, counted from 0: an index that might be negative keeps the loop from being vectorised
        start, end = bounds[g, 0], bounds[g, 1]
        values, grads = storage.values[start:end], storage.grads[start:end]
        first, second = storage.exp_avg[start:end], storage.exp_avg_sq[start:end]
        rate, root, beta1, beta2 = dtype(rates[g, 0]), dtype(rates[g, 1]), dtype(rates[g, 2]), dtype(rates[g, 3])
        # In float32, 1 - 0.999 would be wrong in its fifth digit
        rest1, rest2 = dtype(1 - rates[g, 2]), dtype(1 - rates[g, 3])
        eps, decay = dtype(rates[g, 4]), dtype(rates[g, 5])
        for i in range(values.size):
            grad = grads[i] + decay * values[i]
            first[i] = beta1 * first[i] + rest1 * grad
            second[i] = beta2 * second[i] + rest2 * grad * grad
            values[i] -= rate * first[i] / (np.sqrt(second[i]) * root + eps)
    for k in range(storage.fixed_norms.shape[0]):
        start, size, n_rows = storage.fixed_norms[k, 0], storage.fixed_norms[k, 1], storage.fixed_norms[k, 2]
        weight = storage.values[start : start + size]
        scale = dtype(np.sqrt(n_rows / 3) / np.sqrt(sum_of_squares(weight)))
        for i in range(size):
            weight[i] *= scale


@compiled
def follow(storage, tau, sync):  # type: ignore[no-untyped-def]
    if storage.target_values.size == 0:
        return
    move(storage.target_values, storage.values, tau)
    if sync == COPY:
        for i in range(storage.stats.size):
            storage.target_stats[i] = storage.stats[i]
    elif sync == POLYAK:
        move(storage.target_stats, storage.stats, tau)
    if sync != STAY:
        for i in range(storage.counts.size):
            storage.target_counts[i] = storage.counts[i]


@compiled
def move(target, values, tau):  # type: ignore[no-untyped-def]
    """Polyak averaging."""
    weight = target.dtype.type(tau)
    for i in range(target.size):
        target[i] += weight * (values[i] - target[i])
