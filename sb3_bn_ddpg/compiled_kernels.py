"""
The arithmetic of a gradient step, compiled by Numba: whole passes of a network, without a call back into Python.

A network is a tuple of tuples of arrays (:func:`~sb3_bn_ddpg.compiled_update.network_arrays`); an array of size zero
stands for what a layer does not have, and for the layer of a network without any: layer norm is the normalisation without
running statistics. Matrix products are SciPy's BLAS.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

RUNNING, BATCH, BATCH_UPDATE, JOINT = range(4)
"""What a pass does with the statistics of batch norm; see :data:`~sb3_bn_ddpg.normalization.TargetStatistics`."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, once a machine. Sums may be reordered; NaN and infinity stay what they are."""
    decorate: Any = numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
    kernel: Callable[..., Any] = decorate(function)
    return kernel


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
def forward(network, memory, x, mode):  # type: ignore[no-untyped-def]
    """Outputs of all layers into the memory: outputs[0] is the input, normalised or not, outputs[-1] the output."""
    weights, biases, gammas, betas, running_means, running_vars, momenta, epsilons, n_layers, n_hidden = network[:10]
    outputs, linear_outputs, means, invstds = memory[:4]
    if gammas[0].size > 0:
        normalise(
            x, gammas[0], betas[0], running_means[0], running_vars[0], means[0], invstds[0], mode, momenta[0], epsilons[0],
            False, outputs[0],
        )  # fmt: skip
    else:
        outputs[0][:] = x
    for i in range(n_layers):
        z, y, relu, k = linear_outputs[i], outputs[i + 1], i < n_hidden, i + 1
        np.dot(outputs[i], weights[i].T, z)
        if gammas[k].size > 0:
            if biases[i].size > 0:
                shift(z, biases[i], False, z)
            if running_means[k].size > 0:
                normalise(
                    z, gammas[k], betas[k], running_means[k], running_vars[k], means[k], invstds[k], mode, momenta[k],
                    epsilons[k], relu, y,
                )  # fmt: skip
            else:
                normalise_rows(z, gammas[k], betas[k], means[k], invstds[k], epsilons[k], relu, y)
        else:
            shift(z, biases[i], relu, y)


@compiled
def backward(network, memory, x, mode, fill):  # type: ignore[no-untyped-def]
    """
    From the gradient of the output, in grads[-1], to that of the input, in grads[0], and those of the parameters if they are
    to be filled: after a pass on the batch's statistics. If not, the product with the first weight is left to the caller.
    The mode is that of the pass.
    """
    weights, _, gammas, _, running_means = network[:5]
    n_layers, n_hidden, weight_grads, bias_grads, gamma_grads, beta_grads = network[8:]
    outputs, linear_outputs, means, invstds, grads = memory
    for i in range(n_layers - 1, -1, -1):
        grad, relu, k = grads[i + 1], i < n_hidden, i + 1
        if running_means[k].size > 0 and mode == RUNNING:
            normalise_backward_fixed(grad, outputs[k], gammas[k], invstds[k], relu)
        elif gammas[k].size > 0:
            gamma_grad, beta_grad = gamma_grads[k], beta_grads[k]
            if not fill:
                gamma_grad, beta_grad = np.empty_like(gamma_grad), np.empty_like(beta_grad)
            if running_means[k].size > 0:
                normalise_backward(
                    grad, outputs[k], linear_outputs[i], gammas[k], means[k], invstds[k], relu, False, gamma_grad, beta_grad
                )
            else:
                normalise_rows_backward(
                    grad, outputs[k], linear_outputs[i], gammas[k], means[k], invstds[k], relu, gamma_grad, beta_grad
                )
            if fill and bias_grads[i].size > 0:
                shift_backward(grad, outputs[k], False, bias_grads[i])
        else:
            shift_backward(grad, outputs[k], relu, bias_grads[i] if fill else bias_grads[i][:0])
        if fill:
            np.dot(grad.T, outputs[i], weight_grads[i])
        if fill or i > 0:
            np.dot(grad, weights[i], grads[i])
    if fill and gammas[0].size > 0:
        normalise_backward(
            grads[0], outputs[0], x, gammas[0], means[0], invstds[0], False, True, gamma_grads[0], beta_grads[0]
        )


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
    """Q(s, a), the last of the outputs in the memory of the Q-network."""
    forward(state_net, state_memory, obs, mode)
    join(state_memory[0][-1], actions, joined)
    forward(q_net, q_memory, joined, mode)
    return q_memory[0][-1]


