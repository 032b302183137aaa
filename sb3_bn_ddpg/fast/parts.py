"""What a gradient step on the engine works with, in the same form for PyTorch's operations and for Numba's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sb3_bn_ddpg.networks.actors import Actor, BaseActor
from sb3_bn_ddpg.networks.base import Network
from sb3_bn_ddpg.networks.statistics import PassStatistics

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


class GaussianParts(NamedTuple):
    """
    A Gaussian whose mean and standard deviation networks say: SAC's actor before its tanh, or a generative model's encoder.

    :param latent: The layers up to the last hidden one
    :param mean: The output layer of the mean
    :param log_std: That of the logarithm of the standard deviation
    :param n_differentiated: How many outputs of ``latent`` have a gradient that it needs: all, or 0 if it has no parameters
    """

    latent: Any
    mean: Any
    log_std: Any
    n_differentiated: int


class GaussianMemory(NamedTuple):
    """
    The memory of a pass of such networks.

    :param latent: Of ``latent``
    :param mean: Of ``mean``
    :param log_std: Of ``log_std``
    """

    latent: Any
    mean: Any
    log_std: Any


class FixedStdParts(NamedTuple):
    """
    An actor that is a Gaussian of the same standard deviation in all states around the tanh of a network.

    :param mean: The network, without its tanh
    :param log_std: Logarithm of the standard deviation, not clamped yet, (action_dim,)
    :param log_std_grad: Where its gradient goes
    """

    mean: Any
    log_std: Any
    log_std_grad: Any


class GeneratorParts(NamedTuple):
    """
    BCQ's generative model of actions.

    :param encoder: The encoder
    :param decoder: The decoder, without its tanh
    """

    encoder: GaussianParts
    decoder: Any


class WideMemory(NamedTuple):
    """
    The memory of passes over several actions in each state, which have no way back.

    :param decoder_inputs: Each state with each of its latent vectors
    :param decoder: Of the generative model's decoder
    :param actor_inputs: Each state with each of its actions
    :param actor: Of the actor
    :param critic: Of a Q-network
    """

    decoder_inputs: Any
    decoder: Any
    actor_inputs: Any
    actor: Any
    critic: QMemory


class GeneratorMemory(NamedTuple):
    """
    The memory of a generative model's passes, and of those of the networks that take its actions.

    :param encoder_inputs: States and actions
    :param encoder: Of ``encoder``
    :param decoder_inputs: States and latent vectors
    :param decoder: Of ``decoder``
    :param actor_inputs: States and generated actions
    :param wide: For the passes over several actions in each state
    """

    encoder_inputs: Any
    encoder: GaussianMemory
    decoder_inputs: Any
    decoder: Any
    actor_inputs: Any
    wide: WideMemory


class CriticChoices(NamedTuple):
    """
    What the critics' half of a step is told.

    :param target: What the passes of the TD target do with batch norm's statistics (the actor's alone, if it is joint)
    :param critic_loss: The Q-networks in their loss
    :param is_joint: Whether states and next states go through the Q-networks in one pass
    :param has_targets: Whether there are target Q-networks
    :param loss_factor: Factor of their loss
    """

    target: int
    critic_loss: int
    is_joint: bool
    has_targets: bool
    loss_factor: float

    @classmethod
    def of(cls, statistics: PassStatistics, has_targets: bool, loss_factor: float = 1.0) -> "CriticChoices":
        """
        :param statistics: Which batch-norm statistics each pass normalises with and updates
        :param has_targets: Whether there are target Q-networks
        :param loss_factor: Factor of the loss
        :return: The same for the engine
        """
        target = RUNNING if statistics.target == "joint" else MODES[statistics.target]
        return cls(target, MODES[statistics.critic_loss], statistics.target == "joint", has_targets, loss_factor)


def unsupported_modes(statistics: PassStatistics) -> str | None:
    """
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :return: Why no operation here knows them, if none does
    """
    choices = statistics.target, statistics.critic_loss, statistics.actor_loss_actor, statistics.actor_loss_critic
    return "a pass has the statistics 'running_update'" if "running_update" in choices else None


class Parts(NamedTuple):
    """
    Networks, memory and storage. Without target networks, the targets are the online networks.

    :param actor: The actor, without its tanh; a :class:`GaussianParts` or :class:`FixedStdParts` if its policy is stochastic
    :param actor_target: The target actor, likewise
    :param critics: The Q-networks
    :param critic_targets: The target Q-networks
    :param actor_memory: For passes of both actors, which take turns
    :param memories: For passes of the Q-networks over a minibatch, one each; the targets' take turns with the first
    :param joint_memories: For their passes over states and next states, twice as many rows, if there is such a pass
    :param joint_rows: For states and next states, and for their actions
    :param atoms: The atoms of the Q-networks' distributions, of no entries if their outputs are values
    :param actor_storage: Parameters of the actor and of its target, gradients, Adam's moments, running statistics
    :param critic_storage: Those of all Q-networks
    :param entropy_storage: That of the entropy coefficient; where there is none, once more the actor's
    :param auxiliary: The value function, or a :class:`GeneratorParts`; where there is no further network, once more the actor,
        likewise its memory and storage
    :param auxiliary_memory: For its passes
    :param auxiliary_storage: Its parameters and what belongs to them
    """

    actor: Any
    actor_target: Any
    critics: tuple[QNetworkParts, ...]
    critic_targets: tuple[QNetworkParts, ...]
    actor_memory: Any
    memories: tuple[QMemory, ...]
    joint_memories: tuple[QMemory, ...]
    joint_rows: Any
    atoms: Any
    actor_storage: Any
    critic_storage: Any
    entropy_storage: Any
    auxiliary: Any
    auxiliary_memory: Any
    auxiliary_storage: Any


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

    :param function: The step: ``function(parts, transitions, noise, reports, rates, tau, update_actor, update_targets,
        choices)``. PyTorch runs it as it stands, and Numba compiles it with its module's ``ops`` exchanged for Numba's
        operations. What it reports is of each Q-network the loss, the mean of Q and of its absolute value; then the mean of
        the TD target, and what ``always`` and ``with_actor`` name.
    :param choices: What else it is told, a named tuple of numbers
    :param is_joint: Whether states and next states go through the Q-networks in one pass
    :param always: What else it reports, at every step, before the actor's loss
    :param with_actor: What it reports of steps that update the actor
    :param actor_class: What the actor is
    :param auxiliary_class: What the further network is, if there is one
    :param n_repeats: How many actions in each state the widest pass has
    :param unsupported: Why the operations cannot make this step, if they cannot
    """

    function: Callable[..., Any]
    choices: Any
    is_joint: bool = False
    always: tuple[str, ...] = ()
    with_actor: tuple[str, ...] = ("actor_loss",)
    actor_class: type[BaseActor] = Actor
    auxiliary_class: type[Network] | None = None
    n_repeats: int = 1
    unsupported: str | None = None
