"""
Bring your own environment: define it, check it, train in it, evaluate, and let the command line find it.

    python docs/examples/own_environment.py

Who imports this file registers HeatedRoom-v0, which is what `--gym-packages` is for. Its hyperparameters are in
own_environment.yml; without that file it would get the entry `default` of the profile.

    PYTHONPATH=docs/examples bn-ddpg train --env HeatedRoom-v0 --gym-packages own_environment \
        --conf-file docs/examples/own_environment.yml
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_bn_ddpg import BNDDPG


class HeatedRoom(gym.Env):
    """Keep a room at 293 kelvin with a heater of 0 to 3000 watts, in steps of ten minutes."""

    def __init__(self) -> None:
        # The room's and the outside temperature in kelvin, the time of day in seconds: batch norm brings them to one scale
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        # Any finite bounds will do: the policy's actions in [-1, 1] are scaled to them, and the noise with them
        self.action_space = gym.spaces.Box(0, 3000, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0.0
        self.room, self.mean_outside = self.np_random.uniform(283, 298), self.np_random.uniform(268, 283)
        return self._observation(), {}

    def step(self, action):
        # 80 W/K go through the walls, and 2 MJ warm the room by one kelvin
        self.room += 600 * (float(action[0]) - 80 * (self.room - self._outside())) / 2e6
        self.time += 600
        # Never `terminated`: a day's end is a time limit, after which the room would still be there
        return self._observation(), -abs(self.room - 293), False, False, {}

    def _outside(self):
        return self.mean_outside + 5 * np.sin(2 * np.pi * self.time / 86400)

    def _observation(self):
        return np.array([self.room, self._outside(), self.time], np.float32)


# The time limit of 144 steps, a day, is registered with it, and reports `truncated`
gym.register("HeatedRoom-v0", HeatedRoom, max_episode_steps=144)


class Thermostat:
    """On below 293 kelvin, off above: something to compare with, by the interface that SB3 evaluates."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.where(observation[:, :1] < 293, 3000, 0).astype(np.float32), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=8_000, help="environment steps to train for")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, environment and noise")
    parser.add_argument("--out", type=Path, default=Path("runs/own_environment"), help="folder for the model")
    args = parser.parse_args()

    # SB3's checker finds most mistakes. Its advice to rescale the actions is for algorithms that do not do so themselves.
    check_env(HeatedRoom())
    env = gym.make("HeatedRoom-v0")
    model = BNDDPG("MlpPolicy", env, learning_rate=1e-3, critic_weight_decay=0.0, tau=0.005, seed=args.seed)
    model.learn(args.timesteps, progress_bar=True)
    model.save(args.out / "model")  # makes the folder, too
    for name, policy in (("thermostat", Thermostat()), ("BNDDPG", model)):
        env = Monitor(gym.make("HeatedRoom-v0"))
        env.reset(seed=10_000)  # the same days for both
        mean, deviation = evaluate_policy(policy, env, n_eval_episodes=10)
        print(f"{name}: a mean return of {mean:.1f} +- {deviation:.1f}, {-mean / 144:.2f} kelvin off at a time")


if __name__ == "__main__":
    main()
