"""
The kernels of another processor on this one: what PyTorch, BLAS and Numba would take there, by environment variables.

``python tests/kernel_sets.py -m numerics`` runs pytest with each set that this processor has.
"""

import os
import subprocess
import sys
from pathlib import Path

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
    """
    Run pytest with all sets side by side, each on its share of the cores; end with the first exit code that is not zero. Each
    set has a folder for compiled code, since two processes that write Numba's index at the same time lose entries of it.
    """
    if not AVAILABLE:
        print(f"PyTorch's kernels here are {OWN}: there are no others to run with")
        return
    n_workers = max(1, (os.cpu_count() or 1) // len(AVAILABLE))
    spread = ["-n", str(n_workers), "--dist", "loadgroup"] if n_workers > 1 else ["-n", "0"]
    runs = {}
    for name in AVAILABLE:
        folder = Path(__file__).parents[1] / ".pytest_cache" / "numba" / name
        environment = os.environ | KERNEL_SETS[name] | {"NUMBA_CACHE_DIR": str(folder)}
        command = [sys.executable, "-m", "pytest", *spread, "-o", f"cache_dir=.pytest_cache/{name}", *sys.argv[1:]]
        runs[name] = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    codes = []
    for name, run in runs.items():
        output, _ = run.communicate()
        print(f"With the kernels of {name}: {KERNEL_SETS[name]}\n{output}", flush=True)
        codes.append(run.returncode)
    sys.exit(next((code for code in codes if code), 0))


if __name__ == "__main__":
    main()
