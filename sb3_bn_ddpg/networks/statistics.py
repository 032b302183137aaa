"""Batch-norm statistics: choosing those that a forward pass uses, measuring their drift, following them to the targets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch as th
from torch import nn

from sb3_bn_ddpg.common.checks import check_choice
from sb3_bn_ddpg.networks.norm_layers import batch_statistics, follow_the_pass, keeps_statistics, mode_of

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
normalises both with the statistics of both (`CrossQ <https://arxiv.org/abs/1902.05605>`_, which has no target networks); the
actor then normalises next states with its running statistics. Target critics, if there are any, make such a pass as well, for
the values of the next states, and keep no statistics of it (`Palenicek et al. <https://arxiv.org/abs/2506.03758>`__).
"""

StatisticsSync = Literal["copy", "polyak"]
"""How running statistics reach the target networks: copied after every update, or Polyak-averaged like the weights."""


@dataclass(frozen=True)
class PassStatistics:
    """
    Which batch-norm statistics each forward pass of a gradient step normalises with and updates
    (see :data:`~sb3_bn_ddpg.networks.statistics.Statistics`). Acting and predicting always use running statistics.

    :param target: Actor and critic in the TD target (the target networks, or the online ones if there are none);
        see :data:`~sb3_bn_ddpg.networks.statistics.TargetStatistics`
    :param target_sync: How running statistics reach the target networks
    :param critic_loss: The critic in its own loss
    :param actor_loss_actor: The actor in its loss
    :param actor_loss_critic: The critic in the actor's loss
    :raises ValueError: if a value is unknown, or the combination never updates a network's running statistics
    """

    target: TargetStatistics = "batch"
    target_sync: StatisticsSync | None = "copy"
    critic_loss: Statistics = "batch_update"
    actor_loss_actor: Statistics = "batch_update"
    actor_loss_critic: Statistics = "running"

    def __post_init__(self) -> None:
        updating = ("batch_update", "running_update")
        check_choice("target_statistics", self.target, get_args(TargetStatistics))
        check_choice("target_statistics_sync", self.target_sync, (*get_args(StatisticsSync), None))
        # The running statistics that acting needs come from these two passes
        check_choice("critic_loss_statistics", self.critic_loss, updating)
        check_choice("actor_loss_actor_statistics", self.actor_loss_actor, updating)
        check_choice("actor_loss_critic_statistics", self.actor_loss_critic, get_args(Statistics))
        if self.target == "running" and self.target_sync is None:
            raise ValueError(
                "`target_statistics_sync=None` is not allowed with `target_statistics='running'`: it must be one of "
                "'copy', 'polyak', or the target networks would keep the statistics they were created with"
            )


