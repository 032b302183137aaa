"""The report: ``python -m benchmarks.speed.report FOLDER`` makes the tables and plots of a run from its CSV files alone."""

import argparse
import math
from pathlib import Path

import pandas as pd

from benchmarks.markdown import MISSING, number, replace_results, table
from benchmarks.speed.bars import BARS
from benchmarks.speed.breakdown import PARTS
from benchmarks.speed.contenders import BASELINE, COMPILED, CONTENDERS, FAMILY, FLOOR, JAX_BASELINE, OURS, WHOLE_FLOOR
from benchmarks.speed.figures import PROCESSORS, ratio, read, select, summary, threads_text
from benchmarks.speed.machine import GPU
from benchmarks.speed.plots import DIMENSIONS, SCALES, plot_breakdown, plot_learn, plot_scale, plot_train, scale_lines

BREAKDOWN = "Milliseconds of one `train()` by PyTorch's profiler (shares of the profiled time, times the time without it)."
RATE = "median (quartiles), x SB3 DDPG, x SBX DDPG"


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the CSV files")
    parser.add_argument("--readme", type=Path, default=Path(__file__).with_name("README.md"))
    arguments = parser.parse_args()
    write(arguments.folder, arguments.readme)


def write(folder: Path, readme: Path) -> None:
    """
    Replace the results in the README, and its plots.

    :param folder: A run's results
    :param readme: The README; if it does not exist, it will consist of the results
    """
    rows = read(folder)
    figures = summary(rows)
    machine = machine_rows(folder)
    parts = ["## Machine and versions\n\n" + (table(["", ""], machine) if machine else "Not recorded.")]
    if GPU not in dict(machine):  # they are for the CPU
        parts.append("## One thread\n\n" + ranges_table(folder))
        parts.append("### By kind of processor\n\n" + processors_table(folder))
        parts.append("## Bars\n\n" + bars_table(folder))
        parts += family_tables(folder)
    readme.parent.mkdir(parents=True, exist_ok=True)  # the plots come first
    if len(select(figures, figure="train")):
        plot_train(figures, readme.with_name("train.png"))
        parts.append(f"## Updates/s of `train()`\n\nEach cell: {RATE}.\n\n![Updates/s over the batch size](train.png)")
        parts += train_tables(rows)
    if len(select(figures, figure="breakdown")):
        plot_breakdown(figures, readme.with_name("breakdown.png"))
        parts.append("## Where the time of an update goes\n\n" + BREAKDOWN + "\n\n![Milliseconds by part](breakdown.png)")
        parts += breakdown_tables(figures)
    if len(select(figures, figure="learn")):
        plot_learn(figures, readme.with_name("learn.png"))
        parts.append(f"## Environment steps/s of `learn()`\n\nHalfCheetah-v5, batch 64, one update a step. Each cell: {RATE}.")
        parts.append("![Environment steps/s](learn.png)\n\n" + learn_table(rows))
    if len(select(figures, figure="peak_memory")):
        parts.append("## Start and memory\n\n" + start_table(figures))
    if len(select(figures, figure="first_call")):
        parts.append(first_call_table(figures))
    if any(len(select(figures, figure=name)) for name in SCALES):
        plot_scale(figures, readme.with_name("scale.png"))
        parts.append("## Scale\n\n![Rates over sizes, with slopes](scale.png)")
        parts += scale_tables(figures)
    if len(select(figures, figure="buffer_memory")):
        parts.append(buffer_table(rows))
    replace_results(readme, parts)


def rate_cell(rows: pd.DataFrame, contender: str) -> str:
    """
    :param rows: Those of one case
    :param contender: The contender
    :return: Its median, quartiles and ratios
    """
    own = select(summary(rows), contender=contender)
    if own.empty:
        return MISSING
    median, low, high = (number(own[column].item()) for column in ("median", "low", "high"))
    ratios = ", ".join(f"{number(ratio(rows, contender, other))} x" for other in (BASELINE, JAX_BASELINE))
    return f"**{median}** ({low} to {high}), {ratios}"


def present(rows: pd.DataFrame) -> list[str]:
    """
    :param rows: Rows
    :return: The contenders in them, in the order of the table of contenders
    """
    return [name for name in CONTENDERS if name in set(rows["contender"])]


