"""
Checkpoints: one file with all that a training needs to go on to the same numbers in another process.

The file is a line with the format's version and a SHA-256 of the rest, then a zip archive: ``manifest.json`` (what it is, for
people), ``model.zip`` (SB3's format), ``replay_buffer.pkl`` and ``state.pkl``. Reading one runs the pickled code in it.
"""

import copy
import io
import json
import pathlib
import pickle
import platform
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_bn_ddpg import environment_state
from sb3_bn_ddpg.atomic_files import FileError, HashingFile, atomic_write, clear_errors, sha256
from sb3_bn_ddpg.callback_state import callback_states
from sb3_bn_ddpg.noise import is_self_contained

if TYPE_CHECKING:
    from sb3_bn_ddpg.bn_ddpg import BNDDPG

FIRST_LINE = b"bn-ddpg checkpoint %d sha256 %s\n"
FORMAT_VERSION = 2
MEMBERS = ("manifest.json", "model.zip", "replay_buffer.pkl", "state.pkl")
PACKAGES = ("gymnasium", "numpy", "sb3-bn-ddpg", "stable-baselines3", "torch")
"""Those whose versions can change a resumed run's numbers."""


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
    :raises FileError: if it is truncated or was altered
    """
    with clear_errors(path, what="is truncated or was altered"), zipfile.ZipFile(path) as archive:
        manifest: dict[str, Any] = json.loads(archive.read("manifest.json"))
        return manifest


def write_checkpoint(model: "BNDDPG", path: str | pathlib.Path) -> None:
    """
    :param model: The model, between two steps
    :param path: The file to write or replace
    :raises ValueError: if a parameter or a statistic of the networks is not finite: the last good checkpoint stays
    """
    check_finite_parameters(model)
    assert model.env is not None
    env_state = environment_state.capture(model.env)
    state = dict(
        generators=_generators(model),
        env=env_state,
        shares_action_space=model.action_space is _action_space(model.env),
        # A noise of the user's own may look at the environment, which the model's file would have a copy of
        own_noise=None
        if is_self_contained(model.action_noise)
        else environment_state.pack_with_references(model.action_noise, model.env),
        # Those of a resumed training wait for its next call of learn
        callbacks=model._pending_callback_states or callback_states(model._callback),
    )
    manifest = dict(
        num_timesteps=int(model.num_timesteps),
        total_timesteps=int(model._total_timesteps),  # NumPy's are no JSON
        environment=[None if spec is None else spec.id for spec in env_state.specs],
        resumes="in the middle of an episode" if env_state.not_offered is None else "with a new episode",
        environment_state_not_offered=env_state.not_offered,
        versions=_versions(),
    )
    model_zip = io.BytesIO()
    model.save(model_zip, exclude=[] if state["own_noise"] is None else ["action_noise"])
    with atomic_write(path) as file:
        file.write(FIRST_LINE % (FORMAT_VERSION, b"0" * 64))
        hashing: Any = HashingFile(file)
        with zipfile.ZipFile(hashing, "w") as archive:
            archive.writestr("manifest.json", json.dumps(manifest, indent=1))
            # Not getbuffer(), which is no cheaper: if this fails, on a full disk, Python 3.12.1 crashes when it collects that
            archive.writestr("model.zip", model_zip.getvalue())
            with archive.open("replay_buffer.pkl", "w", force_zip64=True) as member:
                cloudpickle.dump(_trimmed(model.replay_buffer), member, protocol=pickle.HIGHEST_PROTOCOL)
            with archive.open("state.pkl", "w", force_zip64=True) as member:
                cloudpickle.dump(state, member, protocol=pickle.HIGHEST_PROTOCOL)
        file.seek(0)
        file.write(FIRST_LINE % (FORMAT_VERSION, hashing.digest.hexdigest().encode()))


def read_checkpoint(path: str | pathlib.Path) -> Checkpoint:
    """
    :param path: The file
    :return: What it holds
    :raises FileError: if it is truncated, was altered, or is no checkpoint of this version
    """
    with open(path, "rb") as file:
        match = re.fullmatch(rb"bn-ddpg checkpoint (\d{1,9}) sha256 ([0-9a-f]{64})\n", file.readline(200))
        if match is None:
            raise FileError(path, "is no checkpoint of bn-ddpg, or its first line was altered")
        if int(match[1]) != FORMAT_VERSION:
            raise FileError(path, f"is a checkpoint of version {int(match[1])}: only version {FORMAT_VERSION} is known")
        if sha256(file) != match[2].decode():
            raise FileError(path, "is truncated or was altered: its content does not match its SHA-256")
        with clear_errors(path), zipfile.ZipFile(file) as archive:
            if tuple(archive.namelist()) != MEMBERS:
                raise FileError(path, f"holds {archive.namelist()}, not {list(MEMBERS)}")
            manifest = json.loads(archive.read("manifest.json"))
            with archive.open("replay_buffer.pkl") as member:
                replay_buffer = _expanded(pickle.load(member))
            state = pickle.loads(archive.read("state.pkl"))
            return Checkpoint(manifest, archive.read("model.zip"), replay_buffer, state)


def restore_state(model: "BNDDPG", state: dict[str, Any]) -> None:
    """
    Give a loaded model what SB3's file does not hold.

    :param model: The model, with its environment and replay buffer
    :param state: The state of the checkpoint
    """
    assert model.env is not None
    assert model.replay_buffer is not None
    environment_state.restore(model.env, state["env"])
    if state.get("shares_action_space"):  # and its generator, from which the environment may draw as well
        model.action_space = _action_space(model.env)
    if state["own_noise"] is not None:
        model.action_noise = environment_state.unpack_with_references(state["own_noise"], model.env)
    model._pending_callback_states = state["callbacks"]
    if state["env"].not_offered is not None:
        model._last_obs = None  # learn resets the environment
        cut_off_episodes(model.replay_buffer)
    _restore_generators(model, state["generators"])


def changed_versions(manifest: dict[str, Any]) -> list[str]:
    """
    :param manifest: A checkpoint's
    :return: Which versions differ from this process's, in words
    """
    now, then = _versions(), manifest["versions"]
    return [f"{name} {then.get(name)} then, {now[name]} now" for name in now if now[name] != then.get(name)]


def check_finite_parameters(model: "BNDDPG") -> None:
    """
    :param model: A model
    :raises ValueError: if a parameter or a statistic of its networks is not finite
    """
    for name, tensor in model.policy.state_dict().items():
        if not th.isfinite(tensor).all():
            raise ValueError(
                f"`{name}` of the policy holds numbers that are not finite at step {model.num_timesteps}: nothing was saved. "
                "Go back to the last checkpoint, with a lower critic_learning_rate or smaller rewards"
            )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


# --- Random generators


def _action_space(venv: VecEnv) -> Any:
    """
    :param venv: A vectorised environment
    :return: The action space of its first environment, None if that is in another process
    """
    envs = getattr(venv.unwrapped, "envs", None)
    return None if envs is None else envs[0].action_space


def _generators(model: "BNDDPG") -> dict[str, Any]:
    """
    :param model: A model
    :return: The states of all random generators that its training draws from, outside the environment and the noise
    """
    return dict(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=th.get_rng_state(),
        cuda=th.cuda.get_rng_state_all() if model.device.type == "cuda" else None,
        action_space=_space_generators(model.action_space),
        observation_space=_space_generators(model.observation_space),
    )


def _restore_generators(model: "BNDDPG", states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if states["cuda"] is not None and th.cuda.is_available():
        th.cuda.set_rng_state_all(states["cuda"][: th.cuda.device_count()])
    _set_space_generators(model.action_space, states["action_space"])
    _set_space_generators(model.observation_space, states["observation_space"])


def _space_generators(space: spaces.Space[Any]) -> list[Any]:
    return [None if part._np_random is None else part._np_random.bit_generator.state for part in _parts(space)]


def _set_space_generators(space: spaces.Space[Any], states: list[Any]) -> None:
    for part, state in zip(_parts(space), states, strict=True):
        if state is None:
            part._np_random = None  # type: ignore[assignment]  # as a new space has it
        else:
            part.np_random.bit_generator.state = state


def _parts(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    """A space and the spaces in it, each with a generator of its own."""
    inner = list(space.spaces.values()) if isinstance(space, spaces.Dict) else []
    return [space, *(part for child in inner for part in _parts(child))]


# --- The replay buffer


@dataclass
class _Trimmed:
    """The filled rows of an array, and how many it has with the empty ones."""

    rows: Any
    length: int


def _trimmed(buffer: Any) -> Any:
    """
    :param buffer: A replay buffer
    :return: A copy of it whose arrays end where the zeros begin
    """
    if buffer.full:
        return buffer
    small = copy.copy(buffer)

    def trim(value: Any) -> Any:
        if type(value) is dict:
            return _changed(value, trim)
        if not isinstance(value, np.ndarray) or value.ndim == 0 or len(value) != buffer.buffer_size:
            return value
        # Objects have no zeros; memory-optimised buffers have one row more than their position says
        if value.dtype.hasobject or value[buffer.pos + 1 :].any():
            return value
        return _Trimmed(value[: buffer.pos + 1], len(value))

    vars(small).update({name: trim(value) for name, value in vars(small).items()})
    return small


def _expanded(buffer: Any) -> Any:
    """
    :param buffer: What :func:`_trimmed` returned
    :return: The replay buffer
    """

    def expand(value: Any) -> Any:
        if type(value) is dict:
            return _changed(value, expand)
        if not isinstance(value, _Trimmed):
            return value
        array = np.zeros((value.length, *value.rows.shape[1:]), dtype=value.rows.dtype)
        array[: len(value.rows)] = value.rows
        return array

    vars(buffer).update({name: expand(value) for name, value in vars(buffer).items()})
    return buffer


def _changed(entries: dict[Any, Any], change: Callable[[Any], Any]) -> dict[Any, Any]:
    """
    :param entries: A dictionary
    :param change: What becomes of an entry
    :return: The changed dictionary; the same one if no entry becomes another, for it may have a meaning to its owner
    """
    changed = {key: change(entry) for key, entry in entries.items()}
    return entries if all(changed[key] is entry for key, entry in entries.items()) else changed


def cut_off_episodes(buffer: Any) -> None:
    """
    Let the unfinished episodes of a replay buffer end where they are, as a time limit ends them.

    :param buffer: The replay buffer
    """
    if buffer.size() == 0:
        return
    if hasattr(buffer, "truncate_last_trajectory"):  # HER
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does
            buffer.truncate_last_trajectory()
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    unfinished = buffer.dones[last] == 0
    buffer.dones[last] = 1
    if buffer.handle_timeout_termination:
        buffer.timeouts[last, unfinished] = 1
