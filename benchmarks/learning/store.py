"""Units on disk: one CSV file each, whose first line is a comment with its configuration, versions and machine."""

import csv
import hashlib
import io
import json
import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import torch as th

from benchmarks.learning.matrix import VARIANTS, Budget, Unit, config_hash, kwargs_of
from benchmarks.learning.tasks import ALL_TASKS
from benchmarks.speed.machine import processor
from sb3_bn_ddpg.common.atomic_files import atomic_write

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "results_in_detail.md"
PACKAGES = ("sb3-bn-ddpg", "stable-baselines3", "sb3-contrib", "torch", "numpy", "numba", "llvmlite", "scipy", "gymnasium")
PACKAGES += ("mujoco", "dm-control", "shimmy")
CLOCKS = ("wall_seconds", "cpu_seconds")
"""The columns that a second run does not repeat."""


class StoredUnit(NamedTuple):
    """
    :param header: The first line
    :param rows: One for each evaluation; numbers as they are written
    """

    header: dict[str, Any]
    rows: list[dict[str, str]]


def unit_path(folder: Path, unit: Unit) -> Path:
    """
    :param folder: The results
    :param unit: A unit
    :return: Its file
    """
    return folder / ALL_TASKS[unit.task].folder / unit.variant / f"seed-{unit.seed}.csv"


def read_unit(folder: Path, unit: Unit) -> StoredUnit | None:
    """
    :param folder: The results
    :param unit: A unit
    :return: What its file holds, None if it is not there
    """
    path = unit_path(folder, unit)
    if not path.exists():
        return None
    with path.open(newline="") as file:
        header = _stored_header(file)
        return StoredUnit(header, list(csv.DictReader(file)))


def is_done(folder: Path, unit: Unit, budget: Budget) -> bool:
    """
    :param folder: The results
    :param unit: A unit
    :param budget: The extent of the run
    :return: Whether it is stored, and as the matrix has it now
    """
    path = unit_path(folder, unit)
    if not path.exists():
        return False
    with path.open() as file:
        try:
            return bool(_stored_header(file)["config"] == config_hash(unit, budget))
        except (ValueError, KeyError, TypeError):  # none of ours: it is run anew
            return False


def read_done(folder: Path, unit: Unit, budget: Budget) -> StoredUnit | None:
    """
    :param folder: The results
    :param unit: A unit
    :param budget: The extent of the run
    :return: What its file holds, None if :func:`is_done` says no
    """
    return read_unit(folder, unit) if is_done(folder, unit, budget) else None


def _stored_header(file: TextIO) -> dict[str, Any]:
    """The first line of a unit's file, which is read on behind it."""
    stored: dict[str, Any] = json.loads(file.readline().removeprefix("# "))
    return stored


def differences(stored: StoredUnit, again: StoredUnit) -> list[str]:
    """
    :param stored: A unit
    :param again: The same unit, run another time
    :return: Sentences on every stored number that differs, clocks left out; versions and machine only if a number does.
        What the algorithm did not log yet when the unit was stored is no difference.
    """
    found = []
    if len(stored.rows) != len(again.rows):
        found.append(f"rows: {len(stored.rows)} stored, {len(again.rows)} now")
    for old, new in zip(stored.rows, again.rows, strict=False):
        for column in old:
            if column not in CLOCKS and old.get(column) != new.get(column):
                found.append(f"step {old['step']}, {column}: {old.get(column)} stored, {new.get(column)} now")
    if stored.header["config"] != again.header["config"]:
        found.append("the configuration is no longer the stored one")
    if found:
        for key in stored.header:
            if stored.header[key] != again.header.get(key):
                found.append(f"{key}: {stored.header[key]} stored, {again.header.get(key)} now")
    return found