def machine_rows(folder: Path) -> list[list[str]]:
    """
    :param folder: A run's results
    :return: Machine and versions, a name and a value each; none if they were not recorded
    """
    path = folder / "machine.csv"
    return pd.read_csv(path).to_numpy().tolist() if path.exists() else []


RANGES: dict[str, tuple[str, str]] = {
    "share of the floor": (OURS, FLOOR),
    "share of the floor, compiled": (COMPILED, FLOOR),
    "over SB3's DDPG, which has no batch norm": (OURS, BASELINE),
    "over SB3's DDPG, compiled": (COMPILED, BASELINE),
    "over SBX's DDPG (JAX), which has none": (OURS, JAX_BASELINE),
    "over SBX's DDPG, compiled": (COMPILED, JAX_BASELINE),
}
"""Ratios of rates whose range over kinds of processors says where BNDDPG stands."""


def ratio_range(processors: dict[str, pd.DataFrame], contender: str, other: str, batch_size: int) -> str:
    """
    :param processors: Rates on one thread by kind of processor, as from :func:`one_thread`
    :param contender: The dividend
    :param other: The divisor
    :param batch_size: Transitions in an update
    :return: The least and the greatest ratio over kinds of processors, as ``"1.4 to 1.8"``; of the floor in percent
    """
    ratios = [ratio(select(rows, batch_size=batch_size), contender, other) for rows in processors.values()]
    low, high = (f"{end:.0%}" if other == FLOOR else f"{end:.1f}" for end in (min(ratios), max(ratios)))
    return low if low == high else f"{low} to {high}"


def ranges_table(folder: Path) -> str:
    """
    :param folder: The results of a run, beside which those of the profile "processor" count
    :return: The ranges over kinds of processors
    """
    processors = one_thread(folder)
    lines = [[text, *(ratio_range(processors, *pair, batch) for batch in (64, 256))] for text, pair in RANGES.items()]
    return "Ranges over the processors below.\n\n" + table(["cheetah, batch norm on", "batch 64", "batch 256"], lines)


def processors_table(folder: Path) -> str:
    """
    :param folder: The results of a run, which the table has beside those of the profile "processor"
    :return: For each kind of processor and batch size: share of the floor, and ratios to the peers
    """
    lines = []
    for name, rows in one_thread(folder).items():
        for batch, case in rows.groupby("batch_size"):
            measured = [ratio(case, each, FLOOR) for each in (OURS, COMPILED, WHOLE_FLOOR)]
            shares = [MISSING if math.isnan(share) else f"{share:.0%}" for share in measured]
            ratios = [number(ratio(case, each, other)) for other in (BASELINE, JAX_BASELINE) for each in (OURS, COMPILED)]
            lines.append([name, str(batch), *shares, *ratios])
    shares = ["share of the floor", "compiled", "Adam, targets, sampling alone"]
    header = ["Processor", "batch", *shares, "over SB3 DDPG", "compiled", "over SBX DDPG", "compiled"]
    text = (
        "Cheetah dimensions, batch norm on, one update a call. The third share is what the products reach together with Adam "
        "and the Polyak average over all weights and a gathered minibatch, without batch norm, activations, losses and Python."
    )
    return f"{text}\n\n" + table(header, lines)


def one_thread(folder: Path) -> dict[str, pd.DataFrame]:
    """
    :param folder: The results of a run
    :return: For it and each run of the profile "processor", by the processor's name: rates of ``train()`` on one thread,
        cheetah dimensions, batches of 64 and 256
    """
    case = dict(figure="train", threads=1, obs_dim=17, action_dim=6, per_call=1)
    processors = {name: select(rows, **case) for name, rows in by_processor(folder).items()}
    return {name: rows[rows["batch_size"].isin([64, 256])] for name, rows in processors.items() if len(rows)}


def by_processor(folder: Path) -> dict[str, pd.DataFrame]:
    """
    :param folder: The results of a run
    :return: Its rows and those of each run of the profile "processor", by the processor's name
    """
    folders = [folder, *sorted(PROCESSORS.glob("*/"))]
    return {dict(machine_rows(each)).get("Processor", MISSING): read(each) for each in folders}


