"""RL Zoo with the algorithms that learn from stored data: profiles, search, and the commands from a dataset to an agent."""

import inspect
import pickle
import re
from argparse import Namespace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import SpaceEnv
from gymnasium import spaces

pytest.importorskip("rl_zoo3")

import optuna
import yaml
from rl_zoo3 import exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_bn_ddpg import BNIQL, BNTD3BC, cli, zoo
from sb3_bn_ddpg.datasets import transitions
from sb3_bn_ddpg.zoo.studies import default_study_name, open_storage

zoo.register()


@pytest.fixture(autouse=True)
def registered_anew():
    """What a command told RL Zoo's manager in this process, the dataset for example, holds for no other test."""
    yield
    zoo.register()


OFFLINE = [algo for algo, row in zoo.ALGORITHMS.items() if row.needs_dataset]
SET_BY_THE_ZOO = {"env", "verbose", "seed", "policy_kwargs"}


def stored(path, observations=(3,), n_actions=1, limit=2.0, n=60, dtype=np.float32, **changes):
    """A file of arrays: three episodes, the first of which terminates."""
    rng = np.random.default_rng(0)
    states = rng.integers(0, 255, (n + 1, *observations)).astype(dtype)
    arrays = dict(
        observations=states[:-1],
        actions=rng.uniform(-limit, limit, (n, n_actions)),
        rewards=rng.normal(size=n),
        next_observations=states[1:],
        terminations=np.arange(n) == 19,
        truncations=np.arange(n) % 20 == 19,
    )
    np.savez(path, **(arrays | changes))
    return str(path)


def manager_of(algo, env_id, folder, dataset, hyperparams=None, **kwargs):
    arguments = {"log_folder": str(folder), "eval_freq": -1, "verbose": 0} | kwargs
    given = ({"dataset": dataset} if dataset is not None else {}) | (hyperparams or {})
    return exp_manager.ExperimentManager(Namespace(env=env_id), algo, env_id, hyperparams=given, **arguments)


def model_of(*args, **kwargs):
    return manager_of(*args, **kwargs).setup_experiment()[0]


def entry_of(algo, env_id):
    return yaml.safe_load(zoo.profile_path(None, algo).read_text())[env_id]


# --- Profiles


def test_all_four_are_known():
    assert [f"BN{name}" for name in ("IQL", "TD3BC", "AWAC", "BCQ")] == [ALGOS[algo].__name__ for algo in OFFLINE]


@pytest.mark.parametrize("algo", OFFLINE)
def test_the_profile_builds_the_default_model_which_trains(algo, tmp_path):
    dataset = stored(tmp_path / "data.npz")
    model = model_of(algo, "Pendulum-v1", tmp_path, dataset)
    default = zoo.ALGORITHMS[algo].algorithm("MlpPolicy", "Pendulum-v1", dataset, verbose=0)
    assert str(model.policy) == str(default.policy)
    for name in inspect.signature(type(model)).parameters.keys() & vars(default).keys() - SET_BY_THE_ZOO:
        if not name.startswith("_") and not name.endswith("learning_rate"):
            assert repr(getattr(model, name)) == repr(getattr(default, name)), name
    assert model.lr_schedule(1) == default.lr_schedule(1)
    assert model.critic_lr_schedule(0.5) == default.critic_lr_schedule(0.5)
    np.testing.assert_array_equal(model.replay_buffer.rewards, default.replay_buffer.rewards)
    model.batch_size = 16
    assert model.learn(2)._n_updates == 2
    config = yaml.unsafe_load((tmp_path / f"{algo}/Pendulum-v1_1/Pendulum-v1/config.yml").read_text())
    assert config["dataset"] == dataset  # its name, not the transitions
    assert config["n_timesteps"] == 20_000


