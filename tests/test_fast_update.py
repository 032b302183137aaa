"""The hand-derived gradient steps against their definition by autograd: same numbers, same files, and the way back."""

import copy

import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv, as_double
from fast_updates import (
    CLASSES,
    COMPILED,
    COMPILES,
    CUDA,
    ERROR_RATIO,
    EXACT_RATES,
    HAS_NUMBA,
    PATHS,
    SMALLEST_ERROR,
    assert_close,
    assert_same_report,
    batches,
    by,
    double_model,
    errors,
    needs_cuda,
    needs_numba,
    steps,
    with_layers,
)
from torch import nn

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3
from sb3_bn_ddpg.common.steps import averages
from sb3_bn_ddpg.fast import flat_storage
from sb3_bn_ddpg.fast import norms as fast_norms

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


@PATHS
def test_gamma_of_numpy_with_returns_of_several_steps(make_model, path):
    model = make_model(**by(path), n_steps=3, gamma=np.float64(0.9)).learn(40)
    assert model._n_updates == 20
