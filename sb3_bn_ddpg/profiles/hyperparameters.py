"""An entry of a profile, or of a hyperparameter file of one's own, as the arguments of an algorithm's constructor."""

import copy
import inspect
import warnings
from collections.abc import Callable, KeysView
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.common.checks import check_choice, check_installed
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.profiles.action_noise import build_action_noise, settle_noise_spelling, translate_noise_type
from sb3_bn_ddpg.profiles.algorithms import SHIPPED, file_of
from sb3_bn_ddpg.profiles.environment import ENVIRONMENT_KEYS, EnvironmentSettings
from sb3_bn_ddpg.profiles.schedules import build_schedules
from sb3_bn_ddpg.profiles.words import class_of, classes_of, evaluated

EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
"""Hyperparameters that may be spelled as Python, as in RL Zoo"""


@dataclass(frozen=True)
class Hyperparameters:
    """
    What a hyperparameter file says of one environment, as RL Zoo reads it. Made by :func:`hyperparameters`.

    ``**`` unpacks the arguments of the constructor, all but the environment and the policy.

    :param algorithm: The algorithm's class
    :param env_id: The environment's id; None if the environment was given, which is no recipe to make another of
    :param entry: The file and the entry in it, for messages
    :param policy: The policy, a word or a class
    :param n_timesteps: How many steps to train, for ``learn``
    :param kwargs: The other arguments of the constructor
    :param environment: What the entry says of the environment
    :param callback_classes: Classes and arguments of the entry's callbacks
    """

    algorithm: type[BNOffPolicyAlgorithm]
    env_id: str | None
    entry: str
    policy: str | type
    n_timesteps: int
    kwargs: dict[str, Any]
    environment: EnvironmentSettings
    callback_classes: list[tuple[Callable[..., BaseCallback], dict[str, Any]]] = field(default_factory=list)

    @property
    def callbacks(self) -> list[BaseCallback]:
        """What the entry says of callbacks, for ``learn``: new ones each time, since a training changes them."""
        return [callback(**copy.deepcopy(arguments)) for callback, arguments in self.callback_classes]

    def make_env(self, n_envs: int | None = None, seed: int | None = None, evaluation: bool = False, **kwargs: Any) -> VecEnv:
        """
        Make the environment in the wrappers that the entry asks for, as ``bn-ddpg train`` does.

        :param n_envs: Number of environments (if None: the entry's, which is 1 unless it says otherwise)
        :param seed: Their seed
        :param evaluation: Whether it is for evaluations: ``VecNormalize`` then leaves rewards as they are, and its statistics,
            which are those of no observation at first. ``EvalCallback`` copies the training's; elsewhere
            ``sync_envs_normalization`` does.
        :param kwargs: Further arguments of SB3's ``make_vec_env``: ``monitor_dir``, ``vec_env_cls``, ``vec_env_kwargs``
        :return: The environment
        :raises ValueError: if an environment was given, not its id: its arguments and wrappers are not known
        """
        if self.env_id is None:
            raise ValueError(
                "`env` cannot be made anew, since `hyperparameters` was given the environment: give `make_model` the "
                "environment, or `hyperparameters` its id"
            )
        return self.environment.make(self.env_id, n_envs, seed, evaluation, **kwargs)

    def make_model(self, env: GymEnv | str | None = None, **arguments: Any) -> BNOffPolicyAlgorithm:
        """
        :param env: The environment, which is taken as it is, or its id, of which it is made as in :meth:`make_env` (if None:
            the id that :func:`hyperparameters` was given)
        :param arguments: Arguments of the constructor, ``seed`` and ``device`` for example, or others than the entry's. An
            environment that is made here gets the ``seed`` and, for ``VecNormalize``, the ``gamma``.
        :return: A model that is not trained yet
        :raises ValueError: if ``env`` is None, and :func:`hyperparameters` was given an environment
        """
        if env is None or isinstance(env, str):
            settings = replace(
                self, environment=self.environment.with_gamma(arguments.get("gamma")), env_id=env or self.env_id
            )
            env = settings.make_env(seed=arguments.get("seed"))
        elif missing := self.environment.missing_in(env):
            warnings.warn(
                f"{self.entry} asks for {' and '.join(missing)}, and the environment has none: `.make_env()` makes one that "
                "has, of an id",
                stacklevel=2,
            )
        return self.algorithm(**({"policy": self.policy} | copy.deepcopy(self.kwargs) | arguments), env=env)

    def keys(self) -> KeysView[str]:
        """
        :return: The names of the constructor's arguments, for ``**``
        :raises ValueError: if the entry says something of the environment, or of callbacks, which would be lost
        """
        said = self.environment.said | ({"callback": self.callback_classes} if self.callback_classes else {})
        if said:
            raise ValueError(
                f"{self.entry} also sets {', '.join(said)}, which `**` would lose: the constructor has no such argument. Use "
                "`.make_model()`; or `.make_env()`, `**....kwargs` and, for `learn`, `.callbacks`"
            )
        return self.kwargs.keys()

    def __getitem__(self, name: str) -> Any:
        return copy.deepcopy(self.kwargs[name])


