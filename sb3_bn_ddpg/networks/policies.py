"""The policies of each algorithm, for vectors, images and dictionaries of both."""

from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule

from sb3_bn_ddpg.networks.actors import Actor, GaussianActor
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy, NetArch
from sb3_bn_ddpg.networks.layers import FinalInit, PaperCNN, PaperCombinedExtractor, has_images
from sb3_bn_ddpg.networks.normalization import Normalization


class CnnDefaults(BNActorCriticPolicy):
    """
    The paper's networks for pixels (section 7): three convolutional layers of 32 filters, two hidden layers of 200 units,
    output layers from U[-3e-4, 3e-4]. The action enters at the second layer of 200. Nothing is batch-normalised unless asked
    for: the paper says that it normalised "in the low-dimensional case" (section 3).

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base_policy.BNActorCriticPolicy`, with other defaults for these:

    :param features_extractor_class: :class:`~sb3_bn_ddpg.networks.layers.PaperCNN`, of which
        ``features_extractor_kwargs=dict(conv_normalization="batch")`` normalises the convolutions
    :param normalization: Of the fully connected layers. The image itself is scaled to [0, 1].
    :param final_init: The output layers' weights and biases are drawn from U[-final_init, final_init], > 0, or ``"fan_in"``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = PaperCNN,
        normalization: Normalization | None = None,
        final_init: FinalInit = 3e-4,
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


class MultiInputDefaults(BNActorCriticPolicy):
    """
    For dictionaries of observations: the paper's batch norm for their vectors, its convolutions for their images, all of them
    before the first hidden layer.

    The parameters are those of :class:`~sb3_bn_ddpg.networks.base_policy.BNActorCriticPolicy`, with other defaults for these:

    :param net_arch: 400 and 300 units, or 200 and 200 if there is an image
    :param features_extractor_class: :class:`~sb3_bn_ddpg.networks.layers.PaperCombinedExtractor`, of which
        ``features_extractor_kwargs=dict(conv_normalization="batch")`` normalises the convolutions
    :param final_init: The output layers' weights and biases are drawn from U[-final_init, final_init], > 0, or ``"fan_in"``:
        if None, 3e-3, or 3e-4 if there is an image
    """

    vector_init: ClassVar[FinalInit] = 3e-3
    """``final_init`` where there is no image"""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = PaperCombinedExtractor,
        final_init: FinalInit | None = None,
        normalize_images: bool = True,
        **kwargs: Any,
    ) -> None:
        if final_init is None:
            final_init = 3e-4 if has_images(observation_space, normalize_images) else self.vector_init
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            final_init=final_init,
            normalize_images=normalize_images,
            **kwargs,
        )


class BNDDPGPolicy(BNActorCriticPolicy):
    """
    The policy of :class:`~sb3_bn_ddpg.BNDDPG`. The parameters are those of
    :class:`~sb3_bn_ddpg.networks.base_policy.BNActorCriticPolicy`, but for this one:

    :param n_critics: Must be 1, which SB3's DDPG writes into the ``policy_kwargs`` that it is given
    """

    actor: Actor
    actor_target: Actor

    def _check_n_critics(self, n_critics: int) -> None:
        if n_critics != 1:
            raise ValueError(f"`n_critics={n_critics!r}` is not allowed: it must be 1, DDPG has one critic")


MlpPolicy = BNDDPGPolicy


class CnnPolicy(CnnDefaults, BNDDPGPolicy):
    """:class:`BNDDPGPolicy` for images, with the defaults of :class:`CnnDefaults`."""


class MultiInputPolicy(MultiInputDefaults, BNDDPGPolicy):
    """:class:`BNDDPGPolicy` for dictionaries of observations, with the defaults of :class:`MultiInputDefaults`."""


class BNTD3Policy(BNActorCriticPolicy):
    """
    A deterministic actor and two critics, as in TD3. The parameters are those of
    :class:`~sb3_bn_ddpg.networks.base_policy.BNActorCriticPolicy`, with another default for this one:

    :param n_critics: Number of Q-networks, >= 1
    """

    actor: Actor
    actor_target: Actor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        n_critics: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, n_critics=n_critics, **kwargs)


class BNTD3CnnPolicy(CnnDefaults, BNTD3Policy):
    """:class:`BNTD3Policy` for images, with the defaults of :class:`CnnDefaults`."""


class BNTD3MultiInputPolicy(MultiInputDefaults, BNTD3Policy):
    """:class:`BNTD3Policy` for dictionaries of observations, with the defaults of :class:`MultiInputDefaults`."""


class BNSACPolicy(BNActorCriticPolicy):
    """
    A stochastic actor and two critics, as in SAC. The parameters are those of
    :class:`~sb3_bn_ddpg.networks.base_policy.BNActorCriticPolicy`, with other defaults for these:

    :param net_arch: 256 and 256 units, as SAC's; for images those of :class:`CnnDefaults`
    :param final_init: ``"fan_in"``, as SAC's; for images those of :class:`CnnDefaults`
    :param n_critics: Number of Q-networks, >= 1
    """

    actor: GaussianActor
    actor_class = GaussianActor
    default_units = (256, 256)

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        final_init: FinalInit = "fan_in",
        n_critics: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch,
            final_init=final_init,
            n_critics=n_critics,
            **kwargs,
        )


class BNSACCnnPolicy(CnnDefaults, BNSACPolicy):
    """:class:`BNSACPolicy` for images, with the defaults of :class:`CnnDefaults`."""


class BNSACMultiInputPolicy(MultiInputDefaults, BNSACPolicy):
    """:class:`BNSACPolicy` for dictionaries of observations, with the defaults of :class:`MultiInputDefaults`."""

    vector_init: ClassVar[FinalInit] = "fan_in"
