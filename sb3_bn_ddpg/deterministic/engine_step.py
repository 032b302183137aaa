"""
The gradient step of ``step.py`` once more, written on the engine's operations: several times faster on small networks.

``step.gradient_step`` is the definition; the tests hold both to the same numbers. ``ops`` is PyTorch's set of operations here,
and Numba's where the step is compiled.
"""

from functools import cache
from typing import Any, NamedTuple

from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.parts import MODES, RUNNING, SYNCS, UNKNOWN, EngineStep, Parts, QMemory, QNetworkParts, Transitions
from sb3_bn_ddpg.networks.statistics import PassStatistics


class Choices(NamedTuple):
    """
    :param target: What the passes of the TD target do with batch norm's statistics (the actor's alone, if it is joint)
    :param critic_loss: The Q-networks in their loss
    :param actor_loss_actor: The actor in its loss
    :param actor_loss_critic: The Q-networks in the actor's loss
    :param is_joint: Whether states and next states go through the Q-networks in one pass
    :param sync: What the targets' running statistics do after an update
    :param n_ascended: How many Q-networks serve in the actor's loss, which ascends the smallest of their values
    """

    target: int
    critic_loss: int
    actor_loss_actor: int
    actor_loss_critic: int
    is_joint: bool
    sync: int
    n_ascended: int


