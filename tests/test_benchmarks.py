"""The speed benchmark itself: the floor's products, a worker's measurements, resuming, ratios, bars and the report."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch as th
from kernel_sets import KERNEL_SETS

import sb3_bn_ddpg
from benchmarks import markdown
from benchmarks.markdown import BEGIN, END
from benchmarks.speed import neighbour, report, worker
from benchmarks.speed.bars import BARS
from benchmarks.speed.breakdown import PARTS, REST, measure, seconds_by_part
from benchmarks.speed.contenders import BASELINE, COMPILED, CROSSQ, FAMILY, FLOOR, JAX_BASELINE, OURS
from benchmarks.speed.figures import ALONE, BESIDE, ratio, read, select, slope
from benchmarks.speed.floor import FloorSubject, Product, WholeFloorSubject, update_products
from benchmarks.speed.interleave import Field
from benchmarks.speed.profiles import PROFILES
from benchmarks.speed.run import FAMILY_BATCHES, measure_family
from benchmarks.speed.store import Key, Store
from benchmarks.speed.subject import ModelSpec


def test_products_of_an_update_by_hand():
    # States of 2, actions of 1, hidden layers of 5 and 4, batch 3. Multiplications for each transition:
    actor = 2 * 5 + 5 * 4 + 4 * 1
    critic = 2 * 5 + (5 + 1) * 4 + 4 * 1
    target = actor + critic
    critic_loss = critic + critic + (4 * 1 + 5 * 4)  # forward; weights; inputs of the output layer and of layer 2 (state)
    actor_loss = actor + critic + (4 * 1 + 1 * 4) + actor + (4 * 1 + 5 * 4)

    products = update_products(obs_dim=2, action_dim=1, net_arch=(5, 4), batch=3)
    assert (len(products.critics), len(products.actor)) == (6 + 8, 13)
    assert multiplications(products.critics) == 3 * (target + critic_loss)
    assert multiplications(products.actor) == 3 * actor_loss

    # Of SAC: two critics, both in the actor's loss, whose actor has an output for the standard deviation, too
    actor += 4 * 1
    products = update_products(obs_dim=2, action_dim=1, net_arch=(5, 4), batch=3, n_critics=2, n_of_actor=2, n_heads=2)
    assert multiplications(products.critics) == 3 * (actor + 2 * (critic + critic_loss))
    assert multiplications(products.actor) == 3 * (actor + 2 * critic + 2 * (4 * 1 + 1 * 4) + actor + (4 * 2 + 5 * 4))


def multiplications(products: list[Product]) -> int:
    return sum(product.m * product.k * product.n for product in products)


def test_floor_multiplies_matrices_of_these_shapes():
    floor = FloorSubject("torch", "", dict(policy_delay=2, n_critics=2))
    floor.construct(ModelSpec(obs_dim=2, action_dim=1, net_arch=(5, 4)))
    floor.update(count=1, batch_size=3, per_call=1)
    products = update_products(2, 1, (5, 4), 3, n_critics=2)
    for factors, expected in zip(floor.factors[3], products, strict=True):
        shapes = [(*left.shape, right.shape[1]) for left, right, _ in factors]
        assert shapes == [(product.m, product.k, product.n) for product in expected]
        for _, _, result in factors:
            result.fill_(-1e30)
    for count, done in ((1, [True, True]), (1, [True, False])):  # the second and the third update
        floor.update(count, batch_size=3, per_call=1)
        for factors, is_done in zip(floor.factors[3], done, strict=True):
            for left, right, result in factors:
                assert result.equal(left @ right) == is_done
                result.fill_(-1e30)


def test_the_whole_floor_moves_all_weights():
    floor = WholeFloorSubject("torch", "", {})
    floor.construct(ModelSpec(obs_dim=2, action_dim=1, net_arch=(5, 4), buffer_size=10))
    floor.fill()
    before = [[tensor.clone() for tensor in network] for network in floor.networks]
    floor.update(count=2, batch_size=3, per_call=1)
    assert [len(values) for values, *_ in floor.networks] == [2 * 5 + 5 * 4 + 4 * 1, 2 * 5 + (5 + 1) * 4 + 4 * 1]
    for network, old in zip(floor.networks, before, strict=True):
        unchanged = [th.equal(*pair) for pair in zip(network, old, strict=True)]
        assert unchanged == [False, True, False, False, False]
    assert floor.n_updates == 2


def test_workers_measure_in_rounds_and_a_second_run_adds_nothing(tmp_path: Path):
    key = Key("train", "", threads=1, batch_size=8)
    failed: set[str] = set()
    for _ in range(2):
        store = Store(tmp_path)
        with Field([OURS, BASELINE], 1, store, failed) as contenders:
            names = contenders.unfinished(key, rounds=2)
            for name in names:
                contenders.ask(name, "construct", net_arch=[8, 8], buffer_size=50)
                contenders.ask(name, "fill")
            contenders.measure(key, 2, 0.01, "update", batch_size=8)
    assert not failed
    rows = read(tmp_path)
    assert sorted(zip(rows["contender"], rows["round"], strict=True)) == [(OURS, 0), (OURS, 1), (BASELINE, 0), (BASELINE, 1)]
    assert (rows["value"] - rows["count"] / rows["seconds"]).abs().max() < 1e-3 * rows["value"].max()
    assert names == []


def test_crossq_of_the_family_is_the_packages():
    policy_kwargs = sb3_bn_ddpg.CROSSQ["policy_kwargs"]
    without_widths = {name: value for name, value in policy_kwargs.items() if name != "net_arch"}
    assert sb3_bn_ddpg.CROSSQ | {"policy_kwargs": without_widths} == CROSSQ


def test_the_family_is_measured_at_its_widths_and_compared_with_its_peers(tmp_path: Path):
    names = ["bnsac_crossq", "crossq"]
    profile = replace(PROFILES["smoke"], warm_up=1)
    failed: set[str] = set()
    measure_family(names, profile, partial(Field, threads=1, store=Store(tmp_path), failed=failed))
    assert not failed
    rows = select(read(tmp_path), figure="family")
    assert sorted(rows["contender"]) == sorted(names * 2 * 2)  # rounds and batches
    assert set(zip(rows["width"], rows["batch_size"], rows["per_call"], strict=True)) == {
        ("256-256", 64, 1),
        ("256-256", 256, 1),
    }
    _, rates, *_ = report.family_tables(tmp_path)  # those of stored processors follow
    bars = report.bars_table(tmp_path)
    ratios = {batch: markdown.number(ratio(select(rows, batch_size=batch), *names)) for batch in FAMILY_BATCHES}
    (line,) = (line for line in rates.splitlines() if line.startswith("| BNSAC as CrossQ |"))
    assert [cell.split(", ")[1] for cell in line.split("|")[3:5]] == [f"{ratios[batch]} x " for batch in FAMILY_BATCHES]
    for batch in FAMILY_BATCHES:
        (line,) = (
            line for line in bars.splitlines() if line.startswith("| BNSAC as CrossQ, over") and f"batch {batch} " in line
        )
        assert line.split("|")[3].strip(" *") == ratios[batch]
    assert all(contender.peer in FAMILY for contender in FAMILY.values())


def test_a_failing_contender_is_left_out_and_named(tmp_path: Path):
    failed: set[str] = set()
    with Field([FLOOR], 1, Store(tmp_path), failed) as contenders:
        assert contenders.ask(FLOOR, "learn", count=1) is None  # there is no model yet
        assert contenders.ask(FLOOR, "import_library") is None
    assert failed == {FLOOR}


def test_breakdown_knows_products_and_their_share():
    matrix = th.randn(400, 400)

    def update(count: int) -> None:
        for _ in range(count):
            th.mm(matrix, matrix)

    parts = seconds_by_part(update, 20)
    assert list(parts) == list(PARTS)
    assert parts["matrix products"] == max(parts.values())
    assert parts["batch norm"] == parts["Adam, targets"] == 0
    assert all(value >= 0 for value in parts.values())


def test_breakdown_of_a_worker_is_stored_once(tmp_path: Path):
    store = Store(tmp_path)
    for _ in range(2):
        with Field([OURS], 1, store, set()) as contenders:
            measure(contenders, replace(PROFILES["smoke"], batches=(8,)))
    rows = read(tmp_path)
    assert sorted(rows["variant"]) == sorted(PARTS)
    assert rows.set_index("variant")["value"][["matrix products", "batch norm", REST]].min() > 0


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three rounds of round figures, in the last of which the machine was half as fast."""
    store = Store(tmp_path / "results")
    for number, speed in enumerate((1.0, 1.0, 0.5)):
        for batch in (64, 256):
            key = Key("train", "", batch_size=batch, round=number)
            for name, rate in {OURS: 400, JAX_BASELINE: 200, BASELINE: 100, FLOOR: 1000}.items():
                for threads in (1, 2):
                    store.add(replace(key, contender=name, threads=threads), rate * speed * 64 / batch)
                for variant, slower in ((ALONE, 1), (BESIDE, 2)) if name in (OURS, BASELINE) else ():
                    beside = replace(key, figure="neighbour", contender=name, variant=variant)
                    store.add(beside, rate * speed * 64 / batch / slower)
    for name, rate in {OURS: 100, COMPILED: 100, BASELINE: 50}.items():
        store.add(Key("learn", name, threads=1), rate)
    for name, seconds in {OURS: 0.2, BASELINE: 0.1}.items():
        for figure in ("import", "first_update", "first_train", "peak_memory"):
            store.add(Key(figure, name, batch_size=256), seconds)
    for part, seconds in zip(PARTS, (0.004, 0.001, 0.0005, 0.0005, 0.002), strict=True):
        store.add(Key("breakdown", OURS, variant=part), seconds)
    for batch, rate in {64: 800, 256: 200, 1024: 50}.items():
        store.add(Key("scale_batch", OURS, batch_size=batch), rate)
    store.add(Key("buffer_memory", OURS, variant="float32"), 2 * (2 * 17 + 6 + 3) * 4 * 1000, count=1000)
    return tmp_path / "results"


