"""Normalisation layers: which ones a network gets."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb3_bn_ddpg.common.checks import check_choice, check_number
from sb3_bn_ddpg.networks.norm_layers import BatchNorm1d, BatchNorm2d, BatchRenorm1d, BatchRenorm2d

LayerNormalization = Literal["batch", "batch_renorm", "layer"]
"""Of one layer."""

Normalization = Literal["batch", "batch_renorm", "layer", "batch_layer"]
"""Of a network: of the same kind on state and hidden layers, but layer norm, which leaves a state as it is."""

NormOrder = Literal["before_activation", "after_activation"]
"""Where a hidden layer has its normalisation: before its activation function (the paper's) or after it (CrossQ's)."""


@dataclass(frozen=True)
class NormalizationConfig:
    """
    Which normalisation layers a network gets.

    :param kind: ``"batch"`` (the paper's), ``"batch_renorm"`` (sb3-contrib's layer, as in CrossQ), ``"layer"`` (on hidden
        layers only: across the entries of a state it would mix their units), ``"batch_layer"`` (batch norm on the state, layer
        norm on hidden layers) or None
    :param momentum: Weight of a new batch in the running statistics, in (0, 1]
    :param eps: Value added to the variance for numerical stability, > 0
    :param renorm_warmup_steps: For this number of updates, and one more (as in sb3-contrib), batch renormalisation is batch
        normalisation, >= 0
    :param order: Order of a hidden layer: ``"before_activation"`` (the paper's: linear, normalisation, activation) or
        ``"after_activation"`` (CrossQ's: linear with a bias, activation, normalisation). Convolutions have the first.
    :param name: The argument that ``kind`` came from, for the message; only ``"normalization"`` knows ``"batch_layer"``
    :raises ValueError: if an argument is out of its range
    """

    kind: Normalization | None = "batch"
    momentum: float = 0.1
    eps: float = 1e-5
    renorm_warmup_steps: int = 100_000
    order: NormOrder = "before_activation"
    name: str = "normalization"

    def __post_init__(self) -> None:
        kinds = get_args(Normalization if self.name == "normalization" else LayerNormalization)
        check_choice(self.name, self.kind, (*kinds, None))
        check_number("norm_momentum", self.momentum, low=0, low_open=True, high=1)
        check_number("norm_eps", self.eps, low=0, low_open=True)
        check_number("renorm_warmup_steps", self.renorm_warmup_steps, low=0, integer=True)
        check_choice("norm_order", self.order, get_args(NormOrder))

    @property
    def replaces_bias(self) -> bool:
        """
        Whether a bias before the normalisation would be without effect: batch norm subtracts the mean, and its beta
        does the bias's work. (Layer norm subtracts a mean over units, batch renorm partly the running mean. Behind an
        activation function, batch norm cannot take a bias away.)
        """
        return self.kind == "batch" and self.order == "before_activation"

    def input_layers(self, num_features: int) -> list[nn.Module]:
        """
        :param num_features: Number of entries of the state (or of the features extracted from it)
        :return: The layers that normalise it: one or none
        """
        if self.kind == "layer":
            return []
        return (replace(self, kind="batch") if self.kind == "batch_layer" else self).hidden_layers(num_features)

    def hidden_layers(self, num_features: int) -> list[nn.Module]:
        """
        :param num_features: Number of units of the hidden layer
        :return: The layers that go before its activation function, or after it: one or none
        """
        if self.kind == "batch":
            return [BatchNorm1d(num_features, eps=self.eps, momentum=self.momentum)]
        if self.kind == "batch_renorm":
            return [BatchRenorm1d(num_features, eps=self.eps, momentum=self.momentum, warmup_steps=self.renorm_warmup_steps)]
        if self.kind in ("layer", "batch_layer"):
            return [nn.LayerNorm(num_features, eps=self.eps)]
        return []

    def conv_layers(self, num_channels: int) -> list[nn.Module]:
        """
        :param num_channels: Number of filters of the convolution
        :return: The layers that go between it and its activation function: one or none
        """
        if self.kind == "batch":
            return [BatchNorm2d(num_channels, eps=self.eps, momentum=self.momentum)]
        if self.kind == "batch_renorm":
            return [BatchRenorm2d(num_channels, eps=self.eps, momentum=self.momentum, warmup_steps=self.renorm_warmup_steps)]
        if self.kind == "layer":
            return [nn.GroupNorm(1, num_channels, eps=self.eps)]
        return []


PAPER_NORMALIZATION = NormalizationConfig()
"""Batch norm everywhere, before the activation functions."""


def norm_parameters(network: nn.Module) -> set[nn.Parameter]:
    """
    :param network: Any network
    :return: The parameters of its normalisation layers (gamma and beta)
    """
    norm_types = (_BatchNorm, BatchRenorm, nn.LayerNorm, nn.GroupNorm)
    return {param for module in network.modules() if isinstance(module, norm_types) for param in module.parameters()}


def scale_free_layers(network: nn.Module) -> tuple[tuple[nn.Linear | nn.Conv2d, nn.Module], ...]:
    """
    :param network: A network
    :return: The linear layers and convolutions that batch norm or batch renormalisation follows, each with that layer:
        normalised with statistics of the same weights, what the network computes does not depend on the weights' norms
    """
    sequences = [module for module in network.modules() if isinstance(module, nn.Sequential)]
    return tuple(
        (first, second)
        for sequence in sequences
        for first, second in pairwise(sequence)
        if isinstance(first, (nn.Linear, nn.Conv2d)) and isinstance(second, (_BatchNorm, BatchRenorm))
    )


def scale_free_weights(network: nn.Module) -> tuple[th.Tensor, ...]:
    """
    :param network: A network
    :return: The weights of its :func:`scale_free_layers`
    """
    return tuple(layer.weight for layer, _ in scale_free_layers(network))
