"""The hand-derived gradient steps against their definition by autograd: same numbers, same files, and the way back."""

import copy
import importlib.util
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch as th
from conftest import SMALL, DoubleExtractor, VectorEnv, as_double, random_batch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3, MlpPolicy
from sb3_bn_ddpg.common.steps import UpdateInfo, averages, on_device
from sb3_bn_ddpg.deterministic.engine_step import gradient_step
from sb3_bn_ddpg.fast import flat_storage, processor
from sb3_bn_ddpg.fast import norms as fast_norms
from sb3_bn_ddpg.fast import support as fast_update
from sb3_bn_ddpg.fast.step import DENORMAL_INTERVAL
from sb3_bn_ddpg.fast.update import FastUpdate
from sb3_bn_ddpg.networks.policies import BNDDPGPolicy
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm

CROSSQ_LAYERS = dict(
    norm_order="after_activation",
    critic_input_norm="state_action",
    critic_norm_layers="all",
    action_layer=1,
    final_init="fan_in",
    norm_momentum=0.01,
    norm_eps=1e-3,
)
ATOMS = dict(n_atoms=21, v_min=-1.0, v_max=1.5)
"""So few and close that many of the random rewards lead beyond them"""
CONFIGURATIONS = {
    "default": dict(),
    "no batch norm": dict(policy_kwargs=dict(normalization=None)),
    "layer norm": dict(policy_kwargs=dict(normalization="layer")),
    "batch norm on the state": dict(policy_kwargs=dict(normalization="batch_layer"), target_statistics="running"),
    "batch and layer norm, action at the input": dict(policy_kwargs=dict(normalization="batch_layer", action_layer=1)),
    "layer norm, three hidden layers": dict(
        policy_kwargs=dict(net_arch=[20, 12, 10], normalization="layer", norm_eps=1e-3, action_layer=3)
    ),
    "SB3's layout": dict(policy_kwargs=dict(normalization=None, action_layer=1)),
    "action at the input": dict(policy_kwargs=dict(action_layer=1)),
    "one hidden layer": dict(policy_kwargs=dict(net_arch=[20])),
    "linear": dict(policy_kwargs=dict(net_arch=[])),
    "linear without batch norm": dict(policy_kwargs=dict(net_arch=[], normalization=None)),
    "three hidden layers": dict(policy_kwargs=dict(net_arch=dict(pi=[20, 8, 6], qf=[16, 12, 10]), action_layer=3)),
    "momentum": dict(policy_kwargs=dict(norm_momentum=0.01, norm_eps=1e-3)),
    "betas": dict(policy_kwargs=dict(optimizer_kwargs=dict(betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01))),
    "weight normalization": dict(weight_normalization="both"),
    "weight normalization of the critic": dict(weight_normalization="critic", policy_delay=2),
    "no weight decay": dict(critic_weight_decay=0.0, learning_rate=1e-3),
    "no target networks": dict(use_target_networks=False),
    "no target networks, updating": dict(use_target_networks=False, target_statistics="batch_update"),
    "running targets": dict(target_statistics="running"),
    "Polyak-averaged statistics": dict(target_statistics="running", target_statistics_sync="polyak"),
    "targets' own statistics": dict(target_statistics="batch_update", target_statistics_sync=None),
    "critic on the batch": dict(actor_loss_critic_statistics="batch"),
    "critic updating": dict(actor_loss_critic_statistics="batch_update"),
    "all layers": dict(policy_kwargs=dict(critic_norm_layers="all")),
    "all layers, action at the input": dict(policy_kwargs=dict(critic_norm_layers="all", action_layer=1)),
    "all layers, layer norm": dict(policy_kwargs=dict(critic_norm_layers="all", normalization="layer")),
    "all layers, critic on the batch": dict(
        policy_kwargs=dict(critic_norm_layers="all"), actor_loss_critic_statistics="batch"
    ),
    "all layers, critic updating": dict(
        policy_kwargs=dict(critic_norm_layers="all", action_layer=1), actor_loss_critic_statistics="batch_update"
    ),
    "joint": dict(use_target_networks=False, target_statistics="joint"),
    "joint, no batch norm": dict(
        use_target_networks=False, target_statistics="joint", policy_kwargs=dict(normalization=None, net_arch=[20])
    ),
    "joint, all layers": dict(
        use_target_networks=False,
        target_statistics="joint",
        policy_kwargs=dict(critic_norm_layers="all", action_layer=1, net_arch=dict(pi=[16, 12], qf=[10, 20, 8])),
    ),
    "joint, batch norm, then layer norm": dict(
        use_target_networks=False,
        target_statistics="joint",
        policy_kwargs=dict(critic_norm_layers="all", normalization="batch_layer", action_layer=1),
    ),
    "joint, with target networks": dict(target_statistics="joint"),
    "joint, with target networks, all layers": dict(
        target_statistics="joint", policy_delay=2, policy_kwargs=dict(critic_norm_layers="all", action_layer=1)
    ),
    "TD3, joint, with target networks": dict(algorithm=BNTD3, target_statistics="joint", policy_kwargs=CROSSQ_LAYERS),
    "delayed actor": dict(policy_delay=3),
    "delayed actor, all updating": dict(
        policy_delay=2, target_statistics="batch_update", actor_loss_critic_statistics="batch_update"
    ),
    "delayed actor, joint, all layers": dict(
        policy_delay=3,
        use_target_networks=False,
        target_statistics="joint",
        policy_kwargs=dict(critic_norm_layers="all", action_layer=1),
    ),
    "norm after the activation": dict(policy_kwargs=dict(norm_order="after_activation")),
    "layer norm after the activation": dict(policy_kwargs=dict(norm_order="after_activation", normalization="layer")),
    "norm of state and action": dict(policy_kwargs=dict(critic_input_norm="state_action", action_layer=1)),
    "norm of state and action, critic updating": dict(
        policy_kwargs=dict(critic_input_norm="state_action", action_layer=1), actor_loss_critic_statistics="batch_update"
    ),
    "batch renorm": dict(policy_kwargs=dict(normalization="batch_renorm")),
    "batch renorm after its warm-up": dict(policy_kwargs=dict(normalization="batch_renorm", renorm_warmup_steps=10)),
    "batch renorm after its warm-up, CrossQ's layers, critic updating": dict(
        use_target_networks=False,
        target_statistics="joint",
        actor_loss_critic_statistics="batch_update",
        policy_kwargs=dict(CROSSQ_LAYERS, normalization="batch_renorm", renorm_warmup_steps=10),
    ),
    "batch renorm, all layers, critic on the batch": dict(
        actor_loss_critic_statistics="batch",
        target_statistics="batch",
        policy_kwargs=dict(critic_norm_layers="all", normalization="batch_renorm", renorm_warmup_steps=10),
    ),
    "CrossQ's layers": dict(
        use_target_networks=False,
        target_statistics="joint",
        actor_loss_critic_statistics="batch",
        policy_kwargs=CROSSQ_LAYERS,
    ),
    "TD3": dict(algorithm=BNTD3),
    "TD3, no smoothing": dict(algorithm=BNTD3, target_policy_noise=0.0),  # whose noise would be another one in float64
    "TD3, one critic": dict(algorithm=BNTD3, policy_kwargs=dict(n_critics=1)),
    "TD3, three critics, no smoothing": dict(
        algorithm=BNTD3, policy_delay=1, target_policy_noise=0.0, policy_kwargs=dict(n_critics=3)
    ),
    # Of the first critic alone, whose pass it is
    "TD3, critic updating": dict(algorithm=BNTD3, actor_loss_critic_statistics="batch_update"),
    "TD3, the smallest in both": dict(algorithm=BNTD3, actor_loss_critics="smallest"),
    "TD3, the smallest in both, all updating": dict(
        algorithm=BNTD3,
        actor_loss_critics="smallest",
        target_statistics="batch_update",
        actor_loss_critic_statistics="batch_update",
        weight_normalization="both",
        policy_kwargs=dict(critic_norm_layers="all"),
    ),
    "TD3, joint": dict(algorithm=BNTD3, use_target_networks=False, target_statistics="joint"),
    "TD3, joint, CrossQ's layers": dict(
        algorithm=BNTD3,
        use_target_networks=False,
        target_statistics="joint",
        actor_loss_critics="smallest",
        policy_kwargs=CROSSQ_LAYERS,
    ),
    "TD3, no batch norm": dict(algorithm=BNTD3, policy_kwargs=dict(normalization=None, action_layer=1)),
    "SAC": dict(algorithm=BNSAC),
    "SAC, fixed coefficient": dict(algorithm=BNSAC, ent_coef=0.05, target_statistics="running"),
    "SAC, first coefficient, target entropy": dict(algorithm=BNSAC, ent_coef="auto_0.1", target_entropy=-0.5),
    "SAC, delayed actor, targets every third": dict(algorithm=BNSAC, policy_delay=2, target_update_interval=3),
    "SAC, one critic": dict(algorithm=BNSAC, policy_kwargs=dict(n_critics=1)),
    "SAC, three critics": dict(algorithm=BNSAC, policy_kwargs=dict(n_critics=3)),
    "SAC, layer norm": dict(algorithm=BNSAC, policy_kwargs=dict(normalization="layer")),
    "SAC, no batch norm": dict(algorithm=BNSAC, policy_kwargs=dict(normalization=None, action_layer=1)),
    "SAC, linear": dict(algorithm=BNSAC, policy_kwargs=dict(net_arch=[])),
    "SAC, linear without batch norm": dict(algorithm=BNSAC, policy_kwargs=dict(net_arch=[], normalization=None)),
    "SAC, three hidden layers": dict(
        algorithm=BNSAC, policy_kwargs=dict(net_arch=dict(pi=[20, 8, 6], qf=[16, 12, 10]), action_layer=3)
    ),
    "SAC, all updating": dict(
        algorithm=BNSAC,
        target_statistics="batch_update",
        actor_loss_critic_statistics="batch_update",
        weight_normalization="both",
        policy_kwargs=dict(critic_norm_layers="all"),
    ),
    "SAC, no target networks, updating": dict(
        algorithm=BNSAC, use_target_networks=False, target_statistics="batch_update", critic_weight_decay=0.01
    ),
    "atoms": dict(policy_kwargs=ATOMS),
    "atoms, no batch norm": dict(policy_kwargs=ATOMS | dict(normalization=None, action_layer=1)),
    "TD3, atoms": dict(algorithm=BNTD3, policy_kwargs=ATOMS),
    "TD3, atoms, three critics, the smallest in both, joint": dict(
        algorithm=BNTD3,
        actor_loss_critics="smallest",
        use_target_networks=False,
        target_statistics="joint",
        actor_loss_critic_statistics="batch_update",
        policy_kwargs=ATOMS | CROSSQ_LAYERS | dict(n_critics=3),
    ),
    "SAC, atoms": dict(algorithm=BNSAC, policy_kwargs=ATOMS),
    "SAC, atoms, XQC's layers": dict(
        algorithm=BNSAC,
        target_statistics="joint",
        policy_delay=3,
        ent_coef="auto_0.01",
        weight_normalization="both",
        policy_kwargs=ATOMS | CROSSQ_LAYERS | dict(norm_order="before_activation"),
    ),
    "SAC, joint, CrossQ's layers": dict(
        algorithm=BNSAC,
        use_target_networks=False,
        target_statistics="joint",
        policy_delay=3,
        policy_kwargs=CROSSQ_LAYERS | dict(optimizer_kwargs=dict(betas=(0.5, 0.999))),
    ),
}

