"""The policy of BCQ: actions of a generative model, perturbed, and a choice among them."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.networks.base_policy import NetArch
from sb3_bn_ddpg.networks.generative import ActionVAE, GenerativeActor, PerturbationActor
from sb3_bn_ddpg.offline.policies import OfflineCnnDefaults, OfflinePolicy


class BNBCQPolicy(OfflinePolicy):
    """
    The policy of :class:`~sb3_bn_ddpg.BNBCQ`: it generates actions, perturbs them, and takes the one to which the first critic
    gives the largest value. The parameters are those of :class:`~sb3_bn_ddpg.offline.policies.OfflinePolicy`, with another
    default for the first of these:

    :param net_arch: 400 and 300 units, of the critics and of the perturbation
    :param vae_arch: Units of the hidden layers of encoder and decoder: 750 and 750
    :param phi: Largest perturbation, in units of half an action's range, >= 0
    :param n_sampled_actions: Number of actions that it chooses among, >= 1. With ``predict(..., deterministic=True)`` they
        come from latent vectors that are drawn once, when the policy is made, and saved with it; else new ones are drawn.
    """

    actor: PerturbationActor
    actor_target: PerturbationActor
    actor_class = PerturbationActor
    vae: ActionVAE
    latents: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        vae_arch: tuple[int, ...] | list[int] = (750, 750),
        phi: float = 0.05,
        n_sampled_actions: int = 100,
        **kwargs: Any,
    ) -> None:
        if not isinstance(vae_arch, (list, tuple)):
            raise ValueError(f"`vae_arch={vae_arch!r}` is not allowed: it must be a list of integers")
        for n_units in vae_arch:
            check_number("vae_arch", n_units, low=1, integer=True)
        check_number("phi", phi, low=0)
        check_number("n_sampled_actions", n_sampled_actions, low=1, integer=True)
        self.own_kwargs: dict[str, Any] = dict(vae_arch=list(vae_arch), phi=phi, n_sampled_actions=n_sampled_actions)
        net_arch = [400, 300] if net_arch is None else net_arch
        super().__init__(observation_space, action_space, lr_schedule, net_arch=net_arch, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor_kwargs["phi"] = self.own_kwargs["phi"]
        of_spaces = ("observation_space", "action_space", "normalize_images")
        kwargs = self.net_kwargs | {name: self.critic_kwargs[name] for name in of_spaces}
        kwargs |= dict(net_arch=self.own_kwargs["vae_arch"])
        self.vae = ActionVAE(**self._update_features_extractor(kwargs, None)).to(self.device)
        rate: dict[str, Any] = dict(lr=lr_schedule(1))
        # A weight decay in optimizer_kwargs is the actor's
        parameters = [dict(params=list(self.vae.parameters()), weight_decay=0.0)]
        self.vae.optimizer = self.optimizer_class(parameters, **rate, **self.optimizer_kwargs)
        self.vae.find_layers()
        self.register_buffer("latents", th.randn(self.own_kwargs["n_sampled_actions"], self.vae.latent_dim))
        super()._build(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.own_kwargs

    def acting_network(self) -> GenerativeActor:
        """
        :return: What the policy acts by: the actor, the critic, the generative model and the latent vectors
        """
        return GenerativeActor(self.actor, self.critic, self.vae, self.latents)

    def set_training_mode(self, mode: bool) -> None:
        """
        Put actor, critics and generative model in training or evaluation mode.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        super().set_training_mode(mode)
        self.vae.set_training_mode(mode)


class BNBCQCnnPolicy(OfflineCnnDefaults, BNBCQPolicy):
    """:class:`BNBCQPolicy` for images, with the defaults of :class:`~sb3_bn_ddpg.offline.policies.OfflineCnnDefaults`."""
