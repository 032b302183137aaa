"""
The gradient step of ``step.py`` again, several times faster on small networks: gradients derived by hand, no autograd, and
each network's parameters, gradients, Adam moments and running statistics laid out in one tensor each.

``step.gradient_step`` is the definition; the tests hold both to the same numbers.
"""

from __future__ import annotations

from typing import ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.fast.flat_storage import FlatStorage, has_own_step, has_parameter_hooks, has_variants
from sb3_bn_ddpg.fast.mlp import Mlp, MlpArguments, Norm, parse_layers
from sb3_bn_ddpg.fast.step import UnsupportedError
from sb3_bn_ddpg.networks.actor_critic import Networks, restore_norms
from sb3_bn_ddpg.networks.actors import Actor
from sb3_bn_ddpg.networks.critics import Critic, QNetwork
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics


class FastUpdate:
    """
    The gradient step for the networks that ``MlpPolicy`` builds by default: linear layers, batch or layer norm or none, ReLU.

    It takes over the storage of parameters, running statistics and optimizer state; modules and optimizers keep views into it,
    so saving, loading and every other use of them go on as before.

    :param nets: The networks, with the optimizers of actor and critic
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :raises UnsupportedError: if networks, optimizers or statistics are others than it knows
    """

    takes_any_device: ClassVar[bool] = False

    def __init__(self, nets: Networks, statistics: PassStatistics) -> None:
        # Look at everything before anything is moved
        sequences, target_sequences = self.parsed(nets, statistics)
        self.nets, self.statistics = nets, statistics
        self.modules = nets.modules
        self.actor_storage = FlatStorage(nets.actor, nets.actor_target)
        self.critic_storage = FlatStorage(nets.critic, nets.critic_target)
        self.dtype = self.actor_storage.values.dtype
        self.actor, self.state_net, self.q_net = (Mlp(*sequence) for sequence in sequences)
        if nets.actor_target is nets.actor:
            self.actor_target, self.state_net_target, self.q_net_target = self.actor, self.state_net, self.q_net
        else:
            self.actor_target, self.state_net_target, self.q_net_target = (Mlp(*sequence) for sequence in target_sequences)

    @classmethod
    def parsed(cls, nets: Networks, statistics: PassStatistics) -> tuple[list[MlpArguments], list[MlpArguments]]:
        """
        :param nets: The networks
        :param statistics: Which batch-norm statistics each pass normalises with and updates
        :return: The arguments of :class:`Mlp` for each part of the online networks, and of the targets
        :raises UnsupportedError: if networks, optimizers or statistics are others than this class knows
        """
        _check_supported(nets, statistics)
        return _parsed_networks(nets.actor, nets.critic), _parsed_networks(nets.actor_target, nets.critic_target)

    def fits(self, nets: Networks, statistics: PassStatistics) -> bool:
        """
        Look at everything anew, as a new object would.

        :param nets: The networks of the model
        :param statistics: The model's choice of statistics
        :return: Whether this object still serves: no module is another one, and its storage is still theirs
        :raises UnsupportedError: if networks, optimizers or statistics are others than this class knows
        """
        self.parsed(nets, statistics)
        return self.is_current(nets, statistics) and nets.modules == self.modules

    def is_current(self, nets: Networks, statistics: PassStatistics) -> bool:
        """
        :param nets: The networks of the model
        :param statistics: The model's choice of statistics
        :return: Whether this object still holds their storage: not after an optimizer's state was loaded, for example
        """
        return (
            nets.is_same_as(self.nets)
            and statistics == self.statistics
            and self.actor_storage.is_current()
            and self.critic_storage.is_current()
        )

    @th.inference_mode()
    def gradient_step(self, batch: Batch, gamma: float, tau: float, update_actor: bool = True) -> UpdateInfo:
        """
        One gradient step, as ``step.gradient_step``.

        :param batch: Transitions sampled from the replay buffer
        :param gamma: Discount factor, unless the batch has its own (n-step returns)
        :param tau: Polyak coefficient of the target networks, in [0, 1]
        :param update_actor: Whether to update the actor and the target networks, too
        :return: Losses and values of this step
        """
        critic_loss, q_value, abs_q_value, target, *actor_loss = self._step(batch, gamma, tau, update_actor).unbind()
        return UpdateInfo(actor_loss[0] if update_actor else None, critic_loss, q_value, abs_q_value, target)

    def _step(self, batch: Batch, gamma: float, tau: float, update_actor: bool) -> th.Tensor:
        """
        :param batch: As of ``gradient_step``, like the others
        :param gamma: Discount factor
        :param tau: Polyak coefficient
        :param update_actor: Whether to update the actor and the target networks, too
        :return: What is reported: the critic's loss, the means of Q, of its absolute value and of the TD target, and the
            actor's loss if there is one
        """
        assert isinstance(batch.observations, th.Tensor)
        assert isinstance(batch.next_observations, th.Tensor)
        obs, next_obs = (x.flatten(1).to(self.dtype) for x in (batch.observations, batch.next_observations))
        actions, n = batch.actions, len(obs)

        # The next states' Q'(s', mu'(s')), which a joint pass has from the critic's own pass below
        is_joint = self.statistics.target == "joint"
        use: Statistics = "running" if self.statistics.target == "joint" else self.statistics.target
        next_actions = self.actor_target.forward(next_obs, use).output.tanh_()
        q_obs, q_actions = obs, actions
        if is_joint:
            q_obs, q_actions = th.cat([obs, next_obs]), th.cat([actions, next_actions])
        else:
            next_features = self.state_net_target.forward(next_obs, use).output
            next_q = self.q_net_target.forward(th.cat([next_features, next_actions], dim=1), use).output

        # The critic's loss mean (Q(s, a) - y)^2 with the TD target y = r + gamma Q'(s', mu'(s')), its gradient and its step
        use = self.statistics.critic_loss
        state_pass = self.state_net.forward(q_obs, use)
        q_pass = self.q_net.forward(th.cat([state_pass.output, q_actions], dim=1), use)
        q_values = q_pass.output[:n]
        if is_joint:
            next_q = q_pass.output[n:]
        discounts = (1 - batch.dones).mul_(gamma if batch.discounts is None else batch.discounts)
        # (rewards of several steps have the type of a gamma of NumPy's)
        target = th.addcmul(batch.rewards.to(self.dtype), discounts.to(self.dtype), next_q)
        td_error = q_values - target
        reported = [td_error.square(), q_values, q_values.abs(), target]
        q_grad = td_error.mul_(2 / n)
        if is_joint:
            q_grad = th.cat([q_grad, th.zeros_like(q_grad)])  # the targets are constants
        # The input of the Q-network is (n, features + action_dim); the state layers get the gradient of the features
        features_grad = self.q_net.backward(q_pass, q_grad, slice(0, state_pass.output.shape[1]))
        self.state_net.backward(state_pass, features_grad)
        self.critic_storage.adam_step()
        restore_norms(self.nets.fixed_norm_critic_weights)

        if update_actor:
            reported.append(self._actor_step(obs))
        self._finish_step(tau, update_actor)
        # One mean of all columns instead of a mean each
        return th.cat(reported, dim=1).mean(dim=0)

    def _actor_step(self, obs: th.Tensor) -> th.Tensor:
        """
        Minimise the actor's loss -mean Q(s, mu(s)); of the critic, only the gradient of the action is needed.

        :param obs: Observations, of shape ``(n, features)``
        :return: The loss of each, of shape ``(n, 1)``
        """
        actor_pass = self.actor.forward(obs, self.statistics.actor_loss_actor)
        mu = actor_pass.output.tanh_()
        use = self.statistics.actor_loss_critic
        features = self.state_net.forward(obs, use).output
        q_pass = self.q_net.forward(th.cat([features, mu], dim=1), use)
        q_grad = th.full_like(q_pass.output, -1 / len(obs))
        action_columns = slice(features.shape[1], None)
        action_grad = self.q_net.input_gradient(q_pass, q_grad, action_columns, is_batch=use != "running")
        self.actor.backward(actor_pass, th.ops.aten.tanh_backward(action_grad, mu))
        self.actor_storage.adam_step()
        restore_norms(self.nets.fixed_norm_actor_weights)
        return -q_pass.output

    def _finish_step(self, tau: float, update_actor: bool) -> None:
        """
        What follows the two optimizers' steps.

        :param tau: Polyak coefficient of the target networks, in [0, 1]
        :param update_actor: Whether the actor was updated, and the target networks are to be
        """
        self._count_updates(update_actor)
        for storage in (self.actor_storage, self.critic_storage):
            if update_actor and storage.target_values is not storage.values:
                self._move(storage.target_values, storage.values, tau)
                storage.move_target_statistics(tau, self.statistics.target_sync)

    def flush_denormals(self) -> None:
        """Set moments of the optimizers, and parameters, that are too small to count to zero."""
        self.actor_storage.flush_denormals()
        self.critic_storage.flush_denormals()

    def _move(self, target: th.Tensor, values: th.Tensor, tau: float) -> None:
        """Polyak averaging."""
        target.lerp_(values, tau)

    def _count_updates(self, update_actor: bool) -> None:
        """
        Advance batch norm's counters of those networks whose running statistics this step updated.

        :param update_actor: Whether it had the passes of the actor's loss
        """
        statistics, actor, critic = self.statistics, self.actor_storage, self.critic_storage
        passes = [(statistics.target, (actor.target_counts, critic.target_counts)), (statistics.critic_loss, (critic.counts,))]
        if update_actor:
            passes += [(statistics.actor_loss_actor, (actor.counts,)), (statistics.actor_loss_critic, (critic.counts,))]
        for use, counts in passes:
            if use == "batch_update":
                for count in counts:
                    count.add_(1)


