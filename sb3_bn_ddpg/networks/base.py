"""What actors, critics and value functions have in common."""

from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_bn_ddpg.networks.layers import FinalInit, hidden_layers, input_layers
from sb3_bn_ddpg.networks.normalization import PAPER_NORMALIZATION, NormalizationConfig
from sb3_bn_ddpg.networks.statistics import StatisticsMixin

SelfNetwork = TypeVar("SelfNetwork", bound="Network")


class BoundedPolicy(BasePolicy):
    """A policy of SB3's whose actions, scaled back to the space's bounds, are never beyond one by rounding."""

    action_space: spaces.Box

    def unscale_action(self, scaled_action: NDArray[Any]) -> NDArray[Any]:
        """
        :param scaled_action: Actions in [-1, 1]
        :return: Actions within the action space's bounds
        """
        action = super().unscale_action(scaled_action)
        within: NDArray[Any] = np.clip(action, self.action_space.low, self.action_space.high)
        return within


class Network(StatisticsMixin, BaseModel):
    """
    A network behind a features extractor, which another network may own.

    :param observation_space: Observation space
    :param action_space: Action space
    :param normalize_images: Whether to divide images by 255
    :param parameters: The other arguments of the subclass's constructor by name, which ``save`` writes into the file:
        ``features_extractor``, ``owns_features_extractor`` and those that say its layers
    """

    features_extractor: BaseFeaturesExtractor
    owns_features_extractor: bool

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Box, normalize_images: bool, **parameters: Any
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=parameters["features_extractor"],
            normalize_images=normalize_images,
        )
        self.owns_features_extractor = parameters["owns_features_extractor"]
        self.constructor_parameters = parameters

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.constructor_parameters

    @classmethod
    def load(cls: type[SelfNetwork], path: str, device: th.device | str = "auto") -> SelfNetwork:
        """
        Load a network that its ``save`` has written.

        :param path: The file
        :param device: Device on which the network should be
        :return: The network. It normalises with the running statistics and updates nothing.
        """
        network = super().load(path, device)
        network.set_training_mode(False)
        network.find_layers()
        return network

    @property
    def borrowed_norm_layers(self) -> tuple[nn.Module, ...]:
        """Those of a features extractor of the other network, whose pass over the same minibatch updates them, once a step."""
        if self.owns_features_extractor:
            return ()
        shared = set(self.features_extractor.modules())
        return tuple(layer for layer in self.norm_layers if layer in shared)

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """What this network's loss trains: not the other network's features extractor."""
        borrowed = set() if self.owns_features_extractor else set(self.features_extractor.parameters())
        return [param for param in self.parameters() if param not in borrowed]

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :return: Features, of shape ``(batch_size, features_dim)``, without a gradient if the extractor is the other network's
        """
        with th.set_grad_enabled(th.is_grad_enabled() and self.owns_features_extractor):
            features: th.Tensor = self.extract_features(obs, self.features_extractor)
        return features


class StateNetwork(Network):
    """
    A function of the state alone: normalised state, normalised hidden layers, and the output layers of the subclass.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Number of units of each hidden layer
    :param features_extractor: Network to extract features (a ``nn.Flatten()`` layer for vector observations)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to divide images by 255
    :param normalization: Which normalisation layers it gets
    :param final_init: The output layers' weights and biases are drawn from U[-final_init, final_init], > 0, or with
        ``"fan_in"`` as those of hidden layers, from U[-1/sqrt(f), 1/sqrt(f)] with f the number of inputs
    :param owns_features_extractor: Whether the features extractor is this network's, to train and to update the statistics of
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        normalization: NormalizationConfig = PAPER_NORMALIZATION,
        final_init: FinalInit = 3e-3,
        owns_features_extractor: bool = True,
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
            owns_features_extractor=owns_features_extractor,
        )
        n_inputs = features_dim + self.n_further_inputs
        layers = [
            *input_layers(features_extractor, n_inputs, normalization),
            *hidden_layers(n_inputs, net_arch, activation_fn, normalization),
        ]
        self._add_layers(layers, net_arch[-1] if net_arch else n_inputs, final_init)

    @property
    def n_further_inputs(self) -> int:
        """Number of inputs behind the features, of a subclass that has some."""
        return 0

    def _add_layers(self, layers: list[nn.Module], n_units: int, final_init: FinalInit) -> None:
        """
        Make the modules.

        :param layers: The layers from the features to the last hidden one
        :param n_units: Number of units that the last of them has
        :param final_init: Initialisation of the output layers
        """
        raise NotImplementedError
