"""
How many threads a gradient step takes. Threads of small matrix products gain little, for they wait for each other; and where
other processes use the cores, they wait far longer than they calculate: eighty times as long has been seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

MULTIPLICATIONS_PER_THREAD = 48_000_000
"""
In the largest product of a step. With 400 and 300 units, two threads are for minibatches of 800 transitions and more, where
they take two thirds of the time of one; at 256 they take nine tenths.
"""


@contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """
    Within it, PyTorch has as many threads as the products gain by, and no more than it is allowed outside.

    :param multiplications: Number of multiplications in the largest product
    """
    allowed = th.get_num_threads()
    wanted = min(allowed, max(1, multiplications // MULTIPLICATIONS_PER_THREAD))
    if wanted == allowed:
        yield
        return
    th.set_num_threads(wanted)
    try:
        yield
    finally:
        th.set_num_threads(allowed)
