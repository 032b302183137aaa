"""The deterministic policy alone, with what ``VecNormalize`` does to its observations."""

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_bn_ddpg.networks.base import BoundedPolicy


class ObservationStatistics(nn.Module):
    """
    The part of ``VecNormalize`` that concerns one observation: ``clip((x - mean) / sqrt(var + epsilon))``.

    :param mean: Mean of each entry
    :param var: Variance of each entry
    :param epsilon: Value added to the variance
    :param clip: Largest absolute value of a normalised entry
    """

    mean: th.Tensor
    var: th.Tensor

    def __init__(self, mean: th.Tensor, var: th.Tensor, epsilon: float, clip: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("var", var)
        self.epsilon, self.clip = epsilon, clip

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Observations
        :return: Normalised ones
        """
        # In double precision, as VecNormalize
        normalised = (x.double() - self.mean) / (self.var + self.epsilon).sqrt()
        return normalised.clamp(-self.clip, self.clip).float()


class ExportedPolicy(BoundedPolicy):
    """
    The deterministic policy alone: the environment's observations in, its actions out.

    :param actor: The actor, or a policy
    :param statistics: What normalises the observations, or each entry of a dictionary of them, before; empty if nothing does
    """

    action_space: spaces.Box

    def __init__(self, actor: BasePolicy, statistics: dict[str, ObservationStatistics]) -> None:
        super().__init__(actor.observation_space, actor.action_space, squash_output=True)
        self.actor = actor
        self.statistics = nn.ModuleDict(statistics)
        self.register_buffer("low", th.as_tensor(np.array(self.action_space.low), dtype=th.float32))
        self.register_buffer("high", th.as_tensor(np.array(self.action_space.high), dtype=th.float32))
        self.low: th.Tensor
        self.high: th.Tensor
        self.set_training_mode(False)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        if isinstance(observation, dict):
            observation = {
                key: self.statistics[key](entry) if key in self.statistics else entry for key, entry in observation.items()
            }
        elif "observation" in self.statistics:
            observation = self.statistics["observation"](observation)
        return self.actor._predict(observation, deterministic=True)

    def forward(self, observation: PyTorchObs) -> th.Tensor:
        """
        :param observation: Observations, of shape ``(n, ...)``
        :return: Actions within the action space's bounds, of shape ``(n, ...)``
        """
        scaled = self._predict(observation).reshape(-1, *self.low.shape)
        # Rounding may lead beyond a bound, as in BoundedPolicy.unscale_action
        return (self.low + 0.5 * (scaled + 1.0) * (self.high - self.low)).minimum(self.high).maximum(self.low)
