"""Actor, critic and their targets together: what a gradient step trains, keeps the norms of and lets follow."""

import math
import operator
from dataclasses import dataclass

import torch as th
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_bn_ddpg.networks.actors import BaseActor
from sb3_bn_ddpg.networks.base import Network
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.entropy import EntropyCoefficient
from sb3_bn_ddpg.networks.normalization import scale_free_layers
from sb3_bn_ddpg.networks.statistics import PassStatistics, statistics_of

ALMOST_FIXED = 1e-3
"""Relative distance from the fixed norm that rounding explains; weights whose norm is free go further in some steps."""


@dataclass(frozen=True)
class Networks:
    """
    The four networks; without target networks, the last two are the first two.

    :param actor: The actor
    :param critic: The critic
    :param actor_target: The target actor
    :param critic_target: The target critic
    :param fixed_norm_actor_weights: Weights of the actor that keep their norm
    :param fixed_norm_critic_weights: Weights of the critic that keep their norm
    :param entropy: The entropy coefficient, of an actor that has one
    :param auxiliary: A further network, without a target, of an algorithm that has one: IQL's value function, BCQ's generative
        model
    """

    actor: BaseActor
    critic: Critic
    actor_target: BaseActor
    critic_target: Critic
    fixed_norm_actor_weights: tuple[th.Tensor, ...] = ()
    fixed_norm_critic_weights: tuple[th.Tensor, ...] = ()
    entropy: EntropyCoefficient | None = None
    auxiliary: Network | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """All modules of all of them, in order."""
        nets = (self.actor, self.critic, self.actor_target, self.critic_target, self.auxiliary)
        return [module for net in nets if net is not None for module in net.modules()]

    def is_same_as(self, other: "Networks") -> bool:
        """
        :param other: Other networks
        :return: Whether these are the same objects
        """
        ours, theirs = (
            [
                *(nets.actor, nets.critic, nets.actor_target, nets.critic_target, nets.entropy, nets.auxiliary),
                *nets.fixed_norm_actor_weights,
                None,
                *nets.fixed_norm_critic_weights,
            ]
            for nets in (self, other)
        )
        return len(ours) == len(theirs) and all(map(operator.is_, ours, theirs))

    @property
    def actor_parameters(self) -> list[nn.Parameter]:
        """What the actor's loss trains: parameters can be frozen, and thawed, between two steps."""
        return [param for param in self.actor.own_parameters if param.requires_grad]

    @property
    def shares_features(self) -> bool:
        """Whether actor and critic have one features extractor."""
        return not (self.actor.owns_features_extractor and self.critic.owns_features_extractor)

    @property
    def online_parameters(self) -> list[nn.Parameter]:
        """Actor's and critic's, each once: those of a shared features extractor belong to both."""
        return list(dict.fromkeys([*self.actor.parameters(), *self.critic.parameters()]))

    @property
    def target_parameters(self) -> list[nn.Parameter]:
        """The counterparts of ``online_parameters``."""
        return list(dict.fromkeys([*self.actor_target.parameters(), *self.critic_target.parameters()]))


@th.no_grad()
def restore_norms(weights: tuple[th.Tensor, ...]) -> None:
    """
    Scale weights back to the norm that they have at the initialisation (section 7) on average. Before batch norm this changes
    nothing that a network computes from its minibatch's statistics; but weights that grow learn ever more slowly
    (`Palenicek et al. <https://arxiv.org/abs/2506.03758>`__). Running statistics, by which batch
    renormalisation corrects after its warm-up, follow this scaling as they follow the step itself.

    :param weights: Weights of linear layers and convolutions, whose first dimension is the outputs'
    """
    for weight in weights:
        if weight.requires_grad:  # not frozen, as it may be at any time
            weight.mul_(_factor_to_fixed_norm(weight))


def _factor_to_fixed_norm(weight: th.Tensor) -> th.Tensor:
    # U[-1/sqrt(f), 1/sqrt(f)] has the variance 1 / (3 f), f the fan-in
    factor: th.Tensor = math.sqrt(weight.shape[0] / 3) / th.linalg.vector_norm(weight)
    return factor


@th.no_grad()
def begin_fixed_norms(network: nn.Module, target: nn.Module) -> None:
    """
    Give the weights of a network that was trained with free ones their fixed norm. Biases and running statistics are scaled
    with them, and the target network by the same factors, so that both compute what they did, also from running statistics.

    :param network: The network; layers without statistics yet are left as they are
    :param target: Its target network, or itself
    """
    for pair, target_pair in zip(scale_free_layers(network), scale_free_layers(target), strict=True):
        weight, (*_, count) = pair[0].weight, statistics_of(pair[1])
        factor = _factor_to_fixed_norm(weight)
        if not weight.requires_grad or not count or abs(factor - 1) < ALMOST_FIXED:
            continue
        for layer, norm in {id(pair[0]): pair, id(target_pair[0]): target_pair}.values():
            mean, var, _ = statistics_of(norm)
            scaled = (layer.weight, mean) if layer.bias is None else (layer.weight, layer.bias, mean)
            for tensor in scaled:
                tensor.mul_(factor)
            var.mul_(factor**2)


def descend(nets: Networks, loss: th.Tensor) -> None:
    """
    One step of the actor's optimizer.

    :param nets: The networks
    :param loss: The actor's loss, a scalar
    """
    nets.actor.optimizer.zero_grad()
    # Only the actor's gradients: the critics' would be computed for nothing, and overwrite those of their own loss
    if trained := nets.actor_parameters:
        loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
    nets.actor.optimizer.step()
    restore_norms(nets.fixed_norm_actor_weights)


def move_targets(nets: Networks, tau: float, statistics: PassStatistics) -> None:
    """
    Move the target networks: theta' = tau theta + (1 - tau) theta', and their running statistics by ``target_sync``.

    :param nets: The networks
    :param tau: Polyak coefficient, in [0, 1]
    :param statistics: Its ``target_sync`` says how running statistics follow
    """
    polyak_update(nets.online_parameters, nets.target_parameters, tau)
    nets.actor_target.follow_statistics(nets.actor, statistics.target_sync, tau)
    nets.critic_target.follow_statistics(nets.critic, statistics.target_sync, tau)


def move_critic_target(nets: Networks, tau: float, statistics: PassStatistics) -> None:
    """
    Move the target critics, where the actor has no target network.

    :param nets: The networks
    :param tau: Polyak coefficient, in [0, 1]
    :param statistics: Its ``target_sync`` says how running statistics follow
    """
    polyak_update(nets.critic.parameters(), nets.critic_target.parameters(), tau)
    # Those of a features extractor of the actor's as well: the targets have one of their own, which nothing else moves
    nets.critic_target.follow_statistics(nets.critic, statistics.target_sync, tau, borrowed=True)
