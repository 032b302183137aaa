"""
The operations of a gradient step on critics of atoms, in PyTorch: a part of :mod:`sb3_bn_ddpg.fast.torch_operations`. Where
there are no atoms, a Q-network's output is its value.
"""

import torch as th

from sb3_bn_ddpg.networks.categorical import expectation, places_of, projected


def expected(probabilities: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    :param probabilities: Of the atoms, (n, n_atoms), or values, (n, 1), if there are none
    :param atoms: The atoms, (n_atoms,), of no entries if there are none
    :return: The means, or the values, (n, 1)
    """
    return expectation(probabilities, atoms) if len(atoms) else probabilities


def q_of_outputs(outputs: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    :param outputs: Of a Q-network: logits, (n, n_atoms), or values, (n, 1), if there are no atoms
    :param atoms: The atoms
    :return: Its values, (n, 1)
    """
    return expectation(outputs.softmax(dim=1), atoms) if len(atoms) else outputs


def q_backward(outputs: th.Tensor, atoms: th.Tensor, grad: th.Tensor) -> th.Tensor:
    """
    :param outputs: As of :func:`q_of_outputs`
    :param atoms: The atoms
    :param grad: Gradient of the values, (n, 1)
    :return: Gradient of the outputs
    """
    if not len(atoms):
        return grad
    probabilities = outputs.softmax(dim=1)
    return (atoms - expectation(probabilities, atoms)).mul_(probabilities).mul_(grad)


def smaller_outputs(kept: th.Tensor, outputs: th.Tensor, least: th.Tensor, values: th.Tensor, is_first: bool) -> th.Tensor:
    """
    :param kept: The outputs of the smallest values so far, (n, n_atoms), or anything of two dimensions
    :param outputs: Those of a further Q-network
    :param least: The smallest values so far, (n, 1)
    :param values: Those of the further one
    :param is_first: Whether there were none so far
    :return: In each row the outputs with the smaller value, the earlier ones of two that are equal
    """
    return outputs if is_first else th.where(values < least, outputs, kept)


def projected_targets(
    rewards: th.Tensor, discounts: th.Tensor, next_outputs: th.Tensor, loss_of_value: th.Tensor, atoms: th.Tensor
) -> th.Tensor:
    """
    :param rewards: (n, 1)
    :param discounts: (n, 1)
    :param next_outputs: Logits of the next states, (n, n_atoms)
    :param loss_of_value: What is taken from their atoms, (n, 1), or of no rows for nothing
    :param atoms: The atoms
    :return: Probabilities of the atoms that are next to the distribution of r + discount (Z' - loss of value)
    """
    probabilities = next_outputs.softmax(dim=1)
    moved = th.addcmul(rewards, discounts, atoms - loss_of_value if len(loss_of_value) else atoms)
    if moved.is_cuda:
        return projected(probabilities, moved, atoms)
    # The same without a table of (n, n_atoms, n_atoms), by adding up in an order that is fixed on a processor
    places = places_of(moved, atoms)
    lower = places.nan_to_num(0.0).floor_()
    to_upper = (places - lower).mul_(probabilities)
    index = lower.long()
    y = th.zeros_like(probabilities).scatter_add_(1, index, probabilities - to_upper)
    return y.scatter_add_(1, (index + 1).clamp_(max=len(atoms) - 1), to_upper)


def cross_entropy(
    outputs: th.Tensor, y: th.Tensor, atoms: th.Tensor, reports: list[th.Tensor | None], place: int
) -> th.Tensor:
    """
    The loss -mean sum y log p of the first n rows, n that of the targets; the others are not trained.

    :param outputs: Logits, (n, n_atoms) or more rows
    :param y: Target probabilities, (n, n_atoms)
    :param atoms: The atoms
    :param reports: Takes the loss, the mean of Q and of its absolute value
    :param place: Where the first of these goes
    :return: Gradient of the loss, of the shape of the outputs
    """
    n = len(y)
    log_probabilities = outputs[:n].log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    values = expectation(probabilities, atoms)
    reports[place : place + 3] = [(y * log_probabilities).sum(dim=1, keepdim=True).neg_(), values, values.abs()]
    grad = probabilities.sub_(y).div_(n)
    return grad if len(outputs) == n else th.cat([grad, grad.new_zeros(len(outputs) - n, grad.shape[1])])
