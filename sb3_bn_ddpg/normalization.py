"""Normalisation layers: making them, choosing the statistics a forward pass uses, and following them to the targets."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm
from sb3_contrib.common.torch_layers import BatchRenorm1d as ContribBatchRenorm1d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb3_bn_ddpg.checks import check_choice, check_number

LayerNormalization = Literal["batch", "batch_renorm", "layer"]
"""Of one layer."""

Normalization = Literal["batch", "batch_renorm", "layer", "batch_layer"]
"""Of a network: of the same kind on state and hidden layers, but layer norm, which leaves a state as it is."""

Statistics = Literal["running", "batch", "running_update", "batch_update"]
"""
What one forward pass does with the statistics of a network's batch normalisation (mean and variance of each unit):

- ``"running"``: normalise with the running statistics, update nothing;
- ``"batch"``: normalise with the statistics of this batch, update nothing;
- ``"running_update"``: first update the running statistics from this batch, in a pass of ``"batch_update"``, so that each
  layer's are of inputs that the layers before it normalised by the batch; then normalise with them: no gradient flows through
  them;
- ``"batch_update"``: normalise with the statistics of this batch, and update the running ones from it (PyTorch's
  training mode).
"""

TargetStatistics = Literal[Statistics, "joint"]
"""
Of the TD target. ``"joint"`` takes states and next states through the critic in one pass, that of its own loss, which
normalises both with the statistics of both (`CrossQ <https://arxiv.org/abs/1902.05605>`_); the actor then normalises next
states with its running statistics. Only without target networks.
"""

StatisticsSync = Literal["copy", "polyak"]
"""How running statistics reach the target networks: copied after every update, or Polyak-averaged like the weights."""


class BatchRenorm1d(ContribBatchRenorm1d):
    """
    sb3-contrib's batch renormalisation, whose gradient is NaN for a unit that is constant in a batch (the root of its variance
    has none at zero), with the gradient 0 there: a replay buffer of one transition is such a batch.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Inputs, of shape ``(n, num_features)``
        :return: Normalised ones
        """
        if self.training and x.requires_grad:
            is_constant = x.detach().var(dim=0) == 0
            x = x.view_as(x)
            x.register_hook(lambda grad: grad.masked_fill(is_constant, 0.0))  # type: ignore[no-untyped-call]
        y: th.Tensor = super().forward(x)
        return y


class BatchRenorm2d(BatchRenorm1d):
    """sb3-contrib's batch renormalisation for images: statistics of each channel, over the batch and all places."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Images, of shape ``(batch_size, channels, height, width)``
        :return: The normalised images, of the same shape
        """
        n, _, height, width = x.shape
        rows = super().forward(x.permute(0, 2, 3, 1).flatten(0, 2))  # (batch_size * height * width, channels)
        return rows.view(n, height, width, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class NormalizationConfig:
    """
    Which normalisation layers a network gets.

    :param kind: ``"batch"`` (the paper's), ``"batch_renorm"`` (sb3-contrib's layer, as in CrossQ), ``"layer"`` (on hidden
        layers only: across the entries of a state it would mix their units), ``"batch_layer"`` (batch norm on the state, layer
        norm on hidden layers) or None
    :param momentum: Weight of a new batch in the running statistics, in (0, 1]
    :param eps: Value added to the variance for numerical stability, > 0
    :param renorm_warmup_steps: In so many updates, and one more (as in sb3-contrib), batch renormalisation is batch
        normalisation, >= 0
    :param name: The argument that ``kind`` came from, for the message; only ``"normalization"`` knows ``"batch_layer"``
    :raises ValueError: if an argument is out of its range
    """

    kind: Normalization | None = "batch"
    momentum: float = 0.1
    eps: float = 1e-5
    renorm_warmup_steps: int = 100_000
    name: str = "normalization"

    def __post_init__(self) -> None:
        kinds = get_args(Normalization if self.name == "normalization" else LayerNormalization)
        check_choice(self.name, self.kind, (*kinds, None))
        check_number("norm_momentum", self.momentum, low=0, low_open=True, high=1)
        check_number("norm_eps", self.eps, low=0, low_open=True)
        check_number("renorm_warmup_steps", self.renorm_warmup_steps, low=0, integer=True)

    @property
    def replaces_bias(self) -> bool:
        """
        Whether a bias before the normalisation would be without effect: batch norm subtracts the mean, and its beta
        does the bias's work. (Layer norm subtracts a mean over units, batch renorm partly the running mean.)
        """
        return self.kind == "batch"

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
        :return: The layers that go between its linear map and its activation function: one or none
        """
        if self.kind == "batch":
            return [nn.BatchNorm1d(num_features, eps=self.eps, momentum=self.momentum)]
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
            return [nn.BatchNorm2d(num_channels, eps=self.eps, momentum=self.momentum)]
        if self.kind == "batch_renorm":
            return [BatchRenorm2d(num_channels, eps=self.eps, momentum=self.momentum, warmup_steps=self.renorm_warmup_steps)]
        if self.kind == "layer":
            return [nn.GroupNorm(1, num_channels, eps=self.eps)]
        return []


