"""
A gradient step on the engine, in PyTorch: gradients derived by hand, no autograd, and each network's parameters, gradients,
Adam moments and running statistics laid out in one tensor each. It knows no algorithm: the step is handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo, minibatches
from sb3_bn_ddpg.fast.flat_storage import FlatStorage
from sb3_bn_ddpg.fast.mlp import Memory, Mlp
from sb3_bn_ddpg.fast.parts import (
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
from sb3_bn_ddpg.fast.processor import threads_for
from sb3_bn_ddpg.fast.step import StepCall
from sb3_bn_ddpg.fast.support import ParsedNetworks, check_supported, distinct_networks, parsed_networks, standardizations
from sb3_bn_ddpg.networks.actor_critic import Networks
from sb3_bn_ddpg.networks.actors import BaseActor, FixedStdActor

NO_WIDE_MEMORY = WideMemory(None, None, None, None, QMemory(None, None, None))
"""PyTorch's operations keep nothing of passes without a way back."""


class FastUpdate:
    """
    The gradient step for the networks that ``MlpPolicy`` builds by default: linear layers, batch or layer norm or none, ReLU.

    It takes over the storage of parameters, running statistics and optimizer state; modules and optimizers keep views into it,
    so saving, loading and every other use of them go on as before.

    :param nets: The networks, with their optimizers
    :param step: The algorithm's step
    :raises UnsupportedError: if networks, optimizers or step are others than it knows
    """

    takes_any_device: ClassVar[bool] = False

    def __init__(self, nets: Networks, step: EngineStep) -> None:
        # Look at everything before anything is moved
        online, target = self.parsed(nets, step)
        self.nets, self.step = nets, step
        self.modules = nets.modules
        self.actor_storage = FlatStorage(nets.actor, nets.actor_target, nets.fixed_norm_actor_weights)
        self.critic_storage = FlatStorage(nets.critic, nets.critic_target, nets.fixed_norm_critic_weights)
        self.entropy_storage, self.auxiliary_storage = (
            self.actor_storage if each is None else FlatStorage(each, each) for each in (nets.entropy, nets.auxiliary)
        )
        self.storages = list(
            dict.fromkeys((self.actor_storage, self.critic_storage, self.entropy_storage, self.auxiliary_storage))
        )
        self.standardizations = standardizations(nets)
        matrices = [param for network in distinct_networks(nets) for param in network.parameters() if param.ndim == 2]
        self.largest_layer = max((matrix.numel() for matrix in matrices), default=1)
        self.dtype = self.actor_storage.values.dtype
        self.n_critics = len(online.critics)
        self.atoms = nets.critic.atoms
        actor, critics = _actor_parts(online, nets.actor), _critic_parts(online)
        actor_memory = GaussianMemory(Memory(), Memory(), Memory()) if isinstance(actor, GaussianParts) else Memory()
        memories = tuple(QMemory(Memory(), Memory(), None) for _ in critics)
        auxiliary = _auxiliary_parts(online) or actor
        auxiliary_memory: Any = Memory() if auxiliary is not actor else actor_memory
        if isinstance(auxiliary, GeneratorParts):
            auxiliary_memory = GeneratorMemory(
                None, GaussianMemory(Memory(), Memory(), Memory()), None, Memory(), None, NO_WIDE_MEMORY
            )
        self.parts = Parts(
            actor,
            actor if nets.actor_target is nets.actor else _actor_parts(target, nets.actor_target),
            critics,
            critics if nets.critic_target is nets.critic else _critic_parts(target),
            actor_memory,
            memories,
            memories,
            (None, None),
            nets.critic.atoms if nets.critic.atoms is not None else self.critic_storage.values.new_empty(0),
            self.actor_storage,
            self.critic_storage,
            self.entropy_storage,
            auxiliary,
            auxiliary_memory,
            self.auxiliary_storage,
        )

    @classmethod
    def parsed(cls, nets: Networks, step: EngineStep) -> tuple[ParsedNetworks, ParsedNetworks]:
        """
        :param nets: The networks
        :param step: The algorithm's step
        :return: The layers of the online networks, and of the targets
        :raises UnsupportedError: if networks, optimizers or step are others than this class knows
        """
        check_supported(nets, step)
        online = parsed_networks(nets.actor, nets.critic, nets.auxiliary)
        return online, parsed_networks(nets.actor_target, nets.critic_target)

    def fits(self, nets: Networks, step: EngineStep) -> bool:
        """
        Look at everything anew, as a new object would.

        :param nets: The networks of the model
        :param step: The algorithm's step
        :return: Whether this object still serves: no module is another one, and its storage is still theirs
        :raises UnsupportedError: if networks, optimizers or step are others than this class knows
        """
        self.parsed(nets, step)
        return self.is_current(nets, step) and nets.modules == self.modules

    def is_current(self, nets: Networks, step: EngineStep) -> bool:
        """
        :param nets: The networks of the model
        :param step: The algorithm's step
        :return: Whether this object still holds their storage: not after an optimizer's state was loaded, for example
        """
        if step is not self.step or not nets.is_same_as(self.nets) or nets.critic.atoms is not self.atoms:
            return False
        kept, current = (
            [id(x) for pair in each for x in pair or ()] for each in (self.standardizations, standardizations(nets))
        )
        return kept == current and all(storage.is_current() for storage in self.storages)

    @th.inference_mode()
    def gradient_step(
        self,
        batch: Batch,
        gamma: float,
        tau: float,
        update_actor: bool = True,
        noise: th.Tensor | None = None,
        update_targets: bool | None = None,
    ) -> UpdateInfo:
        """
        One gradient step.

        :param batch: Transitions sampled from the replay buffer
        :param gamma: Discount factor, unless the batch has its own (n-step returns)
        :param tau: Polyak coefficient of the target networks, in [0, 1]
        :param update_actor: Whether to update the actor, too
        :param noise: The random numbers that the step needs, if it needs any
        :param update_targets: Whether to move the target networks (if None: with the actor)
        :return: Losses and values of this step
        """
        call = StepCall(gamma, tau, update_actor, update_actor if update_targets is None else update_targets)
        with self._processor(len(batch.actions)):
            reported = self._step(batch, batch.actions[:0] if noise is None else noise, call)
        return self._info(reported if isinstance(reported, list) else reported.unbind(), update_actor)

    def gradient_steps(self, batch: Batch, noise: th.Tensor | None, calls: Sequence[StepCall]) -> list[UpdateInfo]:
        """As :meth:`~sb3_bn_ddpg.fast.step.FastStep.gradient_steps`, one by one."""
        return [
            self.gradient_step(minibatch, gamma, tau, update_actor, None if noise is None else noise[index], update_targets)
            for index, (minibatch, (gamma, tau, update_actor, update_targets)) in enumerate(
                zip(minibatches(batch, len(calls)), calls, strict=True)
            )
        ]

    def _processor(self, n: int) -> AbstractContextManager[None]:
        """
        :param n: Size of a minibatch
        :return: What gives its step as many threads as it gains by, and keeps denormal numbers from slowing it
        """
        flushes = all(storage.may_lose_denormals for storage in self.storages)
        return threads_for(self.largest_layer * n * (2 if self.step.is_joint else self.step.n_repeats), flushes)

    def _info(self, values: Sequence[Any], update_actor: bool) -> UpdateInfo:
        """
        :param values: What the step reported, that of the actor only with its update
        :param update_actor: Whether it was updated
        :return: The same, named; of several Q-networks the sum of the losses, and the means of the others
        """
        n = self.n_critics
        critic_loss, q_value, abs_q_value = values[:3]
        if n > 1:
            critic_loss, q_value, abs_q_value = (sum(values[column : 3 * n : 3]) for column in range(3))
            q_value, abs_q_value = q_value / n, abs_q_value / n
        names = (*self.step.always, *(self.step.with_actor if update_actor else ()))
        others: dict[str, Any] = {"actor_loss": None} | dict(zip(names, values[3 * n + 1 :], strict=True))
        return UpdateInfo(critic_loss=critic_loss, q_value=q_value, abs_q_value=abs_q_value, td_target=values[3 * n], **others)

    def _n_reports(self, update_actor: bool) -> int:
        """
        :param update_actor: Whether a step updates the actor
        :return: How many numbers it reports
        """
        return 3 * self.n_critics + 1 + len(self.step.always) + (len(self.step.with_actor) if update_actor else 0)

    def _step(self, batch: Batch, noise: th.Tensor, call: StepCall) -> th.Tensor | list[float]:
        """
        :param batch: Transitions sampled from the replay buffer
        :param noise: The random numbers, of no rows if there are none
        :param call: What else the step is told
        :return: What is reported: a tensor where asking for numbers would mean waiting for a device
        """
        reports: list[Any] = [None] * self._n_reports(update_actor=True)
        self.step.function(
            self.parts,
            self._transitions(batch, call.gamma),
            noise,
            reports,
            (None,) * 4,
            call.tau,
            call.update_actor,
            call.update_targets,
            self.step.choices,
        )
        # One mean of all columns instead of a mean each
        return th.cat(reports[: self._n_reports(call.update_actor)], dim=1).mean(dim=0)

    def _transitions(self, batch: Batch, gamma: float) -> Transitions:
        """
        :param batch: Transitions sampled from the replay buffer
        :param gamma: Discount factor, unless the batch has its own
        :return: The same, of the networks' type
        """
        assert isinstance(batch, ReplayBufferSamples)
        obs, next_obs = (x.flatten(1).to(self.dtype) for x in (batch.observations, batch.next_observations))
        if self.standardizations[0] is not None:  # the same of all networks
            mean, scale = self.standardizations[0]
            obs, next_obs = ((x - mean) / scale for x in (obs, next_obs))
        discounts = (1 - batch.dones).mul_(gamma if batch.discounts is None else batch.discounts)
        # (rewards of several steps have the type of a gamma of NumPy's)
        rewards, discounts = batch.rewards.to(self.dtype), discounts.to(self.dtype)
        return Transitions(obs, batch.actions, next_obs, rewards, discounts)

    def flush_denormals(self) -> None:
        """Set moments of the optimizers, and parameters, that are too small to count to zero."""
        for storage in self.storages:
            storage.flush_denormals()