VECTORS = spaces.Dict(place=spaces.Box(-1, 1, (2,)), speed=spaces.Box(-9, 9, (3,)))
IMAGE = spaces.Box(0, 255, (36, 40, 1), np.uint8)
gym.register("OfflineVectors-v0", lambda: SpaceEnv(VECTORS, spaces.Box(-1, 1, (2,))))
gym.register("OfflineImage-v0", lambda: SpaceEnv(IMAGE, spaces.Box(-1, 1, (2,))))


@pytest.mark.parametrize("algo", OFFLINE)
@pytest.mark.parametrize(
    ("env_id", "policy", "shape", "dtype"),
    [("OfflineVectors-v0", "MlpPolicy", (5,), np.float32), ("OfflineImage-v0", "CnnPolicy", (36, 40, 1), np.uint8)],
)
def test_an_unlisted_environment_gets_what_fits_its_observations(algo, env_id, policy, shape, dtype, tmp_path):
    dataset = stored(tmp_path / "data.npz", shape, n_actions=2, limit=1.0, dtype=dtype)
    model = model_of(algo, env_id, tmp_path, dataset, {"batch_size": 8})
    assert type(model.policy) is zoo.ALGORITHMS[algo].algorithm.policy_aliases[policy]
    assert model.learn(2)._n_updates == 2


@pytest.mark.parametrize("algo", OFFLINE)
def test_mujoco_and_the_suite_have_entries(algo):
    default = entry_of(algo, "default")
    for env_id in ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5"):
        assert entry_of(algo, env_id) == default
    assert default["n_timesteps"] == 1e6
    wrapper = {"env_wrapper": "gymnasium.wrappers.FlattenObservation"}
    assert entry_of(algo, "dm_control/walker-walk-v0") == default | wrapper
    assert entry_of(algo, "bn_ddpg/walker-walk-pixels-v0") == default | {"policy": "CnnPolicy"}


# --- Search


