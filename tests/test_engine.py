"""The engine: the same operations for PyTorch and for Numba, and what a step written on them may rely on."""

import inspect
from types import FunctionType

import numpy as np
import pytest
import torch as th

from sb3_bn_ddpg.critic_step import engine_step as of_critics
from sb3_bn_ddpg.deterministic import engine_step
from sb3_bn_ddpg.fast import torch_operations
from sb3_bn_ddpg.sac import engine_step as of_sac

pytest.importorskip("numba")
pytest.importorskip("scipy")
pytest.importorskip("threadpoolctl")

from sb3_bn_ddpg.fast import numba_operations
from sb3_bn_ddpg.fast.compiled_update import compiled_function

pytestmark = pytest.mark.numerics

OPERATIONS = [
    name
    for name, function in vars(torch_operations).items()
    if isinstance(function, FunctionType) and function.__module__ == torch_operations.__name__
]
ONLY_IN_PYTORCH = {"new_reports"}  # made before the step


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - ONLY_IN_PYTORCH))
def test_both_sets_have_the_same_operations(name):
    ours, theirs = (getattr(module, name) for module in (torch_operations, numba_operations))
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs.py_func).parameters)


def test_a_step_uses_only_operations_that_both_have():
    modules = (of_critics, engine_step, of_sac)
    functions = [each for module in modules for each in vars(module).values() if isinstance(each, FunctionType)]
    names = {name for function in functions for name in function.__code__.co_names}
    used = names & set(vars(torch_operations))
    assert len(used & set(OPERATIONS)) > 20
    assert used <= set(vars(numba_operations))


def test_a_step_is_compiled_once():
    assert compiled_function(engine_step.gradient_step) is compiled_function(engine_step.gradient_step)


COLUMN, OTHER = np.array([[1.0], [-2.0], [3.0]]), np.array([[0.5], [7.0], [3.0]])
TABLE, SECOND = np.linspace(-1.5, 1.5, 6).reshape(3, 2), np.linspace(2, -1, 6).reshape(3, 2)


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
        ("td_targets", (COLUMN, OTHER, COLUMN, OTHER[:0])),
        ("td_targets", (COLUMN, OTHER, COLUMN, OTHER)),
        ("count_least", (COLUMN, OTHER, np.minimum(COLUMN, OTHER), True)),
        ("count_least", (COLUMN, OTHER, np.minimum(COLUMN, OTHER), False)),
        ("ascent", (COLUMN, np.minimum(COLUMN, OTHER), np.array([[1.0], [1.0], [2.0]]), False)),
        ("ascent", (COLUMN, COLUMN, COLUMN, True)),
        ("add", (TABLE, SECOND, False)),
        ("add", (TABLE, SECOND, True)),
        ("scale", (COLUMN, 0.3)),
        ("subtract", (COLUMN, OTHER)),
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
    reports, numbers = torch_operations.new_reports(5), np.zeros(5)
    ours = torch_operations.squared_error(th.from_numpy(q.copy()), th.from_numpy(OTHER), factor, reports, 1)
    theirs = numba_operations.squared_error.py_func(q, OTHER, factor, numbers, 1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)
    np.testing.assert_allclose([column.mean() for column in reports[1:4]], numbers[1:4], rtol=1e-12)
    assert (theirs[3:] == 0).all()  # the second half of a joint pass is not trained
    by_autograd = th.from_numpy(q.copy()).requires_grad_()
    (factor * th.nn.functional.mse_loss(by_autograd[:3], th.from_numpy(OTHER))).backward()
    np.testing.assert_allclose(by_autograd.grad.numpy(), theirs, rtol=1e-12)
