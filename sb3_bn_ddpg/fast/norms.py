"""What follows a linear layer of the engine's networks: normalisation, ReLU, both or nothing, with the way back."""

from __future__ import annotations

import torch as th
from torch import nn

from sb3_bn_ddpg.fast.parts import BATCH, BATCH_UPDATE, RELU_FIRST, RELU_LAST, RUNNING
from sb3_bn_ddpg.networks.norm_layers import BatchRenorm1d

Norm = nn.BatchNorm1d | BatchRenorm1d | nn.LayerNorm
Moments = tuple[th.Tensor, ...]
"""Means and inverse standard deviations that a pass normalised with; of corrected ones, see :class:`Renorm`."""


class Renorm:
    """
    Batch renormalisation (`Ioffe <https://arxiv.org/abs/1702.03275>`_) as sb3-contrib has it: during the warm-up batch norm
    with the unbiased variance; then the batch's mean and variance are corrected towards the running ones, within bounds.

    :param module: The layer
    """

    def __init__(self, module: BatchRenorm1d) -> None:
        self.mean, self.var, self.count = (module.get_buffer(name) for name in ("ra_mean", "ra_var", "steps"))
        self.momentum, self.eps, self.warmup_steps = module.momentum, module.eps, module.warmup_steps
        self.rmax, self.dmax = module.rmax, module.dmax

    def forward(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor, mode: int) -> tuple[th.Tensor, Moments]:
        """
        :param x: Inputs, (n, features)
        :param weight: gamma
        :param bias: beta
        :param mode: What the pass does with the statistics, not ``RUNNING``
        :return: Outputs; means and inverse standard deviations, and of corrected ones also the distance from the batch's mean
            and how the corrected mean and variance move with the batch's variance
        """
        if int(self.count) <= self.warmup_steps:
            share = self._biased(len(x))
            mean, var = (None, None) if mode == BATCH else (self.mean, self.var)
            y, *moments = th.native_batch_norm(x, weight * share**0.5, bias, mean, var, True, self.momentum, self.eps * share)
            return y, tuple(moments)
        batch_var, batch_mean = th.var_mean(x, dim=0)
        running_std = (self.var + self.eps).sqrt()
        r = ((batch_var + self.eps).sqrt() / running_std).clamp_(1 / self.rmax, self.rmax)
        d = ((batch_mean - self.mean) / running_std).clamp_(-self.dmax, self.dmax)
        if mode == BATCH_UPDATE:
            self.mean.lerp_(batch_mean, self.momentum)
            self.var.lerp_(batch_var, self.momentum)
        std = batch_var.sqrt()
        shift = d * std / r
        centre, invstd = batch_mean - shift, (batch_var / r.square() + self.eps).rsqrt()
        # -dm/dv and dV/dv of the corrected mean m and variance V, v the batch's variance, each by its effect on the outputs
        of_mean, of_var = 0.5 * invstd * d / (r * std), 0.5 * (invstd / r).square()
        return (x - centre).mul_(invstd * weight).add_(bias), (centre, invstd, shift, of_mean, of_var)

    def backward(
        self, grad: th.Tensor, x: th.Tensor, weight: th.Tensor, moments: Moments, wanted: list[bool]
    ) -> tuple[th.Tensor | None, th.Tensor | None, th.Tensor | None]:
        """
        :param grad: Gradient of the outputs
        :param x: Inputs
        :param weight: gamma
        :param moments: Of the pass
        :param wanted: Whether the gradient of x is wanted, and those of gamma and beta
        :return: These gradients; that of a constant input is 0, as in
            :class:`~sb3_bn_ddpg.networks.norm_layers.BatchRenorm1d`
        """
        n = len(x)
        if len(moments) == 2:
            share = self._biased(n)
            eps = self.eps * share
            x_grad, weight_grad, bias_grad = th.ops.aten.native_batch_norm_backward(
                grad, x, weight * share**0.5, None, None, *moments, True, eps, wanted
            )
            if wanted[1]:
                weight_grad.mul_(share**0.5)
            # Looked at closely only where one is nearly constant
            if wanted[0] and float(moments[1].max()) > 0.999 * eps**-0.5:
                x_grad.masked_fill_(x.var(dim=0) == 0, 0.0)
            return x_grad, weight_grad, bias_grad
        centre, invstd, shift, of_mean, of_var = moments
        centred = x - centre
        bias_grad, weight_grad = grad.sum(dim=0), (grad * centred).sum(dim=0) * invstd
        x_grad = None
        if wanted[0]:
            by_variance = (of_mean * bias_grad - of_var * weight_grad).mul_(2 / (n - 1))
            x_grad = (grad - bias_grad / n).mul_(invstd).add_((centred - shift).mul_(by_variance)).mul_(weight)
            x_grad = x_grad.masked_fill_(x.var(dim=0) == 0, 0.0)
        return x_grad, weight_grad, bias_grad

    @staticmethod
    def _biased(n: int) -> float:
        """With an epsilon, and the square of gamma, times this, PyTorch's batch norm is one with the unbiased variance."""
        return (n - 1) / n


