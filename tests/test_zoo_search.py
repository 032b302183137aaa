"""Searches, in processes of their own: three trials in each kind of storage, then a model of the best; Ctrl-C and after."""

import os
import re
import shlex
import signal
import time

import pytest
from zoo_runs import PATIENCE, PYTHON_FILE, TINY, run, run_code, start, wait_for

pytest.importorskip("rl_zoo3")

import optuna
import yaml
from stable_baselines3.common.save_util import load_from_zip_file
from torch import nn

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.zoo.search_space import HER_PARAMETERS, NET_ARCHS
from sb3_bn_ddpg.zoo.studies import finished_trials, open_storage

pytestmark = pytest.mark.slow

SEARCH = ["train", "--env", "Pendulum-v1", "--optimize", "-n", "100", "--n-evaluations", "1", "--eval-episodes", "1"]


def only_study(storage):
    """The one study in a storage."""
    opened = open_storage(storage)
    (name,) = optuna.get_all_study_names(opened)
    return optuna.load_study(study_name=name, storage=opened)


def trials_so_far(storage):
    """Trials of the one study, if there is one yet, of a search that goes on: no connection is left to lock its file."""
    opened = open_storage(storage)
    try:
        return [
            trial
            for name in optuna.get_all_study_names(opened)
            for trial in optuna.load_study(study_name=name, storage=opened).trials
        ]
    finally:
        opened.remove_session()
        opened.engine.dispose()


def n_finished(storage):
    """How many of them have finished."""
    return sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials_so_far(storage))


@pytest.mark.parametrize("storage", [None, "journal/study.log", "sqlite:///study.db"])
def test_three_trials_then_train_from_the_best(storage, tmp_path):
    where = [] if storage is None else ["--storage", storage, "--study-name", "mine"]
    output = run(*SEARCH, "--n-trials", "3", *where, *TINY, cwd=tmp_path)
    address = {None: f"sqlite:///{tmp_path}/logs/optuna.db", "journal/study.log": f"{tmp_path}/journal/study.log"}
    study = only_study(address.get(storage, f"sqlite:///{tmp_path}/study.db"))
    assert len(finished_trials(study)) == 3
    best = study.best_trial

    report = output[output.index("Best of 3 finished trials: ") :]
    assert report.startswith(f"Best of 3 finished trials: {best.number}, with {best.value:.2f}\n")
    assert "fig" not in output  # the Zoo's plots would have opened in a browser
    (written,) = re.findall("Written: (.*)", report)
    best_file, *plots = (tmp_path / name for name in written.split())
    assert [plot.name for plot in plots] == ["history.png", "importances.png"]
    for plot in plots:
        assert plot.read_bytes().startswith(b"\x89PNG")
    assert best_file.read_text() in report
    hyperparams = yaml.safe_load(best_file.read_text())["Pendulum-v1"]
    assert hyperparams["learning_rate"] == best.params["learning_rate"]
    assert hyperparams["buffer_size"] == 5000

    # The commands that the report offers train the same model; with the default storage, its name can be left out
    commands = [shlex.split(command) for command in re.findall("bn-ddpg (train .*)", report)]
    assert len(commands) == 2
    if storage is not None:
        commands = commands[1:]
    # Trial 0 is one that the Zoo itself takes for none
    trials = [best] * len(commands)
    if storage is None:
        commands.append(["train", "--env", "Pendulum-v1", "--trial-id", "0"])
        trials.append(study.trials[0])
    assert not list(tmp_path.glob("logs/bn_ddpg/Pendulum-v1*"))  # `enjoy` would take a search's for the latest run
    for number, (command, trial) in enumerate(zip(commands, trials, strict=True), start=1):
        run(*command, "-n", "60", "--eval-freq", "-1", cwd=tmp_path)
        model = BNDDPG.load(tmp_path / f"logs/bn_ddpg/Pendulum-v1_{number}/Pendulum-v1.zip")
        assert model.learning_rate(1.0) == trial.params["learning_rate"]
        assert model.critic_learning_rate(1.0) == trial.params["critic_learning_rate"]
        assert model.critic_weight_decay == trial.params["critic_weight_decay"]
        assert model.gamma == 1 - trial.params["one_minus_gamma"]
        assert model.tau == trial.params["tau"]
        assert model.policy_kwargs["normalization"] == trial.params["normalization"]
        assert (model.action_noise is None) == (trial.params["noise_type"] is None)


