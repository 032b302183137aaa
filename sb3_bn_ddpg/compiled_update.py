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
MODES = {
    "running": kernels.RUNNING,
    "batch": kernels.BATCH,
    "batch_update": kernels.BATCH_UPDATE,
    "joint": kernels.JOINT,
}
NO_STEP = np.empty((0, 0))
"""In the place of ``adam_settings``, where the optimizer makes no step."""


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
        online = (self.actor, self.state_net, self.q_net)
        target = (self.actor_target, self.state_net_target, self.q_net_target)
        dtype = self.actor_storage.values.numpy().dtype
        self.online, self.target = (tuple(network_arrays(mlp, dtype) for mlp in mlps) for mlps in (online, target))
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
        first_weight = self.online[2][0][0]
        state_dim, joined_dim, width = self.online[0][0][0].shape[1], first_weight.shape[1], len(first_weight)
        action_dim = len(self.online[0][0][-1])
        dtype = first_weight.dtype
        actor, state_net, q_net = self.online

        def critic_memories(n: int) -> tuple[Any, ...]:
            joined = np.empty((n, joined_dim), dtype)
            return memory_arrays(state_net, n, state_dim), memory_arrays(q_net, n, joined_dim), joined

        self.memories = (memory_arrays(actor, n, state_dim), *critic_memories(n))
        n_joint = 2 * n if self.statistics.target == "joint" else 0
        joint_inputs = (np.empty((n_joint, dim), dtype) for dim in (state_dim, action_dim))
        self.joint_memories = (*critic_memories(n_joint), *joint_inputs)
        self.q_grads = np.empty((width, action_dim), dtype), np.empty((n, action_dim), dtype)

    @th.inference_mode()
    def gradient_step(self, batch: Batch, gamma: float, tau: float, update_actor: bool = True) -> UpdateInfo:
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
        settings = adam_settings(self.actor_storage) if update_actor else NO_STEP, adam_settings(self.critic_storage)
        with self.blas.limit(limits=th.get_num_threads()):  # the matrix products follow PyTorch's setting
            values = kernels.gradient_step(
                self.online,
                self.target,
                self.memories,
                self.joint_memories,
                self.q_grads,
                arrays,
                self.modes,
                self.optimizers,
                settings,
                update_actor,
            )
        self._finish_step(tau, update_actor)
        actor_loss, *others = th.tensor(values, dtype=self.dtype).unbind()
        return UpdateInfo(actor_loss if update_actor else None, *others)

    def _move(self, target: th.Tensor, values: th.Tensor, tau: float) -> None:
        # PyTorch would wake its threads, which then wait beside those of the matrix products
        kernels.move(target.numpy(), values.numpy(), tau)


def network_arrays(mlp: Mlp, dtype: Any) -> tuple[Any, ...]:
    """
    :param mlp: A network
    :param dtype: NumPy's name of its parameters' type
    :return: Its memory, as the kernels take it
    """
    norms: list[NormReLU | None] = [mlp.input_norm, *(follower if follower.has_norm else None for follower in mlp.followers)]
    nothing, no_weight = np.empty(0, dtype), np.empty((0, 0), dtype)

    def arrays(tensors: list[th.Tensor | None], empty: Array) -> tuple[Array, ...]:
        return tuple(empty if tensor is None else tensor.numpy() for tensor in tensors or [None])

    def of_norms(name: str) -> tuple[Array, ...]:
        return arrays([None if norm is None else getattr(norm, name) for norm in norms], nothing)

    return (
        arrays([*mlp.weights], no_weight),
        arrays([*mlp.biases], nothing),
        of_norms("weight"),
        of_norms("bias"),
        of_norms("mean"),
        of_norms("var"),
        tuple(0.0 if norm is None else float(norm.momentum) for norm in norms),
        tuple(0.0 if norm is None else float(norm.eps) for norm in norms),
        len(mlp.weights),
        sum(follower.relu for follower in mlp.followers),
        arrays([*mlp.weight_grads], no_weight),
        arrays([*mlp.bias_grads], nothing),
        of_norms("weight_grad"),
        of_norms("bias_grad"),
    )


def memory_arrays(network: tuple[Any, ...], n: int, input_dim: int) -> tuple[Any, ...]:
    """
    :param network: What ``network_arrays`` returned
    :param n: Size of the minibatch
    :param input_dim: Width of the network's input
    :return: Memory for a pass and its way back: outputs, outputs of linear layers, what they were normalised with, gradients
    """
    weights, running_means, n_layers = network[0], network[4], network[8]
    widths = [input_dim, *(len(weight) for weight in weights[:n_layers])]
    dtype = weights[0].dtype

    def rows(widths: list[int]) -> tuple[Array, ...]:
        return tuple(np.empty((n, width), dtype) for width in widths)

    # Batch norm's are those of each unit, layer norm's of each row
    lengths = [width if stats.size else n for width, stats in zip(widths, running_means, strict=True)]
    means, invstds = (tuple(np.empty(length, dtype) for length in lengths) for _ in range(2))
    return rows(widths), rows(widths[1:] or [0]), means, invstds, rows(widths)


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
