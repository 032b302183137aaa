"""One gradient step of DDPG: Algorithm 1 of the paper, from the sampled transitions to the target networks."""

import math
import operator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple, get_args

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from torch import nn
from torch.nn import functional as F

from sb3_bn_ddpg.checks import check_choice
from sb3_bn_ddpg.policies import Actor, Critic
from sb3_bn_ddpg.statistics import Statistics, StatisticsSync, TargetStatistics


@dataclass(frozen=True)
class PassStatistics:
    """
    Which batch-norm statistics each forward pass of a gradient step normalises with and updates
    (see :data:`~sb3_bn_ddpg.statistics.Statistics`). Acting and predicting always use running statistics.

    :param target: Actor and critic in the TD target (the target networks, or the online ones if there are none);
        see :data:`~sb3_bn_ddpg.statistics.TargetStatistics`
    :param target_sync: How running statistics reach the target networks
    :param critic_loss: The critic in its own loss
    :param actor_loss_actor: The actor in its loss
    :param actor_loss_critic: The critic in the actor's loss
    :raises ValueError: if a value is unknown, or the combination never updates a network's running statistics
    """

    target: TargetStatistics = "batch"
    target_sync: StatisticsSync | None = "copy"
    critic_loss: Statistics = "batch_update"
    actor_loss_actor: Statistics = "batch_update"
    actor_loss_critic: Statistics = "running"

    def __post_init__(self) -> None:
        updating = ("batch_update", "running_update")
        check_choice("target_statistics", self.target, get_args(TargetStatistics))
        check_choice("target_statistics_sync", self.target_sync, (*get_args(StatisticsSync), None))
        # The running statistics that acting needs come from these two passes
        check_choice("critic_loss_statistics", self.critic_loss, updating)
        check_choice("actor_loss_actor_statistics", self.actor_loss_actor, updating)
        check_choice("actor_loss_critic_statistics", self.actor_loss_critic, get_args(Statistics))
        if self.target == "running" and self.target_sync is None:
            raise ValueError(
                "`target_statistics_sync=None` is not allowed with `target_statistics='running'`: it must be one of "
                "'copy', 'polyak', or the target networks would keep the statistics they were created with"
            )


@dataclass(frozen=True)
class Networks:
    """
    The four networks; without target networks, the last two are the first two.

    :param actor: The actor
    :param critic: The critic
    :param actor_target: The target actor
    :param critic_target: The target critic
    :param fixed_norm_actor_weights: Weights of the actor that keep their norm
    :param fixed_norm_critic_weights: Weights of the critic that keep their norm
    """

    actor: Actor
    critic: Critic
    actor_target: Actor
    critic_target: Critic
    fixed_norm_actor_weights: tuple[th.Tensor, ...] = ()
    fixed_norm_critic_weights: tuple[th.Tensor, ...] = ()

    @property
    def modules(self) -> list[nn.Module]:
        """All modules of all of them, in order."""
        return [module for net in (self.actor, self.critic, self.actor_target, self.critic_target) for module in net.modules()]

    def is_same_as(self, other: "Networks") -> bool:
        """
        :param other: Other networks
        :return: Whether these are the same objects
        """
        ours, theirs = (
            [
                *(nets.actor, nets.critic, nets.actor_target, nets.critic_target),
                *nets.fixed_norm_actor_weights,
                None,
                *nets.fixed_norm_critic_weights,
            ]
            for nets in (self, other)
        )
        return len(ours) == len(theirs) and all(map(operator.is_, ours, theirs))

    @property
    def actor_parameters(self) -> list[nn.Parameter]:
        """What the actor's loss trains: parameters can be frozen, and thawed, between two steps."""
        return [param for param in self.actor.own_parameters if param.requires_grad]

    @property
    def shares_features(self) -> bool:
        """Whether actor and critic have one features extractor."""
        return not (self.actor.owns_features_extractor and self.critic.owns_features_extractor)

    @property
    def online_parameters(self) -> list[nn.Parameter]:
        """Actor's and critic's, each once: those of a shared features extractor belong to both."""
        return list(dict.fromkeys([*self.actor.parameters(), *self.critic.parameters()]))

    @property
    def target_parameters(self) -> list[nn.Parameter]:
        """The counterparts of ``online_parameters``."""
        return list(dict.fromkeys([*self.actor_target.parameters(), *self.critic_target.parameters()]))


