"""The learning benchmark: its matrix, its units, resuming, its figures and its report."""

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
import pandas as pd
import pytest
import torch as th

pytest.importorskip("mujoco")
pytest.importorskip("rl_zoo3")
pytest.importorskip("rliable")
pytest.importorskip("seaborn")
pytest.importorskip("dm_control")
pytest.importorskip("shimmy")

import rl_zoo3
import yaml
from fast_updates import needs_cuda
from rliable import metrics
from sb3_contrib import CrossQ
from stable_baselines3 import DDPG
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_bn_ddpg
from benchmarks.learning import (
    algorithms,
    exploration,
    figures,
    local,
    long_runs,
    matrix,
    overview,
    plots,
    report,
    step_time,
    store,
)
from benchmarks.learning.algorithms import build
from benchmarks.learning.constant_actions import constant_returns, share_of
from benchmarks.learning.contenders import FIGURE2_LONG, Variant
from benchmarks.learning.crossq_graph import GraphedCrossQ
from benchmarks.learning.evaluation import Evaluator, RandomPolicy, make_env
from benchmarks.learning.local import REPOSITORY, Process, run_units, unit_command, unit_environment
from benchmarks.learning.matrix import (
    ALL_GROUPS,
    GROUPS,
    LEARNING_STARTS,
    LONG_GROUPS,
    LONG_TASKS,
    VARIANTS,
    Budget,
    Unit,
    config_hash,
)
from benchmarks.learning.recorder import MeanLogger, Recorder, weight_statistics
from benchmarks.learning.store import UnitFile, differences, is_done, read_unit, unit_path
from benchmarks.learning.tasks import ALL_TASKS, CHEETAH, HELD_OUT, TASKS, TUNING, WALKER
from benchmarks.learning.unit import run
from benchmarks.markdown import BEGIN, END, number
from sb3_bn_ddpg import BNDDPG

PENDULUM = "InvertedDoublePendulum-v5"
UNIT = Unit(PENDULUM, "sb3_ddpg", 0)
TINY = Budget(steps=1_060, every=530, episodes=2)


def test_every_cell_names_a_task_and_a_variant_and_tuning_stays_on_its_tasks():
    assert set(TUNING) | set(HELD_OUT) == set(TASKS)
    assert not set(TUNING) & set(HELD_OUT)
    assert CHEETAH not in TASKS  # of scores over all tasks it is none
    for group in ALL_GROUPS.values():
        assert all(unit.task in ALL_TASKS and unit.variant in VARIANTS for unit in group.units())
    assert {unit.task for unit in GROUPS["ablation"].units()} == set(TUNING)
    assert {unit.task for unit in GROUPS["tuned_tuning"].units()} == set(TUNING)
    assert {unit.task for unit in GROUPS["tuned_held_out"].units()} == set(HELD_OUT)


def test_a_group_s_long_units_are_the_paper_s_and_breadth_first():
    units = list(LONG_GROUPS["figure2_long"].units())
    assert [unit.seed for unit in units] == [0] * 9 + [1] * 9 + [2] * 9
    assert [(unit.task, unit.variant) for unit in units[:3]] == [(LONG_TASKS[0], variant) for variant in FIGURE2_LONG]
    for long, short in zip(FIGURE2_LONG, ("paper", "paper_no_norm", "paper_no_targets"), strict=True):
        assert VARIANTS[long].kwargs == VARIANTS[short].kwargs
        assert Budget().of(long) == Budget(500_000, 12_500, 5)
    assert not [unit for group in GROUPS.values() for unit in group.units() if VARIANTS[unit.variant].is_long]


def test_a_variant_may_have_random_steps_of_its_own():
    env = DummyVecEnv([lambda: make_env(PENDULUM)])
    assert build(VARIANTS["long_warmup"], env, seed=0).learning_starts == 10_000
    assert build(VARIANTS["long_paper"], env, seed=0).learning_starts == LEARNING_STARTS


