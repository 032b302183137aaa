"""
The linear layers of the fast update in PyTorch: by its own matrix products, or by oneDNN's, which PyTorch has too, where those
take half the time: on AMD's processors with AVX-512, of which MKL makes no use.
"""

import torch as th
from torch import nn

from sb3_bn_ddpg.fast.processor import mkl_leaves_avx512_alone

MIN_FEATURES_OF_ONEDNN = 64
"""With fewer inputs or outputs, what oneDNN does around a product takes longer than it saves."""


class Linear:
    """
    A linear layer that differentiates itself, by PyTorch's products.

    :param linear: The layer; its parameters have gradients, which are overwritten
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.transposed = self.weight.t()
        self.weight_grad = linear.weight.grad
        self.bias_grad = None if linear.bias is None else linear.bias.grad

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (n, inputs)
        :return: (n, outputs)
        """
        return th.mm(x, self.transposed) if self.bias is None else th.addmm(self.bias, x, self.transposed)

    def fill_gradients(self, grad: th.Tensor, x: th.Tensor) -> None:
        """
        :param grad: Gradient of the outputs
        :param x: The inputs
        """
        if self.bias_grad is not None:
            th.sum(grad, dim=0, out=self.bias_grad)
        self._fill_weight_grad(grad, x)

    def input_gradient(self, grad: th.Tensor) -> th.Tensor:
        """
        :param grad: Gradient of the outputs
        :return: Gradient of the inputs
        """
        return th.mm(grad, self.weight)

    def _fill_weight_grad(self, grad: th.Tensor, x: th.Tensor) -> None:
        th.mm(grad.t(), x, out=self.weight_grad)


class OneDNNLinear(Linear):
    """The same by oneDNN's products."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """As ``Linear.forward``."""
        return _product(x, self.weight, self.bias)

    def input_gradient(self, grad: th.Tensor) -> th.Tensor:
        """As ``Linear.input_gradient``."""
        return _product(grad, self.transposed)

    def _fill_weight_grad(self, grad: th.Tensor, x: th.Tensor) -> None:
        assert self.weight_grad is not None
        self.weight_grad.copy_(_product(grad.t(), x.t()))


def _product(a: th.Tensor, b: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    product: th.Tensor = th.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def fastest_linear(linear: nn.Linear) -> Linear:
    """
    :param linear: A linear layer
    :return: The same, by the products that take less time
    """
    weight = linear.weight
    is_known = weight.device.type == "cpu" and weight.dtype == th.float32
    if is_known and min(weight.shape) >= MIN_FEATURES_OF_ONEDNN and mkl_leaves_avx512_alone() and has_onednns_product():
        return OneDNNLinear(linear)
    return Linear(linear)


def has_onednns_product() -> bool:
    """
    :return: Whether this PyTorch has it, by the name that it has in 2.7 to 2.13
    """
    return hasattr(th.ops.mkldnn, "_linear_pointwise")
