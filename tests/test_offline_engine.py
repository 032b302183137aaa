"""The steps of the offline algorithms on the engine against their definitions, and their losses against autograd's."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from conftest import DoubleExtractor, VectorEnv, as_double, random_batch
from fast_updates import (
    CLASSES,
    COMPILED,
    CUDA,
    ERROR_RATIO,
    EXACT_RATES,
    SMALLEST_ERROR,
    PlainExtractor,
    assert_close,
    assert_same_report,
    by,
    errors,
    needs_numba,
    steps,
)
from offline_models import data, make, same_parameters
from torch import nn

from sb3_bn_ddpg import BNAWAC, BNBCQ, BNIQL, BNTD3BC
from sb3_bn_ddpg.fast import support, torch_operations
from sb3_bn_ddpg.networks.actors import FixedStdActor, SigmoidStdActor
from sb3_bn_ddpg.networks.layers import StandardizingExtractor
from sb3_bn_ddpg.offline.losses import (
    awac_weights,
    expectile_loss,
    iql_weights,
    soft_clipped_value,
    td3_bc_loss,
    vae_loss,
    weighted_regression_loss,
)

WAYS = pytest.mark.parametrize("path", [True, COMPILED, CUDA])
CONFIGURATIONS = {
    "IQL": dict(algorithm=BNIQL),
    "IQL, batch norm": dict(algorithm=BNIQL, policy_kwargs=dict(normalization="batch")),
    "IQL, layer norm": dict(algorithm=BNIQL, policy_kwargs=dict(normalization="layer")),
    "IQL, its numbers": dict(algorithm=BNIQL, expectile=0.9, beta=1.5, weight_limit=1.2, gamma=0.9),
    "IQL, running targets": dict(
        algorithm=BNIQL,
        target_statistics="running",
        target_statistics_sync="polyak",
        policy_kwargs=dict(normalization="batch", optimizer_kwargs=dict(weight_decay=0.01), ortho_init=False),
    ),
    "IQL, all updating": dict(
        algorithm=BNIQL, target_statistics="batch_update", policy_kwargs=dict(normalization="batch", action_layer=2)
    ),
    "IQL, batch renorm after its warm-up": dict(
        algorithm=BNIQL, policy_kwargs=dict(normalization="batch_renorm", renorm_warmup_steps=10)
    ),
    "AWAC": dict(algorithm=BNAWAC),
    "AWAC, batch norm": dict(algorithm=BNAWAC, policy_kwargs=dict(normalization="batch")),
    "AWAC, layer norm": dict(algorithm=BNAWAC, policy_kwargs=dict(normalization="layer")),
    "AWAC, its numbers": dict(algorithm=BNAWAC, beta=0.3, weighting="exp", weight_limit=1.2, gamma=0.9),
    "AWAC, joint": dict(algorithm=BNAWAC, target_statistics="joint", policy_kwargs=dict(normalization="batch")),
    "AWAC, all updating": dict(
        algorithm=BNAWAC,
        target_statistics="batch_update",
        actor_loss_critic_statistics="batch_update",
        policy_kwargs=dict(normalization="batch", optimizer_kwargs=dict(weight_decay=0.01)),
    ),
    "BCQ": dict(algorithm=BNBCQ),
    "BCQ, batch norm": dict(algorithm=BNBCQ, policy_kwargs=dict(normalization="batch")),
    "BCQ, layer norm": dict(algorithm=BNBCQ, policy_kwargs=dict(normalization="layer")),
    "BCQ, its numbers": dict(
        algorithm=BNBCQ, lmbda=0.3, n_target_actions=3, gamma=0.9, policy_kwargs=dict(phi=0.6, vae_arch=[])
    ),
    "BCQ, one action, all updating": dict(
        algorithm=BNBCQ,
        n_target_actions=1,
        target_statistics="batch_update",
        actor_loss_critic_statistics="batch_update",
        policy_kwargs=dict(normalization="batch", action_layer=2, optimizer_kwargs=dict(weight_decay=0.01)),
    ),
    "TD3+BC": dict(algorithm=BNTD3BC),
    "TD3+BC, batch norm": dict(algorithm=BNTD3BC, policy_kwargs=dict(normalization="batch")),
    "TD3+BC, layer norm": dict(algorithm=BNTD3BC, policy_kwargs=dict(normalization="layer")),
    "TD3+BC, its numbers": dict(algorithm=BNTD3BC, alpha=0.7, policy_delay=1, normalize_observations=False),
    "TD3+BC, imitation alone, no smoothing": dict(algorithm=BNTD3BC, alpha=0.0, target_policy_noise=0.0),
    "TD3+BC, all updating": dict(
        algorithm=BNTD3BC,
        target_statistics="batch_update",
        actor_loss_critic_statistics="batch_update",
        policy_kwargs=dict(normalization="batch"),
    ),
    "TD3+BC, joint": dict(algorithm=BNTD3BC, target_statistics="joint", policy_kwargs=dict(normalization="batch")),
}


class DoubleStandardizing(StandardizingExtractor):
    """SB3 hands observations over in float32."""

    def forward(self, observations):
        return super().forward(observations.double())


def model_of(path, algorithm, policy_kwargs=None, double=False, **kwargs):
    """A model that updates by a path, in float64 or not."""
    policy = algorithm.policy_aliases["MlpPolicy"]
    policy_kwargs = dict(net_arch=[16, 12]) | (dict(vae_arch=[20, 14]) if algorithm is BNBCQ else {}) | (policy_kwargs or {})
    # A larger epsilon: of a gradient that is 0 but for rounding, as of a bias before batch norm, Adam would make a step
    policy_kwargs["optimizer_kwargs"] = dict(eps=1e-3) | policy_kwargs.get("optimizer_kwargs", {})
    if double:

        class DoublePolicy(policy):
            def _build(self, lr_schedule):
                super()._build(lr_schedule)
                self.double()

        policy = DoublePolicy
        extractor = DoubleStandardizing if algorithm is BNTD3BC else DoubleExtractor
        policy_kwargs["features_extractor_class"] = extractor
    arguments = dict(batch_size=16, tau=0.01, seed=0) | EXACT_RATES | by(path) | kwargs
    return algorithm(policy, VectorEnv(), data(), policy_kwargs=policy_kwargs, **arguments)


@pytest.fixture
def _doubles_are_known(monkeypatch):
    monkeypatch.setattr(support, "FlattenExtractor", DoubleExtractor)
    monkeypatch.setattr(support, "StandardizingExtractor", DoubleStandardizing)


@pytest.mark.numerics
@pytest.mark.usefixtures("_doubles_are_known")
@pytest.mark.parametrize("name", CONFIGURATIONS)
@WAYS
def test_forty_updates_equal_the_definition(path, name):
    """Parameters, statistics, optimizers, targets and what is reported, in float64; see ``test_fast_update.py``."""
    kwargs = copy.deepcopy(CONFIGURATIONS[name])
    fast, reference = model_of(path, double=True, **kwargs), model_of(False, double=True, **kwargs)
    for model in (fast, reference):
        if isinstance(model, BNBCQ):
            model.vae.log_std.bias.data[:2] = th.tensor([-9.0, -4.0])  # clamped, and as far as rows go
        elif not isinstance(model, BNTD3BC):
            model.actor.log_std.data[:] = th.tensor([-5.1, 0.4])  # IQL clamps the first, which has no gradient then
    start = copy.deepcopy(fast.policy.state_dict())
    for index in range(40):
        update_actor = index % fast.policy_delay == 0
        batch = as_double(random_batch(fast, seed=index))
        fast_info, info = steps([fast, reference], batch, update_actor)
        assert (info.actor_loss is not None) == update_actor
        assert_same_report(fast_info, info, rtol=1e-8, atol=1e-10)
    assert type(fast._fast_update).__name__ == CLASSES[path]
    assert reference._fast_update is None
    assert_close(fast.policy.state_dict(), reference.policy.state_dict(), rtol=1e-7, atol=1e-8)
    networks = ("actor", "critic", *{BNIQL: ("value",), BNBCQ: ("vae",)}.get(type(fast), ()))
    for network in networks:
        changed = [key for key, value in fast.policy.state_dict().items() if not th.equal(value, start[key])]
        assert any(key.startswith(f"{network}.") for key in changed)
        ours, theirs = (getattr(model, network).optimizer.state_dict()["state"] for model in (fast, reference))
        assert ours.keys() == theirs.keys()
        for key, state in theirs.items():
            assert_close(ours[key], state, rtol=1e-6, atol=1e-10)


@pytest.mark.numerics
@pytest.mark.parametrize(
    "name", [f"{name}{norm}" for name in ("IQL", "AWAC", "BCQ", "TD3+BC") for norm in ("", ", batch norm")]
)
@WAYS
def test_float32_is_as_exact_as_the_definition_in_float32(path, name):
    """With the authors' widths: the distance from the definition in float64, beside that of the definition in float32."""
    kwargs = copy.deepcopy(CONFIGURATIONS[name])
    policy_kwargs = kwargs.pop("policy_kwargs", {}) | dict(net_arch=[256, 256])
    if kwargs["algorithm"] is BNTD3BC:
        kwargs["target_policy_noise"] = 0.0  # which would be another one in float64
    way, reference, exact = (
        model_of(each, policy_kwargs=policy_kwargs, double=double, **kwargs)
        for each, double in ((path, False), (False, False), (False, True))
    )
    seen = {}
    for seed in range(9):
        batch = random_batch(way, seed=seed)
        for each in (reference, exact):
            each.set_parameters(copy.deepcopy(way.get_parameters()))
        (exact_info,) = steps([exact], as_double(batch))
        reference_info, info = steps([reference, way], batch)
        own = errors(reference, reference_info, exact, exact_info)
        for key, error in errors(way, info, exact, exact_info).items():
            seen.setdefault(key, []).append((error, own[key]))
    assert type(way._fast_update).__name__ == CLASSES[path]
    medians = {key: np.median(pairs, axis=0) for key, pairs in seen.items()}
    assert len(medians) > 20
    assert not {key: (ours, own) for key, (ours, own) in medians.items() if ours > ERROR_RATIO * own + SMALLEST_ERROR}


