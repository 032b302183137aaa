"""Which networks and optimizers a gradient step on the engine knows, and their layers."""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn.modules import module as of_modules

from sb3_bn_ddpg.fast.flat_storage import has_own_step, has_parameter_hooks, has_variants
from sb3_bn_ddpg.fast.mlp import MlpArguments, parse_layers
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.fast.step import UnsupportedError
from sb3_bn_ddpg.networks.actor_critic import Networks
from sb3_bn_ddpg.networks.actors import Actor, BaseActor, FixedStdActor, GaussianActor
from sb3_bn_ddpg.networks.base import Network
from sb3_bn_ddpg.networks.critics import Critic, QNetwork, ValueNetwork
from sb3_bn_ddpg.networks.entropy import EntropyCoefficient
from sb3_bn_ddpg.networks.generative import ActionVAE, PerturbationActor
from sb3_bn_ddpg.networks.layers import StandardizingExtractor
from sb3_bn_ddpg.networks.norm_layers import BatchRenorm1d

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where PyTorch keeps what a module calls of the user's; with ``_global`` before, what every module calls."""


class ParsedNetworks(NamedTuple):
    """
    The layers of the networks, as arguments of :class:`~sb3_bn_ddpg.fast.mlp.Mlp`.

    :param actor: The actor before its tanh; of a stochastic one the layers up to the last hidden one, and both output layers
    :param critics: Of each Q-network, before and after the action
    :param obs_dim: Number of entries of an observation
    :param auxiliary: The value function, if there is one; or a generative model's encoder up to the last hidden layer, both
        its output layers, and the decoder before its tanh
    """

    actor: tuple[MlpArguments, ...]
    critics: tuple[tuple[MlpArguments, MlpArguments], ...]
    obs_dim: int
    auxiliary: tuple[MlpArguments, ...] = ()

    def n_outputs(self, first_layers: MlpArguments) -> int:
        """
        :param first_layers: Layers whose input is an observation
        :return: Number of their outputs
        """
        layers = first_layers[1]
        return layers[-1][0].out_features if layers else self.obs_dim


def check_supported(nets: Networks, step: EngineStep) -> None:
    """
    :param nets: The networks
    :param step: The algorithm's step
    :raises UnsupportedError: if their update needs the definition, for a reason that is not in the layers
    """
    for network, network_type in (
        (nets.actor, step.actor_class),
        (nets.critic, Critic),
        (nets.auxiliary, step.auxiliary_class),
    ):
        if network is None:
            continue
        if type(network) is not network_type:
            raise UnsupportedError(f"the network {type(network).__name__} is a custom class")
        if type(network.features_extractor) not in (FlattenExtractor, StandardizingExtractor):
            raise UnsupportedError(f"the features extractor is {type(network.features_extractor).__name__}")
        if not isinstance(network.observation_space, spaces.Box) or is_image_space(network.observation_space):
            raise UnsupportedError(f"the observation space is {network.observation_space}")
    check_standardization(nets)
    for each in (nets.actor, nets.critic, nets.entropy, nets.auxiliary):
        if each is not None:
            _check_parameters(each)
    for critic in (nets.critic, nets.critic_target):
        for q_network in critic.q_networks:
            if type(q_network) is not QNetwork:
                raise UnsupportedError(f"the network {type(q_network).__name__} is a custom class")
    if any(map(_has_module_hooks, (nets.actor_target, nets.critic_target))):
        raise UnsupportedError("there are hooks in a target network")
    # A parameter that two layers share appears here once for each of them; `parameters()` would list it once
    params = [param for each in distinct_networks(nets) for _, param in each.named_parameters(remove_duplicate=False)]
    if len(set(params)) < len(params):
        raise UnsupportedError("networks or layers share parameters")
    if nets.critic.features_extractor is nets.actor.features_extractor:
        raise UnsupportedError("actor and critic share their features extractor")
    if step.unsupported is not None:
        raise UnsupportedError(step.unsupported)


def distinct_networks(nets: Networks) -> list[Network]:
    """
    :param nets: The networks
    :return: Each once
    """
    named = (nets.actor, nets.critic, nets.actor_target, nets.critic_target, nets.auxiliary)
    return [network for network in dict.fromkeys(named) if network is not None]


def standardizations(nets: Networks) -> list[tuple[th.Tensor, th.Tensor] | None]:
    """
    :param nets: The networks
    :return: Of each, mean and scale by which it standardises observations, if it does
    """
    extractors = [network.features_extractor for network in distinct_networks(nets)]
    return [(each.mean, each.scale) if isinstance(each, StandardizingExtractor) else None for each in extractors]


