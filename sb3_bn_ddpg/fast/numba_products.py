"""
Matrix products in compiled code: by the BLAS that PyTorch itself multiplies with where that is MKL, else by SciPy's.

On the products of a gradient step, MKL took between a third less time than the OpenBLAS in SciPy and as much, by processor. It
also has PyTorch's number of threads. But on AMD's processors it leaves AVX-512 alone, and OpenBLAS with such kernels took half
of its time on one (Zen 5): there SciPy's serves, unless it was told to do without them (``OPENBLAS_CORETYPE=Haswell``).

Compiled code names a product by a symbol, which each process binds anew: kept code holds no address.
"""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import torch as th
from numba.core import types
from scipy.linalg import cython_blas
from threadpoolctl import ThreadpoolController

from sb3_bn_ddpg.fast.numba_compiler import compiled
from sb3_bn_ddpg.fast.processor import mkl_leaves_avx512_alone

GEMM = {"float32": "sgemm", "float64": "dgemm"}
"""Fortran's names of a product, by type."""
WITH_AVX512 = {"skylakex", "cooperlake", "sapphirerapids"}
"""OpenBLAS's names of kernels that use it."""
N_ARGUMENTS = 13
_FLAGS = np.frombuffer(b"NT", np.uint8)


def address(name: str, is_pytorchs: bool) -> int:
    """
    :param name: One of :data:`GEMM`'s
    :param is_pytorchs: Whether it is the function of PyTorch's MKL, or of SciPy's BLAS
    :return: Where it lies in this process
    """
    if is_pytorchs:
        library = ctypes.CDLL(str(next((Path(th.__file__).parent / "lib").glob("*torch_cpu.*"))))
        return ctypes.cast(getattr(library, f"{name}_"), ctypes.c_void_p).value or 0
    api, capsule = ctypes.pythonapi, cython_blas.__pyx_capi__[name]
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    found: int = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return found


def external(symbol: str, of_address: int) -> Any:
    """
    :param symbol: Its name for compiled code
    :param of_address: Where the function lies
    :return: The function, as compiled code calls it: with an address for each argument
    """
    llvmlite.binding.add_symbol(symbol, of_address)
    return types.ExternalFunction(symbol, types.void(*[types.uintp] * N_ARGUMENTS))


def _scipys_kernels() -> list[str]:
    found = ThreadpoolController().select(internal_api="openblas").info()
    return [library["architecture"].lower() for library in found if "scipy" in Path(library["filepath"]).parent.name]


IS_PYTORCHS: bool = th.backends.mkl.is_available()  # type: ignore[no-untyped-call]
"""Whether the products are PyTorch's."""
if mkl_leaves_avx512_alone() and WITH_AVX512 & set(_scipys_kernels()):
    IS_PYTORCHS = False
try:
    _addresses = [address(name, IS_PYTORCHS) for name in GEMM.values()]
except (AttributeError, OSError, StopIteration):  # an MKL in a library that does not show its functions
    IS_PYTORCHS = False
    _addresses = [address(name, IS_PYTORCHS) for name in GEMM.values()]
_sgemm, _dgemm = (external(f"sb3_bn_ddpg_{name}", found) for name, found in zip(GEMM.values(), _addresses, strict=True))


@compiled
def product(a, is_a_transposed, b, is_b_transposed, y):  # type: ignore[no-untyped-def]
    """
    Y = A B, or of their transposes. Rows must lie as C has them, each without gaps.
    """
    n, width = y.shape
    depth = a.shape[0] if is_a_transposed else a.shape[1]
    size = y.itemsize
    # Fortran sees the transposes, of which the product is B^T A^T. 64 bits hold an integer of 32 as well
    sizes = np.empty(6, np.int64)
    sizes[0], sizes[1], sizes[2] = width, n, depth
    sizes[3], sizes[4], sizes[5] = b.strides[0] // size, a.strides[0] // size, y.strides[0] // size
    factors = np.empty(2, y.dtype)
    factors[0], factors[1] = 1, 0
    flags, of_sizes, of_factors = _FLAGS.ctypes.data, sizes.ctypes.data, factors.ctypes.data
    arguments = (
        flags + is_b_transposed,
        flags + is_a_transposed,
        of_sizes,
        of_sizes + 8,
        of_sizes + 16,
        of_factors,
        b.ctypes.data,
        of_sizes + 24,
        a.ctypes.data,
        of_sizes + 32,
        of_factors + size,
        y.ctypes.data,
        of_sizes + 40,
    )
    if size == 4:
        _sgemm(*arguments)
    else:
        _dgemm(*arguments)


def threads_of_products() -> Callable[[], AbstractContextManager[Any]]:
    """
    :return: What makes the context in which the products have PyTorch's number of threads
    """
    if IS_PYTORCHS:
        return nullcontext
    blas = ThreadpoolController().select(user_api="blas")  # of those that are loaded: SciPy's is
    return lambda: blas.limit(limits=th.get_num_threads())
