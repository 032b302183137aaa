"""The base of all policies: an actor, a critic and their target networks, with their optimizers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_bn_ddpg.common.checks import check_choice, check_number
from sb3_bn_ddpg.networks.actors import Actor, BaseActor
from sb3_bn_ddpg.networks.base import BoundedPolicy
from sb3_bn_ddpg.networks.critics import Critic, CriticInputNorm, CriticNormLayers
from sb3_bn_ddpg.networks.layers import FinalInit, PaperExtractor, has_images, inherited_kwargs
from sb3_bn_ddpg.networks.norm_layers import is_in_mode
from sb3_bn_ddpg.networks.normalization import Normalization, NormalizationConfig, NormOrder, norm_parameters

SharedExtractorLoss = Literal["actor", "critic"]
"""Whose loss trains a features extractor that actor and critic share."""

NetArch = Sequence[int] | dict[str, Sequence[int]]
"""Units of the hidden layers, of both networks or of each."""


class BNActorCriticPolicy(BoundedPolicy):
    """
    Actor, critic and their target networks, with the paper's architecture for low-dimensional states as default:
    two hidden layers of 400 and 300 ReLU units, batch norm on the state, on every hidden layer of the actor and on every
    layer of the critic before the action, which enters at the second hidden layer.

    The critic's optimiser has two groups of parameters: the weights, which weight decay pulls at, and the biases and
    normalisation parameters, which it spares. The algorithm sets learning rates and weight decay.

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
        A ``weight_decay`` among them concerns the actor only; the algorithm has ``critic_weight_decay``.
    :param share_features_extractor: Whether actor and critic share one features extractor
    :param shared_extractor_loss: Whose loss trains a shared features extractor: the ``"actor"``'s, as in SB3, or the
        ``"critic"``'s, by which agents learn from pixels. It also says whose pass updates the running statistics in it.
    :param normalization: ``"batch"`` (the paper's), ``"batch_renorm"`` (sb3-contrib's layer, as in CrossQ),
        ``"layer"`` (on hidden layers only), ``"batch_layer"`` (batch norm on the state, layer norm on hidden layers) or None
    :param norm_momentum: Weight of a new batch in the running statistics, in (0, 1]
    :param norm_eps: Value added to the variance for numerical stability, > 0
    :param renorm_warmup_steps: Updates, less one, before batch renormalisation differs from batch normalisation, >= 0
    :param norm_order: Order of a hidden layer: ``"before_activation"`` (the paper's: linear, normalisation, activation) or
        ``"after_activation"`` (CrossQ's: linear with a bias, activation, normalisation). Convolutions have the first.
    :param final_init: The output layers' weights and biases are drawn from U[-final_init, final_init], > 0, or with
        ``"fan_in"`` as those of hidden layers, from U[-1/sqrt(f), 1/sqrt(f)] with f the number of inputs, which is PyTorch's
        own initialisation
    :param action_layer: The hidden layer of the critic, counted from 1, at which the action enters: 2 in the paper,
        1 joins state and action at the input as SB3 does. In a critic of fewer hidden layers it is the last one.
    :param critic_norm_layers: Which hidden layers of the critic are normalised: ``"before_action"``, those "prior to the
        action input" as in the paper, or ``"all"``. The action itself is not.
    :param critic_input_norm: What the normalisation of the critic's input sees: the ``"state"`` as in the paper, or, only with
        ``action_layer=1``, state and action (``"state_action"``), the concatenation of features and action as in CrossQ. The
        normalisation ``"layer"`` has no layer there in either case.
    :param n_critics: Number of Q-networks, >= 1, which share the critic's features extractor and optimizer
    :param n_atoms: Number of atoms of the distribution by which the critics predict the return, trained by cross-entropy as in
        C51 and XQC, >= 2 (if None: they predict its mean, trained by squared errors)
    :param v_min: The smallest return that such critics know; without effect if there are no atoms, like ``v_max``. Smaller
        returns count as this one: the support has to fit the rewards, or the rewards the support (``reward_scaling``).
    :param v_max: The largest return that they know, > ``v_min``
    :raises ValueError: if an argument is out of its range
    """

    actor_class: ClassVar[type[BaseActor]] = Actor
    """Of the actor and its target"""
    default_units: ClassVar[tuple[int, ...]] = (400, 300)
    """Of the hidden layers, if no convolutions stand before them (section 7)"""
    actor: BaseActor
    actor_target: BaseActor
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
        norm_order: NormOrder = "before_activation",
        final_init: FinalInit = 3e-3,
        action_layer: int = 2,
        critic_norm_layers: CriticNormLayers = "before_action",
        critic_input_norm: CriticInputNorm = "state",
        shared_extractor_loss: SharedExtractorLoss = "actor",
        n_critics: int = 1,
        n_atoms: int | None = None,
        v_min: float = -5.0,
        v_max: float = 5.0,
    ) -> None:
        self._check_n_critics(n_critics)
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
            # Section 7: 200 and 200 units after the convolutions
            is_convolutional = issubclass(features_extractor_class, (PaperExtractor, NatureCNN, CombinedExtractor))
            has_both = is_convolutional and has_images(observation_space, normalize_images)
            net_arch = [200, 200] if has_both else list(self.default_units)
        actor_arch, critic_arch = _checked_net_arch(net_arch)
        self.net_arch = net_arch
        check_choice("shared_extractor_loss", shared_extractor_loss, get_args(SharedExtractorLoss))
        if shared_extractor_loss == "critic" and not share_features_extractor:
            raise ValueError(
                "`shared_extractor_loss='critic'` is not allowed without `share_features_extractor=True`: there is no shared "
                "features extractor"
            )
        self.share_features_extractor, self.shared_extractor_loss = share_features_extractor, shared_extractor_loss
        self.net_kwargs: dict[str, Any] = dict(
            activation_fn=activation_fn,
            normalization=NormalizationConfig(normalization, norm_momentum, norm_eps, renorm_warmup_steps, norm_order),
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
                input_norm=critic_input_norm,
                n_critics=n_critics,
                n_atoms=n_atoms,
                v_min=v_min,
                v_max=v_max,
            )
        )
        self._build(lr_schedule)

    def _check_n_critics(self, n_critics: int) -> None:
        """
        :param n_critics: Number of Q-networks
        :raises ValueError: if the algorithm cannot have them
        """
        check_number("n_critics", n_critics, low=1, integer=True)

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks and their optimizers.

        :param lr_schedule: Learning rate schedule, whose first value both optimizers start with
        """
        self.actor = self.make_actor()
        self.actor_target = self.make_actor()
        self.critic = self.make_critic(self.actor.features_extractor if self.share_features_extractor else None)
        self.critic_target = self.make_critic(self.actor_target.features_extractor if self.share_features_extractor else None)
        for maker, network, network_type in (
            ("make_actor", self.actor, self.actor_class),
            ("make_critic", self.critic, Critic),
        ):
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
        config: NormalizationConfig = self.net_kwargs["normalization"]
        return (
            super()._get_constructor_parameters()
            | self.net_kwargs
            | dict(
                normalization=config.kind,
                norm_momentum=config.momentum,
                norm_eps=config.eps,
                renorm_warmup_steps=config.renorm_warmup_steps,
                norm_order=config.order,
                lr_schedule=self._dummy_schedule,  # not needed for a policy loaded by itself
                net_arch=self.net_arch,
                optimizer_class=self.optimizer_class,
                optimizer_kwargs=self.optimizer_kwargs,
                features_extractor_class=self.features_extractor_class,
                features_extractor_kwargs=self.features_extractor_kwargs,
                share_features_extractor=self.share_features_extractor,
                action_layer=self.critic_kwargs["action_layer"],
                critic_norm_layers=self.critic_kwargs["norm_layers"],
                critic_input_norm=self.critic_kwargs["input_norm"],
                shared_extractor_loss=self.shared_extractor_loss,
                **{name: self.critic_kwargs[name] for name in ("n_critics", "n_atoms", "v_min", "v_max")},
            )
        )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> BaseActor:
        """
        :param features_extractor: The features extractor (if None: a new one)
        :return: A new actor
        """
        return self.actor_class(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

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
        kwargs = inherited_kwargs(
            self.features_extractor_class,
            self.net_kwargs["activation_fn"],
            self.net_kwargs["normalization"],
            self.normalize_images,
        )
        return self.features_extractor_class(self.observation_space, **(kwargs | self.features_extractor_kwargs))

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: Observations, of shape ``(batch_size, ...)``
        :param deterministic: Whether a stochastic actor gives its deterministic actions; a deterministic one always does
        :return: Actions scaled to [-1, 1], of shape ``(batch_size, action_dim)``
        """
        return self._predict(observation, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.acting_network()._predict(observation, deterministic=deterministic)

    def acting_network(self) -> BoundedPolicy:
        """
        :return: What the policy acts by, without what it only learns with: the actor. An export writes this.
        """
        return self.actor

    def set_training_mode(self, mode: bool) -> None:
        """
        Put actor and critic in training or evaluation mode, which dropout asks for. The targets stay in evaluation mode. Batch
        norm is told its statistics by each pass, whatever the mode (:mod:`sb3_bn_ddpg.networks.norm_layers`).

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        # SB3 asks at every step of the environment, mostly for the mode that all modules are in already
        if self.training != mode or not (is_in_mode(self.actor, mode) and is_in_mode(self.critic, mode)):
            self.actor.set_training_mode(mode)
            self.critic.set_training_mode(mode)
            self.training = mode

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        As PyTorch's. A network without a target network of its own appears under both names. The values under its own name
        are loaded; the older weights that another model may have under the target's name are ignored.

        :param state_dict: Parameters and buffers by name
        :param strict: Whether the names must be just those of this policy
        :param assign: Whether to take over the tensors themselves
        :return: Missing and unexpected names
        """
        without_target = [name for name in ("actor", "critic") if getattr(self, f"{name}_target") is getattr(self, name)]
        online = {
            name.replace(".", "_target.", 1): value
            for name, value in state_dict.items()
            if name.partition(".")[0] in without_target
        }
        state_dict = {name: online.get(name, value) for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, strict, assign)


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
