"""
The gradient step of ``bcq_step.py`` once more, written on the engine's operations (see ``deterministic/engine_step.py``).
``ops`` is PyTorch's set of operations here, and Numba's where the step is compiled.
"""

from functools import cache
from typing import Any, NamedTuple

from sb3_bn_ddpg.critic_step.engine_step import fit, gradient_of_actions, smallest_q, target_outputs
from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.gaussian_passes import gaussian, gaussian_backward
from sb3_bn_ddpg.fast.parts import (
    MODES,
    RUNNING,
    SYNCS,
    CriticChoices,
    EngineStep,
    GeneratorMemory,
    GeneratorParts,
    Parts,
    Transitions,
    unsupported_modes,
)
from sb3_bn_ddpg.networks.generative import ActionVAE, PerturbationActor
from sb3_bn_ddpg.networks.statistics import PassStatistics


class Choices(NamedTuple):
    """
    :param critics: Of the critics' half
    :param actor_loss_actor: What the passes of perturbation and generative model in their losses do with batch norm's
        statistics
    :param actor_loss_critic: The first Q-network in the perturbation's loss
    :param sync: What the targets' running statistics do after an update
    :param lmbda: Weight of the smallest value in the target, in [0, 1]
    :param phi: Largest perturbation, >= 0
    :param target_phi: That of the target network
    :param n_actions: Number of actions in each next state, >= 1
    """

    critics: CriticChoices
    actor_loss_actor: int
    actor_loss_critic: int
    sync: int
    lmbda: float
    phi: float
    target_phi: float
    n_actions: int


