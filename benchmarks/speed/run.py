"""The speed benchmark: ``python -m benchmarks.speed.run --profile quick`` measures and writes CSV, then the report."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks.speed import breakdown, neighbour, report, scale
from benchmarks.speed.contenders import CONTENDERS, DDPGS, FAMILY
from benchmarks.speed.figures import PROCESSORS, UPDATES_PER_CALL, threads_text
from benchmarks.speed.interleave import Field, console
from benchmarks.speed.machine import kind, write_machine
from benchmarks.speed.profiles import PROFILES, Profile
from benchmarks.speed.store import Key, Store

FAMILY_WIDTHS: dict[str, tuple[str, ...]] = {
    "256-256": tuple(name for name in FAMILY if not name.startswith("floor")),
    "400-300": ("bntd3", "bntd3_compiled", "sb3_td3", "floor_td3", "bnsac", "bnsac_compiled", "sb3_sac", "floor_sac"),
}
"""What TD3, SAC and CrossQ are compared at: all at the widths of SAC and CrossQ, some at the paper's, where the floors are."""
FAMILY_BATCHES = (64, 256)
MANY_PER_CALL = ("bnsac_crossq_compiled", "sbx_sac", "sbx_crossq")
"""Those also measured with many updates in a call of ``train()``, which JAX compiles as one."""


