"""The layers of the fast update: a sequence of linear layers with a normalisation and ReLU that differentiates itself."""

from __future__ import annotations

import torch as th
from torch import nn

from sb3_bn_ddpg.fast.norms import Moments, Norm, NormReLU
from sb3_bn_ddpg.fast.parts import BATCH_UPDATE, NO_RELU, RELU_FIRST, RELU_LAST
from sb3_bn_ddpg.fast.step import UnsupportedError
from sb3_bn_ddpg.fast.torch_linear import fastest_linear
from sb3_bn_ddpg.networks.norm_layers import BatchNorm1d, BatchRenorm1d

Layer = tuple[nn.Linear, Norm | None, int]
"""A linear layer, the normalisation behind it or None, and where the ReLU stands: of ``parts.NO_RELU`` and so on."""
MlpArguments = tuple[Norm | None, list[Layer]]


class Memory:
    """
    What a forward pass leaves for its way back, which clears it.

    :ivar inputs: The input of the network as it came, then of each linear layer, (n, features) each
    :ivar linear_outputs: What each linear layer returned; after the ReLU, where that comes before the normalisation
    :ivar moments: Of the input's normalisation and of each layer's: means and inverse standard deviations that it calculated
    :ivar output: The output of the network
    """

    __slots__ = ("inputs", "linear_outputs", "moments", "output")

    inputs: list[th.Tensor]
    linear_outputs: list[th.Tensor]
    moments: list[Moments | None]
    output: th.Tensor

    def clear(self) -> None:
        """Let go of what is no longer needed: the next pass finds its memory in the processor's cache."""
        self.inputs, self.linear_outputs, self.moments = [], [], []


class Mlp:
    """
    A sequence of linear layers, normalised or not, with ReLUs between them, that differentiates itself. It may be empty.

    :param input_norm: Normalisation of the input, or None
    :param layers: Linear layers with what follows each
    """

    def __init__(self, input_norm: Norm | None, layers: list[Layer]) -> None:
        self.input_norm = None if input_norm is None else NormReLU(input_norm, NO_RELU)
        self.followers = [NormReLU(norm, relu) for _, norm, relu in layers]
        self.linears = [fastest_linear(linear) for linear, _, _ in layers]
        norms = [norm for norm in (self.input_norm, *self.followers) if norm is not None and norm.has_norm]
        self.counts = [norm.count for norm in norms if norm.count is not None]

    @property
    def is_empty(self) -> bool:
        """Whether its output is its input."""
        return self.input_norm is None and not self.linears

    def forward(self, memory: Memory, x: th.Tensor, mode: int) -> th.Tensor:
        """
        :param memory: Keeps what the way back needs
        :param x: Inputs, of shape ``(n, features)``
        :param mode: Which statistics to normalise with and to update
        :return: The output
        """
        inputs, linear_outputs, moments = [x], [], None
        if self.input_norm is not None:
            x, moments = self.input_norm.forward(x, mode)
        all_moments = [moments]
        for linear, follower in zip(self.linears, self.followers, strict=True):
            inputs.append(x)
            x = linear.forward(x)
            linear_outputs.append(x)
            x, moments = follower.forward(x, mode)
            all_moments.append(moments)
        memory.inputs, memory.linear_outputs, memory.moments, memory.output = inputs, linear_outputs, all_moments, x
        self._count(mode)
        return x

    def infer(self, x: th.Tensor, mode: int) -> th.Tensor:
        """
        A forward pass of which nothing is kept, so that the next layer can use the memory again.

        :param x: Inputs, of shape ``(n, features)``
        :param mode: Which statistics to normalise with and to update
        :return: The output
        """
        if self.input_norm is not None:
            x, _ = self.input_norm.forward(x, mode)
        for linear, follower in zip(self.linears, self.followers, strict=True):
            x, _ = follower.forward(linear.forward(x), mode)
        self._count(mode)
        return x

    def _count(self, mode: int) -> None:
        if mode == BATCH_UPDATE and self.counts:
            th._foreach_add_(self.counts, 1)

    def backward(self, memory: Memory, grad: th.Tensor, n_wanted: int) -> th.Tensor:
        """
        Fill the gradients of all parameters.

        :param memory: Of a forward pass, on batch statistics where there is batch norm
        :param grad: Gradient of its output
        :param n_wanted: How many of the inputs, the first ones, have a gradient that is wanted; none of a normalised input
        :return: Gradient of these inputs
        """
        # The output of a layer is the input of the next
        outputs = [*memory.inputs[2:], memory.output]
        for index, linear in reversed(list(enumerate(self.linears))):
            grad = self.followers[index].backward(
                grad, outputs[index], memory.linear_outputs[index], memory.moments[index + 1]
            )
            linear.fill_gradients(grad, memory.inputs[index + 1])
            if index or self.input_norm is not None:
                grad = linear.input_gradient(grad)
            elif n_wanted:
                grad = th.mm(grad, linear.weight[:, :n_wanted])
        if self.input_norm is not None:
            x = memory.inputs[0]
            # (nothing reads the output of a normalisation without a ReLU)
            grad = self.input_norm.backward(grad, x, x, memory.moments[0], is_input=True)
        memory.clear()
        return grad

    def last_inputs_gradient(self, memory: Memory, grad: th.Tensor, n_wanted: int, is_batch: bool) -> th.Tensor:
        """
        The gradient of the last inputs alone.

        :param memory: Of a forward pass
        :param grad: Gradient of its output
        :param n_wanted: How many inputs
        :param is_batch: Whether the pass normalised with the statistics of the batch
        :return: Gradient of these inputs
        """
        outputs = [*memory.inputs[2:], memory.output]
        for index, linear in reversed(list(enumerate(self.linears))):
            linear_output, moments = memory.linear_outputs[index], memory.moments[index + 1]
            grad = self.followers[index].backward(grad, outputs[index], linear_output, moments, is_batch=is_batch, fill=False)
            grad = linear.input_gradient(grad) if index else th.mm(grad, linear.weight[:, -n_wanted:])
        if self.input_norm is not None:
            grad = self.input_norm.last_gradient(grad, memory.inputs[0], memory.moments[0], is_batch)
        memory.clear()
        return grad


