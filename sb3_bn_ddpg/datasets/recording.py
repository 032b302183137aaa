"""Making Minari datasets: of what a trained model does, and of transitions that are there."""

import copy
import inspect
import warnings
from contextlib import closing, redirect_stdout, suppress
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage

from sb3_bn_ddpg.common.checks import check_installed, check_number
from sb3_bn_ddpg.datasets.dataset_buffer import dataset_buffer
from sb3_bn_ddpg.datasets.transitions import MINARI_ID, Dataset, transitions_of

COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
"""What Minari keeps of an episode, observations with the last one"""
MONITOR = f"{Monitor.__module__}:{Monitor.__name__}"
"""SB3's Monitor, as Gymnasium names a wrapper"""
SCORES = ("ref_min_score", "ref_max_score")
"""A dataset's reference scores, the lower one first"""


def record_dataset(
    model: BaseAlgorithm,
    dataset_id: str,
    n_steps: int,
    env: gym.Env[Any, Any] | str | None = None,
    deterministic: bool = False,
    noise: float = 0.0,
    seed: int | None = None,
    n_reference_episodes: int = 0,
    **metadata: Any,
) -> Any:
    """
    Let a model act, and write what happens to a Minari dataset on this machine (``MINARI_DATASETS_PATH``, by default
    ``~/.minari/datasets``). Terminations and truncations are kept apart. The last episode is cut off where ``n_steps`` are
    reached. If it acts in the environment that it learns in, its next ``learn`` begins another episode. Minari keeps images of
    bytes as JPEG files, so they are not quite what they were.

    :param model: Any model of SB3's or of this package
    :param dataset_id: Name of the dataset, such as ``"hopper/medium-v0"``
    :param n_steps: Number of steps (>= 1)
    :param env: The environment, or its id (if None: the model's, which must be a single one), with the model's action space
    :param deterministic: Whether the actions are the model's deterministic ones
    :param noise: Standard deviation of Gaussian noise on them, in units of half an action's range (>= 0)
    :param seed: Seed of the environment's first reset and of the noise; the model draws from PyTorch's generator
    :param n_reference_episodes: Over how many further episodes the dataset's reference scores are measured (>= 0; 0: not at
        all): the mean return of uniformly random actions, ``ref_min_score``, and of the model's deterministic actions,
        ``ref_max_score``. ``minari.get_normalized_score`` is 0 for the one and 1 for the other.
    :param metadata: Further arguments of ``minari.create_dataset_from_buffers``, as ``ref_min_score``, ``ref_max_score``,
        ``author`` and ``description``
    :return: The ``minari.MinariDataset``
    :raises ValueError: if an argument is out of its range, the dataset exists already, or the model's actions are no bounded
        ``Box``
    :raises TypeError: if ``metadata`` has a name that Minari does not know
    :raises ImportError: if the package minari is missing (the extra ``offline``)
    """
    _check_new(dataset_id, metadata)
    check_number("n_steps", n_steps, low=1, integer=True)
    check_number("noise", noise, low=0)
    check_number("n_reference_episodes", n_reference_episodes, low=0, integer=True)
    if isinstance(env, str):
        with closing(gym.make(env)) as made:
            return record_dataset(
                *(model, dataset_id, n_steps, made, deterministic, noise, seed, n_reference_episodes), **metadata
            )
    env, space = _where_to_act(model, env)
    _check_images(env.observation_space)
    generator = np.random.default_rng(seed)
    half_range = (space.high - space.low) / 2

    def act(observation: Any) -> NDArray[Any]:
        action = _action_of(model, observation, deterministic)
        if noise:
            action = action + noise * half_range * generator.normal(size=space.shape)
        clipped: NDArray[Any] = np.clip(action, space.low, space.high).astype(space.dtype)
        return clipped

    episodes: list[dict[str, list[Any]]] = []
    n_left = n_steps
    while n_left > 0:
        episodes.append(_episode(env, act, n_left, seed=None if episodes else seed))
        n_left -= len(episodes[-1]["rewards"])
    about: dict[str, Any] = dict(algorithm_name=type(model).__name__)
    if n_reference_episodes:
        about |= reference_scores(model, n_reference_episodes, env, seed)
    return _created(dataset_id, episodes, env, env.observation_space, space, seed, about | metadata)


