"""
What every algorithm of the family has: arguments and their checks, noise, guards, diagnostics, the training loop, the choice
between the definition of its gradient step and faster ways, files.
"""

import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_bn_ddpg.common.atomic_files import PathOrFile
from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.common.finite_numbers import check_observation, check_transition
from sb3_bn_ddpg.common.guards import LearningGuard, check_no_answer_is_due, environment_failures
from sb3_bn_ddpg.common.hindsight import check_first_episode
from sb3_bn_ddpg.common.noise import OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.common.space_checks import check_spaces, value_errors
from sb3_bn_ddpg.common.steps import averages, on_device
from sb3_bn_ddpg.off_policy.demonstrations import DemonstratedAlgorithm, check_demonstrations, demonstrated_buffer
from sb3_bn_ddpg.off_policy.exploration import fitted_noise
from sb3_bn_ddpg.saving.models import HOW_TO_NORMALIZE, OBSERVATIONS_LOST
from sb3_bn_ddpg.saving.stored_buffer import cut_off_episodes

DIAGNOSTICS_INTERVAL = 10
"""Gradient norms, drift and saturation are measured once in this number of updates of the actor: they cost a tenth of one."""
UNREAD_INTERVALS = 5
"""And while the logger has not yet written the last ones, once in this number of these intervals."""
SATURATED = 0.98
"""Beyond it, in units of half an action's range, tanh leaves less than a twenty-fifth of the gradient."""

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="BNOffPolicyAlgorithm")


