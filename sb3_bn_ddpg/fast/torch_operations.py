"""
The operations of a gradient step in PyTorch. :mod:`sb3_bn_ddpg.fast.numba_operations` has the same ones, by the same names and
arguments; a step is written on these names (see :class:`~sb3_bn_ddpg.fast.parts.EngineStep`).

What is handed over to be written to is for Numba: here an operation returns its result, and a pass keeps in its memory what
its way back needs.
"""

import torch as th

from sb3_bn_ddpg.fast.flat_storage import FlatStorage
from sb3_bn_ddpg.fast.mlp import Memory, Mlp
from sb3_bn_ddpg.fast.parts import RUNNING
from sb3_bn_ddpg.fast.torch_categorical import (
    cross_entropy,
    expected,
    projected_targets,
    q_backward,
    q_of_outputs,
    smaller_outputs,
)
from sb3_bn_ddpg.fast.torch_generative import (
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
from sb3_bn_ddpg.fast.torch_imitation import (
    HALF_LOG_2_PI,
    advantage_weights,
    clamped_log_std,
    expectile_error,
    gaussian_actions,
    imitation,
    regression,
    sigmoid_log_std,
    softmax_weights,
)
from sb3_bn_ddpg.networks.actors import LOG_STD_MAX, LOG_STD_MIN, SQUASH_EPS

__all__ = [
    "advantage_weights",
    "best_values",
    "clamped_log_std",
    "clipped_latents",
    "cross_entropy",
    "expected",
    "expectile_error",
    "gaussian_actions",
    "imitation",
    "larger",
    "latents",
    "latents_backward",
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


def forward(network: Mlp, memory: Memory, x: th.Tensor, mode: int) -> th.Tensor:
    """
    A pass of a network.

    :param network: The network
    :param memory: Keeps what the way back needs
    :param x: Its inputs, (n, features)
    :param mode: What it does with the statistics of batch norm
    :return: Its outputs
    """
    return network.forward(memory, x, mode)


def infer(network: Mlp, memory: Memory, x: th.Tensor, mode: int) -> th.Tensor:
    """
    A pass without a way back.

    :param network: The network
    :param memory: Used by Numba's
    :param x: Its inputs, (n, features)
    :param mode: What it does with the statistics of batch norm
    :return: Its outputs
    """
    return network.infer(x, mode)


def output(network: Mlp, memory: Memory, n: int) -> th.Tensor:
    """
    :param network: A network
    :param memory: Of a pass of n rows
    :param n: That number
    :return: The outputs of that pass
    """
    return memory.output


def backward(network: Mlp, memory: Memory, x: th.Tensor, grad: th.Tensor, n_wanted: int) -> th.Tensor:
    """
    Fill the gradients of all parameters, after a pass that normalised with the statistics of the batch.

    :param network: The network
    :param memory: Of the pass
    :param x: Its inputs
    :param grad: Gradient of its outputs
    :param n_wanted: How many of the inputs, the first ones, have a gradient that is wanted
    :return: Their gradient; of no meaning if there are none
    """
    return network.backward(memory, grad, n_wanted)


def last_inputs_gradient(network: Mlp, memory: Memory, x: th.Tensor, grad: th.Tensor, mode: int, n_wanted: int) -> th.Tensor:
    """
    The gradient of the last inputs alone, such as the action's.

    :param network: The network
    :param memory: Of the pass
    :param x: Its inputs
    :param grad: Gradient of its outputs
    :param mode: Of the pass
    :param n_wanted: How many of the inputs
    :return: Their gradient, (n, n_wanted)
    """
    return network.last_inputs_gradient(memory, grad, n_wanted, mode != RUNNING)


def join(features: th.Tensor, actions: th.Tensor, joined: None) -> th.Tensor:
    """
    :param features: (n, features)
    :param actions: (n, action_dim)
    :param joined: Memory
    :return: Both, (n, features + action_dim)
    """
    return th.cat([features, actions], dim=1)


def rows(first: th.Tensor, second: th.Tensor, memory: None) -> th.Tensor:
    """
    :param first: (n, features)
    :param second: (n, features)
    :param memory: Memory
    :return: Both, (2 n, features)
    """
    return th.cat([first, second])


def squash(x: th.Tensor) -> th.Tensor:
    """
    tanh, in place.

    :param x: Overwritten
    :return: The same memory
    """
    return x.tanh_()


def squash_backward(grad: th.Tensor, y: th.Tensor) -> th.Tensor:
    """
    :param grad: Gradient of y = tanh(x)
    :param y: That
    :return: Gradient of x
    """
    gradient: th.Tensor = th.ops.aten.tanh_backward(grad, y)
    return gradient


def add_noise(actions: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    :param actions: Actions, in [-1, 1], overwritten
    :param noise: What to add, of the same shape, or of no rows for none
    :return: Their sum, clipped to [-1, 1], in the same memory
    """
    return actions.add_(noise).clamp_(-1, 1) if len(noise) else actions


def smaller(least: th.Tensor, values: th.Tensor, is_first: bool) -> th.Tensor:
    """
    :param least: The smallest values so far, or anything of their shape
    :param values: Further ones
    :param is_first: Whether there were none so far
    :return: The smaller ones (in Numba's in the memory of ``least``)
    """
    return values if is_first else th.minimum(least, values)


def like(x: th.Tensor) -> th.Tensor:
    """
    :param x: Any tensor
    :return: Memory of its shape to write to, which is needed by Numba's operations only
    """
    return x


def td_targets(rewards: th.Tensor, discounts: th.Tensor, next_q: th.Tensor, loss_of_value: th.Tensor) -> th.Tensor:
    """
    :param rewards: (n, 1)
    :param discounts: (n, 1)
    :param next_q: Values of the next states, (n, 1), which Numba's overwrites
    :param loss_of_value: What is taken from them, (n, 1), or of no rows for nothing
    :return: y = r + discount Q'
    """
    if len(loss_of_value):
        next_q = next_q - loss_of_value
    return th.addcmul(rewards, discounts, next_q)


def squared_error(q: th.Tensor, y: th.Tensor, factor: float, reports: list[th.Tensor | None], place: int) -> th.Tensor:
    """
    The loss mean (Q - y)^2 of the first n values, n that of the targets, times a factor; the others are not trained.

    :param q: Values, (n, 1) or more rows
    :param y: Targets, (n, 1)
    :param factor: The factor
    :param reports: Takes the loss, the mean of Q and of its absolute value
    :param place: Where the first of these goes
    :return: Gradient of the loss, of the shape of q
    """
    n = len(y)
    values = q[:n]
    error = values - y
    loss = error.square()
    reports[place : place + 3] = [loss if factor == 1 else loss.mul_(factor), values, values.abs()]
    grad = error.mul_(2 * factor / n)
    return grad if len(q) == n else th.cat([grad, grad.new_zeros(len(q) - n, 1)])


def report(reports: list[th.Tensor | None], place: int, values: th.Tensor, factor: float) -> None:
    """
    :param reports: Takes the mean of the values, times the factor
    :param place: Where it goes
    :param values: (n, 1)
    :param factor: 1 or -1
    """
    reports[place] = values if factor == 1 else -values


def ascent(q: th.Tensor, least: th.Tensor, n_least: th.Tensor, is_only: bool) -> th.Tensor:
    """
    The gradient of the loss -mean min Q.

    :param q: Values of one Q-network, (n, 1)
    :param least: The smallest of all of them
    :param n_least: How many of them have it
    :param is_only: Whether there is just the one
    :return: The gradient of these values
    """
    if is_only:
        return th.full_like(q, -1 / len(q))
    return (q == least).to(q.dtype).div_(n_least).mul_(-1 / len(q))


def count_least(n_least: th.Tensor, q: th.Tensor, least: th.Tensor, is_first: bool) -> th.Tensor:
    """
    :param n_least: How many had the smallest value so far
    :param q: Values of one more, (n, 1)
    :param least: The smallest of all
    :param is_first: Whether it is the first
    :return: How many have it, with this one (in Numba's in the memory of ``n_least``)
    """
    is_least = (q == least).to(q.dtype)
    return is_least if is_first else n_least + is_least


def add(total: th.Tensor, x: th.Tensor, is_first: bool) -> th.Tensor:
    """
    :param total: A sum
    :param x: A further summand
    :param is_first: Whether it is the first
    :return: Their sum
    """
    return x if is_first else total.add_(x)


def scale(x: th.Tensor, factor: th.Tensor) -> th.Tensor:
    """
    :param x: Numbers
    :param factor: One number
    :return: Their products
    """
    return x * factor


def subtract(x: th.Tensor, y: th.Tensor) -> th.Tensor:
    """
    :param x: (n, 1)
    :param y: (n, 1)
    :return: x - y (in Numba's in the memory of ``x``)
    """
    return x - y


def exponential(storage: FlatStorage, is_learned: bool, value: float) -> th.Tensor:
    """
    The entropy coefficient.

    :param storage: Of its logarithm
    :param is_learned: Whether that is trained
    :param value: What the coefficient is if not
    :return: It, of shape ``(1,)``
    """
    logarithm = storage.values[:1]
    return logarithm.exp() if is_learned else th.full_like(logarithm, value)


def entropy_gradient(
    storage: FlatStorage, log_prob: th.Tensor, target_entropy: float, reports: list[th.Tensor | None], place: int
) -> None:
    """
    Gradient of the loss -log(alpha) mean(log pi + target), into the storage.

    :param storage: Of the logarithm
    :param log_prob: Logarithms of probability densities, (n, 1)
    :param target_entropy: The target
    :param reports: Takes the loss
    :param place: Where it goes
    """
    excess = log_prob + target_entropy
    reports[place] = -(storage.values[0] * excess)
    storage.grads[0] = -excess.mean()


def sample(mean: th.Tensor, log_std: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Actions tanh(mean + std noise), and the logarithms of their probability densities, as
    :meth:`~sb3_bn_ddpg.networks.actors.GaussianActor.action_and_log_prob` has them.

    :param mean: (n, action_dim)
    :param log_std: Likewise, not clamped yet
    :param noise: Standard normal noise, likewise
    :return: Actions, likewise, and the logarithms, (n, 1)
    """
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    actions = th.addcmul(mean, log_std.exp(), noise).tanh_()
    # In this order: 1 + epsilon, in float32, is off by a twentieth of epsilon, which is all that counts where tanh saturates
    log_densities = (1 - actions.square()).add_(SQUASH_EPS).log_().add_(log_std).add_(noise.square(), alpha=0.5)
    return actions, log_densities.sum(dim=1, keepdim=True).add_(mean.shape[1] * HALF_LOG_2_PI).neg_()


def sample_backward(
    action_grad: th.Tensor, actions: th.Tensor, log_std: th.Tensor, noise: th.Tensor, ent_coef: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    The gradient of the loss mean(alpha log pi) + f(actions), after :func:`sample`.

    :param action_grad: Gradient of f, (n, action_dim)
    :param actions: The actions
    :param log_std: As of ``sample``
    :param noise: As of ``sample``
    :param ent_coef: alpha
    :return: Gradients of mean and log_std
    """
    n = len(actions)
    # d tanh(u) / du, and the logarithm of that in log pi
    slope = 1 - actions.square()
    share = ent_coef / n
    mean_grad = (action_grad + 2 * share * actions / (slope + SQUASH_EPS)).mul_(slope)
    clamped = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    log_std_grad = (mean_grad * clamped.exp()).mul_(noise).sub_(share)
    return mean_grad, log_std_grad.mul_(clamped == log_std)


def report_number(reports: list[th.Tensor | None], place: int, number: th.Tensor, column: th.Tensor) -> None:
    """
    :param reports: Takes a number
    :param place: Where it goes
    :param number: It
    :param column: Any column of n rows
    """
    reports[place] = number.expand(column.shape)


def adam(storage: FlatStorage, rates: None) -> None:
    """
    A step of the optimizer with the gradients in the storage; then weights of a fixed norm get it back.

    :param storage: A network's storage
    :param rates: What the step is made with, for Numba's
    """
    storage.adam_step()
    storage.restore_norms()


def follow(storage: FlatStorage, tau: float, sync: int) -> None:
    """
    Move a target network, if there is one.

    :param storage: The storage of both
    :param tau: Polyak coefficient, in [0, 1]
    :param sync: What its running statistics do
    """
    storage.move_target(tau, sync)
