"""The update by CUDA graphs against the same kernels launched one by one: to the bit, whatever changes between two steps."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, random_batch
from fast_updates import EXACT_RATES, by, needs_cuda

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.common.steps import averages
from sb3_bn_ddpg.fast.graph_update import MAX_KINDS, CudaGraphUpdate
from sb3_bn_ddpg.fast.step import UnsupportedError
from sb3_bn_ddpg.fast.update import FastUpdate

pytestmark = needs_cuda


@pytest.fixture
def pair(make_model):
    """A function that makes the same model twice: by graphs, and by the launches that the graphs are recorded from."""

    def make(**kwargs) -> tuple[BNDDPG, BNDDPG]:
        graphs, launches = (make_model(**by("cuda"), **EXACT_RATES, **kwargs) for _ in range(2))
        launches._fast_update_classes = [FastUpdate]
        return graphs, launches

    return make


def assert_equal(first: BNDDPG, second: BNDDPG) -> None:
    """All that a step changes is the same to the bit."""
    parameters, expected = first.get_parameters(), second.get_parameters()
    for key, value in parameters["policy"].items():
        assert th.equal(value, expected["policy"][key]), key
    for name in ("actor.optimizer", "critic.optimizer"):
        for index, state in parameters[name]["state"].items():
            for key, value in state.items():
                assert th.equal(value.cpu(), expected[name]["state"][index][key].cpu()), (name, index, key)


def recordings(model: BNDDPG) -> list:
    update = model._fast_update
    assert type(update) is CudaGraphUpdate
    return [recording for recording in update.kinds.values() if recording is not None]


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(policy_delay=3, use_target_networks=False, target_statistics="joint", weight_normalization="both"),
        dict(policy_kwargs=dict(SMALL, normalization="layer", optimizer_kwargs=dict(fused=True))),
        dict(target_statistics="running", target_statistics_sync="polyak", actor_loss_critic_statistics="batch_update"),
    ],
)
def test_as_its_launches_to_the_bit(pair, kwargs):
    graphs, launches = pair(**kwargs)
    for seed in range(40):
        batch, update_actor = random_batch(graphs, seed=seed), seed % graphs.policy_delay == 0
        infos = [model._gradient_step(batch, update_actor) for model in (graphs, launches)]
        assert averages(infos[:1]) == averages(infos[1:])
    assert_equal(graphs, launches)
    assert len(recordings(graphs)) == (1 if graphs.policy_delay == 1 else 2)


def test_reports_outlive_the_next_step(pair):
    """``train`` reads them after all of its steps."""
    graphs, launches = pair()
    batches = [random_batch(graphs, seed=seed) for seed in range(10)]
    ours, theirs = ([model._gradient_step(batch) for batch in batches] for model in (graphs, launches))
    for info, expected in zip(ours, theirs, strict=True):
        assert averages([info]) == averages([expected])


def test_a_minibatch_sampled_on_the_cpu(pair):
    """Copied while the CPU goes on: the next minibatch must not get into its place."""
    graphs, launches = pair()
    for seed in range(40):
        batch = random_batch(graphs, size=4096, seed=seed)
        graphs._gradient_step(type(batch)(*(None if entry is None else entry.cpu() for entry in batch)))
        launches._gradient_step(batch)
    assert_equal(graphs, launches)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_where_minibatches_are_sampled(make_model, n_steps):
    """On the CPU for graphs, on the device for everybody else; what the user sees of the replay buffer stays."""
    model = make_model(**by("cuda"), n_steps=n_steps).learn(30)
    assert model.replay_buffer.device.type == "cuda"
    assert model._sample(8).observations.device.type == "cpu"
    model.actor.mu[1].weight.requires_grad_(False)
    model.train(2, 8)  # the first finds out
    assert model._fast_update_classes == []
    assert model._sample(8).observations.device.type == "cuda"


def test_what_changes_between_steps_counts(pair):
    """Learning rates at every step, for schedules do; batch size, gamma, tau, Adam's settings and discounts now and then."""
    graphs, launches = pair()
    for seed in range(60):
        batch = random_batch(graphs, size=16 if seed % 20 < 10 else 24, seed=seed)
        if seed % 3 == 0:
            batch = batch._replace(discounts=batch.rewards.abs() / 10)
        for model in (graphs, launches):
            model.gamma, model.tau = (0.99, 0.01) if seed < 30 else (0.9, 0.1)
            for optimizer in (model.actor.optimizer, model.critic.optimizer):
                for group in optimizer.param_groups:
                    group["lr"] = 2.0 ** -(8 + seed % 5)  # the same number in float32 and float64
                    group["betas"] = (0.9, 0.999) if seed < 45 else (0.8, 0.99)
            model._gradient_step(batch)
    assert_equal(graphs, launches)
    assert recordings(graphs)