class BNOffPolicyAlgorithm(DemonstratedAlgorithm):
    """
    An off-policy actor-critic with batch norm, of which each pass says its statistics.

    A subclass has the signature, whose arguments it hands over by name, its step as the definition (:meth:`_defined_step`)
    and, if it is to have a fast update, the same step on the engine (:meth:`_step_on_engine`).

    :param arguments: The arguments of the subclass's constructor, by name. Those that SB3's ``OffPolicyAlgorithm`` does not
        know become attributes.
    :raises ValueError: if an argument is out of its range, or the action space is not a bounded ``Box``
    """

    _schedule_timesteps: int | None = None
    _hidden_noise: ActionNoise | None = None
    _largest_reward: float = 0.0  # of earlier trainings, for the guard of a model that is loaded without its replay buffer
    _largest_bonus: float = 0.0

    def __init__(self, **arguments: Any) -> None:
        setup = arguments.pop("_init_setup_model")
        env = arguments["env"]
        if env is not None:  # None when a model is loaded
            env = arguments["env"] = maybe_make_env(env, arguments["verbose"])
            check_spaces(env.observation_space, env.action_space, arguments["policy"])
        if arguments["policy_kwargs"] is not None:  # SB3's SAC writes use_sde=False into the dictionary that it is given
            arguments["policy_kwargs"] = dict(arguments["policy_kwargs"])
            if arguments["policy_kwargs"].pop("use_sde", False):
                raise ValueError(
                    "`policy_kwargs` with use_sde=True is not allowed: state-dependent exploration (gSDE) is not implemented"
                )
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
        if self.demonstrations is not None:
            self.replay_buffer_class, of_demonstrations = demonstrated_buffer(self)
            self.replay_buffer_kwargs |= of_demonstrations
            self.demonstrations, self._had_demonstrations = None, True  # or they would be in memory twice
        with value_errors(), warnings.catch_warnings():
            if self._had_demonstrations:  # whose replay buffer has been told n_steps
                warnings.filterwarnings("ignore", "`n_steps=.*is ignored", UserWarning)
            super()._setup_model()
        self.replay_buffer_class, self.replay_buffer_kwargs = buffer_class, buffer_kwargs
        self._attach_replay_buffer()
        if not (self.use_target_networks and self.has_target_actor):
            self.policy.actor_target = self.policy.actor
        if not self.use_target_networks:
            self.policy.critic_target = self.policy.critic
        self._set_up_reward_scaling()
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target
        self._check_features_extractor()
        self._learning_guard = LearningGuard(self._largest_reward, self._largest_bonus)
        self._set_up_update()
        self._check_batch_size(self.batch_size)
        self._update_optimizers()
        # A copy: two models never draw from one generator. All other noises stay the user's objects, as in SB3
        if isinstance(self.action_noise, OrnsteinUhlenbeckNoise):
            self.action_noise = self.action_noise.copy_for_model()
        self._fit_action_noise()

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

    def _fit_action_noise(self) -> None:
        assert isinstance(self.action_space, spaces.Box)
        self.action_noise = fitted_noise(self.action_noise, self.n_envs, self.action_space, self.seed)

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
        self._convert_train_freq()
        check_demonstrations(self)
        if self.use_target_networks != (self.critic_target is not self.critic):
            raise ValueError(
                f"`use_target_networks={self.use_target_networks}` is not allowed for a model that was made with "
                f"{not self.use_target_networks}: save it, and load it with the other"
            )
        self._set_up_update()
        self._set_up_reward_scaling()
        if self.replay_buffer is not None:
            self._check_steps_of(self.replay_buffer)
        if self._has_lost_a_step:
            self._last_obs = None
        continues_episode = not reset_num_timesteps and self._last_obs is not None
        if not continues_episode:
            cut_off_episodes(self.replay_buffer)  # or returns, goals and next observations would reach across the reset
            self._begin_returns()
        self._fit_action_noise()  # may have been exchanged since
        noise = self.action_noise
        if continues_episode:  # SB3 would reset it in the middle of the episode, before it initialises the callbacks
            self._hidden_noise, self.action_noise = noise, None
        try:
            result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        finally:
            self._show_hidden_noise()
        if self.action_noise is not noise:  # a callback's
            self._fit_action_noise()
        check_first_episode(self, until=self._total_timesteps)  # not before: a replay buffer may be loaded until here
        # The first steps must not see the progress at which an earlier call of learn ended
        if self._total_timesteps > 0:
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        check_observation(self, self.allow_nan_observations, self._last_obs)
        self._is_within_step = False
        if self._learned_normalized and not self._sees_normalized:
            warnings.warn(f"{OBSERVATIONS_LOST}, and goes on with the environment's own. {HOW_TO_NORMALIZE}", stacklevel=4)
        self._learned_normalized = self._sees_normalized
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
        normalize = self._vec_normalize_env
        if normalize is None or normalize.norm_obs:
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        else:  # what comes to it are not the policy's observations, if wrappers around it stack frames or move channels
            self._vec_normalize_env = None
            try:
                rewards = normalize.get_original_reward()
                super()._store_transition(replay_buffer, buffer_action, new_obs, rewards, dones, infos)
            finally:
                self._vec_normalize_env = normalize
            self._last_original_obs = self._last_obs
        self._count_returns(reward, dones)

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
        is_unread = "train/critic_grad_norm" in self.logger.name_to_value
        interval = DIAGNOSTICS_INTERVAL * self.policy_delay * (UNREAD_INTERVALS if is_unread else 1)
        is_measured = (self.policy_delay - 1 - self._n_updates) % interval < gradient_steps
        earlier = {network: network.running_statistics() for network in (self.actor, self.critic)} if is_measured else {}
        infos, batch = self._gradient_steps(gradient_steps, batch_size)

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/learning_rate", self.actor.optimizer.param_groups[0]["lr"])
        self.logger.record("train/critic_learning_rate", self.critic.optimizer.param_groups[0]["lr"])
        if self.n_steps_final is not None:
            self.logger.record("train/n_steps", self._current_n_steps())
        if self.reward_scaler is not None:
            self.logger.record("train/reward_scale", self.reward_scaler.scale)
        means = averages(infos)
        self._learning_guard.check(self, means, self._slower_targets)
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
                actions = self._actions_in(on_device(batch, self.device).observations)
            self.logger.record("train/actor_saturation", (actions.abs() > SATURATED).float().mean().item())
        if isinstance(self.action_noise, OrnsteinUhlenbeckNoise):
            self.logger.record("rollout/noise_sigma", float(np.mean(self.action_noise.sigma)))

    def _actions_in(self, observations: Any) -> th.Tensor:
        """
        :param observations: Observations of a minibatch
        :return: The deterministic actions, scaled to [-1, 1], as in acting
        """
        actions: th.Tensor = self.actor.forward_with("running", observations)
        return actions

    @property
    def _slower_targets(self) -> str:
        """Which arguments make the TD targets move more slowly."""
        if self.use_target_networks:
            return "a smaller tau"
        with_statistics = " with another target_statistics" if self.target_statistics == "joint" else ""
        return f"use_target_networks=True{with_statistics}"

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
        self._largest_bonus = self._learning_guard.largest_bonus
        if math.isfinite(self._learning_guard.largest_reward):  # else it was not known in this process, as without a buffer
            self._largest_reward = self._learning_guard.largest_reward
        super().save(path, exclude, include)

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "critic", "actor_target", "critic_target"]
        networks += ["_networks", "_fast_update", "_fast_update_classes", "_is_fast_update_checked", "_said_of_fast_update"]
        networks += ["_pass_statistics", "_learning_guard", "demonstrations"]
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
