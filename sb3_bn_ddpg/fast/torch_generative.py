"""
Operations in PyTorch for a generative model of actions, and for choosing among the actions that it generates.
:mod:`sb3_bn_ddpg.fast.torch_operations` offers them with all others.
"""

import torch as th

from sb3_bn_ddpg.networks.generative import LATENT_LIMIT, LATENT_LOG_STD_MAX, LATENT_LOG_STD_MIN


def latents(means: th.Tensor, log_std: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    :param means: Means of the encoder's Gaussian, (n, latent_dim)
    :param log_std: Logarithms of its standard deviations, likewise, not clamped yet
    :param noise: Standard normal noise, likewise
    :return: The latent vectors that it makes
    """
    return th.addcmul(means, log_std.clamp(LATENT_LOG_STD_MIN, LATENT_LOG_STD_MAX).exp(), noise)


def reconstruction(
    decoded: th.Tensor,
    actions: th.Tensor,
    means: th.Tensor,
    log_std: th.Tensor,
    reports: list[th.Tensor | None],
    place: int,
) -> th.Tensor:
    """
    The loss of the generative model (:func:`~sb3_bn_ddpg.offline.losses.vae_loss`).

    :param decoded: Decoded actions, (n, action_dim)
    :param actions: The data's actions, likewise
    :param means: As of :func:`latents`
    :param log_std: As of :func:`latents`
    :param reports: Takes the loss
    :param place: Where it goes
    :return: Gradient of the decoded actions
    """
    distances = decoded - actions
    clamped = log_std.clamp(LATENT_LOG_STD_MIN, LATENT_LOG_STD_MAX)
    divergence = (2 * clamped).exp_().add_(means.square()).sub_(2 * clamped).sub_(1)
    squares = distances.square().mean(dim=1, keepdim=True)
    reports[place] = squares.add_(divergence.mean(dim=1, keepdim=True), alpha=0.25)
    return distances.mul_(2 / distances.numel())


def latents_backward(
    inputs_grad: th.Tensor, means: th.Tensor, log_std: th.Tensor, noise: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    The gradient of the generative model's loss, after :func:`latents`.

    :param inputs_grad: That of the decoder's inputs, of which the latent vectors are the last columns
    :param means: As of ``latents``
    :param log_std: As of ``latents``
    :param noise: As of ``latents``
    :return: Gradients of means and log_std
    """
    grad = inputs_grad[:, -means.shape[1] :]
    share = 0.5 / means.numel()
    clamped = log_std.clamp(LATENT_LOG_STD_MIN, LATENT_LOG_STD_MAX)
    std = clamped.exp()
    log_std_grad = (grad * std).mul_(noise).add_(std.square().sub_(1), alpha=share)
    return th.add(grad, means, alpha=share), log_std_grad.mul_(clamped == log_std)


def clipped_latents(noise: th.Tensor) -> th.Tensor:
    """
    :param noise: Standard normal noise, (n, latent_dim)
    :return: The latent vectors from which actions are generated
    """
    return noise.clamp(-LATENT_LIMIT, LATENT_LIMIT)


def repeated(x: th.Tensor, n: int) -> th.Tensor:
    """
    :param x: Rows
    :param n: How many of each
    :return: Each row n times, one after the other
    """
    # (repeat_interleave asks a GPU for a size, which a recording of a CUDA graph cannot do, in some versions of PyTorch)
    return x.unsqueeze(1).expand(-1, n, -1).reshape(-1, x.shape[1])


def perturbed(actions: th.Tensor, perturbations: th.Tensor, phi: float) -> th.Tensor:
    """
    :param actions: Generated actions, (n, action_dim)
    :param perturbations: Outputs of a tanh, likewise
    :param phi: What they are multiplied by
    :return: The sums, clipped to [-1, 1]
    """
    return th.add(actions, perturbations, alpha=phi).clamp_(-1, 1)


def perturbed_backward(grad: th.Tensor, actions: th.Tensor, perturbations: th.Tensor, phi: float) -> th.Tensor:
    """
    :param grad: Gradient of what :func:`perturbed` returned, which is overwritten
    :param actions: As of ``perturbed``
    :param perturbations: As of ``perturbed``
    :param phi: As of ``perturbed``
    :return: Gradient of the perturbations: none where the sum was clipped
    """
    return grad.mul_(phi).mul_(th.add(actions, perturbations, alpha=phi).abs_() <= 1)


def larger(largest: th.Tensor, values: th.Tensor, is_first: bool) -> th.Tensor:
    """
    :param largest: The largest values so far, or anything of their shape
    :param values: Further ones
    :param is_first: Whether there were none so far
    :return: The larger ones (in Numba's in the memory of ``largest``)
    """
    return values if is_first else th.maximum(largest, values)


def best_values(least: th.Tensor, largest: th.Tensor, lmbda: float, n_actions: int) -> th.Tensor:
    """
    The values of :func:`~sb3_bn_ddpg.offline.losses.soft_clipped_value`.

    :param least: The smallest of all critics' values, those of a state after each other, (n n_actions, 1)
    :param largest: The largest, likewise
    :param lmbda: Weight of the smallest, in [0, 1]
    :param n_actions: Number of actions in each state
    :return: The largest mixture in each state, (n, 1)
    """
    return (lmbda * least + (1 - lmbda) * largest).reshape(-1, n_actions).amax(dim=1, keepdim=True)