@pytest.mark.parametrize(
    ("algo", "own"),
    [
        ("bn_iql", {"expectile", "beta", "actor_learning_rate_decay"}),
        ("bn_td3_bc", {"alpha", "normalize_observations", "target_policy_noise", "policy_delay"}),
        ("bn_awac", {"beta", "weighting"}),
        ("bn_bcq", {"lmbda", "phi"}),
    ],
)
def test_every_sample_is_a_model(algo, own, tmp_path):
    """And what a storage gives back is the same."""
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(storage=open_storage(str(tmp_path / "study.log")), study_name="all", sampler=sampler)
    dataset, tried = transitions.transitions_of(stored(tmp_path / "data.npz")), []

    def objective(trial):
        sampled = HYPERPARAMS_SAMPLER[algo](trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
        tried.append(zoo.ALGORITHMS[algo].algorithm("MlpPolicy", "Pendulum-v1", dataset, **sampled))
        assert sampled == HYPERPARAMS_CONVERTER[algo](trial.params)
        return 0.0

    study.optimize(objective, n_trials=12)
    general = {"one_minus_gamma", "learning_rate", "critic_learning_rate", "critic_weight_decay", "tau", "batch_size_pow"}
    networks = {"net_arch", "normalization", "norm_momentum", "critic_norm_layers", "action_layer"}
    for trial, model in zip(study.trials, tried, strict=True):
        assert trial.params.keys() == general | networks | own
        assert 1 - model.gamma == pytest.approx(trial.params["one_minus_gamma"])
        for name in own:
            owner = model.actor if name == "phi" else model
            assert getattr(owner, name) == trial.params[name]
    assert len({str(model.policy) for model in tried}) > 3


def test_a_search_reads_its_dataset_once_and_names_it(tmp_path, monkeypatch, capsys):
    dataset = stored(tmp_path / "data.npz")
    reads = []
    file_of_arrays = transitions._file_of_arrays
    monkeypatch.setattr(transitions, "_file_of_arrays", lambda path: reads.append(path) or file_of_arrays(path))
    monkeypatch.setattr(exp_manager.ExperimentManager, "dataset", dataset)
    search = dict(optimize_hyperparameters=True, n_trials=2, n_timesteps=4, n_evaluations=2, n_eval_episodes=1)
    manager = manager_of("bn_td3_bc", "Pendulum-v1", tmp_path, None, no_optim_plots=True, **search)
    manager.setup_experiment()
    manager.hyperparameters_optimization()
    assert reads == [dataset]
    output = capsys.readouterr().out
    (best,) = tmp_path.rglob("best.yml")
    assert yaml.safe_load(best.read_text())["Pendulum-v1"]["dataset"] == dataset
    assert f"--trial-id 0 --dataset {dataset}" in output or f"--trial-id 1 --dataset {dataset}" in output
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/optuna.db")
    assert len(study.trials) == 2
    assert study.user_attrs["dataset"] == "60 transitions"


def test_a_file_with_other_transitions_is_another_study(tmp_path):
    """Whose trials could not be compared with those before."""

    def name():
        manager = manager_of("bn_iql", "Pendulum-v1", tmp_path, dataset, optimize_hyperparameters=True, n_timesteps=4)
        manager.setup_experiment()
        return default_study_name("bn_iql", "Pendulum-v1", manager._objective_settings())

    dataset = stored(tmp_path / "data.npz")
    first = name()
    assert name() == first
    stored(tmp_path / "data.npz", rewards=np.zeros(60))
    assert name() != first


# --- What is refused


def test_a_missing_dataset(tmp_path):
    with pytest.raises(
        ValueError, match=r"`--dataset` left out is not allowed with `--algo bn_iql`, which learns from stored"
    ):
        model_of("bn_iql", "Pendulum-v1", tmp_path, None)
    assert not (tmp_path / "bn_iql").exists()  # nothing that `enjoy` would take for a run


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nothing-v0", "`dataset='nothing-v0'` is not allowed: it cannot be loaded"),
        ("nothing.npz", "`dataset='nothing.npz'` is not allowed: there is no file nothing.npz"),
        ("short.npz", "the file short.npz is damaged or of another kind"),
        ("nan.npz", "`dataset` with rewards that are not finite is not allowed"),
        ("wide.npz", r"`dataset` with observations of shape \(60, 4\) .* is not allowed"),
    ],
)
def test_bad_datasets_end_the_command_with_their_message(dataset, message, tmp_path, monkeypatch):
    if dataset == "nothing-v0":
        pytest.importorskip("minari")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    content = Path(stored("short.npz")).read_bytes()
    Path("short.npz").write_bytes(content[:-100])
    stored("nan.npz", rewards=np.full(60, np.nan))
    stored("wide.npz", observations=(4,))
    with pytest.raises(SystemExit, match=f"^bn-ddpg train: {message}"):
        cli.main(["train", "--algo", "bn_iql", "--env", "Pendulum-v1", "--dataset", dataset])


