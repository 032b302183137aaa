"""
The gradient step of ``step.py`` once more, written on the engine's operations: several times faster on small networks.

``step.gradient_step`` is the definition; the tests hold both to the same numbers. ``ops`` is PyTorch's set of operations here,
and Numba's where the step is compiled.
"""

from functools import cache
from typing import Any, NamedTuple

from sb3_bn_ddpg.critic_step.engine_step import critic_step, gradient_of_actions, smallest_q
from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.parts import MODES, SYNCS, CriticChoices, EngineStep, Parts, Transitions, unsupported_modes
from sb3_bn_ddpg.networks.statistics import PassStatistics


class Choices(NamedTuple):
    """
    :param critics: Of the critics' half
    :param actor_loss_actor: What the actor's pass in its loss does with batch norm's statistics
    :param actor_loss_critic: The Q-networks in the actor's loss
    :param sync: What the targets' running statistics do after an update
    :param n_ascended: How many Q-networks serve in the actor's loss, which ascends the smallest of their values
    """

    critics: CriticChoices
    actor_loss_actor: int
    actor_loss_critic: int
    sync: int
    n_ascended: int


@cache
def step_on_engine(statistics: PassStatistics, has_targets: bool, n_ascended: int) -> EngineStep:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param has_targets: Whether there are target networks
    :param n_ascended: How many Q-networks serve in the actor's loss
    :return: The step
    """
    choices = Choices(
        CriticChoices.of(statistics, has_targets),
        MODES[statistics.actor_loss_actor],
        MODES[statistics.actor_loss_critic],
        SYNCS[statistics.target_sync],
        n_ascended,
    )
    return EngineStep(gradient_step, choices, choices.critics.is_joint, unsupported=unsupported_modes(statistics))


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
    Minimise the critics' loss, ascend the deterministic policy gradient, move the target networks.

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
        # The actor's loss -mean Q(s, mu(s)); of the Q-networks, only the gradient of the action is needed
        mode = choices.actor_loss_critic
        mu = ops.squash(ops.forward(parts.actor, parts.actor_memory, transitions.obs, choices.actor_loss_actor))
        least = smallest_q(parts, transitions, mu, choices.n_ascended, mode)
        ops.report(reports, len(reports) - 1, least, -1)
        action_grad = gradient_of_actions(parts, mu, least, choices.n_ascended, mode)
        descend(parts, transitions, mu, action_grad, rates[0])
    if update_targets:
        ops.follow(parts.actor_storage, tau, choices.sync)
        ops.follow(parts.critic_storage, tau, choices.sync)


def fit_critics(parts: Parts, transitions: Transitions, noise: Any, reports: Any, rates: Any, choices: CriticChoices) -> None:
    """
    The critics' half, of a deterministic policy.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param noise: What is added to the next actions, (n, action_dim) or of no rows
    :param reports: Takes what is reported
    :param rates: What the step of the critics' optimizer is made with, for Numba's operations
    :param choices: Statistics of the passes, and more
    """
    next_actions = ops.squash(ops.infer(parts.actor_target, parts.actor_memory, transitions.next_obs, choices.target))
    next_actions = ops.add_noise(next_actions, noise)
    critic_step(parts, transitions, next_actions, transitions.rewards[:0], reports, rates, choices)


def descend(parts: Parts, transitions: Transitions, mu: Any, action_grad: Any, rates: Any) -> None:
    """
    One step of the actor's optimizer, after its pass.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param mu: The policy's actions in its states, (n, action_dim)
    :param action_grad: Gradient of the loss with respect to them, which is overwritten
    :param rates: What the optimizer's step is made with, for Numba's operations
    """
    ops.backward(parts.actor, parts.actor_memory, transitions.obs, ops.squash_backward(action_grad, mu), 0)
    ops.adam(parts.actor_storage, rates)
