"""
Of which environments and wrappers it is known what all of their state is: the families in the tables below, and those that say
it themselves by two methods. Whatever else there is may keep a part of its state where nobody looks, as in a C library.
"""

import hashlib
from collections import deque
from typing import Any, NamedTuple

import numpy as np

GETTER, SETTER = "get_checkpoint_state", "set_checkpoint_state"
"""The two methods by which an environment or wrapper says its state"""


class StateNotOfferedError(Exception):
    """The reason why an environment's state cannot be taken out of it."""


class Attributes(NamedTuple):
    """
    The attributes that hold all of a class's state, but for random generators.

    :param episode: Those that a reset sets anew
    :param lasting: Those that it does not
    :param notes: Those that are of the episode too, and that not all versions of the package have
    """

    episode: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


NO_STATE = Attributes()
_CLASSIC, _COMMON, _TRANSFORMS = "gymnasium.envs.classic_control", "gymnasium.wrappers.common", "gymnasium.wrappers.transform"
_STATEFUL, _VEC_ENV = "gymnasium.wrappers.stateful", "stable_baselines3.common.vec_env"
MUJOCO = "gymnasium.envs.mujoco"
MUJOCO_BASE = f"{MUJOCO}.mujoco_env.MujocoEnv"
SHIMMY = "shimmy.dm_control_compatibility.DmControlCompatibilityV0"

ENVIRONMENTS = {
    f"{_CLASSIC}.acrobot.AcrobotEnv": Attributes(("state",)),
    f"{_CLASSIC}.cartpole.CartPoleEnv": Attributes(("state", "steps_beyond_terminated")),
    f"{_CLASSIC}.continuous_mountain_car.Continuous_MountainCarEnv": Attributes(("state",)),
    f"{_CLASSIC}.mountain_car.MountainCarEnv": Attributes(("state",)),
    f"{_CLASSIC}.pendulum.PendulumEnv": Attributes(("state", "last_u")),
    "stable_baselines3.common.envs.bit_flipping_env.BitFlippingEnv": Attributes(("state", "current_step")),
}
WRAPPERS = {
    f"{_COMMON}.Autoreset": Attributes(("autoreset",)),
    f"{_COMMON}.OrderEnforcing": Attributes(("_has_reset",)),
    f"{_COMMON}.PassiveEnvChecker": Attributes(
        notes=("checked_reset", "checked_step", "checked_render", "checked_data_reuse", "close_called", "_previous_data")
    ),
    f"{_COMMON}.RecordEpisodeStatistics": Attributes(
        ("episode_start_time", "episode_returns", "episode_lengths"),
        ("episode_count", "time_queue", "return_queue", "length_queue"),
    ),
    f"{_COMMON}.TimeLimit": Attributes(("_elapsed_steps",)),
    f"{_STATEFUL}_action.RepeatAction": NO_STATE,
    f"{_STATEFUL}_action.StickyAction": Attributes(("last_action", "is_sticky_actions", "num_repeats", "repeats_taken")),
    f"{_STATEFUL}_observation.DelayObservation": Attributes(("observation_queue",)),
    f"{_STATEFUL}_observation.FrameStackObservation": Attributes(("obs_queue", "padding_value"), notes=("stacked_obs",)),
    f"{_STATEFUL}_observation.MaxAndSkipObservation": Attributes(("_obs_buffer",)),
    f"{_STATEFUL}_observation.NormalizeObservation": Attributes((), ("obs_rms",)),
    f"{_STATEFUL}_observation.TimeAwareObservation": Attributes(("timesteps",)),
    f"{_STATEFUL}_reward.NormalizeReward": Attributes((), ("return_rms", "discounted_reward")),
    "stable_baselines3.common.monitor.Monitor": Attributes(
        ("rewards", "needs_reset", "current_reset_info"),
        ("t_start", "episode_returns", "episode_lengths", "episode_times", "total_steps"),
    ),
    "sb3_bn_ddpg.pixels.observation.PixelObservation": Attributes(("_frames",)),
    "sb3_bn_ddpg.pixels.dm_control.DmControlCamera": NO_STATE,
} | {
    # Not those of a function of the user's, which may remember something
    f"{_TRANSFORMS}_{kind}.{name}": NO_STATE
    for kind, names in {
        "action": ("ClipAction", "DiscretizeAction", "RescaleAction"),
        "observation": (
            "AddRenderObservation",
            "DiscretizeObservation",
            "DtypeObservation",
            "FilterObservation",
            "FlattenObservation",
            "GrayscaleObservation",
            "RescaleObservation",
            "ReshapeObservation",
            "ResizeObservation",
        ),
        "reward": ("ClipReward",),
    }.items()
    for name in names
}
VEC_WRAPPERS = {
    f"{_VEC_ENV}.vec_check_nan.VecCheckNan": NO_STATE,
    f"{_VEC_ENV}.vec_extract_dict_obs.VecExtractDictObs": NO_STATE,
    f"{_VEC_ENV}.vec_frame_stack.VecFrameStack": Attributes(("stacked_obs",)),
    f"{_VEC_ENV}.vec_monitor.VecMonitor": Attributes(("episode_returns", "episode_lengths"), ("t_start", "episode_count")),
    f"{_VEC_ENV}.vec_normalize.VecNormalize": Attributes(("returns", "old_obs", "old_reward"), ("obs_rms", "ret_rms")),
    f"{_VEC_ENV}.vec_transpose.VecTransposeImage": NO_STATE,
    f"{_VEC_ENV}.vec_video_recorder.VecVideoRecorder": Attributes((), ("step_id",)),  # it only watches
}
VEC_SETTINGS = {
    f"{_VEC_ENV}.vec_normalize.VecNormalize": (
        *("norm_obs", "norm_obs_keys", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "training"),
    )
}
"""Attributes of wrappers of vectorised environments that decide what a training sees"""

