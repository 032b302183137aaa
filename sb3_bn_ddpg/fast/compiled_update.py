"""
A gradient step on the engine as one call of code that Numba compiled: no launches and no Python between the operations, which
cost as much as the matrix products at minibatches of some hundred transitions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg.cython_blas  # the BLAS of the compiled code  # noqa: F401
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import get_action_dim
from threadpoolctl import ThreadpoolController

from sb3_bn_ddpg.common.steps import Batch
from sb3_bn_ddpg.fast import numba_operations as ops
from sb3_bn_ddpg.fast import numba_passes as passes
from sb3_bn_ddpg.fast.flat_storage import ALIGNMENT, FlatStorage
from sb3_bn_ddpg.fast.mlp import Mlp
from sb3_bn_ddpg.fast.norms import NormReLU
from sb3_bn_ddpg.fast.numba_compiler import compiled_step
from sb3_bn_ddpg.fast.numba_norms import IS_RENORM
from sb3_bn_ddpg.fast.parts import (
    NO_RELU,
    EngineStep,
    GaussianMemory,
    GaussianParts,
    Parts,
    QMemory,
    QNetworkParts,
    Transitions,
)
from sb3_bn_ddpg.fast.step import UnsupportedError
from sb3_bn_ddpg.fast.support import ParsedNetworks
from sb3_bn_ddpg.fast.update import FastUpdate, StepCall
from sb3_bn_ddpg.networks.actor_critic import Networks

Array = NDArray[Any]
NO_STEP = np.empty((0, 0))
"""In the place of :func:`adam_rates`, where the optimizer makes no step."""


@cache
def compiled_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param function: A step written on the engine's operations
    :return: The same, compiled for Numba's
    """
    return compiled_step(function, ops)


class CompiledUpdate(FastUpdate):
    """
    As :class:`FastUpdate`, on the CPU.

    :param nets: The networks, with the optimizers of actor and critic
    :param step: The algorithm's step
    :raises UnsupportedError: if ``FastUpdate`` does not know a part of them, or the device is another one
    """

    def __init__(self, nets: Networks, step: EngineStep) -> None:
        super().__init__(nets, step)
        self.function = compiled_function(step.function)
        parts, obs_dim = self.parts, nets.actor.features_extractor.features_dim
        action_dim = get_action_dim(nets.actor.action_space)

        def critics_of(of_parts: tuple[QNetworkParts, ...]) -> tuple[QNetworkParts, ...]:
            is_target = of_parts is not parts.critics
            return tuple(critic_arrays(critic, self.critic_storage, obs_dim, action_dim, is_target) for critic in of_parts)

        self.actor = actor_arrays(parts.actor, self.actor_storage, obs_dim, False)
        self.actor_target = actor_arrays(
            parts.actor_target, self.actor_storage, obs_dim, parts.actor_target is not parts.actor
        )
        self.critics, self.critic_targets = critics_of(parts.critics), critics_of(parts.critic_targets)
        self.storage_arrays = tuple(map(storage_arrays, (self.actor_storage, self.critic_storage, self.entropy_storage)))
        self.n = 0
        # Of those that are loaded: SciPy's is, by the import above
        self.blas = ThreadpoolController().select(user_api="blas")

    @classmethod
    def parsed(cls, nets: Networks, step: EngineStep) -> tuple[ParsedNetworks, ParsedNetworks]:
        """As ``FastUpdate.parsed``."""
        if nets.actor.device.type != "cpu":
            raise UnsupportedError(f"the device is {nets.actor.device}")
        return super().parsed(nets, step)

    def _set_batch_size(self, n: int) -> None:
        """
        Get memory for minibatches of another size.

        :param n: Their size
        """
        self.n = n
        n_joint = 2 * n if self.step.is_joint else 0
        q_net = self.critics[0].q_net
        dtype, joined_dim, obs_dim = (
            q_net.values.dtype,
            q_net.table[0, passes.WIDTH],
            self.critics[0].state_net.table[0, passes.WIDTH],
        )
        action_dim = joined_dim - self.critics[0].state_net.table[-1, passes.WIDTH]
        memories, joint_memories = (
            tuple(
                QMemory(
                    memory_arrays(critic.state_net, n_rows),
                    memory_arrays(critic.q_net, n_rows),
                    np.empty((n_rows, joined_dim), dtype),
                )
                for critic in self.critics
            )
            for n_rows in (n, n_joint)
        )
        actor = self.actor
        if isinstance(actor, GaussianParts):
            of_actor: Any = GaussianMemory(*(memory_arrays(part, n) for part in (actor.latent, actor.mean, actor.log_std)))
        else:
            of_actor = memory_arrays(actor, n)
        joint_rows = tuple(np.empty((n_joint, dim), dtype) for dim in (obs_dim, action_dim))
        self.arrays = Parts(
            actor,
            self.actor_target,
            self.critics,
            self.critic_targets,
            of_actor,
            memories,
            joint_memories,
            joint_rows,
            *self.storage_arrays,
        )

    def _step(self, batch: Batch, noise: th.Tensor, call: StepCall) -> th.Tensor:
        if len(batch.actions) != self.n:
            self._set_batch_size(len(batch.actions))
        entries = (*self._transitions(batch, call.gamma), noise.to(self.dtype))
        *arrays, noise_array = (np.ascontiguousarray(entry.numpy()) for entry in entries)
        reports = np.zeros(self._n_reports(update_actor=True))
        with self.blas.limit(limits=th.get_num_threads()):  # the matrix products follow PyTorch's setting
            self.function(
                self.arrays,
                Transitions(*arrays),
                noise_array,
                reports,
                self._rates(call.update_actor),
                call.tau,
                call.update_actor,
                call.update_targets,
                self.step.choices,
            )
        return th.from_numpy(reports[: self._n_reports(call.update_actor)]).to(self.dtype)

    def _rates(self, update_actor: bool) -> tuple[Array, Array, Array]:
        """
        Count a step of each optimizer that makes one.

        :param update_actor: Whether the actor's does
        :return: What they make it with: the actor's, the critics', the entropy coefficient's
        """
        entropy = self.nets.entropy
        trains_entropy = update_actor and entropy is not None and entropy.is_learned
        return (
            adam_rates(self.actor_storage) if update_actor else NO_STEP,
            adam_rates(self.critic_storage),
            adam_rates(self.entropy_storage) if trains_entropy else NO_STEP,
        )


