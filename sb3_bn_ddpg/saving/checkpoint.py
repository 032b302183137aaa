"""
Checkpoints: one file with all that a training needs to go on to the same numbers in another process.

The file is a line with the format's version and a SHA-256 of the rest, then a zip archive: ``manifest.json`` (what it is, for
people), ``model.zip`` (SB3's format), ``replay_buffer.pkl`` and ``state.pkl``. Reading one runs the pickled code in it.
"""

import inspect
import io
import json
import pathlib
import pickle
import platform
import random
import re
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_bn_ddpg.common.atomic_files import FileError, HashingFile, atomic_write, clear_errors, sha256
from sb3_bn_ddpg.common.noise import is_self_contained
from sb3_bn_ddpg.saving import environment_levels, environment_state
from sb3_bn_ddpg.saving.callback_state import callback_states
from sb3_bn_ddpg.saving.environment_state import VecEnvState
from sb3_bn_ddpg.saving.life_cycle import StepLifeCycle
from sb3_bn_ddpg.saving.pickling import OwnsOutsideError, Pickler, RefusedError, pack, unpack
from sb3_bn_ddpg.saving.stored_buffer import cut_off_episodes, read_buffer, readable_buffer, write_buffer
from sb3_bn_ddpg.version import __version__

FIRST_LINE = b"bn-ddpg checkpoint %d sha256 %s\n"
FORMAT_VERSION = 5
MEMBERS = ("manifest.json", "model.zip", "replay_buffer.pkl", "state.pkl")
VERSIONS = {
    "python": platform.python_version(),
    "gymnasium": gym.__version__,
    "numpy": np.__version__,
    "sb3-bn-ddpg": __version__,
    "stable-baselines3": stable_baselines3.__version__,
    "torch": str(th.__version__),
}
"""Of what can change a resumed run's numbers."""


@dataclass
class Checkpoint:
    """
    What a checkpoint holds.

    :param manifest: What it is, in JSON's types
    :param model: The model in SB3's format
    :param replay_buffer: The replay buffer
    :param state: The rest: random generators, the environment's state, callbacks' counters
    """

    manifest: dict[str, Any]
    model: bytes
    replay_buffer: ReplayBuffer
    state: dict[str, Any]


def is_checkpoint(path: str | pathlib.Path) -> bool:
    """
    :param path: A file
    :return: Whether it begins as a checkpoint does
    """
    with open(path, "rb") as file:
        return file.read(len(b"bn-ddpg checkpoint")) == b"bn-ddpg checkpoint"


def read_manifest(path: str | pathlib.Path) -> dict[str, Any]:
    """
    :param path: A checkpoint
    :return: What it is, without a look at the rest
    :raises FileError: if it is truncated, was altered, or is no checkpoint of this version
    """
    with open(path, "rb") as file:
        _read_first_line(file, path)
        with clear_errors(path, what="is truncated or was altered"), zipfile.ZipFile(file) as archive:
            manifest: dict[str, Any] = json.loads(archive.read("manifest.json"))
            return manifest


