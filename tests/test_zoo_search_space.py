"""What a search varies: every sample is a model, and comes back from a storage as the same."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th

pytest.importorskip("rl_zoo3")

import optuna
import rl_zoo3.train
import rl_zoo3.utils
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from zoo_managers import NO_HER, manager_of, model_of, trials

from sb3_bn_ddpg import BNDDPG, OrnsteinUhlenbeckNoise, zoo
from sb3_bn_ddpg.zoo.search_space import file_policy_kwargs
from sb3_bn_ddpg.zoo.studies import as_code, open_storage

zoo.register()


NOISE = ("noise_type", "noise_sigma", "noise_dt")


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("bn_ddpg", NOISE),
        ("bn_td3", (*NOISE, "n_critics", "actor_loss_critics", "target_policy_noise")),
        ("bn_sac", ("norm_order", "critic_input_norm", "n_critics", "ent_coef", "target_entropy")),
    ],
)
def test_sampler_covers_what_a_search_should_vary(algo, more):
    (_, trial), *_ = trials(1, algo)
    assert set(trial.params) == {
        *more,
        *("one_minus_gamma", "learning_rate", "critic_learning_rate", "critic_weight_decay", "tau", "batch_size_pow"),
        *("train_freq_pow", "updates_per_step", "net_arch", "normalization", "norm_momentum", "policy_delay"),
        *("critic_norm_layers", "action_layer", "use_target_networks"),
    }


@pytest.mark.parametrize("algo", [algo for algo, row in zoo.ALGORITHMS.items() if not row.needs_dataset])
def test_every_sample_is_a_model_and_comes_back_from_a_storage_as_the_same(algo, tmp_path):
    """What the search tried is what ``--trial-id`` trains, whatever the sample."""
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(storage=open_storage(str(tmp_path / "study.log")), study_name="all", sampler=sampler)
    tried = []

    def objective(trial):
        sampled = HYPERPARAMS_SAMPLER[algo](trial, 1, 1, NO_HER)
        model = zoo.ALGORITHMS[algo].algorithm("MlpPolicy", "Pendulum-v1", **sampled)
        tried.append((trial.params, repr(model.action_noise), str(model.policy)))
        assert trial.user_attrs["gamma"] == model.gamma
        return 0.0

    study.optimize(objective, n_trials=40)
    n_values = {"noise_type": 3, "normalization": 5, "net_arch": 4, "updates_per_step": 4, "ent_coef": 5, "target_entropy": 2}
    for name in n_values.keys() & tried[0][0].keys():
        assert len({params[name] for params, *_ in tried}) == n_values[name]
    for trial_id, (params, noise, policy) in enumerate(tried):
        kwargs = dict(storage=str(tmp_path / "study.log"), study_name="all", trial_id=trial_id)
        entry = {"noise_type": "normal", "noise_std": 0.1} if "noise_type" in params else {}
        model, saved = manager_of(tmp_path, algo=algo, entry=entry, **kwargs).setup_experiment()
        assert (repr(model.action_noise), str(model.policy)) == (noise, policy)
        assert model.gamma == 1 - params["one_minus_gamma"]
        assert model.learning_rate(1.0) == params["learning_rate"]
        assert model.critic_learning_rate(1.0) == params["critic_learning_rate"]
        assert model.critic_weight_decay == params["critic_weight_decay"]
        assert model.tau == params["tau"]
        assert model.use_target_networks == params["use_target_networks"]
        assert model.target_statistics == ("batch" if model.use_target_networks else "joint")
        assert model.policy_delay == params["policy_delay"]
        assert model.batch_size == 2 ** params["batch_size_pow"]
        assert model.train_freq.frequency == 2 ** params["train_freq_pow"]
        assert model.gradient_steps == max(int(model.train_freq.frequency * params["updates_per_step"]), 1)
        assert not {"noise_type", "noise_std"} & saved.keys()
        if algo == "bn_td3":
            assert len(model.critic.q_networks) == params["n_critics"]
            assert model.actor_loss_critics == params["actor_loss_critics"]
            assert (model.target_policy_noise, model.target_noise_clip) == (params["target_policy_noise"], 0.5)
        if algo == "bn_sac":
            assert model.action_noise is None
            assert len(model.critic.q_networks) == params["n_critics"]
            assert model.ent_coef == params["ent_coef"]
            assert model.target_entropy == {"auto": -1.0, "auto_0.5": -0.5}[params["target_entropy"]]
            assert model.policy_kwargs["norm_order"] == params["norm_order"]
            sees_action = params["critic_input_norm"] == "state_action" and params["action_layer"] == 1
            assert model.policy_kwargs["critic_input_norm"] == ("state_action" if sees_action else "state")


@pytest.mark.parametrize(
    "policy_kwargs", [{"final_init": 0.01, "net_arch": [8]}, "dict(final_init=0.01, net_arch=[8], activation_fn=nn.Tanh)"]
)
def test_sampled_policy_kwargs_keep_the_files_other_entries(policy_kwargs, tmp_path):
    """In the search, and again when a trial is trained."""
    entry = {"policy_kwargs": policy_kwargs, "learning_starts": 50, "buffer_size": 1000}
    seen = []

    class Spy(BNDDPG):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self.policy_kwargs)

    ALGOS["bn_ddpg"] = Spy
    try:
        search = manager_of(
            tmp_path, entry=entry, optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, no_optim_plots=True
        )
        search.setup_experiment()
        search.hyperparameters_optimization()
        retrained = manager_of(tmp_path, entry=entry, trial_id=0).setup_experiment()[0]
        (best_file,) = tmp_path.glob("logs/bn_ddpg/optuna/*/best.yml")
        pasted = manager_of(tmp_path, config=str(best_file)).setup_experiment()[0]
    finally:
        ALGOS["bn_ddpg"] = BNDDPG
    assert len(seen) == 3
    for kwargs in seen:
        assert kwargs["final_init"] == 0.01
        assert kwargs["net_arch"] != [8]
        assert "norm_momentum" in kwargs
        assert kwargs.get("activation_fn") is (th.nn.Tanh if isinstance(policy_kwargs, str) else None)
        assert kwargs == retrained.policy_kwargs == pasted.policy_kwargs


def test_hindsight_replay_is_sampled_and_comes_back():
    her = {"using_her_replay_buffer": True, "her_kwargs": {"copy_info_dict": True}}
    for sampled, trial in trials(5, additional_args=her):
        assert sampled["replay_buffer_kwargs"]["copy_info_dict"]
        converted = HYPERPARAMS_CONVERTER["bn_ddpg"](trial.params)["replay_buffer_kwargs"]
        assert set(converted) == {"n_sampled_goal", "goal_selection_strategy"}
        assert converted.items() <= sampled["replay_buffer_kwargs"].items()


@pytest.mark.parametrize(("noise_type", "expected"), [("normal", 0.3), (None, 0.1)])
def test_trial_of_the_zoos_ddpg_can_be_trained(noise_type, expected, tmp_path):
    """Its sampler leaves words behind that its constructor does not know; without noise, it keeps the file's."""
    params = {"one_minus_gamma": 0.01, "batch_size_pow": 4, "train_freq": 1, "tau": 0.01, "learning_rate": 1e-3}
    params |= {"net_arch": "small", "noise_type": noise_type, "noise_std": 0.3}
    storage = open_storage(f"sqlite:///{tmp_path}/logs/optuna.db")
    study = optuna.create_study(storage=storage, study_name="ddpg_Pendulum-v1_a")
    study.enqueue_trial(params)
    study.optimize(lambda trial: len(HYPERPARAMS_SAMPLER["ddpg"](trial, 1, 1, NO_HER)), n_trials=1)
    entry = {"noise_type": "normal", "noise_std": 0.1, "buffer_size": 1000}
    model = model_of(tmp_path, algo="ddpg", entry=entry, trial_id=0)
    assert model.action_noise._sigma == expected
    assert model.gamma == 0.99


