"""The engine: the same operations for PyTorch and for Numba, and what a step written on them may rely on."""

import inspect
import os
import subprocess
import sys
import textwrap
from types import FunctionType

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from sb3_bn_ddpg.critic_step import engine_step as critic_engine_step
from sb3_bn_ddpg.deterministic import engine_step
from sb3_bn_ddpg.fast import torch_operations
from sb3_bn_ddpg.networks.actors import LOG_STD_MAX, LOG_STD_MIN
from sb3_bn_ddpg.networks.categorical import projected
from sb3_bn_ddpg.offline import awac_engine_step, iql_engine_step, td3_bc_engine_step
from sb3_bn_ddpg.sac import engine_step as sac_engine_step

pytest.importorskip("numba")
pytest.importorskip("scipy")
pytest.importorskip("threadpoolctl")

import numba

from sb3_bn_ddpg.fast import numba_operations, numba_products
from sb3_bn_ddpg.fast.compiled_update import compiled_function

pytestmark = pytest.mark.numerics

STEPS = [
    function
    for module in (critic_engine_step, engine_step, sac_engine_step, iql_engine_step, td3_bc_engine_step, awac_engine_step)
    for function in vars(module).values()
    if isinstance(function, FunctionType) and function.__module__ == module.__name__
]
OPERATIONS = [
    name
    for name, function in vars(torch_operations).items()
    if isinstance(function, FunctionType) and function.__module__.startswith("sb3_bn_ddpg.fast.torch_")
]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_both_sets_have_the_same_operations(name):
    ours, theirs = (getattr(module, name) for module in (torch_operations, numba_operations))
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs.py_func).parameters)


def test_a_step_uses_only_operations_that_both_have():
    used = set()
    for function in STEPS:
        used |= set(function.__code__.co_names) & set(OPERATIONS)
    assert len(used) > 12
    assert used <= set(vars(numba_operations))


