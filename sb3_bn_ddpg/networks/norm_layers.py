"""
Batch-norm layers that a forward pass tells what to do with their statistics.

PyTorch's layers ask their module's mode, which is one for all threads and which any module that holds them may set. These ask
the pass that the calling thread is in. Outside of such a pass they normalise with their running statistics and update nothing,
whatever mode they are in.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm
from sb3_contrib.common.torch_layers import BatchRenorm1d as ContribBatchRenorm1d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Pass(threading.local):
    """
    What the pass that this thread is in does.

    :ivar by_batch: The layers that normalise with the statistics of the batch
    :ivar updated: Those of them that also update their running statistics by it
    """

    by_batch: Collection[nn.Module] = ()
    updated: Collection[nn.Module] = ()


_pass = _Pass()


@contextmanager
def batch_statistics(by_batch: Collection[nn.Module], updated: Collection[nn.Module]) -> Iterator[None]:
    """
    Let layers normalise with the statistics of the batch, in the calling thread and within the ``with`` statement only.

    :param by_batch: The layers that do; all others normalise with their running statistics
    :param updated: Those of them that also update their running statistics
    """
    outer = _pass.by_batch, _pass.updated
    _pass.by_batch, _pass.updated = by_batch, updated
    try:
        yield
    finally:
        _pass.by_batch, _pass.updated = outer


def _contains(layers: Collection[nn.Module], layer: nn.Module) -> bool:
    return any(layer is other for other in layers)


class PassNorm(nn.Module):
    """
    Put before a class of batch norm: its ``training`` is what the pass says, not the mode that was set.

    Subclasses of PyTorch's and sb3-contrib's layers decide by ``training`` in ``forward``, so this is all they need.
    """

    _is_scratch = False

    @property
    def training(self) -> bool:  # an attribute in nn.Module
        """Whether this thread's pass normalises with the statistics of the batch here."""
        return self._is_scratch or _contains(_pass.by_batch, self)

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["training"] = mode  # for mode_of

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Inputs
        :return: Normalised ones, of the same shape
        """
        layer = self
        if self.training and not self._is_scratch and not _contains(_pass.updated, self):
            # Updates a copy's buffers, which are thrown away: this layer's may be in use by another thread, or saved by
            # autograd for a backward pass
            layer = object.__new__(type(self))
            buffers = {name: None if buffer is None else buffer.clone() for name, buffer in self._buffers.items()}
            layer.__dict__.update(self.__dict__, _buffers=buffers, _is_scratch=True)
        y: th.Tensor = super(PassNorm, layer).forward(x)
        return y

    def __prepare_scriptable__(self) -> nn.Module:
        """For ``torch.jit.script``, which knows no passes: the layer as it is outside of them."""
        if (plain_class := type(self).__mro__[2]) is PassNorm:
            return self  # of another forward, which TorchScript may refuse but must not lose
        plain: nn.Module = object.__new__(plain_class)
        plain.__dict__.update(self.__dict__, training=False)
        return plain


class BatchNorm1d(PassNorm, nn.BatchNorm1d):
    """PyTorch's, of which the pass says which statistics it uses."""


class BatchNorm2d(PassNorm, nn.BatchNorm2d):
    """PyTorch's, of which the pass says which statistics it uses."""


class BatchRenorm1d(PassNorm, ContribBatchRenorm1d):
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
        return super().forward(x)


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


_classes: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}
"""A class of batch norm, and that class with :class:`PassNorm` before it."""


def keeps_statistics(module: nn.Module) -> bool:
    """
    :param module: Any module
    :return: Whether it is batch norm or batch renormalisation with running statistics
    """
    return isinstance(module, BatchRenorm) or (isinstance(module, _BatchNorm) and module.track_running_stats)


def mode_of(module: nn.Module) -> bool:
    """
    :param module: Any module
    :return: The mode that was set, which for a :class:`PassNorm` is not its ``training``
    """
    mode: bool = module.__dict__["training"] if isinstance(module, PassNorm) else module.training
    return mode


def is_in_mode(network: nn.Module, mode: bool) -> bool:
    """
    :param network: Any module
    :param mode: A mode
    :return: Whether it was set, last, on the module and all modules in it
    """
    # Module.modules() takes ten times as long, and each step of an environment asks
    modules: list[nn.Module | None] = [network]
    while modules:
        module = modules.pop()
        if module is None:
            continue
        attributes = module.__dict__
        if attributes.get("training") is not mode:
            return False
        modules += attributes["_modules"].values()
    return True


def follow_the_pass(layer: nn.Module) -> None:
    """
    Let a layer of any class, as a user's features extractor may have it, follow the pass: its class becomes a subclass of its
    own, of the same name.

    :param layer: A layer for which :func:`keeps_statistics` holds
    """
    if not isinstance(layer, PassNorm):
        layer.__class__ = _pass_class(type(layer))


def _pass_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _classes:
        # No module has this class under its name, so that copies and pickles make it anew from the one it is made of
        namespace = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": _reduce}
        _classes[kind] = type(kind.__name__, (PassNorm, kind), namespace)
    return _classes[kind]


def _reduce(layer: nn.Module, _protocol: Any) -> tuple[Callable[..., nn.Module], tuple[type[nn.Module]], dict[str, Any]]:
    return _restored, (type(layer).__mro__[2],), layer.__dict__


def _restored(kind: type[nn.Module]) -> nn.Module:
    layer: nn.Module = object.__new__(kind)
    follow_the_pass(layer)
    return layer
