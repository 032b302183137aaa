"""
The networks that BCQ has besides its critics: a generative model of the data's actions, what perturbs its actions, and both
with a critic as what acts.
"""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.networks.actors import BaseActor
from sb3_bn_ddpg.networks.base import BoundedPolicy, Network
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.layers import FinalInit, hidden_layers, output_linear
from sb3_bn_ddpg.networks.normalization import PAPER_NORMALIZATION, NormalizationConfig

LATENT_LIMIT = 0.5
"""Latent vectors are clipped to plus and minus this where actions are generated, as in the authors' code."""
LATENT_LOG_STD_MIN, LATENT_LOG_STD_MAX = -4.0, 15.0
"""Where the logarithm of the encoder's standard deviation is clamped, as there."""


class PerturbationActor(BaseActor):
    """
    What BCQ adds to a generated action, phi tanh(.) of state and action. Its layers are those of an actor, of which the first,
    and its normalisation, sees the action too.

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base.StateNetwork`, and this one:

    :param phi: Largest perturbation, in units of half an action's range, >= 0
    """

    def __init__(self, *args: Any, phi: float = 0.05, **kwargs: Any) -> None:
        check_number("phi", phi, low=0)
        super().__init__(*args, **kwargs)
        self.phi = phi
        self.constructor_parameters |= dict(phi=phi)

    @property
    def n_further_inputs(self) -> int:
        return get_action_dim(self.action_space)

    def _add_layers(self, layers: list[nn.Module], n_units: int, final_init: FinalInit) -> None:
        self.mu = nn.Sequential(*layers, output_linear(n_units, get_action_dim(self.action_space), final_init), nn.Tanh())

    def perturbed_in(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Generated actions, of shape ``(batch_size, action_dim)``
        :return: The perturbed ones, clipped to [-1, 1], of the same shape
        """
        return self._perturbed(self.features(obs), actions)

    def actions_of(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: The perturbation of the action 0, of shape ``(batch_size, action_dim)``; what BCQ does takes its other
            networks
        """
        return self._perturbed(features, features.new_zeros(len(features), self.n_further_inputs))

    def _perturbed(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        perturbation: th.Tensor = self.mu(th.cat([features, actions], dim=1))
        return (actions + self.phi * perturbation).clamp(-1, 1)


class ActionVAE(Network):
    """
    A variational auto-encoder of actions, given the state.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Number of units of each hidden layer of encoder and decoder
    :param features_extractor: Network to extract features
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to divide images by 255
    :param normalization: Which normalisation layers it gets: on hidden layers, not on its inputs, of which one is random
    :param final_init: Initialisation of the output layers, as of :class:`~sb3_bn_ddpg.networks.base.StateNetwork`
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: Any,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        normalization: NormalizationConfig = PAPER_NORMALIZATION,
        final_init: FinalInit = "fan_in",
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            normalize_images,
            net_arch=net_arch,
            features_extractor=features_extractor,
            features_dim=features_dim,
            activation_fn=activation_fn,
            normalization=normalization,
            final_init=final_init,
            owns_features_extractor=True,
        )
        del self.constructor_parameters["owns_features_extractor"]  # it owns one in any case
        action_dim = get_action_dim(action_space)
        self.latent_dim = 2 * action_dim
        n_units = net_arch[-1] if net_arch else features_dim + action_dim
        self.encoder = nn.Sequential(*hidden_layers(features_dim + action_dim, net_arch, activation_fn, normalization))
        self.mean = output_linear(n_units, self.latent_dim, final_init)
        self.log_std = output_linear(n_units, self.latent_dim, final_init)
        n_inputs = features_dim + self.latent_dim
        self.decoder = nn.Sequential(
            *hidden_layers(n_inputs, net_arch, activation_fn, normalization),
            output_linear(net_arch[-1] if net_arch else n_inputs, action_dim, final_init),
            nn.Tanh(),
        )

    def forward(self, obs: PyTorchObs, actions: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Actions, of shape ``(batch_size, action_dim)``
        :param noise: Standard normal noise, of shape ``(batch_size, latent_dim)``
        :return: Decoded actions, ``(batch_size, action_dim)``, and mean and logarithm of the standard deviation of the latent
            vectors, ``(batch_size, latent_dim)`` each
        """
        features = self.features(obs)
        hidden = self.encoder(th.cat([features, actions], dim=1))
        mean, log_std = self.mean(hidden), self.log_std(hidden).clamp(LATENT_LOG_STD_MIN, LATENT_LOG_STD_MAX)
        decoded = self.decoder(th.cat([features, mean + log_std.exp() * noise], dim=1))
        return decoded, mean, log_std

    def generated_in(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param noise: Standard normal noise, of shape ``(batch_size, latent_dim)``, which is clipped
        :return: Actions as in the data, of shape ``(batch_size, action_dim)``
        """
        actions: th.Tensor = self.decoder(th.cat([self.features(obs), noise.clamp(-LATENT_LIMIT, LATENT_LIMIT)], dim=1))
        return actions


class GenerativeActor(BoundedPolicy):
    """
    What BCQ acts by: actions are generated and perturbed, and that is taken to which the first critic gives the largest value.

    :param actor: What perturbs the generated actions
    :param critic: The critic
    :param vae: The generative model
    :param latents: Latent vectors of the actions that are generated with ``deterministic=True``, of shape
        ``(n_actions, latent_dim)``; otherwise as many are drawn anew for each state
    """

    latents: th.Tensor

    def __init__(self, actor: PerturbationActor, critic: Critic, vae: ActionVAE, latents: th.Tensor) -> None:
        super().__init__(actor.observation_space, actor.action_space, squash_output=True)
        self.actor, self.critic, self.vae = actor, critic, vae
        self.register_buffer("latents", latents)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        assert isinstance(observation, th.Tensor)
        # Shapes by -1 and expand: the exporter to ONNX would take a number of states for a constant
        n_actions, latent_dim = self.latents.shape
        inputs = observation.unsqueeze(1).expand(-1, n_actions, *observation.shape[1:]).flatten(0, 1)
        latents = self.latents.expand(observation.shape[0], n_actions, latent_dim).flatten(0, 1)
        actions = self.vae.generated_in(inputs, latents if deterministic else th.randn_like(latents))
        actions = self.actor.perturbed_in(inputs, actions)  # (n_states * n_actions, action_dim)
        best = self.critic.q1_forward(inputs, actions).reshape(-1, n_actions).argmax(dim=1)
        actions = actions.reshape(-1, n_actions, actions.shape[1])
        return actions.gather(1, best.reshape(-1, 1, 1).expand(-1, 1, actions.shape[2])).squeeze(1)
