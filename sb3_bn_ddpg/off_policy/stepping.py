"""One gradient step of a model: by the definition of its algorithm, or on the engine where that is possible."""

import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from sb3_bn_ddpg.common.checks import check_installed
from sb3_bn_ddpg.common.hindsight import unfinished_episodes_named
from sb3_bn_ddpg.common.steps import Batch, UpdateInfo, minibatches, on_device
from sb3_bn_ddpg.datasets.mixed_buffer import MixedNStepReplayBuffer, MixedReplayBuffer
from sb3_bn_ddpg.fast.graph_update import CudaGraphUpdate
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.fast.step import DENORMAL_INTERVAL, FastStep, StepCall, UnsupportedError
from sb3_bn_ddpg.fast.update import FastUpdate
from sb3_bn_ddpg.networks.actor_critic import Networks, begin_fixed_norms
from sb3_bn_ddpg.networks.actors import BaseActor
from sb3_bn_ddpg.networks.base import Network
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.entropy import EntropyCoefficient
from sb3_bn_ddpg.networks.normalization import scale_free_weights
from sb3_bn_ddpg.off_policy.arguments import CheckedArguments
from sb3_bn_ddpg.off_policy.sampling import sample

KNOWN_BUFFERS = (ReplayBuffer, NStepReplayBuffer, MixedReplayBuffer, MixedNStepReplayBuffer)
"""Replay buffers whose samples are on the device that they are told, and need none of PyTorch's random numbers"""
ROWS_AT_ONCE = 8192
"""Transitions that are sampled at once, for several gradient steps in one call, if a minibatch has fewer."""


