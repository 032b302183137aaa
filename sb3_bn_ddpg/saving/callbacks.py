"""Callbacks for training."""

import pathlib

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EventCallback

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.saving.environment_state import allows_resets, capture
from sb3_bn_ddpg.saving.models import SavingAlgorithm
from sb3_bn_ddpg.saving.stored_buffer import cut_off_episodes


class CheckpointEvery(BaseCallback):
    """
    Write a checkpoint every ``save_freq`` steps, and at the end. It replaces the one before when all of it is on the disk, so
    that there is a good one at any moment; the algorithm's ``resume`` goes on from it.

    An environment whose state is not known resumes with a new episode. If there is a single one, checkpoints wait for the end
    of its episode, and the running training resets it once more there: so it takes the same steps as a resumed one, if
    resetting depends on nothing but the environment's ``np_random``. They wait for ``save_freq`` steps at most; where no
    episode ended in these, the next ones do not wait until one does. (With rollouts of several steps, ``train_freq``, it is
    the end of the rollout in which an episode ended; the next one is cut off there. Where it is not known whether the
    environment can be reset early, as with a ``Monitor`` that does not allow it, checkpoints do not wait.)

    :param save_freq: Steps of the training (all environments together) between two checkpoints, >= 1
    :param path: The file
    :param verbose: Verbosity level: 1 tells of each checkpoint
    :raises ValueError: if ``save_freq`` is out of its range, or (in ``learn``) if it is inside of another callback that
        waits for events, as ``EveryNTimesteps``
    """

    model: SavingAlgorithm

    def __init__(self, save_freq: int, path: str | pathlib.Path, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_number("save_freq", save_freq, low=1, integer=True)
        self.save_freq = save_freq
        self.path = pathlib.Path(path)
        self._saved_at = 0
        self._is_between_steps = True
        self._waits_for_episode = False
        self._has_episode_ended = False  # since a checkpoint is due
        self._due_since: int | None = None
        self._is_continuing = False  # whether no episode ended while the last checkpoint waited for that

    def _on_training_start(self) -> None:
        if isinstance(self.parent, EventCallback):
            raise ValueError(
                f"`CheckpointEvery` is not allowed in `{type(self.parent).__name__}`, which calls it in the middle of steps "
                "only: it must be passed to `learn`, and has a `save_freq` of its own"
            )
        self._saved_at = self.model.num_timesteps
        self._is_between_steps = True
        # Of several environments, episodes end at different times
        self._waits_for_episode = (
            self.model._steps_environment
            and self.model.n_envs == 1
            and allows_resets(self.training_env)
            and capture(self.training_env).not_offered is not None
        )
        self._has_episode_ended, self._is_continuing, self._due_since = False, False, None

    def _on_rollout_start(self) -> None:
        # Here the last transition is stored and trained on: learn would begin in the same state
        self._is_between_steps = True
        now = self.model.num_timesteps
        if now // self.save_freq == self._saved_at // self.save_freq:
            self._has_episode_ended = False
            return
        self._due_since = now if self._due_since is None else self._due_since
        if not self._waits_for_episode:
            self._save()
        elif self._has_episode_ended:
            cut_off_episodes(self.model.replay_buffer)
            self._save()
            self.model.begin_episodes()
        elif self._is_continuing or now - self._due_since >= self.save_freq:
            self._is_continuing = True
            self._save()

    def _on_step(self) -> bool:
        self._is_between_steps = False  # the environment has made its step, which is not stored yet
        has_ended = bool(np.any(self.locals["dones"]))
        self._has_episode_ended |= has_ended
        self._is_continuing &= not has_ended
        return True

    def _on_rollout_end(self) -> None:
        self._is_between_steps = True

    def _on_training_end(self) -> None:
        # Where a callback ended the training, the last step is lost. After an error, as RL Zoo calls it too, nothing is saved
        if (self._is_between_steps or self.model._is_stopped) and self.model.num_timesteps > self._saved_at:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint, and go on as a resumed training does."""
        self.model.save_checkpoint(self.path)
        self._saved_at = self.model.num_timesteps
        self._has_episode_ended, self._due_since = False, None
        if self.verbose >= 1:
            print(f"Checkpoint of {self._saved_at} steps in {self.path}")