def test_the_commands_of_the_report_train_what_the_search_tried(tmp_path):
    """In the same environments, with all that the trials had in common."""
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Own-v0', 'gymnasium.envs.classic_control.pendulum:PendulumEnv', max_episode_steps=200)\n"
    )
    entry = {"n_timesteps": 100, "policy": "MlpPolicy", "learning_starts": 50, "buffer_size": 3000}
    (tmp_path / "own.yml").write_text(yaml.safe_dump({"Own-v0": entry}))
    environment = ["--gym-packages", "own_envs", "--env-kwargs", "g:5.0", "--eval-env-kwargs", "g:6.0"]
    params = ["-params", "buffer_size:2000", "policy_kwargs:dict(activation_fn=nn.Tanh, net_arch=[8])"]
    search = [*SEARCH, "--env", "Own-v0", "--conf-file", "own.yml", "--n-trials", "1", "--no-optim-plots"]
    report = run(*search, *environment, *params, cwd=tmp_path)
    params = only_study(f"sqlite:///{tmp_path}/logs/optuna.db").best_trial.params
    (best_file,) = tmp_path.rglob("best.yml")
    assert yaml.safe_load(best_file.read_text())["Own-v0"]["env_kwargs"] == {"g": 5.0}
    models = []
    for number, command in enumerate(re.findall("bn-ddpg (train .*)", report), start=1):
        run(*shlex.split(command), "-n", "60", "--eval-freq", "-1", cwd=tmp_path)
        folder = tmp_path / f"logs/bn_ddpg/Own-v0_{number}"
        arguments = yaml.unsafe_load((folder / "Own-v0/args.yml").read_text())
        assert (arguments["env_kwargs"], arguments["eval_env_kwargs"]) == ({"g": 5.0}, {"g": 6.0})
        models.append(BNDDPG.load(folder / "Own-v0.zip"))
        assert (models[-1].learning_starts, models[-1].buffer_size) == (50, 2000)
        assert models[-1].policy_kwargs["activation_fn"] is nn.Tanh
        assert models[-1].policy_kwargs["net_arch"] == NET_ARCHS[params["net_arch"]]
    assert models[0].policy_kwargs == models[1].policy_kwargs