class UpdateInfo(NamedTuple):
    """What a gradient step reports, scalars all."""

    actor_loss: th.Tensor | None
    """None if the step left the actor alone"""
    critic_loss: th.Tensor
    q_value: th.Tensor
    """Mean of Q(s, a) before the step"""
    abs_q_value: th.Tensor
    """Mean of its absolute value"""
    td_target: th.Tensor
    """Mean of the TD target"""


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


def averages(infos: list[UpdateInfo]) -> dict[str, float]:
    """
    :param infos: What gradient steps reported
    :return: The mean of each value over the steps that have it, by its name
    """
    named = [(name, value) for info in infos for name, value in info._asdict().items() if value is not None]
    values: dict[str, list[float]] = {}
    # One transfer from the device for all values of all steps
    for (name, _), number in zip(named, th.stack([value for _, value in named]).tolist(), strict=True):
        values.setdefault(name, []).append(number)
    return {name: fmean(numbers) for name, numbers in values.items()}


def gradient_step(
    nets: Networks, batch: Batch, gamma: float, tau: float, statistics: PassStatistics, update_actor: bool = True
) -> UpdateInfo:
    """
    Minimise the critic's loss, ascend the deterministic policy gradient, move the target networks.

    :param nets: The networks, with the optimizers of actor and critic
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param tau: Polyak coefficient of the target networks, in [0, 1]
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param update_actor: Whether this step is more than the critic's: without it the actor, its running statistics and the
        target networks stay as they are, but for statistics that the target's own pass updates
    :return: Losses and values of this step
    """
    features = None
    if statistics.target == "joint":
        q_values, target, features = joint_pass(nets, batch, gamma, statistics)
    else:
        target = td_target(nets, batch, gamma, statistics)
        # Normalises with the statistics of the replayed states s and updates the critic's running ones by them (default)
        if nets.actor.owns_features_extractor:
            q_values = nets.critic.forward_with(statistics.critic_loss, batch.observations, batch.actions)[0]
        else:
            # The same in two parts, of which the first, with the statistics of the shared layers, serves the actor's loss too
            features = nets.critic.forward_with(statistics.critic_loss, batch.observations, part=nets.critic.features)
            q_values = nets.critic.forward_with(statistics.critic_loss, features, batch.actions, part=nets.critic.values_of)
    critic_loss = F.mse_loss(q_values, target)
    nets.critic.optimizer.zero_grad()
    critic_loss.backward()  # type: ignore[no-untyped-call]
    nets.critic.optimizer.step()
    restore_norms(nets.fixed_norm_critic_weights)

    values = q_values.detach()
    reported = critic_loss.detach(), values.mean(), values.abs().mean(), target.mean()
    if not update_actor:
        return UpdateInfo(None, *reported)

    # Shared features are those of before the critic's step: the convolutions are the most expensive part of a pass, and one
    # step of theirs changes little
    loss = actor_loss(nets, batch, statistics, None if features is None else features.detach())
    nets.actor.optimizer.zero_grad()
    # Only the actor's gradients: the critic's would be computed for nothing, and overwrite those of its own loss
    if trained := nets.actor_parameters:
        loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
    nets.actor.optimizer.step()
    restore_norms(nets.fixed_norm_actor_weights)

    if nets.actor_target is not nets.actor:
        move_targets(nets, tau, statistics)

    return UpdateInfo(loss.detach(), *reported)


@th.no_grad()
def td_target(nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics) -> th.Tensor:
    """
    The TD target y = r + gamma Q'(s', mu'(s')). A true termination does not bootstrap; a time limit does.

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :return: The targets, of shape ``(batch_size, 1)``
    """
    assert statistics.target != "joint", "that has no pass of its own: see joint_pass"
    # Both normalise with the statistics of the next states s' and update nothing (default): the running statistics are
    # for "exploration or evaluation" (section 3), and those of the online network do not fit the targets' older weights
    actor, critic, next_obs = nets.actor_target, nets.critic_target, batch.next_observations
    if nets.shares_features:
        # Their owner's pass: under "..._update" it alone updates the statistics of shared layers
        owner: Actor | Critic = actor if actor.owns_features_extractor else critic
        features = owner.forward_with(statistics.target, next_obs, part=owner.features)
        next_actions = actor.forward_with(statistics.target, features, part=actor.actions_of)
        next_q_values = critic.forward_with(statistics.target, features, next_actions, part=critic.values_of)
    else:
        next_actions = actor.forward_with(statistics.target, next_obs)
        next_q_values = critic.forward_with(statistics.target, next_obs, next_actions)[0]
    return discounted(batch, gamma, next_q_values)