def store_dataset(dataset: Dataset, dataset_id: str, env: gym.Env[Any, Any] | str | None = None, **metadata: Any) -> Any:
    """
    Write transitions that are there, as of a replay buffer, to a Minari dataset on this machine: observations as a replay
    buffer keeps them, numbers in float32 and images in bytes, with the channels last, which Minari writes as JPEG files.

    :param dataset: The transitions, in any form (:data:`~sb3_bn_ddpg.datasets.transitions.Dataset`), for instance
        ``model.replay_buffer``
    :param dataset_id: Name of the dataset, such as ``"hopper/replay-v0"``
    :param env: The environment, or its id, which gives the spaces. If None, the dataset must know them, as replay buffers do.
    :param metadata: As of :func:`record_dataset`
    :return: The ``minari.MinariDataset``
    :raises ValueError: if the transitions are refused, or the dataset exists already
    :raises TypeError: if ``metadata`` has a name that Minari does not know
    :raises ImportError: if the package minari is missing (the extra ``offline``)
    """
    _check_new(dataset_id, metadata)
    if isinstance(env, str):
        with closing(gym.make(env)) as made:
            return store_dataset(dataset, dataset_id, made, **metadata)
    data = transitions_of(dataset)
    observation_space, action_space = (
        getattr(data if getattr(data, name) is not None else env, name, None) for name in ("observation_space", "action_space")
    )
    if observation_space is None or not isinstance(action_space, gym.spaces.Box):
        raise ValueError("`env=None` is not allowed with a dataset that does not know its spaces: it must be an environment")
    buffer = dataset_buffer(data, observation_space, action_space)  # with all its checks
    observations, next_observations = (
        array[:, 0].reshape(len(array), *observation_space.shape) for array in (buffer.observations, buffer.next_observations)
    )
    if is_image_space(observation_space) and is_image_space_channels_first(observation_space):
        assert isinstance(observation_space, gym.spaces.Box)
        observations, next_observations = np.moveaxis(observations, 1, -1), np.moveaxis(next_observations, 1, -1)
        low, high = (np.moveaxis(bound, 0, -1) for bound in (observation_space.low, observation_space.high))
        observation_space = gym.spaces.Box(low, high, dtype=np.uint8)
    _check_images(observation_space)
    low, high = action_space.low, action_space.high
    actions = (low + (buffer.actions[:, 0].reshape(-1, *action_space.shape) + 1) / 2 * (high - low)).astype(action_space.dtype)
    ends, timeouts, episodes = buffer.dones[:, 0] != 0, buffer.timeouts[:, 0] != 0, []
    start = 0
    for stop in (np.flatnonzero(ends) + 1).tolist():
        rows = slice(start, stop)
        episodes.append(
            dict(
                observations=[*observations[rows], next_observations[stop - 1]],
                actions=[*actions[rows]],
                rewards=buffer.rewards[rows, 0].tolist(),
                terminations=(ends & ~timeouts)[rows].tolist(),
                truncations=timeouts[rows].tolist(),
            )
        )
        start = stop
    return _created(dataset_id, episodes, env, observation_space, action_space, None, metadata)


def reference_scores(
    model: BaseAlgorithm, n_episodes: int, env: gym.Env[Any, Any] | None = None, seed: int | None = None
) -> dict[str, float]:
    """
    :param model: A model
    :param n_episodes: Number of episodes of each policy (>= 1)
    :param env: The environment (if None: the model's, which must be a single one)
    :param seed: Seed of each policy's first reset, and of the random actions
    :return: ``ref_min_score``, the mean return of uniformly random actions, and ``ref_max_score``, that of the model's
        deterministic ones
    :raises ValueError: if an argument is out of its range, or the model's actions are no bounded ``Box``
    """
    check_number("n_episodes", n_episodes, low=1, integer=True)
    env, space = _where_to_act(model, env)
    generator = np.random.default_rng(seed)

    def at_random(observation: Any) -> NDArray[Any]:
        return generator.uniform(space.low, space.high).astype(space.dtype)

    def as_model(observation: Any) -> NDArray[Any]:
        return _action_of(model, observation, deterministic=True)

    scores = {}
    for name, act in zip(SCORES, (at_random, as_model), strict=True):
        returns = [sum(_episode(env, act, np.inf, None if number else seed)["rewards"]) for number in range(n_episodes)]
        scores[name] = float(np.mean(returns))
    return scores


