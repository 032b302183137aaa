"""How the rates change with batch size, width and the number of environments, and what a full replay buffer takes."""

from tqdm import tqdm

from benchmarks.speed.contenders import BASELINE, FLOOR, OURS
from benchmarks.speed.interleave import Field
from benchmarks.speed.profiles import Profile
from benchmarks.speed.store import Key, Store

WARM_UP = 200
"""Updates before a new width is measured: at 2048 units, the 1000 of the main measurement would take minutes."""

WIDTH_BATCH = 256


def measure(names: list[str], profile: Profile, store: Store, failed: set[str]) -> None:
    """
    Every scaling measurement that the profile asks for.

    :param names: Names of the contenders that may be measured
    :param profile: The extent
    :param store: Where the measurements go
    :param failed: Receives the names of those that failed
    """
    threads = max(profile.threads)
    rated = [name for name in (OURS, BASELINE, FLOOR) if name in names]
    with Field(rated, threads, store, failed, profile.device) as contenders:
        measure_batches(contenders, profile)
        measure_widths(contenders, profile)
    learners = [name for name in (OURS, BASELINE) if name in names]
    for n_envs in tqdm(profile.scale_envs, desc="environments"):
        # New processes each time, so that no environments of an earlier size are left
        with Field(learners, threads, store, failed, profile.device) as contenders:
            measure_envs(contenders, profile, n_envs)
    if profile.buffer_size and OURS in names:
        measure_buffer(profile, store, failed)


def measure_batches(contenders: Field, profile: Profile) -> None:
    """
    :param contenders: The contenders
    :param profile: The extent
    """
    keys = [Key("scale_batch", "", contenders.threads, batch_size=batch) for batch in profile.scale_batches]
    keys = [key for key in keys if contenders.unfinished(key, profile.scale_rounds)]
    if keys:
        prepare(contenders, min(profile.warm_up, WARM_UP))
    for key in tqdm(keys, desc="batch sizes"):
        measure_rate(contenders, key, profile)


def measure_widths(contenders: Field, profile: Profile) -> None:
    """
    :param contenders: The contenders
    :param profile: The extent
    """
    for width in tqdm(profile.scale_widths, desc="widths"):
        key = Key("scale_width", "", contenders.threads, width=f"{width}-{width}", batch_size=WIDTH_BATCH)
        if contenders.unfinished(key, profile.scale_rounds):
            prepare(contenders, min(profile.warm_up, WARM_UP), net_arch=[width, width])
            measure_rate(contenders, key, profile)


def prepare(contenders: Field, warm_up: int, **spec: object) -> None:
    """
    :param contenders: Those that get a new model with a filled replay buffer
    :param warm_up: Updates of batch 64
    :param spec: Fields of the model's sizes
    """
    contenders.ask_all("construct", **spec)
    contenders.ask_all("fill")
    contenders.ask_all("update", count=warm_up, batch_size=64)


def measure_rate(contenders: Field, key: Key, profile: Profile) -> None:
    """
    :param contenders: The contenders, prepared
    :param key: What is measured
    :param profile: The extent
    """
    contenders.ask_all("update", count=2, batch_size=key.batch_size)
    contenders.measure(key, profile.scale_rounds, profile.slice_seconds, "update", batch_size=key.batch_size)


def measure_envs(contenders: Field, profile: Profile, n_envs: int) -> None:
    """
    Environment steps/s with one update for every step of all environments together.

    :param contenders: The contenders
    :param profile: The extent
    :param n_envs: Number of environments
    """
    key = Key("scale_envs", "", contenders.threads, n_envs=n_envs)
    for name in contenders.unfinished(key, profile.scale_rounds):
        contenders.ask(name, "construct", n_envs=n_envs, buffer_size=1_000_000)
        contenders.ask(name, "learn", count=max(profile.learn_warm_up, 20 * n_envs))
    # SB3 rounds up to whole steps of all environments, so a measurement is a multiple of their number
    contenders.measure(key, profile.scale_rounds, profile.slice_seconds, "learn", multiple=n_envs)


def measure_buffer(profile: Profile, store: Store, failed: set[str]) -> None:
    """
    Resident memory that a replay buffer takes once every row is written.

    :param profile: The extent
    :param store: Where the measurements go
    :param failed: Receives ``OURS`` if it failed
    """
    for dtype in ("float64", "float32"):
        key = Key("buffer_memory", OURS, 1, variant=dtype)
        if key in store:
            continue
        with Field([OURS], 1, store, failed) as contenders:
            contenders.ask(OURS, "construct", buffer_size=10)  # what is loaded at the first construction is not the buffer's
            before = contenders.ask(OURS, "memory")
            contenders.ask(OURS, "construct", buffer_size=profile.buffer_size, obs_dtype=dtype)
            contenders.ask(OURS, "fill")
            after = contenders.ask(OURS, "memory")
            if before is not None and after is not None:
                store.add(key, after["resident"] - before["resident"], count=profile.buffer_size)