MUJOCO_STATE = ("goal", "goal_pos", "cylinder_pos", "init_qpos")
"""Attributes that some of Gymnasium's MuJoCo environments set at each episode's start, beside their simulator's state"""
MODEL_STATE = frozenset(
    [
        *("body_pos", "body_quat", "dof_damping", "geom_pos", "geom_quat", "geom_rgba", "geom_size", "hfield_data"),
        *("light_pos", "mat_rgba", "site_pos", "site_rgba", "site_size", "wrap_prm"),
    ]
)
"""Arrays of a MuJoCo model that tasks of the DeepMind Control Suite set at each episode's start"""
TASK_STATE = ("_stand_height", "_body_weight")
"""Attributes of such a task that it sets then"""
OF_RENDERING = frozenset(
    ("render_mode", "isopen", "screen_dim", "screen_width", "screen_height", "render_kwargs", "width", "height")
)
"""Attributes that change nothing but pictures"""


def class_name(level: Any) -> str:
    """
    :param level: An environment or a wrapper
    :return: Its class's name in the tables
    """
    cls = type(level)
    # RL Zoo exchanges Gymnasium's time limit for a child with the same attributes in processes that import it
    cls = cls.__base__ or cls if cls.__module__ == "rl_zoo3.gym_patches" else cls
    return f"{cls.__module__}.{cls.__qualname__}"


def get_state(level: Any) -> dict[str, Any]:
    """
    Take the state out of one level of an environment, which stays as it is.

    :param level: An environment without its wrappers, a wrapper of it, or one of a vectorised environment
    :return: Its state, but for the random generators
    :raises StateNotOfferedError: if it is not known what all of it is
    """
    name, cls = class_name(level), type(level)
    if says_itself(level):
        return {"said": getattr(level, GETTER)()}
    replaced = [key for key, value in vars(level).items() if callable(value) and hasattr(cls, key)]
    if replaced:
        raise StateNotOfferedError(f"`{replaced[0]}` of the {cls.__name__} was replaced")
    if name.startswith(f"{MUJOCO}.") and _has_base(cls, MUJOCO_BASE):
        return {"data": level.data, "attributes": _present(level, MUJOCO_STATE)}
    if name == SHIMMY:
        return _dm_control_state(level)
    attributes = ENVIRONMENTS.get(name) or WRAPPERS.get(name) or VEC_WRAPPERS.get(name)
    if attributes is None:
        raise StateNotOfferedError(
            f"what the whole state of {cls.__name__} is, is not known (it has no methods `{GETTER}` and `{SETTER}`)"
        )
    return _values(
        level, [*attributes.lasting, *attributes.episode, *(name for name in attributes.notes if name in vars(level))]
    )


def get_lasting_state(level: Any) -> dict[str, Any]:
    """
    :param level: A level of an environment of which :func:`get_state` knows nothing
    :return: What its class has from a known one and a reset does not change, as running statistics
    """
    return _values(level, _lasting(level))


def set_state(level: Any, state: dict[str, Any], new_episode: bool) -> None:
    """
    Put a state into a level of an environment. All else of it stays, as do objects that it shares with others.

    :param level: The level, of the same class
    :param state: The state
    :param new_episode: Whether a reset follows, so that only what outlasts it counts
    """
    if "said" in state:
        getattr(level, SETTER)(state["said"])
    elif "data" in state:
        if not new_episode:
            _set_simulator(level, state)
    else:
        lasting = _lasting(level)
        for name, value in state.items():
            if name in lasting or not new_episode:
                _assign(level, name, value)


