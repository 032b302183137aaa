"""
From records to an agent: train a teacher, record it, learn offline from the record, go on online, compare all in one plot.

    python docs/examples/from_records.py

It needs `pip install "sb3-bn-ddpg[offline,plots]"`. The page docs/from_records.md explains each step.
"""

import argparse
import os
from pathlib import Path

import matplotlib
import minari
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_bn_ddpg import BNIQL, BNTD3, record_dataset

matplotlib.use("agg")
from matplotlib import pyplot as plt

DATASET = "pendulum/teacher-v0"


def evaluation(name: str, n_steps: int, args: argparse.Namespace) -> EvalCallback:
    """Evaluates a training of N steps several times. All trainings are evaluated from the same first states."""
    env = make_vec_env(args.env, seed=10_000)
    eval_freq = max(n_steps // args.evaluations, 1)
    return EvalCallback(env, n_eval_episodes=5, eval_freq=eval_freq, log_path=str(args.out / name), verbose=0)


def train_teacher(args: argparse.Namespace, callback: EvalCallback) -> BNTD3:
    """An agent that learns by acting. Where there are records already, there is no need of it."""
    teacher = BNTD3("MlpPolicy", args.env, learning_starts=200, seed=args.seed)
    return teacher.learn(args.teacher_steps, callback=callback, progress_bar=True)


def record(teacher: BNTD3, args: argparse.Namespace) -> minari.MinariDataset:
    """What the teacher does, with noise, so that the record shows more than one way to act."""
    if DATASET in minari.list_local_datasets():  # of an earlier run of this script
        minari.delete_dataset(DATASET)
    return record_dataset(teacher, DATASET, args.record_steps, noise=0.3, seed=args.seed, n_reference_episodes=5)


def learn_offline(args: argparse.Namespace, callback: EvalCallback) -> BNIQL:
    """Gradient steps on the record alone. The environment gives the spaces, and is for evaluation."""
    # The actor's learning rate stays what it is: by default it falls to 0, and learning shall go on
    model = BNIQL("MlpPolicy", args.env, dataset=DATASET, actor_learning_rate_decay=None, seed=args.seed)
    return model.learn(args.gradient_steps, callback=callback, progress_bar=True)


def go_on_online(model: BNIQL, args: argparse.Namespace, callback: EvalCallback) -> BNIQL:
    """Steps in the environment, with half of each minibatch from the record."""
    return model.learn_online(args.online_steps, reset_num_timesteps=False, callback=callback, progress_bar=True)


def learn_with_demonstrations(args: argparse.Namespace, callback: EvalCallback) -> BNTD3:
    """An agent that acts from the first step on, with half of each minibatch from the record."""
    model = BNTD3("MlpPolicy", args.env, demonstrations=DATASET, learning_starts=200, seed=args.seed)
    return model.learn(args.online_steps, callback=callback, progress_bar=True)


def plot(curves: dict[str, EvalCallback], dataset: minari.MinariDataset, path: Path) -> None:
    """All evaluations in one plot, beside the scores of a random agent and of the teacher, which the record holds."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(curve.evaluations_timesteps, np.mean(curve.evaluations_results, axis=1), "o-", label=name)
    scores = dataset.storage.metadata
    axes.axhline(scores["ref_max_score"], color="0.3", linestyle="--", label="the recorded teacher, without noise")
    axes.axhline(scores["ref_min_score"], color="0.3", linestyle=":", label="a random agent")
    axes.set(xlabel="steps: gradient steps offline, environment steps elsewhere", ylabel="return of an evaluation")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="a Gymnasium environment with continuous actions")
    parser.add_argument("--teacher-steps", type=int, default=8_000, help="environment steps to train the teacher for")
    parser.add_argument("--record-steps", type=int, default=10_000, help="environment steps to record")
    parser.add_argument("--gradient-steps", type=int, default=10_000, help="gradient steps offline")
    parser.add_argument("--online-steps", type=int, default=4_000, help="environment steps to go on for")
    parser.add_argument("--evaluations", type=int, default=8, help="evaluations of each training, of five episodes")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, environments and noise")
    parser.add_argument("--out", type=Path, default=Path("runs/from_records"), help="folder for the record and the plot")
    args = parser.parse_args()
    os.environ.setdefault("MINARI_DATASETS_PATH", str(args.out.resolve() / "minari"))  # else ~/.minari
    th.set_num_threads(1)  # networks this small run faster on one thread

    teaching, offline = evaluation("teacher", args.teacher_steps, args), evaluation("offline", args.gradient_steps, args)
    online, demonstrated = (evaluation(name, args.online_steps, args) for name in ("online", "demonstrations"))
    dataset = record(train_teacher(args, teaching), args)
    print(f"Recorded {dataset.total_steps} steps in {dataset.total_episodes} episodes as {dataset.id}")
    model = go_on_online(learn_offline(args, offline), args, online)
    model.save(args.out / "model")
    learn_with_demonstrations(args, demonstrated)

    curves = {
        "BNTD3, the teacher": teaching,
        "BNIQL, offline": offline,
        "BNIQL, on online": online,
        "BNTD3 with demonstrations": demonstrated,
    }
    for name, curve in curves.items():
        returns = np.mean(curve.evaluations_results, axis=1)
        score = minari.get_normalized_score(dataset, returns[-1])
        print(f"{name}: a mean return of {returns[-1]:.1f} at the end, a score of {score:.2f} (random: 0, teacher: 1)")
    plot(curves, dataset, args.out / "comparison.png")
    print(f"Plot: {args.out / 'comparison.png'}")


if __name__ == "__main__":
    main()
