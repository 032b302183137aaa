"""
What every algorithm of the family has: arguments and their checks, noise, guards, diagnostics, the training loop, the choice
between the definition of its gradient step and faster ways, files.
"""

import copy
import inspect
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule, TrainFreq
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_bn_ddpg.common.atomic_files import PathOrFile
from sb3_bn_ddpg.common.checks import check_choice, check_installed, check_number, check_schedule
from sb3_bn_ddpg.common.finite_numbers import check_observation, check_transition
from sb3_bn_ddpg.common.guards import LearningGuard, check_no_answer_is_due, environment_failures
from sb3_bn_ddpg.common.hindsight import check_first_episode, unfinished_episodes_named
from sb3_bn_ddpg.common.noise import OrnsteinUhlenbeckNoise, is_self_contained
from sb3_bn_ddpg.common.space_checks import check_spaces, value_errors
from sb3_bn_ddpg.common.steps import Batch, UpdateInfo, averages, on_device
from sb3_bn_ddpg.fast.graph_update import CudaGraphUpdate
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.fast.step import DENORMAL_INTERVAL, FastStep, UnsupportedError
from sb3_bn_ddpg.fast.update import FastUpdate
from sb3_bn_ddpg.networks.actor_critic import Networks
from sb3_bn_ddpg.networks.actors import BaseActor
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.entropy import EntropyCoefficient
from sb3_bn_ddpg.networks.normalization import scale_free_weights
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics, StatisticsSync, TargetStatistics
from sb3_bn_ddpg.saving.models import SavingAlgorithm

DIAGNOSTICS_INTERVAL = 10
"""Gradient norms, drift and saturation are measured once in this number of updates of the actor: they cost a tenth of one."""
NORMAL_SIGMA = 0.1
"""Standard deviation of the noise ``"normal"``, TD3's."""
SATURATED = 0.98
"""Beyond it, in units of half an action's range, tanh leaves less than a twenty-fifth of the gradient."""

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="BNOffPolicyAlgorithm")