def test_weight_statistics_by_hand():
    critic = th.nn.Sequential(th.nn.Linear(2, 2), th.nn.BatchNorm1d(2))
    with th.no_grad():
        critic[0].weight.copy_(th.tensor([[3.0, 4.0], [1e-7, 0.0]]))
    assert weight_statistics(critic) == dict(critic_weight_norm=5.0, critic_weights_vanished=0.5)


def test_units_come_breadth_first():
    seeds = [unit.seed for unit in GROUPS["peers"].units()]
    assert seeds == sorted(seeds)
    assert len(seeds) == 5 * len(set(GROUPS["peers"].cells))


@pytest.mark.parametrize(("file", "variant"), [("ddpg.yml", "sb3_ddpg"), ("td3.yml", "sb3_td3")])
def test_peers_have_the_values_of_the_zoo(file: str, variant: str):
    zoo = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / file).read_text())["HalfCheetah-v4"]
    ours = dict(VARIANTS[variant].kwargs)
    noise = ours.pop("action_noise")
    assert noise == dict(type=zoo.pop("noise_type"), sigma=zoo.pop("noise_std"))
    assert zoo.pop("policy_kwargs") == "dict(net_arch=[400, 300])"
    assert ours.pop("policy_kwargs") == dict(net_arch=[400, 300])
    for key in ("n_timesteps", "policy", "learning_starts"):
        zoo.pop(key)
    assert ours == zoo


def test_every_variant_of_ours_can_be_built():
    env = DummyVecEnv([lambda: make_env(PENDULUM)])
    for variant in VARIANTS.values():
        if variant.algorithm == "bn_ddpg":
            model = build(variant, env, seed=0)
            for key in ("batch_size", "tau", "target_statistics", "use_target_networks"):
                if key in variant.kwargs:
                    assert getattr(model, key) == variant.kwargs[key]


@needs_cuda
def test_crossq_by_graphs_is_crossq(monkeypatch: pytest.MonkeyPatch):
    class OnTheGPU(CrossQ):
        """Adam counts its steps in float32, as in a graph."""

        def _setup_model(self) -> None:
            super()._setup_model()
            for optimizer in (self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer):
                optimizer.param_groups[0]["capturable"] = True

    variant = replace(VARIANTS["crossq_256"], kwargs=dict(policy_kwargs=dict(net_arch=dict(pi=[32, 32], qf=[32, 32]))))
    found = []
    for algorithm in (OnTheGPU, GraphedCrossQ):
        monkeypatch.setattr(algorithms, "GraphedCrossQ", algorithm)
        model = build(variant, DummyVecEnv([lambda: make_env(PENDULUM)]), 0, "cuda")
        assert type(model) is algorithm
        means = MeanLogger()
        model.set_logger(means)
        model.learn(LEARNING_STARTS + 60, log_interval=sys.maxsize)
        found.append((model.policy.state_dict(), means.take()))
    (library, logged), (graphs, logged_by_graphs) = found
    counts = [name for name in library if name.endswith("steps")]  # of batches, which say that the warm-up is over
    assert all(th.equal(library[name], graphs[name]) for name in library if name not in counts)
    assert logged == logged_by_graphs


def test_noise_draws_what_the_stored_runs_drew():
    model = build(VARIANTS["paper"], DummyVecEnv([lambda: make_env("InvertedDoublePendulum-v5")]), seed=3)
    drawn = 0.2 * np.random.default_rng(3).standard_normal((1, 1))
    np.testing.assert_array_equal(model.action_noise(), drawn.astype(np.float32))


def test_a_changed_variant_is_another_configuration_and_an_unchanged_one_is_not(monkeypatch: pytest.MonkeyPatch):
    first = config_hash(UNIT, Budget())
    assert config_hash(UNIT, Budget(steps=50_000)) == first
    assert config_hash(UNIT._replace(seed=1), Budget()) != first
    assert config_hash(UNIT, Budget(steps=40_000)) != first
    other = VARIANTS["sb3_td3"]
    monkeypatch.setitem(VARIANTS, "sb3_td3", replace(other, kwargs=other.kwargs | dict(gamma=0.98)))
    assert config_hash(UNIT, Budget()) == first
    monkeypatch.setitem(VARIANTS, "sb3_ddpg", replace(VARIANTS["sb3_ddpg"], label="another name"))
    assert config_hash(UNIT, Budget()) == first
    monkeypatch.setitem(VARIANTS, "sb3_ddpg", VARIANTS["sb3_td3"])
    assert config_hash(UNIT, Budget()) != first