HAS_NUMBA = importlib.util.find_spec("numba") is not None
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="the extra `compiled` is not installed")
COMPILES = pytest.mark.xdist_group("compiled")
"""One process compiles: others that began at the same time would each do the same, for half a minute."""
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


WITH_OTHER_KERNELS = {
    "default",
    "no batch norm",
    "layer norm",
    "batch and layer norm, action at the input",
    "linear",
    "three hidden layers",
    "weight normalization",
    "Polyak-averaged statistics",
    "joint, all layers",
    "delayed actor, all updating",
    "norm after the activation",
    "batch renorm after its warm-up, CrossQ's layers, critic updating",
    "TD3, the smallest in both, all updating",
    "TD3, joint, CrossQ's layers",
    "SAC",
    "SAC, all updating",
    "SAC, joint, CrossQ's layers",
}
"""Configurations that have each layer, norm, loss and kind of pass at least once. Another processor's kernels add up in
another order, and know nothing of how these are combined."""
NOT_COMPILED = {"SAC, one critic", "SAC, three critics"}
"""Each number of critics is compiled anew, for half a minute: one and three of them are, with the deterministic policies."""
COMPARED = [
    pytest.param(device, name, marks=[*marks, *([pytest.mark.numerics] if name in WITH_OTHER_KERNELS else [])])
    for device, marks in (("processor", [COMPILES]), ("cuda", [needs_cuda]))
    for name in CONFIGURATIONS
]


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


