"""Normalisation with what follows it, and the way back, compiled by Numba: layer by layer, in place where that is possible."""

import numpy as np

from sb3_bn_ddpg.fast.numba_compiler import compiled
from sb3_bn_ddpg.fast.parts import BATCH_UPDATE, RUNNING

MOMENTUM, EPS, IS_RENORM, WARMUP, RMAX, DMAX = range(6)
"""Columns of a network's numbers: momentum and epsilon; of batch renormalisation the further ones of ``norms.Renorm``."""


@compiled
def normalise(x, gamma, beta, running_mean, running_var, mean, invstd, mode, momentum, eps, relu, y):  # type: ignore[no-untyped-def]
    """Batch norm of x, (n, features), and a ReLU if wanted, into y; mean and invstd keep what was normalised with."""
    n, n_features = x.shape
    dtype = x.dtype.type
    zero = dtype(0)
    if mode == RUNNING:
        for j in range(n_features):
            mean[j] = running_mean[j]
            invstd[j] = dtype(1) / np.sqrt(running_var[j] + dtype(eps))
    else:
        mean[:] = 0
        invstd[:] = 0
        for i in range(n):
            for j in range(n_features):
                mean[j] += x[i, j]
        for j in range(n_features):
            mean[j] /= dtype(n)
        for i in range(n):
            for j in range(n_features):
                deviation = x[i, j] - mean[j]
                invstd[j] += deviation * deviation
        if mode == BATCH_UPDATE:
            for j in range(n_features):  # towards the unbiased variance
                running_mean[j] += dtype(momentum) * (mean[j] - running_mean[j])
                running_var[j] += dtype(momentum) * (invstd[j] / dtype(n - 1) - running_var[j])
        for j in range(n_features):
            invstd[j] = dtype(1) / np.sqrt(invstd[j] / dtype(n) + dtype(eps))
    for i in range(n):
        for j in range(n_features):
            value = (x[i, j] - mean[j]) * (invstd[j] * gamma[j]) + beta[j]
            y[i, j] = zero if relu and value <= zero else value


@compiled
def normalise_backward(grad, y, x, gamma, mean, invstd, relu, is_input, gamma_grad, beta_grad):  # type: ignore[no-untyped-def]
    """Gradients of gamma and beta; and that of y becomes that of x, unless nobody wants it."""
    n, n_features = x.shape
    dtype = x.dtype.type
    zero = dtype(0)
    gamma_grad[:] = 0
    beta_grad[:] = 0
    for i in range(n):
        for j in range(n_features):
            value = zero if relu and y[i, j] <= zero else grad[i, j]
            grad[i, j] = value
            beta_grad[j] += value
            gamma_grad[j] += value * (x[i, j] - mean[j])
    for j in range(n_features):
        gamma_grad[j] *= invstd[j]
    if not is_input:
        for i in range(n):
            for j in range(n_features):
                normalised = (x[i, j] - mean[j]) * invstd[j]
                centred = grad[i, j] - (beta_grad[j] + normalised * gamma_grad[j]) / dtype(n)
                grad[i, j] = (gamma[j] * invstd[j]) * centred


@compiled
def normalise_backward_fixed(grad, y, gamma, invstd, relu):  # type: ignore[no-untyped-def]
    """The gradient of y becomes that of x, after normalising with running statistics, which do not depend on x."""
    zero = grad.dtype.type(0)
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            grad[i, j] = zero if relu and y[i, j] <= zero else grad[i, j] * (gamma[j] * invstd[j])


@compiled
def renormalise(  # type: ignore[no-untyped-def]
    x, gamma, beta, running_mean, running_var, mean, invstd, shift, of_mean, of_var, numbers, is_warm, update, relu, y
):
    """Batch renormalisation of x by the batch, and a ReLU if wanted, into y; a constant unit has a negative ``of_var``."""
    n, n_features = x.shape
    dtype = x.dtype.type
    zero, one = dtype(0), dtype(1)
    eps, momentum, rmax, dmax = dtype(numbers[EPS]), dtype(numbers[MOMENTUM]), dtype(numbers[RMAX]), dtype(numbers[DMAX])
    mean[:] = 0
    of_var[:] = 0
    for i in range(n):
        for j in range(n_features):
            mean[j] += x[i, j]
    for j in range(n_features):
        mean[j] /= dtype(n)
    for i in range(n):
        for j in range(n_features):
            deviation = x[i, j] - mean[j]
            of_var[j] += deviation * deviation
    for j in range(n_features):
        batch_mean, var = mean[j], of_var[j] / dtype(n - 1)
        r, d = one, zero
        if not is_warm:
            running_std = np.sqrt(running_var[j] + eps)
            r = min(max(np.sqrt(var + eps) / running_std, one / rmax), rmax)
            d = min(max((batch_mean - running_mean[j]) / running_std, -dmax), dmax)
        if update:
            running_mean[j] += momentum * (batch_mean - running_mean[j])
            running_var[j] += momentum * (var - running_var[j])
        std = np.sqrt(var)
        invstd[j] = one / np.sqrt(var / (r * r) + eps)
        shift[j] = d * std / r
        mean[j] = batch_mean - shift[j]
        of_mean[j] = dtype(0.5) * invstd[j] * d / (r * std) if var > zero else zero
        of_var[j] = dtype(0.5) * (invstd[j] / r) * (invstd[j] / r) if var > zero else -one
    for i in range(n):
        for j in range(n_features):
            value = (x[i, j] - mean[j]) * (invstd[j] * gamma[j]) + beta[j]
            y[i, j] = zero if relu and value <= zero else value


