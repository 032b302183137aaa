"""
The storage of the fast update: each network's parameters, gradients, Adam moments and running statistics, laid out in one
tensor each, of which the modules and the optimizer keep views.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain, repeat
from operator import attrgetter, is_, is_not
from typing import Any

import torch as th
from torch import nn
from torch.optim import optimizer as of_optimizers

from sb3_bn_ddpg.fast.parts import COPY, POLYAK, STAY
from sb3_bn_ddpg.fast.processor import threads_for
from sb3_bn_ddpg.networks.actor_critic import restore_norms
from sb3_bn_ddpg.networks.base import Network
from sb3_bn_ddpg.networks.entropy import EntropyCoefficient

ALIGNMENT = 16
"""Parameters start at multiples of this number of floats (a cache line) in the flat tensors; the gaps stay zero."""

DENORMAL_THRESHOLD = 1e-30
"""
Moments and parameters below it become zero now and then. Moments of a parameter without gradient otherwise decay into denormal
numbers after some 800 steps, and stay there, as weights do that weight decay alone moves. That makes a step several times
slower. Beside Adam's epsilon, and beside any bias, they count for nothing.
"""
SMALLEST_EPS = 1e-12
"""Beside a smaller epsilon moments may count, and so they stay."""

STATE_ENTRIES = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter."""

NORM_SETTINGS = ("momentum", "eps", "warmup_steps", "rmax", "dmax")
"""Attributes of normalisation layers that say how they normalise."""

BLOCKS = 32
"""On a GPU, Adam works on this number of pieces of a group side by side; PyTorch has a single launch for up to 36."""

Trained = Network | EntropyCoefficient
Slice = tuple[dict[str, Any], list[list[th.Tensor]], th.Tensor]
"""Of a group of parameters: the group; values, gradients and both moments, each in pieces; the counter of steps."""