def check_standardization(nets: Networks) -> None:
    """
    :param nets: The networks
    :raises UnsupportedError: if they standardise observations differently: a step on the engine does it once for all
    """
    first, *others = standardizations(nets)
    for other in others:
        is_same = first is other is None or (first and other and all(map(th.equal, first, other)))
        if not is_same:
            raise UnsupportedError("the networks standardise observations differently")


def _check_parameters(network: Network | EntropyCoefficient) -> None:
    """
    :param network: What has parameters and an optimizer
    :raises UnsupportedError: if these are others than an update in flat storage knows
    """
    if not all(param.requires_grad for param in network.parameters()):
        raise UnsupportedError("a parameter is frozen")
    if any(map(th.Tensor.is_shared, (param for param in network.parameters() if param.device.type == "cpu"))):
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


def _has_module_hooks(network: nn.Module) -> bool:
    """
    :param network: A network
    :return: Whether its modules call something of the user's
    """
    if any(getattr(of_modules, f"_global{name}") for name in HOOKS):
        return True
    return any("forward" in vars(module) or any(map(vars(module).get, HOOKS)) for module in network.modules())


def parsed_networks(actor: BaseActor, critic: Critic, auxiliary: Network | None = None) -> ParsedNetworks:
    """
    :param actor: The actor, of which the last layer is its tanh unless it squashes what it draws
    :param critic: The critic
    :param auxiliary: A value function or a generative model, if there is one
    :return: Their layers
    :raises UnsupportedError: if there is a layer that ``Mlp`` does not know
    """
    of_actor, of_auxiliary = _layers_of_actor(actor), _layers_of_auxiliary(auxiliary)
    of_critics = [(_layers(q.state_net), _layers(q.q_net)) for q in critic.q_networks]
    for _, q_layers in of_critics:
        before_action = takewhile(lambda layer: not isinstance(layer, nn.Linear), q_layers)
        if any(isinstance(layer, nn.LayerNorm) for layer in before_action):
            raise UnsupportedError("a layer norm stands before the layer that takes the action")
    known = {layer for network in (actor, critic, auxiliary) if network is not None for layer in network.norm_layers}
    for layers in (*of_actor, *of_auxiliary, *(part for parts in of_critics for part in parts)):
        if any(isinstance(layer, nn.BatchNorm1d | BatchRenorm1d) and layer not in known for layer in layers):
            raise UnsupportedError("a batch norm stays in evaluation mode, or has no running averages")
    return ParsedNetworks(
        tuple(map(parse_layers, of_actor)),
        tuple((parse_layers(state_layers), parse_layers(q_layers)) for state_layers, q_layers in of_critics),
        actor.features_extractor.features_dim,
        tuple(map(parse_layers, of_auxiliary)),
    )


def _layers_of_actor(actor: BaseActor) -> list[list[nn.Module]]:
    """
    :param actor: An actor
    :return: Its layers, in the parts that :class:`ParsedNetworks` has
    :raises UnsupportedError: if they are others than those of its class
    """
    if isinstance(actor, GaussianActor):
        return [_layers(actor.latent_pi), [actor.mu], [actor.log_std]]
    assert isinstance(actor, (Actor, FixedStdActor, PerturbationActor))
    return [_layers_before_tanh(actor.mu, "the actor")]


def _layers_of_auxiliary(network: Network | None) -> list[list[nn.Module]]:
    """
    :param network: A value function, a generative model or None
    :return: Its layers, in the parts that :class:`ParsedNetworks` has
    :raises UnsupportedError: if they are others than those of its class
    """
    if network is None:
        return []
    if isinstance(network, ValueNetwork):
        return [_layers(network.v_net)]
    assert isinstance(network, ActionVAE)
    decoder = _layers_before_tanh(network.decoder, "the decoder")
    if decoder and not isinstance(decoder[0], nn.Linear):
        raise UnsupportedError("a normalisation stands before the layer that takes the latent vector")
    return [_layers(network.encoder), [network.mean], [network.log_std], decoder]


def _layers(sequence: nn.Module) -> list[nn.Module]:
    if type(sequence) is not nn.Sequential:
        raise UnsupportedError(f"{type(sequence).__name__} stands where a Sequential is expected")
    return [*sequence]


def _layers_before_tanh(sequence: nn.Module, whose: str) -> list[nn.Module]:
    *layers, last = _layers(sequence)
    if type(last) is not nn.Tanh:
        raise UnsupportedError(f"the last layer of {whose} is {type(last).__name__}")
    return layers
