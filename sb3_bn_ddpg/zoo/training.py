"""Trainings with checkpoints: written on the way and at a Ctrl-C, and resumed."""

import inspect
import shutil
import warnings
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.offline.base import BNOfflineAlgorithm
from sb3_bn_ddpg.saving.checkpoint import is_checkpoint, read_manifest
from sb3_bn_ddpg.zoo.algorithms import ALGORITHMS, ZooAlgorithm
from sb3_bn_ddpg.zoo.hyperparameters import HyperparameterManager
from sb3_bn_ddpg.zoo.interrupts import CheckpointUntilInterrupted, Interrupts, left_to_parent

CHECKPOINT_NAME = "checkpoint.zip"
"""A training's checkpoint in its folder: RL Zoo's option -i takes files of that suffix only."""

BEST_MODEL_NAME = "best_model.zip"
"""The name that SB3's ``EvalCallback`` gives the model of the best evaluation"""

STATISTICS_NAME = "vecnormalize.pkl"
"""The name that RL Zoo gives the statistics of ``VecNormalize``, in the folder of the run's configuration"""

CHECKPOINT_FREQ = 25_000
"""Default of ``--checkpoint-freq``"""

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


class TrainingManager(HyperparameterManager):
    """
    Trains with checkpoints and resumes from one, with the hyperparameters and in the environment of its training.

    :param args: The command line's arguments
    :param algo: Algorithm
    :param rest: Other positional arguments of ``ExperimentManager``
    :param kwargs: Its keyword arguments
    :raises ValueError: if ``n_eval_envs`` is no positive integer, a checkpoint is to be resumed by another algorithm or a
        search, or steps in the environment are to follow where there are none before
    """

    checkpoint_freq: ClassVar[int] = CHECKPOINT_FREQ
    """Steps between two checkpoints of a training; none is written if it is < 1"""
    new_episode: ClassVar[bool] = False
    """Whether a training that is resumed from a checkpoint begins a new episode in any case"""
    online_steps: ClassVar[int] = 0
    """Environment steps after the gradient steps of an algorithm for stored data"""

    def __init__(self, args: Namespace, algo: str, *rest: Any, **kwargs: Any) -> None:
        super().__init__(args, algo, *rest, **kwargs)
        check_number("n_eval_envs", self.n_eval_envs, low=1, integer=True)
        self._interrupts = Interrupts()
        self._is_given_steps = self.n_timesteps > 0  # later, the Zoo puts the file's there
        self._is_resumed = self.continue_training and is_checkpoint(self.trained_agent)
        if self._is_resumed:
            if self.optimize_hyperparameters:
                raise ValueError(
                    f"`-i {self.trained_agent}` is not allowed with `--optimize`: a search trains models of its own, from the "
                    "first step"
                )
            self._check_algorithm()
        self._check_online_steps()
        args.online_steps = self.online_steps  # the Zoo saves the arguments, and a resumed training reads them
        self._steps_to_follow = self.online_steps

    def _check_online_steps(self) -> None:
        """
        :raises ValueError: if steps in the environment are to follow a search, or an algorithm that makes them anyway
        """
        check_number("online_steps", self.online_steps, low=0, integer=True)
        if self.online_steps == 0:
            return
        offline = [name for name, row in ALGORITHMS.items() if row.needs_dataset]
        if self.algo not in offline:
            raise ValueError(
                f"`--online-steps {self.online_steps}` is not allowed with `--algo {self.algo}`: it must be one of "
                f"{', '.join(offline)}"
            )
        if self.optimize_hyperparameters:
            raise ValueError(
                f"`--online-steps {self.online_steps}` is not allowed with `--optimize`: a search uses the dataset alone"
            )

    def _check_algorithm(self) -> None:
        """
        :raises ValueError: if the checkpoint to resume is another algorithm's
        """
        written_by = read_manifest(self.trained_agent)["algorithm"]
        names = [name for name, row in ALGORITHMS.items() if row.algorithm.__name__ == written_by]
        if self.algo not in names:
            takes = f"use `--algo {names[0]}`" if names else "it is not registered with RL Zoo"
            raise ValueError(
                f"`algo={self.algo!r}` is not allowed with {self.trained_agent}, a checkpoint of {written_by}: {takes}"
            )

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters. A resumed training goes on with its own.

        :return: The hyperparameters, and a copy of them to save
        :raises ValueError: if the training has ended, and the command line does not say for how many more steps it goes on
        """
        if self._is_resumed:
            manifest, folder = read_manifest(self.trained_agent), Path(self.trained_agent).parent / self.env_name
            self._set_steps_to_follow(manifest, folder)
            has_ended = manifest["num_timesteps"] >= manifest["total_timesteps"]
            if has_ended and not self._is_given_steps and self._steps_to_follow == 0:
                raise ValueError(
                    f"`-i {self.trained_agent}` is not allowed without `-n`: its training has ended, after "
                    f"{manifest['num_timesteps']} steps, and for how many more it shall go on is not said"
                )
            if (folder / "config.yml").is_file():
                return self._resumed_hyperparameters(folder)
            warnings.warn(
                f"{self.trained_agent} has no {self.env_name}/config.yml beside it: the model is the checkpoint's, but its "
                f"environment is made, and config.yml written, as {self.config} and the command line say",
                stacklevel=2,
            )
        return super().read_hyperparameters()

    def _set_steps_to_follow(self, manifest: dict[str, Any], folder: Path) -> None:
        """
        Find out how many steps in the environment a resumed training still has to make after its gradient steps.

        :param manifest: The checkpoint's
        :param folder: Where the training has written its arguments
        :raises ValueError: if two numbers of such steps are given
        """
        if manifest["steps_environment"]:
            if self.online_steps > 0 and self._is_given_steps:
                raise ValueError(
                    f"`--online-steps {self.online_steps}` is not allowed with `-n` and {self.trained_agent}, whose training "
                    "is in the environment already: `-n` says for how many more steps it goes on there"
                )
        elif self.online_steps == 0 and (folder / "args.yml").is_file():
            self._steps_to_follow = yaml.unsafe_load((folder / "args.yml").read_text()).get("online_steps", 0)
            self.args.online_steps = self._steps_to_follow

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
        algorithm = ALGORITHMS[self.algo].algorithm
        settled = {*inspect.signature(algorithm).parameters, *NOISE_HYPERPARAMETERS, *ENVIRONMENT_HYPERPARAMETERS}
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
        if unknown := given.keys() - settled - {"callback"}:
            name = min(unknown)
            raise ValueError(
                f"`{name}={given[name]!r}` is not allowed: {algorithm.__name__} has no such argument, and RL Zoo no such "
                "hyperparameter"
            )
        hyperparams |= given
        # In the arguments too, which the Zoo saves
        self.args.env_kwargs = self.env_kwargs or arguments.get("env_kwargs")
        self.args.eval_env_kwargs = self._eval_env_kwargs_args or arguments.get("eval_env_kwargs")
        self.env_kwargs = self.args.env_kwargs or {}
        self.eval_env_kwargs = self.args.eval_env_kwargs or self.env_kwargs or hyperparams.get("env_kwargs") or {}
        if "env_kwargs" in hyperparams and self.env_kwargs:
            hyperparams["env_kwargs"] = self.env_kwargs
        return dict(hyperparams), hyperparams

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
        # All that the Zoo asks of a model here
        if isinstance(model, BNOfflineAlgorithm):
            learner = SimpleNamespace(learn=partial(self._learn_from_data, model), env=model.env)
        elif self._is_resumed:
            learner = SimpleNamespace(learn=partial(model.learn, reset_num_timesteps=False), env=model.env)
        with self._interrupts.remembered(), self._interrupts.at_once(not with_checkpoints and not self._has_workers):
            super().learn(learner)

    def _learn_from_data(self, model: BNOfflineAlgorithm, n_timesteps: int, **kwargs: Any) -> None:
        """
        Gradient steps on the dataset, then steps in the environment if ``online_steps`` says so: schedules end with the last
        of them. A training that was interrupted in the environment goes on there. ``log_interval`` is one of gradient steps,
        so what is learned in the environment, where it would be one of episodes, is logged as by default.

        :param model: The model
        :param n_timesteps: Number of gradient steps, or of those in the environment
        :param kwargs: Further arguments of ``learn``
        """
        is_online = self._is_resumed and model.learns_online
        if self._steps_to_follow > 0 or is_online:
            model.check_may_go_online()
        steps_to_follow = 0 if is_online else self._steps_to_follow
        is_longer = self._is_given_steps or self.online_steps > 0 or model.remaining_timesteps == 0
        if self._is_resumed:
            end = model.num_timesteps + n_timesteps + steps_to_follow
            kwargs |= dict(reset_num_timesteps=False, schedule_timesteps=end if is_longer else model._schedule_timesteps)
        elif steps_to_follow > 0:
            kwargs["schedule_timesteps"] = n_timesteps + steps_to_follow
        online_kwargs = {name: value for name, value in kwargs.items() if name != "log_interval"}
        if is_online:
            model.go_on_online(n_timesteps, **online_kwargs)
            return
        model.learn(n_timesteps, **kwargs)
        if steps_to_follow > 0 and model.remaining_timesteps == 0:  # no callback has ended it
            print(f"Going on in the environment, for {steps_to_follow} steps")
            online_kwargs |= dict(reset_num_timesteps=False, action_noise=None if model.acts_at_random else "normal")
            model.learn_online(steps_to_follow, **online_kwargs)

    def _warn_of_other_hyperparameters(self, row: ZooAlgorithm) -> None:
        """
        Say what a loaded model learns with that it has not learned with so far: by default a profile, whatever was its own.

        :param row: The algorithm
        """
        file = Path(self.trained_agent).parent / self.env_name / "config.yml"
        if not file.is_file():
            return
        try:
            so_far = dict(yaml.unsafe_load(file.read_text()))
        except yaml.YAMLError:  # it names classes of a Python file that is gone, of which the model has its own copies
            return
        defaults = {name: each.default for name, each in inspect.signature(row.algorithm).parameters.items()}
        settled = {"policy", "policy_kwargs", row.dataset_argument, *(self.custom_hyperparams or {})}
        values = {
            name: [each.get(name, default) for each in (so_far, self._file_hyperparams)]
            for name, default in defaults.items()
            if name not in settled
        }
        if changes := [f"{name} {before!r} -> {now!r}" for name, (before, now) in values.items() if before != now]:
            warnings.warn(
                f"{self.trained_agent} goes on with other hyperparameters than it has learned with so far, those of "
                f"{self.config}: {', '.join(changes)}. `--profile` or `--conf-file` names others",
                stacklevel=2,
            )

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if not self._is_resumed:
            row = ALGORITHMS.get(self.algo)
            if row is not None:
                self._warn_of_other_hyperparameters(row)
            if row is None or not row.needs_dataset:
                return super()._load_pretrained_agent(hyperparams, env)
            # As the Zoo does, but for a replay buffer beside the model, which would replace the dataset that is named
            print("Loading pretrained agent")
            changed = {name: value for name, value in hyperparams.items() if name not in ("policy", "policy_kwargs")}
            changed |= dict(tensorboard_log=self.tensorboard_log, verbose=self.verbose, seed=self.seed)
            return row.algorithm.load(self.trained_agent, env=env, device=self.device, **changed)
        algorithm = ALGORITHMS[self.algo].algorithm
        model = algorithm.resume(self.trained_agent, env, device=self.device, new_episode=self.new_episode)
        model.verbose = self.verbose
        if self.tensorboard_log is not None:
            model.tensorboard_log = self.tensorboard_log
        self.normalize = model.get_vec_normalize_env() is not None
        if not self._is_given_steps:
            self.n_timesteps = model.remaining_timesteps
            if isinstance(model, BNOfflineAlgorithm) and model.learns_online and self.n_timesteps == 0:
                self.n_timesteps = self.online_steps
        # The record that evaluations have to beat is the checkpoint's, so the model that set it comes with it
        best_model = Path(self.trained_agent).parent / BEST_MODEL_NAME
        if best_model.is_file():
            shutil.copy(best_model, self.save_path)
            statistics = best_model.parent / Path(self.params_path).name / STATISTICS_NAME
            if statistics.is_file():
                shutil.copy(statistics, self.params_path)
        print(f"Resuming from step {model.num_timesteps} for {self.n_timesteps} more, with the checkpoint's hyperparameters")
        return model


def _go_on(*args: object) -> bool:
    return True
