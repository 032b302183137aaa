"""
One gradient step of IQL, TD3+BC and AWAC beside d3rlpy's, from the same weights and minibatch, in float64.

``benchmarks/offline/d3rlpy_step.py`` makes d3rlpy's in d3rlpy's own environment. Its file of seed 0, by d3rlpy 2.8.1 with
PyTorch 2.13.0, is stored beside this test. Where that environment exists (``make bench-offline-speed`` builds it), a test
makes the file anew.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch as th
from conftest import DoubleExtractor, VectorEnv
from offline_models import data
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from benchmarks.offline import d3rlpy_step as settings
from sb3_bn_ddpg import BNAWAC, BNIQL, BNTD3BC
from sb3_bn_ddpg.fast import support
from sb3_bn_ddpg.offline import awac_step, iql_step, td3_bc

pytestmark = pytest.mark.numerics

SCRIPT = Path(settings.__file__)
PYTHON = SCRIPT.parent / "envs" / "d3rlpy" / "bin" / "python"
STORED = Path(__file__).parent / "d3rlpy_step.npz"
TOLERANCE = dict(rtol=1e-9, atol=1e-12)
OWN = {
    "iql": (
        BNIQL,
        dict(expectile=settings.EXPECTILE, beta=settings.BETA, weight_limit=settings.WEIGHT_LIMIT),
    ),
    "td3": (BNTD3BC, dict(alpha=settings.ALPHA, policy_delay=1)),
    "awac": (BNAWAC, dict(beta=settings.LAM)),
}
CASES = pytest.mark.parametrize("case", settings.CASES)
PATHS = pytest.mark.parametrize("path", [False, True])


def nested(path):
    """Of each case and kind, the arrays by name."""
    made = {}
    with np.load(path) as file:
        for key in file:
            case, kind, name = key.split("/")
            made.setdefault(case, {}).setdefault(kind, {})[name] = file[key]
    return made


@pytest.fixture(scope="module")
def stored():
    return nested(STORED)


def parameters_of(policy):
    """By the names of the file."""
    networks = dict(actor=policy.actor, q0=policy.critic.qf0, q1=policy.critic.qf1)
    networks |= dict(q0_target=policy.critic_target.qf0, q1_target=policy.critic_target.qf1)
    if policy.actor_target is not policy.actor:
        networks["actor_target"] = policy.actor_target
    if hasattr(policy, "value"):
        networks["value"] = policy.value
    named = {}
    for name, network in networks.items():
        linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
        for index, linear in enumerate(linears):
            named |= {f"{name}.{index}.weight": linear.weight, f"{name}.{index}.bias": linear.bias}
    if hasattr(policy.actor, "log_std"):
        named["actor.log_std"] = policy.actor.log_std
    return named


def our_step(case, path, batch, before, monkeypatch):
    """The parameters after the step, and their gradients."""
    algorithm, kwargs = OWN[case.partition("_")[0]]
    if path and algorithm is not BNAWAC:
        monkeypatch.setattr(support, "FlattenExtractor", DoubleExtractor)
        kwargs = kwargs | dict(fast_update=True)
    elif algorithm is not BNAWAC:
        kwargs = kwargs | dict(fast_update=False)

    class DoublePolicy(algorithm.policy_aliases["MlpPolicy"]):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.double()

    policy_kwargs = dict(
        net_arch=list(settings.UNITS), features_extractor_class=DoubleExtractor, optimizer_kwargs=dict(eps=settings.EPS)
    )
    arguments = dict(gamma=settings.GAMMA, tau=settings.TAU, learning_rate=settings.RATE, policy_kwargs=policy_kwargs)
    env = VectorEnv(settings.OBS_DIM, settings.ACTION_DIM)
    model = algorithm(DoublePolicy, env, data(), seed=0, device="cpu", **arguments, **kwargs)
    parameters = parameters_of(model.policy)
    for name, value in before.items():
        if name == "actor.log_std" and algorithm is BNAWAC:
            value = settings.raw_log_std(case, value)  # by a sigmoid, as d3rlpy's
        parameters[name].data = th.from_numpy(value.copy())
    if case == "iql_without_v":
        model.value.optimizer.param_groups[0]["lr"] = 0.0
    noise = th.from_numpy(batch["noise"].copy())
    if algorithm is BNTD3BC:
        noise = (settings.SIGMA * noise[0]).clamp(-settings.CLIP, settings.CLIP)
    monkeypatch.setattr(model, "_step_noise", lambda _: None if algorithm is BNIQL else noise, raising=False)
    names = ("observations", "actions", "next_observations", "terminals", "rewards")
    model._gradient_step(ReplayBufferSamples(*(th.from_numpy(batch[name].copy()) for name in names)))
    assert (model._fast_update is not None) == (path and algorithm is not BNAWAC)

    states = {}
    for network in (model.actor, model.critic, *([model.value] if algorithm is BNIQL else [])):
        states |= network.optimizer.state
    gradients = {name: states[param]["exp_avg"].numpy() * 10 for name, param in parameters.items() if param in states}
    return dict(after={name: param.detach().numpy() for name, param in parameters.items()}, gradient=gradients)


def compare(case, path, theirs, monkeypatch):
    ours = our_step(case, path, theirs["batch"], theirs["before"], monkeypatch)
    if case.startswith("iql"):
        # The authors' parameter is the logarithm itself, d3rlpy's comes before a sigmoid: the chain rule is between them
        low, high = settings.LOG_STD_RANGES["iql"]
        share = (theirs["before"]["actor.log_std"] - low) / (high - low)
        ours["gradient"]["actor.log_std"] = ours["gradient"]["actor.log_std"] * (high - low) * share * (1 - share)
        for each in (ours, theirs):
            each["after"] = {name: value for name, value in each["after"].items() if name != "actor.log_std"}
    for kind in ("after", "gradient"):
        assert ours[kind].keys() == theirs[kind].keys()
        for name, value in theirs[kind].items():
            np.testing.assert_allclose(ours[kind][name], value.reshape(ours[kind][name].shape), err_msg=name, **TOLERANCE)
    assert any(not np.array_equal(value, theirs["before"][name]) for name, value in theirs["after"].items())


@CASES
@PATHS
def test_a_step_is_that_of_d3rlpy(case, path, stored, monkeypatch):
    if path and case == "awac":
        pytest.skip("AWAC is not on the engine")
    compare(case, path, {kind: dict(named) for kind, named in stored[case].items()}, monkeypatch)


def test_the_stored_file_is_what_d3rlpy_makes(stored, tmp_path):
    if not PYTHON.exists():
        pytest.skip("`make bench-offline-speed` builds d3rlpy's environment")
    subprocess.run([PYTHON, SCRIPT, tmp_path / "step.npz"], check=True, capture_output=True)
    again = nested(tmp_path / "step.npz")
    for case in settings.CASES:
        for kind, named in stored[case].items():
            for name, value in named.items():
                np.testing.assert_allclose(again[case][kind][name], value, err_msg=f"{case}/{kind}/{name}", **TOLERANCE)


def test_the_stored_weights_and_minibatches_are_the_scripts(stored):
    for case in settings.CASES:
        for kind, named in settings.problem(case, 0).items():
            assert named.keys() == stored[case][kind].keys()
            for name, value in named.items():
                np.testing.assert_allclose(stored[case][kind][name], value, rtol=1e-12)


PLANTED = {
    "another advantage": (
        "iql",
        iql_step,
        "iql_weights",
        lambda a, beta, limit: (beta * (a + 0.01)).exp().clamp(max=limit),
    ),
    "V of an end": ("iql_without_v", iql_step, "discounted", lambda batch, gamma, v: batch.rewards + gamma * v),
    "no limit": ("iql_without_v", iql_step, "iql_weights", lambda a, beta, limit: (beta * a).exp()),
    "alpha is lambda": (
        "td3_bc",
        td3_bc,
        "td3_bc_loss",
        lambda q, mu, a, alpha: (-alpha * q.mean() + (mu - a).square().mean(), q.mean().detach()),
    ),
    "beta multiplies": ("awac", awac_step, "awac_weights", lambda a, beta, *_: len(a) * th.softmax(a * beta, dim=0)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_comparison_sees_planted_mistakes(name, stored, monkeypatch):
    case, module, function, mistake = PLANTED[name]
    monkeypatch.setattr(module, function, mistake)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(case, False, {kind: dict(named) for kind, named in stored[case].items()}, monkeypatch)
