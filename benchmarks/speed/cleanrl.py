"""
Steps/s of ``learn()`` beside CleanRL's DDPG, which is a script, not a class: it runs as it is, from a clone of its repository.

``pip install tyro; python -m benchmarks.speed.cleanrl path/to/cleanrl``. All have CleanRL's networks of 256 and 256 units and
its batch of 256, on two threads, one update a step, each in a new process. CleanRL updates actor and target networks in every
second one, if not asked otherwise; both are measured.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch as th
from rich.console import Console
from rich.table import Table

from benchmarks.speed.contenders import BASELINE, COMPILED, CONTENDERS, OURS
from benchmarks.speed.sb3_subject import SB3Subject
from benchmarks.speed.subject import LEARN_ENV, ModelSpec

SPEC = ModelSpec(net_arch=(256, 256), batch_size=256, n_envs=0)
STEPS = 900
"""CleanRL's script is for gymnasium 0.29: under 1.x it stops with an error where the first episode ends, after 1000 steps."""
THREADS = 2
WARM_UP = 200
"""Steps that are not timed; half of them random ones, without updates."""
RESULTS = Path(__file__).parent / "results" / "cleanrl.csv"


def rate_of_script(clone: Path, policy_frequency: int) -> float:
    """
    :param clone: A clone of CleanRL's repository
    :param policy_frequency: Updates of the critic for each of the actor
    :return: Steps/s between the lines that the script prints every 100 steps, the first of them left out
    :raises subprocess.CalledProcessError: if the script fails
    """
    command = [sys.executable, "-u", str((clone / "cleanrl" / "ddpg_continuous_action.py").resolve()), "--no-cuda"]
    options = dict(env_id=LEARN_ENV, learning_starts=100, total_timesteps=STEPS + 1, policy_frequency=policy_frequency)
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    times = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | dict(PYTHONPATH=str(clone.resolve()), OMP_NUM_THREADS=str(THREADS))
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("SPS:"):
                    times.append(time.perf_counter())
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    return 100 * (len(times) - 1) / (times[-1] - times[0])


def rate_of_class(name: str) -> float:
    """
    :param name: A contender with SB3's interface
    :return: Steps/s of its ``learn()``
    """
    th.set_num_threads(THREADS)
    contender = CONTENDERS[name]
    subject = SB3Subject(contender.imports, contender.algorithm, contender.kwargs)
    subject.construct(SPEC)
    subject.learn(WARM_UP)
    start = time.perf_counter()
    subject.learn(STEPS - WARM_UP)
    return (STEPS - WARM_UP) / (time.perf_counter() - start)


def in_new_process(function: Callable[[str], float], argument: str) -> float:
    """
    :param function: A function of this module
    :param argument: Its argument
    :return: What it returns
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, argument).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of https://github.com/vwxyzjn/cleanrl")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    contenders: dict[str, Callable[[], float]] = {
        CONTENDERS[name].label: lambda name=name: in_new_process(rate_of_class, name) for name in (BASELINE, OURS, COMPILED)
    }
    contenders["CleanRL DDPG"] = lambda: rate_of_script(arguments.clone, 2)
    contenders["CleanRL DDPG, an actor update a step"] = lambda: rate_of_script(arguments.clone, 1)
    rates: dict[str, list[float]] = {label: [] for label in contenders}
    for number in range(arguments.rounds):
        turn = number % len(contenders)
        for label in [*contenders][turn:] + [*contenders][:turn]:
            rates[label].append(contenders[label]())
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rates)
        writer.writerows([f"{rate:.1f}" for rate in row] for row in zip(*rates.values(), strict=True))
    baseline = rates[CONTENDERS[BASELINE].label]
    table = Table("", "steps/s, median", f"over {CONTENDERS[BASELINE].label}, median of the rounds' ratios")
    for label, values in rates.items():
        ratio = statistics.median(value / base for value, base in zip(values, baseline, strict=True))
        table.add_row(label, f"{statistics.median(values):.0f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