def bars_table(folder: Path) -> str:
    """
    :param folder: The results of a run, beside which those of the profile "processor" count
    :return: Each bar, and on each processor what was measured; in bold where it meets the bar
    """
    columns, lines = by_processor(folder), []
    for bar in BARS:
        values = [bar.measured(rows) for rows in columns.values()]
        cells = [f"**{number(value)}**" if bar.met(value) else number(value) for value in values]
        lines.append([bar.text, f"{bar.bound:g}", *cells])
    text = (
        "Ratios of rates, medians of the rounds' ratios, in bold where they are at least what is asked. Cheetah dimensions, "
        "400 and 300 units, one thread and one update a call unless it says so; two threads beside a second training. Ours "
        "with batch norm; SB3's and SBX's have it in CrossQ alone."
    )
    return f"{text}\n\n" + table(["Bar", "asked", *columns], lines)


def family_tables(folder: Path) -> list[str]:
    """
    :param folder: The results of a run, which the tables have beside those of the profile "processor"
    :return: TD3, SAC and CrossQ over kinds of processors; nothing if they were not measured
    """
    columns = {name: select(rows, figure="family", threads=1) for name, rows in by_processor(folder).items()}
    columns = {name: rows for name, rows in columns.items() if len(rows)}
    if not columns:
        return []
    sections = ["## TD3, SAC and CrossQ\n\nOne thread, cheetah dimensions. Medians; ratios are those of rounds."]
    for processor, rows in columns.items():
        for width in sorted(rows["width"].unique()):
            sections.append(
                f"### {processor}: {width.replace('-', ' and ')} units\n\n" + family_rates(select(rows, width=width))
            )
    return sections


def family_rates(rows: pd.DataFrame) -> str:
    """
    :param rows: Those of one processor and width
    :return: Updates/s and ratios to the peer, over batch sizes and updates in a call
    """
    cases = {
        f"batch {batch}" + ("" if per_call == 1 else f", {per_call} in a call"): case
        for (per_call, batch), case in rows.groupby(["per_call", "batch_size"])
    }
    lines = []
    for name in [name for name in FAMILY if name in set(rows["contender"])]:
        peer = CONTENDERS[name].peer
        cells = [number(select(summary(case), contender=name)["median"].median()) for case in cases.values()]
        ratios = [number(ratio(case, name, peer)) for case in cases.values()]
        both = [
            rate if rate == MISSING or of == MISSING else f"{rate}, {of} x" for rate, of in zip(cells, ratios, strict=True)
        ]
        lines.append([CONTENDERS[name].label, CONTENDERS[peer].label, *both])
    return table(["Updates/s", "peer", *cases], lines)


def train_tables(rows: pd.DataFrame) -> list[str]:
    """
    :param rows: All rows
    :return: For each number of threads, updates a call, and dimensions: contenders over batch sizes
    """
    rows = select(rows, figure="train")
    tables = []
    for (threads, per_call), some in sorted(rows.groupby(["threads", "per_call"]), key=lambda item: (-item[0][0], item[0][1])):
        for dimensions, title in DIMENSIONS.items():
            case = select(some, obs_dim=dimensions[0], action_dim=dimensions[1])
            if case.empty:
                continue
            batches = sorted(case["batch_size"].unique())
            lines = [
                [CONTENDERS[name].label, *(rate_cell(select(case, batch_size=batch), name) for batch in batches)]
                for name in present(case)
            ]
            calls = "" if per_call == 1 else f", {per_call} updates in a call"
            heading = f"### {title.capitalize()}, {threads_text(threads)}{calls}\n\n"
            tables.append(heading + table(["Updates/s", *(f"batch {batch}" for batch in batches)], lines))
    return tables