def _actor_parts(networks: ParsedNetworks, actor: BaseActor) -> Mlp | GaussianParts | FixedStdParts:
    """
    :param networks: The layers of an actor and of its critic
    :param actor: That actor
    :return: The same for the engine
    """
    first, *heads = (Mlp(*layers) for layers in networks.actor)
    if isinstance(actor, FixedStdActor):
        return FixedStdParts(first, actor.log_std.detach(), actor.log_std.grad)
    return _gaussian_parts(first, *heads) if heads else first


def _gaussian_parts(latent: Mlp, mean: Mlp, log_std: Mlp) -> GaussianParts:
    """
    :param latent: The layers up to the last hidden one
    :param mean: The output layer of the mean
    :param log_std: That of the logarithm of the standard deviation
    :return: They, and how many of their inputs have a gradient that ``latent`` needs
    """
    return GaussianParts(latent, mean, log_std, 0 if latent.is_empty else mean.linears[0].weight.shape[1])


def _critic_parts(networks: ParsedNetworks) -> tuple[QNetworkParts, ...]:
    """
    :param networks: The layers of an actor and of its critic
    :return: Each Q-network
    """
    critics = []
    for state_layers, q_layers in networks.critics:
        state_net, q_net = Mlp(*state_layers), Mlp(*q_layers)
        critics.append(QNetworkParts(state_net, q_net, 0 if state_net.is_empty else networks.n_outputs(state_layers)))
    return tuple(critics)


def _auxiliary_parts(networks: ParsedNetworks) -> Mlp | GeneratorParts | None:
    """
    :param networks: The layers of all networks
    :return: The further network, if there is one
    """
    parts = [Mlp(*layers) for layers in networks.auxiliary]
    if len(parts) < 2:
        return parts[0] if parts else None
    *encoder, decoder = parts
    return GeneratorParts(_gaussian_parts(*encoder), decoder)