class NormReLU:
    """
    What follows a linear layer: normalisation, ReLU, both or nothing. (A module's attributes are slower than some operations.)

    :param module: The batch norm or layer norm, or None
    :param relu: Where the ReLU stands
    """

    def __init__(self, module: Norm | None, relu: int) -> None:
        self.relu, self.has_norm = relu, module is not None
        self.relu_first, self.relu_last = relu == RELU_FIRST, relu == RELU_LAST
        self.is_layer_norm = isinstance(module, nn.LayerNorm)
        if module is None:
            return
        weight = module.scale if isinstance(module, BatchRenorm1d) else module.weight
        self.weight, self.bias = weight.detach(), module.bias.detach()
        # A target network has no gradients
        self.weight_grad, self.bias_grad = weight.grad, module.bias.grad
        self.eps = module.eps
        self.mean: th.Tensor | None = None
        self.var: th.Tensor | None = None
        self.count: th.Tensor | None = None
        self.momentum = 0.0
        self.renorm = Renorm(module) if isinstance(module, BatchRenorm1d) else None
        if self.renorm is not None:
            self.mean, self.var, self.count = self.renorm.mean, self.renorm.var, self.renorm.count
            self.momentum = self.renorm.momentum
        elif isinstance(module, nn.BatchNorm1d):
            assert module.momentum is not None
            self.mean, self.var, self.momentum = module.running_mean, module.running_var, module.momentum
            self.count = module.num_batches_tracked

    def forward(self, x: th.Tensor, mode: int) -> tuple[th.Tensor, Moments | None]:
        """
        :param x: Inputs, of shape ``(n, features)``; overwritten if there is no normalisation or a ReLU before it
        :param mode: Which statistics batch norm normalises with and updates; layer norm has those of each row
        :return: Outputs, and the means and inverse standard deviations of batch or rows if they were used
        """
        moments: Moments | None = None
        if self.relu_first:
            x = x.relu_()
        if self.is_layer_norm:
            x, row_mean, invstd = th.native_layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
            moments = (row_mean, invstd)
        elif self.has_norm and self.renorm is not None and mode != RUNNING:
            x, moments = self.renorm.forward(x, self.weight, self.bias, mode)
        elif self.has_norm:
            mean, var = (None, None) if mode == BATCH else (self.mean, self.var)
            x, batch_mean, invstd = th.native_batch_norm(
                x, self.weight, self.bias, mean, var, mode != RUNNING, self.momentum, self.eps
            )
            moments = (batch_mean, invstd)
        return (x.relu_() if self.relu_last else x), moments

    def backward(
        self,
        grad: th.Tensor,
        y: th.Tensor,
        x: th.Tensor,
        moments: Moments | None,
        is_input: bool = False,
        is_batch: bool = True,
        fill: bool = True,
    ) -> th.Tensor:
        """
        Fill the gradients of the normalisation's parameters, if there are any and they are wanted.

        :param grad: Gradient of the outputs y
        :param y: What ``forward`` returned
        :param x: What it was given (after a ReLU that comes first)
        :param moments: The others it returned
        :param is_input: Whether x is the network's input, whose gradient nobody wants
        :param is_batch: Whether batch norm normalised with the statistics of the batch, which depend on x, and not with the
            running ones, which are constants
        :param fill: Whether the gradients of the parameters are wanted
        :return: Gradient of x
        """
        if self.relu_last:
            grad = th.ops.aten.threshold_backward(grad, y, 0)
        if self.has_norm:
            assert moments is not None
            wanted = [not is_input, fill, fill]
            if self.is_layer_norm:
                grad, weight_grad, bias_grad = th.ops.aten.native_layer_norm_backward(
                    grad, x, self.weight.shape, *moments, self.weight, self.bias, wanted
                )
            elif self.renorm is not None and is_batch:
                x_grad, weight_grad, bias_grad = self.renorm.backward(grad, x, self.weight, moments, wanted)
                grad = grad if x_grad is None else x_grad
            else:
                grad, weight_grad, bias_grad = th.ops.aten.native_batch_norm_backward(
                    grad, x, self.weight, self.mean, self.var, *moments, is_batch, self.eps, wanted
                )
            if fill:
                assert self.weight_grad is not None
                assert self.bias_grad is not None
                assert weight_grad is not None
                assert bias_grad is not None
                self.weight_grad.copy_(weight_grad)
                self.bias_grad.copy_(bias_grad)
        return th.ops.aten.threshold_backward(grad, x, 0) if self.relu_first else grad

    def last_gradient(self, grad: th.Tensor, x: th.Tensor, moments: Moments | None, is_batch: bool) -> th.Tensor:
        """
        For a batch norm of the network's input: the gradient of the last inputs, which depends on no other ones.

        :param grad: Gradient of the last outputs, (n, wanted)
        :param x: All inputs
        :param moments: Of the pass
        :param is_batch: Whether it normalised with the statistics of the batch
        :return: Gradient of the last inputs, of the shape of ``grad``
        """
        assert moments is not None
        assert self.mean is not None
        assert self.var is not None
        last = slice(x.shape[1] - grad.shape[1], None)
        # With running statistics there are no moments
        of_batch = tuple(moment[last] if moment.numel() else moment for moment in moments)
        if self.renorm is not None and is_batch:
            renormed = self.renorm.backward(grad, x[:, last], self.weight[last], of_batch, [True, False, False])[0]
            assert renormed is not None
            return renormed
        gradient: th.Tensor = th.ops.aten.native_batch_norm_backward(
            grad,
            x[:, last].contiguous(),
            self.weight[last],
            self.mean[last],
            self.var[last],
            *of_batch,
            is_batch,
            self.eps,
            [True, False, False],
        )[0]
        return gradient
