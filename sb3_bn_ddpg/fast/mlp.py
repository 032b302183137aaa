"""The layers of the fast update: a sequence of linear layers with a normalisation and ReLU that differentiates itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch as th
from torch import nn

from sb3_bn_ddpg.fast.step import UnsupportedError
from sb3_bn_ddpg.networks.norm_layers import BatchNorm1d
from sb3_bn_ddpg.networks.statistics import Statistics

Norm = nn.BatchNorm1d | nn.LayerNorm
MlpArguments = tuple[Norm | None, list[tuple[nn.Linear, Norm | None]], bool]


@dataclass
class Pass:
    """What a forward pass leaves for its backward pass."""

    inputs: list[th.Tensor]
    """The input of the network as it came, then of each linear layer, (n, features) each"""
    linear_outputs: list[th.Tensor]
    moments: list[tuple[th.Tensor, th.Tensor] | None]
    """Of the input's normalisation and of each layer's: means and inverse standard deviations that it calculated"""
    output: th.Tensor


class NormReLU:
    """
    What follows a linear layer: normalisation, ReLU, both or nothing. (A module's attributes are slower than some operations.)

    :param module: The batch norm or layer norm, or None
    :param relu: Whether a ReLU follows
    """

    def __init__(self, module: Norm | None, relu: bool) -> None:
        self.relu, self.has_norm = relu, module is not None
        self.is_layer_norm = isinstance(module, nn.LayerNorm)
        if module is None:
            return
        self.weight, self.bias = module.weight.detach(), module.bias.detach()
        # A target network has no gradients
        self.weight_grad, self.bias_grad = module.weight.grad, module.bias.grad
        self.eps = module.eps
        self.mean: th.Tensor | None = None
        self.var: th.Tensor | None = None
        self.momentum = 0.0
        if isinstance(module, nn.BatchNorm1d):
            assert module.momentum is not None
            self.mean, self.var, self.momentum = module.running_mean, module.running_var, module.momentum

    def forward(self, x: th.Tensor, statistics: Statistics) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor] | None]:
        """
        :param x: Inputs, of shape ``(n, features)``; overwritten if there is no normalisation
        :param statistics: Which statistics batch norm normalises with and updates; layer norm has those of each row
        :return: Outputs, and the means and inverse standard deviations of batch or rows if they were used
        """
        moments = None
        if self.is_layer_norm:
            x, row_mean, invstd = th.native_layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
            moments = (row_mean, invstd)
        elif self.has_norm:
            is_batch = statistics != "running"
            mean, var = (None, None) if statistics == "batch" else (self.mean, self.var)
            x, batch_mean, invstd = th.native_batch_norm(
                x, self.weight, self.bias, mean, var, is_batch, self.momentum, self.eps
            )
            moments = (batch_mean, invstd)
        return (x.relu_() if self.relu else x), moments

    def backward(
        self,
        grad: th.Tensor,
        y: th.Tensor,
        x: th.Tensor,
        moments: tuple[th.Tensor, th.Tensor] | None,
        is_input: bool = False,
        is_batch: bool = True,
        fill: bool = True,
    ) -> th.Tensor:
        """
        Fill the gradients of the normalisation's parameters, if there are any and they are wanted.

        :param grad: Gradient of the outputs y
        :param y: What ``forward`` returned
        :param x: What it was given
        :param moments: The others it returned
        :param is_input: Whether x is the network's input, whose gradient nobody wants
        :param is_batch: Whether batch norm normalised with the statistics of the batch, which depend on x, and not with the
            running ones, which are constants
        :param fill: Whether the gradients of the parameters are wanted
        :return: Gradient of x
        """
        if self.relu:
            grad = th.ops.aten.threshold_backward(grad, y, 0)
        if self.has_norm:
            assert moments is not None
            wanted = [not is_input, fill, fill]
            if self.is_layer_norm:
                grad, weight_grad, bias_grad = th.ops.aten.native_layer_norm_backward(
                    grad, x, self.weight.shape, *moments, self.weight, self.bias, wanted
                )
            else:
                grad, weight_grad, bias_grad = th.ops.aten.native_batch_norm_backward(
                    grad, x, self.weight, self.mean, self.var, *moments, is_batch, self.eps, wanted
                )
            if fill:
                assert self.weight_grad is not None
                assert self.bias_grad is not None
                self.weight_grad.copy_(weight_grad)
                self.bias_grad.copy_(bias_grad)
        return grad


class Mlp:
    """
    A sequence of linear layers, normalised or not, with ReLUs between them, that differentiates itself.

    :param input_norm: Normalisation of the input, or None
    :param layers: Linear layers and the normalisation behind each, or None
    :param has_output: Whether the last layer is the output: no normalisation, no ReLU
    """

    def __init__(self, input_norm: Norm | None, layers: list[tuple[nn.Linear, Norm | None]], has_output: bool) -> None:
        self.input_norm = None if input_norm is None else NormReLU(input_norm, False)
        n_hidden = len(layers) - has_output
        self.followers = [NormReLU(norm, index < n_hidden) for index, (_, norm) in enumerate(layers)]
        self.weights = [linear.weight.detach() for linear, _ in layers]
        self.transposed = [weight.t() for weight in self.weights]
        self.weight_grads = [linear.weight.grad for linear, _ in layers]
        self.biases = [None if linear.bias is None else linear.bias.detach() for linear, _ in layers]
        self.bias_grads = [None if linear.bias is None else linear.bias.grad for linear, _ in layers]

    def forward(self, x: th.Tensor, statistics: Statistics) -> Pass:
        """
        :param x: Inputs, of shape ``(n, features)``
        :param statistics: Which statistics to normalise with and to update
        :return: The output and what the backward pass needs
        """
        inputs, linear_outputs, moments = [x], [], None
        if self.input_norm is not None:
            x, moments = self.input_norm.forward(x, statistics)
        all_moments = [moments]
        for weight, bias, follower in zip(self.transposed, self.biases, self.followers, strict=True):
            inputs.append(x)
            x = th.mm(x, weight) if bias is None else th.addmm(bias, x, weight)
            linear_outputs.append(x)
            x, moments = follower.forward(x, statistics)
            all_moments.append(moments)
        return Pass(inputs, linear_outputs, all_moments, x)

    def backward(self, forward: Pass, grad: th.Tensor, columns: slice | None = None) -> th.Tensor:
        """
        Fill the gradients of all parameters.

        :param forward: A forward pass, on batch statistics where there is batch norm
        :param grad: Gradient of its output
        :param columns: Inputs whose gradient is wanted, if any; not together with a normalised input
        :return: Gradient of these inputs
        """
        # The output of a layer is the input of the next
        outputs = [*forward.inputs[2:], forward.output]
        for index in reversed(range(len(self.weights))):
            grad = self.followers[index].backward(
                grad, outputs[index], forward.linear_outputs[index], forward.moments[index + 1]
            )
            bias_grad = self.bias_grads[index]
            if bias_grad is not None:
                th.sum(grad, dim=0, out=bias_grad)
            th.mm(grad.t(), forward.inputs[index + 1], out=self.weight_grads[index])
            if index or self.input_norm is not None:
                grad = th.mm(grad, self.weights[index])
            elif columns is not None:
                grad = th.mm(grad, self.weights[index][:, columns])
        if self.input_norm is not None:
            x = forward.inputs[0]
            # (nothing reads the output of a normalisation without a ReLU)
            grad = self.input_norm.backward(grad, x, x, forward.moments[0], is_input=True)
        return grad

    def input_gradient(self, forward: Pass, grad: th.Tensor, columns: slice, is_batch: bool) -> th.Tensor:
        """
        The gradient of the input alone, for a sequence that does not normalise its input.

        :param forward: A forward pass
        :param grad: Gradient of its output
        :param columns: Inputs whose gradient is wanted
        :param is_batch: Whether the pass normalised with the statistics of the batch
        :return: Gradient of these inputs
        """
        outputs = [*forward.inputs[2:], forward.output]
        for index in reversed(range(len(self.weights))):
            linear_output, moments = forward.linear_outputs[index], forward.moments[index + 1]
            grad = self.followers[index].backward(grad, outputs[index], linear_output, moments, is_batch=is_batch, fill=False)
            grad = th.mm(grad, self.weights[index] if index else self.weights[index][:, columns])
        return grad


def parse_layers(modules: list[nn.Module]) -> MlpArguments:
    """
    :param modules: Layers in order
    :return: The arguments of :class:`Mlp`
    :raises UnsupportedError: if there is a layer that it does not know
    """
    for module in modules:
        if type(module) not in (nn.Linear, BatchNorm1d, nn.BatchNorm1d, nn.LayerNorm, nn.ReLU):
            raise UnsupportedError(f"there is a layer {type(module).__name__}")
        if isinstance(module, Norm) and (module.weight is None or module.bias is None):
            raise UnsupportedError(f"the layer {module} has no gamma or beta")
        if isinstance(module, nn.BatchNorm1d) and (module.running_mean is None or module.momentum is None):
            raise UnsupportedError(f"the layer {module} has no running averages")

    def pop_norm() -> Norm | None:
        if modules and isinstance(norm := modules[0], Norm):
            del modules[0]
            return norm
        return None

    input_norm, has_output = pop_norm(), False
    layers: list[tuple[nn.Linear, Norm | None]] = []
    while modules:
        linear = modules.pop(0)
        if not isinstance(linear, nn.Linear):
            raise UnsupportedError(f"a layer {type(linear).__name__} stands where a Linear is expected")
        layers.append((linear, pop_norm()))
        has_output = not modules
        if modules and not isinstance(modules.pop(0), nn.ReLU):
            raise UnsupportedError("no ReLU follows a layer")
    return input_norm, layers, has_output
