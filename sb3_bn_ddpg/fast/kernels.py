"""
The arithmetic of a gradient step, compiled by Numba: whole passes of a network, without a call back into Python.

A network is a few flat arrays and a table of where its layers lie in them, so that one compiled code serves networks of any
depth. Layer norm is the normalisation without running statistics. Matrix products are SciPy's BLAS. Copies are loops: an
assignment to a slice takes Numba seconds to compile, for the text of its error.
"""

import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numba
import numpy as np
from numpy.typing import NDArray

RUNNING, BATCH, BATCH_UPDATE, JOINT = range(4)
"""What a pass does with the statistics of batch norm; see :data:`~sb3_bn_ddpg.networks.statistics.TargetStatistics`."""
WIDTH, WEIGHT, BIAS, GAMMA, BETA, MEAN, VAR, RELU = range(8)
"""
Columns of a network's table, whose row 0 is its input and row k its k-th linear layer with what follows it: number of
features; first entries of the parameters, then of the statistics, in their flat arrays, -1 where there is none; whether a ReLU
follows.
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
    :param table: Of the columns above, (1 + layers, 8)
    :param numbers: Momentum and epsilon of each normalisation, (1 + layers, 2)
    """

    values: NDArray[Any]
    grads: NDArray[Any]
    stats: NDArray[Any]
    table: NDArray[np.int64]
    numbers: NDArray[np.float64]


class Memory(NamedTuple):
    """
    What a pass leaves for its way back.

    :param floats: The memory
    :param places: Table of the columns above, (1 + layers, 5)
    """

    floats: NDArray[Any]
    places: NDArray[np.int64]


_has_warned = False


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, once a machine. Sums may be reordered; NaN and infinity stay what they are."""
    kernel: Any = numba.njit(error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})(function)
    try:
        kernel.enable_caching()
    except RuntimeError as reason:  # neither beside this file nor in the user's folder
        _say_that_nothing_is_kept(reason)
    else:
        kernel._cache.load_overload = _or_nothing(kernel._cache.load_overload)
        kernel._cache.save_overload = _or_nothing(kernel._cache.save_overload)
    return cast(Callable[..., Any], kernel)


def _or_nothing(use_cache: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Numba's cache, whose files may be unreadable, and whose disk may be full: it goes on without them."""

    def function(*args: Any) -> Any:
        try:
            return use_cache(*args)
        except (OSError, EOFError, pickle.UnpicklingError) as reason:
            _say_that_nothing_is_kept(reason)
            return None

    return function


def _say_that_nothing_is_kept(reason: Exception) -> None:
    """
    Warn, once a process.

    :param reason: What Numba says
    """
    global _has_warned
    if _has_warned:
        return
    _has_warned = True
    warnings.warn(
        f'Numba can keep no compiled code here, so `fast_update="compiled"` compiles in each process anew, for some fifteen '
        f"seconds ({reason}). To keep it, set the environment variable NUMBA_CACHE_DIR to a writable folder",
        stacklevel=2,
    )


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
def copy(x, y):  # type: ignore[no-untyped-def]
    """The rows of x into the first ones of y."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = x[i, j]


@compiled
def forward(network, memory, x, mode):  # type: ignore[no-untyped-def]
    """Outputs of all layers into the memory, the input's normalised or not; returns those of the last."""
    values, stats, table = network.values, network.stats, network.table
    floats, places = memory.floats, memory.places
    n = x.shape[0]
    output = matrix(floats, places[0, OUTPUT], n, table[0, WIDTH])
    for k in range(table.shape[0]):
        width, relu = table[k, WIDTH], table[k, RELU] == 1
        bias = vector(values, table[k, BIAS], width)
        gamma, beta = vector(values, table[k, GAMMA], width), vector(values, table[k, BETA], width)
        running_mean, running_var = vector(stats, table[k, MEAN], width), vector(stats, table[k, VAR], width)
        n_statistics = width if running_mean.size > 0 else n
        mean, invstd = vector(floats, places[k, CENTRE], n_statistics), vector(floats, places[k, SCALE], n_statistics)
        momentum, eps = network.numbers[k, 0], network.numbers[k, 1]
        z, y = x, output
        if k > 0:
            z, y = matrix(floats, places[k, LINEAR], n, width), matrix(floats, places[k, OUTPUT], n, width)
            weight = matrix(values, table[k, WEIGHT], width, table[k - 1, WIDTH])
            np.dot(output, weight.T, z)
        if gamma.size > 0:
            if bias.size > 0:
                shift(z, bias, False, z)
            if running_mean.size > 0:
                normalise(z, gamma, beta, running_mean, running_var, mean, invstd, mode, momentum, eps, relu, y)
            else:
                normalise_rows(z, gamma, beta, mean, invstd, eps, relu, y)
        else:
            shift(z, bias, relu, y)
        output = y
    return output


