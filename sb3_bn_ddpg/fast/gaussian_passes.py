"""Passes of networks that say mean and standard deviation of a Gaussian, written on the engine's operations."""

from typing import Any

from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.parts import GaussianMemory, GaussianParts


def gaussian(networks: GaussianParts, memory: GaussianMemory, x: Any, mode: int, has_way_back: bool) -> tuple[Any, Any]:
    """
    :param networks: The networks
    :param memory: For their pass
    :param x: Inputs, (n, features)
    :param mode: What the pass does with batch norm's statistics
    :param has_way_back: Whether they are differentiated
    :return: Mean of the Gaussian and logarithm of its standard deviation, not clamped yet, (n, outputs) each
    """
    if has_way_back:
        latent = ops.forward(networks.latent, memory.latent, x, mode)
        mean = ops.forward(networks.mean, memory.mean, latent, mode)
        return mean, ops.forward(networks.log_std, memory.log_std, latent, mode)
    latent = ops.infer(networks.latent, memory.latent, x, mode)
    return ops.infer(networks.mean, memory.mean, latent, mode), ops.infer(networks.log_std, memory.log_std, latent, mode)


def gaussian_backward(networks: GaussianParts, memory: GaussianMemory, x: Any, mean_grad: Any, log_std_grad: Any) -> None:
    """
    Fill the gradients of all parameters, after :func:`gaussian`.

    :param networks: The networks
    :param memory: Of the pass
    :param x: Its inputs
    :param mean_grad: Gradient of the mean, (n, outputs)
    :param log_std_grad: That of the logarithm of the standard deviation, likewise
    """
    latent = ops.output(networks.latent, memory.latent, len(x))
    latent_grad = ops.backward(networks.mean, memory.mean, latent, mean_grad, networks.n_differentiated)
    std_latent_grad = ops.backward(networks.log_std, memory.log_std, latent, log_std_grad, networks.n_differentiated)
    if networks.n_differentiated > 0:
        ops.backward(networks.latent, memory.latent, x, ops.add(latent_grad, std_latent_grad, False), 0)
