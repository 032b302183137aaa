"""One contender in a process of its own, which does what the parent asks for and says how long it took."""

import gc
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.speed.contenders import CONTENDERS, PACKAGES, Contender

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path(__file__).parent / "envs"
KERNEL_VARIABLES = {
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
}
"""Who sets them wants the numbers of another processor; what an update takes is measured with this one's own kernels."""


class WorkerError(RuntimeError):
    """What went wrong in a worker."""


class Worker:
    """
    The parent's end of a worker.

    :param name: Name of the contender
    :param threads: Number of threads and of processor cores that it may use
    :param device: ``"cpu"`` or ``"cuda"``
    """

    def __init__(self, name: str, threads: int, device: str = "cpu") -> None:
        self.name = name
        self.folder = TemporaryDirectory()
        self.process = subprocess.Popen(
            [python_of(CONTENDERS[name]), "-m", "benchmarks.speed.worker", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder.name,  # MuJoCo leaves its log where it runs
            env=process_variables(threads, device) | {"PYTHONPATH": str(ROOT)},
            text=True,
        )

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """
        :param request: Name of a method of :class:`Requests`
        :param arguments: Its arguments
        :return: Its result, and ``seconds``
        :raises WorkerError: if it failed
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps([request, arguments]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.name} ended with code {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.name}: {reply['error']}")
        return reply

    def close(self) -> None:
        """End the process."""
        self.process.communicate()  # closes its input, at which it ends
        self.folder.cleanup()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def python_of(contender: Contender) -> str:
    """
    :param contender: The contender
    :return: The interpreter of its virtual environment
    """
    if contender.environment == "main":
        return sys.executable
    return str(ENVIRONMENTS / contender.environment / "bin" / "python")


def process_variables(threads: int, device: str) -> dict[str, str]:
    """
    :param threads: Number of threads
    :param device: ``"cpu"`` or ``"cuda"``
    :return: This process's environment variables, with those that settle threads and device, without those that choose kernels
    """
    kept = {name: value for name, value in os.environ.items() if name not in KERNEL_VARIABLES}
    return kept | thread_variables(threads) | device_variables(device)


def thread_variables(threads: int) -> dict[str, str]:
    """
    :param threads: Number of threads
    :return: Environment variables that hold every library to it
    """
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC"]
    return {name: str(threads) for name in names}


def device_variables(device: str) -> dict[str, str]:
    """
    :param device: ``"cpu"`` or ``"cuda"``
    :return: Environment variables by which every library takes it of itself; JAX must leave the others their memory
    """
    if device == "cuda":
        return {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Requests:
    """
    What a parent can ask for. Each answers with figures of its own; :func:`main` adds the seconds it took.

    :param contender: The contender
    """

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.subject: Any = None

    def import_library(self) -> None:
        """Import what a user of the contender imports."""
        importlib.import_module(self.contender.imports)

    def construct(self, **spec: Any) -> dict[str, float]:
        """
        :param spec: The fields of :class:`~benchmarks.speed.subject.ModelSpec` that differ from their defaults
        :return: The seconds of the construction alone, without imports
        """
        module_name, class_name = self.contender.subject.split(":")
        module = importlib.import_module(f"benchmarks.speed.{module_name}")
        from benchmarks.speed.subject import ModelSpec

        self.subject = None  # frees the last model
        gc.collect()
        subject = getattr(module, class_name)(self.contender.imports, self.contender.algorithm, self.contender.kwargs)
        importlib.import_module(self.contender.imports)
        sizes = ModelSpec(**spec | {"net_arch": tuple(spec.get("net_arch", ModelSpec.net_arch))})
        start = time.perf_counter()
        subject.construct(sizes)
        seconds = time.perf_counter() - start
        self.subject = subject
        return {"seconds": seconds}

    def fill(self) -> None:
        """Fill the replay buffer."""
        self.subject.fill()

    def update(self, count: int, batch_size: int, per_call: int = 1) -> None:
        """Updates: see :meth:`~benchmarks.speed.subject.Subject.update`."""
        self.subject.update(count, batch_size, per_call)

    def breakdown(self, count: int, batch_size: int) -> dict[str, float]:
        """Seconds by part of an update: see :func:`~benchmarks.speed.breakdown.seconds_by_part`."""
        from benchmarks.speed.breakdown import seconds_by_part

        return seconds_by_part(lambda updates: self.subject.update(updates, batch_size, 1), count)

    def learn(self, count: int) -> None:
        """Environment steps: see :meth:`~benchmarks.speed.subject.Subject.learn`."""
        self.subject.learn(count)

    def memory(self) -> dict[str, float]:
        """
        :return: The resident memory of this process, now and at its highest, in bytes
        """
        import psutil

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"resident": psutil.Process().memory_info().rss, "peak": peak}

    def versions(self) -> dict[str, Any]:
        """
        :return: The versions of Python and of the packages that matter in its virtual environment
        """
        packages = {name: version(name) for name in PACKAGES[self.contender.environment]}
        return {"versions": {"Python": platform.python_version()} | packages}


def main(name: str, threads: int) -> None:
    """
    Answer the parent's requests, one JSON line each, until its end is closed.

    :param name: Name of the contender
    :param threads: Number of processor cores to use
    """
    # Libraries may print: what they print must not get between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if hasattr(os, "sched_setaffinity"):
        # JAX takes as many threads as it may use cores; the same limit for all makes one thread mean one core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    requests = Requests(CONTENDERS[name])
    for line in sys.stdin:
        request, arguments = json.loads(line)
        method: Callable[..., dict[str, Any] | None] = getattr(requests, request)
        start = time.perf_counter()
        try:
            result = method(**arguments) or {}
        except Exception:
            reply = {"error": traceback.format_exc()}
        else:
            reply = {"seconds": time.perf_counter() - start} | result
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
