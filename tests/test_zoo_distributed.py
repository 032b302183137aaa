"""Several workers on one study in PostgreSQL, one of which is killed in the middle of a trial."""

import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from zoo_runs import PATIENCE, TINY, run, start, wait_for

pytest.importorskip("rl_zoo3")

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from sb3_bn_ddpg.zoo.studies import finished_trials, open_storage

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]

SEARCH = [
    "train",
    "--env",
    "Pendulum-v1",
    "--optimize",
    "--n-evaluations",
    "1",
    "--eval-episodes",
    "1",
    "--pruner",  # a retry that the median pruner ends would not count as finished
    "none",
    "--study-name",
    "shared",
]


@pytest.fixture(scope="module")
def database():
    """Address of an empty database on a PostgreSQL server of our own."""
    pytest.importorskip("psycopg")
    # Debian keeps the server's programs out of the search path
    directories = [os.environ.get("PATH", ""), *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    initdb = shutil.which("initdb", path=os.pathsep.join(directories))
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # The server refuses to run as root
    account = {"user": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    if account:
        shutil.chown(folder, "postgres")
    subprocess.run(
        [initdb, "-D", folder / "data", "-U", "optuna", "-A", "trust", "--no-sync"],
        check=True, cwd=folder, stdout=subprocess.DEVNULL, **account,
    )  # fmt: skip
    control = [Path(initdb).with_name("pg_ctl"), "-D", folder / "data", "-w"]
    options = f"-h '' -k {folder} -F"  # a socket in the folder: no port that another program could take
    subprocess.run([*control, "start", "-o", options, "-l", folder / "log"], check=True, cwd=folder, **account)
    try:
        yield f"postgresql+psycopg://optuna@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "stop", "-m", "immediate"], check=True, cwd=folder, **account)
        shutil.rmtree(folder)


def test_workers_share_a_study_and_survive_a_killed_one(database, tmp_path):
    worker = [*SEARCH, "--storage", database, "--heartbeat-interval", "5", "--max-retries", "2"]
    study = optuna.create_study(study_name="shared", storage=open_storage(database), direction="maximize")

    # A trial of the first worker would take hours: it is killed in the middle of one for certain
    doomed = start(*worker, "-n", "10000000", *TINY, cwd=tmp_path)
    wait_for(lambda: study.trials, doomed)
    survivor = start(*worker, "-n", "100", *TINY, cwd=tmp_path)
    wait_for(lambda: finished_trials(study), doomed, survivor)
    assert study.trials[0].state == TrialState.RUNNING  # its heartbeat keeps it from being taken for dead
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.wait()
    finished_before = finished_trials(study)

    def retries():
        return [trial for trial in finished_trials(study) if RetryHeartbeatStaleTrialCallback.retried_trial_number(trial) == 0]

    wait_for(retries, survivor)
    survivor.send_signal(signal.SIGINT)
    output, _ = survivor.communicate(timeout=PATIENCE)
    assert survivor.returncode == 0, output
    assert "finished trials: " in output

    trials = study.trials
    assert trials[0].state == TrialState.FAIL
    (retried,) = retries()
    assert retried.params == trials[0].params
    for trial in finished_before:
        assert trials[trial.number].value == trial.value
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]

    # Another worker joins, and the best trial is within everyone's reach
    total = len(study.trials)
    run(*SEARCH, "--storage", database, "-n", "100", "--n-trials", "3", *TINY, cwd=tmp_path)
    assert len(study.trials) == total + 3
    best = ["--study-name", "shared", "--trial-id", str(study.best_trial.number)]
    run("train", "--env", "Pendulum-v1", "--storage", database, *best, "-n", "60", "--eval-freq", "-1", cwd=tmp_path)


def test_workers_may_start_together_on_an_empty_database(database, tmp_path):
    """Each of them creates the tables, which all but one of them cannot: they try again."""
    import psycopg

    server = database.replace("+psycopg", "")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    address = database.replace("/postgres?", "/empty?")
    barrier = tmp_path / "go"
    code = (
        "import pathlib, sys, time\n"
        "from sb3_bn_ddpg.zoo.studies import open_storage\n"
        "print('ready', flush=True)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.001)\n"
        "open_storage(sys.argv[1])\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, address, barrier], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in workers:
        assert process.stdout.readline() == "ready\n"
    barrier.touch()
    assert [process.wait(timeout=PATIENCE) for process in workers] == [0, 0, 0]


def test_missing_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install sb3-bn-ddpg\[distributed\]"):
        open_storage("postgresql+psycopg://optuna@127.0.0.1/optuna")
