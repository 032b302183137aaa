"""The command line: what it offers, what it refuses, and what it needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from zoo_runs import run

pytest.importorskip("rl_zoo3")

from sb3_bn_ddpg import cli, zoo
from sb3_bn_ddpg.common.atomic_files import FileError


@pytest.fixture(autouse=True)
def _restored_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_help_names_every_command(tmp_path):
    console_script = Path(sys.executable).with_name("bn-ddpg")
    output = subprocess.run([console_script, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert output == run("--help", cwd=tmp_path)
    for command in cli.COMMANDS:
        assert f"\n  {command} " in output
    assert "--algo" in output


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_is_the_zoos(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    if cli.COMMANDS[command].algo_flag is not None:
        assert f"is bn_ddpg if you leave it out. Added to the Zoo's: {', '.join(zoo.ALGORITHMS)}." in output
    if command not in ("plot_train", "all_plots", "plot_from_file", "benchmark"):  # these take any folder's name
        (choices,) = re.findall(r"--algo \{([^}]*)\}", output)[:1]
        assert ",".join(zoo.ALGORITHMS) in re.sub(r"\s", "", choices)
    assert ("--heartbeat-interval" in output) == (command == "train")
    assert f"usage: bn-ddpg {command}" in output or command in ("plot_train", "all_plots", "plot_from_file")


@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_unknown_command(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "best"], "argument --profile: invalid choice: 'best': bn_ddpg has 'tuned', 'paper'"),
        (["--profile", "crossq", "--algo", "bn_td3"], "invalid choice: 'crossq': bn_td3 has 'tuned', 'paper'"),
        (["--profile", "paper", "--algo", "bn_sac"], "invalid choice: 'paper': bn_sac has 'tuned', 'crossq', 'sac'"),
        (["--profile", "paper", "--algo", "ddpg"], "argument --profile: not allowed with --algo ddpg"),
        (["--profile", "paper", "-conf", "my.yml"], "argument --profile: not allowed with argument -conf"),
        (["--heartbeat-interval", "0"], "`heartbeat_interval=0` is not allowed: it must be an integer >= 1"),
        (["--max-retries", "-1"], "`max_retries=-1` is not allowed: it must be an integer >= 0"),
        (["--algo", "dppg"], "invalid choice: 'dppg'"),
    ],
)
def test_wrong_options_of_train(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("`tau=7` is not allowed: it must be a number"), SystemExit),
        (FileError("entry.yml", "is no YAML"), SystemExit),
        (ValueError("too many values to unpack"), ValueError),  # of which only the place tells anything
    ],
)
def test_messages_that_say_what_is_wrong_have_no_traceback(error, expected, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr("rl_zoo3.train.train", fail)
    with pytest.raises(expected, match=re.escape(str(error))):
        cli.main(["train", "--env", "Pendulum-v1"])


def test_options_of_train_reach_the_zoo(monkeypatch):
    seen = []
    monkeypatch.setattr("rl_zoo3.train.train", lambda: seen.append(sys.argv[1:]))
    cli.main(
        ["train", "--profile", "paper", "--max-retries", "1", "--env", "Pendulum-v1", "-params", "gamma:0.9", "tau:1", "-P"]
    )
    paper = ["--conf-file", str(zoo.profile_path("paper"))]
    assert seen == [["--algo", "bn_ddpg", *paper, "--env", "Pendulum-v1", "-params", "gamma:0.9", "tau:1", "-P"]]
    assert zoo.search.FamilyExperimentManager.recovery == zoo.WorkerRecovery(max_retries=1)


@pytest.mark.parametrize("arguments", [["--env", "dm_control/reacher-easy-v0"], ["--env=dm_control/reacher-easy-v0"]])
def test_the_control_suite_names_its_extra(arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(SystemExit, match=r"dm_control is not installed: run `pip install sb3-bn-ddpg\[dm-control\]`"):
        cli.main(["train", *arguments])


def test_record_training_says_what_it_needs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="ffmpeg"):
        cli.main(["record_training"])


@pytest.mark.filterwarnings("ignore:'rl_zoo3.benchmark' found in sys.modules")
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (None, "`--log-dir logs` is not allowed: there is no such folder; name the one of the trainings"),
        ("logs", "`--log-dir logs` is not allowed: it has no trained model"),
        (
            "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1",
            "`--log-dir logs` is not allowed: none of its 1 models could be evaluated, as said above",
        ),
    ],
)
@pytest.mark.parametrize("has_earlier_results", [False, True])
def test_a_benchmark_of_nothing(folder, message, has_earlier_results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.call", lambda *args, **kwargs: 1)  # as of a model that does not load
    if folder is not None:
        Path(folder).mkdir(parents=True)
        Path(folder, "args.yml").write_text("env: Pendulum-v1")
    if folder is not None and has_earlier_results:
        Path("logs/benchmark").mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"^bn-ddpg benchmark: {message}"):
        cli.main(["benchmark", "--log-dir", "logs", "--no-hub"])


WITHOUT_RL_ZOO = """
import importlib, sys
sys.modules["rl_zoo3"] = None
import sb3_bn_ddpg
assert not {"optuna", "yaml", "rl_zoo3.train"} & set(sys.modules), sorted(sys.modules)
assert sb3_bn_ddpg.hyperparameters("bn_ddpg", "Pendulum-v1")["batch_size"] == 256
from sb3_bn_ddpg.cli import main
for attempt in (lambda: importlib.import_module("sb3_bn_ddpg.zoo"), lambda: main(["train"])):
    try:
        attempt()
    except (ImportError, SystemExit) as error:
        assert "pip install sb3-bn-ddpg[zoo]" in str(error)
    else:
        raise AssertionError
main(["--help"])
"""


def test_package_profiles_and_help_do_without_rl_zoo_and_the_rest_names_the_extra():
    result = subprocess.run([sys.executable, "-c", WITHOUT_RL_ZOO], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: bn-ddpg" in result.stdout
