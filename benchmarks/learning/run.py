"""The learning benchmark: ``python -m benchmarks.learning.run`` runs what is missing, then draws everything anew."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from benchmarks.learning import local
from benchmarks.learning.matrix import ALL_GROUPS, GROUPS, LONG_GROUPS, VARIANTS, Budget, Unit
from benchmarks.learning.store import PAGE, is_done
from benchmarks.learning.tasks import ALL_TASKS
from benchmarks.learning.unit import add_budget_arguments, budget_of
from benchmarks.speed.machine import cores


def main() -> None:
    """Parse the command line, run, report; exit code 1 if a unit failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--group",
        nargs="+",
        choices=ALL_GROUPS,
        default=[*GROUPS, *LONG_GROUPS],
        metavar="GROUP",
        help=f"{', '.join(ALL_GROUPS)} (default: all but those that learn offline or look for a profile)",
    )
    parser.add_argument("--task", nargs="+", choices=ALL_TASKS, default=list(ALL_TASKS), metavar="TASK")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seed", nargs="+", type=int, metavar="SEED", help="only these")
    parser.add_argument("--workers", type=int, default=cores(), help="units at a time, of one thread each")
    parser.add_argument("--nice", type=int, default=0, choices=range(20), metavar="0-19", help="give way to other processes")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster ('auto': the one that runs here)")
    parser.add_argument("--list", action="store_true", help="only say what is missing")
    parser.add_argument(
        "--page",
        type=Path,
        default=PAGE,
        help="the page of results in detail that is drawn anew at the end, with the other pages of results beside it",
    )
    parser.add_argument("--no-report", dest="report", action="store_false", help="draw nothing at the end")
    add_budget_arguments(parser)
    arguments = parser.parse_args()
    budget = budget_of(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as by nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # an exception, so that running units are ended

    units = [
        unit
        for unit in missing(arguments.group, budget, arguments.results)
        if unit.task in arguments.task
        and unit.variant in arguments.variant
        and (arguments.seed is None or unit.seed in arguments.seed)
    ]
    if arguments.list:
        print("\n".join(map(str, units)))
        return
    try:
        failed = run(units, budget, arguments)
        if arguments.report:
            from benchmarks.learning import long_runs, overview, report  # their libraries take memory, which runs may need
            from benchmarks.offline import report as offline_report

            report.write(arguments.results, arguments.page, budget)
            overview.write(arguments.results, arguments.page.with_name(overview.NAME), budget)
            long_runs.write(arguments.results, arguments.page.with_name(long_runs.NAME), budget)
            offline_report.write(arguments.results, arguments.page.with_name(offline_report.NAME), budget)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(bool(failed))


def missing(groups: Sequence[str], budget: Budget, folder: Path) -> Iterator[Unit]:
    """
    :param groups: Names of groups
    :param budget: The extent of the run
    :param folder: The results
    :return: The groups' units that are not stored as the matrix has them, each once
    """
    units = dict.fromkeys(unit for group in groups for unit in ALL_GROUPS[group].units())
    return (unit for unit in units if not is_done(folder, unit, budget))


def run(units: Sequence[Unit], budget: Budget, arguments: argparse.Namespace) -> list[Unit]:
    """
    :param units: The units
    :param budget: The extent of the run
    :param arguments: The command line
    :return: Those that failed
    """
    if arguments.ray:
        from benchmarks.learning import ray_cluster

        outcomes = ray_cluster.run_units(units, budget, arguments.results, arguments.ray, arguments.nice)
    else:
        outcomes = local.run_units(units, budget, arguments.results, arguments.workers, arguments.nice)
    failed = []
    with tqdm(total=len(units), desc="units", smoothing=0) as progress:
        for outcome in outcomes:
            if outcome.error:
                failed.append(outcome.unit)
            took = timedelta(seconds=round(outcome.seconds))
            progress.write(f"{outcome.unit}: {outcome.error or f'done in {took}'}")
            progress.update()
    return failed


if __name__ == "__main__":
    main()