def test_the_stored_results_that_are_committed_belong_to_the_matrix():
    stored = [unit for unit in figures.all_units() if unit_path(REPOSITORY / "benchmarks/learning/results", unit).exists()]
    assert sum(unit.variant == "random" and unit.task in TASKS for unit in stored) == 5 * len(TASKS)
    assert all(is_done(REPOSITORY / "benchmarks/learning/results", unit, Budget()) for unit in stored)


@pytest.mark.parametrize("task", TASKS)
def test_observations_and_time_limits(task: str):
    env = DummyVecEnv([lambda: make_env(task)])
    assert env.observation_space.dtype == np.float32
    assert len(env.observation_space.shape or ()) == 1
    env.seed(0)
    env.reset()
    policy = RandomPolicy(env.action_space, seed=0)
    step, done = 0, False
    while not done:
        _, _, (done,), (info,) = env.step(policy.predict(np.empty((1, 1)))[0])
        step += 1
    # A fall is a termination; the end of a thousand steps is not
    assert info["TimeLimit.truncated"] == (step == 1000)
    assert (step == 1000) == (task not in (PENDULUM, "Hopper-v5"))


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


def test_interquartile_mean_and_improvement_are_rliables():
    rng = np.random.default_rng(0)
    for seeds, tasks in ((3, 6), (5, 3), (1, 2)):
        one, other = rng.normal(size=(2, seeds, tasks)).round(1)
        assert figures.interquartile_mean(one).item() == pytest.approx(metrics.aggregate_iqm(one))
        assert figures.improvement(one, other).item() == pytest.approx(metrics.probability_of_improvement(one, other))


def test_intervals_repeat_and_hold_their_value():
    scores = np.random.default_rng(0).normal(size=(5, 6))
    first, second = (figures.estimate(figures.interquartile_mean, scores) for _ in range(2))
    assert first == second
    assert first.low < first.value < first.high


def synthetic(folder: Path, units: list[Unit], budget: Budget) -> None:
    """Units that reach the returns (their variant's rank among the variants) x step, and whose steps take 2 ms."""
    for unit in units:
        rank = list(VARIANTS).index(unit.variant)
        with UnitFile(folder, unit, budget.of(unit.variant)) as file:
            for step in [0] if unit.variant == "random" else range(0, 10_001, 2_500):
                statistics = dict(q_value=1.0 + step, actor_loss=-1.0, critic_loss=0.1) if step else {}
                clocks = dict(wall_seconds=step * 0.003, cpu_seconds=step * 0.002)
                evaluation = dict(return_mean=10.0 + rank * step / 10 + unit.seed, return_std=1.0, length_mean=5.0)
                file.add(dict(step=step) | evaluation | clocks | statistics)


SHORT = Budget(steps=10_000)


def test_figures_by_hand(tmp_path: Path):
    units = [Unit(task, variant, seed) for task in TASKS for variant in ("random", "sb3_ddpg") for seed in range(2)]
    synthetic(tmp_path, units[:-1], SHORT)  # the last task lacks a seed
    rows = figures.read(tmp_path, SHORT)
    task = TASKS["Hopper-v5"]
    rank = list(VARIANTS).index("sb3_ddpg")
    last = [10 + rank * step / 10 for step in (2_500, 5_000, 7_500, 10_000)]
    random = 10.5
    expected = (np.mean(last) - random) / (task.reference - random)
    assert figures.final(rows)["Hopper-v5", "sb3_ddpg", 0] == pytest.approx(expected)
    assert figures.seeds_of(rows, "sb3_ddpg", tuple(TASKS)) == [0]
    assert figures.seeds_of(rows, "sb3_ddpg", TUNING) == [0, 1]
    assert figures.final_matrix(rows, "sb3_ddpg", TUNING).shape == (2, 3)
    step_times = pd.Series({(task, "sb3_ddpg"): 0.002 for task in TUNING})
    seconds, scores = figures.over_time(rows, step_times, "sb3_ddpg", TUNING, np.array([0.0, 10.0, 21.0]))
    assert list(seconds) == [0.0, 10.0, 20.0]  # its end
    steps, by_step = figures.curve_matrix(rows, "sb3_ddpg", TUNING)
    np.testing.assert_allclose(scores[:, :, 1], by_step[:, :, list(steps).index(5_000)])