def test_a_class_in_a_python_file_from_search_to_enjoy(tmp_path):
    """The commands of the report, an interrupted training of them, and a look at it: none imports the file by itself."""
    (tmp_path / "conf.py").write_text(PYTHON_FILE)
    report = run(*SEARCH, "--conf-file", "conf.py", "--n-trials", "1", "--no-optim-plots", cwd=tmp_path)
    commands = re.findall("bn-ddpg (train .*)", report)
    assert len(commands) == 2
    for command in commands:
        run(*shlex.split(command), "-n", "60", "--eval-freq", "-1", cwd=tmp_path)
    train = ["train", "--env", "Pendulum-v1", "-n", "60", "--eval-freq", "-1"]
    for number in (1, 2):
        run(*train, "-i", f"logs/bn_ddpg/Pendulum-v1_{number}/checkpoint.zip", cwd=tmp_path)
        model = BNDDPG.load(tmp_path / f"logs/bn_ddpg/Pendulum-v1_{2 + number}/Pendulum-v1.zip")
        assert type(model.actor.features_extractor).__name__ == "Sets"
        assert model.num_timesteps >= 120  # whole rollouts, of a length that the search samples
    assert "1 Episodes" in run("enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "200", cwd=tmp_path)


def test_two_jobs_in_one_process(tmp_path):
    output = run(*SEARCH, "--n-trials", "4", "--n-jobs", "2", "--no-optim-plots", *TINY, cwd=tmp_path)
    assert "Best of 4 finished trials" in output
    assert ".png" not in output


def test_ctrl_c_ends_the_trials_of_two_jobs(tmp_path):
    storage = f"sqlite:///{tmp_path}/logs/optuna.db"
    process = start(*SEARCH, "-n", "10000000", "--n-trials", "4", "--n-jobs", "2", *TINY, cwd=tmp_path)
    database = tmp_path / "logs/optuna.db"

    def n_started():
        return sum("policy_delay" in trial.params for trial in trials_so_far(storage)) if database.exists() else 0

    wait_for(lambda: n_started() == 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert "No trial has finished yet" in output
    assert not [trial for trial in only_study(storage).trials if trial.state == optuna.trial.TrialState.RUNNING]


def test_ctrl_c_in_a_terminal_with_environments_in_processes(tmp_path):
    arguments = [*SEARCH, "--vec-env", "subproc", "-n", "200", "--n-trials", "50", "--no-optim-plots"]
    process = start(*arguments, *TINY, "n_envs:2", cwd=tmp_path)
    storage = f"sqlite:///{tmp_path}/logs/optuna.db"
    wait_for(lambda: (tmp_path / "logs/optuna.db").exists() and n_finished(storage) >= 1, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert f"Best of {n_finished(storage)} finished trials" in output
    assert not [trial for trial in only_study(storage).trials if trial.state == optuna.trial.TrialState.RUNNING]


# A Ctrl-C between Optuna's start of a trial's heartbeat, a thread, and the trial that would end it
INTERRUPT_AT_THE_HEARTBEAT = """
import signal, sys
from optuna.storages._heartbeat import HeartbeatThread
from sb3_bn_ddpg.cli import main

started, start = [], HeartbeatThread.start

def start_and_interrupt(self):
    start(self)
    started.append(self)
    if len(started) == 3:
        signal.raise_signal(signal.SIGINT)

HeartbeatThread.start = start_and_interrupt
main(sys.argv[1:])
"""


def test_ctrl_c_before_a_trial_starts(tmp_path):
    # Left alive, the thread would keep the process alive
    done = run_code(INTERRUPT_AT_THE_HEARTBEAT, *SEARCH, "--n-trials", "5", "--no-optim-plots", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Best of 2 finished trials" in done.stdout
    states = [trial.state for trial in only_study(f"sqlite:///{tmp_path}/logs/optuna.db").trials]
    assert states == [optuna.trial.TrialState.COMPLETE] * 2 + [optuna.trial.TrialState.FAIL]


# A Ctrl-C in the storage's transaction: the cursor of that would live as long as the error, and keep the file locked
INTERRUPT_IN_THE_STORAGE = """
import signal, sys
from sqlalchemy.engine.default import DefaultDialect
from sb3_bn_ddpg.cli import main

execute, attributes = DefaultDialect.do_execute, []

def execute_and_interrupt(self, cursor, statement, *rest):
    execute(self, cursor, statement, *rest)
    if "INTO trial_user_attributes" in statement:
        attributes.append(statement)
    if len(attributes) == 4 and statement.startswith("SELECT"):
        attributes.clear()
        signal.raise_signal(signal.SIGINT)

DefaultDialect.do_execute = execute_and_interrupt
main(sys.argv[1:])
"""

# The second trial's worker dies after a sign of life
KILLED_IN_THE_SECOND_TRIAL = """
import os, signal, sys
from optuna.storages import RDBStorage
from sb3_bn_ddpg.cli import main

record = RDBStorage.record_heartbeat

def record_and_die(self, trial_id):
    record(self, trial_id)
    if trial_id == 2:
        os.kill(os.getpid(), signal.SIGKILL)

RDBStorage.record_heartbeat = record_and_die
main(sys.argv[1:])
"""


def test_ctrl_c_leaves_no_lock_in_the_storage(tmp_path):
    done = run_code(INTERRUPT_IN_THE_STORAGE, *SEARCH, "--n-trials", "5", "--no-optim-plots", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Best of 1 finished trials" in done.stdout
    states = [trial.state for trial in only_study(f"sqlite:///{tmp_path}/logs/optuna.db").trials]
    assert states == [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL]


def test_a_killed_trial_is_retried_within_the_total_number(tmp_path):
    search = [*SEARCH, "--max-total-trials", "2", "--heartbeat-interval", "1", "--no-optim-plots", *TINY]
    done = run_code(KILLED_IN_THE_SECOND_TRIAL, *search, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    time.sleep(3)  # silent for longer than twice the interval
    assert "Best of 2 finished trials" in run(*search, cwd=tmp_path)
    states = [trial.state for trial in only_study(f"sqlite:///{tmp_path}/logs/optuna.db").trials]
    assert states == [getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "FAIL", "COMPLETE")]


def test_search_of_another_algorithm(tmp_path):
    """And a model of its best trial, with what it has tried of hindsight experience replay."""
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\n"
        "kwargs = dict(n_bits=4, continuous=True, max_steps=4)\n"
        "gymnasium.register('Own-v0', 'stable_baselines3.common.envs:BitFlippingEnv', kwargs=kwargs)\n"
    )
    entry = {"n_timesteps": 100, "policy": "MultiInputPolicy", "learning_starts": 50, "buffer_size": 1000}
    her = {"replay_buffer_class": "HerReplayBuffer", "replay_buffer_kwargs": "dict(copy_info_dict=True)"}
    (tmp_path / "own.yml").write_text(yaml.safe_dump({"Own-v0": entry | her}))
    search = [*SEARCH, "--env", "Own-v0", "--gym-packages", "own_envs", "--conf-file", "own.yml", "--algo", "ddpg"]
    output = run(*search, "--n-trials", "1", "--no-optim-plots", cwd=tmp_path)
    assert "Best of 1 finished trials" in output
    study = only_study(f"sqlite:///{tmp_path}/logs/optuna.db")
    assert study.study_name.startswith("ddpg_Own-v0_")
    for number, command in enumerate(re.findall("bn-ddpg (train .*)", output), start=1):
        run(*shlex.split(command), "-n", "60", "--eval-freq", "-1", cwd=tmp_path)
        data, _, _ = load_from_zip_file(tmp_path / f"logs/ddpg/Own-v0_{number}/Own-v0.zip")
        buffer_kwargs = data["replay_buffer_kwargs"]
        assert buffer_kwargs["copy_info_dict"]
        assert {name: buffer_kwargs[name] for name in HER_PARAMETERS} == {
            name: study.best_trial.params[name] for name in HER_PARAMETERS
        }


def test_ctrl_c_loses_nothing_and_the_same_command_resumes(tmp_path):
    command = [*SEARCH, "--n-trials", "50", "--seed", "3", *TINY]
    storage = f"sqlite:///{tmp_path}/logs/optuna.db"
    process = start(*command, cwd=tmp_path)
    wait_for(lambda: (tmp_path / "logs/optuna.db").exists() and n_finished(storage) >= 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    finished = finished_trials(only_study(storage))
    assert f"Best of {len(finished)} finished trials" in output
    assert not [trial for trial in only_study(storage).trials if trial.state == optuna.trial.TrialState.RUNNING]

    total = len(only_study(storage).trials) + 1
    command[command.index("50")] = "1"
    run(*command, cwd=tmp_path)
    study = only_study(storage)
    assert len(study.trials) == total
    assert [trial.params for trial in finished_trials(study)[: len(finished)]] == [trial.params for trial in finished]
    # The same seed must not try the same hyperparameters again. (A trial interrupted at its very start has none, or not all.)
    learning_rates = [trial.params["learning_rate"] for trial in study.trials if "learning_rate" in trial.params]
    assert len(set(learning_rates)) == len(learning_rates) > len(finished)
