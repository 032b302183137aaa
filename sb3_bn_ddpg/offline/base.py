"""The base of the offline algorithms: a dataset in the place of an environment, gradient steps in the place of steps."""

import time
import warnings
from collections import deque
from typing import Any, ClassVar, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger

from sb3_bn_ddpg.common.atomic_files import PathOrFile
from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.common.space_checks import check_spaces
from sb3_bn_ddpg.datasets.dataset_buffer import DatasetBuffer, RewardScaling, dataset_buffer
from sb3_bn_ddpg.datasets.mixed_buffer import MixedReplayBuffer
from sb3_bn_ddpg.datasets.transitions import Dataset, check_order, transitions_of
from sb3_bn_ddpg.offline.going_online import OnlineLearning
from sb3_bn_ddpg.offline.no_environment import NoEnvironment, no_environment  # noqa: F401  # older checkpoints name it here
from sb3_bn_ddpg.saving.models import SelfSaving

NO_DICTIONARIES = (
    "offline algorithms know no dictionaries of observations. Wrap the environment into "
    "`gymnasium.wrappers.FlattenObservation`, which makes vectors of them, for MlpPolicy; a dataset's become the same vectors"
)

SelfOffline = TypeVar("SelfOffline", bound="BNOfflineAlgorithm")

ONLINE_ARGUMENTS: dict[str, Any] = dict(
    buffer_size=1,  # of the empty one of a model without a dataset
    learning_starts=0,
    train_freq=1,
    gradient_steps=-1,  # one for each step of each environment
    action_noise=None,
    replay_buffer_class=None,
    replay_buffer_kwargs=None,
    optimize_memory_usage=False,
    n_steps=1,
)
"""Arguments of the base that mean nothing while nothing is collected."""
FIXED_ARGUMENTS: dict[str, Any] = dict(
    policy_delay=1,
    use_target_networks=True,
    weight_normalization=None,
    fast_update=False,  # of one whose step is not written on the engine's operations
    allow_nan_observations=None,
    actor_loss_critic_statistics="running",
)
"""Arguments of the base that an offline algorithm need not have."""