@pytest.mark.parametrize("algorithm", [BNIQL, BNTD3BC, BNAWAC, BNBCQ])
@WAYS
def test_learning_is_kept_and_resumed_to_the_bit(path, algorithm, tmp_path):
    arguments = dict(policy_kwargs=dict(normalization="batch")) | by(path)
    whole = make(algorithm, **arguments).learn(20)
    half = make(algorithm, **arguments).learn(8, schedule_timesteps=20)
    update = half._fast_update
    assert type(update).__name__ == CLASSES[path]
    half.save_checkpoint(tmp_path / "half")
    resumed = algorithm.resume(tmp_path / "half", VectorEnv())
    resumed.learn(12, reset_num_timesteps=False, schedule_timesteps=20)
    assert same_parameters(resumed, whole)
    half.learn(1, reset_num_timesteps=False, schedule_timesteps=20)
    assert half._fast_update is update


@needs_numba
@pytest.mark.parametrize("algorithm", [BNIQL, BNTD3BC, BNAWAC, BNBCQ])
@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(policy_kwargs=dict(activation_fn=nn.Tanh)), "there is a layer Tanh"),
        (dict(policy_kwargs=dict(optimizer_class=th.optim.SGD)), "the optimizer is SGD"),
        (dict(policy_kwargs=dict(features_extractor_class=PlainExtractor)), "the features extractor is PlainExtractor"),
        (dict(critic_loss_statistics="running_update"), "a pass has the statistics 'running_update'"),
    ],
)
def test_what_the_engine_does_not_know_goes_by_autograd(algorithm, kwargs, reason, capsys):
    for fast_update in (True, "compiled"):
        model = make(algorithm, verbose=1, fast_update=fast_update, **kwargs).learn(3)
        assert model._fast_update is None
        assert f"Updating by autograd: {reason}" in capsys.readouterr().out