def test_ratios_are_those_within_rounds(results: Path):
    rows = read(results)
    case = rows[(rows["figure"] == "train") & (rows["batch_size"] == 64)]
    assert ratio(case, OURS, BASELINE) == 4.0


def test_bars(results: Path):
    rows = read(results)
    measured = {bar.text: (bar.measured(rows), bar.met(bar.measured(rows))) for bar in BARS}
    assert measured["BNDDPG, share of the floor, batch 64"] == (0.4, False)
    assert measured["BNDDPG, compiled, `learn()` on HalfCheetah-v5, over SB3 DDPG, batch 64"] == (2.0, True)
    assert measured["BNDDPG, beside a second training, over alone, batch 64"] == (0.5, True)
    assert measured["BNDDPG, beside a second training, over SB3's, batch 64"] == (4.0, True)
    assert all(value != value and not is_met for text, (value, is_met) in measured.items() if text.startswith("BNTD3"))
    assert len(measured) == len(BARS)


def test_updates_beside_a_second_training(tmp_path: Path):
    names, failed = [OURS, BASELINE], set()
    profile = replace(PROFILES["smoke"], neighbour_batches=(8,))
    for _ in range(2):
        neighbour.measure(names, profile, Store(tmp_path), failed)
    assert not failed
    rows = read(tmp_path)
    expected = [(name, variant) for name in names for variant in (ALONE, BESIDE) for _ in range(profile.rounds)]
    assert sorted(zip(rows["contender"], rows["variant"], strict=True)) == sorted(expected)
    assert (rows["value"] > 0).all()


