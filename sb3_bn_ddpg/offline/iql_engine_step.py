"""
The gradient step of ``iql_step.py`` once more, written on the engine's operations (see ``deterministic/engine_step.py``).
``ops`` is PyTorch's set of operations here, and Numba's where the step is compiled.
"""

from functools import cache
from typing import Any, NamedTuple

from sb3_bn_ddpg.critic_step.engine_step import fit, target_outputs
from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.parts import MODES, SYNCS, CriticChoices, EngineStep, Parts, Transitions, unsupported_modes
from sb3_bn_ddpg.networks.actors import FixedStdActor
from sb3_bn_ddpg.networks.critics import ValueNetwork
from sb3_bn_ddpg.networks.statistics import PassStatistics


class Choices(NamedTuple):
    """
    :param critics: Of the critics' half; its ``critic_loss`` is that of the value function in its loss too
    :param actor_loss_actor: What the actor's pass in its loss does with batch norm's statistics
    :param sync: What the targets' running statistics do after an update
    :param expectile: The expectile, in (0, 1)
    :param beta: Inverse temperature of the weights, >= 0
    :param weight_limit: Largest weight, > 0
    """

    critics: CriticChoices
    actor_loss_actor: int
    sync: int
    expectile: float
    beta: float
    weight_limit: float


@cache
def step_on_engine(statistics: PassStatistics, expectile: float, beta: float, weight_limit: float) -> EngineStep:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param expectile: The expectile, in (0, 1)
    :param beta: Inverse temperature of the weights, >= 0
    :param weight_limit: Largest weight, > 0
    :return: The step
    """
    choices = Choices(
        CriticChoices.of(statistics, has_targets=True),
        MODES[statistics.actor_loss_actor],
        SYNCS[statistics.target_sync],
        expectile,
        beta,
        weight_limit,
    )
    return EngineStep(
        gradient_step,
        choices,
        always=("value_loss", "v_value", "advantage", "weight"),
        actor_class=FixedStdActor,
        auxiliary_class=ValueNetwork,
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
    Fit V to an expectile of Q, the actor to the data's actions weighted by their advantage, Q to r + gamma V(s'); move the
    target critics.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param noise: Of no rows
    :param reports: Takes what is reported
    :param rates: What the steps of the optimizers are made with, for Numba's operations: the actor's, the critics', none, the
        value function's
    :param tau: Polyak coefficient of the target critics, in [0, 1]
    :param update_actor: Whether to update the actor, too
    :param update_targets: Whether to move the target critics
    :param choices: Statistics of the passes, and more
    """
    obs, actions = transitions.obs, transitions.actions
    value, memory, place = parts.auxiliary, parts.auxiliary_memory, 3 * len(parts.critics) + 1
    # Of Q', only the value at the data's actions
    q = ops.like(transitions.rewards)
    for k in range(len(parts.critics)):
        q_of_target = target_outputs(parts.critic_targets[k], parts.memories[0], obs, actions, choices.critics.target)
        q = ops.smaller(q, q_of_target, k == 0)

    v = ops.forward(value, memory, obs, choices.critics.critic_loss)
    ops.backward(value, memory, obs, ops.expectile_error(q, v, choices.expectile, reports, place), 0)
    ops.adam(parts.auxiliary_storage, rates[3])

    # With the new V
    advantages = ops.subtract(q, ops.infer(value, memory, obs, choices.critics.target))
    weights = ops.advantage_weights(advantages, choices.beta, choices.weight_limit)
    ops.report(reports, place + 2, advantages, 1)
    ops.report(reports, place + 3, weights, 1)
    next_v = ops.infer(value, memory, transitions.next_obs, choices.critics.target)
    y = ops.td_targets(transitions.rewards, transitions.discounts, next_v, transitions.rewards[:0])

    if update_actor:
        actor = parts.actor
        means = ops.squash(ops.forward(actor.mean, parts.actor_memory, obs, choices.actor_loss_actor))
        log_std, slope = ops.clamped_log_std(actor.log_std)
        mean_grad = ops.regression(means, log_std, slope, actor.log_std_grad, actions, weights, reports, place + 4)
        ops.backward(actor.mean, parts.actor_memory, obs, ops.squash_backward(mean_grad, means), 0)
        ops.adam(parts.actor_storage, rates[0])

    fit(parts, parts.memories, obs, actions, y, reports, rates[1], choices.critics)
    if update_targets:
        ops.follow(parts.critic_storage, tau, choices.sync)