def test_a_frozen_layer_of_the_value_function_stays():
    model = make(BNIQL).learn(3)
    first, last = model.value.v_net[0].weight, model.value.v_net[-1].weight
    first.requires_grad_(False)
    before = first.clone(), last.clone()
    model.learn(3, reset_num_timesteps=False)
    assert model._fast_update is None
    assert th.equal(first, before[0])
    assert not th.equal(last, before[1])


@pytest.mark.parametrize(
    ("replaced", "reason"),
    [
        (lambda vae: setattr(vae.decoder, "3", nn.Identity()), "the last layer of the decoder is Identity"),
        (lambda vae: vae.decoder.insert(0, nn.LayerNorm(vae.decoder[0].in_features)), "a normalisation stands before"),
        (lambda vae: vae.encoder.register_forward_hook(lambda *_: None), "there are hooks in the network ActionVAE"),
        (lambda vae: vae.mean.requires_grad_(False), "a parameter is frozen"),
    ],
)
def test_other_generative_models_go_by_autograd(replaced, reason, capsys):
    model = make(BNBCQ, verbose=1, policy_kwargs=dict(vae_arch=[8]))
    replaced(model.vae)
    if "normalisation" in reason:
        model.vae.optimizer = type(model.vae.optimizer)(model.vae.parameters())
    model.learn(3)
    assert model._fast_update is None
    assert f"Updating by autograd: {reason}" in capsys.readouterr().out


