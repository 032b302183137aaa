"""
Compare BNDDPG with SB3's DDPG: a few seeds of each, one plot.

    python docs/examples/compare.py --seeds 5 --timesteps 10000

It needs `pip install "sb3-bn-ddpg[plots]"`. Both have the same learning rates, tau, batch size and noise: what differs is the
networks, their normalisation and their initialisation. A few seeds of a small task show no more than that both learn;
docs/results.md has the measurements.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_bn_ddpg import BNDDPG, OrnsteinUhlenbeckNoise

matplotlib.use("agg")
from matplotlib import pyplot as plt

ALGORITHMS = {"BNDDPG": (BNDDPG, dict(critic_learning_rate=1e-3, critic_weight_decay=0.0)), "SB3's DDPG": (DDPG, dict())}
COMMON = dict(learning_rate=1e-3, tau=0.005, batch_size=64)


def train(name: str, seed: int, args: argparse.Namespace) -> pd.DataFrame:
    """Train one model; the mean return of each of its evaluations, which are without noise."""
    algorithm, arguments = ALGORITHMS[name]
    env = make_vec_env(args.env, seed=seed)
    noise = OrnsteinUhlenbeckNoise(np.zeros(env.action_space.shape), seed=seed)  # SB3's algorithms take it as well
    model = algorithm("MlpPolicy", env, action_noise=noise, seed=seed, **COMMON, **arguments)
    evaluation = EvalCallback(
        make_vec_env(args.env, seed=10_000),
        n_eval_episodes=5,
        eval_freq=max(args.timesteps // args.evaluations, 1),
        log_path=str(args.out / f"{algorithm.__name__}_{seed}"),
        verbose=0,
    )
    model.learn(args.timesteps, callback=evaluation, progress_bar=True)
    returns = np.mean(evaluation.evaluations_results, axis=1)
    return pd.DataFrame(dict(algorithm=name, seed=seed, timesteps=evaluation.evaluations_timesteps, mean_return=returns))


def bootstrap_interval(returns: np.ndarray, n_resamples: int = 2_000) -> np.ndarray:
    """Bounds of the mean over seeds, at 95 %, for each row of an array of shape (evaluations, seeds)."""
    n_seeds = returns.shape[1]
    resamples = np.random.default_rng(0).integers(n_seeds, size=(n_resamples, n_seeds))
    return np.percentile(returns[:, resamples].mean(axis=2), [2.5, 97.5], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="a Gymnasium environment with continuous actions")
    parser.add_argument("--timesteps", type=int, default=10_000, help="environment steps to train each model for")
    parser.add_argument("--seeds", type=int, default=3, help="models of each algorithm")
    parser.add_argument("--evaluations", type=int, default=20, help="evaluations of each model, of five episodes")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder for evaluations, table and plot")
    args = parser.parse_args()
    th.set_num_threads(1)  # networks this small run faster on one thread

    runs = [train(name, seed, args) for name in ALGORITHMS for seed in range(args.seeds)]
    table = pd.concat(runs)
    table.to_csv(args.out / "returns.csv", index=False)

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in table.groupby("algorithm", sort=False):
        returns = rows.pivot(index="timesteps", columns="seed", values="mean_return")
        line = axes.plot(returns.index, returns.mean(axis=1), label=name)[0]
        axes.fill_between(returns.index, *bootstrap_interval(returns.to_numpy()), color=line.get_color(), alpha=0.2)
        print(f"{name}: {returns.iloc[-1].mean():.1f} at the end, the mean of {args.seeds} seeds")
    axes.set(xlabel="environment steps", ylabel="return of an evaluation", title=args.env)
    axes.legend(title=f"mean of {args.seeds} seeds, 95 % bootstrap interval")
    figure.savefig(args.out / "comparison.png", dpi=150)
    print(f"Plot: {args.out / 'comparison.png'}")


if __name__ == "__main__":
    main()