def test_p_values_by_hand():
    """Of the six ways to share out four runs, two are as far apart as these, if no run is exchanged, or all."""
    apart, other = np.array([[1.0], [2.0]]), np.array([[5.0], [6.0]])
    assert figures.permutation_p(apart, other) == pytest.approx(1 / 3, abs=0.02)
    assert figures.permutation_p(apart, apart) == 1
    # Tasks are exchanged each by itself: of three, two of the eight ways
    assert figures.permutation_p(np.array([[1.0, 2.0, 3.0]]), np.array([[5.0, 6.0, 7.0]])) == pytest.approx(1 / 4, abs=0.02)
    # Of unequal numbers of runs
    assert figures.permutation_p(np.array([[1.0]]), np.array([[5.0], [6.0], [7.0]])) == pytest.approx(1 / 4, abs=0.02)


def test_p_values_keep_their_word(monkeypatch: pytest.MonkeyPatch):
    """Of variants that do not differ, a share of 0.05 has a p-value below 0.05 (the bootstrap's intervals: 0.13)."""
    monkeypatch.setattr(figures, "PERMUTATIONS", 300)
    scores = np.random.default_rng(0).normal(size=(600, 6, 3))
    p_values = [figures.permutation_p(each[:3], each[3:]) for each in scores]
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.07


def test_verdicts():
    def verdict(gain: float, p_value: float) -> str:
        estimate = figures.Estimate(gain, gain, gain)
        return report.verdict(figures.Comparison((3, 3), estimate, p_value, estimate, gain, p_value))

    assert verdict(0.1, 0.049) == "**better**"
    assert verdict(-0.1, 0.049) == "**worse**"
    assert verdict(0.1, 0.05) == "not decided"


def test_without_a_random_policy_there_are_no_scores_to_compare(tmp_path: Path):
    units = [Unit(task, variant, seed) for task in TASKS for variant in ("tuned", "sb3_ddpg", "random") for seed in range(3)]
    synthetic(tmp_path / "whole", units, SHORT)
    whole = report.comparisons(figures.read(tmp_path / "whole", SHORT), report.COMPARISONS, report.SCOPES)
    assert {(one, other) for one, other, _ in whole} == {("tuned", "sb3_ddpg")}
    found = whole["tuned", "sb3_ddpg", "all"]
    assert found.seeds == (3, 3)
    assert (found.gain.value > 0) == (found.mean_gain > 0)
    synthetic(tmp_path / "part", [unit for unit in units if unit.variant != "random"], SHORT)
    assert report.comparisons(figures.read(tmp_path / "part", SHORT), report.COMPARISONS, report.SCOPES) == {}


def test_a_mean_counts_what_the_interquartile_mean_trims():
    one = np.array([[0.0, 1.0, 1.0, 1.0]] * 3)
    other = np.array([[0.9, 1.0, 1.0, 1.0]] * 3)
    assert figures.permutation_p(one, other) == 1
    assert figures.permutation_p(one, other, figures.mean) == pytest.approx(1 / 10, abs=0.02)