def _check_supported(nets: Networks, statistics: PassStatistics) -> None:
    """
    :param nets: The networks
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :raises UnsupportedError: if their update needs the reference, for a reason that is not in the layers
    """
    for network, network_type in ((nets.actor, Actor), (nets.critic, Critic)):
        if type(network) is not network_type:
            raise UnsupportedError(f"the network {type(network).__name__} is a custom class")
        if type(network.features_extractor) is not FlattenExtractor:
            raise UnsupportedError(f"the features extractor is {type(network.features_extractor).__name__}")
        if not isinstance(network.observation_space, spaces.Box) or is_image_space(network.observation_space):
            raise UnsupportedError(f"the observation space is {network.observation_space}")
        if not all(param.requires_grad for param in network.parameters()):
            raise UnsupportedError("a parameter is frozen")
        if network.device.type == "cpu" and any(map(th.Tensor.is_shared, network.parameters())):
            raise UnsupportedError("a parameter lies in shared memory, which other processes read")
        if _has_module_hooks(network) or has_parameter_hooks(network.parameters()) or has_own_step(network.optimizer):
            raise UnsupportedError(f"there are hooks in the network {type(network).__name__}, or on its optimizer")
        optimizer = network.optimizer
        # SGD, AdamW and others are not Adam itself
        if type(optimizer) is not th.optim.Adam or has_variants(optimizer):
            raise UnsupportedError(f"the optimizer is {type(optimizer).__name__} with options of its own")
        groups = [group["params"] for group in optimizer.param_groups]
        if {param for group in groups for param in group} != set(network.parameters()):
            raise UnsupportedError("the optimizer has not just the parameters of its network")
        for group in groups:  # which has one counter here
            if len({float(optimizer.state.get(param, {}).get("step", 0.0)) for param in group}) > 1:
                raise UnsupportedError("the optimizer has made more steps with some parameters than with others")
    for critic in (nets.critic, nets.critic_target):
        if len(critic.q_networks) > 1:
            raise UnsupportedError(f"there are {len(critic.q_networks)} critics")
        if type(critic.q_networks[0]) is not QNetwork:
            raise UnsupportedError(f"the network {type(critic.q_networks[0]).__name__} is a custom class")
    distinct = dict.fromkeys((nets.actor, nets.critic, nets.actor_target, nets.critic_target))
    params = [param for network in distinct for param in network.parameters()]
    if len(set(params)) < len(params):
        raise UnsupportedError("networks share parameters")
    if nets.critic.features_extractor is nets.actor.features_extractor:
        raise UnsupportedError("actor and critic share their features extractor")
    choices = (
        statistics.target,
        statistics.critic_loss,
        statistics.actor_loss_actor,
        statistics.actor_loss_critic,
    )
    if "running_update" in choices:
        raise UnsupportedError("a pass has the statistics 'running_update'")