def breakdown_tables(figures: pd.DataFrame) -> list[str]:
    """
    :param figures: The summary
    :return: For each number of threads and batch size: the parts of an update over contenders
    """
    tables = []
    figures = select(figures, figure="breakdown")
    for (threads, batch), some in sorted(
        figures.groupby(["threads", "batch_size"]), key=lambda item: (-item[0][0], item[0][1])
    ):
        lines = []
        for name in present(some):
            own = select(some, contender=name).set_index("variant")["median"].reindex(PARTS) * 1e3
            lines.append([CONTENDERS[name].label, *map(number, own), number(own.sum())])
        title = f"{threads_text(threads).capitalize()}, batch {batch}"
        tables.append(table([title, *PARTS, "sum"], lines))
    return tables


def learn_table(rows: pd.DataFrame) -> str:
    """
    :param rows: All rows
    :return: Contenders over numbers of threads
    """
    rows = select(rows, figure="learn")
    threads = sorted(rows["threads"].unique(), reverse=True)
    lines = [
        [CONTENDERS[name].label, *(rate_cell(select(rows, threads=count), name) for count in threads)]
        for name in present(rows)
    ]
    return table(["Steps/s", *map(threads_text, threads)], lines)


def start_table(figures: pd.DataFrame) -> str:
    """
    :param figures: The summary
    :return: Medians of imports, first updates and memory of new processes
    """
    columns = {
        "import": ("import, s", 1.0),
        "first_update": ("from the constructor to the first finished update, s", 1.0),
        "first_train": ("of this the first `train()`, s", 1.0),
        "peak_memory": ("peak resident memory, MiB", 2.0**20),
    }
    lines = []
    for name in present(select(figures, figure="peak_memory")):
        medians = select(figures, contender=name).set_index("figure")["median"]
        lines.append([CONTENDERS[name].label, *(number(medians[key] / unit) for key, (_, unit) in columns.items())])
    return table(["Batch 256", *(title for title, _ in columns.values())], lines)


def first_call_table(figures: pd.DataFrame) -> str:
    """
    :param figures: The summary
    :return: Seconds of the first call of ``train()`` with a new batch size, which the rates leave out
    """
    case = select(figures, figure="first_call", obs_dim=17, width="400-300", per_call=1)
    case = select(case, threads=case["threads"].max())
    seconds = case.pivot_table(index="contender", columns="batch_size", values="median").reindex(present(case))
    title = "Seconds of the first `train()` with each batch size, which the rates leave out (batch 64 came first):\n\n"
    lines = [
        [CONTENDERS[str(name)].label, *map(number, row)] for name, row in zip(seconds.index, seconds.to_numpy(), strict=True)
    ]
    return title + table(["", *(f"batch {batch}" for batch in seconds.columns)], lines)


def scale_tables(figures: pd.DataFrame) -> list[str]:
    """
    :param figures: The summary
    :return: For each size that was scaled: its rates and slope for each contender
    """
    tables = []
    for name, (_, title, unit) in SCALES.items():
        lines = scale_lines(figures, name)
        if lines:
            sizes = sorted({size for one, _, _ in lines.values() for size in one})
            cells = [
                [
                    CONTENDERS[contender].label,
                    *(number(value) for value in own.set_index(one)["median"].reindex(sizes)),
                    f"{exponent:.2f}",
                ]
                for contender, (one, own, exponent) in lines.items()
            ]
            tables.append(f"{unit.capitalize()} over {title}:\n\n" + table(["", *map(str, sizes), "slope"], cells))
    return tables


def buffer_table(rows: pd.DataFrame) -> str:
    """
    :param rows: All rows
    :return: Measured memory of a replay buffer beside the bytes of its numbers
    """
    lines = []
    rows = select(rows, figure="buffer_memory").rename(columns={"count": "transitions"})  # tuples have a method count
    for row in rows.itertuples():
        state_bytes = {"float32": 4, "float64": 8}[row.variant]
        # Both states, and in float32 the action, the reward, and whether the episode ended or was cut off
        theory = row.transitions * (2 * row.obs_dim * state_bytes + (row.action_dim + 3) * 4)
        lines.append([row.variant, *(number(size / 2**20) for size in (theory, row.value)), f"{row.value / theory:.3f}"])
    title = f"Replay buffer of {rows['transitions'].max():,} transitions, cheetah dimensions:\n\n"
    return title + table(["States stored as", "theory, MiB", "resident, MiB", "ratio"], lines)


if __name__ == "__main__":
    main()