def _action_of(model: BaseAlgorithm, observation: Any, deterministic: bool) -> NDArray[Any]:
    """
    :param model: A model
    :param observation: An observation, not normalised
    :param deterministic: Whether the action is the model's deterministic one
    :return: Its action
    """
    normalize = model.get_vec_normalize_env()
    seen = observation if normalize is None else normalize.normalize_obs(observation)
    return model.predict(seen, deterministic=deterministic)[0]


def _episode(env: gym.Env[Any, Any], act: Any, n_steps: float, seed: int | None) -> dict[str, list[Any]]:
    """
    :param env: The environment
    :param act: The function that acts
    :param n_steps: Number of steps at which the episode is cut off
    :param seed: Seed of its reset
    :return: What happens, in :data:`COLUMNS`
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    observation, _ = env.reset(seed=seed)
    columns["observations"].append(copy.deepcopy(observation))  # the environment may change its own, and the action
    has_ended = False
    while not has_ended:
        action = act(observation)
        columns["actions"].append(action.copy())
        observation, reward, is_terminated, is_truncated, _ = env.step(action)
        is_truncated = bool(is_truncated) or (len(columns["rewards"]) + 1 >= n_steps and not is_terminated)
        columns["observations"].append(copy.deepcopy(observation))
        columns["rewards"].append(float(reward))
        columns["terminations"].append(bool(is_terminated))
        columns["truncations"].append(is_truncated)
        has_ended = bool(is_terminated or is_truncated)
    return columns


def _by_entry(observations: list[Any]) -> Any:
    """
    :param observations: Observations
    :return: Of dictionaries, a dictionary of lists, and likewise within them, as Minari has them; else what it was
    """
    if not isinstance(observations[0], dict):
        return observations
    return {key: _by_entry([observation[key] for observation in observations]) for key in observations[0]}


def _created(
    dataset_id: str,
    episodes: list[dict[str, list[Any]]],
    env: gym.Env[Any, Any] | None,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    seed: int | None,
    metadata: dict[str, Any],
) -> Any:
    """
    :param dataset_id: Name of the dataset
    :param episodes: What it holds
    :param env: The environment that it says it is of, if any
    :param observation_space: Space of the observations
    :param action_space: Space of the actions
    :param seed: Seed of the first episode
    :param metadata: Further arguments of ``minari.create_dataset_from_buffers``
    :return: The ``minari.MinariDataset``
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            id=number,
            seed=None if number else seed,
            **(columns | dict(observations=_by_entry(columns["observations"]))),
        )
        for number, columns in enumerate(episodes)
    ]
    about: dict[str, Any] = dict(observation_space=observation_space, action_space=action_space)
    if env is not None and env.spec is not None:
        # SB3's Monitor changes nothing that is recorded, and does not say its arguments: no environment could be made with it
        wrappers = tuple(each for each in env.spec.additional_wrappers if each.entry_point != MONITOR)
        described = _Described(env, replace(env.spec, additional_wrappers=wrappers))
        # No text stands for an environment that is registered as a function, or for a wrapper with a class among its arguments
        with suppress(ValueError, TypeError):
            described.spec.to_json()
            about |= dict(env=described)
    # Not through Minari, which forgets them where it knows no environment, and measures the lower one if it is left out
    scores = {name: value for name, value in metadata.items() if name in SCORES}
    about |= {name: value for name, value in metadata.items() if name not in SCORES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for each argument that is left out
        try:
            dataset = minari.create_dataset_from_buffers(dataset_id, buffers, **about)
            if scores:
                dataset.storage.update_metadata(scores)
        except BaseException:
            with suppress(OSError), redirect_stdout(None):
                minari.delete_dataset(dataset_id)  # the half of it that is there, or the next attempt would find it
            raise
    return dataset


class _Described(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment with a description that is not its own.

    :param env: The environment
    :param spec: The description
    """

    def __init__(self, env: gym.Env[Any, Any], spec: EnvSpec) -> None:
        super().__init__(env)
        self._described_as = spec

    @property
    def spec(self) -> EnvSpec:  # type: ignore[override]
        """The description."""
        return self._described_as


def _check_new(dataset_id: str, metadata: dict[str, Any]) -> None:
    """
    :param dataset_id: Name of a dataset to write
    :param metadata: Further arguments of ``minari.create_dataset_from_buffers``
    :raises ValueError: if it is no such name, or one of a dataset that is there
    :raises TypeError: if Minari does not know one of the further arguments
    :raises ImportError: if the package minari is missing
    """
    check_installed("offline", "minari")
    import minari

    if MINARI_ID.fullmatch(dataset_id) is None:
        raise ValueError(
            f"`dataset_id={dataset_id!r}` is not allowed: it must be a name with a version, as 'hopper/medium-v0', of "
            "letters, digits, '-', '_' and '/', at least two of them before the last '/'"
        )
    if dataset_id in minari.list_local_datasets():
        raise ValueError(
            f"`dataset_id={dataset_id!r}` is not allowed: there is such a dataset. Take the next version, or remove it with "
            f"`minari delete {dataset_id}`"
        )
    known = set(inspect.signature(minari.create_dataset_from_buffers).parameters) - {"dataset_id", "buffer", "env"}
    if unknown := sorted({*metadata} - known):
        raise TypeError(f"unknown arguments {', '.join(unknown)}: further ones must be some of {', '.join(sorted(known))}")


def _check_images(space: gym.Space[Any]) -> None:
    """
    :param space: Space of observations
    :raises ValueError: if Minari cannot write and read them
    """
    from minari.dataset.minari_storage import is_image_space as is_image_to_minari

    if isinstance(space, gym.spaces.Dict):
        for entry in space.values():
            _check_images(entry)
        return
    assert space.shape is not None
    is_of_bytes = space.dtype == np.uint8 and len(space.shape) in (2, 3)
    if is_of_bytes and not (is_image_to_minari(space) and space.shape[2:] in ((), (3,))):
        raise ValueError(
            f"`env` with observations of shape {space.shape} and type uint8 is not allowed: Minari keeps images of bytes as "
            "JPEG files, for which they must be of at least 32 x 32, without a third dimension or with one of 3"
        )


def _where_to_act(model: BaseAlgorithm, env: gym.Env[Any, Any] | str | None) -> tuple[gym.Env[Any, Any], gym.spaces.Box]:
    """
    :param model: A model. If it acts where it also learns, it is told that the episode does not go on.
    :param env: The environment, or its id (if None: the model's)
    :return: The environment, and its action space
    :raises ValueError: if the model cannot act in it, or its actions are no bounded ``Box``
    """
    if model.get_vec_normalize_env() is None and getattr(model, "_learned_normalized", False):
        raise ValueError(
            "`model` is not allowed without the VecNormalize on whose observations it was trained: load it with "
            "`env=VecNormalize.load(...)`"
        )
    if isinstance(env, VecEnv):
        raise ValueError(f"`env` of type {type(env).__name__} is not allowed: it must be a single environment, not vectorised")
    env = gym.make(env) if isinstance(env, str) else _single_environment(model) if env is None else env
    space = env.action_space
    if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
        raise ValueError(f"`env` with the action space {space} is not allowed: it must be a bounded Box")
    if space != model.action_space:
        raise ValueError(f"`env` with the action space {space} is not allowed: it must be the model's, {model.action_space}")
    venv: Any = model.get_env()
    venv = None if venv is None else venv.unwrapped
    if isinstance(venv, DummyVecEnv) and any(each.unwrapped is env.unwrapped for each in venv.envs):
        model._last_obs = None
    return env, space


def _single_environment(model: BaseAlgorithm) -> gym.Env[Any, Any]:
    """
    :param model: A model
    :return: Its environment, without what vectorises it
    :raises ValueError: if it is not a single one, or what vectorises it changes what the model sees
    """
    venv: Any = model.get_env()
    while isinstance(venv, VecEnvWrapper):
        if not isinstance(venv, (VecNormalize, VecTransposeImage)):
            raise ValueError(
                f"`env` in a {type(venv).__name__} is not allowed: a dataset is recorded of what a single environment gives, "
                "so it must be a wrapper of that"
            )
        venv = venv.venv
    if not isinstance(venv, DummyVecEnv) or venv.num_envs != 1:
        raise ValueError("`env=None` is not allowed with a model that has no single environment: pass one, or its id")
    env: gym.Env[Any, Any] = venv.envs[0]
    return env
