"""The Zoo's experiment manager, taught this package's files and noise, and to keep searches."""

import inspect
import io
import math
import shlex
import shutil
import sys
import traceback
import warnings
from argparse import Namespace
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import optuna
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.common.checks import check_choice, check_number, check_numbers
from sb3_bn_ddpg.common.hindsight import FirstEpisodeError
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.saving.checkpoint import is_checkpoint, read_manifest
from sb3_bn_ddpg.zoo.action_noise import ZOO_NOISE_TYPES, build_action_noise, parse_linear_schedule
from sb3_bn_ddpg.zoo.algorithms import ALGORITHMS, profile_path, shipped_files
from sb3_bn_ddpg.zoo.interrupts import CheckpointUntilInterrupted, EnvWrapper, Interrupts, UninterruptedTrial, left_to_parent
from sb3_bn_ddpg.zoo.python_files import imported
from sb3_bn_ddpg.zoo.search_space import HER_PARAMETERS, NESTED, file_policy_kwargs, merge_hyperparams
from sb3_bn_ddpg.zoo.studies import (
    WorkerRecovery,
    as_code,
    default_storage,
    default_study_name,
    finished_trials,
    load_study,
    open_storage,
    write_best_hyperparams,
    write_plots,
)

CHECKPOINT_NAME = "checkpoint.zip"
"""A training's checkpoint in its folder: RL Zoo's option -i takes files of that suffix only."""

BEST_MODEL_NAME = "best_model.zip"
"""The name that SB3's ``EvalCallback`` gives the model of the best evaluation"""

STATISTICS_NAME = "vecnormalize.pkl"
"""The name that RL Zoo gives the statistics of ``VecNormalize``, in the folder of the run's configuration"""

CHECKPOINT_FREQ = 25_000
"""Default of ``--checkpoint-freq``"""

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

NOISE_HYPERPARAMETERS = ("noise_type", "noise_std")
"""RL Zoo's, which become the model's ``action_noise``"""
ENVIRONMENT_HYPERPARAMETERS = (
    "env_kwargs",
    "env_wrapper",
    "vec_env_wrapper",
    "normalize",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
)
"""RL Zoo's that make the training's environment, which a checkpoint holds"""

DEFAULTS = {"default_dict": "dictionaries", "default_images": "images"}
"""Entries of the profiles beside ``default``, for environments without one of their own, and what their observations are"""

NOT_ABOUT_HYPERPARAMETERS = {"make_env", "_observation_space", "_load_pretrained_agent"}
"""RL Zoo's functions that make the environment and load a model: their errors are not of the hyperparameter file."""


