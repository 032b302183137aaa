"""Units on a Ray cluster. Its nodes need the packages; the code travels from this checkout, the files come back to it."""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import ray
import ray.exceptions

from benchmarks.learning.local import ONE_THREAD, REPOSITORY, Outcome
from benchmarks.learning.matrix import Budget, Unit
from benchmarks.learning.store import unit_path
from sb3_bn_ddpg.common.atomic_files import atomic_write

LEFT_BEHIND = ["/.git/", "/docs/", "/tests/", "/benchmarks/learning/results/", "/benchmarks/speed/results/"]
"""Of the checkout, what no unit needs. Ray itself leaves out what git ignores."""


# One process a unit, as on one machine: its clocks, its generators and its memory are its own. Ray starts a task anew
# if its node or its process dies (not forever: a unit may be what kills it); one that raises an error is not tried again.
@ray.remote(num_cpus=1, max_retries=20, retry_exceptions=False, max_calls=1)
def run_remotely(unit: Unit, budget: Budget, nice: int) -> tuple[str, float]:
    """
    :param unit: The unit
    :param budget: The extent of the run
    :param nice: How much to give way to other processes, 0 to 19
    :return: Its file's text, and how many seconds it took
    """
    from benchmarks.learning.unit import run

    os.nice(nice)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        return run(unit, budget, Path(folder)).read_text(), time.monotonic() - start


def run_units(units: Iterable[Unit], budget: Budget, folder: Path, address: str, nice: int) -> Iterator[Outcome]:
    """
    Run units on all cores of a cluster. A unit's file is written when its text arrives, so exactly once. Leaving the loop
    early cancels what runs.

    :param units: The units, started in this order
    :param budget: The extent of the run
    :param folder: The results, on this machine
    :param address: The cluster's, ``"auto"`` for the one that this machine belongs to
    :param nice: How much to give way to other processes, 0 to 19
    :return: The units' outcomes, in the order in which they end
    """
    environment = {
        "working_dir": str(REPOSITORY),
        "excludes": LEFT_BEHIND,
        "env_vars": ONE_THREAD,
    }
    ray.init(address=address, runtime_env=environment, log_to_driver=False)
    try:
        waiting = {run_remotely.remote(unit, budget, nice): unit for unit in units}
        while waiting:
            (reference,), _ = ray.wait(list(waiting))
            unit = waiting.pop(reference)
            try:
                text, seconds = ray.get(reference)
            except ray.exceptions.RayError as error:
                yield Outcome(unit, 0.0, str(error))
                continue
            with atomic_write(unit_path(folder, unit)) as file:
                file.write(text.encode())
            yield Outcome(unit, seconds, "")
    finally:
        ray.shutdown()  # ends the job, and with it the tasks that run or wait