def actor_arrays(actor: Mlp | GaussianParts, storage: FlatStorage, obs_dim: int, is_target: bool) -> Any:
    """
    :param actor: An actor
    :param storage: What holds it
    :param obs_dim: Number of entries of an observation
    :param is_target: Whether it is a target network
    :return: The same, as the operations take it
    """
    if isinstance(actor, Mlp):
        return network_arrays(actor, storage, obs_dim, is_target)
    latent = network_arrays(actor.latent, storage, obs_dim, is_target)
    n_units = latent.table[-1, passes.WIDTH]
    mean, log_std = (network_arrays(head, storage, n_units, is_target) for head in (actor.mean, actor.log_std))
    return GaussianParts(latent, mean, log_std, actor.n_differentiated)


def critic_arrays(
    critic: QNetworkParts, storage: FlatStorage, obs_dim: int, action_dim: int, is_target: bool
) -> QNetworkParts:
    """
    :param critic: A Q-network
    :param storage: What holds it
    :param obs_dim: Number of entries of an observation
    :param action_dim: Number of entries of an action
    :param is_target: Whether it is a target network
    :return: The same, as the operations take it
    """
    state_net = network_arrays(critic.state_net, storage, obs_dim, is_target)
    q_net = network_arrays(critic.q_net, storage, state_net.table[-1, passes.WIDTH] + action_dim, is_target)
    return QNetworkParts(state_net, q_net, critic.n_differentiated)


