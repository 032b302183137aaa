"""Networks, their storage and memory as arrays, as Numba's operations take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from sb3_bn_ddpg.fast import numba_operations as ops
from sb3_bn_ddpg.fast import numba_passes as passes
from sb3_bn_ddpg.fast.flat_storage import ALIGNMENT, FlatStorage
from sb3_bn_ddpg.fast.mlp import Mlp
from sb3_bn_ddpg.fast.norms import NormReLU
from sb3_bn_ddpg.fast.numba_norms import IS_RENORM
from sb3_bn_ddpg.fast.parts import (
    NO_RELU,
    FixedStdParts,
    GaussianMemory,
    GaussianParts,
    GeneratorMemory,
    GeneratorParts,
    QMemory,
    QNetworkParts,
    WideMemory,
)

Array = NDArray[Any]


def actor_arrays(actor: Mlp | GaussianParts | FixedStdParts, storage: FlatStorage, n_inputs: int, is_target: bool) -> Any:
    """
    :param actor: An actor
    :param storage: What holds it
    :param n_inputs: Number of its inputs
    :param is_target: Whether it is a target network
    :return: The same, as the operations take it
    """
    if isinstance(actor, Mlp):
        return network_arrays(actor, storage, n_inputs, is_target)
    if isinstance(actor, FixedStdParts):
        mean = network_arrays(actor.mean, storage, n_inputs, is_target)
        return FixedStdParts(mean, actor.log_std.numpy(), actor.log_std_grad.numpy())
    latent = network_arrays(actor.latent, storage, n_inputs, is_target)
    n_units = latent.table[-1, passes.WIDTH]
    mean, log_std = (network_arrays(head, storage, n_units, is_target) for head in (actor.mean, actor.log_std))
    return GaussianParts(latent, mean, log_std, actor.n_differentiated)


def generator_arrays(generator: GeneratorParts, storage: FlatStorage, obs_dim: int, action_dim: int) -> GeneratorParts:
    """
    :param generator: A generative model
    :param storage: What holds it
    :param obs_dim: Number of entries of an observation
    :param action_dim: Number of entries of an action
    :return: The same, as the operations take it
    """
    encoder = actor_arrays(generator.encoder, storage, obs_dim + action_dim, False)
    latent_dim = encoder.mean.table[-1, passes.WIDTH]
    return GeneratorParts(encoder, network_arrays(generator.decoder, storage, obs_dim + latent_dim, False))


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
        (len(linear.weight), linear.weight, linear.bias, follower)
        for linear, follower in zip(mlp.linears, mlp.followers, strict=True)
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


def actor_memory(actor: Any, n: int) -> Any:
    """
    :param actor: An actor, or an encoder
    :param n: Number of rows
    :return: Memory for a pass and its way back
    """
    if isinstance(actor, GaussianParts):
        return GaussianMemory(*(memory_arrays(part, n) for part in (actor.latent, actor.mean, actor.log_std)))
    return memory_arrays(actor.mean if isinstance(actor, FixedStdParts) else actor, n)


def critic_memory(critic: QNetworkParts, n: int) -> QMemory:
    """
    :param critic: A Q-network
    :param n: Number of rows
    :return: Memory for a pass and its way back
    """
    return QMemory(memory_arrays(critic.state_net, n), memory_arrays(critic.q_net, n), input_array(critic.q_net, n))


def generator_memory(
    generator: GeneratorParts, actor: passes.Network, critic: QNetworkParts, n: int, n_wide: int
) -> GeneratorMemory:
    """
    :param generator: A generative model
    :param actor: The actor that perturbs its actions
    :param critic: A Q-network
    :param n: Size of the minibatch
    :param n_wide: Number of rows with several actions in each state
    :return: Memory for its passes
    """
    return GeneratorMemory(
        input_array(generator.encoder.latent, n),
        actor_memory(generator.encoder, n),
        input_array(generator.decoder, n),
        memory_arrays(generator.decoder, n),
        input_array(actor, n),
        WideMemory(
            input_array(generator.decoder, n_wide),
            memory_arrays(generator.decoder, n_wide),
            input_array(actor, n_wide),
            memory_arrays(actor, n_wide),
            critic_memory(critic, n_wide),
        ),
    )


def input_array(network: passes.Network, n: int) -> Array:
    """
    :param network: A network
    :param n: Number of rows
    :return: Memory for its inputs
    """
    return np.empty((n, network.table[0, passes.WIDTH]), network.values.dtype)
