"""Demonstrations: a part of each minibatch of an algorithm that acts comes from a dataset, as in RLPD (arXiv 2302.02948)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_bn_ddpg.common.atomic_files import FileError, PathOrFile
from sb3_bn_ddpg.datasets.dataset_buffer import DatasetBuffer, dataset_buffer
from sb3_bn_ddpg.datasets.mixed_buffer import MixedNStepReplayBuffer, MixedReplayBuffer
from sb3_bn_ddpg.datasets.transitions import check_order, transitions_of
from sb3_bn_ddpg.off_policy.scaled_rewards import ScaledRewardsAlgorithm


class DemonstratedAlgorithm(ScaledRewardsAlgorithm):
    """An algorithm whose replay buffer may have a dataset beside the new transitions."""

    _had_demonstrations: bool = False  # also after it was saved, without them
    learns_from_dataset: ClassVar[bool] = False
    """Whether gradient steps on a dataset take the place of steps in the environment"""

    def load_replay_buffer(self, path: PathOrFile, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file, as :meth:`sb3_bn_ddpg.saving.models.SavingAlgorithm.load_replay_buffer`. A
        model keeps its demonstrations beside the file's new transitions, and takes the file's only if it has none; an offline
        algorithm keeps its dataset if the file has none.

        :param path: Path to the pickled replay buffer.
        :param truncate_last_traj: Whether the last trajectory is taken as finished
        """
        before = getattr(self, "replay_buffer", None)
        super().load_replay_buffer(path, truncate_last_traj)
        loaded = self.replay_buffer
        is_whole = self.learns_from_dataset and isinstance(loaded, (MixedReplayBuffer, DatasetBuffer))
        if isinstance(before, MixedReplayBuffer) and loaded is not None and not is_whole:
            self.replay_buffer = before.with_new(loaded)
        if isinstance(loaded, MixedReplayBuffer) and not self.learns_from_dataset:
            self._had_demonstrations = True

    def _check_loaded_buffer(self) -> None:
        super()._check_loaded_buffer()
        factor = getattr(self.replay_buffer, "reward_factor", 1.0)
        if factor != 1 and not self.learns_from_dataset:
            raise ValueError(
                f"a replay buffer whose rewards were multiplied by {factor:.4g} (`reward_scaling` of an offline algorithm) is "
                "not allowed beside rewards that are not: `demonstrations=path` takes them as they were"
            )


def demonstrated_buffer(model: Any) -> tuple[type[ReplayBuffer], dict[str, Any]]:
    """
    :param model: A model with demonstrations
    :return: The class of its replay buffer, and the arguments that SB3 does not give it
    :raises ValueError: if the demonstrations do not fit the environment, or an argument does not go with them
    """
    if model.replay_buffer_class is not None:
        raise ValueError(
            f"`replay_buffer_class={model.replay_buffer_class.__name__}` is not allowed with `demonstrations`: it must be None"
        )
    if isinstance(model.observation_space, spaces.Dict):
        raise ValueError(
            f"`demonstrations` with the observation space {model.observation_space} is not allowed: it must not be a "
            "dictionary. Wrap the environment into `gymnasium.wrappers.FlattenObservation`, and use MlpPolicy"
        )
    with _named_demonstrations():
        data = transitions_of(model.demonstrations)
        check_order(data, model.env)
        dataset = dataset_buffer(data, model.observation_space, model.action_space, model.device)
    kwargs: dict[str, Any] = dict(dataset=dataset, dataset_share=model.demonstration_ratio)
    if model.n_steps == 1:
        return MixedReplayBuffer, kwargs
    return MixedNStepReplayBuffer, kwargs | dict(n_steps=model.n_steps, gamma=model.gamma)


def check_demonstrations(model: Any) -> None:
    """
    Tell the replay buffer how many of a minibatch are demonstrations, or the user that there are none any more.

    :param model: A model that is about to learn
    :raises ValueError: if the share of demonstrations comes to none of a minibatch, or to all of it
    """
    if not model._had_demonstrations:
        return
    if isinstance(model.replay_buffer, MixedReplayBuffer):
        model.replay_buffer.take_share("demonstration_ratio", model.demonstration_ratio, model.batch_size)
    elif model.demonstration_ratio != 0:
        warnings.warn(
            "The model learned with demonstrations, which its file does not hold, and goes on without. For learning with "
            f"them, load it by `{type(model).__name__}.load(path, demonstrations=...)`; `demonstration_ratio=0` is without",
            stacklevel=5,
        )


@contextmanager
def _named_demonstrations() -> Iterator[None]:
    """Let messages of a dataset name the argument that it was given as."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, FileError) or "`dataset" not in str(error):
            raise
        raise ValueError(str(error).replace("`dataset", "`demonstrations")) from error
