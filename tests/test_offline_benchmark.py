"""The benchmark of offline learning: datasets by a recipe, units beside d3rlpy's, the page."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rliable")
pytest.importorskip("mujoco")
pytest.importorskip("minari")

from benchmarks.learning import unit as learning_unit
from benchmarks.learning.matrix import ALL_GROUPS, OFFLINE, VARIANTS, Budget, Unit, config_hash, kwargs_of
from benchmarks.learning.store import UnitFile
from benchmarks.offline import d3rlpy_model, data, report, variants
from benchmarks.offline.variants import CHANGES, PEER, RECIPE, TASKS, Recipe, names, variant_name
from sb3_bn_ddpg.datasets.transitions import transitions_of

TINY = Recipe(seed=3, half_steps=1_010, steps=1_020, medium_steps=60)
BUDGET = Budget(20, 10, 1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The benchmark with a small teacher and a short recipe; the folder of its results."""
    monkeypatch.setattr(data.dataset, "__defaults__", (tmp_path / "datasets",))
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    monkeypatch.setattr(variants, "OWN_RECIPES", {})
    teacher = VARIANTS[TINY.teacher]
    kwargs = teacher.kwargs | dict(policy_kwargs=dict(net_arch=[8]), batch_size=16, fast_update=True)
    monkeypatch.setitem(VARIANTS, TINY.teacher, dataclasses.replace(teacher, kwargs=kwargs))
    for name in names("bn_td3_bc", "bn_awac"):
        variant = VARIANTS[name]
        monkeypatch.setitem(
            VARIANTS, name, dataclasses.replace(variant, kwargs=variant.kwargs | dict(recipe=TINY._asdict()), every=10)
        )
    return tmp_path / "results"


def test_what_is_declared():
    units = {unit for group in OFFLINE.values() for unit in group.units()}
    assert len([unit for unit in units if unit.variant != "random"]) == 3 * 2 * 4 * 4 * 3 + len(CHANGES) * 3 * 3
    assert OFFLINE.keys() <= ALL_GROUPS.keys()
    assert {VARIANTS[unit.variant].kwargs["recipe"]["seed"] for unit in units if unit.variant != "random"} == {RECIPE.seed}
    assert RECIPE.teacher in VARIANTS
    assert {unit.task for unit in units} == set(TASKS)
    for task, own in variants.OWN_RECIPES.items():
        assert own["teacher"] in VARIANTS
        unit, other = (Unit(name, variant_name("medium", "bn_iql", "batch"), 0) for name in (task, TASKS[0]))
        assert kwargs_of(unit)["recipe"] == RECIPE._replace(**own)._asdict()
        assert kwargs_of(other) == VARIANTS[other.variant].kwargs


def test_another_teacher_makes_another_run(monkeypatch: pytest.MonkeyPatch):
    units = [Unit(task, variant_name("medium", "bn_iql", "batch"), 0) for task in ("Hopper-v5", "Walker2d-v5")]
    before = [config_hash(unit, Budget()) for unit in units]
    monkeypatch.setattr(variants, "OWN_RECIPES", {"Hopper-v5": dict(teacher="tuned")})
    after = [config_hash(unit, Budget()) for unit in units]
    assert before[0] != after[0]
    assert before[1] == after[1]


