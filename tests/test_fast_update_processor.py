"""Threads and denormal numbers of the fast update."""

import copy
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch as th
from conftest import SMALL
from fast_updates import COMPILED, batches, by, needs_numba
from torch import nn

from sb3_bn_ddpg.fast import processor
from sb3_bn_ddpg.fast.step import DENORMAL_INTERVAL


@pytest.fixture
def four_threads():
    before = th.get_num_threads()
    th.set_num_threads(4)
    yield
    th.set_num_threads(before)


@pytest.mark.parametrize("path", [True, COMPILED])
@pytest.mark.parametrize(("kwargs", "n_rows"), [({}, 1), (dict(use_target_networks=False, target_statistics="joint"), 2)])
def test_a_step_takes_the_threads_that_it_gains_by(make_model, four_threads, monkeypatch, path, kwargs, n_rows):
    """No more than PyTorch is allowed, and what that is stays as it was."""
    monkeypatch.setattr(processor, "MULTIPLICATIONS_PER_THREAD", 1000)
    model = make_model(fast_update=path, policy_kwargs=dict(net_arch=[8, 10]), **kwargs).learn(30)
    name = "_steps" if path == "compiled" else "_step"
    step, seen = getattr(model._fast_update, name), []
    setattr(model._fast_update, name, lambda *args: seen.append(th.get_num_threads()) or step(*args))
    largest = max(param.numel() for param in model.critic.parameters() if param.ndim == 2)
    for batch_size in (2, 2000 // (n_rows * largest) + 1, 100):
        model.train(2, batch_size)
    assert list(dict.fromkeys(seen)) == [1, 2, 4]
    assert th.get_num_threads() == 4

    def fail(*args):
        assert th.get_num_threads() == 1
        raise KeyboardInterrupt

    setattr(model._fast_update, name, fail)
    with pytest.raises(KeyboardInterrupt):
        model.train(1, 2)
    assert th.get_num_threads() == 4


def test_what_comes_between_the_steps_takes_one_thread(make_model, four_threads, monkeypatch):
    """Two that wait for each other cost up to a tenth of a second where other processes use the cores."""
    shrink, seen = nn.functional.hardshrink, []
    monkeypatch.setattr(nn.functional, "hardshrink", lambda *args: seen.append(th.get_num_threads()) or shrink(*args))
    make_model(gradient_steps=DENORMAL_INTERVAL).learn(22)
    assert set(seen) == {1}
    assert th.get_num_threads() == 4


@needs_numba
def test_compiled_products_have_pytorchs_threads():
    """Those of PyTorch's BLAS have them anyway; SciPy's is among those that are limited where it makes the products."""
    code = """
        from contextlib import nullcontext
        import torch as th
        from threadpoolctl import threadpool_info
        from sb3_bn_ddpg.fast import numba_products as products

        if products.IS_PYTORCHS:
            assert products.threads_of_products() is nullcontext
        products.IS_PYTORCHS = False
        context = products.threads_of_products()
        th.set_num_threads(1)
        with context():
            limited = [info["num_threads"] for info in threadpool_info() if "scipy" in info["filepath"]]
        assert limited and set(limited) == {1}, limited
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


def test_moments_do_not_decay_into_denormal_numbers(make_model):
    """Units that no longer have a gradient: their moments end at zero, where Adam left alone keeps denormals for ever."""
    model = make_model(learning_rate=0.0, critic_learning_rate=0.0, critic_weight_decay=0.0)
    (first,) = batches(model, 1, double=False)
    model._gradient_step(first)
    nothing = first._replace(observations=first.observations * 0, rewards=first.rewards * 0, dones=first.dones * 0 + 1)
    for _ in range(1500):
        model._n_updates += 1
        model._gradient_step(nothing)
    tiny = np.finfo(np.float32).tiny
    for storage in (model._fast_update.actor_storage, model._fast_update.critic_storage):
        moment = storage.exp_avg.abs().numpy()
        assert ((moment > 0) & (moment < tiny)).sum() == 0
        assert (moment == 0).any()


@pytest.mark.parametrize("path", [True, COMPILED])
def test_weights_do_not_decay_into_denormal_numbers(make_model, path):
    """The paper's weight decay leads there where weights have no other gradient; a step then takes five times as long."""
    model = make_model(**by(path)).learn(30)
    weight = model.critic.q_net[0].weight
    for each in (weight, model.critic_target.q_net[0].weight):
        with th.no_grad():
            each[:4] = 1e-39
    before = copy.deepcopy(model.policy.state_dict())
    model._fast_update.flush_denormals()
    for name, value in model.policy.state_dict().items():
        expected = before[name].clone()
        if name in ("critic.qf0.q_net.0.weight", "critic_target.qf0.q_net.0.weight"):
            assert (expected[:4] > 0).all()
            expected[:4] = 0
        assert th.equal(value, expected), name


@pytest.mark.parametrize("path", [True, COMPILED])
def test_denormal_numbers_are_zero_within_a_step_alone(make_model, path):
    """Where they count for nothing: not beside a tiny epsilon, and what the user has set is as before."""

    def are_zero():
        return float(th.tensor([1e-39]).mul(1.0)) == 0.0

    if not th.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    th.set_flush_denormal(False)
    name = "_steps" if path == "compiled" else "_step"
    for eps, expected in ((1e-8, [False, True, False]), (1e-20, [False, False, False])):
        model = make_model(policy_kwargs=dict(SMALL, optimizer_kwargs=dict(eps=eps)), **by(path)).learn(30)
        step, seen = getattr(model._fast_update, name), [are_zero()]
        setattr(model._fast_update, name, lambda *args, step=step, seen=seen: seen.append(are_zero()) or step(*args))
        model.train(1, 16)
        assert [*seen, are_zero()] == expected
    th.set_flush_denormal(True)
    try:
        model.train(1, 16)
        assert are_zero()
    finally:
        th.set_flush_denormal(False)


def test_moments_that_count_beside_a_tiny_epsilon_stay(make_model):
    for eps, is_kept in ((1e-8, False), (1e-20, True)):
        model = make_model(policy_kwargs=dict(SMALL, optimizer_kwargs=dict(eps=eps))).learn(30)
        moments = model._fast_update.actor_storage.exp_avg_sq
        moments.fill_(1e-34)
        model._fast_update.flush_denormals()
        assert bool((moments > 0).all()) == is_kept