def _has_module_hooks(network: nn.Module) -> bool:
    """
    :param network: A network
    :return: Whether its modules call something of the user's
    """
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in network.modules() for name in names)


def _parsed_networks(actor: Actor, critic: Critic) -> list[MlpArguments]:
    """
    :param actor: The actor, whose last layer is its tanh
    :param critic: The critic
    :return: The arguments of :class:`Mlp` for the actor before its tanh, and for the critic before and after the action
    :raises UnsupportedError: if there is a layer that ``Mlp`` does not know
    """
    for sequence in (actor.mu, critic.state_net, critic.q_net):
        if type(sequence) is not nn.Sequential:
            raise UnsupportedError(f"{type(sequence).__name__} stands where a Sequential is expected")
    *actor_layers, last = actor.mu
    if type(last) is not nn.Tanh:
        raise UnsupportedError(f"the last layer of the actor is {type(last).__name__}")
    for layers in (actor_layers, [*critic.state_net, *critic.q_net]):
        with_parameters = [layer for layer in layers if next(layer.parameters(), None) is not None]
        if len(set(with_parameters)) < len(with_parameters):
            raise UnsupportedError("a layer occurs twice")
        if not {layer for layer in layers if isinstance(layer, nn.BatchNorm1d)}.issubset(
            [*actor.norm_layers, *critic.norm_layers]
        ):
            raise UnsupportedError("a batch norm stays in evaluation mode, or has no running averages")
    if len(critic.q_net) and isinstance(critic.q_net[0], Norm):
        raise UnsupportedError("the critic normalises the action")
    return [parse_layers(modules) for modules in (actor_layers, list(critic.state_net), list(critic.q_net))]
