"""The operations of :mod:`sb3_bn_ddpg.fast.torch_generative`, where they are described, compiled by Numba."""

import numpy as np

from sb3_bn_ddpg.fast.numba_compiler import compiled, compiled_part
from sb3_bn_ddpg.networks.generative import LATENT_LIMIT, LATENT_LOG_STD_MAX, LATENT_LOG_STD_MIN


@compiled_part
def within(x, low, high):  # type: ignore[no-untyped-def]
    """x between the two; the comparisons leave NaN what it is."""
    return low if x < low else high if x > high else x


@compiled
def latents(means, log_std, noise):  # type: ignore[no-untyped-def]
    dtype = means.dtype.type
    low, high = dtype(LATENT_LOG_STD_MIN), dtype(LATENT_LOG_STD_MAX)
    made = np.empty_like(means)
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            made[i, j] = means[i, j] + np.exp(within(log_std[i, j], low, high)) * noise[i, j]
    return made


@compiled
def reconstruction(decoded, actions, means, log_std, reports, place):  # type: ignore[no-untyped-def]
    dtype = means.dtype.type
    low, high, slope = dtype(LATENT_LOG_STD_MIN), dtype(LATENT_LOG_STD_MAX), dtype(2.0 / decoded.size)
    grad = np.empty_like(decoded)
    squares, divergence = 0.0, 0.0
    for i in range(decoded.shape[0]):
        for j in range(decoded.shape[1]):
            distance = decoded[i, j] - actions[i, j]
            squares += distance * distance
            grad[i, j] = slope * distance
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            clamped = within(log_std[i, j], low, high)
            divergence += np.exp(clamped + clamped) + means[i, j] * means[i, j] - (clamped + clamped) - dtype(1)
    reports[place] = squares / decoded.size + 0.25 * divergence / means.size
    return grad


@compiled
def latents_backward(inputs_grad, means, log_std, noise):  # type: ignore[no-untyped-def]
    dtype, one = means.dtype.type, means.dtype.type(1)
    low, high, share = dtype(LATENT_LOG_STD_MIN), dtype(LATENT_LOG_STD_MAX), dtype(0.5 / means.size)
    first = inputs_grad.shape[1] - means.shape[1]
    means_grad, log_std_grad = np.empty_like(means), np.empty_like(means)
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            grad, clamped = inputs_grad[i, first + j], within(log_std[i, j], low, high)
            std = np.exp(clamped)
            means_grad[i, j] = grad + share * means[i, j]
            slope = grad * std * noise[i, j] + share * (std * std - one)
            log_std_grad[i, j] = slope if clamped == log_std[i, j] else dtype(0)
    return means_grad, log_std_grad


@compiled
def clipped_latents(noise):  # type: ignore[no-untyped-def]
    limit = noise.dtype.type(LATENT_LIMIT)
    clipped = np.empty_like(noise)
    for i in range(noise.shape[0]):
        for j in range(noise.shape[1]):
            clipped[i, j] = within(noise[i, j], -limit, limit)
    return clipped


@compiled
def repeated(x, n):  # type: ignore[no-untyped-def]
    rows = np.empty((x.shape[0] * n, x.shape[1]), x.dtype)
    for i in range(x.shape[0]):
        for k in range(n):
            for j in range(x.shape[1]):
                rows[i * n + k, j] = x[i, j]
    return rows


@compiled
def perturbed(actions, perturbations, phi):  # type: ignore[no-untyped-def]
    factor, one = actions.dtype.type(phi), actions.dtype.type(1)
    sums = np.empty_like(actions)
    for i in range(actions.shape[0]):
        for j in range(actions.shape[1]):
            sums[i, j] = within(actions[i, j] + factor * perturbations[i, j], -one, one)
    return sums


@compiled
def perturbed_backward(grad, actions, perturbations, phi):  # type: ignore[no-untyped-def]
    factor, zero = actions.dtype.type(phi), actions.dtype.type(0)
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            is_within = abs(actions[i, j] + factor * perturbations[i, j]) <= 1
            grad[i, j] = factor * grad[i, j] if is_within else zero
    return grad


@compiled
def larger(largest, values, is_first):  # type: ignore[no-untyped-def]
    for i in range(largest.shape[0]):
        # (NaN is passed on)
        if is_first or values[i, 0] > largest[i, 0] or np.isnan(values[i, 0]):
            largest[i, 0] = values[i, 0]
    return largest


@compiled
def best_values(least, largest, lmbda, n_actions):  # type: ignore[no-untyped-def]
    weight, rest = least.dtype.type(lmbda), least.dtype.type(1 - lmbda)
    best = np.empty((least.shape[0] // n_actions, 1), least.dtype)
    for i in range(best.shape[0]):
        for k in range(i * n_actions, (i + 1) * n_actions):
            value = weight * least[k, 0] + rest * largest[k, 0]
            # (NaN is passed on)
            if k == i * n_actions or value > best[i, 0] or np.isnan(value):
                best[i, 0] = value
    return best