def test_a_missing_extra_ends_the_command_with_its_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "minari" else find_spec(name, *rest))
    with pytest.raises(SystemExit, match=r"^bn-ddpg train: minari is not installed: run `pip install sb3-bn-ddpg\[offline\]`"):
        cli.main(["train", "--algo", "bn_iql", "--env", "Pendulum-v1", "--dataset", "mujoco/hopper/medium-v0"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "bn_td3", "--online-steps", "5"], r"`--online-steps 5` is not allowed with `--algo bn_td3`: .*bn_iql"),
        (["--algo", "bn_iql", "--online-steps", "5", "--optimize"], "`--online-steps 5` is not allowed with `--optimize`"),
        (["--algo", "bn_iql", "--online-steps", "-5"], "`online_steps=-5` is not allowed"),
    ],
)
def test_steps_in_the_environment_that_make_no_sense(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    with pytest.raises(SystemExit, match=f"^bn-ddpg train: {message}"):
        cli.main(["train", "--env", "Pendulum-v1", *arguments])


def test_algorithms_without_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(exp_manager.ExperimentManager, "dataset", "some.npz")
    with pytest.raises(ValueError, match=r"`--dataset some\.npz` is not allowed with `--algo ddpg`: it must be .*bn_iql"):
        manager_of("ddpg", "Pendulum-v1", tmp_path, None)


@pytest.mark.parametrize("algo", [algo for algo in zoo.ALGORITHMS if algo not in OFFLINE])
def test_for_algorithms_that_act_it_is_demonstrations(algo, tmp_path, monkeypatch):
    dataset = stored(tmp_path / "data.npz")
    monkeypatch.setattr(exp_manager.ExperimentManager, "dataset", dataset)
    given = {"demonstration_ratio": 0.25, "buffer_size": 100}
    model, saved = manager_of(algo, "Pendulum-v1", tmp_path, None, given).setup_experiment()
    assert model.replay_buffer.dataset.size() == 60
    assert model.replay_buffer.dataset_share == 0.25
    assert saved["demonstrations"] == dataset


# --- The commands


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A function that runs a command of ``bn-ddpg`` in an empty folder, in this process, and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr(exp_manager.ExperimentManager, "dataset", None)

    def run(*arguments):
        cli.main([*arguments])
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_from_a_replay_buffer_to_an_agent(command):
    """Train, evaluate by gradient steps, resume, enjoy."""
    tiny = ["-params", "learning_starts:400", "buffer_size:5000", "policy_kwargs:dict(net_arch=[16, 16])"]
    train = ["train", "--env", "Pendulum-v1"]
    command(*train, "--algo", "bn_td3", "-n", "420", "--eval-freq", "-1", "--save-replay-buffer", *tiny)
    dataset = ["--dataset", "logs/bn_td3/Pendulum-v1_1/replay_buffer.pkl"]
    small = ["-params", "policy_kwargs:dict(net_arch=[16, 16])"]
    evaluation = ["--eval-freq", "20", "--eval-episodes", "1"]
    command(*train, "--algo", "bn_iql", "-n", "60", *evaluation, *dataset, *small)
    folder = Path("logs/bn_iql/Pendulum-v1_1")
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [20, 40, 60]
    model = BNIQL.load(folder / "Pendulum-v1.zip")
    assert (model.num_timesteps, model._n_updates) == (60, 60)
    # The checkpoint has the transitions: neither the option nor the file is needed
    Path(dataset[1]).rename("moved.pkl")
    resume = ["-i", f"{folder}/checkpoint.zip", "-n", "30", "--eval-freq", "-1"]
    assert "Resuming from step 60 for 30 more" in command(*train, "--algo", "bn_iql", *resume)
    with pytest.raises(SystemExit, match=r"`dataset='moved\.pkl'` is not allowed with a checkpoint"):
        command(*train, "--algo", "bn_iql", *resume, "--dataset", "moved.pkl")
    # A model's file has not: here the option is
    trained_agent = ["-i", f"{folder}/Pendulum-v1.zip", "-n", "10", "--eval-freq", "-1"]
    output = command(*train, "--algo", "bn_iql", *trained_agent, "--dataset", "moved.pkl")
    assert "Loading pretrained agent" in output
    output = command("enjoy", "--algo", "bn_iql", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "200")
    assert re.search(r"Mean reward: -\d+\.\d", output)


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "is_noisy"), [("bn_iql", False), ("bn_td3_bc", True)])
def test_on_into_the_environment(algo, is_noisy, command, monkeypatch):
    """After the gradient steps, with noise where the policy has none; interrupted there, it goes on to the same numbers."""
    train = ["train", "--algo", algo, "--env", "Pendulum-v1", "--eval-freq", "-1", "--checkpoint-freq", "40", "--seed", "1"]
    train += ["--dataset", stored("data.npz"), "-n", "30", "--online-steps", "20"]
    train += ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16", "--log-interval", "1000"]
    cls = zoo.ALGORITHMS[algo].algorithm
    output = command(*train)
    assert "Going on in the environment, for 20 steps" in output
    whole = cls.load(f"logs/{algo}/Pendulum-v1_1/Pendulum-v1.zip")
    assert (whole.num_timesteps, whole._n_updates, whole.learns_online) == (50, 50, True)
    assert (whole.action_noise is not None) == is_noisy
    assert whole.actor.optimizer.param_groups[0]["lr"] < 1e-6 or is_noisy  # IQL's falls until the last of these steps
    # The checkpoint of step 40, in the environment
    learn_online = cls.learn_online

    def interrupted(model, total_timesteps, callback=None, **kwargs):
        assert "log_interval" not in kwargs  # one of gradient steps, here it would be one of episodes

        def interrupt(local_variables, global_variables):
            if model.num_timesteps == 45:
                raise KeyboardInterrupt
            return True

        return learn_online(model, total_timesteps, callback=[*callback, ConvertCallback(interrupt)], **kwargs)

    monkeypatch.setattr(cls, "learn_online", interrupted)
    command(*train)
    monkeypatch.setattr(cls, "learn_online", learn_online)
    output = command(*train[:7], "-i", f"logs/{algo}/Pendulum-v1_2/checkpoint.zip", "--online-steps", "20")
    assert "Resuming from step 40 for 10 more" in output
    resumed = cls.load(f"logs/{algo}/Pendulum-v1_3/Pendulum-v1.zip")
    assert (resumed.num_timesteps, resumed.learns_online) == (50, True)
    for name, value in whole.policy.state_dict().items():
        assert value.equal(resumed.policy.state_dict()[name]), name