def parameters(level: Any) -> dict[str, str]:
    """
    :param level: A level of an environment
    :return: What it was made with, as far as it is known not to change in an episode: numbers and words, arrays as digests
    """
    name = class_name(level)
    attributes = ENVIRONMENTS.get(name) or WRAPPERS.get(name)
    if says_itself(level):
        return {}
    if name in VEC_SETTINGS:
        return {setting: _in_words(vars(level)[setting]) for setting in VEC_SETTINGS[name]}
    if attributes is not None:
        return _simple(level, set(sum(attributes, ())))
    if name == SHIMMY:
        env = level._env
        found = {"the model": _model_digest(env.physics.model.ptr, MODEL_STATE)}
        return found | _simple(env.task, set(TASK_STATE)) | _simple(env, {"_step_count", "_reset_next_step"})
    if name.startswith(f"{MUJOCO}.") and _has_base(type(level), MUJOCO_BASE):
        return {"the model": _model_digest(level.model, frozenset())} | _simple(level, set(MUJOCO_STATE))
    return {}


def says_itself(level: Any) -> bool:
    """
    :param level: A level of an environment
    :return: Whether it has the two methods
    """
    return callable(getattr(type(level), GETTER, None)) and callable(getattr(type(level), SETTER, None))


def _has_base(cls: type, name: str) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" == name for base in cls.__mro__)


def _lasting(level: Any) -> tuple[str, ...]:
    """The lasting attributes of a level's class, or of the first class it inherits from that is known."""
    for base in type(level).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if (attributes := WRAPPERS.get(name) or VEC_WRAPPERS.get(name)) is not None:
            return attributes.lasting
    return ()


def _values(level: Any, names: Any) -> dict[str, Any]:
    if not getattr(level, "norm_obs", True):  # SB3's VecNormalize has no statistics then
        names = [name for name in names if name != "obs_rms"]
    missing = [name for name in names if name not in vars(level)]
    if missing:  # before the first reset, or in another version of the package
        raise StateNotOfferedError(f"a {type(level).__name__} without `{missing[0]}` is not known")
    return {name: vars(level)[name] for name in names}


def _present(owner: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the attributes that an object has."""
    return {name: vars(owner)[name] for name in names if name in vars(owner)}


def _assign(owner: Any, name: str, value: Any) -> None:
    """Set an attribute; an object that others may share stays the same one, with other contents."""
    present: Any = vars(owner).get(name)
    if type(present) is not type(value):
        setattr(owner, name, value)
    elif isinstance(present, list):
        present[:] = value
    elif isinstance(present, deque):
        present.clear()
        present.extend(value)
    elif isinstance(present, dict) and present.keys() == value.keys() and all(map(_has_parts, present.values())):
        for key, part in present.items():
            part.__dict__.update(vars(value[key]))
    elif _has_parts(present):  # running statistics, stacked frames
        vars(present).update(vars(value))
    else:
        setattr(owner, name, value)


def _has_parts(value: Any) -> bool:
    return type(value).__name__ in ("RunningMeanStd", "StackedObservations")


def _simple(owner: Any, without: set[str]) -> dict[str, str]:
    """The attributes that are numbers, words, arrays and containers of them, in words."""
    found = {}
    for name, value in vars(owner).items():
        if (
            name not in without
            and name not in OF_RENDERING
            and not name.startswith(("_np_random", "_cached_spec", "_ezpickle"))
        ):
            try:
                found[name] = _in_words(value)
            except TypeError:
                continue
    return found


def _in_words(value: Any) -> str:
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"an array {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:12]}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_in_words, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_in_words(part)}' for key, part in value.items())}}}"
    if isinstance(value, np.generic):
        value = value.item()  # NumPy's own words for it differ from version to version
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise TypeError


# --- MuJoCo


def _dm_control_state(level: Any) -> dict[str, Any]:
    env = level._env
    kinds = (type(env).__module__, type(env.task).__module__.rpartition(".")[0])
    if kinds != ("dm_control.rl.control", "dm_control.suite"):
        raise StateNotOfferedError(f"what the whole state of dm_control's {type(env.task).__name__} is, is not known")
    model = env.physics.model.ptr
    return {
        "data": env.physics.data.ptr,
        "model": {name: getattr(model, name).copy() for name in MODEL_STATE},
        "task": _present(env.task, TASK_STATE),
        "steps": {name: vars(env)[name] for name in ("_step_count", "_reset_next_step")},
    }


def _set_simulator(level: Any, state: dict[str, Any]) -> None:
    import mujoco

    if "steps" not in state:
        mujoco.mj_copyData(level.data, level.model, state["data"])
        vars(level).update(state["attributes"])
        return
    env = level._env
    model = env.physics.model.ptr
    for name, array in state["model"].items():
        getattr(model, name)[...] = array
    mujoco.mj_copyData(env.physics.data.ptr, model, state["data"])
    vars(env.task).update(state["task"])
    vars(env).update(state["steps"])


def _model_digest(model: Any, without: frozenset[str]) -> str:
    """A digest of a MuJoCo model: all its arrays and options but for those left out."""
    digest = hashlib.sha256()
    for owner in (model, model.opt):
        for name in sorted(dir(owner)):
            value = None if name.startswith("_") or name in without else getattr(owner, name)
            if isinstance(value, np.ndarray):
                digest.update(f"{name} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
            elif isinstance(value, (int, float)):
                digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()[:12]
