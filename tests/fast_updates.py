"""Ways to update, and how they are compared: what the tests of the fast update and of the engine's steps share."""

import copy
import importlib.util

import numpy as np
import pytest
import torch as th
from conftest import DoubleExtractor, VectorEnv, as_double, random_batch
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_bn_ddpg import BNDDPG, BNSAC, MlpPolicy
from sb3_bn_ddpg.common.steps import UpdateInfo, averages, on_device
from sb3_bn_ddpg.networks.policies import BNDDPGPolicy
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm

HAS_NUMBA = importlib.util.find_spec("numba") is not None
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="the extra `compiled` is not installed")
COMPILES = pytest.mark.xdist_group("compiled")
"""One process compiles: others that began at the same time would each do the same."""
COMPILED = pytest.param("compiled", marks=needs_numba)
needs_cuda = pytest.mark.skipif(not th.cuda.is_available(), reason="there is no CUDA device")
CUDA = pytest.param("cuda", marks=needs_cuda)
PATHS = pytest.mark.parametrize("path", [True, COMPILED, CUDA, False])
CLASSES = {True: "FastUpdate", "compiled": "CompiledUpdate", "cuda": "CudaGraphUpdate"}
ERROR_RATIO = 4
"""A way's error may be this many times that of the definition in the same type."""
SMALLEST_ERROR = 16 * np.finfo(np.float32).eps
"""Sixteen roundings are none, where the definition has hardly one."""
EXACT_RATES = dict(learning_rate=2**-13, critic_learning_rate=2**-10)
"""The same in float32, in which CUDA graphs have them, as in float64."""


class PlainExtractor(FlattenExtractor):
    """Might do anything: the fast update does not look inside."""


def by(path: bool | str) -> dict:
    """The arguments of a model that updates by this path."""
    return dict(fast_update=True, device="cuda") if path == "cuda" else dict(fast_update=path, device="cpu")


def double_model(
    path: bool | str,
    policy: type[MlpPolicy] | None = None,
    algorithm: type[BNOffPolicyAlgorithm] = BNDDPG,
    **kwargs,
) -> BNOffPolicyAlgorithm:
    """In float64, two ways that calculate the same agree, whatever the processor."""

    class DoublePolicy(policy or algorithm.policy_aliases["MlpPolicy"]):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.double()

    policy_kwargs = dict(net_arch=[16, 12], features_extractor_class=DoubleExtractor) | kwargs.pop("policy_kwargs", {})
    arguments = dict(buffer_size=100, learning_starts=20, batch_size=16, tau=0.01, seed=0) | by(path) | kwargs
    model = algorithm(DoublePolicy, VectorEnv(), policy_kwargs=policy_kwargs, **arguments)
    if isinstance(model, BNSAC):
        model.entropy_coefficient.double()
    return model


def steps(models: list[BNOffPolicyAlgorithm], batch, update_actor: bool = True) -> list[UpdateInfo]:
    """A gradient step of each, with the same random numbers."""
    infos = []
    for model in models:
        th.manual_seed(0)
        infos.append(model._gradient_step(on_device(batch, model.device), update_actor))
    return infos


def batches(model: BNDDPG, n: int, double: bool = True):
    for seed in range(n):
        batch = random_batch(model, seed=seed)
        yield as_double(batch) if double else batch


def assert_same_report(first: UpdateInfo, second: UpdateInfo, **tolerance) -> None:
    numbers, expected = averages([first]), averages([second])
    assert numbers.keys() == expected.keys()
    np.testing.assert_allclose(list(numbers.values()), list(expected.values()), **tolerance)


def assert_close(first, second, **tolerance) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_allclose(value.cpu().numpy(), second[key].cpu().numpy(), err_msg=key, **tolerance)


def errors(model: BNDDPG, info: UpdateInfo, exact: BNDDPG, exact_info: UpdateInfo) -> dict[str, float]:
    """
    Of what a step reports, of the gradients, and of all that it leaves in the policy: of each tensor as a whole, in units of
    its size. A tensor that is zero but for rounding takes the size of its kind.
    """

    def tensors_of(each: BNDDPG, reported: UpdateInfo) -> dict[str, th.Tensor]:
        parameters = [*each.actor.named_parameters(prefix="actor"), *each.critic.named_parameters(prefix="critic")]
        named = {f"{name}.grad": param.grad for name, param in parameters} | each.policy.state_dict()
        named |= {name: th.tensor(value) for name, value in averages([reported]).items()}
        return {name: tensor.cpu().double() for name, tensor in named.items() if tensor.is_floating_point()}

    ours, theirs = tensors_of(model, info), tensors_of(exact, exact_info)
    sizes = {name: float(value.norm()) for name, value in theirs.items()}
    for name, value in theirs.items():
        if name.endswith(".grad"):
            network = name.split(".")[0]
            others = [size for other, size in sizes.items() if other.startswith(f"{network}.") and other.endswith(".grad")]
            sizes[name] = max(sizes[name], max(others) / 100)
        else:
            sizes[name] = max(sizes[name], 0.01 * value.numel() ** 0.5)
    return {name: float((ours[name] - value).norm()) / sizes[name] for name, value in theirs.items()}


def with_layers(*layers: nn.Module, **kwargs) -> type[BNDDPGPolicy]:
    """A policy whose actor has these layers."""

    class CustomPolicy(BNDDPGPolicy):
        def make_actor(self, features_extractor=None):
            actor = super().make_actor(features_extractor)
            actor.mu = copy.deepcopy(nn.Sequential(*layers))
            return actor

    return CustomPolicy