def test_scipys_products_serve_where_only_they_use_avx512():
    code = """
        from sb3_bn_ddpg.fast import numba_products, processor
        # (no kernels where SciPy has another BLAS)
        print(*numba_products._scipys_kernels(), processor.mkl_leaves_avx512_alone(), numba_products.IS_PYTORCHS)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    for coretype in ("SkylakeX", "Haswell"):
        environment = os.environ | {"OPENBLAS_CORETYPE": coretype}
        output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.split()
        *kernels, leaves_it_alone, is_pytorchs = output
        expected = th.backends.mkl.is_available() and (leaves_it_alone == "False" or kernels != ["skylakex"])
        assert is_pytorchs == str(expected), coretype


@pytest.mark.parametrize("is_pytorchs", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrix_products_of_compiled_code(is_pytorchs, dtype):
    """By PyTorch's BLAS where it has MKL, and by SciPy's: with transposes, and columns of a wider matrix."""
    if is_pytorchs and not numba_products.IS_PYTORCHS:
        pytest.skip("PyTorch has no MKL here")
    name = numba_products.GEMM[dtype.__name__]
    gemm = numba_products.external(f"of_a_test_{name}_{is_pytorchs}", numba_products.address(name, is_pytorchs))
    function = numba_products.product.py_func
    own = FunctionType(function.__code__, dict(function.__globals__) | {f"_{name}": gemm})
    product = numba.njit(own)
    generator = np.random.default_rng(0)
    a, b, wide = (generator.normal(size=shape).astype(dtype) for shape in ((5, 7), (7, 3), (7, 9)))
    y = np.full((5, 3), np.nan, dtype)
    bound = 20 * np.finfo(dtype).eps
    for a_is_transposed in (False, True):
        left = np.ascontiguousarray(a.T) if a_is_transposed else a
        for b_is_transposed in (False, True):
            right = np.ascontiguousarray(b.T) if b_is_transposed else b
            product(left, a_is_transposed, right, b_is_transposed, y)
            assert np.abs(y - a.astype(float) @ b.astype(float)).max() < bound
        product(left, a_is_transposed, wide[:, 6:], False, y)
        assert np.abs(y - a.astype(float) @ wide[:, 6:].astype(float)).max() < bound


def test_sampling_agrees_with_the_actors_and_with_autograd():
    """tanh-Gaussian actions, their densities, and the gradient of a loss of both; one standard deviation beyond its limits."""
    generator = np.random.default_rng(0)
    mean, log_std, noise, slope = generator.normal(size=(4, 5, 2))
    log_std[0, 0], log_std[1, 1] = 2.5, -21.0
    alpha = 0.3
    leaves = [th.from_numpy(x.copy()).requires_grad_() for x in (mean, log_std)]
    clamped = leaves[1].clamp(LOG_STD_MIN, LOG_STD_MAX)
    distribution = SquashedDiagGaussianDistribution(2)
    distribution.distribution = th.distributions.Normal(leaves[0], clamped.exp())
    before_tanh = leaves[0] + clamped.exp() * th.from_numpy(noise)
    expected = th.tanh(before_tanh)
    log_prob = distribution.log_prob(expected, before_tanh)
    ((alpha * log_prob).mean() + (th.from_numpy(slope) * expected).sum()).backward()

    ours = torch_operations.sample(*map(th.from_numpy, (mean.copy(), log_std, noise)))
    theirs = numba_operations.sample.py_func(mean, log_std, noise)
    for result in (ours, theirs):
        np.testing.assert_allclose(result[0], expected.detach(), rtol=1e-12)
        np.testing.assert_allclose(result[1][:, 0], log_prob.detach(), rtol=1e-10)
    coefficient = th.tensor([alpha], dtype=th.float64)
    actions = expected.detach()
    ours = torch_operations.sample_backward(th.from_numpy(slope), actions, *map(th.from_numpy, (log_std, noise)), coefficient)
    theirs = numba_operations.sample_backward.py_func(slope, actions.numpy(), log_std, noise, alpha)
    for result in (ours, theirs):
        for gradient, leaf in zip(result, leaves, strict=True):
            np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-8, atol=1e-12)
    assert leaves[1].grad[0, 0] == leaves[1].grad[1, 1] == 0


def test_what_is_kept_is_made_anew_after_any_change():
    """Numba looks at the file of a function alone, and reads the classes of what it has kept before it looks at all."""
    for operation in (numba_operations.adam, compiled_function(engine_step.gradient_step)):
        version = operation._cache._cache_file._version
        assert len(version[1]) > 80
        assert any(path.endswith("numba_norms.py") for path, _, _ in version[1])


def test_a_step_is_compiled_once():
    assert compiled_function(engine_step.gradient_step) is compiled_function(engine_step.gradient_step)


COLUMN, OTHER = np.array([[1.0], [-2.0], [3.0]]), np.array([[0.5], [7.0], [3.0]])
TABLE, SECOND = np.linspace(-1.5, 1.5, 6).reshape(3, 2), np.linspace(2, -1, 6).reshape(3, 2)


ATOMS = np.linspace(-1.0, 1.0, 4)
LOGITS, FURTHER = np.linspace(-3, 4, 12).reshape(3, 4), np.sin(np.arange(12.0)).reshape(3, 4)


def results(name: str, *args: object) -> tuple[np.ndarray, np.ndarray]:
    """Of PyTorch's operation and of Numba's, compiled or not, which may both write into what they are given."""
    copies = [[np.copy(arg) if isinstance(arg, np.ndarray) else arg for arg in args] for _ in range(2)]
    tensors = [th.from_numpy(arg) if isinstance(arg, np.ndarray) else arg for arg in copies[0]]
    ours, theirs = getattr(torch_operations, name)(*tensors), getattr(numba_operations, name).py_func(*copies[1])
    if isinstance(ours, tuple):  # side by side
        return th.cat(ours, dim=1).numpy(), np.concatenate(theirs, axis=1)
    return ours.numpy(), theirs


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("squash", (TABLE,)),
        ("squash_backward", (TABLE, SECOND)),
        ("add_noise", (TABLE, SECOND)),
        ("add_noise", (TABLE, SECOND[:0])),
        ("smaller", (COLUMN, OTHER, False)),
        ("smaller", (COLUMN, OTHER, True)),
        ("smaller", (COLUMN, np.array([[np.nan], [0.0], [np.inf]]), False)),
        ("smaller", (np.array([[np.nan], [0.0], [np.inf]]), COLUMN, False)),
        ("td_targets", (COLUMN, OTHER, COLUMN, COLUMN[:0])),
        ("td_targets", (COLUMN, OTHER, COLUMN, OTHER)),
        ("count_least", (COLUMN, OTHER, np.minimum(COLUMN, OTHER), True)),
        ("count_least", (COLUMN, OTHER, np.minimum(COLUMN, OTHER), False)),
        ("ascent", (COLUMN, np.minimum(COLUMN, OTHER), np.array([[1.0], [1.0], [2.0]]), False)),
        ("ascent", (COLUMN, COLUMN, COLUMN, True)),
        ("add", (TABLE, SECOND, False)),
        ("add", (TABLE, SECOND, True)),
        ("scale", (COLUMN, 0.3)),
        ("subtract", (COLUMN, OTHER)),
        ("expected", (FURTHER, ATOMS)),
        ("expected", (COLUMN, ATOMS[:0])),
        ("q_of_outputs", (LOGITS, ATOMS)),
        ("q_of_outputs", (1e4 * LOGITS, ATOMS)),
        ("q_of_outputs", (COLUMN, ATOMS[:0])),
        ("q_backward", (LOGITS, ATOMS, OTHER)),
        ("q_backward", (COLUMN, ATOMS[:0], OTHER)),
        ("smaller_outputs", (LOGITS, FURTHER, COLUMN, OTHER, False)),
        ("smaller_outputs", (COLUMN, FURTHER, COLUMN, OTHER, True)),
        ("projected_targets", (0.3 * COLUMN, 0.1 * np.abs(OTHER), LOGITS, OTHER, ATOMS)),
        ("projected_targets", (COLUMN, 0 * OTHER, FURTHER, COLUMN[:0], ATOMS)),
        ("projected_targets", (np.array([[np.nan], [0.0], [np.inf]]), OTHER, FURTHER, COLUMN[:0], ATOMS)),
        ("sample", (TABLE, SECOND, TABLE)),
        ("sample", (TABLE, 20 * SECOND, 0.1 * SECOND)),  # beyond both bounds of the standard deviation
        ("sample_backward", (TABLE, np.tanh(SECOND), SECOND, TABLE, 0.3)),
        ("sample_backward", (TABLE, np.tanh(SECOND), 20 * SECOND, TABLE, 0.3)),
    ],
)
def test_elementwise_operations_agree(name, args):
    ours, theirs = results(name, *args)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("n_rows", [3, 6])
def test_squared_error_agrees(n_rows, factor):
    q = np.arange(float(n_rows)).reshape(-1, 1) - 1.5
    reports, numbers = [None] * 5, np.zeros(5)
    ours = torch_operations.squared_error(th.from_numpy(q.copy()), th.from_numpy(OTHER), factor, reports, 1)
    theirs = numba_operations.squared_error.py_func(q, OTHER, factor, numbers, 1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)
    np.testing.assert_allclose([column.mean() for column in reports[1:4]], numbers[1:4], rtol=1e-12)
    assert (theirs[3:] == 0).all()  # the second half of a joint pass is not trained
    by_autograd = th.from_numpy(q.copy()).requires_grad_()
    (factor * th.nn.functional.mse_loss(by_autograd[:3], th.from_numpy(OTHER))).backward()
    np.testing.assert_allclose(by_autograd.grad.numpy(), theirs, rtol=1e-12)


@pytest.mark.parametrize("n_rows", [3, 6])
def test_cross_entropy_agrees_with_autograd(n_rows):
    logits, y = np.concatenate([LOGITS, FURTHER])[:n_rows], np.abs(FURTHER) / np.abs(FURTHER).sum(axis=1, keepdims=True)
    reports, numbers, tensors = [None] * 5, np.zeros(5), list(map(th.from_numpy, (logits.copy(), y, ATOMS)))
    ours = torch_operations.cross_entropy(*tensors, reports, 1)
    theirs = numba_operations.cross_entropy.py_func(logits, y, ATOMS, numbers, 1)
    by_autograd = tensors[0].requires_grad_()
    loss = th.nn.functional.cross_entropy(by_autograd[:3], tensors[1])
    loss.backward()
    for gradient in (ours.numpy(), theirs):
        np.testing.assert_allclose(gradient, by_autograd.grad, rtol=1e-12, atol=1e-15)
    assert (theirs[3:] == 0).all()  # the second half of a joint pass is not trained
    values = (by_autograd.softmax(dim=1)[:3] * tensors[2]).sum(dim=1)
    expected = [x.item() for x in (loss, values.mean(), values.abs().mean())]
    np.testing.assert_allclose([column.mean().item() for column in reports[1:4]], expected, rtol=1e-12)
    np.testing.assert_allclose(numbers[1:4], expected, rtol=1e-12)


def test_the_gradient_of_a_mean_is_autograds():
    logits = th.from_numpy(LOGITS.copy()).requires_grad_()
    (torch_operations.q_of_outputs(logits, th.from_numpy(ATOMS)) * th.from_numpy(OTHER)).sum().backward()
    gradient = torch_operations.q_backward(logits.detach(), th.from_numpy(ATOMS), th.from_numpy(OTHER))
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-12)


@pytest.mark.parametrize("n_atoms", [2, 21, 101])
def test_both_projections_are_the_definitions(n_atoms):
    """That of a GPU is a table of all pairs of atoms; a processor adds up by index. In float32 to its rounding."""
    generator = th.Generator().manual_seed(0)
    for dtype, tolerance in ((th.float64, 1e-12), (th.float32, 1e-5)):
        rewards, loss = (th.randn(64, 1, generator=generator, dtype=dtype) for _ in range(2))
        logits = th.randn(64, n_atoms, generator=generator, dtype=dtype)
        discounts = 0.99 * (th.rand(64, 1, generator=generator, dtype=dtype) < 0.8)
        atoms = th.linspace(-2, 2, n_atoms, dtype=dtype)
        expected = projected(logits.softmax(dim=1), rewards + discounts * (atoms - loss), atoms)
        tensors = (rewards, discounts.to(dtype), logits, loss, atoms)
        ours = torch_operations.projected_targets(*tensors)
        theirs = numba_operations.projected_targets.py_func(*(tensor.numpy() for tensor in tensors))
        for result in (ours, theirs):
            np.testing.assert_allclose(result, expected, atol=tolerance)
