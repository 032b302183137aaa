"""The life cycle of a step of a training: what a checkpoint, a callback and the next call of ``learn`` must know of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn

from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy
from sb3_bn_ddpg.saving.callback_state import restore_callback_states


class StepLifeCycle(OffPolicyAlgorithm):
    """
    An algorithm that knows where in a step it is.

    :ivar _callback: The callbacks of the last call of ``learn``
    :ivar _is_within_step: Whether an action was chosen whose transition is not stored
    :ivar _is_collecting: Whether a rollout is running
    :ivar _is_training_due: Whether it has stored transitions, so that gradient steps follow
    :ivar _is_stopped: Whether a callback ended the last one, in the middle of a step
    :ivar _learned_normalized: Whether the last training's observations were those of ``VecNormalize``
    :ivar _pending_callback_states: Counters of a checkpoint's callbacks, for the next call of ``learn``
    :ivar _steps_environment: Whether ``learn`` acts in the environment, so that a checkpoint must know where that is
    :ivar _is_new_episode_told: Whether a warning told that checkpoints resume with a new episode
    """

    policy: BNActorCriticPolicy
    _callback: BaseCallback | None = None
    _is_within_step: bool = False
    _is_collecting: bool = False
    _is_training_due: bool = False
    _is_stopped: bool = False
    _learned_normalized: bool = False
    _pending_callback_states: Any = None
    _steps_environment: bool = True
    _is_new_episode_told: bool = False

    @property
    def _sees_normalized(self) -> bool:
        """Whether the environment's observations are those of ``VecNormalize``."""
        return self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs

    @property
    def remaining_timesteps(self) -> int:
        """How many steps the last call of ``learn`` still had to take when it was interrupted."""
        return max(self._total_timesteps - self.num_timesteps, 0)

    def begin_episodes(self) -> None:
        """Reset the environment between two steps of a training, as ``learn`` does at its start."""
        assert self.env is not None
        self._last_obs = self.env.reset()  # type: ignore[assignment]
        if self.action_noise is not None:
            self.action_noise.reset()
        self._last_episode_starts = np.ones((self.env.num_envs,), dtype=bool)
        if self._vec_normalize_env is not None:
            self._last_original_obs = self._vec_normalize_env.get_original_obs()
        self._is_within_step = False

    @property
    def _has_lost_a_step(self) -> bool:
        """
        Whether the environment may have made a step that is not stored, as one in whose middle an interrupt, an error or a
        callback ended ``learn``: the last observation is then not where the environment is, so the episode cannot go on.
        """
        return self._last_obs is not None and self._is_within_step

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """As SB3's."""
        self._is_collecting, self._is_training_due, self._is_stopped = True, False, False
        try:
            rollout = super().collect_rollouts(*args, **kwargs)
            self._is_stopped = not rollout.continue_training
            self._is_within_step = self._is_stopped  # a subclass may store transitions by itself
            return rollout
        finally:
            self._is_collecting = self._is_training_due = False

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        self._is_within_step = True  # until its transition is stored
        return super()._sample_action(*args, **kwargs)

    def _store_transition(self, *args: Any, **kwargs: Any) -> None:
        super()._store_transition(*args, **kwargs)
        self._is_within_step, self._is_training_due = False, True

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        self._callback = super()._init_callback(callback, progress_bar)
        if self._pending_callback_states is not None and self.num_timesteps > 0:  # 0: learn counts anew
            restore_callback_states(self._callback, self._pending_callback_states)
        self._pending_callback_states = None
        return self._callback

    def _excluded_save_params(self) -> list[str]:
        own = ["_callback", "_is_collecting", "_is_training_due", "_is_stopped", "_pending_callback_states"]
        return [*super()._excluded_save_params(), *own, "_is_new_episode_told"]