def parse_layers(modules: list[nn.Module]) -> MlpArguments:
    """
    :param modules: Layers in order, left as they are
    :return: The arguments of :class:`Mlp`
    :raises UnsupportedError: if there is a layer that it does not know
    """
    for module in modules:
        if type(module) not in (nn.Linear, BatchNorm1d, nn.BatchNorm1d, BatchRenorm1d, nn.LayerNorm, nn.ReLU):
            raise UnsupportedError(f"there is a layer {type(module).__name__}")
        if isinstance(module, BatchRenorm1d):
            if not module.affine:
                raise UnsupportedError(f"the layer {module} has no gamma or beta")
        elif isinstance(module, Norm) and (module.weight is None or module.bias is None):
            raise UnsupportedError(f"the layer {module} has no gamma or beta")
        if isinstance(module, nn.BatchNorm1d) and (module.running_mean is None or module.momentum is None):
            raise UnsupportedError(f"the layer {module} has no running averages")
    rest = list(modules)
    input_norm: Norm | None = None
    if rest and isinstance(first := rest[0], Norm):
        input_norm, rest = first, rest[1:]
    layers: list[Layer] = []
    while rest:
        linear, *rest = rest
        if not isinstance(linear, nn.Linear):
            raise UnsupportedError(f"a layer {type(linear).__name__} stands where a Linear is expected")
        n_followers = next((index for index, module in enumerate(rest) if isinstance(module, nn.Linear)), len(rest))
        followers, rest = rest[:n_followers], rest[n_followers:]
        norms = [module for module in followers if isinstance(module, Norm)]
        relus = [index for index, module in enumerate(followers) if isinstance(module, nn.ReLU)]
        if len(norms) > 1 or len(relus) > 1:
            raise UnsupportedError("two normalisations or two ReLUs follow a layer")
        if rest and not relus:
            raise UnsupportedError("no ReLU follows a layer")
        relu = NO_RELU if not relus else RELU_FIRST if norms and relus[0] == 0 else RELU_LAST
        layers.append((linear, norms[0] if norms else None, relu))
    return input_norm, layers
