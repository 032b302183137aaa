"""``bn-ddpg record-dataset``: a Minari dataset of what a model of RL Zoo's does, or of its replay buffer."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3 import ALGOS, create_test_env, get_saved_hyperparams
from rl_zoo3.utils import StoreDict, get_model_path
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from sb3_bn_ddpg.datasets.recording import SCORES, record_dataset, reference_scores, store_dataset


def main() -> None:
    """
    Read the command line, load the model with the environment of its training, record.

    :raises ValueError: if there is no such model, or a value is not allowed
    """
    args = _parser().parse_args()
    for package in args.gym_packages:
        importlib.import_module(package)
    path, run_folder = _model_file(args)
    set_random_seed(args.seed)
    model = _loaded(args, path, run_folder)
    given = {name: getattr(args, name) for name in ("author", "author_email", "description", *SCORES)}
    metadata: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.replay_buffer is None:
        dataset = record_dataset(
            model, args.name, args.n_timesteps, None, args.deterministic, args.noise, args.seed, args.ref_episodes, **metadata
        )
    else:
        replay_buffer = args.replay_buffer or run_folder / "replay_buffer.pkl"
        scores = reference_scores(model, args.ref_episodes, seed=args.seed) if args.ref_episodes else {}
        about = scores | dict(algorithm_name=type(model).__name__) | metadata
        dataset = store_dataset(Path(replay_buffer), args.name, **about)
    print(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps, in {dataset.spec.data_path}")
    low, high = (dataset.storage.metadata.get(name) for name in SCORES)
    if None not in (low, high):
        print(f"Reference scores: {low:.2f} (random) and {high:.2f}")
    print(f"Learn from it: bn-ddpg train --algo ALGO --env {args.env.gym_id} --dataset {dataset.id}")


def _parser() -> argparse.ArgumentParser:
    hub: Any = importlib.import_module("huggingface_sb3")
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True, help="name of the dataset, with a version, as pendulum/medium-v0")
    parser.add_argument("--env", required=True, type=hub.EnvironmentName, help="environment ID")
    parser.add_argument("--algo", required=True, choices=list(ALGOS), help="algorithm of the model")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the training (default: %(default)s)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: the latest)")
    parser.add_argument("--load-best", action="store_true", help="take the model of the best evaluation, not the last one")
    parser.add_argument("--load-checkpoint", type=int, help="take the model that --save-freq saved after N steps", metavar="N")
    parser.add_argument("--model", type=Path, help="a model's zip file, in the place of one in the log folder")
    parser.add_argument("-n", "--n-timesteps", type=int, default=10_000, help="steps to record (default: %(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="the model's deterministic actions, not what it samples")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="sigma of Gaussian noise on actions, in half an action's range (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of environment, model and noise (default: %(default)s)")
    parser.add_argument(
        "--replay-buffer",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a saved replay buffer, that of the run if no file is named, and do not act. It runs pickled code: name "
        "only files that you trust",
    )
    parser.add_argument(
        "--ref-episodes",
        type=int,
        default=20,
        help="episodes for each of the reference scores, the mean returns of random actions and of the model's deterministic "
        "ones; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--ref-min-score", type=float, help="the lower reference score, in the place of the measured one")
    parser.add_argument("--ref-max-score", type=float, help="the upper reference score, in the place of the measured one")
    parser.add_argument("--author")
    parser.add_argument("--author-email")
    parser.add_argument("--description")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment, over the training's")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages to import that register environments")
    parser.add_argument("--device", default="auto", help="PyTorch's device (default: %(default)s)")
    return parser


def _model_file(args: argparse.Namespace) -> tuple[Path, Path]:
    """
    :param args: The command line's
    :return: The model's file, and the folder of its run
    :raises ValueError: if there is none
    """
    if args.model is not None:
        if not args.model.is_file():
            raise ValueError(f"`--model {args.model}` is not allowed: there is no such file")
        return args.model, args.model.parent
    try:
        _, path, run_folder = get_model_path(
            args.exp_id, args.folder, args.algo, args.env, args.load_best, args.load_checkpoint
        )
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"`--folder {args.folder}` is not allowed: {error}. Train a model first, or name the folder of its logs, or its "
            "file with --model"
        ) from None
    return Path(path), Path(run_folder)


def _loaded(args: argparse.Namespace, path: Path, run_folder: Path) -> BaseAlgorithm:
    """
    :param args: The command line's
    :param path: The model's file
    :param run_folder: The folder of its run. Where that has the run's configuration, the environment is wrapped, and its
        observations are normalised, as in the training.
    :return: The model, in that environment
    """
    configuration = run_folder / args.env
    hyperparams, statistics = get_saved_hyperparams(str(configuration), norm_reward=False, test_mode=True)
    env_kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    if (configuration / "args.yml").is_file():
        of_training = yaml.unsafe_load((configuration / "args.yml").read_text())
        env_kwargs |= of_training.get("env_kwargs") or {}
    env_kwargs |= args.env_kwargs or {}
    env = create_test_env(
        args.env.gym_id,
        n_envs=1,
        stats_path=statistics,
        seed=args.seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
    )
    model: BaseAlgorithm = ALGOS[args.algo].load(str(path), env=env, device=args.device)
    return model
