"""
The curves of training runs, and a strip of frames of the best policy:
``python -m benchmarks.pixels.plots --task cartpole-swingup``.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.pixels.train import RESULTS
from sb3_bn_ddpg import BNDDPG

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
N_RANDOM_EPISODES = 10


def random_returns(env: gym.Env) -> list[float]:
    """
    :param env: The environment
    :return: Returns of episodes of uniformly random actions
    """
    env.action_space.seed(0)
    returns = []
    for seed in range(N_RANDOM_EPISODES):
        env.reset(seed=seed)
        total, is_done = 0.0, False
        while not is_done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            is_done = terminated or truncated
        returns.append(total)
    return returns


def curve(task: str, runs: list[Path], returns_of_random: list[float]) -> Figure:
    """
    :param task: The task
    :param runs: Folders of its runs, one a seed
    :param returns_of_random: Returns of the random policy
    :return: Returns over steps
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    mean, std = np.mean(returns_of_random), np.std(returns_of_random)
    axes.axhspan(mean - std, mean + std, color="0.9")
    axes.axhline(mean, color="0.5", linestyle="--", label="random actions")
    for run in runs:
        rows = list(csv.DictReader((run / "evaluations.csv").open()))
        steps, returns, spread = (
            np.array([float(row[name]) for row in rows]) for name in ("step", "mean_return", "std_return")
        )
        label = f"seed {run.name.rsplit('-', 1)[1]}, {float(rows[-1]['cpu_minutes']):.0f} minutes on one core"
        (line,) = axes.plot(steps, returns, marker=".", label=label)
        axes.fill_between(steps, returns - spread, returns + spread, color=line.get_color(), alpha=0.2)
    axes.set(title=f"{task} from pixels", xlabel="actions (of three simulator steps)", ylabel="return without noise (of 1000)")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def strip(model: BNDDPG, env: gym.Env, n_frames: int = 12, every: int = 16) -> np.ndarray[Any, Any]:
    """
    :param model: The model
    :param env: The environment
    :param n_frames: Number of frames
    :param every: Actions between them
    :return: Frames of an episode side by side, of shape ``(height, n_frames * width, 3)``
    """
    obs, _ = env.reset(seed=0)
    frames = []
    for step in range(n_frames * every):
        if step % every == 0:
            frames.append(env.get_wrapper_attr("render")())
        obs, *_ = env.step(model.predict(obs)[0])
    return np.concatenate(frames, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="cartpole-swingup")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    env = gym.make(f"bn_ddpg/{arguments.task}-pixels-v0")
    runs = sorted(arguments.results.glob(f"{arguments.task}-*"))
    returns = random_returns(env)
    print(f"random actions: {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(returns)} episodes")
    arguments.figures.mkdir(parents=True, exist_ok=True)
    figure = curve(arguments.task, runs, returns)
    for suffix in ("png", "svg"):
        figure.savefig(arguments.figures / f"pixels_{arguments.task}.{suffix}", dpi=150)
    models = [run / "best_model.zip" for run in runs if (run / "best_model.zip").exists()]
    if models:
        picture = strip(BNDDPG.load(models[0], device="cpu"), env).repeat(2, axis=0).repeat(2, axis=1)
        plt.imsave(arguments.figures / f"pixels_{arguments.task}_frames.png", picture)


if __name__ == "__main__":
    main()
