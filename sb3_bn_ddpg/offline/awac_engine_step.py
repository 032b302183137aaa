"""
The gradient step of ``awac_step.py`` once more, written on the engine's operations (see ``deterministic/engine_step.py``).
``ops`` is PyTorch's set of operations here, and Numba's where the step is compiled.
"""

from functools import cache
from typing import Any, NamedTuple

from sb3_bn_ddpg.critic_step.engine_step import critic_step, smallest_q
from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.parts import MODES, SYNCS, CriticChoices, EngineStep, Parts, Transitions, unsupported_modes
from sb3_bn_ddpg.networks.actors import SigmoidStdActor
from sb3_bn_ddpg.networks.statistics import PassStatistics
from sb3_bn_ddpg.offline.losses import Weighting


class Choices(NamedTuple):
    """
    :param critics: Of the critics' half
    :param actor_loss_actor: What the actor's pass in its loss does with batch norm's statistics
    :param actor_loss_critic: The Q-networks in the actor's loss
    :param sync: What the targets' running statistics do after an update
    :param inverse_beta: Inverse temperature of the weights, > 0
    :param is_softmax: Whether the weights are a softmax of the advantages
    :param weight_limit: Largest weight if they are not, > 0
    """

    critics: CriticChoices
    actor_loss_actor: int
    actor_loss_critic: int
    sync: int
    inverse_beta: float
    is_softmax: bool
    weight_limit: float


@cache
def step_on_engine(statistics: PassStatistics, beta: float, weighting: Weighting, weight_limit: float) -> EngineStep:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param beta: Temperature of the weights, > 0
    :param weighting: How they are made of the advantages
    :param weight_limit: Largest weight of ``"exp"``, > 0
    :return: The step
    """
    choices = Choices(
        CriticChoices.of(statistics, has_targets=True),
        MODES[statistics.actor_loss_actor],
        MODES[statistics.actor_loss_critic],
        SYNCS[statistics.target_sync],
        1 / beta,
        weighting == "softmax",
        weight_limit,
    )
    return EngineStep(
        gradient_step,
        choices,
        choices.critics.is_joint,
        always=("advantage", "weight"),
        actor_class=SigmoidStdActor,
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
    Minimise the critics' loss; fit the actor to the data's actions weighted by their advantage; move the target critics.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param noise: Standard normal noise, (2, n, action_dim): of the actions in the next states, and of those that the data's
        actions are compared with
    :param reports: Takes what is reported
    :param rates: What the steps of the optimizers are made with, for Numba's operations: the actor's, the critics'
    :param tau: Polyak coefficient of the target critics, in [0, 1]
    :param update_actor: Without effect: the actor is updated at each step
    :param update_targets: Whether to move the target critics
    :param choices: Statistics of the passes, and more
    """
    obs, actions = transitions.obs, transitions.actions
    actor, memory, place = parts.actor, parts.actor_memory, 3 * len(parts.critics) + 1
    log_std, slope = ops.sigmoid_log_std(actor.log_std)
    next_means = ops.squash(ops.infer(actor.mean, memory, transitions.next_obs, choices.critics.target))
    next_actions = ops.gaussian_actions(next_means, log_std, noise[0])
    critic_step(parts, transitions, next_actions, transitions.rewards[:0], reports, rates[1], choices.critics)

    # With the new critics: what the data's actions are worth beside the policy's own
    n_critics, mode = len(parts.critics), choices.actor_loss_critic
    means = ops.squash(ops.forward(actor.mean, memory, obs, choices.actor_loss_actor))
    own_actions = ops.gaussian_actions(means, log_std, noise[1])
    values = smallest_q(parts, transitions, actions, n_critics, mode)
    advantages = ops.subtract(values, smallest_q(parts, transitions, own_actions, n_critics, mode))
    if choices.is_softmax:
        weights = ops.softmax_weights(advantages, choices.inverse_beta)
    else:
        weights = ops.advantage_weights(advantages, choices.inverse_beta, choices.weight_limit)
    ops.report(reports, place, advantages, 1)
    ops.report(reports, place + 1, weights, 1)

    mean_grad = ops.regression(means, log_std, slope, actor.log_std_grad, actions, weights, reports, place + 2)
    ops.backward(actor.mean, memory, obs, ops.squash_backward(mean_grad, means), 0)
    ops.adam(parts.actor_storage, rates[0])
    if update_targets:
        ops.follow(parts.critic_storage, tau, choices.sync)