def joint_pass(
    nets: Networks, batch: Batch, gamma: float, statistics: PassStatistics
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Q(s, a) and the TD target y = r + gamma Q(s', mu(s')) from one pass of the critic, which normalises states and next states
    with the statistics of both. Where the two are distributed differently, as where episodes end early, the statistics of each
    alone hide from the critic how they differ (`CrossQ <https://arxiv.org/abs/1902.05605>`_).

    :param nets: The networks, without target networks
    :param batch: Transitions sampled from the replay buffer
    :param gamma: Discount factor, unless the batch has its own (n-step returns)
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :return: Q-values and targets, of shape ``(batch_size, 1)`` each; features of the states if the critic's loss trains what
        extracts them for both networks
    """
    actor, critic, use, n = nets.actor, nets.critic, statistics.critic_loss, len(batch.actions)
    all_obs = concatenated(batch.observations, batch.next_observations)
    # What the policy would do at s': the actor normalises with its running statistics and updates nothing. The critic
    # normalises with the statistics of s and s' together and updates its running ones by them, once (default). The gradient
    # of the loss of Q(s, a) reaches s' through these statistics only.
    if actor.owns_features_extractor:
        shared_features = None
        with th.no_grad():
            next_actions = actor.forward_with("running", batch.next_observations)
        all_q_values = critic.forward_with(use, all_obs, th.cat([batch.actions, next_actions]))[0]
    else:
        features = critic.forward_with(use, all_obs, part=critic.features)
        shared_features = features[:n]
        with th.no_grad():
            next_actions = actor.forward_with("running", features[n:], part=actor.actions_of)
        actions = th.cat([batch.actions, next_actions])
        all_q_values = critic.forward_with(use, features, actions, part=critic.values_of)
    q_values, next_q_values = all_q_values.split(n)
    return q_values, discounted(batch, gamma, next_q_values.detach()), shared_features


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
    :param next_q_values: Values of the next states, of shape ``(batch_size, 1)``
    :return: The TD targets, of the same shape
    """
    discounts = gamma if batch.discounts is None else batch.discounts
    target: th.Tensor = batch.rewards + (1 - batch.dones) * discounts * next_q_values
    return target


def actor_loss(nets: Networks, batch: Batch, statistics: PassStatistics, features: th.Tensor | None = None) -> th.Tensor:
    """
    The loss -mean Q(s, mu(s)), whose negative gradient is the deterministic policy gradient (equation 6).

    :param nets: The networks
    :param batch: Transitions sampled from the replay buffer
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :param features: Features of the observations without a gradient, if the critic's loss trains what extracts them; their
        statistics are then those of its pass, and the choices for this loss concern the layers behind them
    :return: The loss, a scalar
    """
    actor, critic = nets.actor, nets.critic
    # The actor normalises with the statistics of this batch and updates its running ones by them (default), the critic
    # normalises with its running statistics and updates nothing (default)
    if features is None:
        actions = actor.forward_with(statistics.actor_loss_actor, batch.observations)
        q_values = critic.forward_with(statistics.actor_loss_critic, batch.observations, actions)[0]
    else:
        actions = actor.forward_with(statistics.actor_loss_actor, features, part=actor.actions_of)
        q_values = critic.forward_with(statistics.actor_loss_critic, features, actions, part=critic.values_of)
    loss: th.Tensor = -q_values.mean()
    return loss


@th.no_grad()
def restore_norms(weights: tuple[th.Tensor, ...]) -> None:
    """
    Scale weights back to the norm that they have at the initialisation (section 7) on average. Before batch norm this changes
    nothing that a network computes; but weights that grow learn ever more slowly
    (`Palenicek et al. <https://arxiv.org/abs/2506.03758>`_).

    :param weights: Weights of linear layers and convolutions, whose first dimension is the outputs'
    """
    for weight in weights:
        if not weight.requires_grad:  # frozen, as it may be at any time
            continue
        # U[-1/sqrt(f), 1/sqrt(f)] has the variance 1 / (3 f), f the fan-in
        weight.mul_(math.sqrt(weight.shape[0] / 3) / th.linalg.vector_norm(weight))


def move_targets(nets: Networks, tau: float, statistics: PassStatistics) -> None:
    """
    Move the target networks: theta' = tau theta + (1 - tau) theta', and their running statistics by ``target_sync``.

    :param nets: The networks
    :param tau: Polyak coefficient, in [0, 1]
    :param statistics: Its ``target_sync`` says how running statistics follow
    """
    polyak_update(nets.online_parameters, nets.target_parameters, tau)
    nets.actor_target.follow_statistics(nets.actor, statistics.target_sync, tau)
    nets.critic_target.follow_statistics(nets.critic, statistics.target_sync, tau)
