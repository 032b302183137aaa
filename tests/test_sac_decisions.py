"""What docs/decisions.md says of SAC, one test an entry."""

import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from sb3_bn_ddpg import BNSAC


def make_sac(**kwargs) -> BNSAC:
    arguments = dict(learning_starts=8, batch_size=4, buffer_size=50, policy_kwargs=SMALL, device="cpu", seed=0)
    return BNSAC("MlpPolicy", VectorEnv(), **arguments | kwargs)


def moved_at(model: BNSAC, n_updates: int, *parameters: th.Tensor) -> list[set[int]]:
    """At which updates, counted from 1, each of these moves."""
    model.learn(12)
    model.set_logger(Logger(None, []))
    model._n_updates = 0
    moved: list[set[int]] = [set() for _ in parameters]
    for number in range(1, n_updates + 1):
        before = [parameter.detach().clone() for parameter in parameters]
        model.train(1, 4)
        for updates, old, new in zip(moved, before, parameters, strict=True):
            if not th.equal(old, new):
                updates.add(number)
    return moved


def weights(network) -> th.Tensor:
    return next(parameter for parameter in network.parameters() if parameter.dim() == 2)


def test_the_actor_has_no_target():
    model = make_sac()
    assert model.actor_target is model.actor
    assert model.critic_target is not model.critic


@pytest.mark.parametrize("fast_update", [False, True])
def test_the_interval_counts_all_updates(fast_update):
    model = make_sac(target_update_interval=3, fast_update=fast_update)
    targets, critic = moved_at(model, 7, weights(model.critic_target), weights(model.critic))
    assert (targets, critic) == ({3, 6}, set(range(1, 8)))


@pytest.mark.parametrize("fast_update", [False, True])
def test_the_delay_is_the_actors_and_the_coefficients(fast_update):
    model = make_sac(policy_delay=3, fast_update=fast_update)
    tensors = (weights(model.actor), model.log_ent_coef, weights(model.critic_target), weights(model.critic))
    actor, coefficient, targets, critic = moved_at(model, 7, *tensors)
    assert actor == coefficient == {3, 6}
    assert targets == critic == set(range(1, 8))


def test_the_coefficients_optimizer():
    betas = dict(SMALL, optimizer_kwargs=dict(betas=(0.5, 0.999)))
    model = make_sac(learning_rate=2e-3, critic_learning_rate=1e-2, policy_kwargs=betas).learn(12)
    (group,) = model.ent_coef_optimizer.param_groups
    assert (group["lr"], group["betas"]) == (2e-3, (0.9, 0.999))
    assert model.actor.optimizer.param_groups[0]["betas"] == model.critic.optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    assert make_sac(ent_coef=0.1).ent_coef_optimizer is None


@pytest.mark.parametrize(("given", "share"), [("auto", 1.0), ("auto_0.5", 0.5), ("auto_2", 2.0)])
def test_target_entropy(given, share, tmp_path):
    model = make_sac(target_entropy=given)
    n_entries = np.prod(model.action_space.shape)
    assert model.target_entropy == -share * n_entries
    model.save(tmp_path / "model")
    assert BNSAC.load(tmp_path / "model").target_entropy == -share * n_entries
    assert BNSAC.load(tmp_path / "model", target_entropy=-0.3).target_entropy == -0.3


@pytest.mark.parametrize("given", ["auto_", "auto_half", "automatic", "much", float("nan"), None])
def test_target_entropies_that_are_none(given):
    with pytest.raises(ValueError, match=r"`target_entropy=.*` is not allowed: it must be 'auto' or a finite number"):
        make_sac(target_entropy=given)


def test_no_gsde():
    with pytest.raises(ValueError, match="`use_sde=True` is not allowed"):
        make_sac(use_sde=True)
    with pytest.raises(ValueError, match="`policy_kwargs` with use_sde=True is not allowed"):
        make_sac(policy_kwargs=dict(use_sde=True))


def test_policy_kwargs_that_sb3s_sac_has_had():
    policy_kwargs = dict(net_arch=[8])
    SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs)
    assert policy_kwargs == dict(net_arch=[8], use_sde=False)
    assert make_sac(policy_kwargs=policy_kwargs).policy_kwargs["net_arch"] == [8]
