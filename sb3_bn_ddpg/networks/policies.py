"""The actor, the critic and the policies that hold both with their target networks."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_bn_ddpg.common.checks import check_choice, check_number
from sb3_bn_ddpg.networks.layers import (
    PaperCNN,
    PaperCombinedExtractor,
    PaperExtractor,
    has_images,
    hidden_layers,
    uniform_linear,
)
from sb3_bn_ddpg.networks.normalization import Normalization, NormalizationConfig, norm_parameters
from sb3_bn_ddpg.networks.statistics import StatisticsMixin

CriticNormLayers = Literal["before_action", "all"]
"""Which hidden layers of the critic are normalised: those "prior to the action input" (section 3), or all."""

SharedExtractorLoss = Literal["actor", "critic"]
"""Whose loss trains a features extractor that actor and critic share."""

NetArch = Sequence[int] | dict[str, Sequence[int]]
"""Units of the hidden layers, of both networks or of each."""


SelfNetwork = TypeVar("SelfNetwork", bound="Network")


class Network(StatisticsMixin, BaseModel):
    """What actor and critic have in common: a features extractor, which the other one may own."""

    features_extractor: BaseFeaturesExtractor
    owns_features_extractor: bool

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


class Actor(Network, BasePolicy):
    """
    The paper's actor mu(s): normalised state, normalised hidden layers, tanh (sections 3 and 7).

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Number of units of each hidden layer
    :param features_extractor: Network to extract features (a ``nn.Flatten()`` layer for vector observations)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to divide images by 255
    :param normalization: ``"batch"``, ``"batch_renorm"``, ``"layer"``, ``"batch_layer"`` or None
    :param norm_momentum: Weight of a new batch in the running statistics, in (0, 1]
    :param norm_eps: Value added to the variance, > 0
    :param renorm_warmup_steps: Updates, less one, before batch renormalisation differs from batch normalisation, >= 0
    :param final_init: The output layer's weights and biases are drawn from U[-final_init, final_init], > 0
    :param owns_features_extractor: Whether the features extractor is the actor's, to train and to update the statistics of
    """

    action_space: spaces.Box

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        normalization: Normalization | None = "batch",
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        renorm_warmup_steps: int = 100_000,
        final_init: float = 3e-3,
        owns_features_extractor: bool = True,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.owns_features_extractor = owns_features_extractor
        self.constructor_parameters = dict(
            net_arch=net_arch,
            features_extractor=features_extractor,
            features_dim=features_dim,
            activation_fn=activation_fn,
            normalization=normalization,
            norm_momentum=norm_momentum,
            norm_eps=norm_eps,
            renorm_warmup_steps=renorm_warmup_steps,
            final_init=final_init,
            owns_features_extractor=owns_features_extractor,
        )
        config = NormalizationConfig(normalization, norm_momentum, norm_eps, renorm_warmup_steps)
        last_dim = net_arch[-1] if net_arch else features_dim
        input_layers = [] if isinstance(features_extractor, PaperExtractor) else config.input_layers(features_dim)
        self.mu = nn.Sequential(
            *input_layers,
            *hidden_layers(features_dim, net_arch, activation_fn, config),
            # Not normalised: that would undo the small initialisation, by which the first actions are near zero (section 7)
            uniform_linear(last_dim, get_action_dim(action_space), final_init),
            nn.Tanh(),
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.constructor_parameters

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :return: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        """
        return self.actions_of(self.features(obs))

    def actions_of(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :return: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        """
        actions: th.Tensor = self.mu(features)
        return actions

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        # The policy is deterministic: exploration is the business of the action noise
        actions: th.Tensor = self(observation)
        return actions


class Critic(Network):
    """
    The paper's critic Q(s, a): normalised layers for the state alone, then the action joins in at a hidden layer, and from
    there on nothing is normalised ("all layers of the Q network prior to the action input", section 3).

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Number of units of each hidden layer
    :param features_extractor: Network to extract features (a ``nn.Flatten()`` layer for vector observations)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to divide images by 255
    :param owns_features_extractor: Whether the features extractor is the critic's, to train and to update the statistics of
    :param normalization: ``"batch"``, ``"batch_renorm"``, ``"layer"``, ``"batch_layer"`` or None
    :param norm_momentum: Weight of a new batch in the running statistics, in (0, 1]
    :param norm_eps: Value added to the variance, > 0
    :param renorm_warmup_steps: Updates, less one, before batch renormalisation differs from batch normalisation, >= 0
    :param final_init: The output layer's weights and biases are drawn from U[-final_init, final_init], > 0
    :param action_layer: The hidden layer, counted from 1, at which the action enters: 2 in the paper, 1 joins state and
        action at the input as SB3 does. In a critic of fewer hidden layers it is the last one.
    :param norm_layers: Which hidden layers are normalised: ``"before_action"`` (the paper's) or ``"all"``
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
        owns_features_extractor: bool = True,
        normalization: Normalization | None = "batch",
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        renorm_warmup_steps: int = 100_000,
        final_init: float = 3e-3,
        action_layer: int = 2,
        norm_layers: CriticNormLayers = "before_action",
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.constructor_parameters = dict(
            net_arch=net_arch,
            features_extractor=features_extractor,
            features_dim=features_dim,
            activation_fn=activation_fn,
            owns_features_extractor=owns_features_extractor,
            normalization=normalization,
            norm_momentum=norm_momentum,
            norm_eps=norm_eps,
            renorm_warmup_steps=renorm_warmup_steps,
            final_init=final_init,
            action_layer=action_layer,
            norm_layers=norm_layers,
        )
        self.owns_features_extractor = owns_features_extractor
        config = NormalizationConfig(normalization, norm_momentum, norm_eps, renorm_warmup_steps)
        # In a critic without hidden layers the action enters at the output layer
        n_state_layers = max(min(action_layer, len(net_arch)) - 1, 0)
        state_arch, joint_arch = net_arch[:n_state_layers], net_arch[n_state_layers:]
        joint_dim = (state_arch[-1] if state_arch else features_dim) + get_action_dim(action_space)
        input_layers = [] if isinstance(features_extractor, PaperExtractor) else config.input_layers(features_dim)
        self.state_net = nn.Sequential(
            *input_layers,
            *hidden_layers(features_dim, state_arch, activation_fn, config),
        )
        self.q_net = nn.Sequential(
            *hidden_layers(
                joint_dim, joint_arch, activation_fn, config if norm_layers == "all" else NormalizationConfig(kind=None)
            ),
            uniform_linear(joint_arch[-1] if joint_arch else joint_dim, 1, final_init),
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.constructor_parameters

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor]:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: A tuple, as of every SB3 critic, of the one Q-network's values, of shape ``(batch_size, 1)``
        """
        return (self.values_of(self.features(obs), actions),)

    def values_of(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param features: Features, of shape ``(batch_size, features_dim)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: The Q-values, of shape ``(batch_size, 1)``
        """
        q_values: th.Tensor = self.q_net(th.cat([self.state_net(features), actions], dim=1))
        return q_values

    def q1_forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        :param obs: Observations, of shape ``(batch_size, ...)``
        :param actions: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        :return: The Q-values, of shape ``(batch_size, 1)``
        """
        q_values: th.Tensor = self(obs, actions)[0]
        return q_values


class BNDDPGPolicy(BasePolicy):
    """
    Actor, critic and their target networks, with the paper's architecture for low-dimensional states as default:
    two hidden layers of 400 and 300 ReLU units, batch norm on the state, on every hidden layer of the actor and on every
    layer of the critic before the action, which enters at the second hidden layer.

    The critic's optimiser has two groups of parameters: the weights, which weight decay pulls at, and the biases and
    normalisation parameters, which it spares. :class:`~sb3_bn_ddpg.BNDDPG` sets learning rates and weight decay.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: The number of units of the hidden layers, of both networks or as ``dict(pi=[...], qf=[...])``; lists or
        tuples. An empty one makes a network linear.
    :param activation_fn: Activation function
    :param features_extractor_class: Features extractor to use
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer.
        A ``weight_decay`` among them concerns the actor only; ``BNDDPG`` has ``critic_weight_decay``.
    :param share_features_extractor: Whether actor and critic share one features extractor
    :param shared_extractor_loss: Whose loss trains a shared features extractor: the ``"actor"``'s, as in SB3, or the
        ``"critic"``'s, by which agents learn from pixels. It also says whose pass updates the running statistics in it.
    :param normalization: ``"batch"`` (the paper's), ``"batch_renorm"`` (sb3-contrib's layer, as in CrossQ),
        ``"layer"`` (on hidden layers only), ``"batch_layer"`` (batch norm on the state, layer norm on hidden layers) or None
    :param norm_momentum: Weight of a new batch in the running statistics, in (0, 1]
    :param norm_eps: Value added to the variance for numerical stability, > 0
    :param renorm_warmup_steps: Updates, less one, before batch renormalisation differs from batch normalisation, >= 0
    :param final_init: The output layers' weights and biases are drawn from U[-final_init, final_init], > 0
    :param action_layer: The hidden layer of the critic, counted from 1, at which the action enters: 2 in the paper,
        1 joins state and action at the input as SB3 does. In a critic of fewer hidden layers it is the last one.
    :param critic_norm_layers: Which hidden layers of the critic are normalised: ``"before_action"``, those "prior to the
        action input" as in the paper, or ``"all"``. The action itself never is.
    :param n_critics: Must be 1, which SB3's DDPG writes into the ``policy_kwargs`` that it is given
    :raises ValueError: if an argument is out of its range
    """

    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalization: Normalization | None = "batch",
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        renorm_warmup_steps: int = 100_000,
        final_init: float = 3e-3,
        action_layer: int = 2,
        critic_norm_layers: CriticNormLayers = "before_action",
        shared_extractor_loss: SharedExtractorLoss = "actor",
        n_critics: int = 1,
    ) -> None:
        if n_critics != 1:
            raise ValueError(f"`n_critics={n_critics!r}` is not allowed: it must be 1, DDPG has one critic")
        if features_extractor_class is FlattenExtractor and isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"`features_extractor_class={features_extractor_class.__name__}` is not allowed with {observation_space}: "
                "MultiInputPolicy has one for a `Dict`"
            )
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=normalize_images,
        )
        if net_arch is None:
            # Section 7: 400 and 300 units for states, 200 and 200 after the convolutions
            is_convolutional = issubclass(features_extractor_class, (PaperExtractor, NatureCNN, CombinedExtractor))
            net_arch = [200, 200] if is_convolutional and has_images(observation_space, normalize_images) else [400, 300]
        actor_arch, critic_arch = _checked_net_arch(net_arch)
        check_number("final_init", final_init, low=0, low_open=True)
        check_number("action_layer", action_layer, low=1, integer=True)
        check_choice("critic_norm_layers", critic_norm_layers, get_args(CriticNormLayers))

        self.net_arch = net_arch
        check_choice("shared_extractor_loss", shared_extractor_loss, get_args(SharedExtractorLoss))
        if shared_extractor_loss == "critic" and not share_features_extractor:
            raise ValueError(
                "`shared_extractor_loss='critic'` is not allowed without `share_features_extractor=True`: there is no shared "
                "features extractor"
            )
        self.share_features_extractor, self.shared_extractor_loss = share_features_extractor, shared_extractor_loss
        self.net_kwargs = dict(
            activation_fn=activation_fn,
            normalization=normalization,
            norm_momentum=norm_momentum,
            norm_eps=norm_eps,
            renorm_warmup_steps=renorm_warmup_steps,
            final_init=final_init,
        )
        spaces_kwargs = dict(observation_space=observation_space, action_space=action_space, normalize_images=normalize_images)
        actor_owns, critic_owns = (not share_features_extractor or shared_extractor_loss == x for x in ("actor", "critic"))
        self.actor_kwargs = self.net_kwargs | spaces_kwargs | dict(net_arch=actor_arch, owns_features_extractor=actor_owns)
        self.critic_kwargs = (
            self.net_kwargs
            | spaces_kwargs
            | dict(
                net_arch=critic_arch,
                owns_features_extractor=critic_owns,
                action_layer=action_layer,
                norm_layers=critic_norm_layers,
            )
        )
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks and their optimizers.

        :param lr_schedule: Learning rate schedule, whose first value both optimizers start with
        """
        self.actor = self.make_actor()
        self.actor_target = self.make_actor()
        self.critic = self.make_critic(self.actor.features_extractor if self.share_features_extractor else None)
        self.critic_target = self.make_critic(self.actor_target.features_extractor if self.share_features_extractor else None)
        for maker, network, network_type in (("make_actor", self.actor, Actor), ("make_critic", self.critic, Critic)):
            if not isinstance(network, network_type):
                raise ValueError(
                    f"`{maker}()={type(network).__module__}.{type(network).__name__}(...)` is not allowed: it "
                    f"must be a {network_type.__module__}.{network_type.__name__} or of a subclass, whose passes are told "
                    "their statistics"
                )
        # "Initialize target network Q' and mu' with weights" of the online networks (Algorithm 1)
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.actor_target.set_training_mode(False)
        self.critic_target.set_training_mode(False)

        learning_rate: dict[str, Any] = dict(lr=lr_schedule(1))
        self.actor.optimizer = self.optimizer_class(self.actor.own_parameters, **learning_rate, **self.optimizer_kwargs)

        own = self.critic.own_parameters
        spared = norm_parameters(self.critic) | {param for param in own if param.ndim < 2}
        groups: list[dict[str, Any]] = [
            {"params": [param for param in own if param not in spared]},
            {"params": [param for param in own if param in spared], "weight_decay": 0.0},
        ]
        self.critic.optimizer = self.optimizer_class(groups, **learning_rate, **self.optimizer_kwargs)
        for network in (self.actor, self.actor_target, self.critic, self.critic_target):
            network.find_layers()  # those of a user's features extractor follow the passes from here on
        self.set_training_mode(False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return (
            super()._get_constructor_parameters()
            | self.net_kwargs
            | dict(
                lr_schedule=self._dummy_schedule,  # not needed for a policy loaded by itself
                net_arch=self.net_arch,
                optimizer_class=self.optimizer_class,
                optimizer_kwargs=self.optimizer_kwargs,
                features_extractor_class=self.features_extractor_class,
                features_extractor_kwargs=self.features_extractor_kwargs,
                share_features_extractor=self.share_features_extractor,
                action_layer=self.critic_kwargs["action_layer"],
                critic_norm_layers=self.critic_kwargs["norm_layers"],
                shared_extractor_loss=self.shared_extractor_loss,
                n_critics=1,
            )
        )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """
        :param features_extractor: The features extractor (if None: a new one)
        :return: A new actor
        """
        return Actor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Critic:
        """
        :param features_extractor: The features extractor (if None: a new one)
        :return: A new critic
        """
        return Critic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """
        :return: A new features extractor; those of this package are told the policy's activation function and normalisation
        """
        kwargs = inherited_kwargs(self.features_extractor_class, self.net_kwargs, self.normalize_images)
        return self.features_extractor_class(self.observation_space, **(kwargs | self.features_extractor_kwargs))

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: Observations, of shape ``(batch_size, ...)``
        :param deterministic: Without effect: the policy is deterministic
        :return: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        """
        return self._predict(observation, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor._predict(observation, deterministic=deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """
        Put actor and critic in training or evaluation mode, which dropout asks for. The targets stay in evaluation mode. Batch
        norm is told its statistics by each pass, whatever the mode (:mod:`sb3_bn_ddpg.networks.norm_layers`).

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        # SB3 asks at every step of the environment, mostly for the mode that all modules are in already
        online = (module for network in (self.actor, self.critic) for module in network.modules())
        if self.training != mode or any(module.training != mode for module in online):
            self.actor.set_training_mode(mode)
            self.critic.set_training_mode(mode)
            self.training = mode

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        As PyTorch's. Where there are no target networks, the names of theirs are second ones of the online networks; what
        another model has under them, its older weights, is not taken.

        :param state_dict: Parameters and buffers by name
        :param strict: Whether the names must be just those of this policy
        :param assign: Whether to take over the tensors themselves
        :return: Missing and unexpected names
        """
        if self.actor_target is self.actor:
            online = {name.replace(".", "_target.", 1): value for name, value in state_dict.items()}
            state_dict = {name: online.get(name, value) for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, strict, assign)


MlpPolicy = BNDDPGPolicy


def inherited_kwargs(
    extractor_class: type[BaseFeaturesExtractor], net_kwargs: dict[str, Any], normalize_images: bool
) -> dict[str, Any]:
    """
    What a features extractor of this package has from its policy, unless ``features_extractor_kwargs`` say otherwise.

    :param extractor_class: The extractor's class
    :param net_kwargs: Activation function and normalisation of the networks
    :param normalize_images: Whether the policy scales images
    :return: Keyword arguments of the extractor; none for other classes
    """
    kwargs: dict[str, Any] = {}
    if issubclass(extractor_class, PaperExtractor):
        names = ("activation_fn", "norm_momentum", "norm_eps", "renorm_warmup_steps")
        kwargs = {name: net_kwargs[name] for name in names} | dict(normalized_image=not normalize_images)
    if issubclass(extractor_class, PaperCombinedExtractor):
        kwargs["normalization"] = net_kwargs["normalization"]
    parameters = inspect.signature(extractor_class).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}  # a subclass may have other arguments


class CnnPolicy(BNDDPGPolicy):
    """
    The paper's networks for pixels (section 7): three convolutional layers of 32 filters, two hidden layers of 200 units,
    output layers from U[-3e-4, 3e-4]. The action enters at the second layer of 200. Nothing is batch-normalised unless asked
    for: the paper says that it normalised "in the low-dimensional case" (section 3).

    The parameters are those of :class:`BNDDPGPolicy`, with other defaults for these three:

    :param features_extractor_class: :class:`~sb3_bn_ddpg.networks.layers.PaperCNN`, of which
        ``features_extractor_kwargs=dict(conv_normalization="batch")`` normalises the convolutions
    :param normalization: Of the fully connected layers, as in :class:`BNDDPGPolicy`. The image itself is scaled to [0, 1].
    :param final_init: The output layers' weights and biases are drawn from U[-final_init, final_init], > 0
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = PaperCNN,
        normalization: Normalization | None = None,
        final_init: float = 3e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            normalization=normalization,
            final_init=final_init,
            **kwargs,
        )


class MultiInputPolicy(BNDDPGPolicy):
    """
    :class:`BNDDPGPolicy` for dictionaries of observations: the paper's batch norm for their vectors, its convolutions for
    their images, all of them before the first hidden layer.

    The parameters are those of :class:`BNDDPGPolicy`, with other defaults for these three:

    :param net_arch: 400 and 300 units, or 200 and 200 if there is an image
    :param features_extractor_class: :class:`~sb3_bn_ddpg.networks.layers.PaperCombinedExtractor`, of which
        ``features_extractor_kwargs=dict(conv_normalization="batch")`` normalises the convolutions
    :param final_init: The output layers' weights and biases are drawn from U[-final_init, final_init], > 0: if None, 3e-3,
        or 3e-4 if there is an image
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = PaperCombinedExtractor,
        final_init: float | None = None,
        normalize_images: bool = True,
        **kwargs: Any,
    ) -> None:
        if final_init is None:
            final_init = 3e-4 if has_images(observation_space, normalize_images) else 3e-3
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            final_init=final_init,
            normalize_images=normalize_images,
            **kwargs,
        )


def _checked_net_arch(net_arch: NetArch) -> tuple[list[int], list[int]]:
    """
    :param net_arch: The ``net_arch`` argument
    :return: The hidden layers of the actor and of the critic
    :raises ValueError: if it is not a list or tuple of positive integers or ``dict(pi=[...], qf=[...])`` of two
    """
    if isinstance(net_arch, dict) and set(net_arch) == {"pi", "qf"}:
        archs = net_arch["pi"], net_arch["qf"]
    else:
        archs = net_arch, net_arch  # type: ignore[assignment]  # a dictionary with other keys is refused below
    for arch in archs:
        if not isinstance(arch, (list, tuple)):
            raise ValueError(
                f"`net_arch={net_arch!r}` is not allowed: it must be a list of integers or dict(pi=[...], qf=[...]) of two"
            )
        for n_units in arch:
            check_number("net_arch", n_units, low=1, integer=True)
    return list(archs[0]), list(archs[1])