@cache
def step_on_engine(statistics: PassStatistics, lmbda: float, phi: float, target_phi: float, n_actions: int) -> EngineStep:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param lmbda: Weight of the smallest value in the target, in [0, 1]
    :param phi: Largest perturbation, >= 0
    :param target_phi: That of the target network
    :param n_actions: Number of actions in each next state, >= 1
    :return: The step
    """
    choices = Choices(
        CriticChoices.of(statistics, has_targets=True),
        MODES[statistics.actor_loss_actor],
        MODES[statistics.actor_loss_critic],
        SYNCS[statistics.target_sync],
        lmbda,
        phi,
        target_phi,
        n_actions,
    )
    return EngineStep(
        gradient_step,
        choices,
        always=("vae_loss",),
        actor_class=PerturbationActor,
        auxiliary_class=ActionVAE,
        n_repeats=n_actions,
        unsupported=unsupported_modes(statistics),
    )


def gradient_step(
    parts: Parts,
    transitions: Transitions,
    noise: Any,
    reports: Any,
    rates: Any,
    tau: float,
    update_actor: bool,
    update_targets: bool,
    choices: Choices,
) -> None:
    """
    Fit the generative model to the data's actions, the critics to the best of some generated ones in the next states; ascend
    the first critic's value by the perturbation; move the target networks.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param noise: Standard normal noise, ((n_actions + 2) n, latent_dim): of the encoder, of the actions in each next state, of
        one action in each state
    :param reports: Takes what is reported
    :param rates: What the steps of the optimizers are made with, for Numba's operations: the actor's, the critics', none, the
        generative model's
    :param tau: Polyak coefficient of the target networks, in [0, 1]
    :param update_actor: Without effect: the perturbation is updated at each step
    :param update_targets: Whether to move the target networks
    :param choices: Statistics of the passes, and more
    """
    obs, n = transitions.obs, len(transitions.obs)
    generator, memory, place = parts.auxiliary, parts.auxiliary_memory, 3 * len(parts.critics) + 1
    fit_generator(generator, memory, transitions, noise[:n], reports, place, choices.actor_loss_actor)
    ops.adam(parts.auxiliary_storage, rates[3])

    # The best of the generated actions in each next state. What repeats the rewards is memory for its values
    wide, next_obs = memory.wide, ops.repeated(transitions.next_obs, choices.n_actions)
    generated = generated_actions(generator.decoder, wide.decoder, next_obs, noise[n:-n], wide.decoder_inputs)
    inputs = ops.join(next_obs, generated, wide.actor_inputs)
    perturbations = ops.squash(ops.infer(parts.actor_target, wide.actor, inputs, choices.critics.target))
    next_actions = ops.perturbed(generated, perturbations, choices.target_phi)
    least = ops.repeated(transitions.rewards, choices.n_actions)
    largest = ops.repeated(transitions.rewards, choices.n_actions)
    for k in range(len(parts.critics)):
        q = target_outputs(parts.critic_targets[k], wide.critic, next_obs, next_actions, choices.critics.target)
        least, largest = ops.smaller(least, q, k == 0), ops.larger(largest, q, k == 0)
    next_q = ops.best_values(least, largest, choices.lmbda, choices.n_actions)
    y = ops.td_targets(transitions.rewards, transitions.discounts, next_q, transitions.rewards[:0])
    fit(parts, parts.memories, obs, transitions.actions, y, reports, rates[1], choices.critics)

    # The perturbation's loss -mean Q1(s, a)
    generated = generated_actions(generator.decoder, memory.decoder, obs, noise[-n:], memory.decoder_inputs)
    inputs = ops.join(obs, generated, memory.actor_inputs)
    perturbations = ops.squash(ops.forward(parts.actor, parts.actor_memory, inputs, choices.actor_loss_actor))
    actions = ops.perturbed(generated, perturbations, choices.phi)
    q = smallest_q(parts, transitions, actions, 1, choices.actor_loss_critic)
    ops.report(reports, place + 1, q, -1)
    grad = gradient_of_actions(parts, actions, q, 1, choices.actor_loss_critic)
    grad = ops.perturbed_backward(grad, generated, perturbations, choices.phi)
    ops.backward(parts.actor, parts.actor_memory, inputs, ops.squash_backward(grad, perturbations), 0)
    ops.adam(parts.actor_storage, rates[0])
    if update_targets:
        ops.follow(parts.actor_storage, tau, choices.sync)
        ops.follow(parts.critic_storage, tau, choices.sync)


def fit_generator(
    generator: GeneratorParts,
    memory: GeneratorMemory,
    transitions: Transitions,
    noise: Any,
    reports: Any,
    place: int,
    mode: int,
) -> None:
    """
    Fill the gradients of the generative model's loss.

    :param generator: The model
    :param memory: For its passes
    :param transitions: A minibatch
    :param noise: Standard normal noise, (n, latent_dim)
    :param reports: Takes the loss
    :param place: Where it goes
    :param mode: What the passes do with batch norm's statistics
    """
    inputs = ops.join(transitions.obs, transitions.actions, memory.encoder_inputs)
    means, log_std = gaussian(generator.encoder, memory.encoder, inputs, mode, True)
    decoder_inputs = ops.join(transitions.obs, ops.latents(means, log_std, noise), memory.decoder_inputs)
    decoded = ops.squash(ops.forward(generator.decoder, memory.decoder, decoder_inputs, mode))

    grad = ops.squash_backward(ops.reconstruction(decoded, transitions.actions, means, log_std, reports, place), decoded)
    grad = ops.backward(generator.decoder, memory.decoder, decoder_inputs, grad, decoder_inputs.shape[1])
    means_grad, log_std_grad = ops.latents_backward(grad, means, log_std, noise)
    gaussian_backward(generator.encoder, memory.encoder, inputs, means_grad, log_std_grad)


def generated_actions(decoder: Any, memory: Any, obs: Any, noise: Any, inputs: Any) -> Any:
    """
    :param decoder: The decoder
    :param memory: For its pass, which normalises with running statistics
    :param obs: Observations, (n, features)
    :param noise: Standard normal noise, (n, latent_dim), which is clipped
    :param inputs: Memory for what goes into the decoder
    :return: Actions as in the data, (n, action_dim)
    """
    return ops.squash(ops.infer(decoder, memory, ops.join(obs, ops.clipped_latents(noise), inputs), RUNNING))
