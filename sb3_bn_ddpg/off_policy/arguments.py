"""The arguments that all algorithms of the family have, and their checks."""

from typing import Any, ClassVar, Literal

from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule, TrainFreq
from stable_baselines3.her import HerReplayBuffer

from sb3_bn_ddpg.common.checks import check_choice, check_number, check_schedule
from sb3_bn_ddpg.common.vec_env_layers import layers_of
from sb3_bn_ddpg.datasets.transitions import Dataset
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics, StatisticsSync, TargetStatistics
from sb3_bn_ddpg.saving.models import SavingAlgorithm


class CheckedArguments(SavingAlgorithm):
    """An algorithm whose arguments are checked, whenever they may have changed."""

    has_target_actor: ClassVar[bool] = True
    """Whether the TD target's actions come from a target network"""

    n_steps_final: int | None = None
    demonstrations: Dataset = None
    demonstration_ratio: float | None = 0.5
    policy_delay: int
    critic_learning_rate: float | Schedule | None
    critic_weight_decay: float
    use_target_networks: bool
    weight_normalization: Literal["critic", "both"] | None
    reward_scaling: Any = None
    fast_update: bool | Literal["compiled"]
    allow_nan_observations: bool | None
    target_statistics: TargetStatistics
    target_statistics_sync: StatisticsSync | None
    critic_loss_statistics: Statistics
    actor_loss_actor_statistics: Statistics
    actor_loss_critic_statistics: Statistics

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
        self._check_final_steps()
        if self.demonstration_ratio is not None:
            check_number("demonstration_ratio", self.demonstration_ratio, low=0, high=1)
        check_number("policy_delay", self.policy_delay, low=1, integer=True)
        check_number("critic_weight_decay", self.critic_weight_decay, low=0)
        if self.seed is not None:
            check_number("seed", self.seed, low=0, high=2**32 - 1, integer=True)
            self.seed = int(self.seed)
        check_number("stats_window_size", self._stats_window_size, low=1, integer=True)
        self._stats_window_size = int(self._stats_window_size)
        check_choice("use_target_networks", self.use_target_networks, (True, False))
        check_choice("weight_normalization", self.weight_normalization, ("critic", "both", None))
        self._check_reward_scaling()
        check_choice("fast_update", self.fast_update, (True, False, "compiled"))
        check_choice("allow_nan_observations", self.allow_nan_observations, (True, False, None))
        self._check_normalized_last()
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

    def _check_final_steps(self) -> None:
        """
        :raises ValueError: if ``n_steps_final`` is out of its range, or the replay buffer is not the model's to shorten
        """
        if self.n_steps_final is None:
            return
        check_number("n_steps_final", self.n_steps_final, low=1, high=self.n_steps, integer=True)
        if self.replay_buffer_class is not None:
            raise ValueError(
                f"`n_steps_final={self.n_steps_final}` is not allowed with `replay_buffer_class="
                f"{self.replay_buffer_class.__name__}`: it must be None, as `n_steps` then counts for nothing"
            )

    def _check_reward_scaling(self) -> None:
        """
        :raises ValueError: if ``reward_scaling`` is out of its range, or something else scales or exchanges rewards
        """
        check_choice("reward_scaling", self.reward_scaling, ("return_std", None))
        if self.reward_scaling is None:
            return
        buffer_class = self.replay_buffer_class
        if isinstance(buffer_class, type) and issubclass(buffer_class, HerReplayBuffer):
            raise ValueError(
                f"`reward_scaling={self.reward_scaling!r}` is not allowed with HerReplayBuffer: it must be None, as the "
                "sampled rewards are not those of the goals that the returns were measured for"
            )
        self._check_scaled_once()

    def _check_normalized_last(self) -> None:
        """
        :raises ValueError: if wrappers outside of a ``VecNormalize`` make other observations of its own: SB3 stores those that
            come to it, and normalises them when they are sampled
        """
        normalize = self._vec_normalize_env
        if normalize is None or not normalize.norm_obs or self.observation_space == normalize.observation_space:
            return
        layers: Any = layers_of(self.env)
        around = layers[: layers.index(normalize)]
        outside = [type(layer).__name__ for layer in around if layer.observation_space != layer.venv.observation_space]
        order = "(".join(["VecNormalize", *outside, "..."]) + ")" * (1 + len(outside))
        raise ValueError(
            f"`env` with {' and '.join(outside)} around VecNormalize is not allowed: the replay buffer gets the observations "
            f"that come to VecNormalize, so nothing behind it may change them. Make it {order}, or with norm_obs=False; in a "
            "hyperparameter file name VecFrameStack as `vec_env_wrapper` in the place of `frame_stack`"
        )

    def _check_scaled_once(self) -> None:
        """
        :raises ValueError: if both ``reward_scaling`` and ``VecNormalize`` scale rewards
        """
        normalize = self._vec_normalize_env
        if self.reward_scaling is not None and normalize is not None and normalize.norm_reward:
            raise ValueError(
                f"`reward_scaling={self.reward_scaling!r}` is not allowed with a VecNormalize that scales rewards, too: it "
                "must be None, or VecNormalize be made with norm_reward=False"
            )
