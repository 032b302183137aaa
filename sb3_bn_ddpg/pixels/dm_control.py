"""The tasks of the DeepMind Control Suite from pixels, as ``gym.make("bn_ddpg/cartpole-swingup-pixels-v0")``."""

import ctypes.util
import importlib
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_bn_ddpg.common.checks import check_choice, check_installed, check_number
from sb3_bn_ddpg.pixels.observation import PixelObservation

TASKS = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles"),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}
"""The suite's domains and tasks but for ``lqr``, whose actions are unbounded: dm_control is not imported before it is used."""

CAMERAS = {"quadruped": 2}
"""The camera that sees what matters is the first everywhere but where it is named here."""

RENDER_FLAGS = {"shadow": False, "reflection": False}
"""Without a graphics card, a frame with shadows and reflections takes five times as long, most of it for the shadows."""

GL_LIBRARIES = {"egl": ("EGL", "libegl1 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}
"""What renders without a display: the library, and the Debian packages that bring it."""


def register_environments() -> None:
    """Make ``bn_ddpg/<domain>-<task>-pixels-v0`` known to Gymnasium, for all of :data:`TASKS`."""
    for domain, tasks in TASKS.items():
        for task in tasks:
            gym.register(
                f"bn_ddpg/{domain}-{task}-pixels-v0",
                entry_point="sb3_bn_ddpg.pixels.dm_control:make_dm_control_pixels",
                kwargs=dict(domain=domain, task=task),
            )


def check_suite(extra: str) -> None:
    """
    :param extra: The extra of this package to name
    :raises ImportError: if dm_control or Shimmy is missing
    """
    try:
        check_installed(extra, "dm_control")
    except ImportError as error:  # with newer Pythons the extra leaves it out
        raise ImportError(f"{error} (up to Python 3.12: there are no wheels of its labmaze for newer ones)") from None
    check_installed(extra, "shimmy")


def import_suite() -> None:
    """Import dm_control and Shimmy, which registers ``dm_control/<domain>-<task>-v0``, and keep the process as it was."""
    _import_triton()
    with warnings.catch_warnings():  # dm_control wants each DeprecationWarning shown, its own hundreds among them
        importlib.import_module("shimmy")


def make_dm_control_pixels(
    domain: str,
    task: str,
    n_frames: int = 3,
    size: tuple[int, int] = (64, 64),
    camera_id: int | str | None = None,
    samples: int = 4,
    render_mode: str | None = None,
    **kwargs: Any,
) -> PixelObservation:
    """
    A task of the DeepMind Control Suite, seen as the paper's agents see it.

    :param domain: The suite's domain
    :param task: The domain's task
    :param n_frames: Steps of the task (each a ``control_timestep``), and frames, to an action
    :param size: Height and width of a frame in pixels
    :param camera_id: Index or name of the camera (if None, one that sees what matters)
    :param samples: Samples a pixel against jagged edges, 0 for one: a fifth of the time, but thin things move in jumps
    :param render_mode: None or ``"rgb_array"``: ``render`` returns the newest frame that was observed. ``gym.make`` also takes
        ``"human"``, which shows it in a window (needs pygame)
    :param kwargs: Further arguments of ``dm_control.suite.load`` (``task_kwargs``, ``environment_kwargs``)
    :return: The environment
    :raises ImportError: if dm_control, Shimmy or a library to render with is missing
    :raises ValueError: if an argument is out of its range
    """
    check_choice("render_mode", render_mode, (None, "rgb_array"))
    check_number("samples", samples, low=0, integer=True)
    check_suite("pixels")
    _choose_renderer()
    try:
        import_suite()
        from dm_control import suite
        from shimmy import DmControlCompatibilityV0
    except Exception as error:  # what comes when a graphics library is missing differs from backend to backend
        raise _missing_renderer() from error
    env: Any = DmControlCompatibilityV0(suite.load(domain, task, **kwargs), render_mode="rgb_array")
    camera = DmControlCamera(env, size, CAMERAS.get(domain, 0) if camera_id is None else camera_id, samples)
    return PixelObservation(camera, n_frames, size)


# By which gym.make knows that it has to put a window around these environments if it is asked for one
setattr(make_dm_control_pixels, "metadata", {"render_modes": ["rgb_array"]})  # noqa: B010


class DmControlCamera(gym.Wrapper[Any, NDArray[Any], Any, NDArray[Any]], RecordConstructorArgs):
    """
    Renders a dm_control environment by one camera that is kept, where dm_control's ``render`` makes a new one for each frame.

    :param env: A dm_control environment in Shimmy's wrapper
    :param size: Height and width in pixels
    :param camera_id: Index or name of the camera
    :param samples: Samples a pixel
    :raises ImportError: if there is no library to render with
    """

    def __init__(self, env: gym.Env[Any, NDArray[Any]], size: tuple[int, int], camera_id: int | str, samples: int) -> None:
        RecordConstructorArgs.__init__(self, size=size, camera_id=camera_id, samples=samples)
        gym.Wrapper.__init__(self, env)
        physics = env.unwrapped.physics  # type: ignore[attr-defined]
        physics.model.vis.quality.offsamples = samples
        try:
            self._camera = KeptCamera(physics, size, camera_id)
            self._camera.render()
        except ValueError:  # no such camera, or a picture too large
            raise
        except Exception as error:  # no common class, see above
            raise _missing_renderer() from error

    def render(self) -> Any:
        """
        :return: The present frame, of shape ``(height, width, 3)``
        """
        return self._camera.render()


class KeptCamera:
    """
    A camera of dm_control that is made with its first frame. It belongs to the process, so a pickle, as in a checkpoint, holds
    what it is made of.

    :param physics: The simulator
    :param size: Height and width in pixels
    :param camera_id: Index or name of the camera
    """

    def __init__(self, physics: Any, size: tuple[int, int], camera_id: int | str) -> None:
        self._arguments = (physics, size, camera_id)
        self._camera: Any = None

    def __reduce__(self) -> tuple[type["KeptCamera"], tuple[Any, ...]]:
        return KeptCamera, self._arguments

    def render(self) -> Any:
        """
        :return: The present frame, of shape ``(height, width, 3)``
        """
        if self._camera is None:
            from dm_control.mujoco.engine import Camera

            physics, size, camera_id = self._arguments
            self._camera = Camera(physics, *size, camera_id)
        return self._camera.render(render_flag_overrides=RENDER_FLAGS)


def _import_triton() -> None:
    """PyTorch's CUDA builds load it with the first optimizer, which crashes the process if Mesa's LLVM is there before it."""
    with suppress(ImportError):
        importlib.import_module("triton")


def _choose_renderer() -> None:
    """Without a display dm_control would still take the renderer that needs one: choose another, unless somebody has."""
    _import_triton()
    has_display = not sys.platform.startswith("linux") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if "MUJOCO_GL" in os.environ or has_display:
        return
    found = [name for name, (library, _) in GL_LIBRARIES.items() if ctypes.util.find_library(library)]
    if not found:
        raise _missing_renderer()
    os.environ["MUJOCO_GL"] = found[0]
    if "dm_control._render" in sys.modules:  # imported before, it has chosen already
        importlib.reload(sys.modules["dm_control._render"])


def _missing_renderer() -> ImportError:
    packages = " or, with MUJOCO_GL=osmesa, ".join(f"`apt-get install {packages}`" for _, packages in GL_LIBRARIES.values())
    return ImportError(
        f"MuJoCo cannot render (MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}). Without a display it needs MUJOCO_GL=egl, set "
        f"before dm_control is imported, and on Debian or Ubuntu {packages}"
    )