@pytest.fixture
def double(monkeypatch):
    """``double_model``, of which the fast update knows the features extractor."""
    monkeypatch.setattr(fast_update, "FlattenExtractor", DoubleExtractor)
    return double_model


@pytest.fixture
def double_pair(double):
    """A function that makes the same model twice, updating by a path and by autograd."""

    def make(path: bool | str = True, **kwargs) -> tuple[BNDDPG, BNDDPG]:
        return double(path, **kwargs), double(path, **kwargs | dict(fast_update=False))

    return make


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


N_UPDATES = 20
"""Enough for delayed actors and targets, the end of a warm-up, and averages that have moved."""


@pytest.mark.parametrize(("device", "name"), COMPARED)
def test_updates_equal_the_reference(double, device, name):
    """
    Parameters, statistics, optimizer state, targets and what is reported, in float64: a direction without gradient, as the
    shift of an input that batch norm subtracts again, drifts by rounding in float32: Adam divides by the gradient's size.
    """
    kwargs = copy.deepcopy(CONFIGURATIONS[name]) | (EXACT_RATES if device == "cuda" else {})
    paths = [path for path in ("cuda", True, "compiled") if (path == "cuda") == (device == "cuda")]
    is_compiled = HAS_NUMBA and name not in NOT_COMPILED
    models = [double(path, **copy.deepcopy(kwargs)) for path in paths if path != "compiled" or is_compiled]
    reference = double(paths[0], **copy.deepcopy(kwargs) | dict(fast_update=False))
    start = copy.deepcopy(reference.policy.state_dict())
    for index, batch in enumerate(batches(reference, N_UPDATES)):
        update_actor = index % reference.policy_delay == 0
        for model in (*models, reference):
            model._n_updates = index  # by which SAC's targets follow
        *fast_infos, info = steps([*models, reference], batch, update_actor)
        assert (info.actor_loss is not None) == update_actor
        for fast_info in fast_infos:
            assert_same_report(fast_info, info, rtol=1e-8, atol=1e-10)
    assert reference._fast_update is None
    assert any(not th.equal(value, start[key]) for key, value in reference.policy.state_dict().items())
    for path, fast in zip(paths, models, strict=False):
        assert type(fast._fast_update).__name__ == CLASSES[path]
        assert_close(fast.policy.state_dict(), reference.policy.state_dict(), rtol=1e-7, atol=1e-8)
        learned = ["entropy_coefficient"] if getattr(fast, "log_ent_coef", None) is not None else []
        for network in ("actor", "critic", *learned):
            ours, theirs = (getattr(model, network).optimizer.state_dict()["state"] for model in (fast, reference))
            assert ours.keys() == theirs.keys()
            for key, state in theirs.items():
                assert_close(ours[key], state, rtol=1e-6, atol=1e-10)
                assert state["step"] == (N_UPDATES if network == "critic" else np.ceil(N_UPDATES / fast.policy_delay))
        if isinstance(fast, BNSAC):
            ours, theirs = (model.entropy_coefficient.state_dict() for model in (fast, reference))
            assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


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


def less_exact_than_the_definition(path: bool | str, name: str) -> dict[str, tuple[float, float]]:
    """
    In the type that is used, with the paper's widths: a step's distance from the definition in float64, from the same
    parameters, beside that of the definition in float32. A unit whose input is nearly zero may be on in one and off in the
    other, whichever way is taken: the median over batches leaves such single ones out.

    :return: The tensors that are too far away, with both distances
    """
    kwargs = copy.deepcopy(CONFIGURATIONS[name])
    # Beside a large epsilon, Adam does not make a whole step of a gradient that is zero but for rounding
    policy_kwargs = kwargs.pop("policy_kwargs", {}) | dict(net_arch=[400, 300], optimizer_kwargs=dict(eps=1e-3))
    arguments = dict(buffer_size=10, seed=0, tau=0.01) | by(path) | kwargs
    algorithm = arguments.pop("algorithm", BNDDPG)
    way = algorithm("MlpPolicy", VectorEnv(), policy_kwargs=policy_kwargs, **arguments)
    reference = algorithm("MlpPolicy", VectorEnv(), policy_kwargs=policy_kwargs, **arguments | dict(fast_update=False))
    exact = double_model(False, policy_kwargs=policy_kwargs, **kwargs)
    seen: dict[str, list[tuple[float, float]]] = {}
    for batch in batches(way, 15, double=False):
        for each in (reference, exact):
            # Copies, for PyTorch's optimizers take over the very tensors that they load
            each.set_parameters(copy.deepcopy(way.get_parameters()))
        (exact_info,) = steps([exact], as_double(batch))
        reference_info, info = steps([reference, way], batch)
        reference_errors = errors(reference, reference_info, exact, exact_info)
        for key, error in errors(way, info, exact, exact_info).items():
            seen.setdefault(key, []).append((error, reference_errors[key]))
    assert type(way._fast_update).__name__ == CLASSES[path]
    assert len(seen) > 20
    medians = {key: tuple(np.median(pairs, axis=0)) for key, pairs in seen.items()}
    return {key: (ours, own) for key, (ours, own) in medians.items() if ours > ERROR_RATIO * own + SMALLEST_ERROR}


@pytest.mark.numerics
@pytest.mark.parametrize("path", [True, COMPILED, CUDA])
@pytest.mark.parametrize(
    "name",
    [
        "default",
        "no batch norm",
        "layer norm",
        "critic on the batch",
        "joint, all layers",
        "TD3, no smoothing",
        "SAC",
        "atoms",
    ],
)
def test_float32_is_as_exact_as_the_definition_in_float32(path, name):
    assert not less_exact_than_the_definition(path, name)


def with_wrong_norms(monkeypatch, **changes):
    init = fast_norms.NormReLU.__init__

    def wrong_init(self, *args):
        init(self, *args)
        for name, factor in changes.items():
            if self.has_norm:
                setattr(self, name, getattr(self, name) * factor)

    monkeypatch.setattr(fast_norms.NormReLU, "__init__", wrong_init)


