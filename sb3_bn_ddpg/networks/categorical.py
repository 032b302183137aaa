"""
Values as distributions over atoms, as in C51 (`Bellemare et al. <https://arxiv.org/abs/1707.06887>`_): a Q-network has an
output for each atom, and the softmax of these is the probability that the return is that atom.
"""

import torch as th

from sb3_bn_ddpg.common.checks import check_number


def make_atoms(n_atoms: int | None, v_min: float, v_max: float) -> th.Tensor | None:
    """
    :param n_atoms: Number of atoms, >= 2, or None for critics without
    :param v_min: The smallest atom
    :param v_max: The largest atom, > ``v_min``
    :return: The atoms, equally spaced, of shape ``(n_atoms,)``, or None
    :raises ValueError: if an argument is out of its range
    """
    check_number("v_min", v_min)
    check_number("v_max", v_max, low=v_min, low_open=True)
    if n_atoms is None:
        return None
    check_number("n_atoms", n_atoms, low=2, integer=True)
    return th.linspace(v_min, v_max, n_atoms)


def expectation(probabilities: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    :param probabilities: Of each atom, of shape ``(batch_size, n_atoms)``
    :param atoms: The atoms
    :return: The means of the distributions, of shape ``(batch_size, 1)``
    """
    return (probabilities * atoms).sum(dim=1, keepdim=True)


def places_of(values: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    :param values: Any values
    :param atoms: The atoms
    :return: Where the values lie among the atoms, in [0, n_atoms - 1], of their shape: 1.25 is between the second and the
        third atom. Values beyond the first or the last atom are taken for that atom.
    """
    last = len(atoms) - 1
    # Clipped at the end, where rounding cannot lead beyond the last atom any more
    return ((values - atoms[0]) * (last / (atoms[-1] - atoms[0]))).clamp(0, last)


def projected(probabilities: th.Tensor, values: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    The distribution over the atoms that is next to one over other values: the probability of each value goes to the two atoms
    beside it, the more to one the nearer it is (C51, Algorithm 1).

    :param probabilities: Of each value, of shape ``(batch_size, n_values)``
    :param values: The values, of the same shape
    :param atoms: The atoms
    :return: Probabilities of the atoms, of shape ``(batch_size, n_atoms)``
    """
    numbers = th.arange(len(atoms), device=atoms.device, dtype=atoms.dtype)
    # Atom i gets of value j the share max(0, 1 - |place of j - i|): (batch_size, n_values, n_atoms). A sum in a fixed order,
    # which adding up by index would not be on a GPU
    shares = (1 - (places_of(values, atoms).unsqueeze(2) - numbers).abs()).clamp(min=0)
    return (probabilities.unsqueeze(2) * shares).sum(dim=1)
