"""
The fast update as one call of code that Numba compiled: no launches and no Python between the operations, which cost as much
as the matrix products at minibatches of some hundred transitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg.cython_blas  # the BLAS of the compiled code  # noqa: F401
import torch as th
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from sb3_bn_ddpg import compiled_kernels as kernels
from sb3_bn_ddpg.fast_mlp import Mlp, NormReLU, UnsupportedError
from sb3_bn_ddpg.fast_update import FastUpdate
from sb3_bn_ddpg.flat_storage import FlatStorage
from sb3_bn_ddpg.update import Batch, Networks, PassStatistics, UpdateInfo

Array = NDArray[Any]
MODES = {"running": kernels.RUNNING, "batch": kernels.BATCH, "batch_update": kernels.BATCH_UPDATE}


class CompiledUpdate(FastUpdate):
    """
    As :class:`FastUpdate`, on the CPU.

    :param nets: The networks, with the optimizers of actor and critic
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :raises UnsupportedError: if it, or ``FastUpdate``, does not know a part of them
    """

    def __init__(self, nets: Networks, statistics: PassStatistics) -> None:
        super().__init__(nets, statistics)
        if self.actor_storage.values.device.type != "cpu":
            raise UnsupportedError(f"the device is {nets.actor.device}")
        if nets.fixed_norm_critic_weights:
            raise UnsupportedError("there is weight normalization")
        if not self.state_net.weights:
            raise UnsupportedError("the action enters the critic's first layer")
        online = (self.actor, self.state_net, self.q_net)
        self.online = tuple(network_arrays(mlp) for mlp in online)
        self.target = tuple(network_arrays(mlp) for mlp in (self.actor_target, self.state_net_target, self.q_net_target))
        choices = (statistics.target, statistics.critic_loss, statistics.actor_loss_actor, statistics.actor_loss_critic)
        self.modes = tuple(MODES[choice] for choice in choices)
        storages = (self.actor_storage, self.critic_storage)
        self.optimizers = tuple(
            tuple(tuple(flat[0].numpy() for flat in tensors) for _, tensors, _ in storage.slices) for storage in storages
        )
        self.n = 0
        # Of those that are loaded: SciPy's is, by the import above
        self.blas = ThreadpoolController().select(user_api="blas")

    def _set_batch_size(self, n: int) -> None:
        self.n = n
        self.memories = tuple(memory_arrays(network, n) for network in self.online)
        first_weight = self.online[2][0][0]
        width, action_dim = len(first_weight), self.online[0][0][-1].shape[0]
        dtype = first_weight.dtype
        self.joined = np.empty((n, first_weight.shape[1]), dtype)
        self.q_grads = np.empty((width, action_dim), dtype), np.empty((n, action_dim), dtype)

    @th.inference_mode()
    def gradient_step(self, batch: Batch, gamma: float, tau: float) -> UpdateInfo:
        """As ``FastUpdate.gradient_step``."""
        assert isinstance(batch.observations, th.Tensor)
        assert isinstance(batch.next_observations, th.Tensor)
        if len(batch.actions) != self.n:
            self._set_batch_size(len(batch.actions))
        discounts = (1 - batch.dones).mul_(gamma if batch.discounts is None else batch.discounts)
        obs, next_obs = (x.flatten(1) for x in (batch.observations, batch.next_observations))
        arrays = tuple(
            np.ascontiguousarray(x.to(self.dtype).numpy()) for x in (obs, batch.actions, next_obs, batch.rewards, discounts)
        )
        settings = tuple(adam_settings(storage) for storage in (self.actor_storage, self.critic_storage))
        with self.blas.limit(limits=th.get_num_threads()):  # the matrix products follow PyTorch's setting
            values = kernels.gradient_step(
                self.online,
                self.target,
                self.memories,
                self.joined,
                self.q_grads,
                arrays,
                self.modes,
                self.optimizers,
                settings,
            )
        self._finish_step(tau)
        return UpdateInfo(*th.tensor(values, dtype=self.dtype).unbind())

    def _move(self, target: th.Tensor, values: th.Tensor, tau: float) -> None:
        # PyTorch would wake its threads, which then wait beside those of the matrix products
        kernels.move(target.numpy(), values.numpy(), tau)


def network_arrays(mlp: Mlp) -> tuple[Any, ...]:
    """
    :param mlp: A network
    :return: Its memory, as the kernels take it
    """
    norms: list[NormReLU | None] = [mlp.input_norm, *(follower if follower.has_norm else None for follower in mlp.followers)]
    dtype = mlp.weights[0].numpy().dtype
    nothing = np.empty(0, dtype)

    def arrays(tensors: list[th.Tensor | None], empty: Array) -> tuple[Array, ...]:
        return tuple(empty if tensor is None else tensor.numpy() for tensor in tensors)

    def of_norms(name: str) -> tuple[Array, ...]:
        return arrays([None if norm is None else getattr(norm, name) for norm in norms], nothing)

    return (
        arrays([*mlp.weights], nothing),
        arrays([*mlp.biases], nothing),
        of_norms("weight"),
        of_norms("bias"),
        of_norms("mean"),
        of_norms("var"),
        tuple(0.0 if norm is None else float(norm.momentum) for norm in norms),
        tuple(0.0 if norm is None else float(norm.eps) for norm in norms),
        sum(follower.relu for follower in mlp.followers),
        arrays([*mlp.weight_grads], np.empty((0, 0), dtype)),
        arrays([*mlp.bias_grads], nothing),
        of_norms("weight_grad"),
        of_norms("bias_grad"),
    )


def memory_arrays(network: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    """
    :param network: What ``network_arrays`` returned
    :param n: Size of the minibatch
    :return: Memory for a pass and its way back: outputs, outputs of linear layers, what they were normalised with, gradients
    """
    weights = network[0]
    widths = [weights[0].shape[1], *(len(weight) for weight in weights)]
    dtype = weights[0].dtype

    def rows(widths: list[int]) -> tuple[Array, ...]:
        return tuple(np.empty((n, width), dtype) for width in widths)

    means, invstds = (tuple(np.empty(width, dtype) for width in widths) for _ in range(2))
    return rows(widths), rows(widths[1:]), means, invstds, rows(widths)


def adam_settings(storage: FlatStorage) -> Array:
    """
    Count a step of the optimizer.

    :param storage: The storage
    :return: What the step is made with, a row for each group of parameters
    """
    rows = []
    for group, _, step in storage.count_step():
        t = step.item()
        beta1, beta2 = group["betas"]
        rows.append(
            (group["lr"] / (1 - beta1**t), 1 / np.sqrt(1 - beta2**t), beta1, beta2, group["eps"], group["weight_decay"])
        )
    return np.array(rows)
