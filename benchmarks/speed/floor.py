"""The floor: the matrix products that one update of DDPG, TD3 or SAC cannot do without, done by torch, and nothing else."""

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


Factors = tuple[list[tuple[th.Tensor, th.Tensor, th.Tensor]], list[tuple[th.Tensor, th.Tensor, th.Tensor]]]
"""Left and right factor and result of each product, of the critics and of the actor."""


def _forward(name: str, batch: int, n_in: int, n_out: int) -> Product:
    return Product(f"{name}: forward", batch, n_in, n_out, "right")


def _weight_gradient(name: str, batch: int, n_in: int, n_out: int) -> Product:
    return Product(f"{name}: gradient of the weights", n_out, batch, n_in, "left")


def _input_gradient(name: str, batch: int, n_in: int, n_out: int) -> Product:
    return Product(f"{name}: gradient of the input", batch, n_out, n_in)


class Products(NamedTuple):
    """
    Those of an update.

    :param critics: Of every update
    :param actor: Of those that update the actor, too
    """

    critics: list[Product]
    actor: list[Product]


def update_products(
    obs_dim: int,
    action_dim: int,
    net_arch: tuple[int, ...],
    batch: int,
    n_critics: int = 1,
    n_of_actor: int = 1,
    n_heads: int = 1,
) -> Products:
    """
    The products of one update with two hidden layers, the action joining the critics at the second one: 27 for the paper's
    DDPG (Algorithm 1).

    - TD target: a forward pass of an actor (3) and of each target critic (3).
    - Critics' loss: the forward pass of each critic on the replayed actions (3); the gradients of its three weights, and of
      the inputs of its output layer and of the state's part of its second layer (5).
    - Actor's loss: the forward passes of the actor (3) and, as their weights have moved, once more of the critics in this loss
      (3); through these critics the gradient of the output layer's input and from there that of the action's part of the
      second layer's input only, and no gradient of their weights (2); the gradients of the actor's three weights and of the
      inputs of its last two layers (5).

    Biases, activations, normalisation, losses, Adam, Polyak averaging and sampling are not counted.

    :param obs_dim: Dimension of the states
    :param action_dim: Dimension of the actions
    :param net_arch: Units of the two hidden layers
    :param batch: Transitions in the update
    :param n_critics: Number of critics: 2 for TD3 and SAC
    :param n_of_actor: How many of them the actor's loss takes: TD3's the first, SAC's both
    :param n_heads: What the actor has an output of for each action: 2 for SAC's, mean and standard deviation
    :return: The products, in the order of the update
    """
    first, second = net_arch
    actor = [
        ("actor 1", batch, obs_dim, first),
        ("actor 2", batch, first, second),
        ("actor 3", batch, second, n_heads * action_dim),
    ]
    critic = [
        ("critic 1", batch, obs_dim, first),
        ("critic 2", batch, first + action_dim, second),
        ("critic 3", batch, second, 1),
    ]
    return Products(
        critics=[
            *(_forward(f"target {name}", *sizes) for name, *sizes in actor + n_critics * critic),
            *(_forward(*layer) for layer in n_critics * critic),
            *(_weight_gradient(*layer) for layer in n_critics * critic),
            *n_critics * [_input_gradient(*critic[2]), _input_gradient("critic 2, state", batch, first, second)],
        ],
        actor=[
            *(_forward(*layer) for layer in actor + n_of_actor * critic),
            *n_of_actor * [_input_gradient(*critic[2]), _input_gradient("critic 2, action", batch, action_dim, second)],
            *(_weight_gradient(*layer) for layer in actor),
            *(_input_gradient(*layer) for layer in actor[1:]),
        ],
    )


class FloorSubject(Subject):
    """
    Those products of random matrices, each with factors of its own and written into a preallocated result. Its arguments are
    ``policy_delay``, in how many updates one updates the actor, and those of :func:`update_products`.
    """

    def construct(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.numbers = dict(self.kwargs)
        self.policy_delay = self.numbers.pop("policy_delay", 1)
        self.factors: dict[int, Factors] = {}
        self.n_updates = 0

    def fill(self) -> None:
        pass  # nothing is sampled

    def update(self, count: int, batch_size: int, per_call: int) -> None:
        if batch_size not in self.factors:
            products = update_products(self.spec.obs_dim, self.spec.action_dim, self.spec.net_arch, batch_size, **self.numbers)
            self.factors = {batch_size: (list(map(_factors, products.critics)), list(map(_factors, products.actor)))}
        of_critics, of_actor = self.factors[batch_size]
        for _ in range(count):
            self.n_updates += 1
            for left, right, result in of_critics:
                th.mm(left, right, out=result)
            if self.n_updates % self.policy_delay == 0:
                for left, right, result in of_actor:
                    th.mm(left, right, out=result)


class WholeFloorSubject(FloorSubject):
    """
    Those products, and what else an update of DDPG cannot do without: PyTorch's fused Adam and the Polyak average, each over
    all weights of a network in one piece, and a minibatch gathered from the replay buffer. Biases, normalisation, activations
    and losses are still not counted.
    """

    def construct(self, spec: ModelSpec) -> None:
        super().construct(spec)
        (first, second), n_obs, n_actions = spec.net_arch, spec.obs_dim, spec.action_dim
        sizes = (
            n_obs * first + first * second + second * n_actions,
            n_obs * first + (first + n_actions) * second + second,
        )
        # Values, gradients, both moments and target of actor and critic
        self.networks = [[th.rand(size) for _ in range(5)] for size in sizes]
        self.step = th.tensor(1000.0)

    def fill(self) -> None:
        spec = self.spec
        widths = (spec.obs_dim, spec.obs_dim, spec.action_dim, 1, 1)
        self.buffer = [th.rand(spec.buffer_size, width) for width in widths]

    def update(self, count: int, batch_size: int, per_call: int) -> None:
        batch = [entries.new_empty(batch_size, entries.shape[1]) for entries in self.buffer]
        for _ in range(count):
            indices = th.randint(len(self.buffer[0]), (batch_size,))
            for entries, out in zip(self.buffer, batch, strict=True):
                th.index_select(entries, 0, indices, out=out)
            super().update(1, batch_size, 1)
            for values, grads, means, squares, target in self.networks:
                th._fused_adam_(
                    [values],
                    [grads],
                    [means],
                    [squares],
                    [],
                    [self.step],
                    lr=1e-3,
                    beta1=0.9,
                    beta2=0.999,
                    weight_decay=0.0,
                    eps=1e-8,
                    amsgrad=False,
                    maximize=False,
                )
                target.lerp_(values, 1e-3)


def _factors(product: Product) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    left = th.randn(product.k, product.m).t() if product.transposed == "left" else th.randn(product.m, product.k)
    right = th.randn(product.n, product.k).t() if product.transposed == "right" else th.randn(product.k, product.n)
    return left, right, th.empty(product.m, product.n)
