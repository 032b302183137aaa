"""
The gradient step of ``step.py`` once more, written on the engine's operations: several times faster on small networks.

``step.gradient_step`` is the definition; the tests hold both to the same numbers. ``ops`` is PyTorch's set of operations here,
and Numba's where the step is compiled.
"""

from functools import cache
from typing import Any, NamedTuple

from sb3_bn_ddpg.critic_step.engine_step import critic_step, gradient_of_actions, smallest_q
from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.gaussian_passes import gaussian, gaussian_backward
from sb3_bn_ddpg.fast.parts import (
    MODES,
    SYNCS,
    CriticChoices,
    EngineStep,
    Parts,
    Transitions,
    unsupported_modes,
)
from sb3_bn_ddpg.networks.actors import GaussianActor
from sb3_bn_ddpg.networks.statistics import PassStatistics
from sb3_bn_ddpg.sac.step import CRITIC_LOSS_FACTOR


class Choices(NamedTuple):
    """
    :param critics: Of the critics' half
    :param actor_loss_actor: What the actor's pass in its loss does with batch norm's statistics
    :param actor_loss_critic: The Q-networks in the actor's loss
    :param sync: What the targets' running statistics do after an update
    :param is_learned: Whether the entropy coefficient is learned
    :param ent_coef: What it is if not
    :param target_entropy: What it aims at
    """

    critics: CriticChoices
    actor_loss_actor: int
    actor_loss_critic: int
    sync: int
    is_learned: bool
    ent_coef: float
    target_entropy: float


@cache
def step_on_engine(
    statistics: PassStatistics, has_targets: bool, is_learned: bool, ent_coef: float, target_entropy: float
) -> EngineStep:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param has_targets: Whether there are target critics
    :param is_learned: Whether the entropy coefficient is learned
    :param ent_coef: What it is if not
    :param target_entropy: What it aims at
    :return: The step
    """
    choices = Choices(
        CriticChoices.of(statistics, has_targets, CRITIC_LOSS_FACTOR),
        MODES[statistics.actor_loss_actor],
        MODES[statistics.actor_loss_critic],
        SYNCS[statistics.target_sync],
        is_learned,
        ent_coef,
        target_entropy,
    )
    return EngineStep(
        gradient_step,
        choices,
        choices.critics.is_joint,
        always=("ent_coef",),
        with_actor=("actor_loss", "entropy", *(("ent_coef_loss",) if is_learned else ())),
        actor_class=GaussianActor,
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
    Minimise the critics' loss and the actor's, alpha log pi - min Q; fit the entropy coefficient; move the target critics.

    :param parts: The networks, with memory and storage; the last storage is that of the entropy coefficient
    :param transitions: A minibatch
    :param noise: Standard normal noise, (2, n, action_dim): of the next actions, and of those in the actor's loss
    :param reports: Takes what is reported
    :param rates: What the steps of the optimizers are made with, for Numba's operations: the actor's, the critics', the
        entropy coefficient's
    :param tau: Polyak coefficient of the target critics, in [0, 1]
    :param update_actor: Whether to update the actor and the entropy coefficient
    :param update_targets: Whether to move the target critics
    :param choices: Statistics of the passes, and more
    """
    # Of before this step, for all its losses
    alpha = ops.exponential(parts.entropy_storage, choices.is_learned, choices.ent_coef)
    place = 3 * len(parts.critics) + 1
    ops.report_number(reports, place, alpha, transitions.rewards)
    mean, log_std = gaussian(parts.actor_target, parts.actor_memory, transitions.next_obs, choices.critics.target, False)
    next_actions, next_log_prob = ops.sample(mean, log_std, noise[0])
    loss_of_value = ops.scale(next_log_prob, alpha)
    critic_step(parts, transitions, next_actions, loss_of_value, reports, rates[1], choices.critics)

    if update_actor:
        actor, memory, obs, n_critics = parts.actor, parts.actor_memory, transitions.obs, len(parts.critics)
        mode = choices.actor_loss_critic
        mean, log_std = gaussian(actor, memory, obs, choices.actor_loss_actor, True)
        actions, log_prob = ops.sample(mean, log_std, noise[1])
        least = smallest_q(parts, transitions, actions, n_critics, mode)
        ops.report(reports, place + 1, ops.subtract(ops.scale(log_prob, alpha), least), 1)
        ops.report(reports, place + 2, log_prob, -1)
        if choices.is_learned:
            ops.entropy_gradient(parts.entropy_storage, log_prob, choices.target_entropy, reports, place + 3)
            ops.adam(parts.entropy_storage, rates[2])

        action_grad = gradient_of_actions(parts, actions, least, n_critics, mode)
        mean_grad, log_std_grad = ops.sample_backward(action_grad, actions, log_std, noise[1], alpha)
        gaussian_backward(actor, memory, obs, mean_grad, log_std_grad)
        ops.adam(parts.actor_storage, rates[0])
    if update_targets:
        ops.follow(parts.critic_storage, tau, choices.sync)