class BNOfflineAlgorithm(OnlineLearning):
    """
    An algorithm that learns from stored transitions. ``learn(n)`` makes ``n`` gradient steps and leaves the environment alone;
    ``num_timesteps``, and with it the progress bar, callbacks, TensorBoard and schedules, counts these.

    The transitions are the model's replay buffer. As any replay buffer they are no part of the file of ``save``: for more
    learning, ``load(path, dataset=...)`` takes them again. They are in the file of ``save_checkpoint``, from which ``resume``
    goes on to the bit without the dataset; so each checkpoint takes as much disk as they take memory.

    A subclass has a signature and the definition of a gradient step, as of
    :class:`~sb3_bn_ddpg.off_policy.BNOffPolicyAlgorithm`.

    :param arguments: The arguments of the subclass's constructor, by name; those of the base that are missing get the values
        of this file
    :raises ValueError: if an argument is out of its range, or the dataset does not fit the environment
    """

    has_target_actor: ClassVar[bool] = False
    learns_from_dataset = True
    _steps_environment = False
    action_limit: ClassVar[float] = 1.0
    """What the dataset's actions are clipped to, scaled to [-1, 1]"""
    acts_at_random: ClassVar[bool] = True
    """Whether the policy explores by itself, so that ``learn_online`` needs no noise"""

    dataset: Dataset
    reward_scaling: RewardScaling = None
    _learned_reward_factor: float | None = None

    def __init__(self, **arguments: Any) -> None:
        setup = arguments.pop("_init_setup_model")
        if arguments["dataset"] is not None:
            arguments["dataset"] = transitions_of(arguments["dataset"])
        data = arguments["dataset"]
        if arguments["env"] is None and data is not None:
            if None in (data.observation_space, data.action_space):
                raise ValueError(
                    "`env=None` is not allowed with a dataset that does not know its spaces: it must be an environment"
                )
            check_spaces(data.observation_space, data.action_space, arguments["policy"])
            arguments["env"] = no_environment(data.observation_space, data.action_space)
        if arguments["env"] is not None:
            env = arguments["env"] = maybe_make_env(arguments["env"], arguments["verbose"])
            if isinstance(env.observation_space, spaces.Dict):
                raise ValueError(f"`env` with the observation space {env.observation_space} is not allowed: {NO_DICTIONARIES}")
        super().__init__(**(ONLINE_ARGUMENTS | FIXED_ARGUMENTS | arguments | dict(_init_setup_model=setup)))

    def _setup_model(self) -> None:
        self._check_arguments()
        data, self.dataset = self.dataset, None  # or it would be in memory twice
        if data is not None:
            check_order(data, self.env)
            self._check_vec_normalize()
            self.replay_buffer = dataset_buffer(
                data,
                self.observation_space,
                self.action_space,  # type: ignore[arg-type]  # a Box: it has been checked
                self.device,
                self.reward_scaling,
                self.action_limit,
            )
        super()._setup_model()
        if data is not None:
            self._use_dataset()

    def _use_dataset(self) -> None:
        """
        Take what else the algorithm has from a dataset, when a model is made or has not learned yet. A loaded model gets the
        saved one's back.
        """

    def _refuse_joint_pass(self) -> None:
        """
        :raises ValueError: if states and next states are to go through the critics in one pass
        """
        if self.target_statistics == "joint":
            raise ValueError(
                "`target_statistics='joint'` is not allowed: it must be one of 'running', 'batch', 'running_update', "
                f"'batch_update': the target of {type(self).__name__} is not that of one action in each next state"
            )

    def _note_reward_factor(self) -> None:
        """
        Warn if the rewards are multiplied by another factor than those that the model has learned from.
        """
        factor, before = self._dataset_and_new().reward_factor, self._learned_reward_factor
        if self._n_updates > 0 and before is not None and not np.isclose(factor, before, rtol=1e-4):
            warnings.warn(
                f"The rewards of this dataset are multiplied by {factor:.6g}, those that the model has learned from were by "
                f"{before:.6g}: its critics are of that unit. `load(..., reward_scaling={before:.6g})` keeps it",
                stacklevel=4,
            )
        self._learned_reward_factor = float(factor)

    def _check_reward_scaling(self) -> None:
        if self.reward_scaling is not None:
            check_number("reward_scaling", self.reward_scaling, low=0, low_open=True, words=("return_range",))

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self._steps_environment:
            self._note_reward_factor()
            return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        # As SB3's, without its reset of the environment
        self._check_arguments()  # attributes may have been set since
        self._check_vec_normalize()
        self._note_reward_factor()
        if self.env is None:  # of a model that was loaded without one; callbacks ask for it
            self.env = self._wrap_env(no_environment(self.observation_space, self.action_space), verbose=0)
        self._set_up_update()
        self._learned_normalized = self._sees_normalized
        self.start_time = time.time_ns()
        if self.ep_info_buffer is None or self.ep_success_buffer is None or reset_num_timesteps:
            self.ep_info_buffer = deque(maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        if reset_num_timesteps:
            self.num_timesteps = 0
        self._num_timesteps_at_start = self.num_timesteps
        self._total_timesteps = self.num_timesteps + total_timesteps
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        if self._total_timesteps > 0:
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        return self._total_timesteps, self._init_callback(callback, progress_bar)

    def learn(
        self: SelfOffline,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1000,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        schedule_timesteps: int | None = None,
    ) -> SelfOffline:
        """
        Make gradient steps on the dataset.

        :param total_timesteps: Number of gradient steps
        :param callback: Callback(s) called at every gradient step with the state of the algorithm
        :param log_interval: Number of gradient steps between two logs (if None: none)
        :param tb_log_name: Name of the run for TensorBoard (if empty: the class's)
        :param reset_num_timesteps: Whether to start counting steps anew
        :param progress_bar: Whether to display a progress bar
        :param schedule_timesteps: Number of gradient steps, those of earlier calls included, after which schedules end (>= 1).
            If None, they end with this call; give it if this call is a part of a longer training.
        :return: The trained model
        :raises ValueError: if the model has no dataset, or a loss is not finite
        """
        if schedule_timesteps is not None:
            check_number("schedule_timesteps", schedule_timesteps, low=1, integer=True)
        if log_interval is not None:
            check_number("log_interval", log_interval, low=1, integer=True)
        self._schedule_timesteps = schedule_timesteps
        self._steps_environment = False
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        # SB3's callbacks, and RL Zoo's, look for these among the local variables: no episode ends
        dones, infos = np.zeros(1, dtype=bool), [{}]  # type: ignore[var-annotated]
        callback.on_training_start(locals(), globals())
        goes_on = True
        while goes_on and self.num_timesteps < total_timesteps:
            callback.on_rollout_start()
            self.train(gradient_steps=1, batch_size=self.batch_size)
            self.num_timesteps += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            callback.update_locals(locals() | dict(dones=dones, infos=infos))
            goes_on = callback.on_step()
            callback.on_rollout_end()
            if log_interval is not None and self.num_timesteps % log_interval == 0:
                self._dump_gradient_steps()
        callback.on_training_end()
        return self

    def load_replay_buffer(self, path: PathOrFile, truncate_last_traj: bool = True) -> None:
        """
        Load what a model of an offline algorithm learned from, which its ``save_replay_buffer`` has written; after
        :meth:`learn_online`, any replay buffer in the place of the new transitions.

        :param path: Path to the pickled replay buffer.
        :param truncate_last_traj: Whether the last trajectory is taken as finished
        :raises ValueError: if the model has no dataset beside which it would be the new transitions; the present one stays
        """
        before = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        if not isinstance(self.replay_buffer, (DatasetBuffer, MixedReplayBuffer)):
            kind, self.replay_buffer = type(self.replay_buffer).__name__, before
            raise ValueError(
                f"`path={path!r}`, a {kind}, is not allowed for a model that has not learned online: as its dataset, "
                f"pass it to the constructor, `dataset={path!r}`, or {self._how_to_load}"
            )
        if self._n_updates == 0:
            self._use_dataset()

    def _dump_gradient_steps(self) -> None:
        """Write the log: the last step's losses and values, and how fast the steps are."""
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    @classmethod
    def load(cls: type[SelfSaving], *args: Any, **kwargs: Any) -> SelfSaving:
        """
        Load the model from a zip-file, as :meth:`sb3_bn_ddpg.saving.models.SavingAlgorithm.load`, whose arguments it has. To
        predict, the file is enough; to learn on, pass the ``dataset`` too.

        :param args: As of the base
        :param kwargs: As of the base; ``dataset`` is what it learns from
        :return: The model
        """
        if kwargs.get("dataset") is not None:
            kwargs["dataset"] = transitions_of(kwargs["dataset"])
        model: Any = super().load(*args, **kwargs)
        if kwargs.get("dataset") is not None and model._n_updates == 0:
            model._use_dataset()  # anew: what the file has is of no dataset, or of another one
        loaded: SelfSaving = model
        return loaded

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "dataset"]
