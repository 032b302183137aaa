"""
One unit: train, evaluate as it goes, write a CSV file.

``python -m benchmarks.learning.unit --task HalfCheetah-v5 --variant sb3_ddpg --seed 0`` runs a stored unit again and compares
it with its file to the bit; exit code 1 if they differ. The runner adds ``--write``.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.learning.matrix import VARIANTS, Budget, Unit
from benchmarks.learning.store import RESULTS, UnitFile, differences, read_unit
from benchmarks.learning.tasks import ALL_TASKS


def run(unit: Unit, budget: Budget, folder: Path, device: str = "cpu") -> Path:
    """
    Run a unit. Its file has a name of its own until the unit is complete.

    A long unit goes on where an earlier process was stopped, to the same numbers, if it finds the same sources, versions and
    kind of machine; else it begins anew. It stores what its critic's weights come to. And it takes denormal numbers for zero:
    on some tasks the paper's weight decay makes them of most of the critic's weights, and a step then takes five times as
    long. (That changes roundings, so shorter units, stored before, do without.)

    :param unit: The unit
    :param budget: Steps and evaluations
    :param folder: The results
    :param device: ``"cpu"`` or ``"cuda"``
    :return: The unit's file
    """
    # Here, so that --help and the runner do without torch
    from benchmarks.learning.algorithms import build_or_resume
    from benchmarks.learning.evaluation import Evaluator, RandomPolicy
    from benchmarks.learning.recorder import Recorder
    from benchmarks.offline.models import build_offline

    variant = VARIANTS[unit.variant]
    budget = budget.of(unit.variant)
    with UnitFile(folder, unit, budget, device) as file:
        if variant.algorithm == "random":
            evaluator = Evaluator(unit.task, budget.episodes)
            policy = RandomPolicy(evaluator.env.action_space, unit.seed)
            file.add(dict(step=0) | evaluator.evaluate(policy)._asdict() | dict(wall_seconds=0.0, cpu_seconds=0.0))
        else:
            learns_offline = "dataset" in variant.kwargs
            model: Any = build_offline(unit, file, device) if learns_offline else build_or_resume(unit, file, device)
            recorder = Recorder(file, unit.task, budget, weights=variant.is_long)
            model.set_logger(recorder.means)
            assert budget.steps is not None
            with without_denormals() if variant.is_long else nullcontext():
                left = budget.steps - model.num_timesteps
                model.learn(left, recorder, log_interval=sys.maxsize, reset_num_timesteps=left == budget.steps)
    return file.path


@contextmanager
def without_denormals() -> Iterator[None]:
    """Within it, PyTorch's and Numba's code of this thread takes denormal numbers for zero."""
    import torch as th

    th.set_flush_denormal(True)
    try:
        yield
    finally:
        th.set_flush_denormal(False)


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Gets the options that shorten a run and say where results lie
    """
    default = Budget()
    parser.add_argument("--steps", type=int, help="environment steps of a unit (default: the variant's)")
    parser.add_argument("--every", type=int, help="steps between evaluations (default: the variant's)")
    parser.add_argument("--episodes", type=int, default=default.episodes, help="episodes of an evaluation")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")


def budget_of(arguments: argparse.Namespace) -> Budget:
    """
    :param arguments: A command line with the options of :func:`add_budget_arguments`
    :return: The extent of the runs
    """
    return Budget(arguments.steps, arguments.every, arguments.episodes)


def _known_variant(name: str) -> str:
    if name not in VARIANTS:  # all of them would be a page
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r}: no such variant in benchmarks/learning/contenders.py")
    return name


def main() -> None:
    """Parse the command line; run and write, or run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=ALL_TASKS, required=True, metavar="TASK")
    parser.add_argument("--variant", type=_known_variant, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--write", action="store_true", help="write the result instead of comparing it with the stored one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for the networks (default: %(default)s)")
    add_budget_arguments(parser)
    arguments = parser.parse_args()
    unit = Unit(arguments.task, arguments.variant, arguments.seed)
    budget = budget_of(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the unfinished file is removed, or whole

    if arguments.write:
        print(run(unit, budget, arguments.results, arguments.device))
        return
    stored = read_unit(arguments.results, unit)
    if stored is None:
        sys.exit(f"Nothing is stored of {unit} in {arguments.results}: run it with --write")
    with tempfile.TemporaryDirectory() as folder:
        run(unit, budget, Path(folder), arguments.device)
        again = read_unit(Path(folder), unit)
    assert again is not None
    found = differences(stored, again)
    print("\n".join(found) if found else f"{unit}: the stored numbers, to the bit")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
