"""Searches that are kept in a file by default, recover from dead workers and end in a report."""

import math
import shlex
import sys
import threading
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar

import optuna
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_bn_ddpg.common.hindsight import FirstEpisodeError
from sb3_bn_ddpg.profiles.action_noise import settle_noise_spelling
from sb3_bn_ddpg.zoo.algorithms import ALGORITHMS
from sb3_bn_ddpg.zoo.hyperparameters import functions_of
from sb3_bn_ddpg.zoo.interrupts import UninterruptedTrial
from sb3_bn_ddpg.zoo.search_space import file_policy_kwargs, merge_hyperparams
from sb3_bn_ddpg.zoo.studies import (
    WorkerRecovery,
    as_code,
    default_storage,
    default_study_name,
    finished_trials,
    open_storage,
    write_best_hyperparams,
    write_plots,
)
from sb3_bn_ddpg.zoo.training import TrainingManager


class FamilyExperimentManager(TrainingManager):
    """
    What RL Zoo is given in the place of its ``ExperimentManager``. To hyperparameters and trainings it adds searches, those of
    the Zoo's algorithms too.

    :param args: The command line's arguments
    :param algo: Algorithm
    :param rest: Other positional arguments of ``ExperimentManager``
    :param kwargs: Its keyword arguments
    :raises ValueError: if a search is asked for of an algorithm whose hyperparameters nothing samples
    """

    recovery: ClassVar[WorkerRecovery] = WorkerRecovery()
    """What becomes of trials whose worker died"""

    def __init__(self, args: Namespace, algo: str, *rest: Any, **kwargs: Any) -> None:
        super().__init__(args, algo, *rest, **kwargs)
        self._opened = threading.local()  # environments of the trial that runs in a thread
        if self.optimize_hyperparameters and algo not in HYPERPARAMS_SAMPLER:
            known = ", ".join(map(repr, HYPERPARAMS_SAMPLER))
            raise ValueError(f"`algo={algo!r}` is not allowed with `--optimize`: hyperparameters are sampled of {known}")

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train and evaluate a model with sampled hyperparameters.

        :param trial: The trial
        :return: The mean reward of its last evaluation
        :raises optuna.TrialPruned: if it is pruned, anything in it became NaN, or what was sampled does not go with the file's
            values
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
            except ValueError as error:
                if "_setup_model" not in functions_of(error) or not self._file_makes_a_model():
                    raise
                print(f"Trial {trial.number} is pruned, as what was sampled does not go with the file's values: {error}")
                raise optuna.TrialPruned from error
            finally:
                self._opened.envs = []
        if math.isnan(value):
            raise optuna.TrialPruned("The mean reward is NaN")
        return value

    def create_envs(self, *args: Any, **kwargs: Any) -> VecEnv:
        """As the Zoo's, which leaves those open of which no model can be made."""
        env = super().create_envs(*args, **kwargs)
        if self.optimize_hyperparameters:
            self._opened.envs = [*getattr(self._opened, "envs", []), env]
        return env

    def _file_makes_a_model(self) -> bool:
        """
        :return: Whether the file's values go together by themselves; the environments of a trial are closed
        """
        for env in self._opened.envs:
            env.close()
        env = self.create_envs(self.n_envs, no_log=True)
        try:
            ALGOS[self.algo](env=env, device=self.device, **self._hyperparams)
        except ValueError:
            return False
        finally:
            env.close()
        return True

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
            if "best_trial" not in functions_of(error):
                raise
        finally:
            optuna.create_study = create_study
        return studies[0]

    def _objective_settings(self) -> dict[str, Any]:
        """All that determines what a trial's value means, except for chance."""
        argument = ALGORITHMS[self.algo].dataset_argument if self.algo in ALGORITHMS else None
        dataset = None if argument is None else self._hyperparams.get(argument)
        # The transitions themselves: a file may have got others since
        of_dataset = {} if dataset is None else {"dataset": dataset.digest()}
        return of_dataset | {
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
            settle_noise_spelling(hyperparams, from_trial)
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
        if self.dataset is not None:
            from_study += ["--dataset", self.dataset]
        # Over the trial a command line has the last word, in the search the trial had it: with the trial's values
        names = [name for name in hyperparams if name in (given.get("hyperparams") or {})]
        if names:
            from_study += ["-params", *(f"{name}:{as_code(hyperparams[name])}" for name in names)]
        return (
            shlex.join([*train, "--conf-file", str(best_file), *environment]),
            shlex.join([*train, *from_study, *environment]),
        )
