"""The learning benchmark's runs: what a unit writes, how it goes on, and what runs many."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as th
from learning_units import PENDULUM, UNIT, synthetic
from stable_baselines3 import DDPG

import sb3_bn_ddpg
from benchmarks.learning import figures, local, matrix, store
from benchmarks.learning.contenders import Variant
from benchmarks.learning.evaluation import Evaluator, RandomPolicy
from benchmarks.learning.local import REPOSITORY, Process, run_units, unit_command, unit_environment
from benchmarks.learning.matrix import VARIANTS, Budget, Unit
from benchmarks.learning.recorder import Recorder, weight_statistics
from benchmarks.learning.store import differences, is_done, read_unit, unit_path
from benchmarks.learning.tasks import CHEETAH
from benchmarks.learning.unit import run
from sb3_bn_ddpg import BNDDPG

TINY = Budget(steps=1_060, every=530, episodes=2)


def test_weight_statistics_by_hand():
    critic = th.nn.Sequential(th.nn.Linear(2, 2), th.nn.BatchNorm1d(2))
    with th.no_grad():
        critic[0].weight.copy_(th.tensor([[3.0, 4.0], [1e-7, 0.0]]))
    assert weight_statistics(critic) == dict(critic_weight_norm=5.0, critic_weights_vanished=0.5)


def test_evaluations_repeat_and_differ_between_their_episodes():
    evaluator = Evaluator(PENDULUM, episodes=3)
    first, second = (evaluator.evaluate(RandomPolicy(evaluator.env.action_space, seed=0)) for _ in range(2))
    assert first == second
    assert first.return_std > 0
    assert first != evaluator.evaluate(RandomPolicy(evaluator.env.action_space, seed=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one unit."""
    folder = tmp_path_factory.mktemp("results")
    run(UNIT, TINY, folder)
    return folder


def test_a_unit_writes_its_evaluations_and_statistics(results: Path):
    stored = read_unit(results, UNIT)
    assert stored is not None
    assert [row["step"] for row in stored.rows] == ["0", "530", "1060"]
    assert stored.header["kwargs"] == VARIANTS["sb3_ddpg"].kwargs
    last = {column: float(value) for column, value in stored.rows[-1].items()}
    assert {"return_mean", "return_std", "length_mean", "actor_loss", "critic_loss"} <= set(last)
    assert last["n_updates"] == np.mean(range(1, 61))
    assert 0 < float(stored.rows[1]["cpu_seconds"]) < last["cpu_seconds"]
    assert stored.rows[1]["critic_loss"] == ""  # before the first update
    assert is_done(results, UNIT, TINY)
    assert not is_done(results, UNIT, Budget())


def test_a_second_run_gives_the_same_numbers_and_evaluations_do_not_disturb_training(results: Path, tmp_path: Path):
    run(UNIT, replace(TINY, every=265), tmp_path)
    stored, again = read_unit(results, UNIT), read_unit(tmp_path, UNIT)
    assert stored is not None
    assert again is not None
    columns = ("step", "return_mean", "return_std", "length_mean")
    often = {row["step"]: [row[column] for column in columns] for row in again.rows}
    assert len(often) == 5
    assert [often[row["step"]] for row in stored.rows] == [[row[column] for column in columns] for row in stored.rows]


def test_the_clocks_leave_evaluations_out(tmp_path: Path):
    start = time.process_time()
    run(UNIT, Budget(steps=200, every=10, episodes=20), tmp_path)
    took = time.process_time() - start
    stored = read_unit(tmp_path, UNIT)
    assert stored is not None
    assert float(stored.rows[-1]["cpu_seconds"]) < took / 2


