"""The learning benchmark's matrix: what is declared, and that it can be built."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as th
from fast_updates import needs_cuda
from learning_units import PENDULUM, UNIT
from sb3_contrib import CrossQ
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.learning import algorithms, figures, plots
from benchmarks.learning.algorithms import build
from benchmarks.learning.contenders import FIGURE2_LONG
from benchmarks.learning.crossq_graph import GraphedCrossQ
from benchmarks.learning.evaluation import RandomPolicy, make_env
from benchmarks.learning.local import REPOSITORY
from benchmarks.learning.matrix import (
    ALL_GROUPS,
    GROUPS,
    LEARNING_STARTS,
    LONG_GROUPS,
    LONG_TASKS,
    VARIANTS,
    Budget,
    config_hash,
)
from benchmarks.learning.recorder import MeanLogger
from benchmarks.learning.store import is_done, unit_path
from benchmarks.learning.tasks import ALL_TASKS, CHEETAH, HELD_OUT, TASKS, TUNING

rl_zoo3 = pytest.importorskip("rl_zoo3")
yaml = pytest.importorskip("yaml")


def test_every_cell_names_a_task_and_a_variant_and_tuning_stays_on_its_tasks():
    assert set(TUNING) | set(HELD_OUT) == set(TASKS)
    assert not set(TUNING) & set(HELD_OUT)
    assert CHEETAH not in TASKS  # of scores over all tasks it is none
    for group in ALL_GROUPS.values():
        assert all(unit.task in ALL_TASKS and unit.variant in VARIANTS for unit in group.units())
    assert {unit.task for unit in GROUPS["ablation"].units()} == set(TUNING)
    assert {unit.task for unit in GROUPS["tuned_tuning"].units()} == set(TUNING)
    assert {unit.task for unit in GROUPS["tuned_held_out"].units()} == set(HELD_OUT)


def test_a_group_s_long_units_are_the_paper_s_and_breadth_first():
    units = list(LONG_GROUPS["figure2_long"].units())
    assert [unit.seed for unit in units] == [0] * 9 + [1] * 9 + [2] * 9
    assert [(unit.task, unit.variant) for unit in units[:3]] == [(LONG_TASKS[0], variant) for variant in FIGURE2_LONG]
    for long, short in zip(FIGURE2_LONG, ("paper", "paper_no_norm", "paper_no_targets"), strict=True):
        assert VARIANTS[long].kwargs == VARIANTS[short].kwargs
        assert Budget().of(long) == Budget(500_000, 12_500, 5)
    assert not [unit for group in GROUPS.values() for unit in group.units() if VARIANTS[unit.variant].is_long]


def test_a_variant_may_have_random_steps_of_its_own():
    env = DummyVecEnv([lambda: make_env(PENDULUM)])
    assert build(VARIANTS["long_warmup"], env, seed=0).learning_starts == 10_000
    assert build(VARIANTS["long_paper"], env, seed=0).learning_starts == LEARNING_STARTS


def test_units_come_breadth_first():
    seeds = [unit.seed for unit in GROUPS["peers"].units()]
    assert seeds == sorted(seeds)
    assert len(seeds) == 5 * len(set(GROUPS["peers"].cells))


@pytest.mark.parametrize(("file", "variant"), [("ddpg.yml", "sb3_ddpg"), ("td3.yml", "sb3_td3")])
def test_peers_have_the_values_of_the_zoo(file: str, variant: str):
    zoo = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / file).read_text())["HalfCheetah-v4"]
    ours = dict(VARIANTS[variant].kwargs)
    noise = ours.pop("action_noise")
    assert noise == dict(type=zoo.pop("noise_type"), sigma=zoo.pop("noise_std"))
    assert zoo.pop("policy_kwargs") == "dict(net_arch=[400, 300])"
    assert ours.pop("policy_kwargs") == dict(net_arch=[400, 300])
    for key in ("n_timesteps", "policy", "learning_starts"):
        zoo.pop(key)
    assert ours == zoo


def test_every_variant_of_ours_can_be_built():
    env = DummyVecEnv([lambda: make_env(PENDULUM)])
    for variant in VARIANTS.values():
        if variant.algorithm == "bn_ddpg":
            model = build(variant, env, seed=0)
            for key in ("batch_size", "tau", "target_statistics", "use_target_networks"):
                if key in variant.kwargs:
                    assert getattr(model, key) == variant.kwargs[key]


@needs_cuda
def test_crossq_by_graphs_is_crossq(monkeypatch: pytest.MonkeyPatch):
    class OnTheGPU(CrossQ):
        """Adam counts its steps in float32, as in a graph."""

        def _setup_model(self) -> None:
            super()._setup_model()
            for optimizer in (self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer):
                optimizer.param_groups[0]["capturable"] = True

    variant = replace(VARIANTS["crossq_256"], kwargs=dict(policy_kwargs=dict(net_arch=dict(pi=[32, 32], qf=[32, 32]))))
    found = []
    for algorithm in (OnTheGPU, GraphedCrossQ):
        monkeypatch.setattr(algorithms, "GraphedCrossQ", algorithm)
        model = build(variant, DummyVecEnv([lambda: make_env(PENDULUM)]), 0, "cuda")
        assert type(model) is algorithm
        means = MeanLogger()
        model.set_logger(means)
        model.learn(LEARNING_STARTS + 60, log_interval=sys.maxsize)
        found.append((model.policy.state_dict(), means.take()))
    (library, logged), (graphs, logged_by_graphs) = found
    counts = [name for name in library if name.endswith("steps")]  # of batches, which say that the warm-up is over
    assert all(th.equal(library[name], graphs[name]) for name in library if name not in counts)
    assert logged == logged_by_graphs


def test_noise_draws_what_the_stored_runs_drew():
    model = build(VARIANTS["paper"], DummyVecEnv([lambda: make_env("InvertedDoublePendulum-v5")]), seed=3)
    drawn = 0.2 * np.random.default_rng(3).standard_normal((1, 1))
    np.testing.assert_array_equal(model.action_noise(), drawn.astype(np.float32))


def test_a_changed_variant_is_another_configuration_and_an_unchanged_one_is_not(monkeypatch: pytest.MonkeyPatch):
    first = config_hash(UNIT, Budget())
    assert config_hash(UNIT, Budget(steps=50_000)) == first
    assert config_hash(UNIT._replace(seed=1), Budget()) != first
    assert config_hash(UNIT, Budget(steps=40_000)) != first
    other = VARIANTS["sb3_td3"]
    monkeypatch.setitem(VARIANTS, "sb3_td3", replace(other, kwargs=other.kwargs | dict(gamma=0.98)))
    assert config_hash(UNIT, Budget()) == first
    monkeypatch.setitem(VARIANTS, "sb3_ddpg", replace(VARIANTS["sb3_ddpg"], label="another name"))
    assert config_hash(UNIT, Budget()) == first
    monkeypatch.setitem(VARIANTS, "sb3_ddpg", VARIANTS["sb3_td3"])
    assert config_hash(UNIT, Budget()) != first


def test_the_stored_results_that_are_committed_belong_to_the_matrix():
    stored = [unit for unit in figures.all_units() if unit_path(REPOSITORY / "benchmarks/learning/results", unit).exists()]
    assert sum(unit.variant == "random" and unit.task in TASKS for unit in stored) == 5 * len(TASKS)
    assert all(is_done(REPOSITORY / "benchmarks/learning/results", unit, Budget()) for unit in stored)


@pytest.mark.parametrize("task", TASKS)
def test_observations_and_time_limits(task: str):
    env = DummyVecEnv([lambda: make_env(task)])
    assert env.observation_space.dtype == np.float32
    assert len(env.observation_space.shape or ()) == 1
    env.seed(0)
    env.reset()
    policy = RandomPolicy(env.action_space, seed=0)
    step, done = 0, False
    while not done:
        _, _, (done,), (info,) = env.step(policy.predict(np.empty((1, 1)))[0])
        step += 1
    # A fall is a termination; the end of a thousand steps is not
    assert info["TimeLimit.truncated"] == (step == 1000)
    assert (step == 1000) == (task not in (PENDULUM, "Hopper-v5"))


def test_every_variant_discounts_alike():
    env = DummyVecEnv([lambda: make_env(PENDULUM)])
    for variant in VARIANTS.values():
        if (
            variant.algorithm != "random" and "dataset" not in variant.kwargs
        ):  # no figure shows the values of what learns offline
            assert build(variant, env, seed=0).gamma == plots.GAMMA