class FamilyExperimentManager(ExperimentManager):
    """
    RL Zoo's ``ExperimentManager``. For ``bn_ddpg`` it finds this package's hyperparameter file, schedules
    ``critic_learning_rate`` and builds ``action_noise`` from a mapping; for every algorithm a search is kept in a file by
    default, recovers from dead workers and ends in a report, and ``--trial-id 0`` is a trial like any other.

    :param args: The command line's arguments
    :param algo: Algorithm
    :param rest: Other positional arguments of ``ExperimentManager``
    :param kwargs: Its keyword arguments. A ``config`` of None is the tuned profile if the algorithm is ``bn_ddpg``, else the
        Zoo's own file.
    :raises ValueError: if ``trial_id`` is negative, ``n_eval_envs`` no positive integer, a checkpoint of ``bn_ddpg`` is to be
        resumed by another algorithm, or a search is asked for of an algorithm whose hyperparameters nothing samples
    """

    recovery: ClassVar[WorkerRecovery] = WorkerRecovery()
    """What becomes of trials whose worker died"""
    checkpoint_freq: ClassVar[int] = CHECKPOINT_FREQ
    """Steps between two checkpoints of a training; none is written if it is < 1"""
    new_episode: ClassVar[bool] = False
    """Whether a training that is resumed from a checkpoint begins a new episode in any case"""

    def __init__(self, args: Namespace, algo: str, *rest: Any, **kwargs: Any) -> None:
        if kwargs.get("config") is None and algo in ALGORITHMS:
            kwargs["config"] = str(profile_path(algo=algo))
        super().__init__(args, algo, *rest, **kwargs)
        if self.trial_id is not None:
            check_number("trial_id", self.trial_id, low=0, integer=True)
        check_number("n_eval_envs", self.n_eval_envs, low=1, integer=True)
        if self.optimize_hyperparameters and algo not in HYPERPARAMS_SAMPLER:
            known = ", ".join(map(repr, HYPERPARAMS_SAMPLER))
            raise ValueError(f"`algo={algo!r}` is not allowed with `--optimize`: hyperparameters are sampled of {known}")
        self._file_hyperparams: dict[str, Any] = {}
        self._interrupts = Interrupts()
        self._is_given_steps = self.n_timesteps > 0  # later, the Zoo puts the file's there
        self._is_resumed = self.continue_training and is_checkpoint(self.trained_agent)
        if self._is_resumed and algo not in ALGORITHMS:
            known = ", ".join(map(repr, ALGORITHMS))
            raise ValueError(f"`algo={algo!r}` is not allowed with the checkpoint {self.trained_agent}: it is one of {known}")

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
            is_of_another = isinstance(error, FileError) or not _functions_of(error).isdisjoint(NOT_ABOUT_HYPERPARAMETERS)
            if says_which or is_of_another or self.algo not in ALGORITHMS or not isinstance(self.config, (str, Path)):
                raise
            detail = f"{type(error).__name__}: {' '.join(str(error).split())}"
            given = " ".join(f"{name}:{value!r}" for name, value in (getattr(self.args, "hyperparams", None) or {}).items())
            with_given = f" with `-params {given}`" if given else ""
            raise FileError(self.config, f"gives no usable hyperparameters{with_given}: {detail}") from error

    # --- Reading hyperparameters

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters: the file's, over them those of ``--trial-id``, over them those of ``-params``. A resumed
        training goes on with its own.

        :return: The hyperparameters, and a copy of them to save
        :raises ValueError: if there is no such trial, or the noise is spelled in two ways at once
        """
        if self._is_resumed:
            manifest = read_manifest(self.trained_agent)
            if not self._is_given_steps and manifest["num_timesteps"] >= manifest["total_timesteps"]:
                raise ValueError(
                    f"`-i {self.trained_agent}` is not allowed without `-n`: its training has ended, after "
                    f"{manifest['num_timesteps']} steps, and for how many more it shall go on is not said"
                )
            folder = Path(self.trained_agent).parent / self.env_name
            if (folder / "config.yml").is_file():
                return self._resumed_hyperparameters(folder)
            warnings.warn(
                f"{self.trained_agent} has no {self.env_name}/config.yml beside it: the model is the checkpoint's, but its "
                f"environment is made, and config.yml written, as {self.config} and the command line say",
                stacklevel=2,
            )
        from_command_line = dict(self.custom_hyperparams or {})
        from_trial: dict[str, Any] = {}
        if self.trial_id is not None:
            from_trial = self._trial_hyperparams(self.trial_id)
            self.trial_id = None  # done: the Zoo would do it again, except for trial 0
        if _spells_noise(from_command_line):
            from_trial.pop("action_noise", None)
        overrides = from_trial | from_command_line
        self.custom_hyperparams = overrides
        hyperparams, saved_hyperparams = self._read_file()
        if self.algo in ALGORITHMS:
            for each in (hyperparams, saved_hyperparams):
                _settle_noise_spelling(each, overrides)
        self._file_hyperparams = dict(saved_hyperparams)
        return hyperparams, saved_hyperparams

    def _read_file(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: What the Zoo reads: the hyperparameters of the file and the command line, and a copy of them to save
        """
        config, env_name = self.config, self.env_name
        if config in shipped_files(self.algo):
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
        if isinstance(space, spaces.Dict):
            entry = "default_dict"
        elif is_image_space(space) and given.get("policy", "CnnPolicy") == "CnnPolicy":
            entry = "default_images"
        else:
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

    def _resumed_hyperparameters(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters of the training to resume, and the arguments of its environment.

        :param folder: Where it has written both
        :return: The hyperparameters, and a copy of them to save
        :raises ValueError: if the command line has another value of an argument of the model or the training's environment,
            or ``-params`` a number of steps
        """
        self.config = str(folder / "config.yml")
        print(f"Loading hyperparameters from: {self.config}")
        # As the Zoo reads them: values from a command line may be Python's objects
        hyperparams: dict[str, Any] = dict(yaml.unsafe_load(Path(self.config).read_text()))
        arguments = yaml.unsafe_load((folder / "args.yml").read_text())
        given = self.custom_hyperparams or {}
        checked = given | ({"env_kwargs": self.env_kwargs} if self.env_kwargs else {})
        saved = hyperparams | ({"env_kwargs": arguments["env_kwargs"]} if arguments.get("env_kwargs") else {})
        of_model = inspect.signature(ALGORITHMS[self.algo].algorithm).parameters
        settled = {*of_model, *NOISE_HYPERPARAMETERS, *ENVIRONMENT_HYPERPARAMETERS}
        for name in checked.keys() & settled:
            if name not in saved or checked[name] != saved[name]:
                raise ValueError(
                    f"`{name}={checked[name]!r}` is not allowed with a checkpoint, whose training goes on with the "
                    f"hyperparameters in {self.config} and the environment as it was"
                )
        if "n_timesteps" in given:
            raise ValueError(
                f"`n_timesteps={given['n_timesteps']!r}` is not allowed with a checkpoint: `-n` says for how many more steps "
                "its training goes on"
            )
        hyperparams |= given
        # In the arguments too, which the Zoo saves
        self.args.env_kwargs = self.env_kwargs or arguments.get("env_kwargs")
        self.args.eval_env_kwargs = self._eval_env_kwargs_args or arguments.get("eval_env_kwargs")
        self.env_kwargs = self.args.env_kwargs or {}
        self.eval_env_kwargs = self.args.eval_env_kwargs or self.env_kwargs
        if "env_kwargs" in hyperparams and self.env_kwargs:
            hyperparams["env_kwargs"] = self.env_kwargs
        return dict(hyperparams), hyperparams

    def _trial_hyperparams(self, trial_id: int) -> dict[str, Any]:
        """
        :param trial_id: Number of a trial
        :return: Its hyperparameters; mappings hold the file's entries too
        :raises ValueError: if there is no such trial
        """
        from_trial = self.load_trial(self.storage or "", self.study_name or "", trial_id)
        self.trial_id, self.custom_hyperparams = None, None
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
        for name in ("learning_rate", "critic_learning_rate"):
            if isinstance(hyperparams.get(name), str):
                parse_linear_schedule(name, hyperparams[name])  # for its message: the Zoo's names nothing
        processed = ExperimentManager._preprocess_schedules(hyperparams)
        if "critic_learning_rate" in processed:
            as_actors = ExperimentManager._preprocess_schedules({"learning_rate": processed["critic_learning_rate"]})
            processed["critic_learning_rate"] = as_actors["learning_rate"]
        return processed

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        if self.algo in ALGORITHMS:
            _translate_noise_type(hyperparams)
        hyperparams = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        if self.algo in ALGORITHMS:
            self.n_actions: Any = env.action_space.shape  # for the sampler, where the Zoo has the first dimension alone
        if "action_noise" in hyperparams and env.action_space.shape is not None:
            hyperparams["action_noise"] = build_action_noise(hyperparams["action_noise"], env.action_space.shape)
        return hyperparams

    def create_log_folder(self) -> None:
        """Create the run's folder. A search has none: ``enjoy`` would take it, empty, for the latest run."""
        if not self.optimize_hyperparameters:
            super().create_log_folder()  # type: ignore[no-untyped-call]

    def create_envs(self, *args: Any, **kwargs: Any) -> VecEnv:
        """
        Create the environments. Their processes leave a Ctrl-C to this one; a search's write no log.

        :param args: As in RL Zoo
        :param kwargs: As in RL Zoo
        :return: The environments
        """
        if self.optimize_hyperparameters:
            kwargs["no_log"] = True
        if not self._has_workers:
            return super().create_envs(*args, **kwargs)
        wrapper, self.env_wrapper = self.env_wrapper, left_to_parent(self.env_wrapper)
        try:
            return super().create_envs(*args, **kwargs)
        finally:
            self.env_wrapper = wrapper

    @property
    def _has_workers(self) -> bool:
        """Whether environments are in processes. Interrupted between question and answer, these would wait forever."""
        return self.vec_env_class is SubprocVecEnv

    # --- Training

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train until the last step or a Ctrl-C, which with checkpoints first writes one of the step it fell into.

        :param model: The model
        """
        with_checkpoints = isinstance(model, BNOffPolicyAlgorithm) and self.checkpoint_freq > 0
        # The Zoo announces an end to the first callback after an error in the middle of a step too: never one with checkpoints
        at_each_step = _go_on if with_checkpoints else self._interrupts.stop_if_happened
        self.callbacks = [*self.callbacks, ConvertCallback(at_each_step)]
        if with_checkpoints:
            path = Path(self.save_path) / CHECKPOINT_NAME
            self.callbacks.append(CheckpointUntilInterrupted(self.checkpoint_freq, path, self._interrupts))
        learner: Any = model
        if self._is_resumed:
            # All that the Zoo asks of a model here
            learner = SimpleNamespace(learn=partial(model.learn, reset_num_timesteps=False), env=model.env)
        with self._interrupts.remembered(), self._interrupts.at_once(not with_checkpoints and not self._has_workers):
            super().learn(learner)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if not self._is_resumed:
            return super()._load_pretrained_agent(hyperparams, env)
        algorithm = ALGORITHMS[self.algo].algorithm
        model = algorithm.resume(self.trained_agent, env, device=self.device, new_episode=self.new_episode)
        model.verbose = self.verbose
        if self.tensorboard_log is not None:
            model.tensorboard_log = self.tensorboard_log
        self.normalize = model.get_vec_normalize_env() is not None
        if not self._is_given_steps:
            self.n_timesteps = model.remaining_timesteps
        # The record that evaluations have to beat is the checkpoint's, so the model that set it comes with it
        best_model = Path(self.trained_agent).parent / BEST_MODEL_NAME
        if best_model.is_file():
            shutil.copy(best_model, self.save_path)
            statistics = best_model.parent / Path(self.params_path).name / STATISTICS_NAME
            if statistics.is_file():
                shutil.copy(statistics, self.params_path)
        print(f"Resuming from step {model.num_timesteps} for {self.n_timesteps} more, with the checkpoint's hyperparameters")
        return model

    # --- Searching

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train and evaluate a model with sampled hyperparameters.

        :param trial: The trial
        :return: The mean reward of its last evaluation
        :raises optuna.TrialPruned: if it is pruned, or anything in it became NaN
        :raises FirstEpisodeError: if no trial can learn with this `learning_starts`, which is none of the sampled
        """
        self._interrupts.stop_if_happened()
        with self._interrupts.at_once(not self._has_workers), file_policy_kwargs(self._hyperparams.get("policy_kwargs") or {}):
            uninterrupted: Any = UninterruptedTrial(trial, self._interrupts)
            try:
                value = super().objective(uninterrupted)
            except optuna.TrialPruned as pruned:
                if isinstance(pruned.__cause__, FirstEpisodeError):
                    raise pruned.__cause__ from None
                raise
        if math.isnan(value):
            raise optuna.TrialPruned("The mean reward is NaN")
        return value

    def hyperparameters_optimization(self) -> None:
        """Run or resume a search, and report what the study has found so far."""
        self.storage = self.storage or default_storage(self.log_folder)
        self.study_name = self.study_name or default_study_name(self.algo, self.env_name, self._objective_settings())
        # The Zoo's plots would open in a browser: write files instead
        with_plots, self.no_optim_plots = not self.no_optim_plots, True
        print(f"Study {self.study_name} in {self.storage}: the same command resumes it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat, the plots
            study = self._search()
            if finished_trials(study):
                self._report(study, with_plots)
            else:
                print("No trial has finished yet")

    def _search(self) -> optuna.Study:
        """
        Let the Zoo search, in this package's storage: the Zoo has no argument for one with a heartbeat.

        :return: The study
        """
        assert self.storage is not None
        # By name, as in a file: each trial gets a callback of its own, which keeps no other trial's model alive
        at_each_step = {f"{ConvertCallback.__module__}.ConvertCallback": {"callback": self._interrupts.stop_if_happened}}
        in_file: Any = self.specified_callbacks or []
        self.specified_callbacks = [*(in_file if isinstance(in_file, list) else [in_file]), at_each_step]
        storage = open_storage(self.storage, self.recovery)
        studies: list[optuna.Study] = []
        create_study = optuna.create_study

        def create_study_in_storage(**kwargs: Any) -> optuna.Study:
            study = create_study(**{**kwargs, "storage": storage})
            # Optuna does so when a trial starts, but the Zoo counts those that run before, for --max-total-trials
            optuna.storages.fail_stale_trials(study)
            if study.trials:
                # Seeded as in the first start, the sampler would draw the same trials again
                study.sampler.reseed_rng()
            studies.append(study)
            return study

        optuna.create_study = create_study_in_storage
        try:
            with self._interrupts.remembered():
                super().hyperparameters_optimization()
        except ValueError as error:
            # The Zoo asks for the best trial even if there is none, as after an early Ctrl-C
            if "best_trial" not in _functions_of(error):
                raise
        finally:
            optuna.create_study = create_study
        return studies[0]

    def _objective_settings(self) -> dict[str, Any]:
        """All that determines what a trial's value means, except for chance."""
        return {
            "hyperparams": self._file_hyperparams,
            "n_timesteps": self.n_timesteps,
            "n_evaluations": self.n_evaluations,
            "n_eval_episodes": self.n_eval_episodes,
            "env_kwargs": self.env_kwargs,
            "eval_env_kwargs": self.eval_env_kwargs,
        }

    def _report(self, study: optuna.Study, with_plots: bool) -> None:
        """
        Write the best trial's hyperparameters and the plots, and print how to go on.

        :param study: A study with a finished trial
        :param with_plots: Whether to plot
        """
        folder = Path(self.log_path) / "optuna" / study.study_name
        folder.mkdir(parents=True, exist_ok=True)
        best_file = folder / "best.yml"
        from_trial = self._converted(study.best_trial.params)
        hyperparams = merge_hyperparams(self._file_hyperparams, from_trial, self._nested)
        if self.algo in ALGORITHMS:
            _settle_noise_spelling(hyperparams, from_trial)
        if self.env_kwargs:
            hyperparams["env_kwargs"] = self.env_kwargs
        left_out = write_best_hyperparams(best_file, self.env_name.gym_id, hyperparams)
        if vars(self.args).get("env_kwargs"):  # which the commands have too
            left_out = [name for name in left_out if name != "env_kwargs"]
        files = [best_file, *(write_plots(study, folder) if with_plots else [])]

        best = study.best_trial
        print(f"\nBest of {len(finished_trials(study))} finished trials: {best.number}, with {study.best_value:.2f}")
        print(best_file.read_text().rstrip())
        print("\nWritten: " + " ".join(str(file) for file in files))
        try:
            from_file, from_study = self._training_commands(study, best_file, hyperparams)
            if left_out:
                print(f"{best_file} cannot hold {', '.join(left_out)}, which no text stands for\nTrain with it: {from_study}")
            else:
                print(f"Train with it: {from_file}\nor:            {from_study}")
        except ValueError as error:
            print(f"No command trains with it: {error}")
        sys.stdout.flush()

    def _training_commands(self, study: optuna.Study, best_file: Path, hyperparams: dict[str, Any]) -> tuple[str, str]:
        """
        :param study: A study with a finished trial
        :param best_file: The file with the best trial's hyperparameters
        :param hyperparams: These
        :return: The commands that train with them, from the file and from the study, in the search's environment
        :raises ValueError: if a value of the command line cannot be written as text
        """
        given = vars(self.args)
        train = ["bn-ddpg", "train", "--algo", self.algo, "--env", self.env_name.gym_id]
        environment = ["--gym-packages", *given["gym_packages"]] if given.get("gym_packages") else []
        for option, name in (("--env-kwargs", "env_kwargs"), ("--eval-env-kwargs", "eval_env_kwargs")):
            if given.get(name):
                environment += [option, *(f"{key}:{as_code(value)}" for key, value in given[name].items())]
        from_study = ["--storage", str(self.storage), "--study-name", study.study_name]
        from_study += ["--trial-id", str(study.best_trial.number)]
        if given.get("conf_file"):
            from_study += ["--conf-file", given["conf_file"]]
        # Over the trial a command line has the last word, in the search the trial had it: with the trial's values
        names = [name for name in hyperparams if name in (given.get("hyperparams") or {})]
        if names:
            from_study += ["-params", *(f"{name}:{as_code(hyperparams[name])}" for name in names)]
        return (
            shlex.join([*train, "--conf-file", str(best_file), *environment]),
            shlex.join([*train, *from_study, *environment]),
        )


def _functions_of(error: BaseException) -> set[str]:
    """
    :param error: An error
    :return: The names of the functions that it came through
    """
    return {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}


def _go_on(*args: object) -> bool:
    return True


def _spells_noise(hyperparams: dict[str, Any]) -> bool:
    return "noise_type" in hyperparams or "action_noise" in hyperparams


def _settle_noise_spelling(hyperparams: dict[str, Any], overrides: dict[str, Any]) -> None:
    """
    Let the noise of a trial or of the command line replace the file's, whichever of the two spellings each has.

    :param hyperparams: All hyperparameters, from which the replaced ones are removed
    :param overrides: Those of the trial and the command line
    :raises ValueError: if both spellings come from the same place
    """
    if not ("noise_type" in hyperparams and "action_noise" in hyperparams):
        return
    if ("noise_type" in overrides) == ("action_noise" in overrides):
        raise ValueError(
            f"`action_noise={hyperparams['action_noise']!r}` is not allowed beside `noise_type="
            f"{hyperparams['noise_type']!r}`: there must be one of the two"
        )
    for name in ("action_noise",) if "noise_type" in overrides else ("noise_type", "noise_std"):
        hyperparams.pop(name, None)


def _translate_noise_type(hyperparams: dict[str, Any]) -> None:
    """
    Check the Zoo's ``noise_type`` and ``noise_std``, and turn the word ``ou`` into ``action_noise``. None disables noise.

    :param hyperparams: The hyperparameters, changed in place
    :raises ValueError: if ``noise_type`` is unknown, or a ``noise_std`` is missing or has no ``noise_type``
    """
    if "noise_type" not in hyperparams:
        if "noise_std" in hyperparams:
            raise ValueError(
                f"`noise_std={hyperparams['noise_std']!r}` is not allowed without `noise_type`: "
                "the sigma of `action_noise` is an entry of that mapping"
            )
        return
    noise_type = hyperparams["noise_type"]
    if isinstance(noise_type, str):
        noise_type = noise_type.strip()
    check_choice("noise_type", noise_type, (*ZOO_NOISE_TYPES, "ou", None))
    if noise_type in ZOO_NOISE_TYPES:
        check_numbers("noise_std", hyperparams.get("noise_std"))
    if noise_type == "ornstein-uhlenbeck":
        return
    del hyperparams["noise_type"]
    sigma = {"sigma": hyperparams.pop("noise_std")} if "noise_std" in hyperparams else {}
    hyperparams["action_noise"] = None if noise_type is None else {"type": noise_type, **sigma}
