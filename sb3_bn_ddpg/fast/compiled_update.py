"""
A gradient step on the engine as one call of code that Numba compiled: no launches and no Python between the operations, which
cost as much as the matrix products at minibatches of some hundred transitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.fast import numba_operations as ops
from sb3_bn_ddpg.fast import numba_passes as passes
from sb3_bn_ddpg.fast.flat_storage import ALIGNMENT, FlatStorage
from sb3_bn_ddpg.fast.mlp import Mlp
from sb3_bn_ddpg.fast.norms import NormReLU
from sb3_bn_ddpg.fast.numba_compiler import compiled_steps
from sb3_bn_ddpg.fast.numba_norms import IS_RENORM
from sb3_bn_ddpg.fast.numba_products import threads_of_products
from sb3_bn_ddpg.fast.parts import (
    NO_RELU,
    EngineStep,
    FixedStdParts,
    GaussianMemory,
    GaussianParts,
    GeneratorMemory,
    GeneratorParts,
    Parts,
    QMemory,
    QNetworkParts,
    Transitions,
    WideMemory,
)
from sb3_bn_ddpg.fast.step import StepCall, UnsupportedError
from sb3_bn_ddpg.fast.support import ParsedNetworks
from sb3_bn_ddpg.fast.update import FastUpdate
from sb3_bn_ddpg.networks.actor_critic import Networks

Array = NDArray[Any]


@cache
def compiled_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param function: A step written on the engine's operations
    :return: Several of it, compiled for Numba's (:func:`~sb3_bn_ddpg.fast.numba_compiler.steps`)
    """
    return compiled_steps(function, ops)


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

        n_inputs = obs_dim + nets.actor.n_further_inputs
        self.actor = actor_arrays(parts.actor, self.actor_storage, n_inputs, False)
        self.actor_target = actor_arrays(
            parts.actor_target, self.actor_storage, n_inputs, parts.actor_target is not parts.actor
        )
        self.critics, self.critic_targets = critics_of(parts.critics), critics_of(parts.critic_targets)
        self.auxiliary: Any = self.actor
        if isinstance(parts.auxiliary, GeneratorParts):
            self.auxiliary = generator_arrays(parts.auxiliary, self.auxiliary_storage, obs_dim, action_dim)
        elif nets.auxiliary is not None:
            self.auxiliary = network_arrays(parts.auxiliary, self.auxiliary_storage, obs_dim, False)
        storages = (self.actor_storage, self.critic_storage, self.entropy_storage, self.auxiliary_storage)
        self.storage_arrays = tuple(map(storage_arrays, storages))
        self.n = 0
        self.threads_of_products = threads_of_products()

    @classmethod
    def parsed(cls, nets: Networks, step: EngineStep) -> tuple[ParsedNetworks, ParsedNetworks]:
        """As ``FastUpdate.parsed``."""
        if nets.actor.device.type != "cpu":
            raise UnsupportedError(f"the device is {nets.actor.device}")
        q_networks = [q for critic in (nets.critic, nets.critic_target) for q in critic.q_networks]
        layers = [[(type(layer), [param.shape for param in layer.parameters()]) for layer in q.modules()] for q in q_networks]
        if any(each != layers[0] for each in layers):  # they share one memory
            raise UnsupportedError("a Q-network has other layers than another one")
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
        memories, joint_memories = (tuple(critic_memory(critic, n_rows) for critic in self.critics) for n_rows in (n, n_joint))
        actor = self.actor
        if isinstance(actor, GaussianParts):
            of_actor: Any = GaussianMemory(*(memory_arrays(part, n) for part in (actor.latent, actor.mean, actor.log_std)))
        else:
            of_actor = memory_arrays(actor.mean if isinstance(actor, FixedStdParts) else actor, n)
        of_auxiliary: Any = of_actor
        if isinstance(self.auxiliary, GeneratorParts):
            of_auxiliary = generator_memory(self.auxiliary, actor, self.critics[0], n, n * self.step.n_repeats)
        elif self.auxiliary is not actor:
            of_auxiliary = memory_arrays(self.auxiliary, n)
        actor_storage, critic_storage, entropy_storage, auxiliary_storage = self.storage_arrays
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
            self.parts.atoms.numpy(),
            actor_storage,
            critic_storage,
            entropy_storage,
            self.auxiliary,
            of_auxiliary,
            auxiliary_storage,
        )

    @th.inference_mode()
    def gradient_steps(self, batch: Batch, noise: th.Tensor | None, calls: Sequence[StepCall]) -> list[UpdateInfo]:
        """As ``FastUpdate.gradient_steps``."""
        if noise is None:
            noise = batch.actions.new_empty((len(calls), 0, batch.actions.shape[1]))
        with self._processor(len(batch.actions) // len(calls)):
            reported = self._steps(batch, noise, calls)
        return [self._info(numbers, call.update_actor) for numbers, call in zip(reported, calls, strict=True)]

    def _step(self, batch: Batch, noise: th.Tensor, call: StepCall) -> list[float]:
        return self._steps(batch, noise[None], [call])[0]

    def _steps(self, batch: Batch, noise: th.Tensor, calls: Sequence[StepCall]) -> list[list[float]]:
        """
        :param batch: Transitions of the steps' minibatches, one after the other
        :param noise: The random numbers, a row for each step
        :param calls: What else each step is told
        :return: What is reported of each
        """
        n_steps, (gamma, tau, *_) = len(calls), calls[0]
        n = len(batch.actions) // n_steps
        if n != self.n:
            self._set_batch_size(n)
        entries = (*self._transitions(batch, gamma), noise.to(self.dtype))
        *arrays, noise_array = (np.ascontiguousarray(entry.numpy()) for entry in entries)
        reports = np.zeros((n_steps, self._n_reports(update_actor=True)))
        updates_actor = [call.update_actor for call in calls]
        with self.threads_of_products():
            self.function(
                self.arrays,
                Transitions(*(array.reshape(n_steps, n, array.shape[1]) for array in arrays)),
                noise_array,
                reports,
                self._rates(updates_actor),
                tau,
                np.array(updates_actor),
                np.array([call.update_targets for call in calls]),
                self.step.choices,
            )
        numbers = reports.astype(arrays[0].dtype).tolist()
        return [of_step[: self._n_reports(update)] for of_step, update in zip(numbers, updates_actor, strict=True)]

    def _rates(self, updates_actor: list[bool]) -> tuple[Array, Array, Array, Array]:
        """
        Count the steps of each optimizer.

        :param updates_actor: Of each gradient step, whether the actor's makes one
        :return: What they make them with: the actor's, the critics', the entropy coefficient's, the further network's
        """
        entropy, never = self.nets.entropy, [False] * len(updates_actor)
        trains_entropy = entropy is not None and entropy.is_learned
        return (
            adam_rates(self.actor_storage, updates_actor),
            adam_rates(self.critic_storage, [True] * len(updates_actor)),
            adam_rates(self.entropy_storage, updates_actor if trains_entropy else never),
            adam_rates(self.auxiliary_storage, never if self.nets.auxiliary is None else [True] * len(updates_actor)),
        )


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
    encoder = network_arrays(generator.encoder, storage, obs_dim + action_dim, False)
    n_units = encoder.table[-1, passes.WIDTH]
    mean, log_std = (network_arrays(head, storage, n_units, False) for head in (generator.mean, generator.log_std))
    decoder = network_arrays(generator.decoder, storage, obs_dim + mean.table[-1, passes.WIDTH], False)
    return GeneratorParts(encoder, mean, log_std, decoder, generator.n_differentiated)


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
    encoder, mean, log_std, decoder = (memory_arrays(network, n) for network in generator[:4])
    return GeneratorMemory(
        input_array(generator.encoder, n),
        encoder,
        mean,
        log_std,
        input_array(generator.decoder, n),
        decoder,
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


def adam_rates(storage: FlatStorage, turns: list[bool]) -> Array:
    """
    Count steps of the optimizer.

    :param storage: The storage
    :param turns: Of each gradient step, whether the optimizer makes one
    :return: What the steps are made with, (gradient steps, groups of parameters, 6)
    """
    n = sum(turns)
    rates = np.zeros((len(turns), len(storage.slices), 6))
    if n == 0:
        return rates
    for g, (group, _, step) in enumerate(storage.count_steps(n)):
        (beta1, beta2), t = group["betas"], step.item() - n
        for index, is_its in enumerate(turns):
            if is_its:
                t += 1
                rate, root = group["lr"] / (1 - beta1**t), 1 / np.sqrt(1 - beta2**t)
                rates[index, g] = rate, root, beta1, beta2, group["eps"], group["weight_decay"]
    return rates