def test_step_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step_time, "WARM_UP", LEARNING_STARTS + 10)
    rows = step_time.measure(PENDULUM, ["sb3_ddpg", "paper"], rounds=2, steps=3)
    assert [row[:4] for row in rows] == [
        (PENDULUM, "sb3_ddpg", 0, 3),
        (PENDULUM, "paper", 0, 3),
        (PENDULUM, "paper", 1, 3),
        (PENDULUM, "sb3_ddpg", 1, 3),
    ]
    assert all(row[4] > 0 for row in rows)
    step_time.write(tmp_path, rows)
    step_time.write(tmp_path, [("Hopper-v5", "paper", index, 2, seconds) for index, seconds in enumerate((0.1, 0.4, 0.2))])
    times = step_time.read(tmp_path)
    assert times["Hopper-v5", "paper"] == pytest.approx(0.1)
    assert times[PENDULUM, "paper"] == pytest.approx((rows[1][4] + rows[2][4]) / 6)
    step_time.write(tmp_path, [(PENDULUM, "sb3_td3", 0, 2, 0.2)])  # one alone leaves the others
    assert set(step_time.read(tmp_path)[PENDULUM].index) == {"sb3_ddpg", "paper", "sb3_td3"}
    assert step_time.read(tmp_path / "nothing").empty
    text = step_time.conditions_text(tmp_path)
    assert f"SB3 DDPG, paper (both), SB3 TD3 on {store.machine('cpu')}, PyTorch {store.versions()['torch']}, source " in text
    assert "not recorded" not in text
    # Another machine's figures stand beside these, and only what one machine measured is compared
    monkeypatch.setattr(step_time, "machine", lambda device: "another")
    own = times[PENDULUM, "sb3_ddpg"] / times[PENDULUM, "paper"]
    step_time.write(tmp_path, [(PENDULUM, name, 0, 1, seconds) for name, seconds in (("sb3_ddpg", 30.0), ("paper", 10.0))])
    step_time.write(tmp_path, [("Hopper-v5", "sb3_ddpg", 0, 1, 100.0)])
    assert step_time.ratios(tmp_path, "paper")["sb3_ddpg"] == pytest.approx((own + 3) / 2)
    assert step_time.ratios(tmp_path, "tuned").empty
    together = step_time.ratios(tmp_path, "paper", ["sb3_ddpg", "sb3_td3", "tuned"])  # TD3 has run on this machine alone
    assert together["sb3_ddpg"] == pytest.approx(own)
    path = tmp_path / step_time.FILE
    pd.read_csv(path).drop(columns=list(step_time.CONDITIONS)).to_csv(path, index=False)  # as older ones
    assert "Measured: on a machine that was not recorded." in step_time.conditions_text(tmp_path)


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


def test_overestimation_is_q_less_the_discounted_rewards_left():
    lengths, reward, gamma = [3.0, 1000.0], 2.0, plots.GAMMA
    left = [[(1 - gamma ** (3 - t)) / (1 - gamma) for t in range(3)], [1 / (1 - gamma)]]
    rows = pd.DataFrame(dict(return_mean=[reward * n for n in lengths], length_mean=lengths, actor_loss=[-7.0, -300.0]))
    estimates = plots.with_estimates(rows, q_is_actor_loss=True)
    expected = [7 - reward * np.mean(left[0]), 300 - reward * np.mean(left[1])]
    np.testing.assert_allclose(estimates["overestimation"], expected)
    assert plots.with_estimates(rows, q_is_actor_loss=False)["q_estimate"].isna().all()


def test_every_variant_discounts_alike():
    env = DummyVecEnv([lambda: make_env(PENDULUM)])
    for variant in VARIANTS.values():
        if (
            variant.algorithm != "random" and "dataset" not in variant.kwargs
        ):  # no figure shows the values of what learns offline
            assert build(variant, env, seed=0).gamma == plots.GAMMA


