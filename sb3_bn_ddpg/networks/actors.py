"""
Actors: the paper's deterministic one, one that draws its actions from a Gaussian squashed by tanh, and those of the offline
algorithms, whose Gaussian is not squashed.
"""

import math

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_bn_ddpg.networks.base import BoundedPolicy, StateNetwork
from sb3_bn_ddpg.networks.layers import FinalInit, output_linear

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Where the logarithm of the standard deviation is clamped, as in SB3's SAC."""

FIXED_LOG_STD_MIN, FIXED_LOG_STD_MAX = -5.0, 2.0
"""Where that of an actor with the same standard deviation in all states is clamped, as in IQL."""

SIGMOID_LOG_STD_MIN = -6.0
"""Where a sigmoid lets it begin that ends at 0, as in AWAC."""

SQUASH_EPS = 1e-6
"""Added to the derivative of tanh before its logarithm, as in SB3's SAC: where tanh saturates, it is zero."""


class BaseActor(StateNetwork, BoundedPolicy):
    """What all actors have in common: a deterministic action for each state, scaled to [-1, 1]."""

    action_space: spaces.Box

    @property
    def squash_output(self) -> bool:
        """Whether actions are scaled to [-1, 1]."""
        return True

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :return: Deterministic actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        """
        return self.actions_of(self.features(obs))

    def actions_of(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: Deterministic actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        """
        raise NotImplementedError

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        # The policy is deterministic: exploration is the business of the action noise
        actions: th.Tensor = self(observation)
        return actions


class Actor(BaseActor):
    """
    The paper's actor mu(s): normalised state, normalised hidden layers, tanh (sections 3 and 7).

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base.StateNetwork`.
    """

    def _add_layers(self, layers: list[nn.Module], n_units: int, final_init: FinalInit) -> None:
        # The output is not normalised: that would undo the small initialisation, by which the first actions are near zero
        # (section 7)
        self.mu = nn.Sequential(*layers, output_linear(n_units, get_action_dim(self.action_space), final_init), nn.Tanh())

    def actions_of(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        """
        actions: th.Tensor = self.mu(features)
        return actions


class GaussianActor(BaseActor):
    """
    The actor of SAC, with the paper's normalisation: tanh(mean(s) + std(s) * noise). Mean and logarithm of the standard
    deviation are two linear layers behind the same hidden layers.

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base.StateNetwork`.
    """

    def _add_layers(self, layers: list[nn.Module], n_units: int, final_init: FinalInit) -> None:
        action_dim = get_action_dim(self.action_space)
        # The names are those of SB3's SAC
        self.latent_pi = nn.Sequential(*layers)
        self.mu = output_linear(n_units, action_dim, final_init)
        self.log_std = output_linear(n_units, action_dim, final_init)

    def actions_of(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: Deterministic actions tanh(mean), of shape ``(batch_size, action_dim)``
        """
        return th.tanh(self.mu(self.latent_pi(features)))

    def gaussian_of(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: Mean of the Gaussian and logarithm of its standard deviation, before tanh, of shape
            ``(batch_size, action_dim)`` each
        """
        latent = self.latent_pi(features)
        return self.mu(latent), self.log_std(latent).clamp(LOG_STD_MIN, LOG_STD_MAX)

    def action_and_log_prob(self, features: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        The action that a given noise makes, and how probable it is. Gradients flow through both.

        :param features: Features, of shape ``(batch_size, features_dim)``
        :param noise: Standard normal noise, of shape ``(batch_size, action_dim)``
        :return: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``, and the logarithm of their probability
            density, of shape ``(batch_size, 1)``
        """
        mean, log_std = self.gaussian_of(features)
        actions = th.tanh(mean + log_std.exp() * noise)
        # The density of the Gaussian, divided by the derivative of tanh (change of variables), for each entry of the action
        log_densities = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_densities = log_densities - th.log(1 - actions.square() + SQUASH_EPS)
        return actions, log_densities.sum(dim=1, keepdim=True)

    def action_and_log_prob_in(self, obs: PyTorchObs, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        As :meth:`action_and_log_prob`.

        :param obs: Observations, of shape ``(batch_size, ...)``
        :param noise: Standard normal noise, of shape ``(batch_size, action_dim)``
        :return: Actions and the logarithm of their probability density
        """
        return self.action_and_log_prob(self.features(obs), noise)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if deterministic:
            actions: th.Tensor = self(observation)
            return actions
        mean, log_std = self.gaussian_of(self.features(observation))
        return th.tanh(mean + log_std.exp() * th.randn_like(mean))


class FixedStdActor(BaseActor):
    """
    The actor of IQL: a Gaussian around tanh(mean(s)), with the same standard deviation in all states. The density is not
    squashed, so that any action in [-1, 1] has a finite one; actions drawn from it are clipped.

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base.StateNetwork`.
    """

    def _add_layers(self, layers: list[nn.Module], n_units: int, final_init: FinalInit) -> None:
        action_dim = get_action_dim(self.action_space)
        self.mu = nn.Sequential(*layers, output_linear(n_units, action_dim, final_init), nn.Tanh())
        self.log_std = nn.Parameter(th.zeros(action_dim))

    def actions_of(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: The means, which are the deterministic actions, of shape ``(batch_size, action_dim)``
        """
        actions: th.Tensor = self.mu(features)
        return actions

    @property
    def bounded_log_std(self) -> th.Tensor:
        """Logarithm of the standard deviation, in [-5, 2], of shape ``(action_dim,)``. It starts at 0."""
        return self.log_std.clamp(FIXED_LOG_STD_MIN, FIXED_LOG_STD_MAX)

    def log_prob_in(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Actions, of shape ``(batch_size, action_dim)``
        :return: Logarithms of their probability densities, of shape ``(batch_size, 1)``
        """
        return self._log_prob(self(obs), actions)

    def sampled_in(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param noise: Standard normal noise, of shape ``(batch_size, action_dim)``
        :return: The actions that it makes, clipped to [-1, 1], of the same shape
        """
        return self._sampled(self(obs), noise)

    def log_prob_and_sampled_in(self, obs: PyTorchObs, actions: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Both from one pass.

        :param obs: As of :meth:`log_prob_in`
        :param actions: As of :meth:`log_prob_in`
        :param noise: As of :meth:`sampled_in`
        :return: What :meth:`log_prob_in` and :meth:`sampled_in` return
        """
        means = self(obs)
        return self._log_prob(means, actions), self._sampled(means, noise)

    def _log_prob(self, means: th.Tensor, actions: th.Tensor) -> th.Tensor:
        log_std = self.bounded_log_std
        distances = (actions - means) * th.exp(-log_std)
        log_densities = -0.5 * distances.square() - log_std - 0.5 * math.log(2 * math.pi)
        return log_densities.sum(dim=1, keepdim=True)

    def _sampled(self, means: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return (means + self.bounded_log_std.exp() * noise).clamp(-1, 1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        means: th.Tensor = self(observation)
        return means if deterministic else self._sampled(means, th.randn_like(means))


class SigmoidStdActor(FixedStdActor):
    """
    The actor of AWAC: as IQL's, with a sigmoid that keeps the logarithm of the standard deviation between -6 and 0.

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base.StateNetwork`.
    """

    @property
    def bounded_log_std(self) -> th.Tensor:
        """Logarithm of the standard deviation, in [-6, 0], of shape ``(action_dim,)``. It starts at -3."""
        return SIGMOID_LOG_STD_MIN * th.sigmoid(-self.log_std)
