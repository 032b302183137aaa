"""What the measurements were made on: the machine and the versions, without names of hosts, users or folders."""

import csv
import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil
import torch as th

from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.worker import Worker

GPU = "GPU"
"""The row that only the measurements on a GPU have."""


def write_machine(folder: Path, names: list[str], device: str) -> None:
    """
    Write ``machine.csv``.

    :param folder: Where it goes
    :param names: The contenders that were measured, whose versions are asked for
    :param device: ``"cpu"`` or ``"cuda"``
    """
    rows = [
        ("Processor", processor()),
        ("Cores for this process", str(cores())),
        ("Memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"),
        ("System", f"{platform.system()} {platform.machine()}"),
    ]
    if device == "cuda":
        rows.append((GPU, th.cuda.get_device_name()))
    environments = {CONTENDERS[name].environment: name for name in names}
    for environment, name in environments.items():
        with Worker(name, 1) as worker:
            versions = worker.ask("versions")["versions"]
        rows.append((f"Versions, {environment} environment", ", ".join(f"{key} {value}" for key, value in versions.items())))
    with (folder / "machine.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "value"), *rows])


def cores() -> int:
    """
    :return: The number of cores that this process may use
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """
    :return: The processor's model and, as that name may be of several, its kind
    """
    return f"{_model_name()} ({', '.join(kind())})"


def _model_name() -> str:
    if os.path.exists("/proc/cpuinfo"):  # elsewhere, platform knows it
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def kind() -> list[str]:
    """
    PyTorch and Numba choose their instructions by it, and so the last bits of sums.

    :return: PyTorch's set of vector instructions, and the microarchitecture that Numba compiles for if it is there
    """
    kinds = [th.backends.cpu.get_cpu_capability()]
    with suppress(ImportError):
        from llvmlite import binding

        kinds.append(binding.get_host_cpu_name())
    return kinds
