"""
BNDDPG beside SB3's DDPG, both with HerReplayBuffer, on gymnasium-robotics' FetchReach:
``python -m benchmarks.goals.fetch_reach``.

gymnasium-robotics 1.4 does not run with MuJoCo 3.17 (it compares joint types in a way that fails there), so this wants an
environment of its own: ``pip install gymnasium-robotics "mujoco<3.4"``.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_bn_ddpg import BNDDPG

RESULTS = Path(__file__).parent / "results.csv"
COMMON: dict[str, Any] = dict(
    learning_rate=1e-3,
    batch_size=256,
    gamma=0.95,
    tau=0.05,
    learning_starts=1000,
    buffer_size=100_000,
    replay_buffer_class=HerReplayBuffer,
    replay_buffer_kwargs=dict(n_sampled_goal=4, goal_selection_strategy="future"),
    device="cpu",
)


def make_model(algorithm: str, env: gym.Env, seed: int) -> OffPolicyAlgorithm:
    if algorithm == "ddpg":
        noise = NormalActionNoise(np.zeros(4), np.full(4, 0.2))
        return DDPG("MultiInputPolicy", env, action_noise=noise, policy_kwargs=dict(net_arch=[400, 300]), seed=seed, **COMMON)
    normalization = None if algorithm == "bn_ddpg without batch norm" else "batch"
    policy_kwargs = dict(normalization=normalization)
    return BNDDPG("MultiInputPolicy", env, critic_weight_decay=0.0, policy_kwargs=policy_kwargs, seed=seed, **COMMON)


def success_rate(model: OffPolicyAlgorithm, env: gym.Env, n_episodes: int) -> float:
    """
    :param model: The model
    :param env: The environment, its episodes cut off after 50 steps
    :param n_episodes: Number of episodes, of seeds from 1000 on
    :return: Share of those that end at the goal
    """
    successes = []
    for seed in range(1000, 1000 + n_episodes):
        obs, _ = env.reset(seed=seed)
        is_done = False
        while not is_done:
            obs, _, terminated, truncated, info = env.step(model.predict(obs, deterministic=True)[0])
            is_done = terminated or truncated
        successes.append(info["is_success"])
    return float(np.mean(successes))


class Evaluations(BaseCallback):
    def __init__(self, env: gym.Env, freq: int, row: list[Any]) -> None:
        super().__init__()
        self.env, self.freq, self.row = env, freq, row

    def _on_step(self) -> bool:
        if self.num_timesteps % self.freq == 0:
            rate = success_rate(self.model, self.env, n_episodes=100)
            row = [*self.row, self.num_timesteps, round(rate, 2), round(time.process_time() / 60, 2)]
            with RESULTS.open("a", newline="") as file:
                csv.writer(file).writerow(row)
            print(*row, flush=True)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", nargs="+", default=["bn_ddpg", "bn_ddpg without batch norm", "ddpg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, default=6000)
    parser.add_argument("--eval-freq", type=int, default=2000)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    gym.register_envs(gymnasium_robotics)
    if not RESULTS.exists():
        RESULTS.write_text("algorithm,seed,step,success_rate,cpu_minutes_of_all\n")
    for seed in arguments.seeds:
        for algorithm in arguments.algorithms:
            model = make_model(algorithm, gym.make("FetchReach-v4"), seed)
            model.learn(arguments.timesteps, Evaluations(gym.make("FetchReach-v4"), arguments.eval_freq, [algorithm, seed]))


if __name__ == "__main__":
    main()