@compiled
def squash(x):  # type: ignore[no-untyped-def]
    """tanh, in place."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = np.tanh(x[i, j])


@compiled
def adam(groups, settings):  # type: ignore[no-untyped-def]
    """
    One step of Adam for each group of parameters: (values, gradients, first and second moments).

    :param groups: Tuple of these
    :param settings: For each: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), beta1, beta2, eps, weight decay
    """
    for g in range(len(groups)):
        values, grads, first, second = groups[g]
        dtype = values.dtype.type
        one = dtype(1)
        rate, root, beta1, beta2 = dtype(settings[g, 0]), dtype(settings[g, 1]), dtype(settings[g, 2]), dtype(settings[g, 3])
        eps, decay = dtype(settings[g, 4]), dtype(settings[g, 5])
        for i in range(values.size):
            grad = grads[i] + decay * values[i]
            first[i] = beta1 * first[i] + (one - beta1) * grad
            second[i] = beta2 * second[i] + (one - beta2) * grad * grad
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
    Algorithm 1, as ``update.gradient_step``, up to the target networks' move.

    :param online: Actor, state net and Q-net
    :param target: Those of the targets
    :param memories: Of actor, state net and Q-net; passes of online and target networks take turns with them. The last is for
        the input of the Q-net, (n, features + action_dim).
    :param joint_memories: For a joint pass: of state net and Q-net, the Q-net's input, states and next states, their actions,
        of 2 n rows each. Without one, of no rows.
    :param q_grads: Memory for the action columns of the Q-net's first weight and for the actions' gradient
    :param batch: Observations, actions, next observations, rewards, discounts (zero where there is no next state)
    :param modes: Of the target, the critic's loss, the actor and the critic in the actor's loss
    :param optimizers: Groups of the actor's and of the critic's optimizer
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
    forward(target[0], actor_memory, next_obs, RUNNING if is_joint else modes[0])
    squash(actor_memory[0][-1])
    if is_joint:
        joint_obs[:n], joint_obs[n:] = obs, next_obs
        joint_actions[:n], joint_actions[n:] = actions, actor_memory[0][-1]
        q = q_values(state_net, joint_state_memory, q_net, joint_q_memory, joint_obs, joint_actions, joint_joined, modes[1])
        y = rewards + discounts * q[n:]
        critic_memories = joint_state_memory, joint_q_memory
        critic_inputs = joint_obs, joint_joined
        critic_memories[1][4][-1][n:] = 0  # the targets are constants
    else:
        q = q_values(target[1], state_memory, target[2], q_memory, next_obs, actor_memory[0][-1], joined, modes[0])
        y = rewards + discounts * q
        q = q_values(state_net, state_memory, q_net, q_memory, obs, actions, joined, modes[1])
        critic_memories = state_memory, q_memory
        critic_inputs = obs, joined

    # The critic's loss mean (Q(s, a) - y)^2, its gradient and its step
    q_grad = critic_memories[1][4][-1]
    loss, mean_q, mean_abs_q, mean_y = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        error = q[i, 0] - y[i, 0]
        q_grad[i, 0] = scale * error
        loss += error * error
        mean_q += q[i, 0]
        mean_abs_q += abs(q[i, 0])
        mean_y += y[i, 0]
    backward(q_net, critic_memories[1], critic_inputs[1], modes[1], True)
    features_grad, q_input_grad = critic_memories[0][4][-1], critic_memories[1][4][0]
    for i in range(features_grad.shape[0]):
        for j in range(features_grad.shape[1]):
            features_grad[i, j] = q_input_grad[i, j]
    backward(state_net, critic_memories[0], critic_inputs[0], modes[1], True)
    adam(optimizers[1], settings[1])
    critic_reports = loss / n, mean_q / n, mean_abs_q / n, mean_y / n
    if not update_actor:
        return 0.0, *critic_reports

    # The actor's loss -mean Q(s, mu(s)); of the critic, only the gradient of the action is needed
    forward(actor, actor_memory, obs, modes[2])
    mu = actor_memory[0][-1]
    squash(mu)
    q = q_values(state_net, state_memory, q_net, q_memory, obs, mu, joined, modes[3])
    actor_loss = 0.0
    for i in range(n):
        actor_loss -= q[i, 0]
        q_memory[4][-1][i, 0] = dtype(-1.0 / n)
    backward(q_net, q_memory, joined, modes[3], False)
    first_weight = q_net[0][0]
    for i in range(first_weight.shape[0]):
        for j in range(action_dim):
            action_columns[i, j] = first_weight[i, first_weight.shape[1] - action_dim + j]
    np.dot(q_memory[4][1], action_columns, action_grad)
    mu_grad = actor_memory[4][-1]
    for i in range(n):
        for j in range(action_dim):
            mu_grad[i, j] = action_grad[i, j] * (dtype(1) - mu[i, j] * mu[i, j])
    backward(actor, actor_memory, obs, modes[2], True)
    adam(optimizers[0], settings[0])
    return actor_loss / n, *critic_reports
