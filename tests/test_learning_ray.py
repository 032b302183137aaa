"""The learning benchmark's units on a Ray cluster of two nodes, one of which dies in the middle."""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # read when Ray is imported
pytest.importorskip("ray")
pytest.importorskip("mujoco")

from ray.cluster_utils import Cluster

from benchmarks.learning import ray_cluster
from benchmarks.learning.matrix import Budget, Unit
from benchmarks.learning.store import differences, is_done, read_unit, unit_path
from benchmarks.learning.unit import run

pytestmark = pytest.mark.slow

BUDGET = Budget(steps=1_100, every=550, episodes=1)
UNITS = [Unit("InvertedDoublePendulum-v5", "sb3_ddpg", seed) for seed in range(5)]


def workers(node: Any) -> list[psutil.Process]:
    """The processes of a node that run a unit."""
    found = []
    for child in psutil.Process(node.all_processes["raylet"][0].process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if "ray::run_remotely" in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_for_workers(nodes: list[Any]) -> list[list[psutil.Process]]:
    """Wait until each node runs a unit, and return the processes of each that do."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        running = [workers(node) for node in nodes]
        if all(running):
            return running
        time.sleep(0.05)
    raise TimeoutError("a node never got a unit")


def test_a_node_dies_and_every_unit_is_finished_exactly_once(tmp_path: Path):
    results = tmp_path / "results"
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    killed: list[psutil.Process] = []

    def kill_a_node() -> None:
        killed.extend(wait_for_workers(nodes)[1])
        cluster.remove_node(nodes[1], allow_graceful=False)

    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        with ThreadPoolExecutor() as pool:
            killer = pool.submit(kill_a_node)
            outcomes = list(ray_cluster.run_units(UNITS, BUDGET, results, cluster.address, nice=0))
            killer.result()
    finally:
        cluster.shutdown()

    assert len(killed) == 1  # it was in the middle of a unit
    _, alive = psutil.wait_procs(killed, timeout=30)
    assert not alive
    assert [outcome.error for outcome in outcomes] == [""] * len(UNITS)
    assert Counter(outcome.unit for outcome in outcomes) == Counter(UNITS)
    assert sorted(path for path in results.rglob("*") if path.is_file()) == [unit_path(results, unit) for unit in UNITS]
    assert all(is_done(results, unit, BUDGET) for unit in UNITS)

    # And the numbers are those of a run on this machine
    run(UNITS[0], BUDGET, tmp_path / "local")
    stored, again = (read_unit(folder, UNITS[0]) for folder in (results, tmp_path / "local"))
    assert stored is not None
    assert again is not None
    assert differences(stored, again) == []


def test_a_failing_unit_is_reported_and_not_tried_again(tmp_path: Path):
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    try:
        units = [Unit("no such task", "sb3_ddpg", 0), Unit("Hopper-v5", "random", 0)]
        outcomes = {
            outcome.unit: outcome for outcome in ray_cluster.run_units(units, BUDGET, tmp_path, cluster.address, nice=0)
        }
    finally:
        cluster.shutdown()
    assert "no such task" in outcomes[units[0]].error
    assert outcomes[units[1]].error == ""
    assert [path.name for path in tmp_path.rglob("*.*")] == ["seed-0.csv"]
