"""From a dataset on into the environment."""

from typing import Any, Literal, TypeVar

from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.datasets.dataset_buffer import DatasetBuffer
from sb3_bn_ddpg.datasets.mixed_buffer import MixedReplayBuffer
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.off_policy.exploration import noise_to_go_on_with
from sb3_bn_ddpg.offline.no_environment import NoEnvironment
from sb3_bn_ddpg.saving.models import HOW_TO_NORMALIZE, OBSERVATIONS_LOST

SelfOnline = TypeVar("SelfOnline", bound="OnlineLearning")


class OnlineLearning(BNOffPolicyAlgorithm):
    """An algorithm that has learned from a dataset, and goes on in the environment, with a part of each minibatch from it."""

    def learn_online(
        self: SelfOnline,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        schedule_timesteps: int | None = None,
        dataset_share: float | None = 0.5,
        buffer_size: int = 1_000_000,
        learning_starts: int = 0,
        action_noise: ActionNoise | Literal["normal", "ou"] | None = None,
    ) -> SelfOnline:
        """
        Go on learning in the environment, or in several, one gradient step for each of their steps. The first arguments are
        those of :meth:`~sb3_bn_ddpg.off_policy.BNOffPolicyAlgorithm.learn`; those after ``schedule_timesteps`` hold for this
        call (:meth:`go_on_online` is the next one with the same), but for ``buffer_size``, which is that of the first call.

        Rewards of the environment are multiplied by what ``reward_scaling`` made of the dataset's. ``learn`` goes on with the
        dataset and the new transitions, as ``dataset_share`` says.

        :param total_timesteps: Number of environment steps
        :param callback: Callback(s) called at every step with the state of the algorithm
        :param log_interval: Number of episodes between two logs
        :param tb_log_name: Name of the run for TensorBoard (if empty: the class's)
        :param reset_num_timesteps: Whether to start counting steps anew; if not, gradient steps count as steps so far
        :param progress_bar: Whether to display a progress bar
        :param schedule_timesteps: Number of steps, those of earlier calls included, after which schedules end (>= 1)
        :param dataset_share: How much of each minibatch is from the dataset, in [0, 1]: 0.5 as in
            `RLPD <https://arxiv.org/abs/2302.02948>`_. With None, the dataset and the new transitions are one replay buffer.
        :param buffer_size: Size of the replay buffer of new transitions (>= 1)
        :param learning_starts: How many steps of this call to act at random before its first gradient step
        :param action_noise: Noise that is added to the actions: ``"normal"``, ``"ou"``, an instance, or None for a policy
            whose actions are random by themselves
        :return: The trained model
        :raises ValueError: if an argument is out of its range, the model has no dataset or no environment
        :raises RuntimeError: if the model was made without an environment
        """
        if dataset_share is not None:
            check_number("dataset_share", dataset_share, low=0, high=1)
        check_number("buffer_size", buffer_size, low=1, integer=True)
        check_number("learning_starts", learning_starts, low=0, integer=True)
        buffer = self._dataset_and_new()
        self.check_may_go_online()
        assert isinstance(self.action_space, spaces.Box)
        noise = noise_to_go_on_with(self.action_noise, action_noise, self.n_envs, self.action_space, self.seed)
        if isinstance(buffer, DatasetBuffer):
            spaces_of_buffer = (self.observation_space, self.action_space)
            buffer = MixedReplayBuffer(buffer_size, *spaces_of_buffer, self.device, self.n_envs, dataset=buffer)
            self.replay_buffer = buffer
        buffer.take_share("dataset_share", dataset_share, self.batch_size)
        if learning_starts > 0 and not reset_num_timesteps:
            learning_starts += self.num_timesteps  # SB3 counts them from the first step, which may be one of gradient
        self.learning_starts, self.action_noise = learning_starts, noise
        self._steps_environment = True
        return super().learn(
            total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
            schedule_timesteps=schedule_timesteps,
        )

    def check_may_go_online(self) -> None:
        """
        :raises ValueError: if there is no environment, or one whose observations or rewards would be others than the dataset's
        :raises RuntimeError: if the model was made without an environment
        """
        if self.env is None:
            raise ValueError("`env=None` is not allowed for learning in an environment: give the model one with `set_env`")
        if isinstance(self.env, DummyVecEnv) and isinstance(self.env.envs[0].unwrapped, NoEnvironment):
            self.env.reset()  # which says so
        self._check_vec_normalize()

    def _check_vec_normalize(self) -> None:
        """
        :raises ValueError: if the environment's ``VecNormalize`` would change what the dataset's numbers mean, or is missing
        """
        normalize = self.get_vec_normalize_env()
        if self._learned_normalized and not self._sees_normalized:
            raise ValueError(f"`env` without VecNormalize is not allowed. {OBSERVATIONS_LOST}: {HOW_TO_NORMALIZE}")
        if normalize is None:
            return
        if normalize.training and (normalize.norm_obs or normalize.norm_reward):
            raise ValueError(
                "`env` with a VecNormalize that adapts its statistics is not allowed for learning from a dataset: what was "
                "learned would be for other numbers. Set its `training` to False, or leave it out (RL Zoo: no `normalize`); "
                "`policy_kwargs=dict(normalization='batch')` normalises within the networks"
            )
        self._check_scaled_once()

    def _dataset_and_new(self) -> DatasetBuffer | MixedReplayBuffer:
        """
        :return: What the model learns from
        :raises ValueError: if there is none, or ``reward_scaling`` is no longer that which its rewards were scaled by
        """
        buffer = self.replay_buffer
        if not isinstance(buffer, (DatasetBuffer, MixedReplayBuffer)):
            raise ValueError(f"`dataset=None` is not allowed for learning: {self._how_to_load}")
        scaling = (buffer if isinstance(buffer, DatasetBuffer) else buffer.dataset).reward_scaling
        if scaling not in ("unknown", self.reward_scaling):
            raise ValueError(
                f"`reward_scaling={self.reward_scaling!r}` is not allowed for a model of a dataset scaled by {scaling!r}: "
                f"save it, and {self._how_to_load}"
            )
        return buffer

    @property
    def learns_online(self) -> bool:
        """Whether the last training, perhaps that of a checkpoint, was in the environment."""
        return self._steps_environment

    def go_on_online(self: SelfOnline, total_timesteps: int, **kwargs: Any) -> SelfOnline:
        """
        As :meth:`learn_online`, with the settings of its last call, that of a checkpoint's training for example.

        :param total_timesteps: Number of environment steps
        :param kwargs: Further arguments of ``learn_online``
        :return: The trained model
        :raises ValueError: if there was none
        """
        buffer = self.replay_buffer
        if not isinstance(buffer, MixedReplayBuffer):
            raise ValueError("`go_on_online` is not allowed before `learn_online`, with whose settings it goes on")
        settings = dict(
            dataset_share=buffer.dataset_share,
            learning_starts=max(self.learning_starts - self.num_timesteps, 0),  # those that are left
            action_noise=self.action_noise,
        )
        return self.learn_online(total_timesteps, **(settings | kwargs))

    @property
    def _how_to_load(self) -> str:
        return f"load the model with it, `{type(self).__name__}.load(path, dataset=...)`"
