"""``bn-ddpg`` and ``python -m sb3_bn_ddpg``: RL Zoo's own scripts, with this package's algorithms among theirs."""

import argparse
import importlib
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from sb3_bn_ddpg import __version__
from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.pixels.dm_control import check_suite, import_suite


class Command(NamedTuple):
    """One of the Zoo's scripts."""

    help: str
    module: str
    function: str | None
    """The script's main function; None if the module itself is the script"""
    algo_flag: str | None
    """The option that names the algorithm"""


COMMANDS = {
    "train": Command("train a model, or search hyperparameters with --optimize", "rl_zoo3.train", "train", "--algo"),
    "enjoy": Command("run a trained model", "rl_zoo3.enjoy", "enjoy", "--algo"),
    "record_video": Command("film a trained model", "rl_zoo3.record_video", None, "--algo"),
    "record_training": Command("film a model's checkpoints one after another", "rl_zoo3.record_training", None, "--algo"),
    "push_to_hub": Command("upload a trained model to the Hugging Face hub", "rl_zoo3.push_to_hub", None, "--algo"),
    "load_from_hub": Command("download a model from the Hugging Face hub", "rl_zoo3.load_from_hub", None, "--algo"),
    "plot_train": Command("plot the returns of training episodes", "rl_zoo3.plots", "plot_train", "--algo"),
    "all_plots": Command("plot evaluations of several algorithms", "rl_zoo3.plots", "all_plots", "--algos"),
    "plot_from_file": Command("plot what all_plots has saved", "rl_zoo3.plots", "plot_from_file", None),
    "record-dataset": Command(
        "write a Minari dataset of what a trained model does", "sb3_bn_ddpg.zoo.recording", "main", "--algo"
    ),
    "benchmark": Command("evaluate all trained models in a folder", "rl_zoo3.benchmark", None, None),
}


def main(argv: list[str] | None = None) -> None:
    """
    Run a command.

    :param argv: The command line (if None: the process's)
    :raises SystemExit: if the command line or a file that it names is wrong, RL Zoo is missing, or help was asked for
    """
    argv = sys.argv[1:] if argv is None else argv
    command_line = _top_parser().parse_args(argv[:1])
    name, arguments = command_line.command, argv[1:]
    try:
        zoo = importlib.import_module("sb3_bn_ddpg.zoo")
    except ImportError as error:
        sys.exit(str(error))
    command = COMMANDS[name]
    wants_help = not {"-h", "--help"}.isdisjoint(arguments)
    if name == "train":
        arguments = _train_options(arguments, zoo, wants_help)
    else:
        zoo.register()
    if wants_help and command.algo_flag is not None:
        own = ", ".join(zoo.ALGORITHMS)
        print(f"{command.algo_flag} is {zoo.ALGO} if you leave it out. Added to the Zoo's: {own}. The Zoo's own help:\n")
    if command.algo_flag is not None:
        arguments = [command.algo_flag, zoo.ALGO, *arguments]  # of an option given twice, the last one counts
    if any(argument.removeprefix("--env=").startswith("dm_control/") for argument in arguments):
        try:
            check_suite("dm-control")
        except ImportError as error:
            sys.exit(str(error))
        import_suite()
    if name == "record_training" and not wants_help and shutil.which("ffmpeg") is None:
        sys.exit("record_training needs the program `ffmpeg`, which is not installed")
    sys.argv = [f"bn-ddpg {name}", *arguments]
    script_fixes = importlib.import_module("sb3_bn_ddpg.zoo.script_fixes")
    script_fixes.provide_generate_metadata()
    with ExitStack() as fixes:
        fixes.enter_context(script_fixes.own_child_processes())
        fixes.enter_context(script_fixes.names_of_folders())
        fixes.enter_context(script_fixes.own_model_card())
        fixes.enter_context(script_fixes.optional_hub_files())
        if name in ("enjoy", "record_video", "record-dataset"):
            fixes.enter_context(script_fixes.small_replay_buffer())
        try:
            if name == "benchmark":
                script_fixes.run_benchmark(command.module)
            elif command.function is None:
                runpy.run_module(command.module, run_name="__main__")
            else:
                script: Callable[[], None] = getattr(importlib.import_module(command.module), command.function)
                script()
        except ImportError as error:
            if "pip install sb3-bn-ddpg[" not in str(error):
                raise
            sys.exit(f"bn-ddpg {name}: {error}")
        except ValueError as error:
            # "`tau=7` is not allowed: ..." says what is wrong: where it was found helps nobody
            if not isinstance(error, FileError) and re.match("`.*is not allowed", str(error)) is None:
                raise
            sys.exit(f"bn-ddpg {name}: {error}")


