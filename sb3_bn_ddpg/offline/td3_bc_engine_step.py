"""
The gradient step of TD3+BC once more, written on the engine's operations: that of ``deterministic/engine_step.py`` with the
actor's loss of ``td3_bc.py``. ``ops`` is PyTorch's set of operations here, and Numba's where the step is compiled.
"""

from functools import cache
from typing import Any, NamedTuple

from sb3_bn_ddpg.critic_step.engine_step import gradient_of_actions, smallest_q
from sb3_bn_ddpg.deterministic.engine_step import descend, fit_critics
from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.parts import MODES, SYNCS, CriticChoices, EngineStep, Parts, Transitions, unsupported_modes
from sb3_bn_ddpg.networks.statistics import PassStatistics


class Choices(NamedTuple):
    """
    :param critics: Of the critics' half
    :param actor_loss_actor: What the actor's pass in its loss does with batch norm's statistics
    :param actor_loss_critic: The first Q-network in the actor's loss
    :param sync: What the targets' running statistics do after an update
    :param alpha: How much the value counts beside imitation, >= 0
    """

    critics: CriticChoices
    actor_loss_actor: int
    actor_loss_critic: int
    sync: int
    alpha: float


@cache
def step_on_engine(statistics: PassStatistics, has_targets: bool, alpha: float) -> EngineStep:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param has_targets: Whether there are target networks
    :param alpha: How much the value counts beside imitation, >= 0
    :return: The step
    """
    choices = Choices(
        CriticChoices.of(statistics, has_targets),
        MODES[statistics.actor_loss_actor],
        MODES[statistics.actor_loss_critic],
        SYNCS[statistics.target_sync],
        alpha,
    )
    return EngineStep(
        gradient_step,
        choices,
        choices.critics.is_joint,
        with_actor=("actor_loss", "bc_loss"),
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
    Minimise the critics' loss; ascend the value of the policy's actions, and pull them to the data's; move the targets.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param noise: What is added to the next actions, (n, action_dim) or of no rows
    :param reports: Takes what is reported
    :param rates: What the steps of the optimizers are made with, for Numba's operations: the actor's, the critics'
    :param tau: Polyak coefficient of the target networks, in [0, 1]
    :param update_actor: Whether to update the actor, too
    :param update_targets: Whether to move the target networks
    :param choices: Statistics of the passes, and more
    """
    fit_critics(parts, transitions, noise, reports, rates[1], choices.critics)
    if update_actor:
        mode = choices.actor_loss_critic
        mu = ops.squash(ops.forward(parts.actor, parts.actor_memory, transitions.obs, choices.actor_loss_actor))
        q = smallest_q(parts, transitions, mu, 1, mode)  # of the first Q-network alone
        grad = gradient_of_actions(parts, mu, q, 1, mode)
        grad = ops.imitation(grad, mu, transitions.actions, q, choices.alpha, reports, 3 * len(parts.critics) + 1)
        descend(parts, transitions, mu, grad, rates[0])
    if update_targets:
        ops.follow(parts.actor_storage, tau, choices.sync)
        ops.follow(parts.critic_storage, tau, choices.sync)