@compiled
def backward(network, memory, x, mode, fill):  # type: ignore[no-untyped-def]
    """
    From the gradient of the output, in the memory, to that of the input, and those of the parameters if they are to be
    filled: after a pass on the batch's statistics. If not, the product with the first weight is left to the caller. The mode
    is that of the pass.
    """
    values, grads, table = network.values, network.grads, network.table
    floats, places = memory.floats, memory.places
    n = x.shape[0]
    for k in range(table.shape[0] - 1, -1, -1):
        width, relu, is_input = table[k, WIDTH], table[k, RELU] == 1, k == 0
        grad, y = matrix(floats, places[k, GRAD], n, width), matrix(floats, places[k, OUTPUT], n, width)
        z = x if is_input else matrix(floats, places[k, LINEAR], n, width)
        gamma, has_running = vector(values, table[k, GAMMA], width), table[k, MEAN] >= 0
        n_statistics = width if has_running else n
        mean, invstd = vector(floats, places[k, CENTRE], n_statistics), vector(floats, places[k, SCALE], n_statistics)
        bias_grad = vector(grads, table[k, BIAS], width if fill else 0)
        if is_input and (not fill or gamma.size == 0):
            continue
        if has_running and mode == RUNNING:
            normalise_backward_fixed(grad, y, gamma, invstd, relu)
        elif gamma.size > 0:
            gamma_grad, beta_grad = vector(grads, table[k, GAMMA], width), vector(grads, table[k, BETA], width)
            if not fill:
                gamma_grad, beta_grad = np.empty_like(gamma_grad), np.empty_like(beta_grad)
            if has_running:
                normalise_backward(grad, y, z, gamma, mean, invstd, relu, is_input, gamma_grad, beta_grad)
            else:
                normalise_rows_backward(grad, y, z, gamma, mean, invstd, relu, gamma_grad, beta_grad)
            if bias_grad.size > 0:
                shift_backward(grad, y, False, bias_grad)
        else:
            shift_backward(grad, y, relu, bias_grad)
        if is_input:
            continue
        n_inputs = table[k - 1, WIDTH]
        if fill:
            inputs = matrix(floats, places[k - 1, OUTPUT], n, n_inputs)
            np.dot(grad.T, inputs, matrix(grads, table[k, WEIGHT], width, n_inputs))
        if fill or k > 1:
            weight = matrix(values, table[k, WEIGHT], width, n_inputs)
            np.dot(grad, weight, matrix(floats, places[k - 1, GRAD], n, n_inputs))


@compiled
def gradient_of(network, memory, n, k):  # type: ignore[no-untyped-def]
    """The gradient of the outputs of layer k, (n, features), in the memory; of a negative k, counted from the end."""
    k %= network.table.shape[0]
    return matrix(memory.floats, memory.places[k, GRAD], n, network.table[k, WIDTH])


@compiled
def join(features, actions, joined):  # type: ignore[no-untyped-def]
    """The Q-network's input."""
    n_features = features.shape[1]
    for i in range(features.shape[0]):
        for j in range(n_features):
            joined[i, j] = features[i, j]
        for j in range(actions.shape[1]):
            joined[i, n_features + j] = actions[i, j]