def with_wrong_rates(monkeypatch):
    count_steps = flat_storage.FlatStorage.count_steps

    def wrong_count_steps(self, n):
        return [(group | dict(lr=group["lr"] * 1.001), tensors, step) for group, tensors, step in count_steps(self, n)]

    monkeypatch.setattr(flat_storage.FlatStorage, "count_steps", wrong_count_steps)


FLAWS = {
    "epsilon": lambda monkeypatch: with_wrong_norms(monkeypatch, eps=100),
    "momentum": lambda monkeypatch: with_wrong_norms(monkeypatch, momentum=1.001),
    "learning rate": with_wrong_rates,
}


@pytest.mark.numerics
@pytest.mark.parametrize("path", [True, COMPILED])
@pytest.mark.parametrize("flaw", FLAWS)
def test_the_comparison_sees_flaws(monkeypatch, path, flaw):
    """A thousandth is enough."""
    FLAWS[flaw](monkeypatch)
    assert less_exact_than_the_definition(path, "default")


@pytest.mark.parametrize("path", [True, COMPILED, CUDA])
def test_n_step_discounts(double_pair, path):
    fast, reference = double_pair(path, **EXACT_RATES)
    for batch in batches(fast, 3):
        batch = batch._replace(discounts=th.rand_like(batch.rewards))
        fast._gradient_step(batch)
        reference._gradient_step(batch)
    assert_close(fast.policy.state_dict(), reference.policy.state_dict(), rtol=1e-7, atol=1e-8)


def test_it_is_the_default_and_learns(make_model):
    model = make_model()
    model.learn(60)
    assert model._fast_update is not None


@pytest.mark.parametrize("path", [True, COMPILED, CUDA])
def test_it_is_kept_from_one_call_of_learn_to_the_next(make_model, path):
    """A loop of ``learn(1)`` gives the numbers of one ``learn``, with the same storage all the time."""
    whole = make_model(**by(path)).learn(60)
    model = make_model(**by(path)).learn(30)
    update = model._fast_update
    for _ in range(30):
        model.learn(1, reset_num_timesteps=False)
        assert model._fast_update is update
    for key, value in whole.policy.state_dict().items():
        assert th.equal(value, model.policy.state_dict()[key]), key
    # What has changed in between counts
    model.actor.mu[2] = nn.BatchNorm1d(16)
    model.learn(1, reset_num_timesteps=False)
    assert model._fast_update is not update


@pytest.mark.parametrize("path", [True, COMPILED])
def test_a_loop_of_learn_says_once_what_is_not_fast(make_model, path, capsys):
    model = make_model(**by(path), verbose=1, policy_kwargs=SMALL | dict(activation_fn=nn.Tanh)).learn(30)
    for _ in range(5):
        model.learn(1, reset_num_timesteps=False)
    assert capsys.readouterr().out.count("Updating by autograd: there is a layer Tanh") == 1
    model.critic.optimizer = th.optim.SGD(model.critic.parameters(), lr=1e-3)
    model.learn(1, reset_num_timesteps=False)
    assert "Updating by autograd" in capsys.readouterr().out
    assert model._fast_update is None


@needs_numba
@pytest.mark.parametrize("fault", ["no folder", "a full disk", "a broken file"])
def test_compiled_where_nothing_can_be_kept(tmp_path, fault):
    """It compiles for this process alone, which one warning says."""
    code = """
        import sys, warnings
        from numba.core import caching
        fault = sys.argv[1]

        def raises(*args):
            raise {"a full disk": OSError(28, "No space left on device"), "a broken file": EOFError("Ran out of input")}[fault]

        if fault == "no folder":
            caching.CacheImpl._locator_classes = []
        else:
            setattr(caching.IndexDataCacheFile, "save" if fault == "a full disk" else "load", raises)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import numba, numpy
            from sb3_bn_ddpg.fast import numba_operations as ops
            target = numpy.zeros(3)
            numba.njit(lambda target: ops.move(target, target + 1, 0.5))(target)
        assert target.tolist() == [0.5] * 3
        texts = [str(warning.message) for warning in caught if "Numba can keep no compiled code" in str(warning.message)]
        assert len(texts) == 1 and "NUMBA_CACHE_DIR" in texts[0], texts
    """
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), fault], check=True, env=environment)


@needs_numba
def test_two_processes_that_compile_for_different_types_at_a_time(tmp_path):
    """Both read what is kept, then both write: each one's types lead to its own code, or to none."""
    code = """
        from sb3_bn_ddpg.fast import numba_operations as ops
        from sb3_bn_ddpg.fast.numba_compiler import compiled
        one, other = (compiled(ops.move.py_func)._cache._cache_file for _ in range(2))
        index, write = one._load_index, other._save_data
        other._load_index = dict  # as it was when both began

        def write_later(*args):
            one._load_index = dict
            one.save("of one", "code of one")
            write(*args)

        other._save_data = write_later
        other.save("of the other", "code of the other")
        one._load_index = index
        assert one.load("of one") == "code of one", one.load("of one")
    """
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


@needs_numba
def test_a_line_says_that_a_step_is_compiled_once_a_machine(tmp_path):
    (tmp_path / "own_step.py").write_text(
        "from sb3_bn_ddpg.fast.numba_compiler import compiled\n\ndef double(x):\n    return 2 * x\n\n"
        "assert compiled(double, is_step=True)(2) == 4\n"
    )
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "cache"))

    def stderr() -> str:
        command = [sys.executable, str(tmp_path / "own_step.py")]
        return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stderr

    assert stderr().count("Compiling the gradient step") == 1
    assert "Compiling" not in stderr()


@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["BNDDPG", "BNSAC"])
def test_kept_code_has_the_numbers_of_the_process_that_compiled_it(algorithm, tmp_path):
    """Else a training whose first process compiled would be resumed to other numbers, as once by the order of its sums."""
    code = """
        import hashlib, sys
        import sb3_bn_ddpg
        algorithm = getattr(sb3_bn_ddpg, sys.argv[1])
        model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, learning_starts=80, batch_size=64, fast_update="compiled")
        model.learn(120)
        digest = hashlib.sha256()
        for tensor in model.policy.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        print(digest.hexdigest())
    """
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    command = [sys.executable, "-c", textwrap.dedent(code), algorithm]
    compiling, reading = (
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True) for _ in range(2)
    )
    assert "Compiling" in compiling.stderr
    assert "Compiling" not in reading.stderr
    assert reading.stdout == compiling.stdout


