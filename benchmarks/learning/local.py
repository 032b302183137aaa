"""Units in processes of this machine, each with one thread."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks.learning.matrix import Budget, Unit
from benchmarks.learning.store import is_done
from benchmarks.speed.worker import thread_variables

REPOSITORY = Path(__file__).parents[2]
POLL_SECONDS = 0.2
ONE_THREAD = thread_variables(1)


class Outcome(NamedTuple):
    """
    :param unit: A unit that ended
    :param seconds: How long it took
    :param error: The end of its output if it failed, else empty
    """

    unit: Unit
    seconds: float
    error: str


def unit_command(unit: Unit, budget: Budget, folder: Path) -> list[str]:
    """
    :param unit: The unit
    :param budget: The extent of the run
    :param folder: The results
    :return: The command line
    """
    command = [sys.executable, "-m", "benchmarks.learning.unit", "--write", "--results", str(folder)]
    command += ["--task", unit.task, "--variant", unit.variant, "--seed", str(unit.seed)]
    for option, value in zip(("--steps", "--every", "--episodes"), astuple(budget.of(unit.variant)), strict=True):
        command += [option, str(value)]
    return command


def unit_environment() -> dict[str, str]:
    """
    :return: This process's environment variables, with one thread for everything and this checkout first
    """
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return os.environ | ONE_THREAD | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Process:
    """
    A running unit.

    :param unit: The unit
    :param command: Its command line
    :param nice: How much to give way to other processes, 0 to 19
    """

    def __init__(self, unit: Unit, command: list[str], nice: int) -> None:
        self.unit, self.start = unit, time.monotonic()
        self.output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  # outlives this call
        # A session of its own: Ctrl-C reaches the runner alone, which then ends its units in an orderly way
        self.popen = subprocess.Popen(
            command, cwd=REPOSITORY, env=unit_environment(), stdout=self.output, stderr=self.output, start_new_session=True
        )
        try:
            niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)  # relative, as the command nice has it
            os.setpriority(os.PRIO_PROCESS, self.popen.pid, niceness)
            give_way(self.popen.pid, niceness)
        except BaseException:  # Ctrl-C: nobody would know of the process
            self.ask_to_end()
            self.end()
            raise

    def outcome(self) -> Outcome | None:
        """
        :return: How it ended, None if it still runs
        """
        code = self.popen.poll()
        if code is None:
            return None
        self.output.seek(0)
        error = f"exit code {code}: {self.output.read()[-2000:]}" if code else ""
        self.output.close()
        return Outcome(self.unit, time.monotonic() - self.start, error)

    def ask_to_end(self) -> None:
        """Ask it to remove its unfinished file and end: once, for a second signal would interrupt that."""
        self.popen.terminate()

    def end(self) -> None:
        """Wait until it has ended as it was asked to; insist after a while."""
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.output.close()


def give_way(process: int, niceness: int) -> None:
    """
    Linux shares time out among sessions before it looks at their processes.

    :param process: A process, whose session gives way to others
    :param niceness: How much, as for a process
    """
    for _ in range(30):
        try:
            Path(f"/proc/{process}/autogroup").write_text(str(niceness))
        except BlockingIOError:  # other users than root may do so ten times a second, together
            time.sleep(0.1)
        except OSError:  # no such thing here, or no such process any more
            return
        else:
            return


def run_units(units: Iterable[Unit], budget: Budget, folder: Path, workers: int, nice: int) -> Iterator[Outcome]:
    """
    Run units, as many at a time as there are workers, but for those that are stored when their turn comes. Leaving the loop
    early ends those that run.

    :param units: The units
    :param budget: The extent of the run
    :param folder: The results
    :param workers: Number of processes
    :param nice: How much to give way to other processes, 0 to 19
    :return: The units' outcomes, in the order in which they end
    """
    waiting = (unit for unit in units if not is_done(folder, unit, budget))  # by another runner
    running: list[Process] = []
    try:
        while True:
            while len(running) < workers and (unit := next(waiting, None)) is not None:
                running.append(Process(unit, unit_command(unit, budget, folder), nice))
            if not running:
                return
            for process in list(running):
                outcome = process.outcome()
                if outcome is not None:
                    running.remove(process)
                    yield outcome
            time.sleep(POLL_SECONDS)
    finally:
        # A second signal would leave some of them running, for hours
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        for process in running:
            process.ask_to_end()
        for process in running:
            process.end()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
