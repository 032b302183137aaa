"""The sets of kernels that the numerical comparisons run with are really others than this processor's own."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from functools import cache

import pytest
from kernel_sets import AVAILABLE, KERNEL_SETS, OWN

from sb3_bn_ddpg.fast.processor import is_amds

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the extra `compiled` is not installed")

REPORT = """
    import hashlib, json, numba, numpy as np, torch as th
    from scipy.linalg.blas import sgemm
    from threadpoolctl import threadpool_info

    # Numbers that no kernel has made
    a = (np.arange(64 * 400, dtype=np.float32).reshape(64, 400) * np.float32(0.37)) % 7
    b = (np.arange(300 * 400, dtype=np.float32).reshape(300, 400) * np.float32(0.73)) % 5

    @numba.njit(fastmath=True)
    def total(x):
        result = np.float32(0)
        for i in range(x.size):
            result += x[i] * x[i]
        return result

    def digest(array):
        return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

    total(a.ravel())
    assembly = next(iter(total.inspect_asm().values()))
    print(json.dumps(dict(
        capability=th.backends.cpu.get_cpu_capability(),
        openblas=sorted({each["architecture"] for each in threadpool_info() if each["internal_api"] == "openblas"}),
        torch_product=digest(th.nn.functional.linear(th.from_numpy(a), th.from_numpy(b)).numpy()),
        scipy_product=digest(sgemm(1.0, a, b.T)),
        registers=[name for name in ("zmm", "ymm") if name in assembly],
    )))
"""


@cache
def report(name: str | None) -> dict:
    environment = {key: value for key, value in os.environ.items() if not any(key in each for each in KERNEL_SETS.values())}
    environment |= KERNEL_SETS[name] if name else {}
    command = [sys.executable, "-c", textwrap.dedent(REPORT)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    result: dict = json.loads(output)
    return result


@pytest.mark.skipif(not AVAILABLE, reason=f"PyTorch's kernels here are {OWN}")
@pytest.mark.parametrize("name", AVAILABLE)
def test_they_take_effect(name):
    own, other = report(None), report(name)
    # (an older PyTorch's word for the baseline is the other)
    assert other["capability"] in {"baseline": ("DEFAULT", "NO AVX"), "avx2": ("AVX2",)}[name]
    assert other["openblas"] == [{"baseline": "Nehalem", "avx2": "Haswell"}[name]]
    assert other["registers"] == {"baseline": [], "avx2": ["ymm"]}[name]
    assert other["scipy_product"] != own["scipy_product"]
    if name == "baseline" or not is_amds():  # for which MKL takes these by itself
        assert other["torch_product"] != own["torch_product"]
