"""The script that trains on pixels: it evaluates as it goes, stops when asked, and goes on where it stopped."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("dm_control")
pytest.importorskip("shimmy")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]


def start(module: str, results: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"benchmarks.pixels.{module}", "--results", str(results), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows_of(results: Path) -> list[dict[str, str]]:
    path = results / "cartpole-balance-0" / "evaluations.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


@pytest.mark.slow
def test_it_stops_and_goes_on(tmp_path):
    arguments = [
        "--task",
        "cartpole-balance",
        "--timesteps",
        "40",
        "--eval-freq",
        "10",
        "--n-eval-episodes",
        "1",
        "--learning-starts",
        "12",
        "--samples",
        "0",
    ]
    process = start("train", tmp_path, *arguments)
    while process.poll() is None and len(rows_of(tmp_path)) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    if "apt-get install" in errors:
        pytest.skip("no library to render with")
    assert process.returncode == 0, errors
    stopped = rows_of(tmp_path)
    assert 2 <= len(stopped) <= 5

    process = start("train", tmp_path, *arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "kB a transition" in output
    rows = rows_of(tmp_path)
    assert rows[: len(stopped)] == stopped
    assert [int(row["step"]) for row in rows] == [0, 10, 20, 30, 40]
    # The update after a step comes after its evaluation, and not at all where the run was stopped
    assert int(rows[-1]["updates"]) in (40 - 12 - 1, 40 - 12 - 2)
    assert not (tmp_path / "cartpole-balance-0" / "buffer.pkl").exists()

    process = start("plots", tmp_path, "--task", "cartpole-balance", "--figures", str(tmp_path))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "random actions: " in output
    assert {"pixels_cartpole-balance.png", "pixels_cartpole-balance.svg", "pixels_cartpole-balance_frames.png"} <= set(
        os.listdir(tmp_path)
    )