@compiled
def q_values(state_net, state_memory, q_net, q_memory, obs, actions, joined, mode):  # type: ignore[no-untyped-def]
    """Q(s, a), the output in the memory of the Q-network."""
    join(forward(state_net, state_memory, obs, mode), actions, joined)
    return forward(q_net, q_memory, joined, mode)


@compiled
def td_targets(rewards, discounts, next_q, y):  # type: ignore[no-untyped-def]
    """y = r + gamma Q'."""
    for i in range(y.shape[0]):
        y[i, 0] = rewards[i, 0] + discounts[i, 0] * next_q[i, 0]


@compiled
def squash(x):  # type: ignore[no-untyped-def]
    """tanh, in place."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = np.tanh(x[i, j])


@compiled
def adam(optimizer, settings):  # type: ignore[no-untyped-def]
    """
    One step of Adam for each group of parameters.

    :param optimizer: Flat values, gradients, first and second moments; first and last entry of each group, (groups, 2)
    :param settings: For each: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), beta1, beta2, eps, weight decay
    """
    flats, bounds = optimizer[:4], optimizer[4]
    dtype = flats[0].dtype.type
    for g in range(bounds.shape[0]):
        # Slices, counted from 0: an index that might be negative keeps the loop from being vectorised
        start, end = bounds[g, 0], bounds[g, 1]
        values, grads, first, second = flats[0][start:end], flats[1][start:end], flats[2][start:end], flats[3][start:end]
        rate, root, beta1, beta2 = dtype(settings[g, 0]), dtype(settings[g, 1]), dtype(settings[g, 2]), dtype(settings[g, 3])
        # In float32, 1 - 0.999 would be wrong in its fifth digit
        rest1, rest2 = dtype(1 - settings[g, 2]), dtype(1 - settings[g, 3])
        eps, decay = dtype(settings[g, 4]), dtype(settings[g, 5])
        for i in range(values.size):
            grad = grads[i] + decay * values[i]
            first[i] = beta1 * first[i] + rest1 * grad
            second[i] = beta2 * second[i] + rest2 * grad * grad
            values[i] -= rate * first[i] / (np.sqrt(second[i]) * root + eps)


@compiled
def move(target, values, tau):  # type: ignore[no-untyped-def]
    """Polyak averaging."""
    weight = target.dtype.type(tau)
    for i in range(target.size):
        target[i] += weight * (values[i] - target[i])


@compiled
def gradient_step(  # type: ignore[no-untyped-def]
    online, target, memories, joint_memories, q_grads, batch, modes, optimizers, settings, update_actor
):
    """
    Algorithm 1, as ``step.gradient_step``, up to the target networks' move.

    :param online: Actor, state net and Q-net
    :param target: Those of the targets
    :param memories: Of actor, state net and Q-net; passes of online and target networks take turns with them. The last is for
        the input of the Q-net, (n, features + action_dim).
    :param joint_memories: For a joint pass: of state net and Q-net, the Q-net's input, states and next states, their actions,
        of 2 n rows each. Without one, of no rows.
    :param q_grads: Memory for the action columns of the Q-net's first weight and for the actions' gradient
    :param batch: Observations, actions, next observations, rewards, discounts (zero where there is no next state)
    :param modes: Of the target, the critic's loss, the actor and the critic in the actor's loss
    :param optimizers: The actor's and the critic's, as :func:`adam` takes them
    :param settings: Theirs
    :param update_actor: Whether to update the actor, too
    :return: Actor's loss (zero without its update), critic's loss, means of Q(s, a), its absolute value and the TD target
    """
    actor, state_net, q_net = online
    actor_memory, state_memory, q_memory, joined = memories
    joint_state_memory, joint_q_memory, joint_joined, joint_obs, joint_actions = joint_memories
    obs, actions, next_obs, rewards, discounts = batch
    action_columns, action_grad = q_grads
    n, action_dim = actions.shape
    dtype = actions.dtype.type
    scale = dtype(2.0 / n)

    # The TD target y = r + gamma Q'(s', mu'(s')), and Q(s, a), in one pass or in two
    is_joint = modes[0] == JOINT
    next_actions = forward(target[0], actor_memory, next_obs, RUNNING if is_joint else modes[0])
    squash(next_actions)
    y = np.empty_like(rewards)
    if is_joint:
        copy(obs, joint_obs)
        copy(next_obs, joint_obs[n:])
        copy(actions, joint_actions)
        copy(next_actions, joint_actions[n:])
        q = q_values(state_net, joint_state_memory, q_net, joint_q_memory, joint_obs, joint_actions, joint_joined, modes[1])
        td_targets(rewards, discounts, q[n:], y)
        critic_memories = joint_state_memory, joint_q_memory
        critic_inputs = joint_obs, joint_joined
        gradient_of(q_net, joint_q_memory, 2 * n, -1)[n:] = 0  # the targets are constants
    else:
        q = q_values(target[1], state_memory, target[2], q_memory, next_obs, next_actions, joined, modes[0])
        td_targets(rewards, discounts, q, y)
        q = q_values(state_net, state_memory, q_net, q_memory, obs, actions, joined, modes[1])
        critic_memories = state_memory, q_memory
        critic_inputs = obs, joined

    # The critic's loss mean (Q(s, a) - y)^2, its gradient and its step
    n_rows = q.shape[0]
    q_grad = gradient_of(q_net, critic_memories[1], n_rows, -1)
    loss, mean_q, mean_abs_q, mean_y = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        error = q[i, 0] - y[i, 0]
        q_grad[i, 0] = scale * error
        loss += error * error
        mean_q += q[i, 0]
        mean_abs_q += abs(q[i, 0])
        mean_y += y[i, 0]
    backward(q_net, critic_memories[1], critic_inputs[1], modes[1], True)
    features_grad = gradient_of(state_net, critic_memories[0], n_rows, -1)
    q_input_grad = gradient_of(q_net, critic_memories[1], n_rows, 0)
    for i in range(n_rows):
        for j in range(features_grad.shape[1]):
            features_grad[i, j] = q_input_grad[i, j]
    backward(state_net, critic_memories[0], critic_inputs[0], modes[1], True)
    adam(optimizers[1], settings[1])
    critic_reports = loss / n, mean_q / n, mean_abs_q / n, mean_y / n
    if not update_actor:
        return 0.0, *critic_reports

    # The actor's loss -mean Q(s, mu(s)); of the critic, only the gradient of the action is needed
    mu = forward(actor, actor_memory, obs, modes[2])
    squash(mu)
    q = q_values(state_net, state_memory, q_net, q_memory, obs, mu, joined, modes[3])
    q_grad = gradient_of(q_net, q_memory, n, -1)
    actor_loss = 0.0
    for i in range(n):
        actor_loss -= q[i, 0]
        q_grad[i, 0] = dtype(-1.0 / n)
    backward(q_net, q_memory, joined, modes[3], False)
    table = q_net.table
    first_weight = matrix(q_net.values, table[1, WEIGHT], table[1, WIDTH], table[0, WIDTH])
    for i in range(first_weight.shape[0]):
        for j in range(action_dim):
            action_columns[i, j] = first_weight[i, first_weight.shape[1] - action_dim + j]
    np.dot(gradient_of(q_net, q_memory, n, 1), action_columns, action_grad)
    mu_grad = gradient_of(actor, actor_memory, n, -1)
    for i in range(n):
        for j in range(action_dim):
            mu_grad[i, j] = action_grad[i, j] * (dtype(1) - mu[i, j] * mu[i, j])
    backward(actor, actor_memory, obs, modes[2], True)
    adam(optimizers[0], settings[0])
    return actor_loss / n, *critic_reports
