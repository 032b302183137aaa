"""
Where a training's and a search's hyperparameters come from: the profiles, a file, a trial, the command line; and what RL Zoo
makes of them.
"""

import io
import traceback
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.datasets.transitions import transitions_of
from sb3_bn_ddpg.profiles.action_noise import build_action_noise, settle_noise_spelling, spells_noise, translate_noise_type
from sb3_bn_ddpg.profiles.hyperparameters import default_entry
from sb3_bn_ddpg.profiles.schedules import SCHEDULED, parse_linear_schedule
from sb3_bn_ddpg.zoo.algorithms import ALGORITHMS, profile_path, shipped_files
from sb3_bn_ddpg.zoo.interrupts import EnvWrapper
from sb3_bn_ddpg.zoo.python_files import imported
from sb3_bn_ddpg.zoo.search_space import HER_PARAMETERS, NESTED, merge_hyperparams
from sb3_bn_ddpg.zoo.studies import load_study

HYPERPARAMETER_ERRORS = (
    yaml.YAMLError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What wrong values in a hyperparameter file lead to in RL Zoo, which looks at few of them; it evaluates some as Python."""

DEFAULTS = {"default_dict": "dictionaries", "default_images": "images"}
"""Entries of the profiles beside ``default``, for environments without one of their own, and what their observations are"""

NOT_ABOUT_HYPERPARAMETERS = {"make_env", "_observation_space", "_load_pretrained_agent"}
"""RL Zoo's functions that make the environment and load a model: their errors are not of the hyperparameter file."""


class HyperparameterManager(ExperimentManager):
    """
    Reads hyperparameters. The file of an algorithm of this package is by default its first profile's, and a wrong value in it
    gives an error that names the file; its ``critic_learning_rate`` may be a schedule, and its ``action_noise`` a mapping.

    :param args: The command line's arguments
    :param algo: Algorithm
    :param rest: Other positional arguments of ``ExperimentManager``
    :param kwargs: Its keyword arguments. A ``config`` of None is the algorithm's first profile if it is one of this package,
        else the Zoo's own file.
    :raises ValueError: if ``trial_id`` is negative
    """

    dataset: ClassVar[str | None] = None
    """What a training learns from, or what demonstrates it, over what the hyperparameters name"""

    def __init__(self, args: Namespace, algo: str, *rest: Any, **kwargs: Any) -> None:
        if kwargs.get("config") is None and algo in ALGORITHMS:
            kwargs["config"] = str(profile_path(algo=algo))
        super().__init__(args, algo, *rest, **kwargs)
        if self.trial_id is not None:
            check_number("trial_id", self.trial_id, low=0, integer=True)
        self._file_hyperparams: dict[str, Any] = {}
        if self.dataset is not None:
            argument = ALGORITHMS[algo].dataset_argument if algo in ALGORITHMS else None
            if argument is None:
                taking = ", ".join(name for name, row in ALGORITHMS.items() if row.dataset_argument is not None)
                raise ValueError(f"`--dataset {self.dataset}` is not allowed with `--algo {algo}`: it must be one of {taking}")
            self.custom_hyperparams = {argument: self.dataset, **(self.custom_hyperparams or {})}

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Read the hyperparameters and make or load the model.

        :return: The model and the hyperparameters, or None before a search
        :raises FileError: if the hyperparameter file is no YAML, or its values make something fail that does not say why
        :raises ValueError: if a value is not allowed
        """
        try:
            return super().setup_experiment()
        except HYPERPARAMETER_ERRORS as error:
            says_which = isinstance(error, ValueError) and "` " in str(error)  # "`tau=7` is not allowed ..."
            is_of_another = isinstance(error, FileError) or not functions_of(error).isdisjoint(NOT_ABOUT_HYPERPARAMETERS)
            if says_which or is_of_another or self.algo not in ALGORITHMS or not isinstance(self.config, (str, Path)):
                raise
            detail = f"{type(error).__name__}: {' '.join(str(error).split())}"
            given = " ".join(f"{name}:{value!r}" for name, value in (getattr(self.args, "hyperparams", None) or {}).items())
            with_given = f" with `-params {given}`" if given else ""
            raise FileError(self.config, f"gives no usable hyperparameters{with_given}: {detail}") from error

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters: the file's, over them those of ``--trial-id``, over them those of ``-params``. A resumed
        training goes on with its own.

        :return: The hyperparameters, and a copy of them to save
        :raises ValueError: if there is no such trial, or the noise is spelled in two ways at once
        """
        from_command_line = dict(self.custom_hyperparams or {})
        from_trial: dict[str, Any] = {}
        if self.trial_id is not None:
            from_trial = self._trial_hyperparams(self.trial_id)
            self.trial_id = None  # done: the Zoo would do it again, except for trial 0
        if spells_noise(from_command_line):
            from_trial.pop("action_noise", None)
        overrides = from_trial | from_command_line
        self.custom_hyperparams = overrides
        hyperparams, saved_hyperparams = self._read_file()
        if self.algo in ALGORITHMS:
            for each in (hyperparams, saved_hyperparams):
                settle_noise_spelling(each, overrides)
        if self.algo in ALGORITHMS:
            self._read_dataset(hyperparams)
        self._file_hyperparams = dict(saved_hyperparams)
        if hyperparams.get("env_kwargs") and not self._eval_env_kwargs_args:
            self.eval_env_kwargs = hyperparams["env_kwargs"]  # else the Zoo evaluates in another environment
        return hyperparams, saved_hyperparams

    def _read_dataset(self, hyperparams: dict[str, Any]) -> None:
        """
        Read the dataset now: a wrong one leaves no folder of a run, and all trials of a search share it.

        :param hyperparams: The hyperparameters, in which the dataset's name is replaced by its transitions
        :raises ValueError: if it cannot be read, or is missing where it is needed
        """
        row = ALGORITHMS[self.algo]
        argument = row.dataset_argument
        if argument is not None and hyperparams.get(argument) is not None:
            hyperparams[argument] = transitions_of(hyperparams[argument])
        elif row.needs_dataset:
            raise ValueError(
                f"`--dataset` left out is not allowed with `--algo {self.algo}`, which learns from stored data: name the id "
                "of a Minari dataset, or the path of a saved replay buffer (`train --save-replay-buffer` writes one) or of an "
                ".npz file of arrays. `bn-ddpg record-dataset` makes a dataset of what a trained model does"
            )

    def _read_file(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: What the Zoo reads: the hyperparameters of the file and the command line, and a copy of them to save
        """
        config, env_name = self.config, self.env_name
        if Path(config).resolve() in shipped_files(self.algo):
            entry = self._default_entry(yaml.safe_load(Path(config).read_text()))
            self.env_name = SimpleNamespace(gym_id=entry or env_name.gym_id)  # the entry that the Zoo looks for
            try:
                return super().read_hyperparameters()
            finally:
                self.env_name = env_name
        if not config.endswith(".py"):
            return super().read_hyperparameters()
        with imported(config) as self.config:
            try:
                return super().read_hyperparameters()
            finally:
                self.config = config

    def _default_entry(self, profile: dict[str, Any]) -> str | None:
        """
        :param profile: The entries of a profile
        :return: The one whose policy fits the environment's observations, for an environment that has none of its own
        """
        if self.env_name.gym_id in profile:
            return None
        given = self.custom_hyperparams or {}
        env_kwargs = self.env_kwargs or given.get("env_kwargs") or {}
        space = self._observation_space(get_wrapper_class(given), env_kwargs)
        entry = default_entry(space)
        if entry is None or (entry == "default_images" and given.get("policy", "CnnPolicy") != "CnnPolicy"):
            return None
        print(f"Observations are {DEFAULTS[entry]}: using the hyperparameters of {entry!r}")
        return entry

    def _observation_space(self, wrapper: EnvWrapper | None, env_kwargs: dict[str, Any]) -> spaces.Space[Any]:
        """
        :param wrapper: What wraps the environment
        :param env_kwargs: The environment's arguments
        :return: The observations of the environment in its wrapper
        """
        env: gym.Env[Any, Any] = gym.spec(self.env_name.gym_id).make(**env_kwargs)
        try:
            return (env if wrapper is None else wrapper(env)).observation_space
        finally:
            env.close()

    def _trial_hyperparams(self, trial_id: int) -> dict[str, Any]:
        """
        :param trial_id: Number of a trial
        :return: Its hyperparameters; mappings hold the file's entries too
        :raises ValueError: if there is no such trial
        """
        from_trial = self.load_trial(self.storage or "", self.study_name or "", trial_id)
        given = self.custom_hyperparams or {}
        self.trial_id = None
        # Of what is given, these decide which entry of the file it is, as they did in the search
        self.custom_hyperparams = {key: given[key] for key in ("env_wrapper", "env_kwargs", "policy") if key in given}
        with redirect_stdout(io.StringIO()):  # read, and told, once more with the trial's
            in_file, _ = self._read_file()
        merged = merge_hyperparams(in_file, from_trial, self._nested)
        return {key: merged[key] for key in from_trial}

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        """
        Load the parameters of a trial.

        :param storage: The storage (if empty: the default one)
        :param study_name: The study (if empty: the environment's only one)
        :param trial_id: Number of the trial (if None: the best one)
        :param convert: Whether to convert them to hyperparameters
        :return: Parameters or hyperparameters
        :raises ValueError: if there is no such trial
        """
        print("Loading from Optuna study...")
        study = load_study(storage or None, study_name or None, self.log_folder, self.algo, self.env_name)
        if trial_id is None:
            trial = study.best_trial
        else:
            check_number("trial_id", trial_id, low=0, high=len(study.trials) - 1, integer=True)
            trial = study.trials[trial_id]
        if not trial.params:
            raise ValueError(f"`trial_id={trial_id}` is not allowed: the trial was never started ({trial.state.name})")
        return self._converted(trial.params) if convert else trial.params

    def _converted(self, params: dict[str, Any]) -> dict[str, Any]:
        """
        :param params: The parameters of a trial
        :return: Its hyperparameters
        """
        hyperparams: dict[str, Any] = HYPERPARAMS_CONVERTER[self.algo](params)
        if "noise_type" in hyperparams and hyperparams["noise_type"] is None:
            # The Zoo's own algorithms: they searched with the file's noise, and do not know these two arguments
            del hyperparams["noise_type"], hyperparams["noise_std"]
        her_kwargs = {name: hyperparams.pop(name) for name in HER_PARAMETERS if name in hyperparams}
        if her_kwargs:  # which the Zoo's converters leave where they are no arguments
            hyperparams["replay_buffer_kwargs"] = her_kwargs
        return hyperparams

    @property
    def _nested(self) -> tuple[str, ...]:
        """Mappings of which a trial changes entries; the Zoo replaces the ``policy_kwargs`` of its own algorithms."""
        return NESTED if self.algo in ALGORITHMS else ("replay_buffer_kwargs",)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        for name in SCHEDULED:
            if isinstance(hyperparams.get(name), str):
                parse_linear_schedule(name, hyperparams[name])  # for its message: the Zoo's names nothing
        # Those of a Python file, which the Zoo does not know
        schedules = {name: hyperparams.pop(name) for name in SCHEDULED if callable(hyperparams.get(name))}
        processed = ExperimentManager._preprocess_schedules(hyperparams) | schedules
        if "critic_learning_rate" not in schedules and processed.get("critic_learning_rate") is not None:
            as_actors = ExperimentManager._preprocess_schedules({"learning_rate": processed["critic_learning_rate"]})
            processed["critic_learning_rate"] = as_actors["learning_rate"]
        return processed

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        if self.algo in ALGORITHMS:
            translate_noise_type(hyperparams)
        hyperparams = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        if self.algo in ALGORITHMS:
            self.n_actions: Any = env.action_space.shape  # for the sampler, where the Zoo has the first dimension alone
        if "action_noise" in hyperparams and env.action_space.shape is not None:
            hyperparams["action_noise"] = build_action_noise(hyperparams["action_noise"], env.action_space.shape)
        return hyperparams


def functions_of(error: BaseException) -> set[str]:
    """
    :param error: An error
    :return: The names of the functions that it came through
    """
    return {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
