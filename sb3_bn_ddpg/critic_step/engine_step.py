"""The critics' half of a gradient step once more, on the engine's operations (see ``step.py``, which is the definition)."""

from typing import Any

from sb3_bn_ddpg.fast import torch_operations as ops
from sb3_bn_ddpg.fast.parts import BATCH, CriticChoices, Parts, QMemory, QNetworkParts, Transitions


def critic_step(
    parts: Parts,
    transitions: Transitions,
    next_actions: Any,
    loss_of_value: Any,
    reports: Any,
    rates: Any,
    choices: CriticChoices,
) -> None:
    """
    Minimise the critics' loss.

    :param parts: The networks, with memory and storage
    :param transitions: A minibatch
    :param next_actions: What the policy does in the next states, (n, action_dim)
    :param loss_of_value: What is taken from the value of the next states, (n, 1) or of no rows
    :param reports: Takes what is reported
    :param rates: What the optimizer's step is made with, for Numba's operations
    :param choices: Statistics of the passes, and more
    """
    obs, actions, next_obs = transitions.obs, transitions.actions, transitions.next_obs
    critics, n_critics, atoms = parts.critics, len(parts.critics), parts.atoms

    # The next states' Q'(s', a'), the smallest of all Q-networks', and in a joint pass Q(s, a) with it. With atoms also the
    # outputs that have it
    next_q = ops.like(transitions.rewards)
    next_outputs = ops.like(transitions.rewards)
    q_obs, q_actions = obs, actions
    memories = parts.memories
    if choices.is_joint:
        memories = parts.joint_memories
        q_obs = ops.rows(obs, next_obs, parts.joint_rows[0])
        q_actions = ops.rows(actions, next_actions, parts.joint_rows[1])
        if choices.has_targets:
            # Before the online passes, which need this memory for their way back
            for k in range(n_critics):
                outputs = target_outputs(parts.critic_targets[k], memories[0], q_obs, q_actions, BATCH)[len(obs) :]
                next_q, next_outputs = with_smaller(next_q, next_outputs, outputs, atoms, k == 0)
        for k in range(n_critics):
            outputs = q_outputs(critics[k], memories[k], q_obs, q_actions, choices.critic_loss)[len(obs) :]
            if not choices.has_targets:
                next_q, next_outputs = with_smaller(next_q, next_outputs, outputs, atoms, k == 0)
    else:
        for k in range(n_critics):
            outputs = target_outputs(parts.critic_targets[k], memories[0], next_obs, next_actions, choices.target)
            next_q, next_outputs = with_smaller(next_q, next_outputs, outputs, atoms, k == 0)

    # The target: y = r + gamma Q', or with atoms the distribution of that
    if len(atoms) > 0:
        y = ops.projected_targets(transitions.rewards, transitions.discounts, next_outputs, loss_of_value, atoms)
    else:
        y = ops.td_targets(transitions.rewards, transitions.discounts, next_q, loss_of_value)
    fit(parts, memories, q_obs, q_actions, y, reports, rates, choices)


def fit(
    parts: Parts,
    memories: Any,
    obs: Any,
    actions: Any,
    y: Any,
    reports: Any,
    rates: Any,
    choices: CriticChoices,
) -> None:
    """
    One step of the critics' optimizer towards a target.

    :param parts: The networks, with memory and storage
    :param memories: For the passes of the Q-networks, one each; of a joint pass, after it
    :param obs: Observations, (n, features), of a joint pass twice as many rows
    :param actions: Actions, likewise
    :param y: The target, (n, 1), or (n, atoms) of its distribution
    :param reports: Takes what is reported
    :param rates: What the optimizer's step is made with, for Numba's operations
    :param choices: Statistics of the passes, and more
    """
    n_critics, atoms = len(parts.critics), parts.atoms
    # The loss mean (Q(s, a) - y)^2 of each, or the cross-entropy of the distributions; the gradient of all, and one step
    for k in range(n_critics):
        critic, memory = parts.critics[k], memories[k]
        if not choices.is_joint:
            q_outputs(critic, memory, obs, actions, choices.critic_loss)
        outputs = ops.output(critic.q_net, memory.q, len(obs))
        if len(atoms) > 0:
            q_grad = ops.cross_entropy(outputs, y, atoms, reports, 3 * k)
        else:
            q_grad = ops.squared_error(outputs, y, choices.loss_factor, reports, 3 * k)
        # The input of the Q-network is (n, features + action_dim); the state layers get the gradient of the features
        features_grad = ops.backward(critic.q_net, memory.q, memory.joined, q_grad, critic.n_differentiated)
        if critic.n_differentiated > 0:
            ops.backward(critic.state_net, memory.state, obs, features_grad, 0)
    ops.report(reports, 3 * n_critics, ops.expected(y, atoms), 1)
    ops.adam(parts.critic_storage, rates)


