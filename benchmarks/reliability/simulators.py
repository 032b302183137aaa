"""
Trainings on environments of other packages, killed (SIGKILL) and resumed in another process:
``python -m benchmarks.reliability.simulators`` tries those that are installed, ``... simulators NAME`` one of them.

The resumed process notes each observation that the environment returns. The first transition that it stores must begin and end
with those: with what a reset and a step returned after a new episode, or, in the middle of an episode, with what the
environment shows and a step returned.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sb3_bn_ddpg import BNDDPG, CheckpointEvery

HALF = 210
"""Steps until the last checkpoint, in the middle of an episode"""


class EnvPoolAdapter(VecEnvWrapper):
    """As EnvPool's example for Stable-Baselines3 has it: an engine of EnvPool in the place of a ``VecEnv``."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine, engine.observation_space, engine.action_space)

    def seed(self, seed: int | None = None) -> Any:
        """EnvPool is seeded when it is made."""

    def reset(self) -> Any:
        return self.venv.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        obs, rewards, terminated, truncated, _ = self.venv.step(self.actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(done):
            infos[index] = {"terminal_observation": obs[index], "TimeLimit.truncated": bool(truncated[index])}
        if done.any():  # EnvPool resets with the next step of those that ended
            obs[done] = self.venv.reset(np.flatnonzero(done))[0]
        return obs, rewards, done, infos


def _env_pool() -> VecEnv:
    import envpool

    return VecMonitor(EnvPoolAdapter(envpool.make("Pendulum-v1", env_type="gymnasium", num_envs=3)))


def _super_suit() -> VecEnv:
    import supersuit
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env(continuous_actions=True)
    return supersuit.concat_vec_envs_v1(
        supersuit.pettingzoo_env_to_vec_env_v1(env), 1, num_cpus=0, base_class="stable_baselines3"
    )


def _made(env_id: str, module: str | None = None, **kwargs: Any) -> Callable[[], Any]:
    def make() -> Any:
        if module is not None:
            getattr(importlib.import_module(module), "register_envs", lambda: None)()
        return gym.make(env_id, **kwargs)

    return make


class Simulator(NamedTuple):
    """An environment to try, and a function that looks at what it shows."""

    make_env: Callable[[], Any]
    packages: tuple[str, ...] = ()
    shows: Callable[[Any], Any] | None = None
    """None: a new episode is expected"""


SIMULATORS = {
    "Gymnasium's classic control": Simulator(_made("Pendulum-v1"), shows=lambda env: env._get_obs()),
    "Gymnasium's MuJoCo": Simulator(_made("HalfCheetah-v5"), ("mujoco",), lambda env: env._get_obs()),
    "DeepMind Control Suite": Simulator(
        lambda: gym.wrappers.FlattenObservation(_made("dm_control/reacher-easy-v0", "shimmy")()),
        ("shimmy", "dm_control"),
        lambda env: np.concatenate([part.ravel() for part in env._env.task.get_observation(env._env.physics).values()]),
    ),
    "Gymnasium's Box2D": Simulator(_made("BipedalWalker-v3"), ("Box2D",)),
    "PyBullet": Simulator(_made("HalfCheetahBulletEnv-v0", "pybullet_envs_gymnasium"), ("pybullet_envs_gymnasium",)),
    "PyBullet in worker processes": Simulator(
        lambda: make_vec_env(_made("HopperBulletEnv-v0", "pybullet_envs_gymnasium"), 2, vec_env_cls=SubprocVecEnv),
        ("pybullet_envs_gymnasium",),
    ),
    "panda-gym": Simulator(_made("PandaReach-v3", "panda_gym"), ("panda_gym",)),
    "highway-env": Simulator(_made("parking-v0", "highway_env"), ("highway_env",)),
    "BlueSky-Gym": Simulator(_made("DescentEnv-v0", "bluesky_gym"), ("bluesky_gym",)),
    "EnvPool": Simulator(_env_pool, ("envpool",)),
    "SuperSuit": Simulator(_super_suit, ("supersuit", "mpe2")),
}


def train(name: str, path: Path) -> None:
    """Train until killed, with checkpoints."""
    env = SIMULATORS[name].make_env()
    is_dict = isinstance(env.observation_space, spaces.Dict)
    model = BNDDPG(
        "MultiInputPolicy" if is_dict else "MlpPolicy",
        env,
        learning_starts=50,
        buffer_size=5_000,
        batch_size=16,
        policy_kwargs=dict(net_arch=[16, 16]),
        device="cpu",
    )
    model.learn(10**6, CheckpointEvery(HALF, path, verbose=1))


def resume(name: str, path: Path) -> str:
    """
    Go on, and look at the first transition.

    :return: How the training went on
    """
    simulator = SIMULATORS[name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = BNDDPG.resume(path, simulator.make_env(), device="cpu")
    told_by_us = [str(warning.message) for warning in told if "new episode" in str(warning.message)]
    assert not told_by_us, told_by_us  # the first checkpoint has told it
    assert model.env is not None
    innermost: Any = model.env
    while isinstance(innermost, VecEnvWrapper) and isinstance(innermost.venv, VecEnv):
        innermost = innermost.venv
    goes_on = model._last_obs is not None
    assert goes_on == (simulator.shows is not None), "an episode goes on where the state is known, and nowhere else"
    shown: list[dict[Any, np.ndarray]] = []
    if simulator.shows is not None:
        shown.append({None: simulator.shows(innermost.envs[0].unwrapped)[None]})
    _note(type(innermost), shown)
    before, step = model.replay_buffer.pos, model.num_timesteps
    model.learn(40 * model.n_envs, reset_num_timesteps=False)
    buffer: Any = model.replay_buffer
    for stored, expected in ((buffer.observations, shown[0]), (buffer.next_observations, shown[1])):
        for key, array in expected.items():
            rows = stored if key is None else stored[key]
            np.testing.assert_array_equal(rows[before], array.astype(rows.dtype))
    how = "in the middle of the episode" if goes_on else "with a new episode"
    return f"went on from step {step} to {model.num_timesteps} {how}; its first transition is the environment's own"


def _note(cls: Any, shown: list[Any]) -> None:
    """Note what a class of vectorised environments returns from now on."""
    reset, step_wait = cls.reset, cls.step_wait

    def copied(obs: Any) -> dict[Any, np.ndarray]:
        parts = obs if isinstance(obs, dict) else {None: obs}
        return {key: np.array(part, dtype=np.float64) for key, part in parts.items()}

    def noted_reset(self: Any) -> Any:
        obs = reset(self)
        shown.append(copied(obs))
        return obs

    def noted_step_wait(self: Any) -> Any:
        result = step_wait(self)
        shown.append(copied(result[0]))
        return result

    cls.reset, cls.step_wait = noted_reset, noted_step_wait


def kill_and_resume(name: str) -> str:
    """
    :param name: A simulator
    :return: How its training went on after a kill
    """
    command = [sys.executable, "-m", "benchmarks.reliability.simulators", name]
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        # Not a pipe, which worker processes would keep open
        with open(Path(folder) / "output", "w") as output_file:
            process = subprocess.Popen(
                [*command, "--train", str(path)], cwd=root, stdout=output_file, stderr=subprocess.STDOUT
            )
            deadline = time.monotonic() + 300
            while not path.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(1)  # on in the episode, or in the next
            process.kill()
            process.wait()
        output = (Path(folder) / "output").read_text()
        if not path.exists():
            return f"FAILED, no checkpoint: {output[-1500:]}"
        told = output.count("will begin a new episode")
        with open(Path(folder) / "output", "w") as output_file:
            resumed = subprocess.run(
                [*command, "--resume", str(path)], cwd=root, stdout=output_file, stderr=subprocess.STDOUT, timeout=300
            )
        output = (Path(folder) / "output").read_text()
        if resumed.returncode:
            return f"FAILED: {output[-1500:]}"
        said = next(line for line in output.splitlines() if line.startswith("went on"))
        return f"{said} (warnings before the kill: {told})"


def _is_installed(name: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in SIMULATORS[name].packages)


def main(argv: list[str] | None = None) -> None:
    """Try and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", choices=SIMULATORS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    if options.train is not None:
        train(options.name, options.train)
    elif options.resume is not None:
        print(resume(options.name, options.resume), flush=True)
    else:
        names = [options.name] if options.name else [name for name in SIMULATORS if _is_installed(name)]
        results = {name: kill_and_resume(name) for name in names}
        print("\n".join(f"{name}: {result}" for name, result in results.items()))
        sys.exit(any(result.startswith("FAILED") for result in results.values()))


if __name__ == "__main__":
    main()