def test_steps_of_which_each_is_another_kind_are_not_recorded(pair):
    graphs, launches = pair()
    for seed in range(3 * MAX_KINDS):
        for model in (graphs, launches):
            model.tau = 1 / (seed + 2)
            model._gradient_step(random_batch(model, seed=seed))
        assert not recordings(graphs)
        assert len(graphs._fast_update.kinds) <= MAX_KINDS
    assert_equal(graphs, launches)


def test_state_loaded_between_steps_counts(pair):
    graphs, launches = pair()
    for seed in range(5):
        graphs._gradient_step(random_batch(graphs, seed=seed))
    graphs.set_parameters(copy.deepcopy(launches.get_parameters()))
    for seed in range(5, 15):
        for model in (graphs, launches):
            model._gradient_step(random_batch(model, seed=seed))
    assert_equal(graphs, launches)


def test_a_copy_goes_on_by_itself(pair):
    graphs, launches = pair()
    for seed in range(5):
        for model in (graphs, launches):
            model._gradient_step(random_batch(model, seed=seed))
    duplicate = copy.deepcopy(graphs)
    for seed in range(5, 10):
        for model in (graphs, launches, duplicate):
            model._gradient_step(random_batch(model, seed=seed))
    assert_equal(graphs, launches)
    assert_equal(graphs, duplicate)


def test_training_is_that_of_its_launches(pair):
    """The whole of ``learn``: acting, sampling, schedules, several updates in a call, logging."""
    graphs, launches = pair(env="Pendulum-v1", gradient_steps=2, policy_delay=2, n_steps=3)
    for model in (graphs, launches):
        model.set_random_seed(0)  # the two share the global generators
        model.learn(250)
    assert_equal(graphs, launches)
    assert len(recordings(graphs)) == 2


def test_resumed_to_the_bit(make_model, tmp_path):
    whole = make_model("Pendulum-v1", **by("cuda")).learn(120)
    half = make_model("Pendulum-v1", **by("cuda")).learn(60, schedule_timesteps=120)
    half.save_checkpoint(tmp_path / "half")
    resumed = BNDDPG.resume(tmp_path / "half", env="Pendulum-v1")
    assert resumed.device.type == "cuda"
    resumed.learn(60, reset_num_timesteps=False)
    assert_equal(whole, resumed)


def test_saved_on_the_gpu_and_loaded_on_the_cpu(make_model, tmp_path):
    model = make_model("Pendulum-v1", **by("cuda")).learn(60)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=gym.make("Pendulum-v1"), device="cpu")
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for obs in observations:
        np.testing.assert_allclose(loaded.predict(obs)[0], model.predict(obs)[0], rtol=1e-4, atol=1e-5)
    loaded.learn(40)
    assert loaded._n_updates == model._n_updates + 20


def test_only_on_cuda(make_model):
    model = make_model(device="cpu")
    with pytest.raises(UnsupportedError, match="the device is cpu"):
        CudaGraphUpdate(model._networks, model._pass_statistics)
