"""What of a policy acts, deterministically, and whether a file without code can say it."""

from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_bn_ddpg.networks import layers as torch_layers
from sb3_bn_ddpg.networks.actors import Actor, FixedStdActor, GaussianActor, SigmoidStdActor
from sb3_bn_ddpg.networks.base import BoundedPolicy, Network
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.generative import ActionVAE, GenerativeActor, PerturbationActor

FEATURES_EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    cls.__name__: cls
    for cls in (FlattenExtractor, NatureCNN, CombinedExtractor, *vars(torch_layers).values())
    if isinstance(cls, type) and issubclass(cls, BaseFeaturesExtractor)
}
ACTIVATIONS = {
    cls.__name__: cls
    for cls in (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Mish, nn.Identity)
}
"""What a description may name. Everything else is refused, on writing and on reading."""
STOCHASTIC_ACTORS = (GaussianActor, FixedStdActor, SigmoidStdActor)


def deterministic_part(policy: BNActorCriticPolicy) -> Any:
    """
    :param policy: A policy
    :return: An :class:`Actor` or a :class:`GenerativeActor` that acts as the policy does deterministically, of the very same
        layers
    :raises ValueError: if code of another package says how it acts
    """
    acts_by = policy.acting_network()
    _check_classes(policy, acts_by)
    for name, module in acts_by.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"`actor` with hooks at {name or 'itself'} cannot be exported: they are code")
    return _deterministic(acts_by)


def _check_classes(policy: BNActorCriticPolicy, acts_by: BoundedPolicy) -> None:
    """
    :param policy: A policy
    :param acts_by: What it acts by
    :raises ValueError: if a class of another package says how it acts
    """
    if type(policy)._predict is not BNActorCriticPolicy._predict:
        raise ValueError(
            f"`policy={type(policy).__name__}` cannot be exported: it has a method `_predict` of its own, which is code. "
            "`export_onnx` writes what it calculates."
        )
    parts: list[tuple[str, Any, tuple[type, ...]]]
    if type(acts_by) is GenerativeActor:
        parts = [
            ("the class of the actor", type(acts_by.actor), (PerturbationActor,)),
            ("the class of the critic", type(acts_by.critic), (Critic,)),
            ("the class of the generative model", type(acts_by.vae), (ActionVAE,)),
        ]
    else:
        parts = [("the class of the actor", type(acts_by), (Actor, *STOCHASTIC_ACTORS))]
    for network in acts_by.modules():
        if isinstance(network, Network):
            parts += [
                ("features_extractor_class", type(network.features_extractor), tuple(FEATURES_EXTRACTORS.values())),
                ("activation_fn", network.constructor_parameters["activation_fn"], tuple(ACTIVATIONS.values())),
            ]
    for name, cls, known in parts:
        if cls not in known:
            names, name_of_class = ", ".join(each.__name__ for each in known), getattr(cls, "__name__", cls)
            raise ValueError(f"`{name}={name_of_class}` cannot be exported: only {names} can, which need no code in the file")


def _deterministic(acts_by: Any) -> Any:
    """
    :param acts_by: What a policy acts by
    :return: The same deterministic actions of the very same layers: by a deterministic actor in the place of a stochastic one,
        and without critics that are not asked
    """
    if isinstance(acts_by, GenerativeActor):
        critic = _made_of(Critic, acts_by.critic, n_critics=1)
        critic.features_extractor, critic.qf0 = acts_by.critic.features_extractor, acts_by.critic.q_networks[0]
        return GenerativeActor(acts_by.actor, critic, acts_by.vae, acts_by.latents)
    if type(acts_by) not in STOCHASTIC_ACTORS:
        return acts_by
    made = _made_of(Actor, acts_by)
    mu: Any = acts_by.mu
    made.mu = nn.Sequential(*acts_by.latent_pi, mu, nn.Tanh()) if isinstance(acts_by, GaussianActor) else mu
    return made


def _made_of(cls: type[Network], network: Network, **kwargs: Any) -> Any:
    """
    :param cls: A class of networks
    :param network: A network
    :param kwargs: Arguments that are other than this one's
    :return: A network of that class with its arguments, without memory, for layers that are exchanged
    """
    of_spaces: Any = network.observation_space, network.action_space
    arguments = dict(network.constructor_parameters) | dict(normalize_images=network.normalize_images) | kwargs
    with th.device("meta"):  # draws no random numbers
        made: Any = cls(*of_spaces, **arguments)
    return made
