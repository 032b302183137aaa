"""An algorithm takes one class and one row: nothing else of the package knows an algorithm by its name."""

import inspect
import shlex
import sys
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import SMALL, VectorEnv

from sb3_bn_ddpg import BNDDPG, BNTD3, MlpPolicy
from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.deterministic.step import gradient_step
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(BNDDPG).parameters.items()}


class Toy(BNOffPolicyAlgorithm):
    """
    Learns from rewards of another scale.

    :param policy: The policy
    :param env: The environment
    :param reward_scale: What rewards are multiplied by
    :param others: All other arguments of the base. Those left out are BNDDPG's defaults.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": MlpPolicy}

    def __init__(self, policy, env, reward_scale=1.0, **others):
        super().__init__(**(DEFAULTS | dict(policy=policy, env=env, reward_scale=reward_scale) | others))

    def _defined_step(self, batch, update_actor, noise):
        batch = batch._replace(rewards=self.reward_scale * batch.rewards)
        return gradient_step(self._networks, batch, self.gamma, self.tau, self._pass_statistics, update_actor)

    def _find_fast_steps(self):
        return []


class ToysChild(Toy):
    """A subclass, with nothing of its own."""


def toy(cls=Toy, **kwargs):
    arguments = dict(buffer_size=1000, learning_starts=20, batch_size=16, policy_kwargs=SMALL, seed=0, device="cpu")
    return cls("MlpPolicy", VectorEnv(), **(arguments | kwargs))


def name_of(cls):
    return cls.__name__


# --- Whose file it is


@pytest.mark.parametrize("cls", [Toy, ToysChild])
def test_a_checkpoint_resumes_by_the_class_that_wrote_it(cls, tmp_path):
    expected = toy(cls, reward_scale=2.0).learn(60).learn(30, reset_num_timesteps=False)
    toy(cls, reward_scale=2.0).learn(60).save_checkpoint(tmp_path / "checkpoint")
    resumed = cls.resume(tmp_path / "checkpoint", VectorEnv(), device="cpu")
    assert (type(resumed), resumed.reward_scale) == (cls, 2.0)
    resumed.learn(30, reset_num_timesteps=False)
    for ours, theirs in zip(resumed.policy.parameters(), expected.policy.parameters(), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize(
    ("written_by", "resumed_by"), [(Toy, BNDDPG), (BNDDPG, Toy), (ToysChild, Toy), (Toy, ToysChild)], ids=name_of
)
def test_a_checkpoint_of_another_class(written_by, resumed_by, tmp_path):
    toy(written_by).learn(30).save_checkpoint(tmp_path / "checkpoint")
    ours, theirs = resumed_by.__name__, written_by.__name__
    with pytest.raises(FileError, match=rf"a checkpoint of {theirs} \(in .*{ours} \(in .*: use `{theirs}\.resume`"):
        resumed_by.resume(tmp_path / "checkpoint", VectorEnv())
    with pytest.raises(FileError, match=rf"is a checkpoint: it takes `{theirs}\.resume`, not `load`"):
        resumed_by.load(tmp_path / "checkpoint")


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(Toy, BNDDPG), (BNDDPG, Toy), (ToysChild, Toy)], ids=name_of)
def test_a_model_of_another_class_acts_as_it_did_with_a_warning(saved_by, loaded_by, tmp_path):
    """As in SB3, where `DDPG.load` of a TD3 model works; but there the attributes say how it learns, and here the class."""
    model = toy(saved_by).learn(30)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=rf"saved by {saved_by.__name__}: .* learns as {loaded_by.__name__} does"):
        loaded = loaded_by.load(tmp_path / "model")
    observation = np.ones(4, np.float32)
    actions = [each.predict(observation, deterministic=True)[0] for each in (loaded, model)]
    np.testing.assert_array_equal(*actions)
    loaded.save(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved_by.load(tmp_path / "model")
        loaded_by.load(tmp_path / "again")  # it is one of these now


@pytest.mark.parametrize("with_env", [False, True])
def test_a_model_of_a_class_with_other_networks_names_that_class(with_env, tmp_path):
    toy(BNDDPG).save(tmp_path / "model")
    with pytest.raises(
        FileError, match=r"was saved by BNDDPG, for `BNDDPG\.load`; as a BNTD3 it cannot be loaded: ValueError"
    ):
        BNTD3.load(tmp_path / "model", env=VectorEnv() if with_env else None)


@pytest.mark.parametrize(("kwargs", "name"), [({}, "Toy_1"), ({"tb_log_name": "trial"}, "trial_1")])
def test_tensorboard_names_the_run_after_the_class(kwargs, name, tmp_path):
    pytest.importorskip("tensorboard")
    toy(tensorboard_log=str(tmp_path)).learn(10, **kwargs)
    assert [folder.name for folder in tmp_path.iterdir()] == [name]


# --- RL Zoo


@pytest.fixture
def bn_ddpg(zoo_registrations, tmp_path, monkeypatch):
    """Runs commands of ``bn-ddpg`` in a folder, where two classes are registered by one row each."""
    import yaml

    from sb3_bn_ddpg import cli, zoo
    from sb3_bn_ddpg.zoo.search_space import LEARNING, NETWORKS, Part, SearchSpace

    entry = dict(n_timesteps=60, policy="MlpPolicy", learning_starts=20, buffer_size=1000, batch_size=16, policy_kwargs=SMALL)
    for profile, scale in (("plain", 1.0), ("scaled", 3.0)):
        (tmp_path / f"{profile}.yml").write_text(yaml.safe_dump({"default": entry | {"reward_scale": scale}}))
    scale = Part(
        lambda trial: trial.suggest_float("reward_scale", 0.1, 10, log=True),
        lambda params: {"reward_scale": params["reward_scale"], "policy_kwargs": {"final_init": 1e-3}},
    )
    space = SearchSpace((LEARNING, NETWORKS, scale))
    profiles = {profile: str(tmp_path / f"{profile}.yml") for profile in ("plain", "scaled")}
    zoo.ALGORITHMS["toy"] = zoo.ZooAlgorithm(Toy, profiles, space.sample, space.convert)
    zoo.ALGORITHMS["toys_child"] = zoo.ZooAlgorithm(ToysChild, profiles, space.sample, space.convert)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def run(command: str) -> None:
        cli.main(shlex.split(command))

    return run


def test_train_resume_and_enjoy(bn_ddpg, tmp_path, capsys):
    folder = tmp_path / "logs/toy/Pendulum-v1_1"
    bn_ddpg("train --algo toy --profile scaled --env Pendulum-v1 --eval-freq -1 --device cpu")
    model = Toy.load(folder / "Pendulum-v1.zip")
    assert (model.num_timesteps, model._n_updates, model.reward_scale) == (60, 40, 3.0)

    bn_ddpg(f"train --algo toy --env Pendulum-v1 --eval-freq -1 -n 20 -i {folder}/checkpoint.zip --device cpu")
    resumed = Toy.load(tmp_path / "logs/toy/Pendulum-v1_2/Pendulum-v1.zip")
    assert (resumed.num_timesteps, resumed._n_updates, resumed.reward_scale) == (80, 60, 3.0)

    bn_ddpg("enjoy --algo toy --env Pendulum-v1 -f logs --no-render -n 250 --device cpu")
    assert "Loading logs/toy/Pendulum-v1_2/Pendulum-v1.zip" in capsys.readouterr().out

    for algo in ("bn_ddpg", "toys_child"):
        with pytest.raises(
            SystemExit, match=rf"`algo='{algo}'` is not allowed with .*, a checkpoint of Toy: use `--algo toy`"
        ):
            bn_ddpg(f"train --algo {algo} --env Pendulum-v1 -n 20 -i {folder}/checkpoint.zip")


def test_search_then_train_from_its_trial(bn_ddpg, tmp_path):
    import optuna

    train = "train --algo toy --env Pendulum-v1 --device cpu"
    bn_ddpg(f"{train} --optimize --n-trials 1 --n-evaluations 1 --eval-episodes 1 -n 100 --no-optim-plots")
    storage = f"sqlite:///{tmp_path}/logs/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    assert name.startswith("toy_Pendulum-v1_")
    (trial,) = optuna.load_study(study_name=name, storage=storage).trials
    assert {"reward_scale", "learning_rate", "net_arch"} <= trial.params.keys()

    bn_ddpg(f"{train} --trial-id 0 -n 30 --eval-freq -1")
    model = Toy.load(tmp_path / "logs/toy/Pendulum-v1_1/Pendulum-v1.zip")
    assert (model.reward_scale, model.gamma) == (trial.params["reward_scale"], 1 - trial.params["one_minus_gamma"])
    assert model.policy_kwargs["final_init"] == 1e-3
    assert model.policy_kwargs["normalization"] == trial.params["normalization"]


def test_options_are_those_of_the_algorithm(bn_ddpg, capsys):
    with pytest.raises(SystemExit):
        bn_ddpg("train --help")
    output = " ".join(capsys.readouterr().out.split())
    assert "(bn_ddpg: tuned, paper; bn_td3: tuned, paper; bn_sac: tuned, crossq, sac; bn_iql: authors; " in output
    assert "; toy: plain, scaled; toys_child: plain, scaled)" in output
    for algo, profile, its in (("toy", "paper", "'plain', 'scaled'"), ("bn_ddpg", "scaled", "'tuned', 'paper'")):
        with pytest.raises(SystemExit):
            bn_ddpg(f"train --algo {algo} --profile {profile}")
        assert f"argument --profile: invalid choice: '{profile}': {algo} has {its}" in capsys.readouterr().err
