"""
Trains on a task of the DeepMind Control Suite from pixels, and evaluates as it goes:
``python -m benchmarks.pixels.train --task cartpole-swingup --seed 0``. Stopped by Ctrl-C or SIGTERM and started again, it goes
on; killed, it goes on from its last checkpoint.
"""

import argparse
import csv
import io
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_bn_ddpg import BNDDPG, FrameReplayBuffer
from sb3_bn_ddpg.common.atomic_files import atomic_write
from sb3_bn_ddpg.zoo.interrupts import CheckpointUntilInterrupted, Interrupts

RESULTS = Path(__file__).parent / "results"
FIELDS = ("step", "updates", "wall_minutes", "cpu_minutes", "mean_return", "std_return", "returns", "q_value")

SETTINGS: dict[str, Any] = dict(
    learning_rate=1e-4,
    critic_learning_rate=1e-3,
    critic_weight_decay=0.0,
    tau=0.01,
    gamma=0.98,
    batch_size=32,
    learning_starts=1000,
    buffer_size=100_000,
)
"""For tens of thousands of updates instead of the paper's millions."""

FIRST_EVALUATION_SEED = 1_000_003
"""Of the evaluations' episodes, which no training begins in. (The stored runs had 0, 1 and 2 here, as their trainings had.)"""

POLICY_KWARGS: dict[str, Any] = dict(
    # What the critic's loss trains: convolutions and a layer of 200 units, of which each differs among the states of a
    # minibatch by its batch norm. Behind them 200 units for the actor, and 200 for the critic, which the action enters
    share_features_extractor=True,
    shared_extractor_loss="critic",
    features_extractor_kwargs=dict(conv_normalization="batch", features_dim=200, features_normalization="batch"),
    net_arch=[200],
    action_layer=1,
    normalization="layer",
    final_init=3e-3,
    optimizer_kwargs=dict(fused=True),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="cartpole-swingup", help="domain-task of the suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=50_000, help="actions, of three simulator steps each")
    parser.add_argument("--eval-freq", type=int, default=2000)
    parser.add_argument("--n-eval-episodes", type=int, default=3)
    parser.add_argument("--checkpoint-freq", type=int, default=5000, help="actions between two checkpoints")
    parser.add_argument("--n-steps", type=int, default=5)
    parser.add_argument("--random-shift", type=int, default=3, help="pixels")
    parser.add_argument("--samples", type=int, default=4, help="samples a pixel")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


class Evaluations(BaseCallback):
    """
    Plays episodes without noise every so many steps, from seeds that stay the same, and appends a row to a CSV file.

    :param env: The environment to evaluate in: one, for batches of several would round otherwise
    :param path: The file
    :param freq: Steps between evaluations
    :param n_episodes: Episodes of each
    :param rows: The file's rows so far
    """

    def __init__(self, env: VecEnv, path: Path, freq: int, n_episodes: int, rows: list[dict[str, str]]) -> None:
        super().__init__()
        self.env, self.path, self.freq, self.n_episodes = env, path, freq, n_episodes
        self.earlier = (float(rows[-1]["wall_minutes"]), float(rows[-1]["cpu_minutes"])) if rows else (0.0, 0.0)
        self.started = (time.monotonic(), time.process_time())
        self.best = max((float(row["mean_return"]) for row in rows if int(row["step"]) > 0), default=-np.inf)

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self.evaluate()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.freq == 0:
            self.evaluate()
        return True

    def evaluate(self) -> None:
        returns = []
        for episode in range(self.n_episodes):
            self.env.seed(FIRST_EVALUATION_SEED + episode)
            returns.append(evaluate_policy(self.model, self.env, 1)[0])
        elapsed = (time.monotonic() - self.started[0], time.process_time() - self.started[1])
        minutes = [round(before + now / 60, 2) for before, now in zip(self.earlier, elapsed, strict=True)]
        if np.mean(returns) > self.best:
            self.best = float(np.mean(returns))
            self.model.save(self.path.with_name("best_model.zip"))
        row = (
            self.num_timesteps,
            self.model._n_updates,
            *minutes,
            round(float(np.mean(returns)), 1),
            round(float(np.std(returns)), 1),
            " ".join(f"{value:.1f}" for value in returns),
            round(self.logger.name_to_value.get("train/q_value", float("nan")), 2),
        )
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(FIELDS)
            writer.writerow(row)
        print(dict(zip(FIELDS, row, strict=True)), flush=True)


def rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """
    :param path: A CSV file of evaluations
    :param step: A step
    :return: Its rows until then; later ones, of a run that was killed after them, are removed from it
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if int(row["step"]) <= step]
    if len(kept) < len(rows):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS)
        writer.writeheader()
        writer.writerows(kept)
        with atomic_write(path) as file:
            file.write(text.getvalue().encode())
    return kept


def main() -> None:
    arguments = parse()
    folder = arguments.results / f"{arguments.task}-{arguments.seed}"
    checkpoint, finished, evaluated = folder / "checkpoint", folder / "model.zip", folder / "evaluations.csv"
    if finished.exists():
        sys.exit(f"{folder} holds a finished run: train anew by deleting it, or give another --results")
    folder.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)
    th.set_flush_denormal(True)  # Adam's moments of inactive units become denormal, and slow

    def make_env() -> gym.Env:
        return Monitor(gym.make(f"bn_ddpg/{arguments.task}-pixels-v0", samples=arguments.samples))

    env, eval_env = make_env(), DummyVecEnv([make_env])
    rows: list[dict[str, str]] = []
    if checkpoint.exists():
        model = BNDDPG.resume(checkpoint, env, device="cpu")
        rows = rows_until(evaluated, model.num_timesteps)
    else:
        evaluated.unlink(missing_ok=True)
        replay_buffer_kwargs: dict[str, Any] = dict(n_frames=3, n_steps=arguments.n_steps, random_shift=arguments.random_shift)
        model = BNDDPG(
            "CnnPolicy",
            env,
            **{name: getattr(arguments, name) for name in SETTINGS},
            replay_buffer_class=FrameReplayBuffer,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=POLICY_KWARGS,
            seed=arguments.seed,
            device="cpu",
        )
        # The stored runs are from before seeds meant another generator
        model.action_noise.set_random_seed(np.random.default_rng(arguments.seed))
    evaluations = Evaluations(eval_env, evaluated, arguments.eval_freq, arguments.n_eval_episodes, rows)
    interrupts = Interrupts()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: setattr(interrupts, "happened", True))
    checkpoints = CheckpointUntilInterrupted(arguments.checkpoint_freq, checkpoint, interrupts)
    steps = arguments.timesteps - model.num_timesteps
    with suppress(KeyboardInterrupt):
        model.learn(
            steps, callback=[evaluations, checkpoints], reset_num_timesteps=model.num_timesteps == 0, log_interval=10**9
        )
    if model.num_timesteps >= arguments.timesteps:
        model.save(finished)
        checkpoint.unlink()
    print(f"{model.replay_buffer.bytes_per_transition / 1000:.1f} kB a transition", flush=True)


if __name__ == "__main__":
    main()