def _top_parser() -> argparse.ArgumentParser:
    """The parser of the first argument."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="bn-ddpg",
        usage="bn-ddpg [-h] [--version] command ...",
        # Without the table of algorithms, which needs RL Zoo
        description="RL Zoo's scripts with all their options, for algorithms with batch normalisation.\n"
        "If you leave out --algo, it is the one that a command's help names; the Zoo's others are a word away (--algo ddpg).",
        epilog=f"commands:\n{commands}\n\n`bn-ddpg command --help` shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sb3-bn-ddpg {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="what to do: see below")
    return parser


def _train_options(arguments: list[str], zoo: Any, wants_help: bool) -> list[str]:
    """
    Read the options that ``bn-ddpg train`` has beyond the Zoo's, and register accordingly.

    :param arguments: The arguments of ``train``
    :param zoo: The module ``sb3_bn_ddpg.zoo``
    :param wants_help: Whether to print their help
    :return: The arguments for the Zoo
    """
    parser = argparse.ArgumentParser(prog="bn-ddpg train", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    own = parser.add_argument_group("options of bn-ddpg")
    own_algorithms = ", ".join(zoo.ALGORITHMS)
    profiles = "; ".join(f"{algo}: {', '.join(row.profiles)}" for algo, row in zoo.ALGORITHMS.items())
    own.add_argument(
        "--profile", help=f"the hyperparameters that the package ships for the algorithm, by default the first ({profiles})"
    )
    recovery = zoo.WorkerRecovery()
    own.add_argument(
        "--heartbeat-interval",
        type=int,
        default=recovery.heartbeat_interval,
        metavar="SECONDS",
        help="how often a running trial of a search says that it is alive; one silent for twice as long counts as failed "
        "(databases only, default: %(default)s)",
    )
    own.add_argument(
        "--max-retries",
        type=int,
        default=recovery.max_retries,
        metavar="N",
        help="how often the trial of a dead worker is tried again (databases only, default: %(default)s)",
    )
    own.add_argument(
        "--checkpoint-freq",
        type=int,
        default=zoo.CHECKPOINT_FREQ,
        metavar="STEPS",
        help="how often to write the run's checkpoint.zip, replay buffer included, from which `-i .../checkpoint.zip` resumes "
        f"to the same numbers; -1 for never ({own_algorithms} only, default: %(default)s)",
    )
    own.add_argument(
        "--new-episode",
        action="store_true",
        help=f"begin a new episode where `-i .../checkpoint.zip` would go on in the middle of one ({own_algorithms} only)",
    )
    own.add_argument(
        "--dataset",
        metavar="DATASET",
        help="what an algorithm for stored data learns from: the id of a Minari dataset, or the path of a saved replay buffer "
        "(which runs pickled code: name only files that you trust) or of an .npz file of arrays. For other algorithms it is "
        "demonstrations, from which a part of each minibatch comes",
    )
    own.add_argument(
        "--online-steps",
        type=int,
        default=0,
        metavar="N",
        help="environment steps after the gradient steps of an algorithm for stored data, with half of each minibatch from "
        "the dataset (default: %(default)s)",
    )
    options, rest = parser.parse_known_args(arguments)
    if wants_help:
        print(parser.format_help())
    try:
        recovery = zoo.WorkerRecovery(options.heartbeat_interval, options.max_retries)
        zoo.register(recovery, options.checkpoint_freq, options.new_episode, options.dataset, options.online_steps)
    except ValueError as error:
        parser.error(str(error))
    if options.profile is None:
        return rest
    # The Zoo's abbreviations of the two options it shares a say with
    others = argparse.ArgumentParser(add_help=False)
    others.add_argument("--algo", default=zoo.ALGO)
    others.add_argument("-conf", "--conf-file")
    known, _ = others.parse_known_args(rest)
    if known.algo not in zoo.ALGORITHMS:
        parser.error(f"argument --profile: not allowed with --algo {known.algo}: only {own_algorithms} have profiles")
    if options.profile not in zoo.ALGORITHMS[known.algo].profiles:
        choices = ", ".join(map(repr, zoo.ALGORITHMS[known.algo].profiles))
        parser.error(f"argument --profile: invalid choice: {options.profile!r}: {known.algo} has {choices}")
    if known.conf_file is not None:
        parser.error("argument --profile: not allowed with argument -conf/--conf-file")
    return ["--conf-file", str(zoo.profile_path(options.profile, known.algo)), *rest]
