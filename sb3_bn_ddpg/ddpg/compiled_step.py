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

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.ddpg.fast_step import FastUpdate
from sb3_bn_ddpg.fast import kernels
from sb3_bn_ddpg.fast.flat_storage import ALIGNMENT, FlatStorage
from sb3_bn_ddpg.fast.mlp import Mlp, MlpArguments, NormReLU
from sb3_bn_ddpg.fast.step import UnsupportedError
from sb3_bn_ddpg.networks.actor_critic import Networks
from sb3_bn_ddpg.networks.statistics import PassStatistics

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
        actor, critic = self.actor_storage, self.critic_storage
        state_dim, joined_dim = (mlp.weights[0].shape[1] for mlp in (self.actor, self.q_net))
        self.online = (
            network_arrays(self.actor, actor, state_dim),
            network_arrays(self.state_net, critic, state_dim),
            network_arrays(self.q_net, critic, joined_dim),
        )
        # Laid out alike
        self.target = tuple(
            network._replace(values=storage.target_values.numpy(), stats=statistics_array(storage.target_stats, self.dtype))
            for storage, network in zip((actor, critic, critic), self.online, strict=True)
        )
        choices = (statistics.target, statistics.critic_loss, statistics.actor_loss_actor, statistics.actor_loss_critic)
        self.modes = tuple(MODES[choice] for choice in choices)
        self.optimizers = optimizer_arrays(actor), optimizer_arrays(critic)
        self.n = 0
        # Of those that are loaded: SciPy's is, by the import above
        self.blas = ThreadpoolController().select(user_api="blas")

    @classmethod
    def parsed(cls, nets: Networks, statistics: PassStatistics) -> tuple[list[MlpArguments], list[MlpArguments]]:
        """As ``FastUpdate.parsed``."""
        if nets.actor.device.type != "cpu":
            raise UnsupportedError(f"the device is {nets.actor.device}")
        if nets.fixed_norm_actor_weights or nets.fixed_norm_critic_weights:
            raise UnsupportedError("there is weight normalization")
        return super().parsed(nets, statistics)

    def _set_batch_size(self, n: int) -> None:
        self.n = n
        actor, state_net, q_net = self.online
        (state_dim, *_, action_dim), (joined_dim, width, *_) = (net.table[:, kernels.WIDTH] for net in (actor, q_net))
        dtype = actor.values.dtype

        def critic_memories(n: int) -> tuple[Any, ...]:
            return memory_arrays(state_net, n), memory_arrays(q_net, n), np.empty((n, joined_dim), dtype)

        self.memories = (memory_arrays(actor, n), *critic_memories(n))
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


def network_arrays(mlp: Mlp, storage: FlatStorage, input_dim: int) -> kernels.Network:
    """
    :param mlp: A network
    :param storage: What holds its parameters and running statistics
    :param input_dim: Number of its inputs
    :return: The network, as the kernels take it
    """

    def first(tensor: th.Tensor | None, flat: th.Tensor) -> int:
        return -1 if tensor is None else (tensor.data_ptr() - flat.data_ptr()) // flat.element_size()

    layers: list[tuple[int, th.Tensor | None, th.Tensor | None, NormReLU | None]] = [(input_dim, None, None, mlp.input_norm)]
    layers += [
        (len(weight), weight, bias, follower)
        for weight, bias, follower in zip(mlp.weights, mlp.biases, mlp.followers, strict=True)
    ]
    table, numbers = [], []
    for width, weight, bias, follower in layers:
        norm: Any = follower if follower is not None and follower.has_norm else None
        scales = (None, None) if norm is None else (norm.weight, norm.bias)
        moments = (None, None) if norm is None else (norm.mean, norm.var)
        of_values = [first(tensor, storage.values) for tensor in (weight, bias, *scales)]
        of_stats = [first(tensor, storage.stats) for tensor in moments]
        table.append((width, *of_values, *of_stats, follower is not None and follower.relu))
        numbers.append((0.0, 0.0) if norm is None else (float(norm.momentum), float(norm.eps)))
    flats = storage.values.numpy(), storage.grads.numpy(), statistics_array(storage.stats, storage.values.dtype)
    return kernels.Network(*flats, np.array(table, np.int64), np.array(numbers))


def statistics_array(stats: th.Tensor, dtype: th.dtype) -> Array:
    """
    :param stats: Flat running statistics, of no particular type if there are none
    :param dtype: The networks' type
    :return: The same memory
    """
    return (stats if stats.numel() else stats.to(dtype)).numpy()


def optimizer_arrays(storage: FlatStorage) -> tuple[Array, ...]:
    """
    :param storage: The storage of a network
    :return: Its optimizer, as the kernels take it: values, gradients, both moments; first and last entry of each group
    """
    ends = np.cumsum([sum(piece.numel() for piece in values) for _, (values, *_), _ in storage.slices])
    flats = (storage.values, storage.grads, storage.exp_avg, storage.exp_avg_sq)
    return *(flat.numpy() for flat in flats), np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int64)


def memory_arrays(network: kernels.Network, n: int) -> kernels.Memory:
    """
    :param network: A network
    :param n: Size of the minibatch
    :return: Memory for a pass and its way back
    """
    widths = network.table[:, kernels.WIDTH]
    # Batch norm's are those of each unit, layer norm's of each row
    moments = np.where(network.table[:, kernels.MEAN] >= 0, widths, n)
    sizes = np.stack([n * widths, n * widths, moments, moments, n * widths], axis=1)
    aligned = -(-sizes // ALIGNMENT) * ALIGNMENT
    ends = np.cumsum(aligned).reshape(sizes.shape)
    return kernels.Memory(np.empty(ends[-1, -1], network.values.dtype), ends - aligned)


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