def test_a_unit_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: DDPG, gradient_steps: int, batch_size: int) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(DDPG, "train", fail)
    with pytest.raises(RuntimeError, match="no"):
        run(UNIT, TINY, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


LONG = Unit(PENDULUM, "long_paper", 0)
LONG_TINY = Budget(steps=1_300, every=100, episodes=2)
"""Updates from step 1,000 on, as all units."""


class StopError(Exception):
    """What ends a unit that is to be resumed."""


@pytest.mark.parametrize("where", ["between two rows", "between a row and its checkpoint", "in the first checkpoint"])
def test_a_long_unit_goes_on_to_the_same_numbers(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With rows and clocks of both processes, and nothing left of what was unfinished."""
    save, last = BNDDPG.save_checkpoint, 100 if where == "in the first checkpoint" else 1_200
    calls = []

    def on_step(recorder: Recorder) -> bool:
        calls.append(recorder.num_timesteps)
        if where == "between two rows" and recorder.num_timesteps == 1_234:
            raise StopError
        return True

    def save_checkpoint(model: BNDDPG, path: Path) -> None:
        if where != "between two rows" and model.num_timesteps == last:
            raise StopError
        save(model, path)

    run(LONG, LONG_TINY, tmp_path / "whole")
    with monkeypatch.context() as patches:
        patches.setattr(Recorder, "_on_step", on_step)
        patches.setattr(BNDDPG, "save_checkpoint", save_checkpoint)
        with pytest.raises(StopError):
            run(LONG, LONG_TINY, tmp_path / "resumed")
    path = unit_path(tmp_path / "resumed", LONG)
    assert not path.exists()
    unfinished = path.with_suffix(".unfinished") / "rows.csv"
    assert f"\n{last}," in unfinished.read_text()
    calls.clear()
    with monkeypatch.context() as patches:
        patches.setattr(Recorder, "_on_step", lambda recorder: calls.append(recorder.num_timesteps) or True)
        run(LONG, LONG_TINY, tmp_path / "resumed")
    assert calls[0] == {"between two rows": 1_201, "between a row and its checkpoint": 1_101}.get(where, 1)
    whole, resumed = read_unit(tmp_path / "whole", LONG), read_unit(tmp_path / "resumed", LONG)
    assert whole is not None
    assert resumed is not None
    assert [row["step"] for row in whole.rows] == [str(step) for step in range(0, 1_301, 100)]
    assert differences(whole, resumed) == []
    assert list(whole.rows[0]) == list(resumed.rows[0])
    assert 0 < float(whole.rows[-1]["critic_weight_norm"]) < float(whole.rows[0]["critic_weight_norm"])
    clocks = [float(row["cpu_seconds"]) for row in resumed.rows]
    assert clocks == sorted(clocks)
    assert [path for path in (tmp_path / "resumed").rglob("*") if path.is_file()] == [path]


@pytest.mark.parametrize(
    ("changed", "counts"), [("ddpg/bn_ddpg.py", True), ("fast/mlp.py", True), ("cli.py", False), ("zoo/search.py", False)]
)
def test_the_digest_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, counts: bool):
    """It is of all files of the package but the command line's."""
    package = tmp_path / "sb3_bn_ddpg"
    shutil.copytree(Path(sb3_bn_ddpg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = store.source_hash()
    monkeypatch.setattr(sb3_bn_ddpg, "__file__", str(package / "__init__.py"))
    assert store.source_hash() == before
    with (package / changed).open("a") as file:
        file.write("# changed")
    assert (store.source_hash() != before) is counts


def test_what_other_sources_left_unfinished_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(model: BNDDPG, path: Path) -> None:
        save(model, path)
        raise StopError

    save = BNDDPG.save_checkpoint
    begun = []

    def on_step(recorder: Recorder) -> bool:
        begun.append(recorder.num_timesteps)
        raise StopError

    with monkeypatch.context() as patches:
        patches.setattr(BNDDPG, "save_checkpoint", stop)
        with pytest.raises(StopError):
            run(LONG, LONG_TINY, tmp_path)
    monkeypatch.setattr(Recorder, "_on_step", on_step)
    with pytest.raises(StopError):
        run(LONG, LONG_TINY, tmp_path)
    monkeypatch.setattr(store, "source_hash", lambda: "another")
    with pytest.raises(StopError):
        run(LONG, LONG_TINY, tmp_path)
    assert begun == [101, 1]


@pytest.mark.slow
@pytest.mark.parametrize("task", [CHEETAH, "HalfCheetah-v5"])
def test_a_long_unit_that_is_killed_goes_on_to_the_same_numbers(task: str, tmp_path: Path):
    """At a moment that nobody chose, then, once resumed, by a signal that it can handle."""
    unit, budget = Unit(task, "long_paper", 1), Budget(steps=1_200, every=100, episodes=1)
    path = unit_path(tmp_path / "resumed", unit)
    unfinished = path.with_suffix(".unfinished")

    def checkpoint_time() -> int:
        with suppress(FileNotFoundError):
            return (unfinished / "checkpoint").stat().st_mtime_ns
        return 0

    command = unit_command(unit, budget, tmp_path / "resumed")
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        before, deadline = checkpoint_time(), time.monotonic() + 600
        process = subprocess.Popen(command, cwd=REPOSITORY, env=unit_environment(), stdout=subprocess.DEVNULL)
        while checkpoint_time() == before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(np.random.default_rng().uniform(0, 0.5))
        process.send_signal(signal_number)
        assert process.wait(600) == (-9 if signal_number == signal.SIGKILL else 143)
    assert not path.exists()
    subprocess.run(command, cwd=REPOSITORY, env=unit_environment(), check=True)
    run(unit, budget, tmp_path / "whole")
    whole, resumed = read_unit(tmp_path / "whole", unit), read_unit(tmp_path / "resumed", unit)
    assert whole is not None
    assert resumed is not None
    assert len(whole.rows) == 13
    assert differences(whole, resumed) == []
    assert not unfinished.exists()


@pytest.mark.slow
def test_the_command_compares_with_the_stored_numbers(results: Path):
    def compare() -> subprocess.CompletedProcess[str]:
        command = [argument for argument in unit_command(UNIT, TINY, results) if argument != "--write"]
        return subprocess.run(command, cwd=REPOSITORY, env=unit_environment(), capture_output=True, text=True)

    same = compare()
    assert same.returncode == 0, same.stderr
    assert "to the bit" in same.stdout
    path = unit_path(results, UNIT)
    text = path.read_text()
    stored = read_unit(results, UNIT)
    assert stored is not None
    value = stored.rows[-1]["critic_loss"]
    try:
        path.write_text(text.replace(value, value[:-1] + str((int(value[-1]) + 1) % 10)))
        other = compare()
    finally:
        path.write_text(text)
    assert other.returncode == 1
    assert other.stdout.startswith(f"step 1060, critic_loss: {value[:-1]}")


def test_a_failing_unit_is_reported_and_the_others_go_on(tmp_path: Path):
    units = [Unit(PENDULUM, "no such variant", 0), Unit(PENDULUM, "random", 0)]
    VARIANTS["no such variant"] = Variant("only in this process", "random")
    try:
        outcomes = {outcome.unit: outcome for outcome in run_units(units, Budget(), tmp_path, workers=1, nice=0)}
    finally:
        del VARIANTS["no such variant"]
    assert "invalid choice" in outcomes[units[0]].error
    assert outcomes[units[1]].error == ""


def test_what_another_runner_has_stored_meanwhile_is_not_run_again(tmp_path: Path):
    units = [Unit(PENDULUM, "random", seed) for seed in range(3)]
    outcomes = run_units(units, Budget(), tmp_path, workers=1, nice=0)
    assert next(outcomes).unit == units[0]
    synthetic(tmp_path, units[2:], Budget())
    assert [outcome.unit for outcome in outcomes] == units[1:2]


def test_a_file_says_which_kind_of_processor_it_is_from(results: Path):
    stored = read_unit(results, UNIT)
    assert stored is not None
    assert f" ({th.backends.cpu.get_cpu_capability()}" in stored.header["machine"]


def test_a_package_that_is_missing_is_left_out_of_the_versions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "PACKAGES", ("numpy", "no-such-package"))
    assert store.versions() == {"python": platform.python_version(), "numpy": np.__version__}


def test_units_give_way_to_other_processes():
    process = Process(UNIT, [sys.executable, "-c", "import time; time.sleep(60)"], nice=7)
    try:
        expected = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
        assert os.getpriority(os.PRIO_PROCESS, process.popen.pid) == expected
        session = Path(f"/proc/{process.popen.pid}/autogroup")
        assert not session.exists() or session.read_text().endswith(f"nice {expected}\n")
    finally:
        process.ask_to_end()
        process.end()


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_complete_units_and_the_next_run_does_the_rest(tmp_path: Path, signal_number: int):
    command = [sys.executable, "-m", "benchmarks.learning.run", "--results", str(tmp_path), "--workers", "1", "--no-report"]
    command += ["--group", "random", "peers", "--task", PENDULUM, "--seed", "0", "--variant"]
    long = ["--steps", "1000000", "--every", "100"]
    environment = unit_environment()
    if signal.getsignal(signal_number) is signal.SIG_IGN:
        pytest.skip("so it is in the processes that are started here")
    runner = subprocess.Popen(
        [*command, "random", "sb3_td3", *long], cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    begun: list[Path] = []
    while not begun:
        assert time.monotonic() < deadline
        assert runner.poll() is None
        time.sleep(0.2)
        with suppress(FileNotFoundError):  # complete, and renamed, since it was found
            begun = [path for path in tmp_path.rglob("*.partial") if "\n100," in path.read_text()]
    unit_process = int(begun[0].name.split(".")[1])
    runner.send_signal(signal_number)
    assert runner.wait(600) == 128 + signal_number
    assert not os.path.exists(f"/proc/{unit_process}")
    stored = unit_path(tmp_path, Unit(PENDULUM, "random", 0))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [stored]

    written = stored.stat().st_mtime_ns
    short = ["--steps", "1000000", "--every", "100", "--list"]
    listed = subprocess.run([*command, "random", "sb3_td3", *short], cwd=REPOSITORY, env=environment, capture_output=True)
    assert listed.stdout.decode() == f"{PENDULUM} sb3_td3 seed 0\n"
    assert stored.stat().st_mtime_ns == written


@pytest.mark.parametrize("content", [b"", b"# {}\n", b"[1]\n", b"\xff\n"])
def test_a_file_that_is_no_unit_is_run_anew(content: bytes, tmp_path: Path):
    path = unit_path(tmp_path, UNIT)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert not is_done(tmp_path, UNIT, Budget())
    assert figures.read(tmp_path, Budget()).empty


def test_ctrl_c_while_a_process_starts_ends_it(monkeypatch: pytest.MonkeyPatch):
    processes = []

    def interrupt(process: int, niceness: int) -> None:
        processes.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "give_way", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Process(UNIT, [sys.executable, "-c", "import time; time.sleep(600)"], nice=0)
    assert not os.path.exists(f"/proc/{processes[0]}")


def test_a_session_gives_way_where_the_kernel_asks_for_patience(monkeypatch: pytest.MonkeyPatch):
    refusals = [BlockingIOError, BlockingIOError]
    written = []

    def write_text(path: Path, text: str) -> None:
        if refusals:
            raise refusals.pop()
        written.append((str(path), text))

    monkeypatch.setattr(Path, "write_text", write_text)
    local.give_way(7, 19)
    assert written == [("/proc/7/autogroup", "19")]


def test_pixel_runs_end_together(tmp_path: Path):
    for seed, last in ((0, 4), (1, 2)):
        (folder := tmp_path / f"cartpole-swingup-{seed}").mkdir()
        lines = ["step,mean_return", *(f"{step},{10.0 * step + seed}" for step in range(0, last + 1, 2))]
        (folder / "evaluations.csv").write_text("\n".join(lines))
    rows = figures.read_pixels(tmp_path)
    assert [tuple(row) for row in rows[["seed", "step", "return_mean"]].to_numpy()] == [
        (0, 0, 0),
        (0, 6, 20),
        (1, 0, 1),
        (1, 6, 21),
    ]
    assert figures.read_pixels(tmp_path / "nothing").empty


def test_a_raised_protocol_runs_everything_anew(results: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matrix, "PROTOCOL", matrix.PROTOCOL + 1)
    assert not is_done(results, UNIT, TINY)


def test_differences_name_rows_and_configurations(results: Path):
    stored = read_unit(results, UNIT)
    assert stored is not None
    assert differences(stored, stored) == []
    slower = [row | dict(cpu_seconds="99") for row in stored.rows]
    assert differences(stored, stored._replace(rows=slower)) == []
    shorter = differences(stored, stored._replace(rows=stored.rows[:-1]))
    assert shorter[0] == "rows: 3 stored, 2 now"
    changed = stored.header | dict(config="0")
    assert differences(stored, stored._replace(header=changed))[0] == "the configuration is no longer the stored one"