def hyperparameters(
    algo: str, env: str | gym.Env[Any, Any] | VecEnv, profile: str | None = None, *, config: str | Path | None = None
) -> Hyperparameters:
    """
    The hyperparameters that ``bn-ddpg train`` uses, in Python: schedules and noise built, words of Python evaluated. An
    environment without an entry of its own, or without an id, gets the one for its observations, ``default``,
    ``default_dict`` or ``default_images``.

    :param algo: The algorithm, as on the command line
    :param env: The environment's id, or the environment, for ``make_model(env)``. Of an id it is made, and closed, if its
        action's shape is needed.
    :param profile: Name of the algorithm's profile (if None: its default)
    :param config: A YAML file in RL Zoo's format in the place of a profile, for example a search's ``best.yml``. As in the
        Zoo, it may hold Python code: read only what you trust.
    :return: The hyperparameters
    :raises ValueError: if there is no such algorithm, profile or entry, or a value is not allowed
    :raises FileError: if the file is no YAML, or code in it fails
    :raises ImportError: if PyYAML is missing, which the extra ``profiles`` brings
    """
    check_choice("algo", algo, SHIPPED)
    row = SHIPPED[algo]
    if config is None:
        profile = next(iter(row.profiles)) if profile is None else profile
        check_choice("profile", profile, row.profiles)
        file = file_of(row.profiles[profile])
    elif profile is None:
        file = Path(config)
    else:
        raise ValueError(f"`profile={profile!r}` is not allowed beside `config={str(config)!r}`: there must be one of the two")
    env_id = env.rpartition(":")[2] if isinstance(env, str) else _id_of(env)  # without the module that registers it
    entries = read_entries(file)
    name = env_id if env_id is not None and env_id in entries else "default"
    if config is None and name == "default":
        name = default_entry(_spaces(env, EnvironmentSettings())[0]) or name
    if name not in entries:
        raise ValueError(f"`env={env_id!r}` is not allowed: {file} has neither an entry of that name nor `default`")
    return _built(row.algorithm, env, file, name, copy.deepcopy(entries[name]))


