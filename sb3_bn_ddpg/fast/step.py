"""What a faster way to make an algorithm's gradient step offers to the training loop."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch as th

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.networks.actor_critic import Networks

DENORMAL_INTERVAL = 100
"""Once in this number of updates, moments of the optimizers and parameters that are nearly denormal become zero."""


class StepCall(NamedTuple):
    """
    :param gamma: Discount factor, unless the batch has its own
    :param tau: Polyak coefficient of the target networks
    :param update_actor: Whether to update the actor, too
    :param update_targets: Whether to move the target networks
    """

    gamma: float
    tau: float
    update_actor: bool
    update_targets: bool


class UnsupportedError(Exception):
    """The reason why a gradient step must be made by autograd."""


class FastStep(Protocol):
    """
    A gradient step other than by autograd.

    :param nets: The networks, with the optimizers of actor and critic
    :param step: The algorithm's step
    :raises UnsupportedError: if it does not know a part of them
    """

    takes_any_device: ClassVar[bool]
    """Whether minibatches may lie on the CPU while the networks are elsewhere"""

    def __init__(self, nets: Networks, step: EngineStep) -> None: ...

    def is_current(self, nets: Networks, step: EngineStep) -> bool:
        """
        :param nets: The networks of the model
        :param step: The algorithm's step
        :return: Whether this object still holds their storage
        """
        ...

    def fits(self, nets: Networks, step: EngineStep) -> bool:
        """
        Look at everything anew, as a new object would.

        :param nets: The networks of the model
        :param step: The algorithm's step
        :return: Whether this object still serves
        :raises UnsupportedError: if it does not know a part of them
        """
        ...

    def gradient_step(
        self,
        batch: Batch,
        gamma: float,
        tau: float,
        update_actor: bool = True,
        noise: th.Tensor | None = None,
        update_targets: bool | None = None,
    ) -> UpdateInfo:
        """
        :param batch: Transitions sampled from the replay buffer
        :param gamma: Discount factor, unless the batch has its own (n-step returns)
        :param tau: Polyak coefficient of the target networks, in [0, 1]
        :param update_actor: Whether to update the actor, too
        :param noise: The random numbers that the step needs, if it needs any
        :param update_targets: Whether to move the target networks (if None: with the actor)
        :return: Losses and values of this step
        """
        ...

    def gradient_steps(self, batch: Batch, noise: th.Tensor | None, calls: Sequence[StepCall]) -> list[UpdateInfo]:
        """
        Several gradient steps, to the numbers of as many calls of :meth:`gradient_step`.

        :param batch: The transitions of the first minibatch, then those of the second and so on, all of one size
        :param noise: The random numbers that the steps need, a row for each of them; None if they need none
        :param calls: What else each of them is told, with the same ``gamma`` and ``tau``
        :return: Losses and values of each step
        """
        ...

    def flush_denormals(self) -> None:
        """Set what is too small to count to zero."""
        ...