def stored_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        file.readline()
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_units_learn_from_the_recipes_datasets(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """Both datasets of a task are made once, as the recipe says."""
    of_td3_bc = Unit("Hopper-v5", variant_name("medium", "bn_td3_bc", "batch"), 0)
    rows = stored_rows(learning_unit.run(of_td3_bc, BUDGET, tiny))
    assert [row["step"] for row in rows] == ["0", "10", "20"]
    assert all(float(row["length_mean"]) >= 1 for row in rows)
    assert float(rows[-1]["critic_loss"]) > 0

    def again(*arguments: object) -> None:
        raise AssertionError("the datasets are there")

    monkeypatch.setattr(data, "make", again)
    medium, replay = (data.dataset("Hopper-v5", kind, TINY) for kind in ("medium", "replay"))
    assert medium.total_steps == TINY.medium_steps
    assert replay.total_steps == TINY.steps
    of_awac = Unit("Hopper-v5", variant_name("replay", "bn_awac", "none"), 0)
    path = learning_unit.run(of_awac, BUDGET, tiny)
    assert len(stored_rows(path)) == 3
    digests = [transitions_of(each).digest() for each in (medium, replay)]
    assert json.loads(path.read_text().splitlines()[0].removeprefix("# "))["dataset"] == digests[1] != digests[0]


@pytest.mark.slow
@pytest.mark.skipif(not d3rlpy_model.PYTHON.exists(), reason="make bench-offline builds d3rlpy's environment")
@pytest.mark.skipif(np.__version__ < "2", reason="it has NumPy 2, whose arrays NumPy 1 cannot unpickle")
def test_d3rlpys_algorithms_are_evaluated_likewise(tiny: Path):
    rows = stored_rows(learning_unit.run(Unit("Hopper-v5", variant_name("replay", "bn_td3_bc", PEER), 0), BUDGET, tiny))
    assert [row["step"] for row in rows] == ["0", "10", "20"]
    assert float(rows[-1]["cpu_seconds"]) > 0


def test_without_d3rlpys_environment(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(d3rlpy_model, "PYTHON", d3rlpy_model.ROOT / "nowhere")
    with pytest.raises(SystemExit, match="make bench-offline"):
        learning_unit.run(Unit("Hopper-v5", variant_name("replay", "bn_td3_bc", PEER), 0), BUDGET, tiny)


def store(folder: Path, unit: Unit, returns: list[float], **header: str) -> None:
    with UnitFile(folder, unit, Budget()) as file:
        file.header |= header
        for step, value in enumerate(returns):
            file.add(dict(step=step, return_mean=value, cpu_seconds=10.0 * step))


def test_the_page(tmp_path: Path):
    page, results = tmp_path / "page.md", tmp_path / "results"
    report.write(results, page, Budget())
    assert "0 of 306 runs are stored." in page.read_text()

    store(results, Unit("Hopper-v5", "random", 0), [0.0])
    for seed in range(3):
        returns = [0.0, 900.0 + 300 * seed, *[300.0 * seed] * 4]  # the reference of Hopper is 3,000
        store(results, Unit("Hopper-v5", variant_name("medium", "bn_iql", "batch"), seed), returns)
    store(results, Unit("Hopper-v5", variant_name("medium", "bn_iql", "none"), 1), [0.0, 600.0, 300.0, 300.0, 300.0])
    report.write(results, page, Budget())
    text = page.read_text()
    assert "4 of 306 runs are stored." in text
    line = next(line for line in text.splitlines() if line.startswith("| Hopper-v5 medium"))
    none, batch, layer, peer = (cell.strip() for cell in line.strip("|").split("|")[1:])
    assert none == "0.12 / 0.20 (1 of 3 seeds)"
    assert batch == "0.10 [0.00, 0.20] / 0.40 [0.30, 0.50]"
    assert layer == peer == "-"
    assert "No two columns have 3 seeds of a dataset yet." in text

    # Two more datasets, with all seeds: batch norm is 0.1 better on each, no normalisation as good as d3rlpy's
    for name in ("none", PEER):
        for seed in range(3):
            store(results, Unit("Hopper-v5", variant_name("medium", "bn_iql", name), seed), [0.0, *[300.0 * seed - 300.0] * 5])
    for column, value in (("batch", 900.0), ("none", 600.0), (PEER, 300.0)):
        for seed in range(3):
            store(results, Unit("Hopper-v5", variant_name("replay", "bn_iql", column), seed), [0.0, *[value + seed] * 5])
    report.write(results, page, Budget())
    text = page.read_text()
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| IQL: ")}
    assert list(lines) == [
        "IQL: batch norm > no normalisation?",
        "IQL: no normalisation > d3rlpy?",
        "IQL: batch norm > d3rlpy?",
    ]
    assert "| 2 | 0.100 [0.033, 0.167] |" in lines["IQL: batch norm > no normalisation?"]
    # Of 9 pairs of runs it is better in 7 on one dataset, in 9 on the other
    assert lines["IQL: batch norm > no normalisation?"].endswith("| 0.89 [0.67, 1.00] |")
    assert "wholly below d3rlpy's in 0 and above d3rlpy's in 1 (IQL on Hopper-v5 replay) of 2 cells" in text
    assert (tmp_path / "page" / "scores.svg").stat().st_size > 1_000
    assert not any(change.title in text for change in CHANGES)

    for change in CHANGES:
        store(results, Unit("Hopper-v5", change.variant, 0), [0.0, *[600.0] * 5])
    report.write(results, page, Budget())
    for change in CHANGES:
        _, told = page.read_text().split(f"### {change.title}\n")
        line = next(line for line in told.splitlines() if line.startswith(f"| Hopper-v5 {change.kind} |"))
        assert line.endswith(" | 0.20 / 0.20 (1 of 3 seeds) |")
    assert page.read_text().count("AWAC: ") == text.count("AWAC: ")  # they take no part in the comparisons


def test_the_page_tells_of_datasets_and_machines(tmp_path: Path):
    page, results = tmp_path / "page.md", tmp_path / "results"
    none, batch = (variant_name("medium", "bn_iql", column) for column in ("none", "batch"))
    returns = [0.0, *[600.0] * 5]  # 50 seconds
    store(results, Unit("Hopper-v5", none, 0), returns)
    store(results, Unit("Hopper-v5", none, 1), returns, machine="slow", dataset="aaaa")
    store(results, Unit("Hopper-v5", batch, 0), [*returns, 600.0], machine="slow", dataset="aaaa")
    store(results, Unit("Walker2d-v5", batch, 0), returns, machine="quick", dataset="bbbb")
    report.write(results, page, Budget())
    text = page.read_text()
    assert "one for all runs that name it: Hopper-v5 medium aaaa, Walker2d-v5 medium bbbb." in text
    assert "Runs from before digests were stored: 1." in text
    assert "| IQL | 50 | 60 | - | - |" in text  # only those of the slow one

    store(results, Unit("Hopper-v5", batch, 1), returns, machine="quick", dataset="cccc")
    report.write(results, page, Budget())
    assert "not to be compared** (digests): Hopper-v5 medium: aaaa, cccc." in page.read_text()
