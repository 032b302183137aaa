"""
How a gradient step uses the processor.

Threads of small matrix products gain little, for they wait for each other; and where other processes use the cores, they wait
far longer than they calculate: eighty times as long has been seen. Denormal numbers, in which the optimizer's moments end as
they decay, take a processor a hundred times as long as others: at a batch of 64, up to a fifth of a step. And on AMD's
processors PyTorch's matrix products, which are MKL's, take twice as long as those of libraries that use AVX-512 there.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch as th

MULTIPLICATIONS_PER_THREAD = 48_000_000
"""
In the largest product of a step. With 400 and 300 units, two threads are for minibatches of 800 transitions and more, where
they take two thirds of the time of one; at 256 they take nine tenths.
"""
_DENORMAL = 5e-324


@contextmanager
def threads_for(multiplications: int, flushes_denormals: bool = False) -> Iterator[None]:
    """
    Within it, PyTorch has as many threads as the products gain by, and no more than it is allowed outside.

    :param multiplications: Number of multiplications in the largest product
    :param flushes_denormals: Whether this thread takes denormal numbers for zero within it, where the processor can
    """
    allowed = th.get_num_threads()
    wanted = min(allowed, max(1, multiplications // MULTIPLICATIONS_PER_THREAD))
    # (PyTorch does not say what is set)
    flushes_denormals = flushes_denormals and _DENORMAL * 1.0 != 0.0
    try:
        if wanted != allowed:
            th.set_num_threads(wanted)
        if flushes_denormals:
            th.set_flush_denormal(True)
        yield
    finally:
        if flushes_denormals:
            th.set_flush_denormal(False)
        if wanted != allowed:
            th.set_num_threads(allowed)


@cache
def mkl_leaves_avx512_alone() -> bool:
    """
    :return: Whether PyTorch multiplies by MKL on a processor of AMD's on which PyTorch itself uses AVX-512
    """
    has_both = th.backends.mkl.is_available() and th.backends.cpu.get_cpu_capability() == "AVX512"  # type: ignore[no-untyped-call]
    return has_both and is_amds()


def is_amds() -> bool:
    """
    :return: Whether AMD made the processor
    """
    return "AuthenticAMD" in _description()


def _description() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor()