class SteppingAlgorithm(CheckedArguments):
    """
    An algorithm that makes gradient steps: its definition of one, the same on the engine, and the choice between them.

    A subclass has its step as the definition (:meth:`_defined_step`) and, if it is to have a fast update, the same step on the
    engine (:meth:`_step_on_engine`).
    """

    policy: BNActorCriticPolicy
    actor: BaseActor
    actor_target: BaseActor
    critic: Critic
    critic_target: Critic
    _fast_update: FastStep | None = None
    _said_of_fast_update: tuple[str, ...] = ()

    def _set_up_update(self) -> None:
        """
        Gather what a gradient step works on: the layers of the networks, and settings of them, may be others since.

        :raises ImportError: if ``fast_update`` is ``"compiled"`` and the extra is missing
        """
        auxiliary = self._auxiliary_network()
        for network in (self.actor, self.critic, self.actor_target, self.critic_target, auxiliary):
            if network is not None:
                network.find_layers()
        self._networks = Networks(
            self.actor,
            self.critic,
            self.actor_target,
            self.critic_target,
            scale_free_weights(self.actor) if self.weight_normalization == "both" else (),
            scale_free_weights(self.critic) if self.weight_normalization is not None else (),
            self._entropy(),
            auxiliary,
        )
        self._check_weight_normalization()
        if self.weight_normalization is not None:
            begin_fixed_norms(self.critic, self.critic_target)
        if self.weight_normalization == "both":
            begin_fixed_norms(self.actor, self.actor_target)
        self._fast_update_classes = self._find_fast_steps()
        self._is_fast_update_checked = False

    def _check_weight_normalization(self) -> None:
        """
        :raises ValueError: if it would keep the norm of no weight
        """
        nets = self._networks
        if self.weight_normalization is None or nets.fixed_norm_actor_weights or nets.fixed_norm_critic_weights:
            return
        whose = "the critic" if self.weight_normalization == "critic" else "actor and critic"
        raise ValueError(
            f"`weight_normalization={self.weight_normalization!r}` is not allowed: batch norm follows no weight of {whose} "
            "at once. It must be None, or `policy_kwargs` with normalization='batch' or 'batch_renorm' and "
            "norm_order='before_activation', and with an action_layer >= 2 or critic_norm_layers='all'"
        )

    def _entropy(self) -> EntropyCoefficient | None:
        """
        :return: The entropy coefficient of an algorithm that has one
        """
        return None

    def _auxiliary_network(self) -> Network | None:
        """
        :return: A further network that its step trains, of an algorithm that has one
        """
        return None

    def _sample(self, batch_size: int, n_batches: int = 1) -> Batch:
        """
        :param batch_size: Number of transitions
        :param n_batches: Number of minibatches
        :return: Minibatches of the replay buffer, one after the other, on the CPU if a CUDA graph copies it to the device
            without waiting, which only the replay buffers in ``KNOWN_BUFFERS`` allow
        """
        self._attach_replay_buffer()  # attributes may have been set since
        buffer = self.replay_buffer
        assert buffer is not None
        takes_any_device = any(kind.takes_any_device for kind in self._fast_update_classes)
        with unfinished_episodes_named(self):
            if not takes_any_device or type(buffer) not in KNOWN_BUFFERS:
                return sample(buffer, batch_size, self._vec_normalize_env, n_batches)
            device, buffer.device = buffer.device, th.device("cpu")
            try:
                return sample(buffer, batch_size, self._vec_normalize_env, n_batches)
            finally:
                buffer.device = device

    def _attach_replay_buffer(self) -> None:
        super()._attach_replay_buffer()
        buffer = getattr(self, "replay_buffer", None)
        if isinstance(buffer, NStepReplayBuffer):
            buffer.gamma = self.gamma
            if self.replay_buffer_class is None:  # else its n_steps is the user's
                buffer.n_steps = self._current_n_steps()

    def _current_n_steps(self) -> int:
        """
        :return: Number of steps of the returns at this moment of ``learn``
        """
        if self.n_steps_final is None:
            return self.n_steps
        progress: float = min(1.0, max(0.0, 1 - self._current_progress_remaining))
        share: float = (self.n_steps_final / self.n_steps) ** progress
        return round(self.n_steps * share)

    def _gradient_steps(self, n_steps: int, batch_size: int) -> tuple[list[UpdateInfo], Batch]:
        """
        Gradient steps, many in one call of the fast update.

        :param n_steps: Their number
        :param batch_size: Number of transitions in each
        :return: Losses and values of each step, and the last minibatch
        """
        infos: list[UpdateInfo] = []
        # Another buffer may draw from PyTorch's generator, in turns with the steps
        makes_many = n_steps > 1 and type(self.replay_buffer) in KNOWN_BUFFERS
        fast_update = self._current_fast_update() if makes_many else None
        while len(infos) < n_steps:
            n = 1
            if fast_update is not None:
                until_flush = DENORMAL_INTERVAL - self._n_updates % DENORMAL_INTERVAL
                n = min(n_steps - len(infos), until_flush, max(1, ROWS_AT_ONCE // batch_size))
            drawn = minibatches(batch := self._sample(batch_size, n), n)
            if n == 1 or fast_update is None:
                self._n_updates += 1
                infos.append(self._gradient_step(batch, update_actor=self._n_updates % self.policy_delay == 0))
                continue
            noises, calls = [noise for noise in map(self._step_noise, drawn) if noise is not None], []
            for _ in range(n):
                self._n_updates += 1
                update_actor = self._n_updates % self.policy_delay == 0
                calls.append(StepCall(self.gamma, self.tau, update_actor, self._updates_targets(update_actor)))
            infos += fast_update.gradient_steps(batch, th.stack(noises) if noises else None, calls)
            self._flush_denormals(fast_update)
        return infos, drawn[-1]

    def _gradient_step(self, batch: Batch, update_actor: bool = True) -> UpdateInfo:
        """
        One gradient step, by the fast update where it can be used.

        :param batch: Transitions sampled from the replay buffer
        :param update_actor: Whether it updates the actor and the target networks, too
        :return: Losses and values of this step
        """
        fast_update, noise = self._current_fast_update(), self._step_noise(batch)
        if fast_update is not None:
            update_targets = self._updates_targets(update_actor)
            info = fast_update.gradient_step(batch, self.gamma, self.tau, update_actor, noise, update_targets)
            self._flush_denormals(fast_update)
            return info
        batch, noise = on_device(batch, self.device), None if noise is None else noise.to(self.device)
        # Switch to train mode (this affects dropout: every pass of the update says which batch-norm statistics it uses)
        self.policy.set_training_mode(True)
        try:
            return self._defined_step(batch, update_actor, noise)
        finally:
            self.policy.set_training_mode(False)

    def _flush_denormals(self, fast_update: FastStep) -> None:
        if self._n_updates % DENORMAL_INTERVAL == 0:
            fast_update.flush_denormals()

    def _step_noise(self, batch: Batch) -> th.Tensor | None:
        """
        Draw the random numbers of a gradient step, the same ones for all ways to make it.

        :param batch: Its transitions
        :return: The numbers, on the minibatch's device; None if the step needs none
        """
        return None

    def _updates_targets(self, update_actor: bool) -> bool:
        """
        :param update_actor: Whether this gradient step updates the actor
        :return: Whether it moves the target networks
        """
        return update_actor

    def _defined_step(self, batch: Batch, update_actor: bool, noise: th.Tensor | None) -> UpdateInfo:
        """
        One gradient step of the algorithm by autograd, as its definition has it.

        :param batch: Transitions sampled from the replay buffer, on the model's device
        :param update_actor: Whether it updates the actor and the target networks, too
        :param noise: What :meth:`_step_noise` has drawn
        :return: Losses and values of this step
        """
        raise NotImplementedError

    def _step_on_engine(self) -> EngineStep | None:
        """
        :return: The same step written on the engine's operations, for ``fast_update``; None if there is none
        """
        return None

    @property
    def _redefines_its_step(self) -> bool:
        """Whether a subclass has another definition than the step on the engine was written for."""
        owners = [
            next(index for index, kind in enumerate(type(self).__mro__) if name in vars(kind))
            for name in ("_defined_step", "_step_on_engine")
        ]
        return owners[0] < owners[1]

    def _find_fast_steps(self) -> list[type[FastStep]]:
        """
        :return: The classes that make the step on the engine as ``fast_update`` asks, the fastest first
        :raises ImportError: if it is ``"compiled"`` and the extra is missing
        """
        if not self.fast_update or self._redefines_its_step or self._step_on_engine() is None:
            return []
        if self.device.type == "cuda":
            return [CudaGraphUpdate]
        if self.fast_update != "compiled":
            return [FastUpdate]
        check_installed("compiled", "numba", "scipy", "threadpoolctl")
        from sb3_bn_ddpg.fast.compiled_update import CompiledUpdate

        # It knows all that FastUpdate knows, on the CPU
        return [CompiledUpdate] if self.device.type == "cpu" else [CompiledUpdate, FastUpdate]

    def _current_fast_update(self) -> FastStep | None:
        """
        :return: The fast update, holding the storage of the networks as they are now; None if they are not supported
        """
        if self._is_fast_update_checked and not self._fast_update_classes:
            return None
        nets, step, kept = self._networks, self._step_on_engine(), self._fast_update
        if self._is_fast_update_checked and kept is not None and step is not None and kept.is_current(nets, step):
            return kept
        said: tuple[str, ...] = ()
        while self._fast_update_classes and step is not None:
            try:
                if type(kept) is not self._fast_update_classes[0] or not kept.fits(nets, step):
                    self._fast_update = self._fast_update_classes[0](nets, step)
                break
            except UnsupportedError as reason:
                self._fast_update_classes.pop(0)
                said += (f"Updating {'without compiled code' if self._fast_update_classes else 'by autograd'}: {reason}",)
        else:
            self._fast_update = None
        # Not at each call of learn again
        if self.verbose >= 1 and said != self._said_of_fast_update:
            print(*said, sep="\n", end="\n" if said else "")
        self._said_of_fast_update, self._is_fast_update_checked = said, True
        return self._fast_update
