"""
The operations of a gradient step on critics of atoms, compiled by Numba: the same ones as in
:mod:`sb3_bn_ddpg.fast.torch_categorical`, where they are described.
"""

import numpy as np

from sb3_bn_ddpg.fast.numba_compiler import compiled, compiled_part


@compiled_part
def softmax(logits):  # type: ignore[no-untyped-def]
    probabilities = np.empty((logits.shape[0], logits.shape[1]), logits.dtype)
    for i in range(logits.shape[0]):
        largest = logits[i, 0]
        for j in range(1, logits.shape[1]):
            largest = max(largest, logits[i, j])
        total = logits.dtype.type(0)
        for j in range(logits.shape[1]):
            probabilities[i, j] = np.exp(logits[i, j] - largest)
            total += probabilities[i, j]
        for j in range(logits.shape[1]):
            probabilities[i, j] /= total
    return probabilities


@compiled_part
def means_of(probabilities, atoms):  # type: ignore[no-untyped-def]
    means = np.zeros((probabilities.shape[0], 1), probabilities.dtype)
    for i in range(probabilities.shape[0]):
        if atoms.size == 0:
            means[i, 0] = probabilities[i, 0]
        for j in range(atoms.size):
            means[i, 0] += probabilities[i, j] * atoms[j]
    return means


@compiled
def expected(probabilities, atoms):  # type: ignore[no-untyped-def]
    return means_of(probabilities, atoms)


@compiled
def q_of_outputs(outputs, atoms):  # type: ignore[no-untyped-def]
    # (a copy if there are no atoms)
    return means_of(softmax(outputs) if atoms.size > 0 else outputs.copy(), atoms)


@compiled
def q_backward(outputs, atoms, grad):  # type: ignore[no-untyped-def]
    if atoms.size == 0:
        return grad
    probabilities = softmax(outputs)
    means = means_of(probabilities, atoms)
    for i in range(probabilities.shape[0]):
        for j in range(atoms.size):
            probabilities[i, j] *= (atoms[j] - means[i, 0]) * grad[i, 0]
    return probabilities


@compiled
def smaller_outputs(kept, outputs, least, values, is_first):  # type: ignore[no-untyped-def]
    if is_first:
        return outputs.copy()
    for i in range(kept.shape[0]):
        if values[i, 0] < least[i, 0]:
            for j in range(kept.shape[1]):
                kept[i, j] = outputs[i, j]
    return kept


@compiled
def projected_targets(rewards, discounts, next_outputs, loss_of_value, atoms):  # type: ignore[no-untyped-def]
    probabilities = softmax(next_outputs)
    y, last = np.zeros_like(probabilities), atoms.size - 1
    per_unit = last / (atoms[last] - atoms[0])
    for i in range(rewards.shape[0]):
        loss = loss_of_value[i, 0] if loss_of_value.shape[0] > 0 else rewards.dtype.type(0)
        for j in range(atoms.size):
            moved = rewards[i, 0] + discounts[i, 0] * (atoms[j] - loss)
            place = (moved - atoms[0]) * per_unit
            lower = 0
            if not np.isnan(place):  # which is no index, and is passed on
                place = min(max(place, 0.0), float(last))
                lower = int(place)
            share = rewards.dtype.type(place - lower)
            to_upper = share * probabilities[i, j]
            y[i, lower] += probabilities[i, j] - to_upper
            y[i, min(lower + 1, last)] += to_upper
    return y


@compiled
def cross_entropy(outputs, y, atoms, reports, place):  # type: ignore[no-untyped-def]
    n = y.shape[0]
    probabilities, grad = softmax(outputs[:n]), np.zeros_like(outputs)
    means = means_of(probabilities, atoms)
    loss, mean_q, mean_abs_q = 0.0, 0.0, 0.0
    for i in range(n):
        # log p_j = logit_j - the logarithm of the sum of exponentials
        largest, total = outputs[i, 0], 0.0
        for j in range(atoms.size):
            largest = max(largest, outputs[i, j])
        for j in range(atoms.size):
            total += np.exp(outputs[i, j] - largest)
        shift = largest + np.log(total)
        for j in range(atoms.size):
            loss -= y[i, j] * (outputs[i, j] - shift)
            grad[i, j] = (probabilities[i, j] - y[i, j]) / n
        mean_q += means[i, 0]
        mean_abs_q += abs(means[i, 0])
    reports[place], reports[place + 1], reports[place + 2] = loss / n, mean_q / n, mean_abs_q / n
    return grad
