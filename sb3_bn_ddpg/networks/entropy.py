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
        # Whether that of the last state that was loaded was learned
        self.was_learned = is_learned
        self.log_ent_coef = nn.Parameter(th.full((1,), self._first_logarithm))

    @property
    def _first_logarithm(self) -> float:
        return math.log(self.value) if self.is_learned else 0.0

    def get_extra_state(self) -> th.Tensor:
        """
        :return: What a state says beside the parameter: whether it is learned
        """
        return th.tensor(self.is_learned)

    def set_extra_state(self, state: th.Tensor) -> None:
        """
        :param state: What a loaded state says beside the parameter
        """
        self.was_learned = bool(state)

    @th.no_grad()
    def start_anew(self) -> None:
        """Go back to the first value, without what the optimizer knows."""
        self.was_learned = self.is_learned
        self.log_ent_coef.fill_(self._first_logarithm)
        self.optimizer.state.clear()

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
