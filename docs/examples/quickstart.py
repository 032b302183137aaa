"""Train an agent, watch it learn, and see how much better than chance it has become: what `make train` runs."""

import argparse
import time
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.results_plotter import X_TIMESTEPS, load_results, ts2xy

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3

matplotlib.use("agg")
from matplotlib import pyplot as plt

EVALUATION_SEED = 10_000
N_EVALUATION_EPISODES = 20

# The DDPG paper's values are for millions of steps. Faster targets and a faster actor learn these small tasks in minutes.
ALGORITHMS = {
    "bn_ddpg": (BNDDPG, dict(learning_rate=1e-3, critic_weight_decay=0.0, tau=0.005)),
    "bn_td3": (BNTD3, dict()),
    "bn_sac": (BNSAC, dict()),
}


class RandomPolicy:
    """Uniformly random actions, by the interface that SB3 evaluates."""

    def __init__(self, action_space: gym.Space) -> None:
        self.action_space = action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.stack([self.action_space.sample() for _ in observation]), state


def fixed_seed_returns(policy, env_id: str) -> np.ndarray:
    """The returns of 20 episodes, the same first states for every policy, without exploration noise."""
    env = make_vec_env(env_id, seed=EVALUATION_SEED)
    env.action_space.seed(EVALUATION_SEED)
    if policy is None:
        policy = RandomPolicy(env.action_space)
    returns, _ = evaluate_policy(policy, env, N_EVALUATION_EPISODES, deterministic=True, return_episode_rewards=True)
    env.close()
    return np.array(returns)


def plot_learning_curve(folder: Path, title: str, random_return: float) -> Path:
    """Returns while exploring and returns of the evaluations, against environment steps."""
    steps, returns = ts2xy(load_results(str(folder)), X_TIMESTEPS)
    evaluations = np.load(folder / "evaluations.npz")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, returns, ".", color="0.7", label="training episodes, with noise")
    axes.plot(evaluations["timesteps"], evaluations["results"].mean(axis=1), "o-", label="evaluations, without noise")
    axes.axhline(random_return, color="tab:red", linestyle="--", label="random policy")
    axes.set(xlabel="environment steps", ylabel="return of an episode", title=title)
    axes.legend()
    path = folder / "learning_curve.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algo", choices=ALGORITHMS, default="bn_ddpg", help="the algorithm")
    parser.add_argument("--env", default="Pendulum-v1", help="a Gymnasium environment with continuous actions")
    parser.add_argument("--timesteps", type=int, default=12_000, help="environment steps to train for")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, environment and noise")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the results")
    args = parser.parse_args()
    algorithm, hyperparameters = ALGORITHMS[args.algo]
    name = "" if args.algo == "bn_ddpg" else f"_{args.algo}"
    folder = args.out / f"{args.env.replace('/', '-')}{name}_seed{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    # Networks this small run faster on one thread
    th.set_num_threads(1)
    console = Console()
    start = time.perf_counter()

    env = Monitor(gym.make(args.env), str(folder / "training"))
    model = algorithm("MlpPolicy", env, seed=args.seed, **hyperparameters)
    evaluation = EvalCallback(
        make_vec_env(args.env, seed=args.seed + 1),
        n_eval_episodes=5,
        eval_freq=max(args.timesteps // 12, 1),
        log_path=str(folder),
        verbose=0,
    )
    try:
        model.learn(args.timesteps, callback=evaluation, progress_bar=True)
    finally:  # also after Ctrl-C: what was learned is kept
        model.save(folder / "model")
        console.print(f"Model saved as {folder / 'model.zip'} after {model.num_timesteps:,} steps")

    table = Table(title=f"{args.env}: returns of {N_EVALUATION_EPISODES} episodes from fixed seeds")
    for column in ("policy", "mean", "standard deviation", "worst", "best"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    means = {}
    for name, policy in (("random", None), (f"{algorithm.__name__}, seed {args.seed}", model)):
        returns = fixed_seed_returns(policy, args.env)
        means[name] = returns.mean()
        table.add_row(name, *(f"{value:.1f}" for value in (returns.mean(), returns.std(), returns.min(), returns.max())))
    console.print(table)
    console.print(f"Learning curve: {plot_learning_curve(folder, f'{algorithm.__name__} on {args.env}', means['random'])}")
    console.print(f"Took {time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()