class StatisticsMixin(nn.Module):
    """A network that can be run with a stated choice of batch-norm statistics, whichever layers it is built of."""

    @cached_property
    def norm_layers(self) -> tuple[nn.Module, ...]:
        """
        The layers that keep running statistics, found by their type (names differ: ``running_mean``, ``ra_mean``). Those that
        stay in evaluation mode, as in a features extractor that freezes them by its ``train``, are none.
        """
        modules = list(self.modules())
        layers = tuple(filter(keeps_statistics, modules))
        if any(type(module).train is not nn.Module.train or "train" in vars(module) for module in modules):
            modes = list(map(mode_of, modules))
            self.train()
            layers = tuple(filter(mode_of, layers))
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
        for layer in layers:
            follow_the_pass(layer)
        return layers

    def find_layers(self) -> None:
        """Look for the layers anew: they may be others since."""
        self.__dict__.pop("norm_layers", None)
        _ = self.norm_layers

    @property
    def borrowed_norm_layers(self) -> tuple[nn.Module, ...]:
        """Those of a part that another network owns: they normalise as this network's pass says, their owner updates them."""
        return ()

    @property
    def own_norm_layers(self) -> tuple[nn.Module, ...]:
        """Those whose running statistics belong to this network alone."""
        borrowed = self.borrowed_norm_layers
        return tuple(layer for layer in self.norm_layers if not any(layer is other for other in borrowed))

    def forward_with(self, statistics: Statistics, *inputs: Any, part: Callable[..., Any] | None = None) -> Any:
        """
        One forward pass that normalises with, and updates, exactly the statistics it says, whatever mode the network is in and
        whatever other threads do with it.

        :param statistics: See :data:`Statistics`
        :param inputs: The inputs of ``part``
        :param part: The method of this network that makes the pass (if None: ``forward``)
        :return: The output of ``part``
        """
        if statistics == "running_update":
            with th.no_grad():
                self.forward_with("batch_update", *inputs, part=part)
        by_batch = self.norm_layers if statistics in ("batch", "batch_update") else ()
        updated = self.own_norm_layers if statistics == "batch_update" else ()
        with batch_statistics(by_batch, updated):
            return (part or self)(*inputs)

    @th.no_grad()
    def follow_statistics(
        self, source: "StatisticsMixin", sync: StatisticsSync | None, tau: float, borrowed: bool = False
    ) -> None:
        """
        Take over the running statistics of another network of the same structure, counters included, and all other buffers.

        :param source: The network to follow
        :param sync: ``"copy"``, ``"polyak"`` (mean and variance move by ``tau`` of the way) or None (nothing moves)
        :param tau: The Polyak coefficient, in [0, 1]
        :param borrowed: Whether those of a part that another network owns are taken over too
        """
        if sync is None:
            return
        ours, theirs = (each.norm_layers if borrowed else each.own_norm_layers for each in (self, source))
        for layer, source_layer in zip(ours, theirs, strict=True):
            for buffer, source_buffer in zip(statistics_of(layer), statistics_of(source_layer), strict=True):
                if sync == "polyak" and buffer.is_floating_point():
                    buffer.lerp_(source_buffer, tau)
                else:
                    buffer.copy_(source_buffer)
        of_layers = {id(buffer) for layer in source.norm_layers for buffer in statistics_of(layer)}
        for buffer, source_buffer in zip(self.buffers(), source.buffers(), strict=True):
            if id(source_buffer) not in of_layers:  # of layers of other kinds
                buffer.copy_(source_buffer)

    def running_statistics(self) -> list[tuple[th.Tensor, th.Tensor, int]]:
        """
        :return: For each batch-norm layer, copies on the CPU of its running mean and variance, and how often they were updated
        """
        if not self.own_norm_layers:
            return []
        means, variances, counts = zip(*map(statistics_of, self.own_norm_layers), strict=True)
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
        # All layers' units at once: a layer has few, and each operation on them costs as much as their numbers
        moved: list[tuple[float, float, tuple[th.Tensor, ...]]] = []
        for layer, (old_mean, old_var, old_count), (mean, var, count) in zip(
            self.own_norm_layers, earlier, self.running_statistics(), strict=True
        ):
            momentum, own_eps = layer.momentum, layer.eps
            if count == old_count or not isinstance(own_eps, float) or not isinstance(momentum, float):
                continue
            share = 1 - (1 - momentum) ** (count - old_count)
            if share:  # else they stay
                moved.append((share, own_eps, (old_mean, old_var, mean, var)))
        if not moved:
            return None
        shares, epsilons, statistics = zip(*moved, strict=True)
        old_mean, old_var, mean, var = map(th.cat, zip(*statistics, strict=True))
        sizes = [len(mean_of_layer) for mean_of_layer, *_ in statistics]
        share_of_way, eps = _of_units(shares, sizes), _of_units(epsilons, sizes)
        batch_mean = old_mean + (mean - old_mean) / share_of_way
        # Rounding can leave the variance of a constant unit slightly negative
        batch_var = (old_var + (var - old_var) / share_of_way).clamp(min=0) + eps
        ratio = batch_var / (old_var + eps)
        divergence = 0.5 * (ratio - 1 - ratio.log() + (batch_mean - old_mean).square() / (old_var + eps))
        totals = th.stack([part.sum() for part in th.split(divergence, sizes)]).tolist()
        return float(sum(totals) / len(divergence))


def statistics_of(layer: nn.Module) -> list[th.Tensor]:
    """
    :param layer: A layer that keeps running statistics
    :return: Its running mean, running variance and counter of updates
    """
    # Much faster than Module.buffers(), which walks over submodules
    return [buffer for buffer in layer._buffers.values() if buffer is not None]


def _of_units(numbers: tuple[float, ...], sizes: list[int]) -> float | th.Tensor:
    """
    :param numbers: A number for each layer
    :param sizes: Their numbers of units
    :return: The number for each unit, or for all
    """
    if len(set(numbers)) == 1:
        return numbers[0]
    return th.tensor(numbers, dtype=th.float64).repeat_interleave(th.tensor(sizes))