@pytest.mark.slow
def test_steps_in_the_environment_after_a_training_that_ended(command):
    """Learning rates are those of the longer training, whose last step is their end."""
    train = ["train", "--algo", "bn_iql", "--env", "Pendulum-v1", "--eval-freq", "-1"]
    command(*train, "--dataset", stored("data.npz"), "-n", "5", "-params", "policy_kwargs:dict(net_arch=[8])")
    options = [["--online-steps", "7"], ["--online-steps", "4"], ["-n", "3"]]
    for run, (option, n_steps) in enumerate(zip(options, (12, 16, 19), strict=True), start=1):
        checkpoint = f"logs/bn_iql/Pendulum-v1_{run}/checkpoint.zip"
        with pytest.raises(SystemExit, match="is not allowed without `-n`: its training has ended"):
            command(*train, "-i", checkpoint)
        output = command(*train, "-i", checkpoint, *option)
        assert f"for {0 if run == 1 else option[1]} more" in output
        model = BNIQL.load(f"logs/bn_iql/Pendulum-v1_{run + 1}/Pendulum-v1.zip")
        assert (model.num_timesteps, model.learns_online, model._schedule_timesteps) == (n_steps, True, n_steps)
    with pytest.raises(
        SystemExit, match=r"`--online-steps 3` is not allowed with `-n` and .*checkpoint\.zip, whose training is"
    ):
        command(*train, "-i", "logs/bn_iql/Pendulum-v1_4/checkpoint.zip", "-n", "5", "--online-steps", "3")


