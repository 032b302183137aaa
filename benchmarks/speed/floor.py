"""The floor: the matrix products that one update of the paper's DDPG cannot do without, done by torch, and nothing else."""

from typing import NamedTuple

import torch as th

from benchmarks.speed.subject import ModelSpec, Subject


class Product(NamedTuple):
    """
    A product of an (m, k) by a (k, n) matrix.

    :param name: What it computes
    :param m: Rows of the left factor
    :param k: Columns of the left factor, rows of the right one
    :param n: Columns of the right factor
    :param transposed: Which factor is stored transposed: the right one in a forward pass (torch stores weights as
        (out, in)), the left one in the gradient of a weight, none in the gradient of an input
    """

    name: str
    m: int
    k: int
    n: int
    transposed: str = ""


def _forward(name: str, batch: int, n_in: int, n_out: int) -> Product:
    return Product(f"{name}: forward", batch, n_in, n_out, "right")


def _weight_gradient(name: str, batch: int, n_in: int, n_out: int) -> Product:
    return Product(f"{name}: gradient of the weights", n_out, batch, n_in, "left")


def _input_gradient(name: str, batch: int, n_in: int, n_out: int) -> Product:
    return Product(f"{name}: gradient of the input", batch, n_out, n_in)


def update_products(obs_dim: int, action_dim: int, net_arch: tuple[int, ...], batch: int) -> list[Product]:
    """
    The products of one update by Algorithm 1 with two hidden layers, the action joining the critic at the second one: 27.

    - TD target: the forward passes of the target actor (3) and the target critic (3).
    - Critic's loss: the critic's forward pass on the replayed actions (3); the gradients of its three weights, and of the
      inputs of its output layer and of the state's part of its second layer (5).
    - Actor's loss: the forward passes of the actor (3) and, as its weights have moved, once more of the critic (3); through
      the critic the gradient of the output layer's input and from there that of the action's part of the second layer's
      input only, and no gradient of the critic's weights (2); the gradients of the actor's three weights and of the inputs of
      its last two layers (5).

    Biases, activations, normalisation, losses, Adam, Polyak averaging and sampling are not counted.

    :param obs_dim: Dimension of the states
    :param action_dim: Dimension of the actions
    :param net_arch: Units of the two hidden layers
    :param batch: Transitions in the update
    :return: The products, in the order of the update
    """
    first, second = net_arch
    actor = [("actor 1", batch, obs_dim, first), ("actor 2", batch, first, second), ("actor 3", batch, second, action_dim)]
    critic = [
        ("critic 1", batch, obs_dim, first),
        ("critic 2", batch, first + action_dim, second),
        ("critic 3", batch, second, 1),
    ]
    return [
        *(_forward(f"target {name}", *sizes) for name, *sizes in actor + critic),
        *(_forward(*layer) for layer in critic),
        *(_weight_gradient(*layer) for layer in critic),
        _input_gradient(*critic[2]),
        _input_gradient("critic 2, state", batch, first, second),
        *(_forward(*layer) for layer in actor + critic),
        _input_gradient(*critic[2]),
        _input_gradient("critic 2, action", batch, action_dim, second),
        *(_weight_gradient(*layer) for layer in actor),
        *(_input_gradient(*layer) for layer in actor[1:]),
    ]


class FloorSubject(Subject):
    """Those products of random matrices, each with factors of its own and written into a preallocated result."""

    def construct(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.factors: dict[int, list[tuple[th.Tensor, th.Tensor, th.Tensor]]] = {}

    def fill(self) -> None:
        pass  # nothing is sampled

    def update(self, count: int, batch_size: int, per_call: int) -> None:
        if batch_size not in self.factors:
            self.factors = {batch_size: [self._factors(product) for product in self._products(batch_size)]}
        factors = self.factors[batch_size]
        for _ in range(count):
            for left, right, result in factors:
                th.mm(left, right, out=result)

    def _products(self, batch_size: int) -> list[Product]:
        return update_products(self.spec.obs_dim, self.spec.action_dim, self.spec.net_arch, batch_size)

    @staticmethod
    def _factors(product: Product) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        left = th.randn(product.k, product.m).t() if product.transposed == "left" else th.randn(product.m, product.k)
        right = th.randn(product.n, product.k).t() if product.transposed == "right" else th.randn(product.k, product.n)
        return left, right, th.empty(product.m, product.n)
