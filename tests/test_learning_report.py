"""The learning benchmark's figures and pages."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from learning_units import PENDULUM, synthetic
from rliable import metrics

from benchmarks.learning import exploration, figures, long_runs, overview, plots, report, step_time, store
from benchmarks.learning.constant_actions import constant_returns, share_of
from benchmarks.learning.matrix import GROUPS, LEARNING_STARTS, LONG_TASKS, VARIANTS, Budget, Unit
from benchmarks.learning.store import UnitFile
from benchmarks.learning.tasks import TASKS, TUNING, WALKER
from benchmarks.markdown import BEGIN, END, number


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


def test_overestimation_is_q_less_the_discounted_rewards_left():
    lengths, reward, gamma = [3.0, 1000.0], 2.0, plots.GAMMA
    left = [[(1 - gamma ** (3 - t)) / (1 - gamma) for t in range(3)], [1 / (1 - gamma)]]
    rows = pd.DataFrame(dict(return_mean=[reward * n for n in lengths], length_mean=lengths, actor_loss=[-7.0, -300.0]))
    estimates = plots.with_estimates(rows, q_is_actor_loss=True)
    expected = [7 - reward * np.mean(left[0]), 300 - reward * np.mean(left[1])]
    np.testing.assert_allclose(estimates["overestimation"], expected)
    assert plots.with_estimates(rows, q_is_actor_loss=False)["q_estimate"].isna().all()


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
    assert "Not all stored yet" not in text
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
    _, two_updates = text.split("## Two updates a step\n")
    assert "| BNSAC, tuned, two updates a step | CrossQ, critics of 256 | XQC, published |" in two_updates
    assert all(any(line.endswith(f" | {number(mean)} |") for line in two_updates.splitlines()) for mean in report.XQC.values())
    assert "| BNSAC, tuned, two updates a step > CrossQ, critics of 256? | XQC's four | 3, 5 |" in two_updates
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
    assert f"- `figure2`: 9 of {len(figure2)} runs stored" in text
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
    assert f"- `peers`: 0 of {n} runs stored" in (tmp_path / "page.md").read_text()
    overview.write(tmp_path / "results", tmp_path / "overview.md", SHORT)
    assert "No algorithm has 3 seeds of the first five tasks yet." in (tmp_path / "overview.md").read_text()
