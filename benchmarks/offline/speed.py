"""
Gradient steps a second of IQL and TD3+BC beside d3rlpy's: ``make bench-offline-speed``.

One thread, one core, the authors' networks, HalfCheetah's dimensions. The contenders take turns, and each step rate is divided
by that of d3rlpy in the same round; the table has the medians of these ratios, and their range. Where the machine does other
things too, seconds of the clock count these as well; seconds of the processor that a contender itself took do not.

``learning`` is ``learn`` and d3rlpy's ``fit``, with sampling and logging. ``update`` is the step alone, on one minibatch.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.offline.contenders import CONTENDERS
from benchmarks.speed.worker import process_variables

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results"
KINDS = ("learning", "update")


class Worker:
    """
    The process of a virtual environment, with its contenders.

    :param environment: Name of the environment
    :param core: The processor core that it runs on
    """

    def __init__(self, environment: str, core: int) -> None:
        python = sys.executable if environment == "main" else str(FOLDER / "envs" / environment / "bin" / "python")
        pinned = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
        self.process = subprocess.Popen(
            [*pinned, python, "-m", "benchmarks.offline.speed_worker", environment],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=process_variables(1, "cpu") | dict(PYTHONPATH=str(ROOT)),
            text=True,
        )
        self.versions: dict[str, str] = self._answer()

    def steps(self, name: str, kind: str, count: int) -> dict[str, float]:
        """
        :param name: Name of the contender
        :param kind: One of :data:`KINDS`
        :param count: Number of gradient steps
        :return: The seconds that they took: ``wall`` and ``cpu``
        """
        assert self.process.stdin is not None
        print(json.dumps([name, kind, count]), file=self.process.stdin, flush=True)
        taken: dict[str, float] = self._answer()
        return taken

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measured(names: list[str], rounds: int, seconds: float, core: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """
    :param names: The contenders
    :param rounds: Number of rounds
    :param seconds: Processor time of one measurement
    :param core: The processor core
    :return: A row for each measurement, and the versions of the packages
    """
    workers = {environment: Worker(environment, core) for environment in ("main", "d3rlpy")}
    worker_of = {name: workers[CONTENDERS[name].environment] for name in names}
    rows = []
    try:
        for kind in KINDS:
            counts = {}
            for name, worker in worker_of.items():
                worker.steps(name, kind, 40)  # the first ones are slower
                counts[name] = max(int(40 * seconds / worker.steps(name, kind, 40)["cpu"]), 10)
            for number in range(rounds):
                start = number % len(names)  # nobody always runs after the same neighbour
                for name in names[start:] + names[:start]:
                    taken = worker_of[name].steps(name, kind, counts[name])
                    rates = {f"{clock}_steps_per_second": round(counts[name] / taken[clock], 2) for clock in ("wall", "cpu")}
                    rows.append(dict(kind=kind, contender=name, round=number, steps=counts[name], **rates))
    finally:
        for worker in workers.values():
            worker.close()
    return rows, workers["d3rlpy"].versions | workers["main"].versions


def table(rows: list[dict[str, Any]]) -> str:
    """
    :param rows: The measurements
    :return: A table in Markdown: the medians of the rates, and of the ratios of each round
    """
    rates = {(row["kind"], row["contender"], int(row["round"])): row for row in rows}
    names = [name for name in CONTENDERS if any(key[1] == name for key in rates)]
    lines = [
        "| | | steps/s, clock | steps/s, processor | times d3rlpy's, clock | times d3rlpy's, processor |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for kind in KINDS:
        for name in names:
            numbers = sorted(key[2] for key in rates if key[:2] == (kind, name))
            cells = []
            for clock in ("wall", "cpu"):
                column = f"{clock}_steps_per_second"
                cells.append(f"{statistics.median(float(rates[kind, name, number][column]) for number in numbers):.0f}")
            for clock in ("wall", "cpu"):
                column, peer = f"{clock}_steps_per_second", CONTENDERS[name].peer
                pairs = [
                    float(rates[kind, name, number][column]) / float(rates[kind, peer, number][column]) for number in numbers
                ]
                text = f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
                cells.append("" if name == peer else text)
            lines.append(f"| {kind} | {CONTENDERS[name].label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the rates and their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds")
    parser.add_argument("--seconds", type=float, default=1.0, help="processor time of one measurement")
    parser.add_argument("--core", type=int, default=1, help="processor core that all contenders run on, in turns")
    arguments = parser.parse_args()
    rows, versions = measured(list(CONTENDERS), arguments.rounds, arguments.seconds, arguments.core)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "speed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    (RESULTS / "speed.md").write_text(
        f"{text}\n\n{arguments.rounds} rounds of {arguments.seconds} s; the range is that of the rounds. "
        f"{packages}. Python {platform.python_version()}; load of the machine at the end ({os.cpu_count()} cores): {load}.\n"
    )
    print(text)


if __name__ == "__main__":
    main()