def main() -> None:
    """Parse the command line, measure, report; exit code 1 if a contender failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help="by default, the profile's")
    parser.add_argument("--results", type=Path, help="folder of the CSV files; what they hold is not measured again")
    parser.add_argument("--readme", type=Path, help="where the tables go: README.md, of the profile full in this folder")
    arguments = parser.parse_args()
    profile = PROFILES[arguments.profile]
    results = Path(__file__).parent / "results"
    of_profile = PROCESSORS / "-".join(kind()) if arguments.profile == "processor" else results / arguments.profile
    folder = arguments.results or of_profile

    store, names = Store(folder), arguments.contenders or list(profile.contenders or DDPGS)
    family = [name for name in FAMILY if name in (arguments.contenders or FAMILY)] if profile.family else []
    names = [name for name in names if name in DDPGS]
    failed: set[str] = set()
    for threads in profile.threads:
        field = partial(Field, threads=threads, store=store, failed=failed, device=profile.device)
        with field(names) as contenders:
            # At other dimensions than cheetah's on one thread alone
            for dimensions in profile.dimensions if threads == min(profile.threads) else profile.dimensions[:1]:
                measure_train(contenders, profile, dimensions)
        if threads in profile.learn_threads:
            with field([name for name in names if CONTENDERS[name].learns]) as contenders:
                measure_learn(contenders, profile)
        with field([name for name in names if name in breakdown.CONTENDERS_ON_TORCH]) as contenders:
            breakdown.measure(contenders, profile)
    measure_family(family, profile, partial(Field, threads=min(profile.threads), store=store, failed=failed))
    neighbour.measure(names, profile, store, failed)
    measure_start(names, profile, store, failed)
    scale.measure(names, profile, store, failed)
    write_machine(folder, [name for name in dict.fromkeys([*names, *family]) if name not in failed], profile.device)

    # Neither a quick look nor another device's tables replace the published ones, which have all processors' in them
    own_page = Path(__file__).with_name("README.md")
    if arguments.profile == "processor" and not arguments.readme:
        report.write(results / "full", own_page)
    else:
        report.write(folder, arguments.readme or (own_page if arguments.profile == "full" else folder / "README.md"))
    if failed:
        console.print(f"[red]Not measured, or not in full: {', '.join(sorted(failed))}[/red]")
        sys.exit(1)


def measure_train(contenders: Field, profile: Profile, dimensions: tuple[int, int]) -> None:
    """
    Updates/s of ``train()`` over batch sizes, sampling from the replay buffer included.

    :param contenders: The contenders
    :param profile: The extent
    :param dimensions: Dimensions of states and actions
    """
    key = Key("train", "", contenders.threads, *dimensions)
    cases = [replace(key, batch_size=batch) for batch in profile.batches]
    if dimensions == profile.dimensions[0]:
        cases += [replace(key, batch_size=batch, per_call=UPDATES_PER_CALL) for batch in profile.calls]
    measure_cases(contenders, profile, cases)


def measure_family(names: list[str], profile: Profile, field: Callable[[list[str]], Field]) -> None:
    """
    Updates/s of TD3, SAC and CrossQ, at the same sizes.

    :param names: Names of the contenders
    :param profile: The extent
    :param field: Starts the workers of contenders
    """
    for width, at_width in FAMILY_WIDTHS.items():
        for some, per_call in ((at_width, 1), ([name for name in at_width if name in MANY_PER_CALL], UPDATES_PER_CALL)):
            with field([name for name in names if name in some]) as contenders:
                key = Key("family", "", contenders.threads, width=width, per_call=per_call)
                measure_cases(contenders, profile, [replace(key, batch_size=batch) for batch in FAMILY_BATCHES])


def measure_cases(contenders: Field, profile: Profile, cases: list[Key]) -> None:
    """
    Updates/s of one model of each contender.

    :param contenders: The contenders
    :param profile: The extent
    :param cases: What is measured, with the same dimensions and width
    """
    cases = [case for case in cases if contenders.unfinished(case, profile.rounds)]
    if not cases:
        return
    dimensions = (cases[0].obs_dim, cases[0].action_dim)
    net_arch = [int(units) for units in cases[0].width.split("-")]
    names = sorted(
        {name for case in cases for name in contenders.unfinished(case, profile.rounds)}, key=contenders.names.index
    )
    for name in tqdm(names, desc=f"models {dimensions[0]}-{dimensions[1]}, {threads_text(contenders.threads)}"):
        contenders.ask(name, "import_library")
        contenders.ask(name, "construct", obs_dim=dimensions[0], action_dim=dimensions[1], net_arch=net_arch)
        contenders.ask(name, "fill")
    warm: set[str] = set()
    for case in cases:
        unfinished = contenders.unfinished(case, profile.rounds)
        for name in tqdm(unfinished, desc=f"warm-up, batch {case.batch_size}"):
            warm_up(contenders, name, case, profile.warm_up_batch if name in warm else profile.warm_up)
        warm |= set(unfinished)
        measure_updates(contenders, case, profile.rounds, profile.slice_seconds)


def warm_up(contenders: Field, name: str, case: Key, updates: int) -> None:
    """
    Updates before those that count; the time of the first call, which may compile, is recorded.

    :param contenders: The contenders
    :param name: The one to warm up
    :param case: What is measured next
    :param updates: Number of updates after the first call, rounded to whole calls
    """
    arguments = dict(batch_size=case.batch_size, per_call=case.per_call)
    first = contenders.ask(name, "update", count=case.per_call, **arguments)
    row = replace(case, figure="first_call", contender=name)
    if first is not None and row not in contenders.store:
        contenders.store.add(row, first["seconds"], case.per_call, first["seconds"])
    contenders.ask(name, "update", count=max(updates // case.per_call, 1) * case.per_call, **arguments)


def measure_updates(contenders: Field, case: Key, rounds: int, slice_seconds: float) -> None:
    """
    :param contenders: The contenders, warmed up
    :param case: What is measured
    :param rounds: Number of rounds
    :param slice_seconds: Time of one measurement
    """
    name = (
        f"{case.figure} {case.obs_dim}-{case.action_dim}, {case.width}, batch {case.batch_size}, {threads_text(case.threads)}"
    )
    with tqdm(total=rounds, desc=name) as progress:
        contenders.measure(
            case,
            rounds,
            slice_seconds,
            "update",
            case.per_call,
            progress.update,
            batch_size=case.batch_size,
            per_call=case.per_call,
        )


def measure_learn(contenders: Field, profile: Profile) -> None:
    """
    Environment steps/s of ``learn()``, one update a step.

    :param contenders: The contenders
    :param profile: The extent
    """
    key = Key("learn", "", contenders.threads)
    for name in tqdm(contenders.unfinished(key, profile.rounds), desc=f"warm-up learn, {threads_text(contenders.threads)}"):
        contenders.ask(name, "construct", n_envs=0, buffer_size=1_000_000, batch_size=key.batch_size)
        contenders.ask(name, "learn", count=profile.learn_warm_up)
    with tqdm(total=profile.rounds, desc=f"learn, {threads_text(contenders.threads)}") as progress:
        contenders.measure(key, profile.rounds, profile.slice_seconds, "learn", on_round=progress.update)


def measure_start(names: list[str], profile: Profile, store: Store, failed: set[str]) -> None:
    """
    Imports, first updates and memory of new processes at cheetah dimensions and batch 256.

    :param names: Names of the contenders
    :param profile: The extent
    :param store: Where the measurements go
    :param failed: Receives the names of those that failed
    """
    key = Key("peak_memory", "", max(profile.threads), batch_size=256)
    for number in tqdm(range(profile.start_rounds), desc="import, first update, memory"):
        for name in names:
            row = replace(key, contender=name, round=number)
            if row in store:
                continue
            with Field([name], row.threads, store, failed, profile.device) as contenders:
                imports = contenders.ask(name, "import_library")
                construct = contenders.ask(name, "construct", batch_size=row.batch_size)
                contenders.ask(name, "fill")
                first = contenders.ask(name, "update", count=1, batch_size=row.batch_size)
                contenders.ask(name, "update", count=profile.warm_up_batch, batch_size=row.batch_size)
                memory = contenders.ask(name, "memory")
                if imports is None or construct is None or first is None or memory is None:
                    continue
                store.add(replace(row, figure="import"), imports["seconds"])
                store.add(replace(row, figure="first_train"), first["seconds"])
                store.add(replace(row, figure="first_update"), construct["seconds"] + first["seconds"])
                store.add(row, memory["peak"])  # last: its row says that all four are there


if __name__ == "__main__":
    main()
