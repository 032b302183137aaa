"""What every saving and loading of a model goes through: whole files or none, clear errors, checkpoints."""

import copy
import io
import pathlib
import pickle
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_bn_ddpg.common.atomic_files import (
    HashingFile,
    PathOrFile,
    atomic_sb3_file,
    clear_errors,
    existing_file,
)
from sb3_bn_ddpg.common.guards import check_no_answer_is_due
from sb3_bn_ddpg.common.vec_env_layers import layers_of
from sb3_bn_ddpg.export import files as export
from sb3_bn_ddpg.saving import checkpoint, environment_state
from sb3_bn_ddpg.saving.life_cycle import StepLifeCycle
from sb3_bn_ddpg.saving.stored_buffer import cut_off_episodes
from sb3_bn_ddpg.saving.whole_files import SHA256_LINE, check_model_file, check_pickle

OBSERVATIONS_LOST = "The model was trained on the observations of VecNormalize, whose statistics it does not have"
HOW_TO_NORMALIZE = "load the model with `env=VecNormalize.load(...)`"

SelfSaving = TypeVar("SelfSaving", bound="SavingAlgorithm")


class SavingAlgorithm(StepLifeCycle):
    """
    SB3's methods for files, safer: a save replaces its file only when all of it is on the disk, a bad file is refused with a
    :class:`~sb3_bn_ddpg.FileError` (a ``ValueError``) that names it, before anything of the model has changed.
    """

    _saved_by: str | None = None
    """Name of the class whose model was last saved, or loaded"""

    # --- Checkpoints

    def save_checkpoint(self, path: str | pathlib.Path) -> None:
        """
        Save all that the training needs to go on to the same numbers in another process: networks, optimizers, replay buffer,
        noise, schedules, random generators, the environment with its simulators, callbacks' counters. To be called between
        two calls of ``learn``; during one, :class:`~sb3_bn_ddpg.CheckpointEvery` finds the right moment.

        Where all of the environment's state is known (:doc:`/reliability` has the list), or it says its state by the methods
        ``get_checkpoint_state`` and ``set_checkpoint_state``, the resumed training goes on in the middle of the episode. Else
        it begins a new one, and the first checkpoint warns. What cannot be read back is left out, with a warning.

        :param path: The file to write or replace, exactly as given
        :raises ValueError: if a parameter of the networks is not finite, or an argument of the model cannot be pickled and
            read back; an earlier checkpoint stays
        :raises EnvironmentFailureError: if the environment's processes were interrupted in the middle of a step
        :raises RuntimeError: in the middle of a step of a running training, as from a callback's ``_on_step`` or
            ``_on_rollout_end``; or if the model has no environment
        """
        check_no_answer_is_due(self)
        if self.env is None:
            raise RuntimeError(
                f"`save_checkpoint({str(path)!r})` is not allowed of a model without an environment, whose state a checkpoint "
                "holds: `save` writes the model alone"
            )
        if self._is_collecting and (self._is_within_step or self._is_training_due):
            lacking = "stored" if self._is_within_step else "learned from"
            raise RuntimeError(
                f"`save_checkpoint({str(path)!r})` is not allowed in the middle of a step, which is not {lacking} yet: "
                "`learn(..., callback=CheckpointEvery(save_freq, path))` saves between two steps"
            )
        if self._has_lost_a_step:
            cut_off_episodes(self.replay_buffer)
            self._last_obs = None  # learn resets the environment
        checkpoint.write_checkpoint(self, path)

    @classmethod
    def resume(
        cls: type[SelfSaving],
        path: str | pathlib.Path,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        new_episode: bool = False,
    ) -> SelfSaving:
        """
        Make a model from a checkpoint that goes on where the saved one was, to the bit on the same machine:

        - ``model.learn(n, reset_num_timesteps=False)`` takes ``n`` more steps, as a second call of ``learn`` would have;
        - ``model.learn(model.remaining_timesteps, reset_num_timesteps=False)`` finishes the interrupted call, whose
          schedules go on (if it had a ``schedule_timesteps``, pass that again).

        The checkpoint restores the random generators of the whole process. It runs pickled code: resume only from files
        that you trust.

        :param path: A file of :meth:`save_checkpoint`
        :param env: An environment built as the saved one was, or its id. It keeps its attributes and the objects that it
            shares with others; only its state becomes the saved one's. If its parameters differ, a new episode begins, with
            a warning. If None, it is made anew, which needs environments from ``gym.make`` (single, or of ``make_vec_env``);
            the files of their monitors are then not continued.
        :param device: Device (cpu, cuda, ...) on which the code should be run
        :param new_episode: Whether to begin a new episode in any case
        :return: The model
        :raises FileError: if the file is truncated, was altered, is no checkpoint, or one of another class
        :raises ValueError: if the environment is not like the saved one
        """
        saved = checkpoint.read_checkpoint(path, cls)
        if differences := checkpoint.changed_versions(saved.manifest):
            warnings.warn(f"The resumed training need not give the same numbers: {'; '.join(differences)}", stacklevel=2)
        env_state = checkpoint.environment_of(saved)
        venv = cls._wrap_env(environment_state.rebuild(env_state) if env is None else maybe_make_env(env, 0), verbose=0)
        if venv.num_envs != saved.manifest["num_envs"]:
            raise ValueError(
                f"`env` with {venv.num_envs} environments is not allowed: the checkpoint has {saved.manifest['num_envs']}"
            )
        with clear_errors(path, but=(ValueError,)):
            # With a replay buffer given, none is made
            model = cls.load(
                io.BytesIO(saved.model),
                env=venv,
                device=device,
                custom_objects=checkpoint.own_objects_of(saved),
                force_reset=False,
                replay_buffer=saved.replay_buffer,
            )
        model._attach_replay_buffer()
        checkpoint.restore_state(model, saved.state, env_state, new_episode)
        return model

    # --- SB3's methods

    def save(self, path: PathOrFile, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file.

        :param path: path to the file where the rl agent should be saved; an existing one is replaced only when all is written
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        self._saved_by = type(self).__name__  # which SB3's format does not say
        with atomic_sb3_file(path, "zip") as file, _errors_of_the_file():
            super().save(file, exclude, include)

    @classmethod
    def load(
        cls: type[SelfSaving],
        path: PathOrFile,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSaving:
        """
        Load the model from a zip-file. It runs pickled code: load only files that you trust
        (:func:`~sb3_bn_ddpg.load_policy` reads a format without).

        As in SB3, another class's model of the same networks can be loaded. It acts as it did, but goes on learning by this
        class's gradient step, of which a warning tells.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on (can be None if you only need prediction)
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading
        :param print_system_info: Whether to print system info from the saved model and the current system
        :param force_reset: Force call to ``reset()`` before training
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises FileError: if the file is truncated, was altered, or is no model
        :raises ValueError: if the environment's spaces are others, or an argument is out of its range
        """
        get_device(device)  # an unknown one is no fault of the file
        path = existing_file(path, "zip")
        saved_by = check_model_file(path)
        is_another = saved_by not in (None, cls.__name__)
        what = "is whole but cannot be loaded"
        if is_another:
            what = f"was saved by {saved_by}, for `{saved_by}.load`; as a {cls.__name__} it cannot be loaded"
        # A value that is not allowed can be the caller's, if there is one
        has_values = not is_another and (kwargs or env is not None or custom_objects is not None)
        with clear_errors(path, but=(ValueError, TypeError) if has_values else (), what=what):
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if is_another:
            warnings.warn(
                f"{path} was saved by {saved_by}: loaded as a {cls.__name__} it acts as it did, but learns as "
                f"{cls.__name__} does; `{saved_by}.load` has both",
                stacklevel=2,
            )
        if kwargs.get("seed") is not None:
            model.set_random_seed(model.seed)  # of the noise, too, which otherwise goes on with its saved generator
        return model

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        Load parameters from a given zip-file or a nested dictionary containing parameters for different modules (see
        ``get_parameters``): all of them, or after an error none.

        :param load_path_or_dict: Location of the saved data (path or file-like), or a nested dictionary
        :param exact_match: If True, the given parameters should include parameters for each module
        :param device: Device on which the code should run.
        :raises FileError: if the file is truncated, was altered, or is no model
        :raises ValueError: if names do not match
        """
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = existing_file(load_path_or_dict, "zip")
            check_model_file(load_path_or_dict)
            _, load_path_or_dict, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        before: Any = copy.deepcopy(super().get_parameters())
        try:
            self._take_parameters(dict(load_path_or_dict), exact_match, device)
        except BaseException:
            super().set_parameters(before)
            raise

    def _take_parameters(self, parameters: dict[str, Any], exact_match: bool, device: th.device | str) -> None:
        """
        :param parameters: Parameters of modules by name
        :param exact_match: Whether there must be some of each module
        :param device: Device on which the code should run
        """
        super().set_parameters(parameters, exact_match, device)

    def save_replay_buffer(self, path: PathOrFile) -> None:
        """
        Save the replay buffer as a pickle file.

        :param path: Path to the file; an existing one is replaced only when all is written
        """
        assert self.replay_buffer is not None
        with atomic_sb3_file(path, "pkl") as file:
            hashing = HashingFile(file)
            pickle.dump(self.replay_buffer, hashing, protocol=pickle.HIGHEST_PROTOCOL)
            # Behind a pickle's end nobody reads on, so SB3 can load the file too
            file.write(SHA256_LINE % hashing.digest.hexdigest().encode())

    def load_replay_buffer(self, path: PathOrFile, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file. It runs pickled code: load only files that you trust.

        :param path: Path to the pickled replay buffer.
        :param truncate_last_traj: Whether the last trajectory is taken as finished, as by a time limit: the environment's
            episode is another. If not, returns of several steps, and goals, reach from one to the other.
        :raises FileError: if the file is truncated or holds no replay buffer; the present one stays
        :raises ValueError: if it is one of other spaces, of another number of environments, of single steps where ``n_steps``
            is not 1, or without hindsight where the model has it; the present one stays
        """
        path = existing_file(path, "pkl")
        if isinstance(path, pathlib.Path):
            check_pickle(path)
        before = getattr(self, "replay_buffer", None)  # deleted, to free its memory
        try:
            with clear_errors(path):
                super().load_replay_buffer(path, truncate_last_traj)
            self._check_loaded_buffer()
            if truncate_last_traj:
                cut_off_episodes(self.replay_buffer)
        except BaseException:
            self.replay_buffer = before
            raise

    def _check_loaded_buffer(self) -> None:
        """
        Give a replay buffer from a file what this model has.

        :raises ValueError: if it does not suit the model
        """
        buffer = self.replay_buffer
        assert isinstance(buffer, ReplayBuffer)
        if (buffer.observation_space, buffer.action_space) != (self.observation_space, self.action_space):
            raise ValueError(
                f"the replay buffer with the spaces {buffer.observation_space} and {buffer.action_space} is not allowed: they "
                f"must be the model's, {self.observation_space} and {self.action_space}"
            )
        if buffer.n_envs != self.n_envs:
            raise ValueError(
                f"a replay buffer of {buffer.n_envs} environments is not allowed: it must be of as many as the model's, "
                f"{self.n_envs}"
            )
        has_hindsight = isinstance(self.replay_buffer_class, type) and issubclass(self.replay_buffer_class, HerReplayBuffer)
        if has_hindsight and not isinstance(buffer, HerReplayBuffer):
            raise ValueError(
                f"a {type(buffer).__name__} is not allowed for a model with `replay_buffer_class=HerReplayBuffer`: it has no "
                "hindsight"
            )
        self._attach_replay_buffer()
        self._check_steps_of(buffer)

    def _check_steps_of(self, buffer: ReplayBuffer) -> None:
        """
        :param buffer: A replay buffer
        :raises ValueError: if it has no returns of several steps, which the model is to learn from
        """
        if self.n_steps > 1 and self.replay_buffer_class is None and not isinstance(buffer, NStepReplayBuffer):
            raise ValueError(
                f"`n_steps={self.n_steps}` is not allowed with a replay buffer of single steps ({type(buffer).__name__}): it "
                "must be 1"
            )

    # --- Policies for other programs

    def export_policy(self, path: str | pathlib.Path) -> None:
        """
        Write the deterministic policy to one safetensors file with a description in JSON, which
        :func:`~sb3_bn_ddpg.load_policy` reads without running any code. It takes the environment's own observations:
        statistics of ``VecNormalize`` are in it.

        :param path: The file to write or replace, exactly as given
        :raises ValueError: if the policy has custom parts, which such a file cannot hold
        :raises ImportError: if the package safetensors is missing (the extra ``export``)
        """
        export.export_policy(self.policy, self._observation_normalizer(), path)

    def export_onnx(self, path: str | pathlib.Path) -> None:
        """
        Write the deterministic policy as an ONNX graph: ``observation`` of shape ``(n, ...)`` (or the keys of a dictionary)
        in, ``action`` of shape ``(n, ...)`` out. Running statistics, those of ``VecNormalize`` and the scaling of actions are
        in it. The policy may have features extractors, layers and activation functions of your own.

        :param path: The file to write or replace, exactly as given
        :raises ValueError: if PyTorch's exporter cannot tell what they calculate
        :raises ImportError: if the packages onnx and onnxscript are missing (the extra ``export``)
        """
        export.export_onnx(self.policy, self._observation_normalizer(), path)

    def _observation_normalizer(self) -> VecNormalize | None:
        """
        :return: What normalises the observations that the policy sees, if anything does
        """
        if self._vec_normalize_env is None and self._learned_normalized:
            warnings.warn(
                f"{OBSERVATIONS_LOST}: the exported policy takes normalised observations. For one that takes the "
                f"environment's own, {HOW_TO_NORMALIZE}",
                stacklevel=3,
            )
        normalizers = [layer for layer in layers_of(self.env) if isinstance(layer, VecNormalize) and layer.norm_obs]
        if normalizers not in ([], [self._vec_normalize_env]):
            raise ValueError(
                "`env` with one VecNormalize in another is not allowed for an export, which holds the statistics of one: "
                "use one for observations and rewards"
            )
        return self._vec_normalize_env

    def _attach_replay_buffer(self) -> None:
        """Tell a replay buffer from a file, or from before, what this model has: its environment, its device."""
        buffer = getattr(self, "replay_buffer", None)  # deleted, to free its memory
        if isinstance(buffer, ReplayBuffer):
            buffer.device = self.device
        if isinstance(buffer, HerReplayBuffer) and self.env is not None:
            buffer.env = self.env

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Give the model another environment, its replay buffer too if it calculates rewards by it (HER).

        :param env: The environment for learning a policy
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior
        """
        super().set_env(env, force_reset)
        self._attach_replay_buffer()

    def __getstate__(self) -> dict[str, Any]:
        # The callbacks of the last call of learn hold its local and global variables, which cannot be copied, nor can compiled
        # code and graphs: the fast update is made anew where it is missing. No rollout of a copy is running
        return self.__dict__ | {
            "_callback": None,
            "_fast_update": None,
            "_is_collecting": False,
            "_is_training_due": False,
        }


@contextmanager
def _errors_of_the_file() -> Iterator[None]:
    """PyTorch's writer answers an error of the file it writes to, or a Ctrl-C, with one of its own: raise the first one."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, (KeyboardInterrupt, OSError)):
                raise cause from None
            cause = cause.__context__
        raise