class BNOffPolicyAlgorithm(SavingAlgorithm):
    """
    An off-policy actor-critic with batch norm, of which each pass says its statistics.

    A subclass has the signature, whose arguments it hands over by name, its step as the definition (:meth:`_defined_step`)
    and, if it is to have a fast update, the same step on the engine (:meth:`_step_on_engine`).

    :param arguments: The arguments of the subclass's constructor, by name. Those that SB3's ``OffPolicyAlgorithm`` does not
        know become attributes.
    :raises ValueError: if an argument is out of its range, or the action space is not a bounded ``Box``
    """

    has_target_actor: ClassVar[bool] = True
    """Whether the TD target's actions come from a target network"""
    policy: BNActorCriticPolicy
    _schedule_timesteps: int | None = None
    _fast_update: FastStep | None = None
    _said_of_fast_update: tuple[str, ...] = ()
    _hidden_noise: ActionNoise | None = None
    _largest_reward: float = 0.0  # of earlier trainings, for the guard of a model that is loaded without its replay buffer
    actor: BaseActor
    actor_target: BaseActor
    critic: Critic
    critic_target: Critic

    policy_delay: int
    critic_learning_rate: float | Schedule | None
    critic_weight_decay: float
    use_target_networks: bool
    weight_normalization: Literal["critic", "both"] | None
    fast_update: bool | Literal["compiled"]
    allow_nan_observations: bool | None
    target_statistics: TargetStatistics
    target_statistics_sync: StatisticsSync | None
    critic_loss_statistics: Statistics
    actor_loss_actor_statistics: Statistics
    actor_loss_critic_statistics: Statistics

    def __init__(self, **arguments: Any) -> None:
        setup = arguments.pop("_init_setup_model")
        env = arguments["env"]
        if env is not None:  # None when a model is loaded
            env = arguments["env"] = maybe_make_env(env, arguments["verbose"])
            check_spaces(env.observation_space, env.action_space, arguments["policy"])
        of_sb3 = inspect.signature(OffPolicyAlgorithm.__init__).parameters.keys() & arguments.keys()
        super().__init__(
            **{name: arguments[name] for name in of_sb3},
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
            support_multi_env=True,
        )
        for name, value in arguments.items():
            if name not in of_sb3:
                setattr(self, name, value)
        if setup:
            self._setup_model()

    def _setup_model(self) -> None:
        # Also runs when a model is loaded, so that arguments changed by load(path, tau=...) are checked too
        self._check_arguments()
        # SB3 writes the class that it chooses, and its n_steps and gamma, over the arguments. Saved like that, they would
        # stand against load(path, n_steps=..., gamma=...), so the arguments stay what the user gave
        buffer_class, buffer_kwargs = self.replay_buffer_class, self.replay_buffer_kwargs
        self.replay_buffer_kwargs = dict(buffer_kwargs)
        was_loaded = self.replay_buffer is not None
        with value_errors():
            super()._setup_model()
        if was_loaded:
            self._attach_replay_buffer()
        self.replay_buffer_class, self.replay_buffer_kwargs = buffer_class, buffer_kwargs
        if isinstance(self.replay_buffer, NStepReplayBuffer):
            self.replay_buffer.gamma = self.gamma  # of the TD target, into which the buffer's discounts go
        if not (self.use_target_networks and self.has_target_actor):
            self.policy.actor_target = self.policy.actor
        if not self.use_target_networks:
            self.policy.critic_target = self.policy.critic
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target
        self._check_features_extractor()
        self._learning_guard = LearningGuard(self._largest_reward)
        self._set_up_update()
        self._check_batch_size(self.batch_size)
        self._update_optimizers()
        # A copy: two models never draw from one generator. All other noises stay the user's objects, as in SB3
        if isinstance(self.action_noise, OrnsteinUhlenbeckNoise):
            self.action_noise = self.action_noise.copy_for_model()
        self._set_up_action_noise()

    def _set_up_update(self) -> None:
        """
        Gather what a gradient step works on: the layers of the networks, and settings of them, may be others since.

        :raises ImportError: if ``fast_update`` is ``"compiled"`` and the extra is missing
        """
        for network in (self.actor, self.critic, self.actor_target, self.critic_target):
            network.find_layers()
        self._networks = Networks(
            self.actor,
            self.critic,
            self.actor_target,
            self.critic_target,
            scale_free_weights(self.actor) if self.weight_normalization == "both" else (),
            scale_free_weights(self.critic) if self.weight_normalization is not None else (),
            self._entropy(),
        )
        self._fast_update_classes = self._find_fast_steps()
        self._is_fast_update_checked = False

    def _entropy(self) -> EntropyCoefficient | None:
        """
        :return: The entropy coefficient of an algorithm that has one
        """
        return None

    def _check_batch_size(self, batch_size: int) -> None:
        """
        :param batch_size: Size of a minibatch
        :raises ValueError: if batch norm cannot normalise with its statistics, as one state has no variance
        """
        if batch_size < 2 and (self.actor.norm_layers or self.critic.norm_layers):
            raise ValueError(f"`batch_size={batch_size!r}` is not allowed: it must be an integer >= 2 with batch norm")

    def _check_features_extractor(self) -> None:
        """
        :raises ValueError: if it would hand NaN on to the networks
        """
        extractor = type(self.actor.features_extractor)
        if self.allow_nan_observations and extractor in (FlattenExtractor, CombinedExtractor, NatureCNN):
            raise ValueError(
                f"`allow_nan_observations=True` is not allowed with the features extractor {extractor.__name__}, which hands "
                "NaN on to the networks: name one that leaves them out, by `policy_kwargs=dict(features_extractor_class=...)`"
            )

    def _check_arguments(self) -> None:
        """
        :raises ValueError: if an argument is out of its range
        """
        policy_class = self.policy_aliases["MlpPolicy"]
        if not issubclass(self.policy_class, policy_class):
            raise ValueError(
                f"`policy={self.policy_class.__name__}` is not allowed: it must be one of "
                f"{', '.join(map(repr, self.policy_aliases))} or a subclass of {policy_class.__name__}"
            )
        check_schedule("learning_rate", self.learning_rate)
        if self.critic_learning_rate is not None:
            check_schedule("critic_learning_rate", self.critic_learning_rate)
        check_number("buffer_size", self.buffer_size, low=1, integer=True)
        learning_starts: Any = self.learning_starts
        if isinstance(learning_starts, float) and learning_starts.is_integer():  # 1e4, as scripts for SB3 have it
            self.learning_starts = int(learning_starts)
        check_number("learning_starts", self.learning_starts, integer=True)
        check_number("batch_size", self.batch_size, low=1, integer=True)
        check_number("tau", self.tau, low=0, high=1)
        check_number("gamma", self.gamma, low=0, high=1)
        check_number("gradient_steps", self.gradient_steps, low=-1, integer=True)
        if self.replay_buffer_kwargs.get("gamma", self.gamma) != self.gamma:
            raise ValueError(
                f"`replay_buffer_kwargs={self.replay_buffer_kwargs!r}` is not allowed: its gamma must be the model's "
                f"`gamma={self.gamma}`, which it has by itself"
            )
        check_number("n_steps", self.n_steps, low=1, integer=True)
        is_dict = isinstance(getattr(self, "observation_space", None), spaces.Dict)
        if self.n_steps > 1 and is_dict and self.replay_buffer_class is None:
            raise ValueError(
                f"`n_steps={self.n_steps}` is not allowed: it must be 1 where observations are dictionaries, "
                "as SB3 has no replay buffer for several steps of them"
            )
        check_number("policy_delay", self.policy_delay, low=1, integer=True)
        check_number("critic_weight_decay", self.critic_weight_decay, low=0)
        if self.seed is not None:
            check_number("seed", self.seed, low=0, high=2**32 - 1, integer=True)
            self.seed = int(self.seed)
        check_number("stats_window_size", self._stats_window_size, low=1, integer=True)
        self._stats_window_size = int(self._stats_window_size)
        check_choice("use_target_networks", self.use_target_networks, (True, False))
        check_choice("weight_normalization", self.weight_normalization, ("critic", "both", None))
        check_choice("fast_update", self.fast_update, (True, False, "compiled"))
        check_choice("allow_nan_observations", self.allow_nan_observations, (True, False, None))
        frequency, unit = self.train_freq if isinstance(self.train_freq, (tuple, list)) else (self.train_freq, "step")
        unit = getattr(unit, "value", unit)  # SB3 takes the members of its TrainFrequencyUnit as well, and makes them of words
        check_number("train_freq", frequency, low=1, integer=True)
        check_choice("train_freq", unit, ("step", "episode"))
        if unit == "episode" and self.n_envs > 1:  # they end at different steps
            raise ValueError(
                f"`train_freq=({frequency}, 'episode')` is not allowed with {self.n_envs} environments: it must count steps"
            )
        if not isinstance(self.train_freq, TrainFreq):
            self.train_freq = (int(frequency), unit)
        if (
            self.target_statistics == "joint"
            and self.target_statistics_sync is None
            and self.use_target_networks
            and self.has_target_actor
        ):
            raise ValueError(
                "`target_statistics_sync=None` is not allowed with `target_statistics='joint'` and target networks: it must "
                "be one of 'copy', 'polyak', or the target actor would keep the statistics it was created with"
            )
        self._pass_statistics = PassStatistics(
            self.target_statistics,
            self.target_statistics_sync,
            self.critic_loss_statistics,
            self.actor_loss_actor_statistics,
            self.actor_loss_critic_statistics,
        )

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        rate = self.critic_learning_rate
        self.critic_lr_schedule = self.lr_schedule if rate is None else FloatSchedule(rate)

    def _update_optimizers(self) -> None:
        """Set learning rates and weight decay for the present progress, also after an optimizer's state was loaded."""
        update_learning_rate(self.actor.optimizer, self.lr_schedule(self._current_progress_remaining))
        update_learning_rate(self.critic.optimizer, self.critic_lr_schedule(self._current_progress_remaining))
        # The first group holds the weights; biases and normalisation parameters are spared
        self.critic.optimizer.param_groups[0]["weight_decay"] = float(self.critic_weight_decay)

    def _set_up_action_noise(self) -> None:
        """
        Build the noise if a word names it, and give it one process for each environment.

        :raises ValueError: if it is not a noise, or does not fit the environment's actions
        """
        noise: Any = self.action_noise
        action_shape = self.action_space.shape
        assert action_shape is not None
        if noise == "ou":
            noise = OrnsteinUhlenbeckNoise(np.zeros(action_shape))
        elif noise == "normal":
            noise = NormalActionNoise(np.zeros(action_shape), np.full(action_shape, NORMAL_SIGMA))
        if noise is None:
            return
        if not isinstance(noise, ActionNoise):
            raise ValueError(f"`action_noise={noise!r}` is not allowed: it must be 'ou', 'normal', None or an `ActionNoise`")
        if isinstance(noise, OrnsteinUhlenbeckNoise):
            noise.set_n_envs(self.n_envs)
            if not noise.is_seeded and self.seed is not None:
                noise.set_random_seed(self.seed)
        elif isinstance(noise, VectorizedActionNoise):
            if isinstance(noise.base_noise, OrnsteinUhlenbeckNoise):
                raise ValueError(
                    f"`action_noise={noise!r}` is not allowed: `OrnsteinUhlenbeckNoise` must not be wrapped, "
                    "it has one process for each environment by itself"
                )
            if noise.n_envs != self.n_envs:  # loaded for another number of environments
                noise = VectorizedActionNoise(noise.base_noise, self.n_envs)
        elif self.n_envs > 1:
            noise = VectorizedActionNoise(noise, self.n_envs)
        self.action_noise = noise

        if not is_self_contained(noise):
            return
        # Ask a copy for its shape, and leave the global generator that SB3's noises draw from as it was
        random_state = np.random.get_state()
        noise_shape = np.shape(copy.deepcopy(noise)())
        np.random.set_state(random_state)
        allowed = [(self.n_envs, *action_shape)] + ([action_shape] if self.n_envs == 1 else [])
        if noise_shape not in allowed:
            raise ValueError(
                f"`action_noise={noise!r}` is not allowed: it returns the shape {noise_shape}, "
                f"it must return {' or '.join(map(str, allowed))} for the action space {self.action_space}"
            )

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators (python, numpy, pytorch, gym, action space, and the noise's own)

        :param seed: The seed (if None: nothing happens)
        """
        super().set_random_seed(seed)
        # In _setup_model the networks do not exist yet, and the noise of a loaded model must keep its generator
        if seed is not None and hasattr(self, "policy") and isinstance(self.action_noise, OrnsteinUhlenbeckNoise):
            self.action_noise.set_random_seed(seed)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._check_arguments()  # attributes may have been set since
        if self.use_target_networks != (self.critic_target is not self.critic):
            raise ValueError(
                f"`use_target_networks={self.use_target_networks}` is not allowed for a model that was made with "
                f"{not self.use_target_networks}: save it, and load it with the other"
            )
        self._set_up_update()
        if self._has_lost_a_step:
            self._last_obs = None
        continues_episode = not reset_num_timesteps and self._last_obs is not None
        if not continues_episode:
            self._cut_off_episodes()  # or returns, goals and next observations would reach across the reset
        self._set_up_action_noise()  # may have been exchanged since
        noise = self.action_noise
        if continues_episode:  # SB3 would reset it in the middle of the episode, before it initialises the callbacks
            self._hidden_noise, self.action_noise = noise, None
        try:
            result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        finally:
            self._show_hidden_noise()
        if self.action_noise is not noise:  # a callback's
            self._set_up_action_noise()
        check_first_episode(self, until=self._total_timesteps)  # not before: a replay buffer may be loaded until here
        # The first steps must not see the progress at which an earlier call of learn ended
        if self._total_timesteps > 0:
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        check_observation(self, self.allow_nan_observations, self._last_obs)
        self._is_within_step = False
        self._learned_normalized = self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs
        return result

    def _show_hidden_noise(self) -> None:
        if self._hidden_noise is not None:
            self.action_noise, self._hidden_noise = self._hidden_noise, None

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        self._show_hidden_noise()
        return super()._init_callback(callback, progress_bar)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, self._schedule_timesteps or total_timesteps)
        # Beyond the end, where the last episode or call of learn may lead, schedules stay at their last value
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)
        if isinstance(self.action_noise, OrnsteinUhlenbeckNoise):
            self.action_noise.update_progress(self._current_progress_remaining)

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        action, buffer_action = super()._sample_action(*args, **kwargs)
        self._learning_guard.check_actions(self, action, self._slower_targets)
        return action, buffer_action

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        # One NaN in the replay buffer poisons the running statistics for good, so nothing of such a step is stored
        check_transition(self, self.allow_nan_observations, new_obs, reward, dones, infos)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Sample the replay buffer and do the updates of networks and target networks.

        :param gradient_steps: Number of gradient steps
        :param batch_size: Number of transitions in each of them
        :raises ValueError: if batch norm cannot normalise so few, or a loss is not finite
        """
        if gradient_steps < 1:
            return
        self._check_batch_size(batch_size)
        self._update_optimizers()
        # Among these gradient steps is an update of the actor whose turn it is
        interval = DIAGNOSTICS_INTERVAL * self.policy_delay
        is_measured = (self.policy_delay - 1 - self._n_updates) % interval < gradient_steps
        earlier = {network: network.running_statistics() for network in (self.actor, self.critic)} if is_measured else {}
        assert self.replay_buffer is not None

        infos: list[UpdateInfo] = []
        for _ in range(gradient_steps):
            self._n_updates += 1
            with unfinished_episodes_named(self):
                batch = self._sample(batch_size)
            infos.append(self._gradient_step(batch, update_actor=self._n_updates % self.policy_delay == 0))

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/learning_rate", self.actor.optimizer.param_groups[0]["lr"])
        self.logger.record("train/critic_learning_rate", self.critic.optimizer.param_groups[0]["lr"])
        means = averages(infos)
        self._learning_guard.check(self, means, self._slower_targets, self._bonus(means))
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)
        for network in earlier:
            name = "actor" if network is self.actor else "critic"
            self.logger.record(f"train/{name}_grad_norm", _gradient_norm(network.optimizer))
            drift = network.statistics_drift(earlier[network])
            if drift is not None:
                self.logger.record(f"train/{name}_statistics_drift", drift)
        if is_measured:
            with th.no_grad():  # with the running statistics, as in acting
                actions = self.actor.forward_with("running", on_device(batch, self.device).observations)
            self.logger.record("train/actor_saturation", (actions.abs() > SATURATED).float().mean().item())
        if isinstance(self.action_noise, OrnsteinUhlenbeckNoise):
            self.logger.record("rollout/noise_sigma", float(np.mean(self.action_noise.sigma)))

    def _bonus(self, means: dict[str, float]) -> float:
        """
        :param means: What the last gradient steps reported
        :return: What the algorithm adds to each reward at most
        """
        return 0.0

    @property
    def _slower_targets(self) -> str:
        """Which arguments make the TD targets move more slowly."""
        if self.use_target_networks:
            return "a smaller tau"
        with_statistics = " with another target_statistics" if self.target_statistics == "joint" else ""
        return f"use_target_networks=True{with_statistics}"

    def _sample(self, batch_size: int) -> Batch:
        """
        :param batch_size: Number of transitions
        :return: That many of the replay buffer; on the CPU if a CUDA graph's update takes them to the device, for which nobody
            waits (only from buffers of which it is known what they do with their device)
        """
        buffer = self.replay_buffer
        assert buffer is not None
        takes_any_device = any(kind.takes_any_device for kind in self._fast_update_classes)
        if not takes_any_device or type(buffer) not in (ReplayBuffer, NStepReplayBuffer):
            return buffer.sample(batch_size, env=self._vec_normalize_env)
        device, buffer.device = buffer.device, th.device("cpu")
        try:
            return buffer.sample(batch_size, env=self._vec_normalize_env)
        finally:
            buffer.device = device

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
            if self._n_updates % DENORMAL_INTERVAL == 0:
                fast_update.flush_denormals()
            return info
        batch, noise = on_device(batch, self.device), None if noise is None else noise.to(self.device)
        # Switch to train mode (this affects dropout: every pass of the update says which batch-norm statistics it uses)
        self.policy.set_training_mode(True)
        try:
            return self._defined_step(batch, update_actor, noise)
        finally:
            self.policy.set_training_mode(False)

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

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        schedule_timesteps: int | None = None,
    ) -> SelfAlgorithm:
        """
        Train the model.

        :param total_timesteps: Number of environment steps
        :param callback: Callback(s) called at every step with the state of the algorithm
        :param log_interval: Number of episodes between two logs
        :param tb_log_name: Name of the run for TensorBoard (if empty: the class's)
        :param reset_num_timesteps: Whether to start counting steps anew; if not, the episode and its noise go on
        :param progress_bar: Whether to display a progress bar
        :param schedule_timesteps: Number of environment steps, those of earlier calls included, after which schedules end
            (>= 1). If None, they end with this call; give it if this call is a part of a longer training.
        :return: The trained model
        :raises ValueError: if the environment returns a reward or an observation that is not finite, or a loss is not. (What
            the environment itself raises comes out as it is, with a note of the step and of the environment.)
        :raises EnvironmentFailureError: if the environment's processes were interrupted in the middle of an earlier step
        """
        if schedule_timesteps is not None:
            check_number("schedule_timesteps", schedule_timesteps, low=1, integer=True)
        self._schedule_timesteps = schedule_timesteps
        check_no_answer_is_due(self)
        with environment_failures(self):
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name or type(self).__name__,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )

    def save(self, path: PathOrFile, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file.

        :param path: path to the file where the rl agent should be saved; an existing one is replaced only when all is written
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        self._learning_guard.note_rewards(self)
        self._largest_reward = self._learning_guard.largest_reward
        super().save(path, exclude, include)

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "critic", "actor_target", "critic_target"]
        networks += ["_networks", "_fast_update", "_fast_update_classes", "_is_fast_update_checked", "_said_of_fast_update"]
        networks += ["_pass_statistics", "_learning_guard"]
        return super()._excluded_save_params() + networks

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []


def _gradient_norm(optimizer: th.optim.Optimizer) -> float:
    """
    :param optimizer: The optimizer of a network
    :return: The Euclidean norm of the gradient of its parameters, before weight decay
    """
    gradients = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    return th.nn.utils.get_total_norm(gradients).item()
