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
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.fast import numba_operations as ops
from sb3_bn_ddpg.fast import numba_passes as passes
from sb3_bn_ddpg.fast.flat_storage import FlatStorage
from sb3_bn_ddpg.fast.numba_arrays import (
    Array,
    actor_arrays,
    actor_memory,
    critic_arrays,
    critic_memory,
    generator_arrays,
    generator_memory,
    memory_arrays,
    network_arrays,
    storage_arrays,
)
from sb3_bn_ddpg.fast.numba_compiler import compiled_steps
from sb3_bn_ddpg.fast.numba_products import threads_of_products
from sb3_bn_ddpg.fast.parts import EngineStep, GeneratorParts, Parts, QNetworkParts, Transitions
from sb3_bn_ddpg.fast.step import StepCall, UnsupportedError
from sb3_bn_ddpg.fast.support import ParsedNetworks
from sb3_bn_ddpg.fast.update import FastUpdate
from sb3_bn_ddpg.networks.actor_critic import Networks


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
        of_actor = of_auxiliary = actor_memory(actor, n)
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