class MatrixActions(gym.ActionWrapper):
    """Pendulum with six numbers for an action."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (2, 3))

    def action(self, action):
        return action[0, :1]


gym.register("MatrixActions-v0", lambda: MatrixActions(gym.make("Pendulum-v1")), max_episode_steps=200)


@pytest.mark.parametrize("noise_type", ["ou", "normal"])
def test_noise_of_actions_in_two_dimensions(tmp_path, noise_type):
    entry = {"buffer_size": 1000, "noise_type": noise_type, "noise_std": 0.3}
    manager = manager_of(tmp_path, "MatrixActions-v0", entry=entry)
    assert manager.setup_experiment()[0].action_noise().shape[-2:] == (2, 3)
    sampled = [hyperparams["action_noise"] for hyperparams, _ in trials(8, n_actions=manager.n_actions)]
    assert {np.shape(noise())[-2:] for noise in sampled if noise is not None} == {(2, 3)}


def test_threads_do_not_share_policy_kwargs():
    with file_policy_kwargs({"final_init": 0.01}):
        assert all(sampled["policy_kwargs"]["final_init"] == 0.01 for sampled, _ in trials(2))
    assert all("final_init" not in sampled["policy_kwargs"] for sampled, _ in trials(2))


def test_trials_do_not_share_the_files_noise(tmp_path):
    noise = OrnsteinUhlenbeckNoise(np.zeros(1), seed=1)
    models = [BNDDPG("MlpPolicy", "Pendulum-v1", action_noise=noise) for _ in range(2)]
    assert len({id(noise), *(id(model.action_noise) for model in models)}) == 3


def test_values_as_code_that_the_zoo_evaluates():
    value = {"net_arch": [64, 2.5], "betas": (0.9, None), "activation_fn": th.nn.Tanh, "word": "it's"}
    for zoos in (rl_zoo3.utils, exp_manager):  # its command line, its files
        assert eval(as_code(value), vars(zoos)) == value
    for unwritable in (object(), type("Local", (), {})):
        with pytest.raises(ValueError, match="cannot be written as text"):
            as_code({"value": unwritable})
