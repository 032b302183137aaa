"""Where the time of an update goes: PyTorch's profiler over the contenders on PyTorch, by kind of operation."""

import time
from collections.abc import Callable
from dataclasses import replace

from tqdm import tqdm

from benchmarks.speed.contenders import BASELINE, OURS
from benchmarks.speed.interleave import Field
from benchmarks.speed.profiles import Profile
from benchmarks.speed.store import Key

CONTENDERS_ON_TORCH = (OURS, "bnddpg_no_norm", "bnddpg_autograd", BASELINE)

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear"),
    "batch norm": ("native_batch_norm", "native_batch_norm_backward"),
    "Adam, targets": ("_fused_adam_", "lerp_", "addcmul_", "addcdiv_", "sqrt"),
}
"""PyTorch's names of the operations of each kind; those of Adam and Polyak averaging belong to nothing else here."""

OTHER, REST = "other operations", "Python, launches, sampling"
PARTS = (*KINDS, OTHER, REST)


def seconds_by_part(update: Callable[[int], None], count: int) -> dict[str, float]:
    """
    The profiler slows down what it watches: it gives the shares, the time of as many updates without it their unit.

    :param update: Makes so many updates
    :param count: Number of updates
    :return: Seconds of an update for each of ``PARTS``
    """
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    update(count)
    seconds = (time.perf_counter() - start) / count
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        update(count)
        profiled = time.perf_counter() - start
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    parts = dict.fromkeys(PARTS, 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            parts[kind_of.get(event.key, OTHER)] += event.self_cpu_time_total / 1e6
    parts[REST] = max(profiled - sum(parts.values()), 0.0)
    return {part: value / profiled * seconds for part, value in parts.items()}


def measure(contenders: Field, profile: Profile) -> None:
    """
    :param contenders: The contenders on PyTorch
    :param profile: The extent
    """
    key = Key("breakdown", "", contenders.threads)
    cases = [
        replace(key, contender=name, batch_size=batch, round=number)
        for name in contenders.names
        for batch in profile.batches[:2]
        for number in range(profile.breakdown_rounds)
    ]
    cases = [case for case in cases if replace(case, variant=REST) not in contenders.store]
    for name in dict.fromkeys(case.contender for case in cases):
        contenders.ask(name, "construct")
        contenders.ask(name, "fill")
        contenders.ask(name, "update", count=profile.warm_up, batch_size=key.batch_size)
    for case in tqdm(sorted(cases, key=lambda case: case.round), desc="breakdown"):
        parts = contenders.ask(case.contender, "breakdown", count=profile.breakdown_count, batch_size=case.batch_size)
        for part in PARTS if parts is not None else ():  # REST last: its row says that all are there
            contenders.store.add(replace(case, variant=part), parts[part])
