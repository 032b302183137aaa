"""Critics: Q-networks Q(s, a), one or several of them, and the value function V(s)."""

from typing import Any, Literal, get_args

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_bn_ddpg.common.checks import check_choice, check_number
from sb3_bn_ddpg.networks.base import Network, StateNetwork
from sb3_bn_ddpg.networks.categorical import expectation, make_atoms
from sb3_bn_ddpg.networks.layers import FinalInit, hidden_layers, input_layers, output_linear
from sb3_bn_ddpg.networks.normalization import PAPER_NORMALIZATION, NormalizationConfig

CriticNormLayers = Literal["before_action", "all"]
"""Which hidden layers of the critic are normalised: those "prior to the action input" (section 3), or all."""

CriticInputNorm = Literal["state", "state_action"]
"""What the normalisation of the critic's input sees: the state (the paper's), or state and action (CrossQ's)."""


class QNetwork(nn.Module):
    """
    One Q-network Q(s, a), of which the action enters at a hidden layer.

    :param state_net: The layers before the action; may be empty
    :param q_net: The layers from the action on
    """

    def __init__(self, state_net: nn.Sequential, q_net: nn.Sequential) -> None:
        super().__init__()
        self.state_net, self.q_net = state_net, q_net

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: The Q-values, of shape ``(batch_size, 1)``; of a critic with atoms the logits of their probabilities,
            ``(batch_size, n_atoms)``
        """
        outputs: th.Tensor = self.q_net(th.cat([self.state_net(features), actions], dim=1))
        return outputs


class Critic(Network):
    """
    The paper's critic Q(s, a): normalised layers for the state alone, then the action joins in at a hidden layer, and from
    there on nothing is normalised ("all layers of the Q network prior to the action input", section 3). There may be several
    such Q-networks, ``qf0``, ``qf1`` and so on as in SB3's critics, behind one features extractor.

    With atoms, each Q-network predicts a distribution of the return, of which Q(s, a) is the mean
    (:mod:`sb3_bn_ddpg.networks.categorical`).

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
    :param owns_features_extractor: Whether the features extractor is the critic's, to train and to update the statistics of
    :param action_layer: The hidden layer, counted from 1, at which the action enters: 2 in the paper, 1 joins state and
        action at the input as SB3 does. In a critic of fewer hidden layers it is the last one.
    :param norm_layers: Which hidden layers are normalised: ``"before_action"`` (the paper's) or ``"all"``
    :param input_norm: What the normalisation of the input sees: ``"state"`` (the paper's) or, only with ``action_layer=1``,
        ``"state_action"``, the concatenation of features and action, whatever normalisation the features extractor has.
        The normalisation ``"layer"`` has no layer there in either case.
    :param n_critics: Number of Q-networks, >= 1
    :param n_atoms: Number of atoms of the return's distribution, >= 2 (if None: the Q-networks predict its mean alone)
    :param v_min: The smallest atom; without effect if there are none, like ``v_max``
    :param v_max: The largest atom, > ``v_min``
    :raises ValueError: if an argument is out of its range
    """

    atoms: th.Tensor | None
    """What the return may be, equally spaced, of shape ``(n_atoms,)``; None if the Q-networks predict its mean alone"""

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
        action_layer: int = 2,
        norm_layers: CriticNormLayers = "before_action",
        input_norm: CriticInputNorm = "state",
        n_critics: int = 1,
        n_atoms: int | None = None,
        v_min: float = -5.0,
        v_max: float = 5.0,
    ) -> None:
        # By their names in the policy, where they come from
        check_number("action_layer", action_layer, low=1, integer=True)
        check_choice("critic_norm_layers", norm_layers, get_args(CriticNormLayers))
        check_choice("critic_input_norm", input_norm, get_args(CriticInputNorm))
        if input_norm == "state_action" and action_layer != 1:
            raise ValueError(
                f"`critic_input_norm='state_action'` is not allowed with `action_layer={action_layer!r}`: `action_layer` must "
                "be 1, where state and action enter together"
            )
        check_number("n_critics", n_critics, low=1, integer=True)
        atoms = make_atoms(n_atoms, v_min, v_max)
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
            action_layer=action_layer,
            norm_layers=norm_layers,
            input_norm=input_norm,
            n_critics=n_critics,
            n_atoms=n_atoms,
            v_min=v_min,
            v_max=v_max,
        )
        self.n_critics = n_critics
        # No part of the saved parameters: the arguments say it
        self.register_buffer("atoms", atoms, persistent=False)
        n_outputs = 1 if n_atoms is None else n_atoms
        # In a critic without hidden layers the action enters at the output layer
        n_state_layers = max(min(action_layer, len(net_arch)) - 1, 0)
        state_arch, joint_arch = net_arch[:n_state_layers], net_arch[n_state_layers:]
        joint_dim = (state_arch[-1] if state_arch else features_dim) + get_action_dim(action_space)
        joint_normalization = normalization if norm_layers == "all" else NormalizationConfig(kind=None)
        sees_action = input_norm == "state_action"
        for index in range(n_critics):
            state_net = nn.Sequential(
                *([] if sees_action else input_layers(features_extractor, features_dim, normalization)),
                *hidden_layers(features_dim, state_arch, activation_fn, normalization),
            )
            q_net = nn.Sequential(
                *(normalization.input_layers(joint_dim) if sees_action else []),
                *hidden_layers(joint_dim, joint_arch, activation_fn, joint_normalization),
                output_linear(joint_arch[-1] if joint_arch else joint_dim, n_outputs, final_init),
            )
            self.add_module(f"qf{index}", QNetwork(state_net, q_net))

    @property
    def q_networks(self) -> list[QNetwork]:
        """The Q-networks."""
        return [getattr(self, f"qf{index}") for index in range(self.n_critics)]

    @property
    def state_net(self) -> nn.Sequential:
        """The first Q-network's layers before the action. Others are assigned to ``critic.qf0.state_net``."""
        return self.q_networks[0].state_net

    @property
    def q_net(self) -> nn.Sequential:
        """The first Q-network's layers from the action on. Others are assigned to ``critic.qf0.q_net``."""
        return self.q_networks[0].q_net

    def __setattr__(self, name: str, value: Any) -> None:
        # PyTorch would add a second module, which no pass uses
        if name in ("state_net", "q_net"):
            raise AttributeError(f"`critic.{name}` cannot be assigned: assign to `critic.qf0.{name}`")
        super().__setattr__(name, value)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: The values of each Q-network, of shape ``(batch_size, 1)`` each
        """
        return self.values_of(self.features(obs), actions)

    def values_of(self, features: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: The values of each Q-network, of shape ``(batch_size, 1)`` each
        """
        return tuple(self.values_from(q_network(features, actions)) for q_network in self.q_networks)

    def values_from(self, outputs: th.Tensor) -> th.Tensor:
        """
        :param outputs: What a Q-network returned: values, or with atoms the logits of their probabilities
        :return: The Q-values, of shape ``(batch_size, 1)``
        """
        return outputs if self.atoms is None else expectation(outputs.softmax(dim=1), self.atoms)

    def outputs(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: What each Q-network returns and its loss trains: values, or with atoms the logits of their probabilities
        """
        return self(obs, actions) if self.atoms is None else self.outputs_of(self.features(obs), actions)

    def outputs_of(self, features: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: As of :meth:`outputs`
        """
        if self.atoms is None:  # by the methods that a subclass may have changed
            return self.values_of(features, actions)
        return tuple(q_network(features, actions) for q_network in self.q_networks)

    def q1_forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: The values of the first Q-network alone, of shape ``(batch_size, 1)``
        """
        return self.first_value_of(self.features(obs), actions)

    def first_value_of(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: The first Q-network's values, of shape ``(batch_size, 1)``
        """
        return self.values_from(self.q_networks[0](features, actions))


class ValueNetwork(StateNetwork):
    """
    The value function V(s), with the layers of an actor and one output.

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base.StateNetwork`.
    """

    def _add_layers(self, layers: list[nn.Module], n_units: int, final_init: FinalInit) -> None:
        self.v_net = nn.Sequential(*layers, output_linear(n_units, 1, final_init))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :return: The values, of shape ``(batch_size, 1)``
        """
        return self.values_of(self.features(obs))

    def values_of(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: The values, of shape ``(batch_size, 1)``
        """
        values: th.Tensor = self.v_net(features)
        return values
