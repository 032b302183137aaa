"""The policies of the offline algorithms: their authors' networks, with this family's normalisations by a word."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_bn_ddpg.networks.actors import Actor, BaseActor, FixedStdActor, SigmoidStdActor
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy, NetArch
from sb3_bn_ddpg.networks.critics import Critic, CriticNormLayers, ValueNetwork
from sb3_bn_ddpg.networks.layers import FinalInit, StandardizingExtractor
from sb3_bn_ddpg.networks.normalization import Normalization
from sb3_bn_ddpg.networks.policies import CnnDefaults


class OfflinePolicy(BNActorCriticPolicy):
    """
    What the policies of the offline algorithms have in common. The parameters are those of
    :class:`~sb3_bn_ddpg.networks.base_policy.BNActorCriticPolicy`, with other defaults for these:

    :param net_arch: 256 and 256 units
    :param normalization: None: no published offline algorithm of this kind has batch norm, and whether it helps is not known.
        ``"batch"``, ``"layer"`` and the other words of the family put it into all networks.
    :param final_init: ``"fan_in"``, PyTorch's
    :param action_layer: 1: state and action enter the critics together
    :param critic_norm_layers: ``"all"``, as no hidden layer is before the action
    :param n_critics: Number of Q-networks, >= 1
    :raises ValueError: if an argument is out of its range, ``share_features_extractor`` is True, or ``n_atoms`` is given
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        normalization: Normalization | None = None,
        final_init: FinalInit = "fan_in",
        action_layer: int = 1,
        critic_norm_layers: CriticNormLayers = "all",
        n_critics: int = 2,
        share_features_extractor: bool = False,
        **kwargs: Any,
    ) -> None:
        if share_features_extractor:
            raise ValueError("`share_features_extractor=True` is not allowed: the offline algorithms share none")
        if kwargs.get("n_atoms") is not None:
            raise ValueError(
                f"`n_atoms={kwargs['n_atoms']!r}` is not allowed: the offline algorithms have critics without atoms"
            )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[256, 256] if net_arch is None else net_arch,
            normalization=normalization,
            final_init=final_init,
            action_layer=action_layer,
            critic_norm_layers=critic_norm_layers,
            n_critics=n_critics,
            **kwargs,
        )


class OfflineCnnDefaults(CnnDefaults):
    """
    For images: the convolutions of :class:`~sb3_bn_ddpg.networks.policies.CnnDefaults`, for each network its own, before the
    hidden layers of the algorithm's authors. None of these algorithms was published for images.

    :param final_init: ``"fan_in"``, PyTorch's
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        final_init: FinalInit = "fan_in",
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, final_init=final_init, **kwargs)


class BNTD3BCPolicy(OfflinePolicy):
    """
    The policy of :class:`~sb3_bn_ddpg.BNTD3BC`: a deterministic actor and two critics. The parameters are those of
    :class:`OfflinePolicy`, with another default for this one:

    :param features_extractor_class: :class:`~sb3_bn_ddpg.networks.layers.StandardizingExtractor`, which standardises
        observations by the dataset's statistics
    """

    actor: Actor
    actor_target: Actor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = StandardizingExtractor,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class BNIQLPolicy(OfflinePolicy):
    """
    The policy of :class:`~sb3_bn_ddpg.BNIQL`: a Gaussian actor, two critics and a value function. The parameters are those of
    :class:`OfflinePolicy`, and this one:

    :param ortho_init: Whether the weights of all linear layers are orthogonal times the square root of 2 and their biases 0,
        as in the authors' code. If not, hidden layers have PyTorch's initialisation, output layers that of ``final_init``.
    """

    actor: FixedStdActor
    actor_class = FixedStdActor
    value: ValueNetwork

    def __init__(self, *args: Any, ortho_init: bool = True, **kwargs: Any) -> None:
        if ortho_init and kwargs.get("final_init", "fan_in") != "fan_in":
            raise ValueError(
                f"`final_init={kwargs['final_init']!r}` is not allowed with `ortho_init=True`, which draws the output "
                "layers as all others: it must be 'fan_in'"
            )
        self.ortho_init = ortho_init
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        # The value function has the layers of a critic that is not told the action
        of_critic = ("net_arch", "observation_space", "action_space", "normalize_images")
        kwargs = self.net_kwargs | {name: self.critic_kwargs[name] for name in of_critic}
        value = ValueNetwork(**self._update_features_extractor(kwargs, None)).to(self.device)
        self.value = self._initialised(value)
        rate: dict[str, Any] = dict(lr=lr_schedule(1))
        # A weight decay in optimizer_kwargs is the actor's
        parameters = [dict(params=list(self.value.parameters()), weight_decay=0.0)]
        self.value.optimizer = self.optimizer_class(parameters, **rate, **self.optimizer_kwargs)
        self.value.find_layers()
        super()._build(lr_schedule)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> BaseActor:
        """
        :param features_extractor: The features extractor (if None: a new one)
        :return: A new actor
        """
        actor: BaseActor = self._initialised(super().make_actor(features_extractor))
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Critic:
        """
        :param features_extractor: The features extractor (if None: a new one)
        :return: A new critic
        """
        critic: Critic = self._initialised(super().make_critic(features_extractor))
        return critic

    def _initialised(self, network: Any) -> Any:
        """
        :param network: A network
        :return: The same, with orthogonal weights if ``ortho_init`` says so
        """
        for layer in network.modules() if self.ortho_init else ():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=2**0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return network

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(ortho_init=self.ortho_init)

    def set_training_mode(self, mode: bool) -> None:
        """
        Put actor, critics and value function in training or evaluation mode.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        super().set_training_mode(mode)
        self.value.set_training_mode(mode)


class BNAWACPolicy(OfflinePolicy):
    """
    The policy of :class:`~sb3_bn_ddpg.BNAWAC`: a Gaussian actor and two critics. The parameters are those of
    :class:`OfflinePolicy`, with other defaults for these:

    :param net_arch: Four layers of 256 units for the actor, two for the critics
    :param optimizer_kwargs: A weight decay of 1e-4, which concerns the actor only, as in the authors' code
    """

    actor: SigmoidStdActor
    actor_class = SigmoidStdActor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if net_arch is None:
            net_arch = dict(pi=[256] * 4, qf=[256] * 2)
        if optimizer_kwargs is None:
            optimizer_kwargs = dict(weight_decay=1e-4)
        super().__init__(
            observation_space, action_space, lr_schedule, net_arch=net_arch, optimizer_kwargs=optimizer_kwargs, **kwargs
        )


class BNIQLCnnPolicy(OfflineCnnDefaults, BNIQLPolicy):
    """:class:`BNIQLPolicy` for images, with the defaults of :class:`OfflineCnnDefaults`."""


class BNTD3BCCnnPolicy(OfflineCnnDefaults, BNTD3BCPolicy):
    """:class:`BNTD3BCPolicy` for images, with the defaults of :class:`OfflineCnnDefaults`."""


class BNAWACCnnPolicy(OfflineCnnDefaults, BNAWACPolicy):
    """:class:`BNAWACPolicy` for images, with the defaults of :class:`OfflineCnnDefaults`."""