class FlatStorage:
    """
    Everything an update changes of a network and its target, each kind in one tensor, of which the modules' parameters and
    buffers, the parameters' gradients and the optimizer's moments become views.

    :param network: The network, with its Adam optimizer
    :param target: Its target network, or the network itself
    :param fixed_norm_weights: Weights that get their norm back after each step
    """

    @th.inference_mode(False)  # where the caller is in it, parameters would be of no use to autograd ever after
    def __init__(self, network: Trained, target: Trained, fixed_norm_weights: tuple[th.Tensor, ...] = ()) -> None:
        self.network, self.optimizer, self.fixed_norm_weights = network, network.optimizer, fixed_norm_weights
        groups = self.optimizer.param_groups
        names = {param: name for name, param in network.named_parameters()}
        # Group by group, so that each group is one slice
        self.params: list[nn.Parameter] = [param for group in groups for param in group["params"]]
        target_params = dict(target.named_parameters())
        self.values, views = _flattened(self.params)
        for param, view in zip(self.params, views, strict=True):
            param.data = view
        self.target_values = self.values
        if target is not network:
            matching = [target_params[names[param]] for param in self.params]
            self.target_values, views = _flattened(matching)
            for param, view in zip(matching, views, strict=True):
                param.data = view
        self.grads, self.grad_views = _flattened(th.zeros_like(param) for param in self.params)
        for param, view in zip(self.params, self.grad_views, strict=True):
            param.grad = view

        # Adam's state: zeros before the first step, or what was loaded or reached by the reference
        state: Any = self.optimizer.state
        self.exp_avg, means = _flattened(state.get(param, {}).get("exp_avg", th.zeros_like(param)) for param in self.params)
        self.exp_avg_sq, squares = _flattened(
            state.get(param, {}).get("exp_avg_sq", th.zeros_like(param)) for param in self.params
        )
        steps = [float(state.get(param, {}).get("step", 0.0)) for param in self.params]
        # Where Adam itself keeps them
        keeps_on_device = groups[0].get("fused") or groups[0].get("capturable")
        self.steps = th.tensor(steps, dtype=th.float32, device=self.values.device if keeps_on_device else "cpu")
        for param, step, mean, square in zip(self.params, self.steps, means, squares, strict=True):
            # At once: a Ctrl-C in between leaves no half of a state, which could be saved but not loaded
            state[param] = state.get(param, {}) | {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        # For is_current: what the optimizer's state holds of each parameter
        self._states: list[dict[str, Any]] = [state[param] for param in self.params]
        self._state_entries = [[entries[name] for entries in self._states] for name in STATE_ENTRIES]
        self._counted = self.steps.tolist()
        self.slices: list[Slice] = []
        start = first = 0
        for group in groups:
            end = start + sum(_aligned(param.numel()) for param in group["params"])
            # One counter a slice, where fused Adam reads it: one of the optimizer's own if that is on the same device
            shares = self.steps.device == self.values.device
            step = self.steps[first] if shares else self.steps[first].to(self.values.device)
            # A CUDA block takes a whole piece of up to 65,536 numbers, so that a small network in one piece keeps it waiting
            size = _aligned(-(-(end - start) // BLOCKS)) if self.values.is_cuda else end - start
            flats = (self.values, self.grads, self.exp_avg, self.exp_avg_sq)
            tensors = [list(th.split(flat[start:end], size)) for flat in flats]
            self.slices.append((group, tensors, step))
            start, first = end, first + len(group["params"])
        # Only where a CUDA graph reads them: on the device, each beside what was written there last
        self.learning_rates: list[tuple[th.Tensor, float]] = []

        # Running means and variances in one tensor, counters in another
        self.stats, self.counts = _flat_statistics(network)
        self.target_stats, self.target_counts = (self.stats, self.counts) if target is network else _flat_statistics(target)
        modules = [(each, module) for each in dict.fromkeys((network, target)) for module in each.modules()]
        # For is_current, which each gradient step asks: lists that C walks over
        places = [(module._parameters, name, param) for _, module in modules for name, param in module._parameters.items()]
        self._parameter_dicts, self._parameter_names, self._parameters = map(list, zip(*places, strict=True))
        norm_layers: list[Any] = [
            module for each, module in modules if module in each.norm_layers or isinstance(module, nn.LayerNorm)
        ]
        self._buffer_dicts: list[dict[str, th.Tensor | None]] = [layer._buffers for layer in norm_layers]
        own_settings = [[name for name in NORM_SETTINGS if hasattr(layer, name)] for layer in norm_layers]
        self._settings_of_layers = list(zip((attrgetter(*own) for own in own_settings), norm_layers, strict=True))
        self._addresses, self._norm_settings = self._current_addresses(), self._current_norm_settings()
        self._grouped = self._in_groups()

    def is_current(self) -> bool:
        """
        :return: Whether parameters, statistics and optimizer state are still views of this storage, the settings of optimizer
            and normalisation those it knows, and all parameters trained, without hooks
        """
        if self.network.optimizer is not self.optimizer or not all(map(attrgetter("requires_grad"), self.params)):
            return False
        if not all(map(is_, map(dict.get, self._parameter_dicts, self._parameter_names), self._parameters)):
            return False
        if has_parameter_hooks(self.params) or has_own_step(self.optimizer) or has_variants(self.optimizer):
            return False
        if [id(group) for group in self.optimizer.param_groups] != [id(group) for group, _, _ in self.slices]:
            return False
        grouped = self._in_groups()
        if len(grouped) != len(self._grouped) or not all(map(is_, grouped, self._grouped)):
            return False
        if not all(map(is_, map(attrgetter("grad"), self.params), self.grad_views)):
            return False
        if not all(map(is_, map(self.optimizer.state.get, self.params), self._states)):
            return False
        for name, entries in zip(STATE_ENTRIES, self._state_entries, strict=True):
            if not all(map(is_, map(dict.get, self._states, repeat(name)), entries)):
                return False
        if not self.steps.is_cuda and self.steps.tolist() != self._counted:
            return False  # somebody has written into the counters, as one who starts the optimizer anew does
        return self._current_addresses() == self._addresses and self._current_norm_settings() == self._norm_settings

    def _in_groups(self) -> list[th.Tensor]:
        """
        :return: The optimizer's parameters, group by group
        """
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def _current_addresses(self) -> list[int]:
        """
        :return: Where the parameters and statistics of both networks lie, which assigning to them would change
        """
        tensors = chain(self._parameters, chain.from_iterable(map(dict.values, self._buffer_dicts)))
        return list(map(th.Tensor.data_ptr, filter(partial(is_not, None), tensors)))

    def _current_norm_settings(self) -> list[Any]:
        """
        :return: Momentum, epsilon and more of the normalisation layers, which a callback may change
        """
        return [settings(layer) for settings, layer in self._settings_of_layers]

    def count_steps(self, n: int) -> list[Slice]:
        """
        Count steps of the optimizer, of which the caller then makes the rest.

        :param n: Their number
        :return: The slices
        """
        self.count_where_the_optimizer_reads(n)
        if self.steps.device != self.values.device:
            for _, _, step in self.slices:
                step.add_(n)
        return self.slices

    def count_where_the_optimizer_reads(self, n: int) -> None:
        """
        Count steps in the optimizer's own state alone.

        :param n: Their number
        """
        self.steps.add_(n)
        if not self.steps.is_cuda:
            self._counted = self.steps.tolist()

    def adam_step(self) -> None:
        """One step of the optimizer with the gradients that lie in the storage."""
        for index, (group, (values, grads, exp_avgs, exp_avg_sqs), step) in enumerate(self.count_steps(1)):
            # What torch.optim.adam.adam(fused=True) calls, without its grouping of tensors by device and type
            th._fused_adam_(
                values,
                grads,
                exp_avgs,
                exp_avg_sqs,
                [],
                [step] * len(values),
                lr=self.learning_rates[index][0] if self.learning_rates else group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def hold_learning_rates(self) -> None:
        """From now on ``adam_step`` takes them from the device, where this method has to write those that have changed."""
        rates = [float(group["lr"]) for group, _, _ in self.slices]
        if not self.learning_rates:
            self.learning_rates = [(th.tensor(rate, dtype=th.float32, device=self.values.device), rate) for rate in rates]
        for index, (tensor, last) in enumerate(self.learning_rates):
            if rates[index] != last:
                self.learning_rates[index] = (tensor.fill_(rates[index]), rates[index])

    def settings(self) -> tuple[tuple[float, ...], ...]:
        """
        :return: What else Adam is told, for each group of parameters: both betas, epsilon and the weight decay
        """
        return tuple((*group["betas"], group["eps"], group["weight_decay"]) for group, _, _ in self.slices)

    @property
    def may_lose_denormals(self) -> bool:
        """Whether moments that are nearly denormal count for nothing beside Adam's epsilon."""
        return all(group["eps"] >= SMALLEST_EPS for group, _, _ in self.slices)

    def flush_denormals(self) -> None:
        """Set moments and parameters that are too small to count to zero."""
        flats = [self.values] if self.target_values is self.values else [self.values, self.target_values]
        if self.may_lose_denormals:
            flats += [self.exp_avg, self.exp_avg_sq]
        with threads_for(0):  # two wait for each other, where other processes use the cores
            for flat in flats:
                flat.copy_(nn.functional.hardshrink(flat, DENORMAL_THRESHOLD))

    def restore_norms(self) -> None:
        """Give the weights of a fixed norm that norm."""
        restore_norms(self.fixed_norm_weights)

    def move_target(self, tau: float, sync: int) -> None:
        """
        Move the target network, if there is one.

        :param tau: Polyak coefficient, in [0, 1]
        :param sync: What its running statistics do, of :data:`~sb3_bn_ddpg.fast.parts.SYNCS`
        """
        if self.target_values is self.values:
            return
        self.target_values.lerp_(self.values, tau)
        if sync == COPY:
            self.target_stats.copy_(self.stats)
        elif sync == POLYAK:
            self.target_stats.lerp_(self.stats, tau)
        if sync != STAY:
            self.target_counts.copy_(self.counts)


def has_parameter_hooks(params: Iterable[th.Tensor]) -> bool:
    """
    :param params: Parameters
    :return: Whether autograd calls something of the user's with their gradients
    """
    return any(chain.from_iterable(map(attrgetter("_backward_hooks", "_post_accumulate_grad_hooks"), params)))


def has_own_step(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: An optimizer
    :return: Whether its steps call something of the user's
    """
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    of_all = of_optimizers._global_optimizer_pre_hooks or of_optimizers._global_optimizer_post_hooks
    return bool(hooks or of_all) or "step" in vars(optimizer)  # which wraps that of the class


def has_variants(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: An Adam
    :return: Whether its options make its step another one
    """
    return any(
        group["amsgrad"] or group["maximize"] or group.get("decoupled_weight_decay") for group in optimizer.param_groups
    )


def _aligned(n: int) -> int:
    """The next multiple of the alignment."""
    return -(-n // ALIGNMENT) * ALIGNMENT


def _flattened(tensors: Iterable[th.Tensor]) -> tuple[th.Tensor, list[th.Tensor]]:
    """
    :param tensors: Tensors of one type and device
    :return: One flat tensor with their values, and a view of it for each, of its shape
    """
    tensors = [tensor.detach() for tensor in tensors]
    flat = tensors[0].new_zeros(sum(_aligned(tensor.numel()) for tensor in tensors))
    views, start = [], 0
    for tensor in tensors:
        view = flat[start : start + tensor.numel()].view(tensor.shape)
        view.copy_(tensor)
        views.append(view)
        start += _aligned(tensor.numel())
    return flat, views


def _flat_statistics(network: Trained) -> tuple[th.Tensor, th.Tensor]:
    """
    :param network: A network, whose batch-norm buffers become views
    :return: One tensor with all running means and variances, one with all counters of updates
    """
    flats = []
    # Mean and variance, and the counter: the names differ
    for part in (slice(0, 2), slice(2, 3)):
        keys = [(layer, name) for layer in network.norm_layers for name in list(layer._buffers)[part]]
        if not keys:
            flats.append(th.zeros(0))
            continue
        flat, views = _flattened(layer.get_buffer(name) for layer, name in keys)
        for (layer, name), view in zip(keys, views, strict=True):
            layer._buffers[name] = view
        flats.append(flat)
    return flats[0], flats[1]