@pytest.mark.parametrize("path", [True, CUDA])
def test_switching_between_the_paths(double_pair, path):
    """Ten steps fast, ten by autograd, ten fast: as thirty by autograd. Each path finds the other's optimizer state."""
    mixed, reference = double_pair(path, **EXACT_RATES)
    classes = mixed._fast_update_classes
    for index, batch in enumerate(batches(mixed, 30)):
        mixed._fast_update_classes = [] if index // 10 == 1 else [*classes]
        mixed._gradient_step(batch)
        reference._gradient_step(batch)
    assert_close(mixed.policy.state_dict(), reference.policy.state_dict(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (True, False),
        (False, True),
        pytest.param("compiled", False, marks=needs_numba),
        pytest.param(True, "cuda", marks=needs_cuda),
        pytest.param("cuda", True, marks=needs_cuda),
        pytest.param("cuda", False, marks=needs_cuda),
    ],
)
def test_saved_by_one_path_and_loaded_by_the_other(double, tmp_path, first, second):
    """Ten updates, save, load into the other path, ten more: as twenty on one path."""
    model, whole = double(first, **EXACT_RATES), double(True, **EXACT_RATES)
    model.learn(0)
    whole.learn(0)
    for batch in batches(model, 10):
        model._gradient_step(batch)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv(), **by(second))
    for batch in list(batches(loaded, 20))[10:]:
        loaded._gradient_step(batch)
    for batch in batches(whole, 20):
        whole._gradient_step(batch)
    assert (loaded._fast_update is None) == (not second)
    assert_close(loaded.policy.state_dict(), whole.policy.state_dict(), rtol=1e-7, atol=1e-8)
    steps = {float(state["step"]) for state in loaded.actor.optimizer.state_dict()["state"].values()}
    assert steps == {20}


@pytest.mark.parametrize("change", ["parameters", "optimizer", "policy"])
def test_state_set_from_outside_counts(make_model, change):
    """What is loaded into policy or optimizer in the middle is what the next step starts from."""
    model, other = make_model(seed=0), make_model(seed=1)
    for batch in batches(model, 5, double=False):
        model._gradient_step(batch)
        other._gradient_step(batch)
    # Copies, for PyTorch's optimizers take over the very tensors that they load
    ours, theirs = copy.deepcopy(model.get_parameters()), copy.deepcopy(other.get_parameters())
    if change == "parameters":
        model.set_parameters(theirs)
    elif change == "policy":
        model.policy.load_state_dict(theirs["policy"])
        other.set_parameters(ours | {"policy": theirs["policy"]})
    else:
        model.actor.optimizer.load_state_dict(theirs["actor.optimizer"])
        model.critic.optimizer.load_state_dict(theirs["critic.optimizer"])
        other.policy.load_state_dict(ours["policy"])
    for batch in batches(model, 3, double=False):
        model._gradient_step(batch)
        other._gradient_step(batch)
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[key]), key


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(policy_kwargs=dict(SMALL, activation_fn=nn.Tanh)), "Tanh"),
        (dict(policy_kwargs=dict(SMALL, activation_fn=nn.Tanh, normalization=None)), "Tanh"),
        (dict(policy_kwargs=dict(SMALL, optimizer_class=th.optim.SGD)), "SGD"),
        (dict(policy_kwargs=dict(SMALL, optimizer_class=th.optim.AdamW)), "AdamW"),
        (dict(policy_kwargs=dict(SMALL, optimizer_kwargs=dict(amsgrad=True))), "Adam with options"),
        (dict(policy_kwargs=dict(SMALL, features_extractor_class=PlainExtractor)), "PlainExtractor"),
        (dict(policy_kwargs=dict(SMALL, share_features_extractor=True)), "share"),
        (dict(policy_kwargs=dict(SMALL, share_features_extractor=True, shared_extractor_loss="critic")), "share"),
        (dict(critic_loss_statistics="running_update"), "running_update"),
    ],
)
def test_everything_else_goes_by_autograd_and_says_so_once(make_model, capsys, kwargs, reason):
    model = make_model(verbose=1, **kwargs)
    model.learn(40)
    assert model._fast_update is None
    output = capsys.readouterr().out
    assert output.count("Updating by autograd") == 1
    assert reason in output


@pytest.mark.parametrize("normalization", ["layer", None])
def test_a_joint_input_without_a_layer_is_fast(make_model, normalization):
    """Where nothing normalises the input, it makes no difference what would be normalised."""
    policy_kwargs = dict(SMALL, normalization=normalization, critic_input_norm="state_action", action_layer=1)
    assert type(make_model(policy_kwargs=policy_kwargs).learn(40)._fast_update) is FastUpdate


def with_layers(*layers: nn.Module, **kwargs) -> type[BNDDPGPolicy]:
    """A policy whose actor has these layers."""

    class CustomPolicy(BNDDPGPolicy):
        def make_actor(self, features_extractor=None):
            actor = super().make_actor(features_extractor)
            actor.mu = copy.deepcopy(nn.Sequential(*layers))
            return actor

    return CustomPolicy


