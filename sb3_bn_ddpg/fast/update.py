"""
A gradient step on the engine, in PyTorch: gradients derived by hand, no autograd, and each network's parameters, gradients,
Adam moments and running statistics laid out in one tensor each. It knows no algorithm: the step is handed over.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.fast.flat_storage import FlatStorage
from sb3_bn_ddpg.fast.mlp import Memory, Mlp
from sb3_bn_ddpg.fast.parts import EngineStep, GaussianMemory, GaussianParts, Parts, QMemory, QNetworkParts, Transitions
from sb3_bn_ddpg.fast.support import ParsedNetworks, check_supported, parsed_networks
from sb3_bn_ddpg.networks.actor_critic import Networks


class StepCall(NamedTuple):
    """
    :param gamma: Discount factor, unless the batch has its own
    :param tau: Polyak coefficient of the target networks
    :param update_actor: Whether to update the actor, too
    :param update_targets: Whether to move the target networks
    """

    gamma: float
    tau: float
    update_actor: bool
    update_targets: bool


class FastUpdate:
    """
    The gradient step for the networks that ``MlpPolicy`` builds by default: linear layers, batch or layer norm or none, ReLU.

    It takes over the storage of parameters, running statistics and optimizer state; modules and optimizers keep views into it,
    so saving, loading and every other use of them go on as before.

    :param nets: The networks, with the optimizers of actor and critic
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
        entropy = nets.entropy
        self.entropy_storage = self.actor_storage if entropy is None else FlatStorage(entropy, entropy)
        self.storages = list(dict.fromkeys((self.actor_storage, self.critic_storage, self.entropy_storage)))
        self.dtype = self.actor_storage.values.dtype
        self.n_critics = len(online.critics)
        actor, critics = _actor_parts(online), _critic_parts(online)
        memories = tuple(QMemory(Memory(), Memory(), None) for _ in critics)
        self.parts = Parts(
            actor,
            actor if nets.actor_target is nets.actor else _actor_parts(target),
            critics,
            critics if nets.critic_target is nets.critic else _critic_parts(target),
            GaussianMemory(Memory(), Memory(), Memory()) if isinstance(actor, GaussianParts) else Memory(),
            memories,
            memories,
            (None, None),
            self.actor_storage,
            self.critic_storage,
            self.entropy_storage,
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
        return parsed_networks(nets.actor, nets.critic), parsed_networks(nets.actor_target, nets.critic_target)

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
        return step is self.step and nets.is_same_as(self.nets) and all(storage.is_current() for storage in self.storages)

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
        return self._info(self._step(batch, batch.actions[:0] if noise is None else noise, call), update_actor)

    def _info(self, reported: th.Tensor, update_actor: bool) -> UpdateInfo:
        """
        :param reported: What the step reported, that of the actor only with its update
        :param update_actor: Whether it was updated
        :return: The same, named; of several Q-networks the sum of the losses, and the means of the others
        """
        values = reported.unbind()
        n = self.n_critics
        if n == 1:
            critic_loss, q_value, abs_q_value = values[:3]
        else:
            losses, q_values, abs_q_values = reported[: 3 * n].view(n, 3).unbind(dim=1)
            critic_loss, q_value, abs_q_value = losses.sum(), q_values.mean(), abs_q_values.mean()
        names = (*self.step.always, *(self.step.with_actor if update_actor else ()))
        others: dict[str, Any] = {"actor_loss": None} | dict(zip(names, values[3 * n + 1 :], strict=True))
        return UpdateInfo(critic_loss=critic_loss, q_value=q_value, abs_q_value=abs_q_value, td_target=values[3 * n], **others)

    def _n_reports(self, update_actor: bool) -> int:
        """
        :param update_actor: Whether a step updates the actor
        :return: How many numbers it reports
        """
        return 3 * self.n_critics + 1 + len(self.step.always) + (len(self.step.with_actor) if update_actor else 0)

    def _step(self, batch: Batch, noise: th.Tensor, call: StepCall) -> th.Tensor:
        """
        :param batch: Transitions sampled from the replay buffer
        :param noise: The random numbers, of no rows if there are none
        :param call: What else the step is told
        :return: What is reported
        """
        reports: list[Any] = [None] * self._n_reports(update_actor=True)
        self.step.function(
            self.parts,
            self._transitions(batch, call.gamma),
            noise,
            reports,
            (None, None, None),
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
        discounts = (1 - batch.dones).mul_(gamma if batch.discounts is None else batch.discounts)
        # (rewards of several steps have the type of a gamma of NumPy's)
        rewards, discounts = batch.rewards.to(self.dtype), discounts.to(self.dtype)
        return Transitions(obs, batch.actions, next_obs, rewards, discounts)

    def flush_denormals(self) -> None:
        """Set moments of the optimizers, and parameters, that are too small to count to zero."""
        for storage in self.storages:
            storage.flush_denormals()


def _actor_parts(networks: ParsedNetworks) -> Mlp | GaussianParts:
    """
    :param networks: The layers of an actor and of its critic
    :return: The actor
    """
    first, *heads = map(Mlp, *zip(*networks.actor, strict=True))
    if not heads:
        return first
    mean, log_std = heads
    return GaussianParts(first, mean, log_std, 0 if first.is_empty else networks.n_outputs(networks.actor[0]))


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