class UnitFile:
    """
    The file of a unit while it runs: complete under its name, or not there. A long unit's rows and its checkpoint lie in a
    folder beside it until then, from which the unit's next run goes on.

    :param folder: The results
    :param unit: The unit
    :param budget: The extent of the run
    :param device: ``"cpu"`` or ``"cuda"``
    """

    def __init__(self, folder: Path, unit: Unit, budget: Budget, device: str = "cpu") -> None:
        self.path = unit_path(folder, unit)
        self.header = header(unit, budget, device)
        self.rows: list[dict[str, Any]] = []
        self.partial = self.path.with_suffix(f".{os.getpid()}.partial")
        self.unfinished: Path | None = None
        if VARIANTS[unit.variant].is_long:
            self.unfinished = self.path.with_suffix(".unfinished")
            self.partial = self.unfinished / "rows.csv"

    @property
    def checkpoint(self) -> Path | None:
        """Where the training is saved after each row; None of units that begin anew."""
        return self.unfinished and self.unfinished / "checkpoint"

    def __enter__(self) -> "UnitFile":
        if self.unfinished is not None and self.unfinished.exists():
            self._read_unfinished()
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        return self

    def _read_unfinished(self) -> None:
        """Read the rows, or remove the folder, if what it holds depends on anything that is another by now."""
        assert self.unfinished is not None
        with suppress(FileNotFoundError), self.partial.open(newline="") as file:
            if _stored_header(file) == json.loads(json.dumps(self.header)):
                # Text as it was; an algorithm's columns are empty before its first update
                self.rows = [{column: text for column, text in row.items() if text} for row in csv.DictReader(file)]
                return
        shutil.rmtree(self.unfinished)

    def go_on_from(self, step: int) -> bool:
        """
        Drop the rows after a step, which the resumed training is about to repeat.

        :param step: The checkpoint's
        :return: Whether the last row left is of that step. If not, two processes ran the unit at a time, and no row is left.
        """
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        if not self.rows or int(self.rows[-1]["step"]) != step:
            self.rows = []
        return bool(self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """
        :param row: An evaluation. Written at once, and numbers to their last bit.
        """
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        # The whole file each time: the algorithms' columns appear with the first update, after the first row
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        text = io.StringIO(newline="")
        text.write(f"# {json.dumps(self.header)}\n")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.partial) as file:
            file.write(text.getvalue().encode())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            with atomic_write(self.path) as file:
                file.write(self.partial.read_bytes())
        if self.unfinished is None:
            self.partial.unlink()
        elif kind is None:
            shutil.rmtree(self.unfinished)


def header(unit: Unit, budget: Budget, device: str) -> dict[str, Any]:
    """
    :param unit: A unit
    :param budget: The extent of the run
    :param device: ``"cpu"`` or ``"cuda"``
    :return: What its numbers depend on
    """
    variant = VARIANTS[unit.variant]
    return {
        "config": config_hash(unit, budget),
        "algorithm": variant.algorithm,
        "kwargs": kwargs_of(unit),
        "source": source_hash() if variant.algorithm.startswith("bn_") else "",
        "versions": versions(),
        "machine": machine(device),
    }


def machine(device: str) -> str:
    """
    :param device: ``"cpu"`` or ``"cuda"``
    :return: What of the machine makes a difference to numbers
    """
    parts = [processor(), f"{platform.system()} {platform.machine()}"]
    with suppress(ImportError):  # the extra `compiled`
        from sb3_bn_ddpg.fast.numba_products import IS_PYTORCHS

        parts += [] if IS_PYTORCHS else ["compiled products by SciPy's BLAS"]
    if device == "cuda":
        parts.append(th.cuda.get_device_name())
    return ", ".join(parts)


def versions() -> dict[str, str]:
    """
    :return: Versions of Python and of those of :data:`PACKAGES` that are there
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # the Control Suite's are not with every Python
            found[name] = version(name)
    return found


def source_hash() -> str:
    """
    :return: Digest of this package's own sources, whose version number does not follow every commit, without its command line
    """
    import sb3_bn_ddpg

    digest = hashlib.sha256()
    package = Path(sb3_bn_ddpg.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.name not in ("cli.py", "__main__.py") and package / "zoo" not in path.parents:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def header_text(folder: Path, units: Iterable[Unit], budget: Budget) -> str:
    """
    :param folder: The results
    :param units: Units
    :param budget: The extent of the runs
    :return: Machines and versions of those that are stored, as a Markdown list with the number of units of each
    """
    counts: Counter[str] = Counter()
    for unit in units:
        if stored := read_done(folder, unit, budget):
            packages = ", ".join(f"{name} {number}" for name, number in stored.header["versions"].items())
            counts[f"{stored.header['machine']}; {packages}"] += 1
    return "\n".join(f"- {count} runs: {text}" for text, count in counts.most_common())