def test_networks_that_standardise_differently_go_by_autograd(capsys):
    model = make(BNTD3BC, verbose=1)
    model.critic.features_extractor.mean += 1
    model.learn(3)
    assert model._fast_update is None
    assert "the networks standardise observations differently" in capsys.readouterr().out


@pytest.mark.parametrize("path", [True, COMPILED, False])
def test_another_standardisation_counts(path):
    """A callback may change it, in place or by another tensor."""
    models = [make(BNTD3BC, **by(path)).learn(4) for _ in range(2)]
    networks = [
        [getattr(model.policy, name) for name in ("actor", "actor_target", "critic", "critic_target")] for model in models
    ]
    for first, second in zip(*networks, strict=True):
        first.features_extractor.mean += 1
        second.features_extractor.mean = second.features_extractor.mean + 1
    for model in models:
        model.set_random_seed(0)
        model.learn(4, reset_num_timesteps=False)
    assert same_parameters(*models)
    other = make(BNTD3BC, **by(path)).learn(4)
    other.set_random_seed(0)
    assert not same_parameters(other.learn(4, reset_num_timesteps=False), models[0])


def test_which_have_an_engine():
    for algorithm in (BNIQL, BNTD3BC, BNAWAC, BNBCQ):
        assert make(algorithm).fast_update is True
        assert make(algorithm).learn(2)._fast_update is not None


# --- The losses

RNG = np.random.default_rng(3)
Q, V = RNG.normal(size=(2, 7, 1))
MU, A = RNG.uniform(-1, 1, size=(2, 7, 3))
LOG_STD = np.array([-5.5, 0.3, 2.5])  # beyond both bounds, and between them
WEIGHTS = RNG.uniform(0, 2, size=(7, 1))


def both(name, *args, places):
    """What PyTorch's operation returns and reports, and what Numba's does."""
    numba_operations = pytest.importorskip("sb3_bn_ddpg.fast.numba_operations")
    results = []
    for module, as_array in ((torch_operations, th.from_numpy), (numba_operations, lambda array: array)):
        copies = [as_array(arg.copy()) if isinstance(arg, np.ndarray) else arg for arg in args]
        reports = [None] * (places + 1) if module is torch_operations else np.zeros(places + 1)
        operation = getattr(module, name)
        returned = getattr(operation, "py_func", operation)(*copies, *([reports, 1] if places else []))
        means = [float(np.mean(np.asarray(report))) for report in reports[1:]]
        written = [np.asarray(each) for each in copies if not isinstance(each, (int, float))]
        of_one = tuple(map(np.asarray, returned)) if isinstance(returned, tuple) else np.asarray(returned)
        results.append((of_one, means, written))
    return results


def leaf(array):
    return th.from_numpy(array.copy()).requires_grad_()


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_expectile_error(expectile):
    v = leaf(V)
    loss = expectile_loss(th.from_numpy(Q) - v, expectile)
    loss.backward()
    for gradient, reported, _ in both("expectile_error", Q, V, expectile, places=2):
        np.testing.assert_allclose(gradient, v.grad, rtol=1e-12)
        np.testing.assert_allclose(reported, [loss.item(), V.mean()], rtol=1e-12)