def read_entries(file: Path) -> dict[str, dict[str, Any]]:
    """
    :param file: A hyperparameter file
    :return: Its entries, by the environment's id
    :raises FileError: if it is no YAML file with entries
    :raises ImportError: if PyYAML is missing
    """
    check_installed("profiles", "yaml")
    import yaml

    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileError(file, f"is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise FileError(file, "has no hyperparameters: it must be a mapping from environments to mappings")
    return entries


def default_entry(observation_space: spaces.Space[Any]) -> str | None:
    """
    :param observation_space: The observations of an environment that has no entry of its own
    :return: The profiles' entry for them; None for ``default``
    """
    if isinstance(observation_space, spaces.Dict):
        return "default_dict"
    return "default_images" if is_image_space(observation_space) else None


def _id_of(env: gym.Env[Any, Any] | VecEnv) -> str | None:
    """
    :param env: An environment
    :return: Its id; None if it was made without Gymnasium's registry
    """
    spec = env.get_attr("spec")[0] if isinstance(env, VecEnv) else env.spec
    return None if spec is None else str(spec.id)


def _spaces(
    env: str | gym.Env[Any, Any] | VecEnv, environment: EnvironmentSettings
) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """
    :param env: The environment or its id
    :param environment: Settings of the environment
    :return: Its observations and actions
    """
    if not isinstance(env, str):
        return env.observation_space, env.action_space
    made = environment.make(env, 1, None, False)
    made.close()
    return made.observation_space, made.action_space


def _built(
    algorithm: type[BNOffPolicyAlgorithm],
    env: str | gym.Env[Any, Any] | VecEnv,
    file: Path,
    name: str,
    entry: dict[str, Any],
) -> Hyperparameters:
    """
    :param algorithm: The algorithm
    :param env: The environment or its id
    :param file: The hyperparameter file
    :param name: The entry's name
    :param entry: The entry, which is used up
    :return: What it comes to
    :raises ValueError: if a value is not allowed
    """
    for key in ("n_timesteps", "policy"):
        if key not in entry:
            raise FileError(file, f"has no `{key}` in its entry {name!r}")
    settle_noise_spelling(entry, {})
    build_schedules(entry)
    if isinstance(entry.get("train_freq"), list):
        entry["train_freq"] = tuple(entry["train_freq"])
    for key in EVALUATED:
        if key in entry:
            entry[key] = evaluated(file, key, entry[key])
    said = {key: entry.pop(key) for key in ENVIRONMENT_KEYS if key in entry}
    environment = EnvironmentSettings.of_entry(file, said, entry.get("gamma"))
    n_timesteps, policy = _n_timesteps(file, entry.pop("n_timesteps")), entry.pop("policy")
    callbacks = classes_of(file, "callback", entry.pop("callback", None))
    if isinstance(policy, str) and "." in policy:
        policy = class_of(file, "policy", policy)
    translate_noise_type(entry)
    if "noise_type" in entry or isinstance(entry.get("action_noise"), dict):
        shape = _spaces(env, environment)[1].shape or ()
        if entry.pop("noise_type", None) is not None:  # "ornstein-uhlenbeck" alone is left of the Zoo's words
            sigma = entry.pop("noise_std") * np.ones(shape)
            entry["action_noise"] = OrnsteinUhlenbeckActionNoise(np.zeros(shape), sigma)
        entry["action_noise"] = build_action_noise(entry["action_noise"], shape)
    if unknown := sorted(entry.keys() - inspect.signature(algorithm).parameters.keys()):
        raise FileError(
            file, f"has an unknown `{unknown[0]}` in its entry {name!r}: {algorithm.__name__} has no such argument"
        )
    entry_of_file = f"the entry {name!r} of {file}"
    env_id = env if isinstance(env, str) else None
    settings = Hyperparameters(algorithm, env_id, entry_of_file, policy, n_timesteps, entry, environment, callbacks)
    _ = settings.callbacks  # wrong arguments fail here
    return settings


def _n_timesteps(file: Path, value: Any) -> int:
    """
    :param file: The hyperparameter file
    :param value: What it says of ``n_timesteps``
    :return: The number
    :raises FileError: if it is none
    """
    if isinstance(value, str) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        as_text = " (YAML takes 1e6 for a word: write 1.0e+6)" if isinstance(value, str) else ""
        raise FileError(file, f"has no usable `n_timesteps`: {value!r} must be a number > 0{as_text}")
    return int(value)