@pytest.fixture
def few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstraps and exchanges of few samples: their time is not what is tested."""
    monkeypatch.setattr(figures, "REPETITIONS", 20)
    monkeypatch.setattr(figures, "PERMUTATIONS", 199)


@pytest.mark.slow
@pytest.mark.usefixtures("few_repetitions")
def test_the_report_of_a_whole_matrix(tmp_path: Path):
    synthetic(tmp_path / "results", figures.all_units(), SHORT)
    costs = {name: 3.0 if name == "crossq_256" else 2.0 for name in step_time.MEASURED}
    step_time.write(tmp_path / "results", [(task, name, 0, 100, costs[name]) for task in TASKS for name in costs])
    page = tmp_path / "page.md"
    report.write(tmp_path / "results", page, SHORT)
    text = page.read_text()
    assert "Not stored yet" not in text
    assert "nan" not in text
    names = {path.name for path in (tmp_path / "page").glob("*")}
    assert {f"{name}.{end}" for end in ("png", "svg") for name in ("figure2", "aggregate", "profiles", "improvement")} <= names
    assert {name.removesuffix(".png") for name in names if name.endswith(".png")} == {
        link.split("/")[1].split(".")[0] for link in text.split("](page/")[1:] for link in ["page/" + link]
    }
    assert "| times the tuned profile's, median of the tasks and machines that have both | 1.00 | 1.00 | 1.00 | 1.50 |" in text
    # The tuned profile's rank among the variants is the highest, and the paper's above its parts'
    assert "| BNDDPG, tuned > SB3 DDPG? | all | 5, 5 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| BNDDPG, tuned > SB3 DDPG? | all"))
    assert "| 0.0050 | **better** | 1.00 [1.00, 1.00] |" in line
    assert line.endswith("(0.0050) |")
    # What ran on two tasks only is compared on these
    assert "| BNDDPG, tuned > tuned, target networks for batch norm? | both | 5, 5 |" in text
    assert "| BNDDPG, tuned > CrossQ, critics of 1024? | both | 5, 3 |" in text
    assert "| layer norm > none? | tuning | 3, 3 |" in text
    overview.write(tmp_path / "results", tmp_path / "overview.md", SHORT)
    lines = [line.split(" | ") for line in (tmp_path / "overview.md").read_text().splitlines() if line.startswith("| ")]
    labels = [VARIANTS[name].label for name in overview.ALGORITHMS]
    assert [line[0].removeprefix("| ") for line in lines[2:]] == labels
    by_label = dict(zip(labels, lines[2:], strict=True))
    family, ddpg = by_label["BNSAC, tuned"], by_label["SB3 DDPG"]
    assert family[1] == "5"
    assert all("[" in cell for cell in family[2:5])
    assert family[5].endswith("(p 0.0050)")
    assert ddpg[3:5] == ["-", "-"]  # it has run on the first five tasks only
    assert ddpg[5].endswith("(p 0.0050, first five tasks)")
    assert ddpg[6] == "0.67 |"
    assert by_label["CrossQ, critics of 256"][5:] == ["-", "1.00 |"]
    assert {path.name for path in (tmp_path / "overview").glob("*")} == {"overview.png", "overview.svg"}


def test_the_table_of_the_search_for_one_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert exploration.section(tmp_path, SHORT) == []
    units = [Unit(WALKER, "rule_five", seed) for seed in range(2)] + [Unit("HalfCheetah-v5", "crossq_256", 3)]
    synthetic(tmp_path, units, SHORT)
    monkeypatch.setattr(exploration, "ABLATION_STEPS", 7_500)  # CrossQ's run was longer
    _, _, first, _, longer = exploration.section(tmp_path, SHORT)
    ranks = [list(VARIANTS).index(variant) for variant in ("rule_five", "crossq_256")]
    rule, crossq = 10 + ranks[0] * 625, 13 + ranks[1] * 375  # the means of four steps by hand
    assert first.splitlines()[2:] == [
        f"| five steps | {number(rule)}; {number(rule + 1)} | - | - |",
        f"| CrossQ, critics of 256 | - | - | {number(crossq)} |",
    ]
    at_the_end = 13 + ranks[1] * 625
    assert longer.splitlines()[2:] == [f"| CrossQ, critics of 256 | - | - | {number(at_the_end)} | - |"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_repetitions")
def test_the_report_of_an_unfinished_matrix_says_what_is_missing_and_repeats_to_the_byte(tmp_path: Path):
    figure2 = list(GROUPS["figure2"].units())
    units = [*GROUPS["random"].units(), *figure2[:9]]
    synthetic(tmp_path / "results", units, SHORT)
    page = tmp_path / "page.md"
    page.write_text(f"Before\n{BEGIN}\nold\n{END}\nafter\n")
    written = []
    for _ in range(2):
        report.write(tmp_path / "results", page, SHORT)
        written.append({path: path.read_bytes() for path in tmp_path.glob("page*/*")} | {page: page.read_bytes()})
    assert len(written[0]) > 1
    assert written[0] == written[1]
    text = page.read_text()
    assert text.startswith("Before\n")
    assert text.endswith("\nafter\n")
    assert f"- `figure2`: {len(figure2) - 9} of {len(figure2)} runs" in text
    assert "- `random`" not in text
    assert "No two variants have 3 seeds of every task yet." in text


def long_runs_page(tmp_path: Path, units: list[Unit]) -> str:
    """The page of long runs whose returns are 2 x step / 1,000 + seed, drawn twice to the same bytes."""
    for unit in units:
        steps = [0] if unit.variant == "random" else range(0, VARIANTS[unit.variant].steps + 1, 12_500)
        with UnitFile(tmp_path / "results", unit, Budget()) as file:
            for step in steps:
                logged = dict(q_value=60.0, critic_loss=0.1, actor_saturation=0.25) if step else {}
                weights = {} if unit.variant == "random" else dict(critic_weight_norm=3.0, critic_weights_vanished=0.5)
                evaluation = dict(return_mean=2 * step / 1_000 + unit.seed, return_std=1.0, length_mean=1_000.0)
                file.add(dict(step=step) | evaluation | dict(wall_seconds=1.0, cpu_seconds=1.0) | logged | weights)
    page = tmp_path / "page.md"
    written = []
    for _ in range(2):
        long_runs.write(tmp_path / "results", page, Budget())
        written.append({path: path.read_bytes() for path in tmp_path.glob("page*/*")} | {page: page.read_bytes()})
    assert written[0] == written[1]
    return page.read_text()


def test_the_page_of_the_long_runs_draws_what_there_is(tmp_path: Path):
    cartpole, cheetah, half_cheetah = LONG_TASKS
    random = [Unit(task, "random", seed) for task in (cartpole, half_cheetah) for seed in range(5)]
    units = [Unit(cartpole, "long_paper", 0), Unit(cartpole, "long_paper", 1), Unit(cartpole, "long_paper_no_targets", 0)]
    units += [Unit(half_cheetah, "long_paper_no_norm", 2), Unit(cheetah, "long_paper_no_norm", 0)]
    changed = [Unit(cartpole, "long_ou_slow", 0), Unit(half_cheetah, "long_no_decay", 0), Unit(cheetah, "million_no_norm", 0)]
    changed += [Unit(cheetah, "long_no_decay_no_norm", 0), Unit(cheetah, "long_no_decay_no_targets", 0)]
    text = long_runs_page(tmp_path, [*random, *units, *changed])
    counts = [(5, 27, "figure2"), (1, 6, "silent"), (3, 9, "change"), (1, 2, "million")]
    assert ", ".join(f"{stored} of {of} runs of `{name}_long`" for stored, of, name in counts) in text
    last = 2 * np.mean([462.5, 475, 487.5, 500])
    scores = [(last + seed - 2) / (1_000 - 2) for seed in (0, 1)]  # a random policy's return is 2
    line = next(line for line in text.splitlines() if line.startswith(f"| {cartpole} | cartpole: .844 / 1.115 |"))
    assert f"| {np.mean(scores):.3f} / {scores[1]:.3f} (2 of 3 seeds stored) | cartpole: .244 / .755 |" in line
    assert line.endswith(f"| {scores[0]:.3f} / {scores[0]:.3f} (1 of 3 seeds stored) | 0 of 3 seeds stored |")
    line = next(line for line in text.splitlines() if line.startswith(f"| {cheetah} | cheetah: .903 / 1.206 |"))
    assert line.endswith("| - (1 of 3 seeds stored) |")  # without a random policy there is no score
    line = next(line for line in text.splitlines() if line.startswith(f"| {cartpole} | target networks and batch norm |"))
    value = np.mean([60 - (last + seed) / 1_000 * 100 for seed in (0, 1)])  # gamma is 0.99
    cells = ["2 of 3 seeds stored", "100", "962; 964", "1,001", f"{value:.3g}", "25%", "-", "3", "50%"]
    assert line.endswith("".join(f"| {cell} " for cell in cells) + "|")
    assert "| OU noise with dt 0.01 | 962 | - |" in text
    assert "| 10,000 random steps first | - | - |" in text
    assert "| no weight decay | - | - | 962 |" in text
    assert "| batch norm, no target networks | 962 | - | - |" in text
    assert "| no weight decay, no batch norm | - | 962 | - |" in text
    twice = 2 * np.mean([962.5, 975, 987.5, 1000])
    assert f"| {cheetah} | target networks, no batch norm | 962 | {twice:,.0f} | 2,000 |" in text
    assert "nan" not in text
    pictures = {path.name for path in (tmp_path / "page").glob("*.png")}
    assert pictures == {"figure2_long.png", "figure2_long_logged.png", "silent_long.png", "change_long.png"}
    assert all(f"](page/{name})" in text for name in pictures)


@pytest.mark.parametrize("variant", [None, "random", "long_warmup"])
def test_the_page_of_hardly_any_long_runs(variant: str | None, tmp_path: Path):
    text = long_runs_page(tmp_path, [] if variant is None else [Unit(LONG_TASKS[0], variant, 0)])
    assert "0 of 27 runs of `figure2_long`" in text
    assert f"{int(variant == 'long_warmup')} of 6 runs of `silent_long`" in text
    assert "nan" not in text


def test_the_long_runs_leave_the_other_page_as_it_is(tmp_path: Path):
    units = [Unit(LONG_TASKS[0], "random", 0), Unit(LONG_TASKS[0], "long_paper", 0)]
    long_runs_page(tmp_path, units)
    assert set(figures.read(tmp_path / "results", Budget())["variant"]) == {"random"}
    assert "long" not in figures.missing_text(tmp_path / "results", Budget())


def test_the_curve_from_pixels_joins_figure_2(tmp_path: Path):
    run = tmp_path / "cartpole-swingup-3"
    run.mkdir()
    (run / "evaluations.csv").write_text("step,updates,mean_return\n0,0,7.5\n2000,999,75.0\n")
    pixels = figures.read_pixels(tmp_path)
    assert pixels.to_dict("list") == dict(
        task=["dm_control/cartpole-swingup-v0"] * 2, seed=[3, 3], step=[0, 6000], return_mean=[7.5, 75.0]
    )
    empty = figures.read(tmp_path / "nothing", SHORT)
    figure = plots.plot_returns(empty, ["paper"], pixels)
    lines = {axes.get_title(): [tuple(line.get_ydata()) for line in axes.get_lines()] for axes in figure.axes}
    assert [task for task, drawn in lines.items() if (7.5, 75.0) in drawn] == ["dm_control/cartpole-swingup-v0"]
    assert len(figures.read_pixels(tmp_path / "nothing")) == 0


def test_constant_actions_at_the_bounds():
    left, right = constant_returns(PENDULUM, 5)
    assert 15 < min(left, right) < max(left, right) < 30  # the pendulum falls, to either side
    returns = pd.Series([left, right * 1.001, right * 1.01, 9_000.0])
    assert share_of(returns, [left, right]) == 0.5


def test_the_report_of_nothing(tmp_path: Path):
    report.write(tmp_path / "results", tmp_path / "page.md", SHORT)
    n = len(list(GROUPS["peers"].units()))
    assert f"- `peers`: {n} of {n} runs" in (tmp_path / "page.md").read_text()
    overview.write(tmp_path / "results", tmp_path / "overview.md", SHORT)
    assert "No algorithm has 3 seeds of the first five tasks yet." in (tmp_path / "overview.md").read_text()


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
