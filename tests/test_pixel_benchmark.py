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
pytest.importorskip("rl_zoo3")

ROOT = Path(__file__).parents[1]


def start(module: str, results: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"benchmarks.pixels.{module}", "--results", str(results), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows_of(results: Path) -> list[dict[str, str]]:
    path = results / "cartpole-balance-0" / "evaluations.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


@pytest.mark.slow
def test_it_stops_and_goes_on(tmp_path):
    arguments = ["--task", "cartpole-balance", "--eval-freq", "10", "--n-eval-episodes", "1"]
    arguments += ["--learning-starts", "12", "--samples", "0", "--checkpoint-freq", "1000000", "--timesteps"]
    process = start("train", tmp_path, *arguments, "1000000")
    deadline = time.monotonic() + 300
    while process.poll() is None and len(rows_of(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    if "apt-get install" in errors:
        pytest.skip("no library to render with")
    assert process.returncode == 0, errors
    stopped = rows_of(tmp_path)
    assert len(stopped) >= 3
    step = int(stopped[-1]["step"])
    folder = tmp_path / "cartpole-balance-0"
    with (folder / "evaluations.csv").open("a") as file:  # of a run that went on and was killed
        file.write(f"{step + 10},9,9,9,999.9,0,999.9,0\n")

    process = start("train", tmp_path, *arguments, str(step + 20))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "kB a transition" in output
    rows = rows_of(tmp_path)
    assert rows[: len(stopped)] == stopped
    assert [int(row["step"]) for row in rows] == list(range(0, step + 21, 10))
    # As if it had not been stopped. (The update after a step comes after its evaluation.)
    assert int(rows[-1]["updates"]) == step + 20 - 12 - 1
    assert float(rows[-2]["mean_return"]) != 999.9
    assert sorted(os.listdir(folder)) == ["best_model.zip", "evaluations.csv", "model.zip"]

    process = start("train", tmp_path, *arguments, str(step + 20))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "holds a finished run" in errors
    assert rows_of(tmp_path) == rows

    process = start("plots", tmp_path, "--task", "cartpole-balance", "--figures", str(tmp_path))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "random actions: " in output
    assert {"pixels_cartpole-balance.png", "pixels_cartpole-balance.svg", "pixels_cartpole-balance_frames.png"} <= set(
        os.listdir(tmp_path)
    )
