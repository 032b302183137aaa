"""
Passes of a network and the way back, compiled by Numba.

A network is a few flat arrays and a table of where its layers lie in them, so that one compiled code serves networks of any
depth. Layer norm is the normalisation without running statistics. Copies are loops: an assignment to a slice takes Numba
seconds to compile, for the text of its error.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_bn_ddpg.fast.numba_compiler import compiled
from sb3_bn_ddpg.fast.numba_norms import (
    EPS,
    IS_RENORM,
    MOMENTUM,
    WARMUP,
    normalise,
    normalise_backward,
    normalise_backward_fixed,
    normalise_rows,
    normalise_rows_backward,
    renormalise,
    renormalise_backward,
    shift,
    shift_backward,
)
from sb3_bn_ddpg.fast.numba_products import product
from sb3_bn_ddpg.fast.parts import BATCH_UPDATE, NO_RELU, RELU_FIRST, RELU_LAST, RUNNING

WIDTH, WEIGHT, BIAS, GAMMA, BETA, MEAN, VAR, RELU, COUNT = range(9)
"""
Columns of a network's table, whose row 0 is its input and row k its k-th linear layer with what follows it: number of
features; first entries of the parameters, then of the statistics, in their flat arrays, -1 where there is none; where the ReLU
stands; which of the counters is that of the statistics, or -1.
"""
OUTPUT, LINEAR, CENTRE, SCALE, GRAD, SHIFT, OF_MEAN, OF_VAR = range(8)
"""
Columns of a memory's table, with the same rows: first entries, in the memory, of outputs and of what a linear layer itself
returned, (n, features) each, of the means and inverse standard deviations that were normalised with, and of the outputs'
gradient; of batch renormalisation the distance of the batch's mean from the one that was used, and how that and the variance
move with the batch's variance.
"""


class Network(NamedTuple):
    """
    :param values: Parameters
    :param grads: Their gradients, likewise
    :param stats: Running statistics
    :param counts: How often they were updated: the entries of this network's layers, and what lies between
    :param table: Of the columns above, (1 + layers, 9)
    :param numbers: Of the columns above, (1 + layers, 6)
    """

    values: NDArray[Any]
    grads: NDArray[Any]
    stats: NDArray[Any]
    counts: NDArray[np.int64]
    table: NDArray[np.int64]
    numbers: NDArray[np.float64]


class Memory(NamedTuple):
    """
    What a pass leaves for its way back.

    :param floats: The memory
    :param places: Table of the columns above, (1 + layers, 8)
    """

    floats: NDArray[Any]
    places: NDArray[np.int64]


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
        momentum, eps = network.numbers[k, MOMENTUM], network.numbers[k, EPS]
        z, y = x, result
        if k > 0:
            z, y = matrix(floats, places[k, LINEAR], n, width), matrix(floats, places[k, OUTPUT], n, width)
            weight = matrix(values, table[k, WEIGHT], width, table[k - 1, WIDTH])
            product(result, False, weight, True, z)
        if gamma.size > 0:
            if relu == RELU_FIRST or bias.size > 0:
                shift(z, bias, relu == RELU_FIRST, z)
            if network.numbers[k, IS_RENORM] == 1 and mode != RUNNING:
                shift_, of_mean = vector(floats, places[k, SHIFT], width), vector(floats, places[k, OF_MEAN], width)
                of_var = vector(floats, places[k, OF_VAR], width)
                is_warm = network.counts[table[k, COUNT]] <= network.numbers[k, WARMUP]
                renormalise(
                    z,
                    gamma,
                    beta,
                    running_mean,
                    running_var,
                    mean,
                    invstd,
                    shift_,
                    of_mean,
                    of_var,
                    network.numbers[k],
                    is_warm,
                    mode == BATCH_UPDATE,
                    relu == RELU_LAST,
                    y,
                )
            elif running_mean.size > 0:
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
            if network.numbers[k, IS_RENORM] == 1:
                shift_, of_mean = vector(floats, places[k, SHIFT], width), vector(floats, places[k, OF_MEAN], width)
                of_var, is_last = vector(floats, places[k, OF_VAR], width), relu == RELU_LAST
                renormalise_backward(
                    grad, y, z, gamma, mean, invstd, shift_, of_mean, of_var, is_last, is_input, gamma_grad, beta_grad
                )
            elif has_running:
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
            product(grad, True, inputs, False, matrix(grads, table[k, WEIGHT], width, n_inputs))
        if k > 1 or (fill and (is_input_wanted or table[0, GAMMA] >= 0)):
            weight = matrix(values, table[k, WEIGHT], width, n_inputs)
            product(grad, False, weight, False, matrix(floats, places[k - 1, GRAD], n, n_inputs))


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
    input_grad = np.empty((n, n_wanted), x.dtype)
    product(matrix(memory.floats, memory.places[1, GRAD], n, width), False, weight[:, first:], False, input_grad)
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
            others = np.empty_like(gamma)
            if network.numbers[0, IS_RENORM] == 1:
                shift_ = vector(memory.floats, memory.places[0, SHIFT], n_inputs)[first:]
                of_mean = vector(memory.floats, memory.places[0, OF_MEAN], n_inputs)[first:]
                of_var = vector(memory.floats, memory.places[0, OF_VAR], n_inputs)[first:]
                renormalise_backward(
                    input_grad, inputs, inputs, gamma, mean, invstd, shift_, of_mean, of_var, False, False, unused, others
                )
            else:
                normalise_backward(input_grad, inputs, inputs, gamma, mean, invstd, False, False, unused, others)
    return input_grad
