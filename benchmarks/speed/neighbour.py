"""Updates/s beside a second training on the same cores, and alone: in turns, so that a ratio is of one moment."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from benchmarks.speed.contenders import BASELINE, COMPILED, JAX_BASELINE, OURS
from benchmarks.speed.figures import ALONE, BESIDE
from benchmarks.speed.interleave import Field
from benchmarks.speed.profiles import Profile
from benchmarks.speed.store import Key, Store

CONTENDERS_BESIDE = (OURS, COMPILED, BASELINE, JAX_BASELINE)
THREADS = 2


def measure(names: list[str], profile: Profile, store: Store, failed: set[str]) -> None:
    """
    :param names: Names of the contenders that may be measured
    :param profile: The extent
    :param store: Where the measurements go
    :param failed: Receives the names of those that failed
    """
    names = [name for name in CONTENDERS_BESIDE if name in names]
    key = Key("neighbour", "", THREADS)
    rows = [
        replace(key, contender=name, batch_size=batch, variant=variant, round=number)
        for batch in profile.neighbour_batches
        for number in range(profile.rounds)
        for name in names
        for variant in (ALONE, BESIDE)
    ]
    rows = [row for row in rows if row not in store]
    if not rows:
        return
    field = partial(Field, names, THREADS, store, failed)
    with field() as contenders, field() as neighbours:
        for name in tqdm(names, desc="models beside each other"):
            for each in (contenders, neighbours):
                each.ask(name, "construct")
                each.ask(name, "fill")
                each.ask(name, "update", count=profile.warm_up, batch_size=key.batch_size)
        counts: dict[tuple[str, int], int] = {}
        for row in tqdm(rows, desc=f"alone and beside each other, {THREADS} threads"):
            case, update = (row.contender, row.batch_size), dict(batch_size=row.batch_size)
            if case not in counts:
                counts[case] = contenders.calibrate(row.contender, 1, profile.slice_seconds, "update", update)
            measured: dict[str, Any] = update | dict(count=counts[case])
            if row.variant == ALONE:
                reply = contenders.ask(row.contender, "update", **measured)
            else:
                reply = _beside(contenders, neighbours, row.contender, measured)
            if reply is not None:
                store.add(row, counts[case] / reply["seconds"], counts[case], reply["seconds"])


def _beside(contenders: Field, neighbours: Field, name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """
    :param contenders: The contenders
    :param neighbours: The same once more
    :param name: The one that is measured, and the one that trains beside it
    :param arguments: Of the updates
    :return: The answer to it, or None if one of the two failed
    """
    begun, ends = threading.Event(), threading.Event()

    def train() -> bool:
        is_well = True
        while is_well and not ends.is_set():
            begun.set()
            is_well = neighbours.ask(name, "update", **arguments | dict(count=max(arguments["count"] // 8, 1))) is not None
        return is_well

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        begun.wait()
        try:
            reply = contenders.ask(name, "update", **arguments)
        finally:
            ends.set()
        return reply if training.result() else None