def with_smaller(least: Any, least_outputs: Any, outputs: Any, atoms: Any, is_first: bool) -> tuple[Any, Any]:
    """
    :param least: The smallest values so far, (n, 1)
    :param least_outputs: With atoms the logits that they are of, (n, n_atoms)
    :param outputs: What a further Q-network returned
    :param atoms: The atoms
    :param is_first: Whether there were none so far
    :return: The first two with those of this Q-network
    """
    q = ops.q_of_outputs(outputs, atoms)
    if len(atoms) > 0:
        least_outputs = ops.smaller_outputs(least_outputs, outputs, least, q, is_first)
    return ops.smaller(least, q, is_first), least_outputs


def smallest_q(parts: Parts, transitions: Transitions, actions: Any, n_critics: int, mode: int) -> Any:
    """
    :param parts: The networks, with memory
    :param transitions: A minibatch
    :param actions: Actions in its states, (n, action_dim)
    :param n_critics: How many Q-networks are asked, the first ones
    :param mode: What their passes do with batch norm's statistics
    :return: The smallest of their values, (n, 1); for the way back, see :func:`gradient_of_actions`
    """
    least = ops.like(transitions.rewards)
    for k in range(n_critics):
        outputs = q_outputs(parts.critics[k], parts.memories[k], transitions.obs, actions, mode)
        least = ops.smaller(least, ops.q_of_outputs(outputs, parts.atoms), k == 0)
    return least


def gradient_of_actions(parts: Parts, actions: Any, least: Any, n_critics: int, mode: int) -> Any:
    """
    The gradient of -mean min Q, after :func:`smallest_q`.

    :param parts: The networks, with memory
    :param actions: The actions
    :param least: The smallest values
    :param n_critics: How many Q-networks were asked
    :param mode: What their passes did
    :return: Gradient of the actions, (n, action_dim)
    """
    n_rows = len(actions)
    n_least = ops.like(least)
    if n_critics > 1:
        for k in range(n_critics):
            outputs = ops.output(parts.critics[k].q_net, parts.memories[k].q, n_rows)
            n_least = ops.count_least(n_least, ops.q_of_outputs(outputs, parts.atoms), least, k == 0)
    action_grad = ops.like(actions)
    for k in range(n_critics):
        q_net, memory = parts.critics[k].q_net, parts.memories[k]
        outputs = ops.output(q_net, memory.q, n_rows)
        q_grad = ops.ascent(ops.q_of_outputs(outputs, parts.atoms), least, n_least, n_critics == 1)
        outputs_grad = ops.q_backward(outputs, parts.atoms, q_grad)
        grad = ops.last_inputs_gradient(q_net, memory.q, memory.joined, outputs_grad, mode, actions.shape[1])
        action_grad = ops.add(action_grad, grad, k == 0)
    return action_grad


def q_outputs(critic: QNetworkParts, memory: QMemory, obs: Any, actions: Any, mode: int) -> Any:
    """
    :param critic: A Q-network
    :param memory: For its pass
    :param obs: Observations, (n, features)
    :param actions: Actions, (n, action_dim)
    :param mode: What the pass does with batch norm's statistics
    :return: Q(s, a), (n, 1), or with atoms the logits of their probabilities, (n, n_atoms)
    """
    joined = ops.join(ops.forward(critic.state_net, memory.state, obs, mode), actions, memory.joined)
    return ops.forward(critic.q_net, memory.q, joined, mode)


def target_outputs(critic: QNetworkParts, memory: QMemory, obs: Any, actions: Any, mode: int) -> Any:
    """
    As :func:`q_outputs`, without a way back.

    :param critic: A Q-network
    :param memory: For its pass
    :param obs: Observations, (n, features)
    :param actions: Actions, (n, action_dim)
    :param mode: What the pass does with batch norm's statistics
    :return: Likewise
    """
    joined = ops.join(ops.infer(critic.state_net, memory.state, obs, mode), actions, memory.joined)
    return ops.infer(critic.q_net, memory.q, joined, mode)