def test_advantage_weights():
    expected = iql_weights(th.from_numpy(Q), 3.0, 2.5)
    assert (expected == 2.5).any()
    for weights, _, _ in both("advantage_weights", Q, 3.0, 2.5, places=0):
        np.testing.assert_allclose(weights, expected, rtol=1e-12)
    with np.errstate(over="ignore"):
        for weights, _, _ in both("advantage_weights", np.array([[np.nan], [1e4]]), 3.0, 2.5, places=0):
            np.testing.assert_array_equal(weights, [[np.nan], [2.5]])


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_softmax_weights(beta):
    expected = awac_weights(th.from_numpy(Q), beta, 1.0, "softmax")
    for weights, _, _ in both("softmax_weights", Q, 1 / beta, places=0):
        np.testing.assert_allclose(weights, expected, rtol=1e-12)
    for weights, _, _ in both("softmax_weights", np.array([[1e4], [0.0], [-1e4]]), 1 / beta, places=0):
        np.testing.assert_array_equal(weights, [[3.0], [0.0], [0.0]])
    for weights, _, _ in both("softmax_weights", np.array([[1.0], [np.nan]]), 1 / beta, places=0):
        assert np.isnan(weights).all()


BOUNDS = {"clamped_log_std": FixedStdActor.bounded_log_std, "sigmoid_log_std": SigmoidStdActor.bounded_log_std}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_of_the_standard_deviation(name):
    log_std = leaf(LOG_STD)
    bounded = BOUNDS[name].fget(SimpleNamespace(log_std=log_std))
    (slope,) = th.autograd.grad(bounded.sum(), log_std)
    for (returned, of_slope), _, _ in both(name, LOG_STD, places=0):
        np.testing.assert_allclose(returned, bounded.detach(), rtol=1e-12)
        np.testing.assert_allclose(of_slope, slope, rtol=1e-12)
    for (returned, _), _, _ in both(name, np.array([np.nan]), places=0):
        assert np.isnan(returned).all()


def test_gaussian_actions():
    noise = RNG.normal(size=MU.shape)
    expected = np.clip(MU + np.exp(LOG_STD) * noise, -1, 1)
    assert (np.abs(expected) == 1).any()
    for actions, _, _ in both("gaussian_actions", MU, LOG_STD, noise, places=0):
        np.testing.assert_allclose(actions, expected, rtol=1e-12)


@pytest.mark.parametrize("name", BOUNDS)
def test_regression(name):
    means, log_std = leaf(MU), leaf(LOG_STD)
    bounded = BOUNDS[name].fget(SimpleNamespace(log_std=log_std))
    (slope,) = th.autograd.grad(bounded.sum(), log_std, retain_graph=True)
    log_prob = th.distributions.Normal(means, bounded.exp()).log_prob(th.from_numpy(A)).sum(dim=1, keepdim=True)
    loss = weighted_regression_loss(log_prob, th.from_numpy(WEIGHTS))
    loss.backward()
    if name == "clamped_log_std":
        assert log_std.grad[0] == log_std.grad[2] == 0 != log_std.grad[1]
    arguments = MU, bounded.detach().numpy(), slope.numpy(), np.full(3, 9.0), A, WEIGHTS
    for gradient, reported, written in both("regression", *arguments, places=1):
        np.testing.assert_allclose(gradient, means.grad, rtol=1e-11)
        np.testing.assert_allclose(written[3], log_std.grad, rtol=1e-11)
        np.testing.assert_allclose(reported, [loss.item()], rtol=1e-12)


@pytest.mark.parametrize("alpha", [2.5, 0.0])
def test_imitation(alpha):
    mu = leaf(MU)
    slope = th.from_numpy(RNG.normal(size=MU.shape))
    q = (mu * slope).sum(dim=1, keepdim=True) + th.from_numpy(Q)
    (ascended,) = th.autograd.grad(-q.mean(), mu, retain_graph=True)
    loss, bc_loss = td3_bc_loss(q, mu, th.from_numpy(A), alpha)
    loss.backward()
    for gradient, reported, _ in both("imitation", ascended.numpy(), MU, A, q.detach().numpy(), alpha, places=2):
        np.testing.assert_allclose(gradient, mu.grad, rtol=1e-11)
        np.testing.assert_allclose(reported, [loss.item(), bc_loss.item()], rtol=1e-11)


# Of the generative model

