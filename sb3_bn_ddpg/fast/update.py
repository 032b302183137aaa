"""
A gradient step on the engine, in PyTorch: gradients derived by hand, no autograd, and each network's parameters, gradients,
Adam moments and running statistics laid out in one tensor each. It knows no algorithm: the step is handed over.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.fast import torch_operations
from sb3_bn_ddpg.fast.flat_storage import FlatStorage
from sb3_bn_ddpg.fast.mlp import Memory, Mlp
from sb3_bn_ddpg.fast.parts import EngineStep, Parts, QMemory, QNetworkParts, Transitions
from sb3_bn_ddpg.fast.support import ParsedNetworks, check_supported, parsed_networks
from sb3_bn_ddpg.networks.actor_critic import Networks


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
        self.dtype = self.actor_storage.values.dtype
        self.n_critics = len(online.critics)
        self.mlps = _mlps(online)
        self.target_mlps = self.mlps if nets.actor_target is nets.actor else _mlps(target)
        (actor, critics), (actor_target, critic_targets) = self.mlps, self.target_mlps
        self.parts = Parts(
            actor,
            actor_target,
            critics,
            critic_targets,
            Memory(),
            *((tuple(QMemory(Memory(), Memory(), None) for _ in critics),) * 2),
            (None, None),
            self.actor_storage,
            self.critic_storage,
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
        return (
            step is self.step
            and nets.is_same_as(self.nets)
            and self.actor_storage.is_current()
            and self.critic_storage.is_current()
        )

    @th.inference_mode()
    def gradient_step(
        self, batch: Batch, gamma: float, tau: float, update_actor: bool = True, noise: th.Tensor | None = None
    ) -> UpdateInfo:
        """
        One gradient step.

        :param batch: Transitions sampled from the replay buffer
        :param gamma: Discount factor, unless the batch has its own (n-step returns)
        :param tau: Polyak coefficient of the target networks, in [0, 1]
        :param update_actor: Whether to update the actor and the target networks, too
        :param noise: The random numbers that the step needs, if it needs any
        :return: Losses and values of this step
        """
        noise = batch.actions[:0] if noise is None else noise
        return self._info(self._step(batch, gamma, tau, update_actor, noise), update_actor)

    def _info(self, reported: th.Tensor, update_actor: bool) -> UpdateInfo:
        """
        :param reported: What the step reported, the actor's loss only with its update
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
        return UpdateInfo(values[-1] if update_actor else None, critic_loss, q_value, abs_q_value, values[3 * n])

    def _step(self, batch: Batch, gamma: float, tau: float, update_actor: bool, noise: th.Tensor) -> th.Tensor:
        """
        :param batch: As of ``gradient_step``, like the others
        :param gamma: Discount factor
        :param tau: Polyak coefficient
        :param update_actor: Whether to update the actor and the target networks, too
        :param noise: The random numbers, of no rows if there are none
        :return: What is reported
        """
        reports: list[Any] = torch_operations.new_reports(3 * self.n_critics + 2)
        transitions = self._transitions(batch, gamma)
        self.step.function(self.parts, transitions, noise, reports, (None, None), tau, update_actor, self.step.choices)
        # One mean of all columns instead of a mean each
        return th.cat(reports if update_actor else reports[:-1], dim=1).mean(dim=0)

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
        self.actor_storage.flush_denormals()
        self.critic_storage.flush_denormals()


def _mlps(networks: ParsedNetworks) -> tuple[Mlp, tuple[QNetworkParts, ...]]:
    """
    :param networks: The layers of an actor and of its critic
    :return: The actor, and each Q-network
    """
    critics = []
    for state_layers, q_layers in networks.critics:
        state_net, q_net = Mlp(*state_layers), Mlp(*q_layers)
        critics.append(QNetworkParts(state_net, q_net, 0 if state_net.is_empty else networks.n_features(state_layers)))
    return Mlp(*networks.actor), tuple(critics)
