"""The entropy coefficient of SAC, learned or fixed."""

import math
from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_bn_ddpg.networks.statistics import StatisticsMixin


class EntropyCoefficient(StatisticsMixin, nn.Module):
    """
    What the entropy is weighted with, alpha. It is learned on its logarithm, as SB3's.

    :param value: Its first value, >= 0, and > 0 if it is learned
    :param is_learned: Whether it is learned
    """

    optimizer: th.optim.Optimizer
    features_extractor: None = None

    def __init__(self, value: float, is_learned: bool) -> None:
        super().__init__()
        self.value, self.is_learned = value, is_learned
        self.log_ent_coef = nn.Parameter(th.full((1,), math.log(value) if is_learned else 0.0))

    @property
    def own_parameters(self) -> Sequence[nn.Parameter]:
        """What its loss trains."""
        return [self.log_ent_coef]

    @property
    def coefficient(self) -> th.Tensor:
        """Alpha, of shape ``(1,)``, without a gradient."""
        log_coefficient = self.log_ent_coef.detach()
        return log_coefficient.exp() if self.is_learned else th.full_like(log_coefficient, self.value)

    def loss(self, log_prob: th.Tensor, target_entropy: float) -> th.Tensor:
        """
        :param log_prob: Logarithms of the probability densities of actions, without a gradient, of shape ``(batch_size, 1)``
        :param target_entropy: The entropy that the policy is to have on average
        :return: The loss -log(alpha) (log pi + target), as in SB3, a scalar
        """
        return -(self.log_ent_coef * (log_prob + target_entropy)).mean()
