"""Hindsight experience replay samples finished episodes only: whether there is one when learning starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_bn_ddpg.common.vec_env_layers import layers_of

REPEATING = ("AtariPreprocessing", "MaxAndSkipObservation")
"""Gymnasium's wrappers of whose steps each takes several of what they wrap"""


class FirstEpisodeError(ValueError):
    """Learning would start before there is an episode to sample."""


def check_first_episode(model: OffPolicyAlgorithm, until: float) -> None:
    """
    :param model: A model with an environment
    :param until: The step at which its training ends
    :raises FirstEpisodeError: if it has ``HerReplayBuffer`` and learns before the first episode's time limit
    """
    train_freq: Any = model.train_freq
    frequency, unit = train_freq if isinstance(train_freq, tuple) else (train_freq, "step")
    if not _waits_for_an_episode(model) or getattr(unit, "value", unit) == "episode" or model.gradient_steps == 0:
        return
    limit, n_envs, buffer = _shortest_time_limit(model.env), model.n_envs, model.replay_buffer
    if limit is None:
        return
    assert isinstance(buffer, HerReplayBuffer)
    # Of episodes that go on, as after a resume, a part is stored
    limit -= int(((buffer.pos - buffer._current_ep_start) % buffer.buffer_size).max())
    # Gradient steps come after whole rollouts
    rollout = frequency * n_envs
    n_rollouts = max((model.learning_starts - model.num_timesteps) // rollout + 1, 1)
    if n_rollouts * rollout < limit * n_envs and model.num_timesteps + n_rollouts * rollout <= until:
        in_envs = f" in {n_envs} environments" if n_envs > 1 else ""
        after = f" (or the replay buffer of the {model.num_timesteps} steps before be loaded)" if model.num_timesteps else ""
        raise FirstEpisodeError(
            f"`learning_starts={model.learning_starts}` is not allowed with HerReplayBuffer and episodes of up to {limit} "
            f"steps{in_envs}: it samples finished episodes only, so learning_starts must be at least "
            f"{model.num_timesteps + limit * n_envs}{after}"
        )


@contextmanager
def unfinished_episodes_named(model: OffPolicyAlgorithm) -> Iterator[None]:
    """
    Say which argument is wrong where SB3 cannot sample. (To ask the replay buffer before each sample would take long.)

    :param model: A model that samples its replay buffer within this context
    :raises FirstEpisodeError: if it has ``HerReplayBuffer``, and there is no finished episode to sample
    """
    try:
        yield
    except RuntimeError as error:
        if not _waits_for_an_episode(model):
            raise
        buffer: Any = model.replay_buffer
        raise FirstEpisodeError(
            f"`learning_starts={model.learning_starts}` is not allowed with HerReplayBuffer and episodes of more than "
            f"{buffer.size()} steps: at step {model.num_timesteps} none has ended, and it samples finished episodes only. "
            "learning_starts must be longer than the first episode"
        ) from error


def _waits_for_an_episode(model: OffPolicyAlgorithm) -> bool:
    """
    :param model: A model
    :return: Whether its replay buffer samples finished episodes only, and has none
    """
    buffer = getattr(model, "replay_buffer", None)  # deleted, to free its memory
    return isinstance(buffer, HerReplayBuffer) and not buffer.ep_length.any()


def _shortest_time_limit(env: VecEnv | None) -> int | None:
    """
    :param env: The training environment
    :return: The shortest time limit of its environments, None if one has none that is known
    """
    base = layers_of(env)[-1]
    if not isinstance(base, DummyVecEnv):
        return None
    limits = [_time_limit(each) for each in base.envs]
    known = [limit for limit in limits if limit is not None]
    return min(known) if len(known) == len(limits) else None


def _time_limit(env: gym.Env[Any, Any]) -> int | None:
    """
    :param env: An environment
    :return: After how many of its steps an episode is cut off, None if that is not known
    """
    while isinstance(env, gym.Wrapper):
        limit = vars(env).get("_max_episode_steps")  # TimeLimit's; RL Zoo replaces that class by one of its own
        if isinstance(limit, int):
            return limit
        (owner, *_) = (cls for cls in type(env).__mro__ if "step" in vars(cls))
        is_gymnasiums = owner.__module__.startswith("gymnasium.") and owner.__name__ not in REPEATING
        if owner is not Monitor and not is_gymnasiums:  # it may repeat actions
            return None
        env = env.env
    return None
