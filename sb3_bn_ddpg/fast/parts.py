"""What a gradient step on the engine works with, in the same form for PyTorch's operations and for Numba's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

RUNNING, BATCH, BATCH_UPDATE, UNKNOWN = range(4)
"""
What a pass does with the statistics of batch norm (see :data:`~sb3_bn_ddpg.networks.statistics.Statistics`); the last one is
what no operation here knows.
"""
MODES = {"running": RUNNING, "batch": BATCH, "batch_update": BATCH_UPDATE, "running_update": UNKNOWN}
STAY, COPY, POLYAK = range(3)
"""What a target network's running statistics do after an update."""
SYNCS = {None: STAY, "copy": COPY, "polyak": POLYAK}
NO_RELU, RELU_LAST, RELU_FIRST = range(3)
"""Where, behind a linear layer, the ReLU stands: nowhere, after the normalisation, before it."""


class QNetworkParts(NamedTuple):
    """
    One Q-network.

    :param state_net: What comes before the action
    :param q_net: What comes after it
    :param n_differentiated: How many of the inputs of ``q_net``, the first ones, have a gradient that ``state_net`` needs: its
        outputs, or 0 if it has no parameters
    """

    state_net: Any
    q_net: Any
    n_differentiated: int


class QMemory(NamedTuple):
    """
    The memory of a pass of a Q-network, for its way back.

    :param state: Of ``state_net``
    :param q: Of ``q_net``
    :param joined: The input of ``q_net``: features and actions
    """

    state: Any
    q: Any
    joined: Any


class Parts(NamedTuple):
    """
    Networks, memory and storage. Without target networks, the targets are the online networks.

    :param actor: The actor, without its tanh
    :param actor_target: The target actor, likewise
    :param critics: The Q-networks
    :param critic_targets: The target Q-networks
    :param actor_memory: For passes of both actors, which take turns
    :param memories: For passes of the Q-networks over a minibatch, one each; the targets' take turns with the first
    :param joint_memories: For their passes over states and next states, twice as many rows, if there is such a pass
    :param joint_rows: For states and next states, and for their actions
    :param actor_storage: Parameters of the actor and of its target, gradients, Adam's moments, running statistics
    :param critic_storage: Those of all Q-networks
    """

    actor: Any
    actor_target: Any
    critics: tuple[QNetworkParts, ...]
    critic_targets: tuple[QNetworkParts, ...]
    actor_memory: Any
    memories: tuple[QMemory, ...]
    joint_memories: tuple[QMemory, ...]
    joint_rows: Any
    actor_storage: Any
    critic_storage: Any


class Transitions(NamedTuple):
    """
    A minibatch of n transitions.

    :param obs: Observations, (n, features)
    :param actions: Actions in [-1, 1], (n, action_dim)
    :param next_obs: Next observations
    :param rewards: Rewards, (n, 1), of several steps where the replay buffer sums them
    :param discounts: What the next state's value is multiplied by, (n, 1): zero after an end
    """

    obs: Any
    actions: Any
    next_obs: Any
    rewards: Any
    discounts: Any


@dataclass(frozen=True)
class EngineStep:
    """
    A gradient step written on the engine's operations.

    :param function: The step: ``function(parts, transitions, noise, reports, rates, tau, update_actor, choices)``. PyTorch
        runs it as it stands, and Numba compiles it with its module's ``ops`` exchanged for Numba's operations. What it reports
        is of each Q-network the loss, the mean of Q and of its absolute value; then the mean of the TD target,
        and the actor's loss.
    :param choices: What else it is told, a named tuple of integers
    :param is_joint: Whether states and next states go through the Q-networks in one pass
    :param unsupported: Why the operations cannot make this step, if they cannot
    """

    function: Callable[..., Any]
    choices: Any
    is_joint: bool = False
    unsupported: str | None = None