def network_arrays(mlp: Mlp, storage: FlatStorage, input_dim: int, is_target: bool) -> passes.Network:
    """
    :param mlp: A network
    :param storage: What holds its parameters and running statistics
    :param input_dim: Number of its inputs
    :param is_target: Whether it is a target network, and not the storage's own
    :return: The network, as the operations take it
    """
    values, stats, counts = storage.values, storage.stats, storage.counts
    if is_target:
        values, stats, counts = storage.target_values, storage.target_stats, storage.target_counts

    def first(tensor: th.Tensor | None, flat: th.Tensor) -> int:
        return -1 if tensor is None else (tensor.data_ptr() - flat.data_ptr()) // flat.element_size()

    layers: list[tuple[int, th.Tensor | None, th.Tensor | None, NormReLU | None]] = [(input_dim, None, None, mlp.input_norm)]
    layers += [
        (len(weight), weight, bias, follower)
        for weight, bias, follower in zip(mlp.weights, mlp.biases, mlp.followers, strict=True)
    ]
    places = [first(count, counts) for count in mlp.counts]
    first_count = min(places, default=0)
    table, numbers = [], []
    for width, weight, bias, follower in layers:
        norm: Any = follower if follower is not None and follower.has_norm else None
        scales = (None, None) if norm is None else (norm.weight, norm.bias)
        moments = (None, None) if norm is None else (norm.mean, norm.var)
        of_values = [first(tensor, values) for tensor in (weight, bias, *scales)]
        of_stats = [first(tensor, stats) for tensor in moments]
        count = -1 if norm is None or norm.count is None else first(norm.count, counts) - first_count
        table.append((width, *of_values, *of_stats, NO_RELU if follower is None else follower.relu, count))
        renorm = None if norm is None else norm.renorm
        of_renorm = (0, 0, 0, 0) if renorm is None else (1, renorm.warmup_steps, renorm.rmax, renorm.dmax)
        numbers.append((0.0,) * 6 if norm is None else (norm.momentum, norm.eps, *map(float, of_renorm)))
    own_counts = counts[first_count : max(places) + 1] if places else counts.new_empty(0, dtype=th.int64)
    flats = values.numpy(), storage.grads.numpy(), statistics_array(stats, values.dtype), own_counts.numpy()
    return passes.Network(*flats, np.array(table, np.int64), np.array(numbers))


def statistics_array(stats: th.Tensor, dtype: th.dtype) -> Array:
    """
    :param stats: Flat running statistics, of no particular type if there are none
    :param dtype: The type that they have to have
    :return: The same memory
    """
    return (stats if stats.numel() else stats.to(dtype)).numpy()


def storage_arrays(storage: FlatStorage) -> ops.Storage:
    """
    :param storage: The storage of a network
    :return: The same, as the operations take it
    """
    ends = np.cumsum([sum(piece.numel() for piece in values) for _, (values, *_), _ in storage.slices])
    fixed = [
        ((weight.data_ptr() - storage.values.data_ptr()) // weight.element_size(), weight.numel(), len(weight))
        for weight in storage.fixed_norm_weights
    ]
    targets = (storage.target_values, storage.target_stats, storage.target_counts)
    if storage.target_values is storage.values:
        targets = (storage.values[:0], storage.stats[:0], storage.counts[:0])
    target_values, target_stats, target_counts = targets
    dtype = storage.values.dtype
    return ops.Storage(
        values=storage.values.numpy(),
        grads=storage.grads.numpy(),
        exp_avg=storage.exp_avg.numpy(),
        exp_avg_sq=storage.exp_avg_sq.numpy(),
        bounds=np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int64),
        fixed_norms=np.array(fixed, np.int64).reshape(-1, 3),
        target_values=target_values.numpy(),
        stats=statistics_array(storage.stats, dtype),
        target_stats=statistics_array(target_stats, dtype),
        counts=statistics_array(storage.counts, th.int64),
        target_counts=statistics_array(target_counts, th.int64),
    )


def memory_arrays(network: passes.Network, n: int) -> passes.Memory:
    """
    :param network: A network
    :param n: Size of the minibatch
    :return: Memory for a pass and its way back
    """
    widths = network.table[:, passes.WIDTH]
    # Batch norm's are those of each unit, layer norm's of each row
    moments = np.where(network.table[:, passes.MEAN] >= 0, widths, n)
    of_renorm = np.where(network.numbers[:, IS_RENORM] == 1, widths, 0)
    sizes = np.stack([n * widths, n * widths, moments, moments, n * widths, *[of_renorm] * 3], axis=1)
    aligned = -(-sizes // ALIGNMENT) * ALIGNMENT
    ends = np.cumsum(aligned).reshape(sizes.shape)
    return passes.Memory(np.empty(ends[-1, -1], network.values.dtype), ends - aligned)


def adam_rates(storage: FlatStorage) -> Array:
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
