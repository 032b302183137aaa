"""Making a Minari dataset of what a trained model does."""

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from sb3_bn_ddpg.common.checks import check_installed, check_number


def record_dataset(
    model: BaseAlgorithm,
    dataset_id: str,
    n_steps: int,
    env: gym.Env[Any, Any] | str | None = None,
    deterministic: bool = False,
    noise: float = 0.0,
    seed: int | None = None,
    **metadata: Any,
) -> Any:
    """
    Let a model act, and write what happens to a Minari dataset on this machine (``MINARI_DATASETS_PATH``, by default
    ``~/.minari/datasets``). Terminations and truncations are kept apart. The last episode is cut off where ``n_steps`` are
    reached.

    :param model: Any model of SB3's or of this package
    :param dataset_id: Name of the dataset, such as ``"hopper/medium-v0"``
    :param n_steps: Number of steps (>= 1)
    :param env: The environment, or its id (if None: the model's, which must be a single one)
    :param deterministic: Whether the actions are the model's deterministic ones
    :param noise: Standard deviation of Gaussian noise on them, in units of half an action's range (>= 0)
    :param seed: Seed of the environment's first reset and of the noise; the model draws from PyTorch's generator
    :param metadata: Further arguments of ``minari.create_dataset_from_buffers``, as ``ref_min_score``, ``ref_max_score``,
        ``author`` and ``description``
    :return: The ``minari.MinariDataset``
    :raises ValueError: if an argument is out of its range, or the dataset exists already
    :raises ImportError: if the package minari is missing (the extra ``offline``)
    """
    check_installed("offline", "minari")
    import minari
    from minari.data_collector import EpisodeBuffer

    check_number("n_steps", n_steps, low=1, integer=True)
    check_number("noise", noise, low=0)
    env = gym.make(env) if isinstance(env, str) else _single_environment(model) if env is None else env
    normalize, space = model.get_vec_normalize_env(), env.action_space
    assert isinstance(space, gym.spaces.Box)
    generator = np.random.default_rng(seed)
    half_range = (space.high - space.low) / 2
    episodes: list[Any] = []
    n_left = n_steps
    while n_left > 0:
        observation, _ = env.reset(seed=None if episodes else seed)
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        columns["observations"].append(observation)
        has_ended = False
        while not has_ended:
            seen = observation if normalize is None else normalize.normalize_obs(observation)
            action, _ = model.predict(seen, deterministic=deterministic)
            if noise:
                action = action + noise * half_range * generator.normal(size=space.shape)
            action = np.clip(action, space.low, space.high).astype(space.dtype)
            observation, reward, is_terminated, is_truncated, _ = env.step(action)
            n_left -= 1
            is_truncated = bool(is_truncated) or (n_left == 0 and not is_terminated)
            row = (observation, action, float(reward), bool(is_terminated), is_truncated)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            has_ended = is_terminated or is_truncated
        episodes.append(EpisodeBuffer(id=len(episodes), seed=None if episodes else seed, **columns))
    about: dict[str, Any] = dict(observation_space=env.observation_space, action_space=space)
    about |= dict(env=env) if env.spec is not None else {}
    return minari.create_dataset_from_buffers(
        dataset_id, episodes, **(about | dict(algorithm_name=type(model).__name__) | metadata)
    )


def _single_environment(model: BaseAlgorithm) -> gym.Env[Any, Any]:
    """
    :param model: A model
    :return: Its environment, without what vectorises it
    :raises ValueError: if it is not a single one
    """
    venv: Any = model.get_env()
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
    if not isinstance(venv, DummyVecEnv) or venv.num_envs != 1:
        raise ValueError("`env=None` is not allowed with a model that has no single environment: pass one, or its id")
    env: gym.Env[Any, Any] = venv.envs[0]
    return env