def write_checkpoint(model: StepLifeCycle, path: str | pathlib.Path) -> None:
    """
    :param model: The model, between two steps
    :param path: The file to write or replace
    :raises ValueError: if a parameter or a statistic of the networks is not finite: the last good checkpoint stays
    """
    check_finite_parameters(model)
    assert model.env is not None
    env_state = environment_state.capture(model.env)
    if env_state.not_offered is not None and model._steps_environment and not model._is_new_episode_told:
        warnings.warn(
            f"Resuming from {path} will begin a new episode: {env_state.not_offered}. All else goes on where it was",
            stacklevel=3,
        )
        model._is_new_episode_told = True
    # A noise of the user's own may look at the environment, which the model's file would have a copy of
    is_own_noise = not is_self_contained(model.action_noise)
    parts: dict[str, Any] = dict(
        env=env_state,
        # Those of a resumed training wait for its next call of learn
        callbacks=model._pending_callback_states or callback_states(model._callback),
    )
    state: dict[str, Any] = {name: _packed(name, part) for name, part in parts.items()}
    # What of the model is made of the user's own classes is also there in a form that finds them again
    own_objects, unreadable = _look_through(model, without={"action_noise"} if is_own_noise else set())
    state |= dict(
        generators=_generators(model),
        shares_action_space=model.action_space is _action_space(model.env),
        has_own_noise=is_own_noise,
        own_noise=_packed("action_noise", model.action_noise, model) if is_own_noise else None,
        own_objects=own_objects,
        is_new_episode_told=model._is_new_episode_told,
    )
    manifest = dict(
        algorithm=type(model).__name__,
        module=type(model).__module__,
        num_timesteps=int(model.num_timesteps),
        steps_environment=model._steps_environment,
        total_timesteps=int(model._total_timesteps),  # NumPy's are no JSON
        num_envs=env_state.num_envs,
        environment=[None] * env_state.num_envs
        if env_state.environments is None
        else [environment.spec_id for environment in env_state.environments],
        resumes="in the middle of an episode" if env_state.not_offered is None else "with a new episode",
        environment_state_not_offered=env_state.not_offered,
        versions=VERSIONS,
    )
    model_zip = io.BytesIO()
    model.save(model_zip, exclude=[*unreadable, *(["action_noise"] if is_own_noise else [])])
    buffer = readable_buffer(model.replay_buffer)
    with atomic_write(path) as file:
        file.write(FIRST_LINE % (FORMAT_VERSION, b"0" * 64))
        hashing: Any = HashingFile(file)
        with zipfile.ZipFile(hashing, "w") as archive:
            archive.writestr("manifest.json", json.dumps(manifest, indent=1))
            # Not getbuffer(), which is no cheaper: if this fails, on a full disk, Python 3.12.1 crashes when it collects that
            archive.writestr("model.zip", model_zip.getvalue())
            with archive.open("replay_buffer.pkl", "w", force_zip64=True) as member:
                write_buffer(buffer, member)
            with archive.open("state.pkl", "w", force_zip64=True) as member:
                pickle.dump(state, member, protocol=pickle.HIGHEST_PROTOCOL)
        file.seek(0)
        file.write(FIRST_LINE % (FORMAT_VERSION, hashing.digest.hexdigest().encode()))


def _read_first_line(file: BinaryIO, path: str | pathlib.Path) -> str:
    """
    :param file: An open file, at its beginning; it is read to the end of its first line
    :param path: Its path, for the message
    :return: The SHA-256 of the rest
    :raises FileError: if it is no checkpoint of this version
    """
    match = re.fullmatch(rb"bn-ddpg checkpoint (\d{1,9}) sha256 ([0-9a-f]{64})\n", file.readline(200))
    if match is None:
        raise FileError(path, "is no checkpoint of bn-ddpg, or its first line was altered")
    if int(match[1]) != FORMAT_VERSION:
        raise FileError(path, f"is a checkpoint of version {int(match[1])}: only version {FORMAT_VERSION} is known")
    return match[2].decode()


def read_checkpoint(path: str | pathlib.Path, algorithm: type[StepLifeCycle]) -> Checkpoint:
    """
    :param path: The file
    :param algorithm: The class that shall go on with it
    :return: What it holds
    :raises FileError: if it is truncated, was altered, or is no checkpoint of this version, or of another class
    """
    with open(path, "rb") as file:
        digest = _read_first_line(file, path)
        if sha256(file) != digest:
            raise FileError(path, "is truncated or was altered: its content does not match its SHA-256")
        with clear_errors(path), zipfile.ZipFile(file) as archive:
            if tuple(archive.namelist()) != MEMBERS:
                raise FileError(path, f"holds {archive.namelist()}, not {list(MEMBERS)}")
            manifest = json.loads(archive.read("manifest.json"))
            # By name alone: a script's class is in __main__ or in the script's module. Before what is pickled is read
            if manifest["algorithm"] != algorithm.__name__:
                raise FileError(
                    path,
                    f"is a checkpoint of {manifest['algorithm']} (in {manifest['module']}), with which "
                    f"{algorithm.__name__} (in {algorithm.__module__}) cannot go on: use `{manifest['algorithm']}.resume`",
                )
            with archive.open("replay_buffer.pkl") as member:
                replay_buffer = read_buffer(member)
            state = pickle.loads(archive.read("state.pkl"))
            return Checkpoint(manifest, archive.read("model.zip"), replay_buffer, state)


