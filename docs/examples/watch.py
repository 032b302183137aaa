"""
Watch a trained agent: film it, or open a window.

    python docs/examples/quickstart.py        # trains one; any that `model.save` has written goes as well, with its --algo
    python docs/examples/watch.py             # films it
    python docs/examples/watch.py --window    # shows it

Films need moviepy, which brings ffmpeg, and Pendulum-v1 is drawn by pygame: `pip install "sb3-bn-ddpg[zoo]"`. What
`bn-ddpg train` has trained is shown by `bn-ddpg enjoy --env Pendulum-v1 -f logs`, and filmed by `bn-ddpg record_video` with
the same options.
"""

import argparse
import sys
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecVideoRecorder

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3

ALGORITHMS = {"bn_ddpg": BNDDPG, "bn_td3": BNTD3, "bn_sac": BNSAC}


def make_env(args: argparse.Namespace) -> VecEnv:
    """One environment, seeded, which draws itself as SB3's recorder or as a window wants it."""
    env = make_vec_env(args.env, seed=args.seed, env_kwargs=dict(render_mode="human" if args.window else "rgb_array"))
    if args.window:
        return env
    # Start a film at step 0, and no other one after it
    trigger = lambda step: step == 0  # noqa: E731
    return VecVideoRecorder(env, str(args.out), trigger, video_length=args.timesteps, name_prefix=args.env.replace("/", "-"))


def watch(model: BaseAlgorithm, env: VecEnv, timesteps: int) -> None:
    """Let the agent act, without noise and on batch norm's running statistics, and print the return of each episode."""
    observation = env.reset()
    for _ in range(timesteps):
        action, _ = model.predict(observation, deterministic=True)
        observation, _, _, infos = env.step(action)
        for info in infos:
            if "episode" in info:  # from the Monitor that make_vec_env wraps around each environment
                print(f"An episode of {info['episode']['l']} steps with a return of {info['episode']['r']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="the environment that the agent was trained in")
    parser.add_argument("--model", type=Path, default=Path("runs/Pendulum-v1_seed0/model.zip"), help="the agent")
    parser.add_argument("--algo", choices=ALGORITHMS, default="bn_ddpg", help="the agent's algorithm")
    parser.add_argument("--timesteps", type=int, default=400, help="environment steps to watch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the environment")
    parser.add_argument("--window", action="store_true", help="open a window instead of filming")
    parser.add_argument("--out", type=Path, default=Path("runs/videos"), help="folder for the film")
    args = parser.parse_args()
    if not args.model.exists():
        parser.error(f"argument --model: there is no file {args.model}; docs/examples/quickstart.py trains an agent")

    model = ALGORITHMS[args.algo].load(args.model)
    try:
        env = make_env(args)
        watch(model, env, args.timesteps)
        env.close()
    except gym.error.DependencyNotInstalled as error:  # moviepy or pygame
        sys.exit(f'No film: {error}\nBoth come with: pip install "sb3-bn-ddpg[zoo]"')
    except (OSError, RuntimeError) as error:  # moviepy's, if its ffmpeg is missing or fails
        sys.exit(f"No film: {error}\nmoviepy needs a working ffmpeg: install one, or see it in a window with --window")


if __name__ == "__main__":
    main()
