"""The linear layers of the fast update, by each library's products, and whose serve."""

import pytest
import torch as th
from torch import nn

from sb3_bn_ddpg.fast import processor, torch_linear
from sb3_bn_ddpg.fast.torch_linear import Linear, OneDNNLinear, fastest_linear

needs_onednn = pytest.mark.skipif(not torch_linear.has_onednns_product(), reason="PyTorch has no oneDNN here")


@pytest.fixture(autouse=True)
def no_choice_is_kept():
    processor.mkl_leaves_avx512_alone.cache_clear()
    yield
    processor.mkl_leaves_avx512_alone.cache_clear()


def layer(n_inputs: int, n_outputs: int, bias: bool = True) -> nn.Linear:
    th.manual_seed(0)
    linear = nn.Linear(n_inputs, n_outputs, bias)
    for parameter in linear.parameters():
        parameter.grad = th.full_like(parameter, th.nan)
    return linear


@needs_onednn
@pytest.mark.numerics
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Linear, OneDNNLinear])
def test_linear_layers(kind, bias):
    """Outputs and all gradients, against autograd in float64."""
    linear = layer(90, 70, bias)
    x, grad = th.randn(33, 90), th.randn(33, 70)
    exact = nn.Linear(90, 70, bias, dtype=th.float64)
    exact.load_state_dict(linear.state_dict())
    exact_x = x.double().requires_grad_()
    exact_y = exact(exact_x)
    exact_y.backward(grad.double())
    with th.inference_mode():
        ours = kind(linear)
        y, of_x = ours.forward(x), ours.input_gradient(grad)
        ours.fill_gradients(grad, x)
    pairs = [(y, exact_y), (of_x, exact_x.grad), (linear.weight.grad, exact.weight.grad)]
    pairs += [(linear.bias.grad, exact.bias.grad)] if bias else []
    for found, expected in pairs:
        th.testing.assert_close(found.double(), expected, rtol=0, atol=90 * th.finfo(th.float32).eps)


@needs_onednn
@pytest.mark.parametrize(
    ("is_amds", "capability", "expected"),
    [(True, "AVX512", OneDNNLinear), (True, "AVX2", Linear), (False, "AVX512", Linear)],
)
def test_whose_products_serve(monkeypatch, is_amds, capability, expected):
    if not th.backends.mkl.is_available():
        expected = Linear
    monkeypatch.setattr(processor, "is_amds", lambda: is_amds)
    monkeypatch.setattr(th.backends.cpu, "get_cpu_capability", lambda: capability)
    assert type(fastest_linear(layer(64, 64))) is expected
    assert type(fastest_linear(layer(17, 64))) is Linear
    assert type(fastest_linear(layer(64, 1))) is Linear
    assert type(fastest_linear(layer(64, 64).double())) is Linear
