"""
Memory over a long training, open files over many trainings:
``python -m benchmarks.reliability.endurance memory`` (or ``learns``, or ``trials``).
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_bn_ddpg import BNDDPG, CheckpointEvery

TINY = dict(policy_kwargs=dict(net_arch=[8, 8]), batch_size=16, learning_starts=100, device="cpu", seed=0)


class MemoryCurve(BaseCallback):
    """Notes the process's resident memory every so many steps."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.steps: list[int] = []
        self.bytes: list[int] = []

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.steps.append(self.num_timesteps)
            self.bytes.append(psutil.Process().memory_info().rss)
            print(f"{self.num_timesteps} {self.bytes[-1]}", flush=True)
        return True


def memory_slope(n_steps: int, buffer_size: int, n_envs: int) -> tuple[float, float]:
    """
    :param n_steps: Steps of the training, all environments together; there is an update for each five
    :param buffer_size: Size of the replay buffer, in transitions
    :param n_envs: Number of environments
    :return: Slope of the memory, in KiB per 100,000 steps, and where it begins, in MiB: after the buffer was filled twice
        and a fifth of the steps
    """
    curve = MemoryCurve(every=max(n_steps // 100, 1))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointEvery(max(n_steps // 20, 1), Path(folder) / "checkpoint")
        env = make_vec_env("Pendulum-v1", n_envs=n_envs)
        model = BNDDPG("MlpPolicy", env, buffer_size=buffer_size, gradient_steps=max(n_envs // 5, 1), **TINY)
        model.learn(n_steps, [curve, checkpoints])
    steps, used = np.array(curve.steps), np.array(curve.bytes)
    late = steps >= max(2 * buffer_size, n_steps // 5)  # the allocator has settled too
    slope = np.polyfit(steps[late], used[late], deg=1)[0]
    return float(slope * 100_000 / 1024), float(used[late][0] / 2**20)


def open_files_of_learns(n_learns: int) -> list[int]:
    """
    :param n_learns: How often to call ``learn`` of one model, with all that opens files
    :return: The number of the process's open files after each
    """
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        env = make_vec_env("Pendulum-v1", monitor_dir=f"{folder}/monitor")
        model = BNDDPG("MlpPolicy", env, buffer_size=1000, tensorboard_log=f"{folder}/tensorboard", **TINY)
        for _ in range(n_learns):
            evaluation = EvalCallback(
                make_vec_env("Pendulum-v1"), n_eval_episodes=1, eval_freq=100, verbose=0, log_path=folder
            )
            model.learn(120, [evaluation, CheckpointEvery(50, f"{folder}/checkpoint")], reset_num_timesteps=False)
            model.save(f"{folder}/model")
            counts.append(psutil.Process().num_fds())
    return counts


def open_files_of_trials(n_trials: int) -> list[int]:
    """
    :param n_trials: How many trials of a search to run
    :return: The number of the process's open files before each but the first, and after the last
    """
    from sb3_bn_ddpg import cli
    from sb3_bn_ddpg.zoo.search import FamilyExperimentManager

    counts = []
    objective = FamilyExperimentManager.objective

    def counting_objective(self, trial):
        counts.append(psutil.Process().num_fds())
        return objective(self, trial)

    FamilyExperimentManager.objective = counting_objective
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            arguments = [
                "train",
                "--env",
                "Pendulum-v1",
                "-n",
                "200",
                "--optimize",
                "--n-trials",
                str(n_trials),
                "--n-jobs",
                "1",
            ]
            arguments += ["--n-evaluations", "1", "--eval-episodes", "1", "--sampler", "random", "--pruner", "none"]
            tiny = ["-params", "learning_starts:50", "buffer_size:1000", "policy_kwargs:dict(net_arch=[8, 8])"]
            cli.main([*arguments, "--no-optim-plots", *tiny])
        finally:
            FamilyExperimentManager.objective = objective
            os.chdir(before)
    return [*counts[1:], psutil.Process().num_fds()]


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("memory", "learns", "trials"))
    parser.add_argument("--n", type=int, help="steps, calls of learn, or trials (default: 500000, 50, 20)")
    parser.add_argument("--n-envs", type=int, default=10, help="environments of the memory's training")
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    if options.what == "memory":
        slope, start = memory_slope(options.n or 500_000, buffer_size=20_000, n_envs=options.n_envs)
        print(f"slope: {slope:+.1f} KiB per 100,000 steps, at {start:.0f} MiB")
        return
    count = open_files_of_learns if options.what == "learns" else open_files_of_trials
    counts = count(options.n or (50 if options.what == "learns" else 20))
    print(f"open files after each: {counts}")
    sys.exit(max(counts[1:]) > counts[0])


if __name__ == "__main__":
    main()