@compiled
def renormalise_backward(  # type: ignore[no-untyped-def]
    grad, y, x, gamma, mean, invstd, shift, of_mean, of_var, relu, is_input, gamma_grad, beta_grad
):
    """Gradients of gamma and beta; and that of y becomes that of x, unless nobody wants it: 0 for a constant unit."""
    n, n_features = x.shape
    dtype = x.dtype.type
    zero, factor = dtype(0), dtype(2.0 / (n - 1))
    gamma_grad[:] = 0
    beta_grad[:] = 0
    for i in range(n):
        for j in range(n_features):
            value = zero if relu and y[i, j] <= zero else grad[i, j]
            grad[i, j] = value
            beta_grad[j] += value
            gamma_grad[j] += value * (x[i, j] - mean[j])
    for j in range(n_features):
        gamma_grad[j] *= invstd[j]
    if not is_input:
        for i in range(n):
            for j in range(n_features):
                by_variance = factor * (of_mean[j] * beta_grad[j] - of_var[j] * gamma_grad[j])
                value = invstd[j] * (grad[i, j] - beta_grad[j] / dtype(n)) + by_variance * (x[i, j] - mean[j] - shift[j])
                grad[i, j] = zero if of_var[j] < zero else gamma[j] * value


@compiled
def normalise_rows(x, gamma, beta, mean, invstd, eps, relu, y):  # type: ignore[no-untyped-def]
    """Layer norm of x, (n, features), and a ReLU if wanted, into y; mean and invstd, (n,), keep what was normalised with."""
    n, n_features = x.shape
    dtype = x.dtype.type
    zero = dtype(0)
    for i in range(n):
        total, squares = zero, zero
        for j in range(n_features):
            total += x[i, j]
        centre = total / dtype(n_features)
        for j in range(n_features):
            deviation = x[i, j] - centre
            squares += deviation * deviation
        scale = dtype(1) / np.sqrt(squares / dtype(n_features) + dtype(eps))
        mean[i], invstd[i] = centre, scale
        for j in range(n_features):
            value = (x[i, j] - centre) * scale * gamma[j] + beta[j]
            y[i, j] = zero if relu and value <= zero else value


@compiled
def normalise_rows_backward(grad, y, x, gamma, mean, invstd, relu, gamma_grad, beta_grad):  # type: ignore[no-untyped-def]
    """Gradients of layer norm's gamma and beta; and that of y becomes that of x."""
    n, n_features = x.shape
    dtype = x.dtype.type
    zero = dtype(0)
    gamma_grad[:] = 0
    beta_grad[:] = 0
    for i in range(n):
        centre, scale = mean[i], invstd[i]
        total, projection = zero, zero
        for j in range(n_features):
            value = zero if relu and y[i, j] <= zero else grad[i, j]
            normalised = (x[i, j] - centre) * scale
            beta_grad[j] += value
            gamma_grad[j] += value * normalised
            value *= gamma[j]
            grad[i, j] = value
            total += value
            projection += value * normalised
        total /= dtype(n_features)
        projection /= dtype(n_features)
        for j in range(n_features):
            grad[i, j] = scale * (grad[i, j] - total - (x[i, j] - centre) * scale * projection)


@compiled
def shift(x, bias, relu, y):  # type: ignore[no-untyped-def]
    """Add the bias, if there is one, and apply a ReLU if wanted."""
    zero = x.dtype.type(0)
    has_bias = bias.size > 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            value = x[i, j] + bias[j] if has_bias else x[i, j]
            y[i, j] = zero if relu and value <= zero else value


@compiled
def shift_backward(grad, y, relu, bias_grad):  # type: ignore[no-untyped-def]
    """The gradient of y becomes that of x; that of the bias, if there is one."""
    zero = grad.dtype.type(0)
    has_bias = bias_grad.size > 0
    bias_grad[:] = 0
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            value = zero if relu and y[i, j] <= zero else grad[i, j]
            grad[i, j] = value
            if has_bias:
                bias_grad[j] += value
