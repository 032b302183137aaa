"""
The operations of a gradient step, compiled by Numba: the same ones as in :mod:`sb3_bn_ddpg.fast.torch_operations`, where they
are described, by the same names and arguments.

A network is a few flat arrays and a table of where its layers lie in them, so that one compiled code serves networks of any
depth. Layer norm is the normalisation without running statistics. Matrix products are SciPy's BLAS. Copies are loops: an
assignment to a slice takes Numba seconds to compile, for the text of its error.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_bn_ddpg.fast.numba_compiler import compiled
from sb3_bn_ddpg.fast.parts import BATCH_UPDATE, COPY, NO_RELU, POLYAK, RELU_FIRST, RELU_LAST, RUNNING, STAY
from sb3_bn_ddpg.fast.torch_operations import HALF_LOG_2_PI
from sb3_bn_ddpg.networks.actors import LOG_STD_MAX, LOG_STD_MIN, SQUASH_EPS

WIDTH, WEIGHT, BIAS, GAMMA, BETA, MEAN, VAR, RELU = range(8)
"""
Columns of a network's table, whose row 0 is its input and row k its k-th linear layer with what follows it: number of
features; first entries of the parameters, then of the statistics, in their flat arrays, -1 where there is none; where the ReLU
stands.
"""
OUTPUT, LINEAR, CENTRE, SCALE, GRAD = range(5)
"""
Columns of a memory's table, with the same rows: first entries, in the memory, of outputs and of what a linear layer itself
returned, (n, features) each, of the means and inverse standard deviations that were normalised with, and of the outputs'
gradient.
"""


class Network(NamedTuple):
    """
    :param values: Parameters
    :param grads: Their gradients, likewise
    :param stats: Running statistics
    :param counts: How often they were updated: the entries of this network's layers, and what lies between
    :param table: Of the columns above, (1 + layers, 8)
    :param numbers: Momentum and epsilon of each normalisation, (1 + layers, 2)
    """

    values: NDArray[Any]
    grads: NDArray[Any]
    stats: NDArray[Any]
    counts: NDArray[np.int64]
    table: NDArray[np.int64]
    numbers: NDArray[np.float64]


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


class Memory(NamedTuple):
    """
    What a pass leaves for its way back.

    :param floats: The memory
    :param places: Table of the columns above, (1 + layers, 5)
    """

    floats: NDArray[Any]
    places: NDArray[np.int64]


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


@compiled
def vector(flat, first, size):  # type: ignore[no-untyped-def]
    """Entries of a flat array; none where there is no first one."""
    return flat[first : first + size] if first >= 0 else flat[:0]


@compiled
def matrix(flat, first, n_rows, n_columns):  # type: ignore[no-untyped-def]
    """Entries of a flat array, as a matrix."""
    return flat[first : first + n_rows * n_columns].reshape((n_rows, n_columns))


@compiled
def copy_columns(x, y):  # type: ignore[no-untyped-def]
    """The first columns of x into y."""
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = x[i, j]


@compiled
def forward(network, memory, x, mode):  # type: ignore[no-untyped-def]
    values, stats, table = network.values, network.stats, network.table
    floats, places = memory.floats, memory.places
    n = x.shape[0]
    result = matrix(floats, places[0, OUTPUT], n, table[0, WIDTH])
    for k in range(table.shape[0]):
        width, relu = table[k, WIDTH], table[k, RELU]
        bias = vector(values, table[k, BIAS], width)
        gamma, beta = vector(values, table[k, GAMMA], width), vector(values, table[k, BETA], width)
        running_mean, running_var = vector(stats, table[k, MEAN], width), vector(stats, table[k, VAR], width)
        n_statistics = width if running_mean.size > 0 else n
        mean, invstd = vector(floats, places[k, CENTRE], n_statistics), vector(floats, places[k, SCALE], n_statistics)
        momentum, eps = network.numbers[k, 0], network.numbers[k, 1]
        z, y = x, result
        if k > 0:
            z, y = matrix(floats, places[k, LINEAR], n, width), matrix(floats, places[k, OUTPUT], n, width)
            weight = matrix(values, table[k, WEIGHT], width, table[k - 1, WIDTH])
            np.dot(result, weight.T, z)
        if gamma.size > 0:
            if relu == RELU_FIRST or bias.size > 0:
                shift(z, bias, relu == RELU_FIRST, z)
            if running_mean.size > 0:
                normalise(z, gamma, beta, running_mean, running_var, mean, invstd, mode, momentum, eps, relu == RELU_LAST, y)
            else:
                normalise_rows(z, gamma, beta, mean, invstd, eps, relu == RELU_LAST, y)
        else:
            shift(z, bias, relu != NO_RELU, y)
        result = y
    if mode == BATCH_UPDATE:
        for i in range(network.counts.size):
            network.counts[i] += 1
    return result


infer = forward


@compiled
def output(network, memory, n):  # type: ignore[no-untyped-def]
    last = network.table.shape[0] - 1
    return matrix(memory.floats, memory.places[last, OUTPUT], n, network.table[last, WIDTH])


@compiled
def way_back(network, memory, x, output_grad, mode, fill, is_input_wanted):  # type: ignore[no-untyped-def]
    """
    From the gradient of the output, whose further columns count for nothing, to that of the input, and those of the parameters
    if they are to be filled: after a pass on the batch's statistics. If not, it ends with the gradient of the first linear
    layer's output.
    """
    values, grads, table = network.values, network.grads, network.table
    floats, places = memory.floats, memory.places
    n, last = x.shape[0], table.shape[0] - 1
    copy_columns(output_grad, matrix(floats, places[last, GRAD], n, table[last, WIDTH]))
    for k in range(last, -1, -1):
        width, relu, is_input = table[k, WIDTH], table[k, RELU], k == 0
        grad, y = matrix(floats, places[k, GRAD], n, width), matrix(floats, places[k, OUTPUT], n, width)
        z = x if is_input else matrix(floats, places[k, LINEAR], n, width)
        gamma, has_running = vector(values, table[k, GAMMA], width), table[k, MEAN] >= 0
        n_statistics = width if has_running else n
        mean, invstd = vector(floats, places[k, CENTRE], n_statistics), vector(floats, places[k, SCALE], n_statistics)
        bias_grad = vector(grads, table[k, BIAS], width if fill else 0)
        if is_input and (not fill or gamma.size == 0):
            continue
        if has_running and mode == RUNNING:
            normalise_backward_fixed(grad, y, gamma, invstd, relu == RELU_LAST)
        elif gamma.size > 0:
            gamma_grad, beta_grad = vector(grads, table[k, GAMMA], width), vector(grads, table[k, BETA], width)
            if not fill:
                gamma_grad, beta_grad = np.empty_like(gamma_grad), np.empty_like(beta_grad)
            if has_running:
                normalise_backward(grad, y, z, gamma, mean, invstd, relu == RELU_LAST, is_input, gamma_grad, beta_grad)
            else:
                normalise_rows_backward(grad, y, z, gamma, mean, invstd, relu == RELU_LAST, gamma_grad, beta_grad)
        if gamma.size == 0:
            shift_backward(grad, y, relu != NO_RELU, bias_grad)
        elif relu == RELU_FIRST:
            shift_backward(grad, z, True, bias_grad)
        elif bias_grad.size > 0:
            shift_backward(grad, y, False, bias_grad)
        if is_input:
            continue
        n_inputs = table[k - 1, WIDTH]
        if fill:
            inputs = matrix(floats, places[k - 1, OUTPUT], n, n_inputs)
            np.dot(grad.T, inputs, matrix(grads, table[k, WEIGHT], width, n_inputs))
        if k > 1 or (fill and (is_input_wanted or table[0, GAMMA] >= 0)):
            weight = matrix(values, table[k, WEIGHT], width, n_inputs)
            np.dot(grad, weight, matrix(floats, places[k - 1, GRAD], n, n_inputs))


@compiled
def backward(network, memory, x, grad, n_wanted):  # type: ignore[no-untyped-def]
    way_back(network, memory, x, grad, BATCH_UPDATE, True, n_wanted > 0)
    # Of all inputs: a part of the columns would be an array of another kind, for which all is compiled once more
    return matrix(memory.floats, memory.places[0, GRAD], x.shape[0], network.table[0, WIDTH])


@compiled
def last_inputs_gradient(network, memory, x, grad, mode, n_wanted):  # type: ignore[no-untyped-def]
    table, n = network.table, x.shape[0]
    way_back(network, memory, x, grad, mode, False, False)
    width, n_inputs = table[1, WIDTH], table[0, WIDTH]
    first = n_inputs - n_wanted
    weight = matrix(network.values, table[1, WEIGHT], width, n_inputs)
    columns = np.empty((width, n_wanted), x.dtype)
    for i in range(width):
        for j in range(n_wanted):
            columns[i, j] = weight[i, first + j]
    input_grad = np.dot(matrix(memory.floats, memory.places[1, GRAD], n, width), columns)
    if table[0, GAMMA] >= 0:
        gamma = vector(network.values, table[0, GAMMA], n_inputs)[first:]
        mean = vector(memory.floats, memory.places[0, CENTRE], n_inputs)[first:]
        invstd = vector(memory.floats, memory.places[0, SCALE], n_inputs)[first:]
        if mode == RUNNING:
            normalise_backward_fixed(input_grad, input_grad, gamma, invstd, False)
        else:
            inputs, unused = np.empty((n, n_wanted), x.dtype), np.empty_like(gamma)
            for i in range(n):
                for j in range(n_wanted):
                    inputs[i, j] = x[i, first + j]
            normalise_backward(input_grad, inputs, inputs, gamma, mean, invstd, False, False, unused, np.empty_like(gamma))
    return input_grad


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
    half = dtype(0.5)
    for i in range(mean.shape[0]):
        total = dtype(mean.shape[1] * HALF_LOG_2_PI)
        for j in range(mean.shape[1]):
            log_scale = min(max(log_std[i, j], dtype(LOG_STD_MIN)), dtype(LOG_STD_MAX))
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
            is_free = log_std[i, j] >= dtype(LOG_STD_MIN) and log_std[i, j] <= dtype(LOG_STD_MAX)
            log_std_grad[i, j] = grad * np.exp(log_std[i, j]) * noise[i, j] - share if is_free else dtype(0)
    return mean_grad, log_std_grad


@compiled
def report_number(reports, place, number, column):  # type: ignore[no-untyped-def]
    reports[place] = number


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
        squares = 0.0
        for i in range(size):
            squares += weight[i] * weight[i]
        scale = dtype(np.sqrt(n_rows / 3) / np.sqrt(squares))
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
