"""What a gradient step takes and reports, whichever algorithm makes it."""

from statistics import fmean
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples

Scalar = th.Tensor | float
"""A number, which may still be on its way from a device."""


class UpdateInfo(NamedTuple):
    """What a gradient step reports, scalars all."""

    actor_loss: Scalar | None
    """None if the step left the actor alone"""
    critic_loss: Scalar
    q_value: Scalar
    """Mean of Q(s, a) before the step"""
    abs_q_value: Scalar
    """Mean of its absolute value"""
    td_target: Scalar
    """Mean of the TD target"""
    ent_coef: Scalar | None = None
    """SAC's entropy coefficient before the step"""
    ent_coef_loss: Scalar | None = None
    """Its loss, if it is learned"""
    entropy: Scalar | None = None
    """Mean of -log pi(a|s) over the actions of the actor's loss"""
    value_loss: Scalar | None = None
    """Loss of the value function V, of an algorithm that has one"""
    v_value: Scalar | None = None
    """Mean of V(s) before the step"""
    advantage: Scalar | None = None
    """Mean of the advantages in the actor's loss"""
    weight: Scalar | None = None
    """Mean of the weights that the actor's loss makes of them"""
    bc_loss: Scalar | None = None
    """Mean squared distance of the policy's actions from those of the data"""
    vae_loss: Scalar | None = None
    """Loss of the generative model of the data's actions"""


Batch = ReplayBufferSamples | DictReplayBufferSamples
"""N transitions: (N, ...) observations and next observations, (N, action_dim) actions, (N, 1) rewards and dones."""


def on_device(batch: Batch, device: th.device) -> Batch:
    """
    :param batch: A minibatch
    :param device: A device
    :return: The minibatch there: itself, unless it was sampled on the CPU for a CUDA graph
    """
    if batch.actions.device.type == device.type:
        return batch

    def moved(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {key: value.to(device) for key, value in entry.items()}
        return None if entry is None else entry.to(device)

    entries: tuple[Any, ...] = batch
    return type(batch)(*map(moved, entries))


def minibatches(batch: Batch, n: int) -> list[Batch]:
    """
    :param batch: The transitions of minibatches of one size, one after the other
    :param n: Their number
    :return: Each, in the same memory
    """
    if n == 1:
        return [batch]
    size = len(batch.actions) // n

    def part(entry: Any, index: int) -> Any:
        if isinstance(entry, dict):
            return {key: part(value, index) for key, value in entry.items()}
        return None if entry is None else entry[index * size : (index + 1) * size]

    entries: tuple[Any, ...] = batch
    return [type(batch)(*(part(entry, index) for entry in entries)) for index in range(n)]


def joined(batches: list[ReplayBufferSamples]) -> ReplayBufferSamples:
    """
    :param batches: Minibatches
    :return: Their transitions, one after the other
    """
    columns: Any = zip(*batches, strict=True)
    entries: Any = (None if column[0] is None else th.cat(column) for column in columns)
    return ReplayBufferSamples(*entries)


def averages(infos: list[UpdateInfo]) -> dict[str, float]:
    """
    :param infos: What gradient steps reported
    :return: The mean of each value over the steps that have it, by its name
    """
    named = [(name, value) for info in infos for name, value in info._asdict().items() if value is not None]
    values: dict[str, list[float]] = {}
    numbers: list[Any] = [value for _, value in named]
    if any(isinstance(number, th.Tensor) for number in numbers):
        numbers = th.stack(numbers).tolist()  # one transfer from the device for all values of all steps
    for (name, _), number in zip(named, numbers, strict=True):
        values.setdefault(name, []).append(number)
    return {name: fmean(numbers) for name, numbers in values.items()}


def concatenated(obs: PyTorchObs, next_obs: PyTorchObs) -> PyTorchObs:
    """
    :param obs: Observations, of shape ``(n, ...)``, or a dictionary of such
    :param next_obs: Likewise
    :return: Both, of shape ``(2 n, ...)``
    """
    if isinstance(obs, dict):
        assert isinstance(next_obs, dict)
        return {key: th.cat([value, next_obs[key]]) for key, value in obs.items()}
    assert isinstance(next_obs, th.Tensor)
    return th.cat([obs, next_obs])


def discounted(batch: Batch, gamma: float, next_q_values: th.Tensor) -> th.Tensor:
    """
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param next_q_values: Values of the next states, of shape ``(batch_size, 1)``, or several of each in a row
    :return: The TD targets, of shape ``(batch_size, 1)``, or several in a row
    """
    discounts = gamma if batch.discounts is None else batch.discounts
    target: th.Tensor = batch.rewards + (1 - batch.dones) * discounts * next_q_values
    return target