def environment_of(saved: Checkpoint) -> VecEnvState | None:
    """
    :param saved: A checkpoint
    :return: The state of its environment, None if it cannot be read, of which a warning tells
    """
    env_state: VecEnvState | None = _unpacked("env", saved.state["env"])
    return env_state


def own_objects_of(saved: Checkpoint) -> dict[str, Any]:
    """
    :param saved: A checkpoint
    :return: Attributes of the model that are made of the user's own classes: those of the script that runs
    """
    objects = {name: _unpacked(name, packed) for name, packed in saved.state["own_objects"].items()}
    return {name: value for name, value in objects.items() if value is not None}


def restore_state(
    model: StepLifeCycle, state: dict[str, Any], env_state: VecEnvState | None, new_episode: bool = False
) -> None:
    """
    Give a loaded model what SB3's file does not hold.

    :param model: The model, with its environment and replay buffer
    :param state: The state of the checkpoint
    :param env_state: That of the environment, None if it cannot be read
    :param new_episode: Whether to begin a new episode in any case
    """
    assert model.env is not None
    assert model.replay_buffer is not None
    reason: str | None = "the state of the checkpoint's environment cannot be read"
    if env_state is not None:
        reason = environment_state.restore(model.env, env_state, new_episode)
        if reason is not None and env_state.not_offered is None and model._steps_environment and not new_episode:
            warnings.warn(f"The resumed training begins a new episode: {reason}", stacklevel=3)
    if state["shares_action_space"]:  # and its generator, from which the environment may draw as well
        model.action_space = _action_space(model.env) or model.action_space
    if state["has_own_noise"]:
        model.action_noise = _unpacked("action_noise", state["own_noise"], model)
    model._pending_callback_states = _unpacked("callbacks", state["callbacks"])
    model._is_new_episode_told = state["is_new_episode_told"]
    if reason is not None:
        model._last_obs = None  # learn resets the environment
        cut_off_episodes(model.replay_buffer)
    _restore_generators(model, state["generators"])


def changed_versions(manifest: dict[str, Any]) -> list[str]:
    """
    :param manifest: A checkpoint's
    :return: Which versions differ from this process's, in words
    """
    now, then = VERSIONS, manifest["versions"]
    return [f"{name} {then.get(name)} then, {now[name]} now" for name in now if now[name] != then.get(name)]


def check_finite_parameters(model: StepLifeCycle) -> None:
    """
    :param model: A model
    :raises ValueError: if a parameter or a statistic of its networks is not finite
    """
    modules = [(name, getattr(model, name, None)) for name in model._get_torch_save_params()[0]]
    for owner, module in modules:
        for name, tensor in module.state_dict().items() if isinstance(module, th.nn.Module) else ():
            if not th.isfinite(tensor).all():
                raise ValueError(
                    f"`{name}` of the {owner} holds numbers that are not finite at step {model.num_timesteps}: nothing was "
                    "saved. Go back to the last checkpoint, with a lower critic_learning_rate or smaller rewards"
                )


# --- Parts that may be left out


def _packed(name: str, part: Any, model: StepLifeCycle | None = None) -> bytes | None:
    """
    :param name: Its name, for the message
    :param part: A part of a checkpoint
    :param model: A model that it may refer to, if any
    :return: It, packed; None if it could not be read back, of which a warning tells
    """
    try:
        return pack(part) if model is None else environment_state.pack_with_references(part, model)
    except Exception as error:
        warnings.warn(f"Checkpoints leave out `{name}`, which cannot be read back: {_in_words(error)}", stacklevel=4)
        return None


