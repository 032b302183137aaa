"""
The kernels of another processor on this one: what PyTorch, BLAS and Numba would take there, by environment variables.

``python tests/kernel_sets.py -m numerics`` runs pytest with each set that this processor has.
"""

import os
import subprocess
import sys

import torch as th

KERNEL_SETS = {
    "baseline": dict(
        ATEN_CPU_CAPABILITY="default",
        MKL_CBWR="COMPATIBLE",
        ONEDNN_MAX_CPU_ISA="SSE41",
        OPENBLAS_CORETYPE="Nehalem",
        NUMBA_CPU_NAME="generic",
        NUMBA_CPU_FEATURES="",
    ),
    "avx2": dict(
        ATEN_CPU_CAPABILITY="avx2",
        MKL_ENABLE_INSTRUCTIONS="AVX2",
        ONEDNN_MAX_CPU_ISA="AVX2",
        OPENBLAS_CORETYPE="Haswell",
        NUMBA_CPU_NAME="haswell",
        NUMBA_CPU_FEATURES="+avx,+avx2,+fma",
    ),
}
OWN = th.backends.cpu.get_cpu_capability()
"""PyTorch's word for what this processor has: AVX512, AVX2, or another one's, which has none of these sets."""
AVAILABLE = {"AVX512": ["baseline", "avx2"], "AVX2": ["baseline"]}.get(OWN, [])
"""A processor without AVX-512 takes the kernels of ``avx2`` by itself."""


def main() -> None:
    """Run pytest with each set; end with the first exit code that is not zero."""
    if not AVAILABLE:
        print(f"PyTorch's kernels here are {OWN}: there are no others to run with")
    for name in AVAILABLE:
        print(f"With the kernels of {name}: {KERNEL_SETS[name]}", flush=True)
        code = subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], env=os.environ | KERNEL_SETS[name]).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()