NOISE = RNG.normal(size=(7, 3))
LATENT_LOG_STD = RNG.normal(size=(7, 3))
LATENT_LOG_STD[0], LATENT_LOG_STD[1, 0] = [-4.5, -4.0, 15.5], 15.0  # beyond the bounds, and at them


def test_generative_model():
    means, log_std, slope = leaf(MU), leaf(LATENT_LOG_STD), th.from_numpy(RNG.normal(size=MU.shape))
    clamped = log_std.clamp(-4, 15)
    latents = means + clamped.exp() * th.from_numpy(NOISE)
    decoded = (th.tanh(latents) * slope).detach().requires_grad_()
    loss = vae_loss(decoded, th.from_numpy(A), means, clamped)
    (decoded_grad,) = th.autograd.grad(loss, decoded, retain_graph=True)
    (loss + (slope * latents).sum()).backward()
    assert log_std.grad[0, 0] == log_std.grad[0, 2] == 0 != log_std.grad[1, 0]
    for made, _, _ in both("latents", MU, LATENT_LOG_STD, NOISE, places=0):
        np.testing.assert_allclose(made, latents.detach(), rtol=1e-12)
    arguments = decoded.detach().numpy(), A, MU, LATENT_LOG_STD
    for gradient, reported, _ in both("reconstruction", *arguments, places=1):
        np.testing.assert_allclose(gradient, decoded_grad, rtol=1e-12)
        np.testing.assert_allclose(reported, [loss.item()], rtol=1e-12)
    inputs_grad = np.hstack([np.full((7, 4), 9.0), slope])  # the first columns are the observation's
    for (of_means, of_log_std), _, _ in both("latents_backward", inputs_grad, MU, LATENT_LOG_STD, NOISE, places=0):
        np.testing.assert_allclose(of_means, means.grad, rtol=1e-12)
        np.testing.assert_allclose(of_log_std, log_std.grad, rtol=1e-12)


def test_perturbed_actions():
    actions, perturbations = A.copy(), leaf(MU)
    actions[0], actions[1] = [0.9, -0.9, 1.0], [1.0, -1.0, 0.5]
    with th.no_grad():
        perturbations[0], perturbations[1, 0] = th.tensor([0.5, -0.5, 0.0]), -0.5
    expected = (th.from_numpy(actions) + 0.6 * perturbations).clamp(-1, 1)
    grad = RNG.normal(size=A.shape)
    expected.backward(th.from_numpy(grad))
    assert perturbations.grad[0, 0] == perturbations.grad[0, 1] == 0 != perturbations.grad[0, 2]
    assert perturbations.grad[1, 0] != 0
    arguments = actions, perturbations.detach().numpy()
    for sums, _, _ in both("perturbed", *arguments, 0.6, places=0):
        np.testing.assert_allclose(sums, expected.detach(), rtol=1e-12)
    for gradient, _, _ in both("perturbed_backward", grad, *arguments, 0.6, places=0):
        np.testing.assert_allclose(gradient, perturbations.grad, rtol=1e-12)


def test_values_of_generated_actions():
    least, largest = np.sort(RNG.normal(size=(2, 12, 1)), axis=0)
    expected = soft_clipped_value((th.from_numpy(largest), th.from_numpy(least)), 0.75, 4)
    for values, _, _ in both("best_values", least, largest, 0.75, 4, places=0):
        np.testing.assert_allclose(values, expected, rtol=1e-12)
    for values, _, _ in both("larger", least, largest, False, places=0):
        np.testing.assert_array_equal(values, largest)
    least[5] = np.nan
    for values, _, _ in both("best_values", least, largest, 0.75, 4, places=0):
        np.testing.assert_array_equal(np.isnan(values[:, 0]), [False, True, False])
    for values, _, _ in both("larger", least, largest, False, places=0):
        np.testing.assert_array_equal(np.isnan(values), np.isnan(least))
    for rows, _, _ in both("repeated", A, 3, places=0):
        np.testing.assert_array_equal(rows, np.repeat(A, 3, axis=0))
    noise = np.array([[0.7, -0.2], [np.nan, -0.7]])
    for latents, _, _ in both("clipped_latents", noise, places=0):
        np.testing.assert_array_equal(latents, [[0.5, -0.2], [np.nan, -0.5]])