def test_kernels_are_the_processors_own(monkeypatch: pytest.MonkeyPatch):
    """Whatever the numbers of another one are asked for by."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("ANYTHING_ELSE", "kept")
    found = worker.process_variables(2, "cpu")
    assert "OPENBLAS_CORETYPE" not in found
    assert set().union(*KERNEL_SETS.values()) <= worker.KERNEL_VARIABLES
    assert (found["OMP_NUM_THREADS"], found["JAX_PLATFORMS"], found["ANYTHING_ELSE"]) == ("2", "cpu", "kept")


def test_slope_is_that_of_the_largest_sizes(results: Path):
    rows = read(results)
    own = rows[rows["figure"] == "scale_batch"].sort_values("batch_size")
    assert slope(own["batch_size"], own["value"], points=2) == pytest.approx(-1)


def test_published_page_of_the_gpu_is_that_of_its_results(tmp_path: Path):
    """Its own text and all of its tables; the bars are none of its own, for they are for a CPU."""
    folder = Path(report.__file__).parent / "results" / "gpu"
    published = (folder / "README.md").read_text()
    (tmp_path / "README.md").write_text(published)
    report.write(folder, tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == published
    assert "## Bars" not in published


def test_report_keeps_the_text_around_the_results(results: Path, tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n{BEGIN}\nstale\n{END}\nAfter\n")
    report.write(results, readme)
    first = readme.read_text()
    assert first.startswith("# Before\n")
    assert first.endswith("\nAfter\n")
    assert "stale" not in first
    assert "| BNDDPG | **400** (300 to 400), 4 x, 2 x |" in first
    assert "| BNDDPG, compiled, `learn()` on HalfCheetah-v5, over SB3 DDPG, batch 64 | 1.7 | **2** |" in first
    assert "| BNDDPG | 4 | 1 | 0.5 | 0.5 | 2 | 8 |" in first
    assert "| float32 | 0.164 | 0.328 | 2.000 |" in first
    assert {path.name for path in tmp_path.glob("*.png")} == {"train.png", "breakdown.png", "learn.png", "scale.png"}
    report.write(results, readme)
    assert readme.read_text() == first


def test_the_published_ranges_are_those_of_the_stored_results():
    """On the speed page (the share of the floor among them), and in the README's table of peers."""
    folder = Path(report.__file__).parent
    results = folder / "results" / "full"
    page, readme = (folder / "README.md").read_text(), (folder.parents[1] / "README.md").read_text()
    processors = report.one_thread(results)
    assert len(processors) >= 3
    tables = (report.ranges_table(results), report.processors_table(results), report.bars_table(results))
    for section in (*tables, *report.family_tables(results)):
        assert section in page
    for batch, row in ((64, "updates/s at batch 64, one thread, over SB3's"), (256, "the same at batch 256")):
        ours, compiled, sbx = (
            report.ratio_range(processors, name, BASELINE, batch) for name in (OURS, COMPILED, JAX_BASELINE)
        )
        measured = {name: rows for name, rows in processors.items() if "tianshou_ddpg" in set(rows["contender"])}
        tianshou, crossq = (report.ratio_range(measured, peer, BASELINE, batch) for peer in ("tianshou_ddpg", "crossq"))
        assert f"| {row} | {ours}, compiled **{compiled}** | 1 | {sbx} | | {tianshou} | {crossq} |" in readme