@cache
def step_on_engine(statistics: PassStatistics, n_ascended: int) -> EngineStep:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param n_ascended: How many Q-networks serve in the actor's loss
    :return: The step
    """
    is_joint = statistics.target == "joint"
    target = RUNNING if statistics.target == "joint" else MODES[statistics.target]
    passes = statistics.critic_loss, statistics.actor_loss_actor, statistics.actor_loss_critic
    modes = (target, *(MODES[use] for use in passes))
    return EngineStep(
        gradient_step,
        Choices(
            target=modes[0],
            critic_loss=modes[1],
            actor_loss_actor=modes[2],
            actor_loss_critic=modes[3],
            is_joint=is_joint,
            sync=SYNCS[statistics.target_sync],
            n_ascended=n_ascended,
        ),
        is_joint,
        "a pass has the statistics 'running_update'" if UNKNOWN in modes else None,
    )


def gradient_step(
    parts: Parts,
    transitions: Transitions,
    noise: Any,
    reports: Any,
    rates: Any,
    tau: float,
    update_actor: bool,
    choices: Choices,
) -> None:
    """
    Minimise the critics' loss, ascend the deterministic policy gradient, move the target networks.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param noise: What is added to the next actions, (n, action_dim) or of no rows
    :param reports: Takes what is reported
    :param rates: What the steps of the actor's and of the critics' optimizer are made with, for Numba's operations
    :param tau: Polyak coefficient of the target networks, in [0, 1]
    :param update_actor: Whether to update the actor and the target networks, too
    :param choices: Statistics of the passes, and more
    """
    obs, actions, next_obs = transitions.obs, transitions.actions, transitions.next_obs
    critics, n_critics = parts.critics, len(parts.critics)

    # The next states' Q'(s', mu'(s')), the smallest of all Q-networks', and in a joint pass Q(s, a) with it
    next_actions = ops.squash(ops.infer(parts.actor_target, parts.actor_memory, next_obs, choices.target))
    next_actions = ops.add_noise(next_actions, noise)
    next_q = ops.like(transitions.rewards)
    q_obs, q_actions = obs, actions
    memories = parts.memories
    if choices.is_joint:
        memories = parts.joint_memories
        q_obs = ops.rows(obs, next_obs, parts.joint_rows[0])
        q_actions = ops.rows(actions, next_actions, parts.joint_rows[1])
        for k in range(n_critics):
            q = q_values(critics[k], memories[k], q_obs, q_actions, choices.critic_loss)
            next_q = ops.smaller(next_q, q[len(obs) :], k == 0)
    else:
        for k in range(n_critics):
            critic, memory = parts.critic_targets[k], memories[0]
            features = ops.infer(critic.state_net, memory.state, next_obs, choices.target)
            joined = ops.join(features, next_actions, memory.joined)
            q = ops.infer(critic.q_net, memory.q, joined, choices.target)
            next_q = ops.smaller(next_q, q, k == 0)

    # The loss mean (Q(s, a) - y)^2 of each, with the TD target y = r + gamma Q'; the gradient of all, and one step
    y = ops.td_targets(transitions.rewards, transitions.discounts, next_q)
    for k in range(n_critics):
        critic, memory = critics[k], memories[k]
        if not choices.is_joint:
            q_values(critic, memory, q_obs, q_actions, choices.critic_loss)
        q = ops.output(critic.q_net, memory.q, len(q_obs))
        q_grad = ops.squared_error(q, y, reports, 3 * k)
        # The input of the Q-network is (n, features + action_dim); the state layers get the gradient of the features
        features_grad = ops.backward(critic.q_net, memory.q, memory.joined, q_grad, critic.n_differentiated)
        if critic.n_differentiated > 0:
            ops.backward(critic.state_net, memory.state, q_obs, features_grad, 0)
    ops.report(reports, 3 * n_critics, y, 1)
    ops.adam(parts.critic_storage, rates[1])

    if update_actor:
        actor_step(parts, transitions, reports, rates[0], choices)
        ops.follow(parts.actor_storage, tau, choices.sync)
        ops.follow(parts.critic_storage, tau, choices.sync)


def actor_step(parts: Parts, transitions: Transitions, reports: Any, rates: Any, choices: Choices) -> None:
    """
    Minimise the actor's loss -mean Q(s, mu(s)); of the Q-networks, only the gradient of the action is needed.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param reports: Takes the loss, as the last one
    :param rates: What the optimizer's step is made with, for Numba's operations
    :param choices: Statistics of the passes, and more
    """
    obs = transitions.obs
    mu = ops.squash(ops.forward(parts.actor, parts.actor_memory, obs, choices.actor_loss_actor))
    least = ops.like(transitions.rewards)
    for k in range(choices.n_ascended):
        q = q_values(parts.critics[k], parts.memories[k], obs, mu, choices.actor_loss_critic)
        least = ops.smaller(least, q, k == 0)
    ops.report(reports, len(reports) - 1, least, -1)

    is_only = choices.n_ascended == 1
    n_least = ops.like(least)
    if not is_only:
        for k in range(choices.n_ascended):
            q = ops.output(parts.critics[k].q_net, parts.memories[k].q, len(obs))
            n_least = ops.count_least(n_least, q, least, k == 0)
    action_grad = ops.like(mu)
    for k in range(choices.n_ascended):
        q_net, memory = parts.critics[k].q_net, parts.memories[k]
        q_grad = ops.ascent(ops.output(q_net, memory.q, len(obs)), least, n_least, is_only)
        grad = ops.last_inputs_gradient(q_net, memory.q, memory.joined, q_grad, choices.actor_loss_critic, mu.shape[1])
        action_grad = ops.add(action_grad, grad, k == 0)
    ops.backward(parts.actor, parts.actor_memory, obs, ops.squash_backward(action_grad, mu), 0)
    ops.adam(parts.actor_storage, rates)


def q_values(critic: QNetworkParts, memory: QMemory, obs: Any, actions: Any, mode: int) -> Any:
    """
    :param critic: A Q-network
    :param memory: For its pass
    :param obs: Observations, (n, features)
    :param actions: Actions, (n, action_dim)
    :param mode: What the pass does with batch norm's statistics
    :return: Q(s, a), (n, 1)
    """
    joined = ops.join(ops.forward(critic.state_net, memory.state, obs, mode), actions, memory.joined)
    return ops.forward(critic.q_net, memory.q, joined, mode)