@pytest.mark.slow
def test_an_interrupted_training_knows_what_follows(command, monkeypatch):
    """Without saying it again; and at the border too, where the gradient steps have ended and the others not begun."""
    train = ["train", "--algo", "bn_iql", "--env", "Pendulum-v1", "--eval-freq", "-1"]
    network = ["-params", "policy_kwargs:dict(net_arch=[8])"]

    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as at_the_border:
        at_the_border.setattr(BNIQL, "learn_online", interrupted)
        command(*train, "--dataset", stored("data.npz"), "-n", "6", "--online-steps", "7", *network)
    assert BNIQL.load("logs/bn_iql/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 6
    resume = [*train, "-i", "logs/bn_iql/Pendulum-v1_1/checkpoint.zip"]
    assert "Going on in the environment, for 7 steps" in command(*resume)
    command(*resume, "-n", "4", "--online-steps", "2")
    for run, n_steps in ((2, 13), (3, 12)):
        model = BNIQL.load(f"logs/bn_iql/Pendulum-v1_{run}/Pendulum-v1.zip")
        assert (model.num_timesteps, model.learns_online, model._schedule_timesteps) == (n_steps, True, n_steps)


@pytest.mark.slow
def test_a_normalisation_that_adapts_is_refused_before_the_first_step(command):
    train = ["train", "--algo", "bn_iql", "--env", "Pendulum-v1", "--dataset", stored("data.npz"), "-n", "5"]
    with pytest.raises(SystemExit, match="`env` with a VecNormalize that adapts its statistics is not allowed"):
        command(*train, "--online-steps", "5", "-params", "normalize:True")
    assert not list(Path("logs").rglob("*.zip"))


@pytest.mark.slow
def test_a_replay_buffer_beside_a_model_does_not_replace_the_dataset(command, monkeypatch):
    train = ["train", "--algo", "bn_iql", "--env", "Pendulum-v1", "--eval-freq", "-1", "-n", "3"]
    command(*train, "--dataset", stored("data.npz"), "--save-replay-buffer", "-params", "policy_kwargs:dict(net_arch=[8])")
    seen, learn = [], BNIQL.learn
    monkeypatch.setattr(BNIQL, "learn", lambda model, *args, **kwargs: seen.append(model) or learn(model, *args, **kwargs))
    model = "logs/bn_iql/Pendulum-v1_1/Pendulum-v1.zip"
    assert Path(model).with_name("replay_buffer.pkl").is_file()
    for run in (2, 3):  # the second time of a model that was in the environment last
        command(*train, "-i", model, "--dataset", stored("other.npz", n=40), "--online-steps", "2")
        assert seen.pop().replay_buffer.dataset.size() == 40
        model = f"logs/bn_iql/Pendulum-v1_{run}/Pendulum-v1.zip"
        assert (BNIQL.load(model).num_timesteps, BNIQL.load(model).learns_online) == (5, True)


@pytest.mark.slow
def test_from_a_search_to_an_agent(command):
    dataset = stored("data.npz")
    arguments = ["--algo", "bn_td3_bc", "--env", "Pendulum-v1"]
    search = ["--optimize", "--n-trials", "1", "--n-timesteps", "4", "--n-evaluations", "2", "--eval-episodes", "1"]
    output = command("train", *arguments, *search, "--no-optim-plots", "--dataset", dataset)
    commands = re.findall(r"(?:Train with it|or): +bn-ddpg (.*)", output)
    assert len(commands) == 2
    for number, line in enumerate(commands, start=1):
        command(*line.split(), "-n", "3", "--eval-freq", "-1")
        assert BNTD3BC.load(f"logs/bn_td3_bc/Pendulum-v1_{number}/Pendulum-v1.zip").num_timesteps == 3


# --- Recording


@pytest.mark.slow
def test_the_commands_of_the_newcomers_page(command, tmp_path, monkeypatch):
    """As they stand there, with fewer steps."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    page = (Path(__file__).parents[1] / "docs" / "from_records.md").read_text()
    lines = re.findall(r"^bn-ddpg (.*)$", page, flags=re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "record-dataset", "train", "train", "enjoy"]
    n_steps = {"record-dataset": "250", "enjoy": "200"}
    for line in lines:
        is_short = "bn_iql" in line and "train" in line
        line = re.sub(r"--online-steps \d+", "--online-steps 20", line)
        line = re.sub(r"-n \d+", f"-n {n_steps.get(line.split()[0], '20' if is_short else '210')}", line)
        output = command(*re.sub(r"--eval-freq \d+", "--eval-freq 10" if is_short else "--eval-freq 205", line).split())
    assert "1 Episodes" in output
    assert np.load("logs/bn_iql/Pendulum-v1_1/evaluations.npz")["timesteps"].tolist() == [10, 20, 30, 40]
    assert yaml.unsafe_load(Path("logs/bn_sac/Pendulum-v1_1/Pendulum-v1/config.yml").read_text())["demonstrations"]


@pytest.mark.slow
def test_record_dataset(command, tmp_path, monkeypatch):
    """Of a trained model, in the environment of its training, and of its replay buffer; and learn from that."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    tiny = ["learning_starts:400", "buffer_size:5000", "policy_kwargs:dict(net_arch=[8])"]
    tiny += ["normalize:True", "reward_scaling:None"]  # the profile scales rewards, which is to be done once
    wrapper = "env_wrapper:'gymnasium.wrappers.FlattenObservation'"
    pendulum = ["--env", "Pendulum-v1"]
    train = ["train", "--algo", "bn_sac", *pendulum, "-n", "410", "--eval-freq", "-1", "--save-replay-buffer", "-params"]
    command(*train, *tiny, wrapper)
    record = ["record-dataset", "--algo", "bn_sac", *pendulum, "--ref-episodes", "1"]
    output = command(*record, "--name", "pendulum/tiny-v0", "-n", "250", "--noise", "0.2", "--seed", "7", "--author", "Ann")
    assert "pendulum/tiny-v0: 2 episodes, 250 steps" in output
    recorded = minari.load_dataset("pendulum/tiny-v0")
    metadata = recorded.storage.metadata
    assert (metadata["author"], metadata["algorithm_name"]) == ({"Ann"}, "BNSAC")
    assert -2000 < metadata["ref_min_score"] < 0
    assert f"Reference scores: {metadata['ref_min_score']:.2f} (random) and {metadata['ref_max_score']:.2f}" in output
    first = next(recorded.iterate_episodes())
    env = gym.make("Pendulum-v1")
    np.testing.assert_array_equal(first.observations[0], env.reset(seed=7)[0])
    for step in range(20):  # what was recorded is what the environment does, without the normalisation
        observation, reward, *_ = env.step(first.actions[step])
        np.testing.assert_allclose(first.observations[step + 1], observation, atol=1e-6)
        assert first.rewards[step] == pytest.approx(reward)
    command(*record, "--name", "pendulum/again-v0", "-n", "250", "--noise", "0.2", "--seed", "7")
    again = next(minari.load_dataset("pendulum/again-v0").iterate_episodes())
    np.testing.assert_array_equal(again.actions, first.actions)
    output = command(*record, "--name", "pendulum/replay-v0", "--replay-buffer", "--ref-max-score", "-100")
    assert "pendulum/replay-v0: 3 episodes, 410 steps" in output
    assert minari.load_dataset("pendulum/replay-v0").storage.metadata["ref_max_score"] == -100
    model = model_of("bn_iql", "Pendulum-v1", tmp_path, "pendulum/replay-v0")
    with (tmp_path / "logs/bn_sac/Pendulum-v1_1/replay_buffer.pkl").open("rb") as file:
        buffer = pickle.load(file)
    np.testing.assert_array_equal(model.replay_buffer.observations, buffer.observations[:410])
    np.testing.assert_allclose(model.replay_buffer.actions, buffer.actions[:410], atol=1e-5)
    for bad, message in {
        ("--name", "pendulum/tiny-v0"): "`dataset_id='pendulum/tiny-v0'` is not allowed: there is such a dataset",
        ("--name", "tiny"): "`dataset_id='tiny'` is not allowed: it must be a name with a version",
        ("--name", "x/tiny-v0"): "`dataset_id='x/tiny-v0'` is not allowed: it must be .* at least two of them before the last",
        ("--name", "tiny-v0", "--exp-id", "9"): "`--folder logs` is not allowed: .*Pendulum-v1_9 folder was not found",
        ("--name", "tiny-v0", "--model", "no.zip"): "`--model no.zip` is not allowed: there is no such file",
        ("--name", "tiny-v0", "-n", "0"): "`n_steps=0` is not allowed",
    }.items():
        with pytest.raises(SystemExit, match=f"^bn-ddpg record-dataset: {message}"):
            command(*record, *bad)