def _unpacked(name: str, packed: bytes | None, model: StepLifeCycle | None = None) -> Any:
    """What :func:`_packed` got, None if it was left out or cannot be read, of which a warning tells."""
    reason = "it was left out when the checkpoint was written"
    if packed is not None:
        try:
            return unpack(packed) if model is None else environment_state.unpack_with_references(packed, model)
        except Exception as error:
            reason = _in_words(error)
    warnings.warn(f"The checkpoint's `{name}` is missing in the resumed training: {reason}", stacklevel=4)
    return None


def _look_through(model: StepLifeCycle, without: set[str]) -> tuple[dict[str, bytes], list[str]]:
    """
    Look at what SB3 pickles of a model, before it does.

    :param model: A model
    :param without: Attributes that it does not pickle
    :return: Attributes made of the user's own classes, packed, and names of those that cannot be read back, of which a
        warning tells
    :raises ValueError: if an argument of the model cannot be read back
    """
    torch_names = {name.split(".")[0] for names in model._get_torch_save_params() for name in names}
    required = {*inspect.signature(type(model)).parameters, "policy_class"}
    own_objects, unreadable = {}, {}
    for name in vars(model).keys() - {*model._excluded_save_params(), *torch_names, *without}:
        stream = io.BytesIO()
        pickler = Pickler(stream)
        try:
            pickler.dump(vars(model)[name])
            unpack(stream.getvalue())
        except Exception as error:
            # Models and replay buffers get in as SB3 takes them: they are no part of the environment, but of this model
            is_left_to_sb3 = isinstance(error, RefusedError) and not isinstance(error, OwnsOutsideError)
            if not (is_left_to_sb3 or (name in required and isinstance(error, RefusedError))):
                unreadable[name] = _in_words(error)
            continue
        if pickler.has_met_user_code:
            own_objects[name] = stream.getvalue()
    for name in unreadable.keys() & required:
        raise ValueError(f"`{name}` of the model cannot be read back: no checkpoint was written. {unreadable[name]}")
    if unreadable:
        warnings.warn(f"Checkpoints leave out of the model what cannot be read back: {unreadable}", stacklevel=4)
    return own_objects, [*unreadable]


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# --- Random generators


def _action_space(venv: VecEnv) -> Any:
    """
    :param venv: A vectorised environment
    :return: The action space of its first environment, None if that is in another process
    """
    envs = getattr(environment_state.without_wrappers(venv), "envs", None)
    return getattr(envs[0], "action_space", None) if isinstance(envs, list) else None


def _generators(model: StepLifeCycle) -> dict[str, Any]:
    """
    :param model: A model
    :return: The states of all random generators that its training draws from, outside the environment and the noise
    """
    return dict(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=th.get_rng_state(),
        cuda=th.cuda.get_rng_state_all() if model.device.type == "cuda" else None,
        device={model.device.type: _generator_of_device(model.device)},
        action_space=environment_levels.space_generators(model.action_space),
        observation_space=environment_levels.space_generators(model.observation_space),
    )


def _generator_of_device(device: th.device) -> th.Tensor | None:
    """
    :param device: A model's device
    :return: The state of its generator, if it is none of those above
    """
    if device.type in ("cpu", "cuda"):
        return None
    if (of_device := getattr(th, device.type, None)) is None:
        warnings.warn(f"Checkpoints leave out the generator of {device}: a resumed training takes other numbers", stacklevel=4)
        return None
    state: th.Tensor = of_device.get_rng_state()
    return state


def _restore_generators(model: StepLifeCycle, states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if states["cuda"] is not None and th.cuda.is_available():
        th.cuda.set_rng_state_all(states["cuda"][: th.cuda.device_count()])
    if (of_device := states.get("device", {}).get(model.device.type)) is not None:  # Apple's or Intel's
        getattr(th, model.device.type).set_rng_state(of_device)
    environment_levels.set_space_generators(model.action_space, states["action_space"])
    environment_levels.set_space_generators(model.observation_space, states["observation_space"])