TIED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Hardtanh()), "the last layer of the actor is Hardtanh"),
        ((nn.ReLU(), nn.Linear(4, 2), nn.Tanh()), "a layer ReLU stands where"),
        ((nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2), nn.Tanh()), "two normalisations"),
        ((nn.Linear(4, 8), nn.Linear(8, 2), nn.Tanh()), "no ReLU follows a layer"),
        ((nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2), nn.Tanh()), "has no gamma or beta"),
        ((nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2), nn.Tanh()), "has no gamma or beta"),
        ((nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 2), nn.Tanh()), "has no running averages"),
        ((TIED, nn.ReLU(), TIED, nn.ReLU(), nn.Linear(4, 2), nn.Tanh()), "a layer occurs twice"),
    ],
)
def test_layers_that_it_does_not_know_go_by_autograd(layers, reason, capsys):
    model = BNDDPG(
        with_layers(*layers), VectorEnv(), buffer_size=100, learning_starts=10, batch_size=8, verbose=1, device="cpu"
    )
    model.learn(30)
    assert model._fast_update is None
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize("path", [True, COMPILED])
def test_layer_norm_on_the_input(double_pair, path):
    policy = with_layers(nn.LayerNorm(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh())
    models = double_pair(path, policy=policy)
    models[1].set_parameters(copy.deepcopy(models[0].get_parameters()))
    for batch in batches(models[0], 100):
        infos = [model._gradient_step(batch) for model in models]
        assert_same_report(*infos, rtol=1e-8, atol=1e-10)
    assert type(models[0]._fast_update).__name__ == CLASSES[path]
    assert_close(models[0].actor.state_dict(), models[1].actor.state_dict(), rtol=1e-7, atol=1e-8)


def test_networks_that_share_a_parameter_learn(capsys):
    class SharedTrunk(BNDDPGPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            for actor, critic in ((self.actor, self.critic), (self.actor_target, self.critic_target)):
                critic.state_net[0] = actor.mu[0]
            self.critic.optimizer = self.optimizer_class(self.critic.parameters(), lr=lr_schedule(1))

    policy_kwargs = dict(net_arch=[8, 8], normalization=None)
    model = BNDDPG(SharedTrunk, VectorEnv(), buffer_size=100, learning_starts=10, verbose=1, policy_kwargs=policy_kwargs)
    model.learn(20)
    assert "networks share parameters" in capsys.readouterr().out


def test_shared_memory_stays_shared(make_model, capsys):
    model = make_model(verbose=1)
    model.policy.share_memory()
    model.learn(40)
    assert "shared memory" in capsys.readouterr().out
    assert model.actor.mu[1].weight.is_shared()


@pytest.mark.parametrize("path", [True, COMPILED])
def test_what_a_callback_changes_of_the_normalisation_counts(make_model, path):
    model = make_model(**by(path)).learn(30)
    layer = model.actor.norm_layers[0]
    layer.momentum = 0.0
    before = layer.running_mean.clone()
    model.train(2, 16)
    assert th.equal(layer.running_mean, before)
    assert type(model._fast_update).__name__ == CLASSES[path]


def hook_of_the_optimizer(model, call):
    model.actor.optimizer.register_step_pre_hook(call)


def hook_of_a_parameter(model, call):
    model.actor.mu[1].weight.register_hook(call)


def hook_after_accumulation(model, call):
    model.actor.mu[1].weight.register_post_accumulate_grad_hook(call)


def wrapped_step(model, call):
    step = model.actor.optimizer.step
    model.actor.optimizer.step = lambda: (call(), step())


@pytest.mark.parametrize("register", [hook_of_the_optimizer, hook_of_a_parameter, hook_after_accumulation, wrapped_step])
@PATHS
def test_hooks_registered_while_learning_are_called(make_model, path, register):
    model, calls = make_model(**by(path)).learn(30), []
    register(model, lambda *_: calls.append(1))
    model.train(2, 16)
    assert len(calls) == 2


def with_amsgrad(model):
    for group in model.critic.optimizer.param_groups:
        group["amsgrad"] = True
    for state in model.critic.optimizer.state.values():
        state["max_exp_avg_sq"] = 100 * state["exp_avg_sq"]


def with_maximize(model):
    model.actor.optimizer.param_groups[0]["maximize"] = True


def with_epsilon(model):
    model.actor.mu[1].eps = 1.0


@pytest.mark.parametrize("change", [with_amsgrad, with_maximize, with_epsilon])
@PATHS
def test_settings_changed_while_learning_count(double_pair, path, change):
    models = double_pair(path, policy_kwargs=dict(normalization="layer"), **EXACT_RATES)
    for model in models:
        for batch in batches(model, 10):
            model._gradient_step(batch)
        change(model)
        for batch in batches(model, 5):
            model._gradient_step(batch)
    assert_close(*(model.policy.state_dict() for model in models), rtol=1e-7, atol=1e-8)


def freeze_norms(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
            module.train = lambda mode=True, module=module: module


@PATHS
def test_batch_norm_that_stays_in_evaluation_mode(make_model, path):
    model = make_model(**by(path)).learn(30)
    for actor in (model.actor, model.actor_target):
        freeze_norms(actor)
    before = model.actor.mu[0].running_mean.clone()
    model.learn(30, reset_num_timesteps=False)
    assert th.equal(model.actor.mu[0].running_mean, before)


class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs) / 2


@pytest.mark.parametrize("name", ["actor.mu", "critic.qf0", "critic.qf0.state_net", "critic.qf0.q_net"])
@PATHS
def test_modules_of_ones_own_go_by_autograd(make_model, path, name):
    model = make_model(**by(path), verbose=1)
    network, attribute = name.split(".", 1)
    for each in (network, f"{network}_target"):
        owner = getattr(model, each).get_submodule(attribute.rpartition(".")[0])
        inner = getattr(owner, attribute.rpartition(".")[2])
        setattr(owner, attribute.rpartition(".")[2], Scaled(inner))
    model.learn(30)
    assert model._fast_update is None


@needs_numba
def test_the_actors_weights_keep_their_norm_without_the_critics(make_model):
    """The critic has no weights that batch norm follows, if the action enters at its only normalised layer."""
    policy_kwargs = dict(net_arch=[8, 8], action_layer=1)
    model = make_model(fast_update="compiled", weight_normalization="both", learning_rate=1e-2, policy_kwargs=policy_kwargs)
    weight, norms = model._networks.fixed_norm_actor_weights[0], []
    for _ in range(2):
        model.learn(40, reset_num_timesteps=False)
        norms.append(weight.norm().item())
    assert not model._networks.fixed_norm_critic_weights
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@PATHS
@pytest.mark.parametrize("cls", [BNDDPG, BNTD3, BNSAC])
def test_many_steps_in_a_call_are_as_many_calls(cls, path):
    """To the bit: compiled code makes them all at once, and flushes what is nearly denormal when it is due."""
    kwargs = dict(n_steps=3) if cls is BNTD3 else {}
    arguments = dict(policy_kwargs=SMALL, learning_starts=60, batch_size=16, seed=0) | kwargs | by(path)
    models, flushes = [], []
    for n_at_once in (130, 1):
        model = cls("MlpPolicy", "Pendulum-v1", **arguments).learn(70)
        models.append(model)
        if path:
            flush = model._fast_update.flush_denormals
            model._fast_update.flush_denormals = lambda model=model, flush=flush: flushes.append(model._n_updates) or flush()
        np.random.seed(1)
        th.manual_seed(1)
        for _ in range(130 // n_at_once):
            model.train(n_at_once, 16)
    assert models[0]._n_updates == models[1]._n_updates == 140
    assert flushes == ([100, 100] if path else [])
    for name, value in models[0].policy.state_dict().items():
        assert th.equal(value, models[1].policy.state_dict()[name]), name
    for name in ("actor", "critic"):
        ours, theirs = (getattr(model, name).optimizer.state_dict()["state"] for model in models)
        for index, state in ours.items():
            assert all(th.equal(value, theirs[index][key]) for key, value in state.items())


@needs_numba
def test_what_many_steps_report(make_model):
    """The mean of each value over the steps that have it, and no more transitions at once than are allowed for."""
    kwargs = dict(env="Pendulum-v1", policy_kwargs=SMALL, fast_update="compiled", batch_size=16, policy_delay=3)
    model, other = (make_model(**kwargs).learn(20) for _ in range(2))
    sizes, sample = [], model._sample
    model._sample = lambda batch_size, n=1: sizes.append(n) or sample(batch_size, n)
    reported = []
    for each, n_at_once in ((model, 40), (other, 1)):
        np.random.seed(1)
        infos = [info for _ in range(40 // n_at_once) for info in each._gradient_steps(n_at_once, 16)[0]]
        reported.append(averages(infos))
    assert sizes == [40]
    assert reported[0] == reported[1]
    assert model._gradient_steps(3, 5000)[1].actions.shape == (5000, 1)
    assert sizes == [40, 1, 1, 1]


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


@needs_numba
def test_compiled_by_autograd_if_nothing_else_goes(make_model, capsys):
    model = make_model(fast_update="compiled", verbose=1, policy_kwargs=dict(SMALL, activation_fn=nn.Tanh))
    model.learn(40)
    assert model._fast_update is None
    assert "Updating by autograd: there is a layer Tanh" in capsys.readouterr().out


@needs_numba
def test_one_compiled_code_serves_networks_of_any_depth(make_model):
    from sb3_bn_ddpg.fast.compiled_update import compiled_function

    numbers = []
    for policy_kwargs in (dict(net_arch=[8]), dict(net_arch=[8, 8, 8], normalization="layer"), dict(net_arch=[])):
        model = make_model(fast_update="compiled", policy_kwargs=policy_kwargs)
        model._gradient_step(random_batch(model))
        assert type(model._fast_update).__name__ == "CompiledUpdate"
        numbers.append(len(compiled_function(gradient_step).signatures))
    assert len(set(numbers)) == 1


@needs_numba
def test_compiled_resumes_to_the_bit(make_model, tmp_path):
    whole = make_model("Pendulum-v1", fast_update="compiled").learn(120)
    half = make_model("Pendulum-v1", fast_update="compiled").learn(60, schedule_timesteps=120)
    half.save_checkpoint(tmp_path / "half")
    resumed = BNDDPG.resume(tmp_path / "half", env="Pendulum-v1")
    resumed.learn(60, reset_num_timesteps=False)
    for key, value in whole.policy.state_dict().items():
        assert th.equal(value, resumed.policy.state_dict()[key]), key


def test_frozen_parameters_stay_frozen(make_model):
    model = make_model()
    model.actor.mu[1].weight.requires_grad_(False)
    before = model.actor.mu[1].weight.clone()
    model.learn(40)
    assert model._fast_update is None
    assert th.equal(model.actor.mu[1].weight, before)


@PATHS
def test_parameters_frozen_in_a_training_stay_frozen(make_model, path):
    model = make_model(**by(path)).learn(40)
    frozen = [model.actor.mu[1].weight, *model.critic.q_net.parameters()]
    for param in frozen:
        param.requires_grad_(False)
    before = [param.clone() for param in frozen]
    free = model.actor.mu[-2].bias.clone()
    model.train(5, 16)
    assert all(map(th.equal, frozen, before))
    assert not th.equal(model.actor.mu[-2].bias, free)
    for param in frozen:
        param.requires_grad_(True)
    model.train(5, 16)
    assert not any(map(th.equal, frozen, before))


@PATHS
def test_a_frozen_actor_stays_while_the_critic_learns(make_model, path):
    model = make_model(**by(path)).learn(40)
    model.actor.requires_grad_(False)
    actor, critic = ([param.clone() for param in network.parameters()] for network in (model.actor, model.critic))
    model.train(5, 16)
    assert all(map(th.equal, model.actor.parameters(), actor))
    assert not any(map(th.equal, model.critic.parameters(), critic))


@PATHS
def test_a_new_optimizer_is_the_one_that_is_used(make_model, path):
    model = make_model(**by(path), learning_rate=0.0).learn(40)
    model.actor.optimizer = th.optim.SGD(model.actor.parameters(), lr=0.0)
    before = [param.clone() for param in model.actor.parameters()]
    model.lr_schedule = lambda progress_remaining: 1.0
    model.train(1, 16)
    for param, old in zip(model.actor.parameters(), before, strict=True):
        assert th.equal(param, old - param.grad)


@PATHS
def test_an_optimizer_of_some_parameters(make_model, path):
    model = make_model(**by(path)).learn(40)
    first, *others = model.actor.parameters()
    model.actor.optimizer = th.optim.Adam(others)
    before = first.clone()
    model.train(5, 16)
    assert th.equal(first, before)


@PATHS
def test_hooks_are_called(make_model, path):
    model = make_model(**by(path)).learn(40)
    calls = []
    model.critic.q_net[0].register_forward_hook(lambda *args: calls.append("forward"))
    model.critic.q_net[0].weight.register_hook(lambda grad: calls.append("gradient"))
    model.critic.optimizer.register_step_pre_hook(lambda *args: calls.append("step"))
    model.learn(10, reset_num_timesteps=False)
    assert calls.count("gradient") == calls.count("step") == 10
    assert calls.count("forward") >= 10


@PATHS
def test_parameters_of_different_steps(double, tmp_path, path):
    """Adam corrects the moments of each parameter by its own number of steps."""
    model = double(path, **EXACT_RATES)
    model.actor.mu[1].weight.requires_grad_(False)
    model.learn(40)
    model.save(tmp_path / "model")
    arguments = by(path)
    loaded, reference = (
        BNDDPG.load(tmp_path / "model", env=VectorEnv(), **use) for use in (arguments, arguments | dict(fast_update=False))
    )
    (batch,) = batches(loaded, 1)
    for each in (loaded, reference):
        each._gradient_step(batch)
    for param, expected in zip(loaded.actor.parameters(), reference.actor.parameters(), strict=True):
        th.testing.assert_close(param, expected)  # in float64, to 1e-7


@PATHS
def test_an_optimizer_that_starts_anew(double_pair, path):
    """Moments and counters set to zero in place."""
    model, reference = double_pair(path, **EXACT_RATES)
    for batch in batches(reference, 3):
        for each in (model, reference):
            each._gradient_step(on_device(batch, each.device))
            for state in each.critic.optimizer.state.values():
                for value in state.values():
                    value.zero_()
    assert_close(model.critic.state_dict(), reference.critic.state_dict(), rtol=1e-7, atol=1e-8)


@PATHS
def test_changed_momentum(make_model, path):
    model = make_model(**by(path)).learn(40)
    layer = model.critic.state_net[0]
    layer.momentum = 1.0
    model.learn(1)
    batch = random_batch(model)
    model._gradient_step(batch)
    assert th.allclose(layer.running_mean, batch.observations.mean(dim=0), atol=1e-5)


@PATHS
@pytest.mark.parametrize("network", ["actor", "actor_target"])
def test_an_exchanged_parameter(make_model, path, network):
    """The optimizer has the old one still: as by autograd, neither is trained."""
    model = make_model(**by(path))

    class Exchange(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 40:
                layer = getattr(model, network).mu[1]
                self.old, layer.weight = layer.weight, nn.Parameter(layer.weight.detach().clone())
                self.values = layer.weight.detach().clone()
            return True

    callback = Exchange()
    model.learn(60, callback=callback)
    new = getattr(model, network).mu[1].weight
    assert th.equal(callback.old, callback.values)
    assert th.equal(new, callback.values) == (network == "actor")  # a target follows the online network


@PATHS
def test_gamma_of_numpy_with_returns_of_several_steps(make_model, path):
    model = make_model(**by(path), n_steps=3, gamma=np.float64(0.9)).learn(40)
    assert model._n_updates == 20


def test_spectral_norm_is_trained():
    class SpectralPolicy(MlpPolicy):
        def make_critic(self, features_extractor=None):
            critic = super().make_critic(features_extractor)
            nn.utils.spectral_norm(critic.q_net[0])
            return critic

    model = BNDDPG(
        SpectralPolicy, VectorEnv(), learning_starts=20, batch_size=16, critic_weight_decay=0.0, seed=0, device="cpu"
    )
    before = model.critic.q_net[0].weight_orig.clone()
    model.learn(40)
    assert (model.critic.q_net[0].weight_orig - before).abs().max() > 1e-3


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


def test_modules_see_every_step(make_model):
    """The policy's own forward pass, state_dict and copies follow the storage without being told."""
    model = make_model()
    obs = np.ones((1, 4), dtype=np.float32)
    seen = []
    for batch in batches(model, 3, double=False):
        model._gradient_step(batch)
        seen.append(model.policy.state_dict()["actor.mu.1.weight"].clone())
        duplicate = copy.deepcopy(model.policy)
        np.testing.assert_array_equal(duplicate.predict(obs)[0], model.predict(obs)[0])
    assert not th.equal(seen[0], seen[1])
    assert not th.equal(seen[1], seen[2])
    # A copy is a copy: training the one does not move the other
    before = duplicate.state_dict()["actor.mu.1.weight"].clone()
    model._gradient_step(batch)
    assert th.equal(duplicate.state_dict()["actor.mu.1.weight"], before)


@PATHS
@pytest.mark.parametrize("part", ["a layer in the middle", "the targets", "running statistics", "the targets' statistics"])
def test_tensors_put_in_the_place_of_others_count(double_pair, path, part):
    """As a callback may: what the modules hold is what the next step starts from, and what it moves."""
    models = double_pair(path, tau=0.5, target_statistics="running", **EXACT_RATES)
    for model in models:
        for batch in batches(model, 3):
            model._gradient_step(batch)
        if part == "a layer in the middle":
            model.actor.mu[4].weight.data = th.full_like(model.actor.mu[4].weight, 0.1)
        elif part == "the targets":
            for param in model.critic_target.parameters():
                param.data = th.full_like(param, 0.2)
        else:
            layer = (model.critic if part == "running statistics" else model.critic_target).state_net[0]
            layer.running_mean = th.full_like(layer.running_mean, 0.3)
        for batch in batches(model, 2):
            model.info = model._gradient_step(batch)
    assert_same_report(models[0].info, models[1].info, rtol=1e-8, atol=1e-10)
    assert_close(models[0].policy.state_dict(), models[1].policy.state_dict(), rtol=1e-7, atol=1e-8)


@PATHS
def test_parameters_set_to_themselves(make_model, path):
    """The optimizer has new groups then, with the same tensors: its learning rate is still the one that counts."""
    model = make_model(**by(path), critic_weight_decay=0.0)
    (batch,) = batches(model, 1, double=False)
    model._gradient_step(batch)
    model.set_parameters(model.get_parameters())
    for network in (model.actor, model.critic):
        for group in network.optimizer.param_groups:
            group["lr"] = 0.0
    before = copy.deepcopy(model.critic.state_dict())
    model._gradient_step(batch)
    for name, param in model.critic.named_parameters():
        assert th.equal(param, before[name]), name


@pytest.mark.parametrize(("path", "option"), [(True, "fused"), pytest.param("cuda", "capturable", marks=needs_cuda)])
def test_adams_counters_where_adam_looks_for_them(make_model, path, option):
    """Of a capturable optimizer on the device, as of a fused one; what the reference reads after the fast update."""
    model = make_model(**by(path), policy_kwargs=dict(SMALL, optimizer_kwargs={option: True}))
    (batch,) = batches(model, 1, double=False)
    model._gradient_step(batch)
    model._fast_update_classes = []
    model._gradient_step(batch)
    assert {float(state["step"]) for state in model.actor.optimizer.state.values()} == {2}


@PATHS
def test_a_copy_of_a_model_goes_on_by_itself(make_model, path):
    model = make_model(**by(path)).learn(40)
    copied = copy.deepcopy(model)
    (batch,) = batches(model, 1, double=False)
    before = copy.deepcopy(model.policy.state_dict())
    copied._gradient_step(batch)
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, before[key]), key
    model._gradient_step(batch)
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, copied.policy.state_dict()[key]), key