def norm_parameters(network: nn.Module) -> set[nn.Parameter]:
    """
    :param network: Any network
    :return: The parameters of its normalisation layers (gamma and beta)
    """
    norm_types = (_BatchNorm, BatchRenorm, nn.LayerNorm, nn.GroupNorm)
    return {param for module in network.modules() if isinstance(module, norm_types) for param in module.parameters()}


def scale_free_weights(network: nn.Module) -> tuple[th.Tensor, ...]:
    """
    :param network: A network
    :return: Weights of the linear layers and convolutions that batch norm or batch renormalisation follows: what the network
        computes does not depend on their norms
    """
    sequences = [module for module in network.modules() if isinstance(module, nn.Sequential)]
    pairs = [pair for sequence in sequences for pair in pairwise(sequence)]
    return tuple(
        first.weight
        for first, second in pairs
        if isinstance(first, (nn.Linear, nn.Conv2d)) and isinstance(second, (_BatchNorm, BatchRenorm))
    )


class StatisticsMixin(nn.Module):
    """A network that can be run with a stated choice of batch-norm statistics, whichever layers it is built of."""

    @cached_property
    def norm_layers(self) -> tuple[nn.Module, ...]:
        """
        The layers that keep running statistics, found by their type (names differ: ``running_mean``, ``ra_mean``). Those that
        stay in evaluation mode, as in a features extractor that freezes them by its ``train``, are none.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.train()
        layers = tuple(
            module
            for module in self.modules()
            if module.training
            and (isinstance(module, BatchRenorm) or (isinstance(module, _BatchNorm) and module.track_running_stats))
        )
        for module, mode in modes:
            module.training = mode
        return layers

    def forget_layers(self) -> None:
        """Look for the layers anew: they may be others since."""
        self.__dict__.pop("norm_layers", None)

    @property
    def borrowed_norm_layers(self) -> tuple[nn.Module, ...]:
        """Those of a part that another network owns: they normalise as it is said here, but only the owner updates them."""
        return ()

    @property
    def own_norm_layers(self) -> tuple[nn.Module, ...]:
        """Those whose running statistics belong to this network alone."""
        borrowed = self.borrowed_norm_layers
        return tuple(layer for layer in self.norm_layers if not any(layer is other for other in borrowed))

    def forward_with(self, statistics: Statistics, *inputs: Any, part: Callable[..., Any] | None = None) -> Any:
        """
        One forward pass that normalises with, and updates, exactly the statistics it says, whatever mode the network is in.

        :param statistics: See :data:`Statistics`
        :param inputs: The inputs of ``part``
        :param part: The method of this network that makes the pass (if None: ``forward``)
        :return: The output of ``part``
        """
        if statistics == "running_update":
            with th.no_grad():
                self.forward_with("batch_update", *inputs, part=part)
        modes = [layer.training for layer in self.norm_layers]
        try:
            for layer in self.norm_layers:
                layer.training = statistics in ("batch", "batch_update")
            unchanged = self.norm_layers if statistics == "batch" else self.borrowed_norm_layers
            with _discarded_updates(unchanged) if unchanged else nullcontext():
                return (part or self)(*inputs)
        finally:
            for layer, mode in zip(self.norm_layers, modes, strict=True):
                layer.training = mode

    @th.no_grad()
    def follow_statistics(self, source: "StatisticsMixin", sync: StatisticsSync | None, tau: float) -> None:
        """
        Take over the running statistics of another network of the same structure, counters included, and all other buffers.

        :param source: The network to follow
        :param sync: ``"copy"``, ``"polyak"`` (mean and variance move by ``tau`` of the way) or None (nothing moves)
        :param tau: The Polyak coefficient, in [0, 1]
        """
        if sync is None:
            return
        for layer, source_layer in zip(self.own_norm_layers, source.own_norm_layers, strict=True):
            for buffer, source_buffer in zip(_buffers(layer), _buffers(source_layer), strict=True):
                if sync == "polyak" and buffer.is_floating_point():
                    buffer.lerp_(source_buffer, tau)
                else:
                    buffer.copy_(source_buffer)
        of_layers = {id(buffer) for layer in source.norm_layers for buffer in _buffers(layer)}
        for buffer, source_buffer in zip(self.buffers(), source.buffers(), strict=True):
            if id(source_buffer) not in of_layers:  # of layers of other kinds
                buffer.copy_(source_buffer)

    def running_statistics(self) -> list[tuple[th.Tensor, th.Tensor, int]]:
        """
        :return: For each batch-norm layer, copies on the CPU of its running mean and variance, and how often they were updated
        """
        if not self.own_norm_layers:
            return []
        means, variances, counts = zip(*map(_buffers, self.own_norm_layers), strict=True)
        # One transfer from the device for all
        copies = th.split(th.cat([*means, *variances]).cpu(), [len(mean) for mean in means] * 2)
        n_layers = len(means)
        return list(zip(copies[:n_layers], copies[n_layers:], th.stack(counts).tolist(), strict=True))

    def statistics_drift(self, earlier: list[tuple[th.Tensor, th.Tensor, int]]) -> float | None:
        """
        How far the statistics of recent batches lie from the running ones that acting uses.

        It is the Kullback-Leibler divergence of the normal distribution with the batches' mean and variance from the one
        with the earlier running mean and variance, averaged over all units of all layers: 0 when they agree,
        0.5 when a mean is off by one running standard deviation. The batches' statistics are read off the
        movement of the running ones: after k updates with momentum m these have gone 1 - (1 - m)^k of the way.

        :param earlier: :meth:`running_statistics` from before the batches
        :return: The divergence in nats, or None if no statistics were updated since
        """
        total, n_units = 0.0, 0
        for layer, (old_mean, old_var, old_count), (mean, var, count) in zip(
            self.own_norm_layers, earlier, self.running_statistics(), strict=True
        ):
            momentum, eps = layer.momentum, layer.eps
            if count == old_count or not isinstance(eps, float) or not isinstance(momentum, float):
                continue
            share = 1 - (1 - momentum) ** (count - old_count)
            if share == 0:  # they stay
                continue
            batch_mean = old_mean + (mean - old_mean) / share
            # Rounding can leave the variance of a constant unit slightly negative
            batch_var = (old_var + (var - old_var) / share).clamp(min=0) + eps
            ratio = batch_var / (old_var + eps)
            divergence = 0.5 * (ratio - 1 - ratio.log() + (batch_mean - old_mean).square() / (old_var + eps))
            total += divergence.sum().item()
            n_units += divergence.numel()
        return total / n_units if n_units else None


@contextmanager
def _discarded_updates(layers: Iterable[nn.Module]) -> Iterator[None]:
    """
    Let batch-norm layers update copies of their buffers, which are then thrown away.

    :param layers: The layers
    """
    # The buffers themselves are put back untouched: autograd may have saved them for a backward pass
    originals = [(layer, name, buffer) for layer in layers for name, buffer in layer._buffers.items()]
    try:
        for layer, name, buffer in originals:
            layer._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for layer, name, buffer in originals:
            layer._buffers[name] = buffer


def _buffers(layer: nn.Module) -> list[th.Tensor]:
    """
    :param layer: A layer that keeps running statistics
    :return: Its running mean, running variance and counter of updates
    """
    # Much faster than Module.buffers(), which walks over submodules
    return [buffer for buffer in layer._buffers.values() if buffer is not None]
