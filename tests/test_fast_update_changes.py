"""What is changed of a model while it learns counts on each way to update, as by autograd."""

import copy

import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv, random_batch
from fast_updates import CLASSES, COMPILED, EXACT_RATES, PATHS, assert_close, assert_same_report, batches, by, needs_cuda
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.common.steps import on_device


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


@pytest.mark.parametrize("path", [True, COMPILED])
def test_what_a_callback_changes_of_the_normalisation_counts(make_model, path):
    model = make_model(**by(path)).learn(30)
    layer = model.actor.norm_layers[0]
    layer.momentum = 0.0
    before = layer.running_mean.clone()
    model.train(2, 16)
    assert th.equal(layer.running_mean, before)
    assert type(model._fast_update).__name__ == CLASSES[path]


@pytest.mark.parametrize("path", [True, COMPILED])
def test_learning_in_inference_mode_leaves_parameters_to_autograd(make_model, path):
    model = make_model(**by(path))
    with th.inference_mode():
        model.learn(30)
    assert type(model._fast_update).__name__ == CLASSES[path]
    assert not any(param.is_inference() for param in model.policy.parameters())
    model.critic(th.zeros(1, 4), th.zeros(1, 2))[0].sum().backward()


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


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_adams_state_of_a_layer_in_the_middle_counts(make_model, change):
    """As who resets dormant units sets it."""
    model = make_model().learn(40)
    optimizer = model.actor.optimizer
    param = optimizer.param_groups[0]["params"][3]
    if change == "replaced":
        optimizer.state[param] = {"step": th.tensor(0.0)} | {name: th.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
    else:
        del optimizer.state[param]
    model.train(3, 16)
    assert float(optimizer.state[param]["step"]) == 3
