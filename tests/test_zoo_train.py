"""The Zoo's scripts on a model of bn_ddpg, in processes of their own: train, resume, enjoy, film, plot, benchmark."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer
from zoo_runs import ENVIRONMENT, PATIENCE, TINY, run, run_code, start, wait_for

pytest.importorskip("rl_zoo3")

import yaml
from huggingface_hub.errors import EntryNotFoundError
from rl_zoo3 import ALGOS

from sb3_bn_ddpg import BNDDPG, cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which a model has been trained for 600 steps, with everything that a run can leave behind."""
    folder = tmp_path_factory.mktemp("trained")
    output = run(
        *["train", "--env", "Pendulum-v1", "-n", "600", "--eval-freq", "300", "--eval-episodes", "2", "-P"],
        *["--save-freq", "300", "--save-replay-buffer", "--seed", "1", *TINY],
        cwd=folder,
    )
    assert "Saving to logs/bn_ddpg/Pendulum-v1_1" in output
    return folder


@pytest.fixture
def logs(trained, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(trained / "logs", tmp_path / "logs")
    return tmp_path


def test_train_leaves_what_the_zoo_leaves(trained):
    run_folder = trained / "logs/bn_ddpg/Pendulum-v1_1"
    names = {path.name for path in run_folder.iterdir()}
    assert {"Pendulum-v1.zip", "best_model.zip", "rl_model_300_steps.zip", "replay_buffer.pkl", "evaluations.npz"} <= names
    config = yaml.unsafe_load((run_folder / "Pendulum-v1/config.yml").read_text())
    assert config["action_noise"] == {"type": "ou", "theta": 0.15, "sigma": 0.2, "dt": 1.0}
    model = BNDDPG.load(run_folder / "Pendulum-v1.zip")
    assert model.num_timesteps == 600
    assert model._n_updates == 550
    assert model.gamma == config["gamma"] == 0.98


def test_resume_goes_on_with_networks_and_replay_buffer(logs):
    first = BNDDPG.load(logs / "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    trained_agent = "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip"
    output = run(
        "train",
        "--env",
        "Pendulum-v1",
        "-i",
        trained_agent,
        "-n",
        "200",
        "--eval-freq",
        "-1",
        "--save-replay-buffer",
        *TINY,
        cwd=logs,
    )
    assert "Loading pretrained agent" in output
    assert "Loading replay buffer" in output
    resumed = BNDDPG.load(logs / "logs/bn_ddpg/Pendulum-v1_2/Pendulum-v1.zip")
    resumed.load_replay_buffer(logs / "logs/bn_ddpg/Pendulum-v1_2/replay_buffer.pkl")
    assert resumed.replay_buffer.pos == 800
    assert resumed._n_updates == first._n_updates + 150
    assert resumed.actor.mu[1].weight.shape == first.actor.mu[1].weight.shape  # 16 units, not the file's 400


def wait_for_an_episode(folder, process):
    """Wait until a training that logs into the folder has finished one."""
    wait_for(lambda: any(path.stat().st_size > 100 for path in folder.rglob("0.monitor.csv")), process)


@pytest.mark.parametrize("checkpoint_freq", ["-1", "10000000"])
def test_ctrl_c_saves_what_was_learned(checkpoint_freq, tmp_path):
    arguments = ["train", "--env", "Pendulum-v1", "--eval-freq", "-1", "--checkpoint-freq", checkpoint_freq]
    process = start(*arguments, "-n", "10000000", *TINY, cwd=tmp_path)
    wait_for_an_episode(tmp_path, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    model = BNDDPG.load(tmp_path / "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    assert model._n_updates > 0
    checkpoint = tmp_path / "logs/bn_ddpg/Pendulum-v1_1/checkpoint.zip"
    assert checkpoint.exists() == (checkpoint_freq != "-1")
    if checkpoint.exists():
        # Of the step that the Ctrl-C fell into: nothing is left to do again
        resumed = BNDDPG.resume(checkpoint)
        assert resumed.num_timesteps == model.num_timesteps == 10_000_000 - resumed.remaining_timesteps
        assert resumed._n_updates == model._n_updates
        assert resumed.replay_buffer.size() == min(model.num_timesteps, 5000)


@pytest.mark.parametrize("checkpoint_freq", ["-1", "10000000"])
def test_ctrl_c_in_a_terminal_leaves_environments_in_processes_to_the_training(checkpoint_freq, tmp_path):
    arguments = ["train", "--env", "Pendulum-v1", "--vec-env", "subproc", "--eval-freq", "-1", "-n", "10000000"]
    process = start(*arguments, "--checkpoint-freq", checkpoint_freq, *TINY, "n_envs:2", cwd=tmp_path)
    wait_for_an_episode(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert BNDDPG.load(tmp_path / "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")._n_updates > 0
    assert (tmp_path / "logs/bn_ddpg/Pendulum-v1_1/checkpoint.zip").exists() == (checkpoint_freq != "-1")


def test_a_background_job_ignores_ctrl_c(tmp_path):
    code = """
import signal, sys
from sb3_bn_ddpg.cli import main
signal.signal(signal.SIGINT, signal.SIG_IGN)
main(sys.argv[1:])
"""
    arguments = ["train", "--env", "Pendulum-v1", "-n", "1000", "--eval-freq", "-1", *TINY]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=ENVIRONMENT)
    wait_for_an_episode(tmp_path, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert BNDDPG.load(tmp_path / "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 1000


def train_with_interrupt(interrupt, *arguments, cwd):
    """Train 20,000 steps, in whose 300th this code calls ``interrupt()``."""
    code = f"""
import os, signal, sys
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.cli import main

n_steps, step = 0, PendulumEnv.step
{interrupt}
def counting_step(self, action):
    global n_steps
    n_steps += 1
    if n_steps == 300:
        interrupt()
    return step(self, action)

PendulumEnv.step = counting_step
main(sys.argv[1:])
print("stopped at", n_steps)
"""
    command = ["train", "--env", "Pendulum-v1", "-n", "20000", "--eval-freq", "-1", *arguments, *TINY]
    finished = run_code(code, *command, cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    assert "stopped at 300" in finished.stdout
    return finished


def test_a_second_ctrl_c_ends_a_training_in_the_middle_of_a_step(tmp_path):
    interrupt = """
def interrupt():
    signal.raise_signal(signal.SIGINT)
    print("still in it")
    signal.raise_signal(signal.SIGINT)
    print("out of reach")
"""
    output = train_with_interrupt(interrupt, "--checkpoint-freq", "250", cwd=tmp_path).stdout
    assert "still in it" in output
    assert "out of reach" not in output
    assert BNDDPG.load(tmp_path / "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")._n_updates > 200
    # None could go on from the middle of a step
    assert BNDDPG.resume(tmp_path / "logs/bn_ddpg/Pendulum-v1_1/checkpoint.zip").num_timesteps == 250


def test_ctrl_c_on_a_full_disk_ends_a_training_with_its_model(tmp_path):
    interrupt = """
def interrupt():
    signal.raise_signal(signal.SIGINT)

def fail(self, path):
    raise OSError(28, "No space left on device")

BNDDPG.save_checkpoint = fail
"""
    errors = train_with_interrupt(interrupt, cwd=tmp_path).stderr
    assert "No checkpoint at the Ctrl-C, the one before stands: [Errno 28] No space left on device" in errors
    assert BNDDPG.load(tmp_path / "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 300


def test_ctrl_c_that_python_ignores_ends_training_too(tmp_path):
    """A KeyboardInterrupt in a finalizer, as the garbage collector runs them at any moment, goes nowhere by itself."""
    interrupt = """
class Interrupting:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

interrupt = Interrupting
"""
    errors = train_with_interrupt(interrupt, "--checkpoint-freq", "-1", cwd=tmp_path).stderr
    assert "Exception ignored in" in errors
    assert BNDDPG.load(tmp_path / "logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")._n_updates > 200


def test_a_killed_training_is_resumed_from_its_checkpoint(tmp_path):
    arguments = ["train", "--env", "Pendulum-v1", "--eval-freq", "-1", *TINY]
    process = start(*arguments, "-n", "1000000", "--checkpoint-freq", "150", cwd=tmp_path)
    checkpoint = tmp_path / "logs/bn_ddpg/Pendulum-v1_1/checkpoint.zip"
    wait_for(checkpoint.exists, process)
    process.kill()
    process.communicate()
    # In a process without RL Zoo, which changes Gymnasium where it is imported
    code = f"from sb3_bn_ddpg import BNDDPG; print(BNDDPG.resume({str(checkpoint)!r}).num_timesteps)"
    step = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=ENVIRONMENT).stdout)
    assert step % 150 == 0
    output = run(*arguments, "-n", "200", "--checkpoint-freq", "-1", "-i", str(checkpoint), cwd=tmp_path)
    assert f"Resuming from step {step} for 200 more" in output
    assert BNDDPG.load(tmp_path / "logs/bn_ddpg/Pendulum-v1_2/Pendulum-v1.zip").num_timesteps == step + 200
    assert not (tmp_path / "logs/bn_ddpg/Pendulum-v1_2/checkpoint.zip").exists()
    (damaged := tmp_path / "damaged.zip").write_bytes(checkpoint.read_bytes()[:-100])
    output = run(*arguments, "-i", str(damaged), cwd=tmp_path, returncode=1)
    assert "Traceback" not in output
    assert re.search(r"\nbn-ddpg train: the file \S*damaged\.zip is truncated or was altered", output)


def test_a_resumed_training_is_that_of_its_folder(tmp_path):
    """Whatever file and options it was started with."""
    entry = {"n_timesteps": 400, "policy": "MlpPolicy", "normalize": True, "n_envs": 2, "gamma": 0.9, "buffer_size": 1000}
    (tmp_path / "own.yml").write_text(yaml.safe_dump({"Pendulum-v1": entry}))
    first = ["--conf-file", "own.yml", "--env-kwargs", "g:5.0", *TINY]
    run("train", "--env", "Pendulum-v1", "-n", "200", *first, cwd=tmp_path)
    resume = ["train", "--env", "Pendulum-v1", "-i", "logs/bn_ddpg/Pendulum-v1_1/checkpoint.zip", "-n", "200"]
    (tmp_path / "logs/bn_ddpg/Pendulum-v1_1/best_model.zip").write_bytes(b"of the best evaluation")
    output = run(*resume, "-tb", "tensorboard", "--verbose", "0", cwd=tmp_path)
    assert "total_timesteps" not in output
    assert list((tmp_path / "tensorboard").rglob("events.*"))
    folders = [tmp_path / f"logs/bn_ddpg/Pendulum-v1_{number}/Pendulum-v1" for number in (1, 2)]
    configs = [yaml.unsafe_load((folder / "config.yml").read_text()) for folder in folders]
    assert configs[0] == configs[1]
    assert yaml.unsafe_load((folders[1] / "args.yml").read_text())["env_kwargs"] == {"g": 5.0}
    assert (folders[1] / "vecnormalize.pkl").exists()
    assert (folders[1].parent / "best_model.zip").read_bytes() == b"of the best evaluation"
    enjoyed = run("enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "200", cwd=tmp_path)
    assert "Loading running average" in enjoyed
    output = run(*resume, "-params", "gamma:0.5", cwd=tmp_path, returncode=1)
    assert "`gamma=0.5` is not allowed with a checkpoint" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"`-i logs/.*checkpoint\.zip` is not allowed without `-n`: its training has ended, after 600 steps"),
        (["-n", "10", "--env-kwargs", "g:5.0"], r"`env_kwargs={'g': 5\.0}` is not allowed with a checkpoint"),
        (["-n", "10", "-params", "normalize:True"], "`normalize=True` is not allowed with a checkpoint"),
        (["-n", "10", "--optimize"], r"`-i logs/.*checkpoint\.zip` is not allowed with `--optimize`"),
        (["-n", "10", "-params", "tauu:0.1"], r"`tauu=0\.1` is not allowed: BNDDPG has no such argument"),
        (
            ["-n", "10", "--algo", "ddpg"],
            r"`algo='ddpg'` is not allowed with .*, a checkpoint of BNDDPG: use `--algo bn_ddpg`",
        ),
    ],
)
def test_what_a_resumed_training_refuses(trained, monkeypatch, arguments, message):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "argv", sys.argv)
    before = sorted(trained.rglob("*"))
    with pytest.raises(SystemExit, match=message):  # without a traceback
        cli.main(["train", "--env", "Pendulum-v1", "-i", "logs/bn_ddpg/Pendulum-v1_1/checkpoint.zip", *arguments])
    assert sorted(trained.rglob("*")) == before  # no folder of a run that `enjoy` would take for the latest


@pytest.mark.parametrize("which", [["--load-best"], ["--load-checkpoint", "300"]])
def test_enjoy(trained, which):
    output = run("enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "400", *which, cwd=trained)
    assert "2 Episodes" in output
    assert "Mean reward: -" in output


def test_enjoy_needs_no_memory_for_the_replay_buffer(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "argv", sys.argv)
    sizes = []
    init = ReplayBuffer.__init__
    monkeypatch.setattr(
        ReplayBuffer, "__init__", lambda self, size, *args, **kw: sizes.append(size) or init(self, size, *args, **kw)
    )
    cli.main(["enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "10"])
    BNDDPG.load("logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    assert sizes == [1, 5000]
    assert ALGOS["bn_ddpg"] is BNDDPG


@pytest.mark.parametrize("algo", ["ddpg", "bn_td3", "bn_sac"])
def test_another_algorithm_is_one_word_away(algo, tmp_path):
    tiny = ["-params", "learning_starts:50", "policy_kwargs:dict(net_arch=[16, 16])"]
    run("train", "--algo", algo, "--env", "Pendulum-v1", "-n", "200", "--eval-freq", "-1", *tiny, cwd=tmp_path)
    arguments = ["--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "200"]
    assert "1 Episodes" in run("enjoy", "--algo", algo, *arguments, cwd=tmp_path)


def test_record_video(trained, tmp_path):
    pytest.importorskip("pygame")
    arguments = ["--env", "Pendulum-v1", "-f", "logs", "-n", "30", "-o", str(tmp_path)]
    run("record_video", *arguments, cwd=trained)
    (video,) = tmp_path.glob("final-model-bn_ddpg-Pendulum-v1*.mp4")
    assert video.stat().st_size > 1000


def test_record_training(logs):
    pytest.importorskip("pygame")
    if shutil.which("ffmpeg") is None:
        pytest.skip("record_training needs the program ffmpeg, which is not installed")
    output = run("record_training", "--env", "Pendulum-v1", "-f", "logs", "-n", "30", cwd=logs)
    assert "Saving video to" in output
    assert (logs / "logs/bn_ddpg/Pendulum-v1_1/videos/training.mp4").stat().st_size > 1000


def test_plots(logs, monkeypatch, capsys):
    plots = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("seaborn")
    plots.switch_backend("Agg")
    monkeypatch.chdir(logs)
    monkeypatch.setattr(sys, "argv", sys.argv)
    cli.main(["plot_train", "-e", "Pendulum", "-f", "logs", "-w", "2"])
    assert [line.get_label() for line in plots.gca().get_lines()] == ["Pendulum-v1_1"]
    plots.close("all")
    # The Zoo's table of one single run has no numbers
    shutil.copytree("logs/bn_ddpg/Pendulum-v1_1", "logs/bn_ddpg/Pendulum-v1_2")
    cli.main(["all_plots", "-e", "Pendulum", "-f", "logs", "-o", "results", "--no-display"])
    assert "BN_DDPG" in capsys.readouterr().out
    plots.close("all")
    cli.main(["plot_from_file", "-i", "results.pkl", "-o", "results.png", "--format", "png"])
    assert "BN_DDPG" in capsys.readouterr().out
    assert Path("results.png").stat().st_size > 1000
    plots.close("all")


def test_benchmark_evaluates_bn_ddpg(logs):
    output = run("benchmark", "--log-dir", "logs", "--no-hub", "-n", "400", "--num-threads", "1", cwd=logs)
    assert "Evaluating bn_ddpg on Pendulum-v1..." in output
    table = (logs / "logs/benchmark/benchmark.md").read_text()
    assert "|bn_ddpg|Pendulum-v1|" in table.replace(" ", "")
    assert (logs / "benchmark.md").read_text() == table


def test_benchmark_of_an_id_with_a_slash(tmp_path):
    pytest.importorskip("dm_control")
    env = ["--env", "dm_control/cartpole-balance-v0"]
    run("train", *env, "-n", "60", "--eval-freq", "-1", "--checkpoint-freq", "-1", *TINY, cwd=tmp_path)
    run("benchmark", "--log-dir", "logs", "--no-hub", "-n", "1010", "--num-threads", "1", cwd=tmp_path)
    assert "|bn_ddpg|dm_control-cartpole-balance-v0|" in (tmp_path / "benchmark.md").read_text().replace(" ", "")


class FakeHub:
    """Stands in for the hub's client: repositories are folders on this machine."""

    def __init__(self, folder: Path):
        self.folder = folder

    def create_repo(self, repo_id, **kwargs):
        (self.folder / repo_id).mkdir(parents=True)
        return f"https://hub/{repo_id}"

    def snapshot_download(self, repo_id, local_dir, **kwargs):
        Path(local_dir).mkdir(parents=True)

    def download(self, repo_id, filename):
        path = self.folder / repo_id / filename
        if not path.is_file():
            raise EntryNotFoundError(f"404: {filename}")
        return str(path)

    def upload_folder(self, repo_id, folder_path, **kwargs):
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)


def test_push_to_hub_and_load_from_hub(logs, tmp_path_factory, monkeypatch):
    """Nothing leaves this machine: both commands get a stand-in for the hub, and the model comes back as it went."""
    hub = FakeHub(tmp_path_factory.mktemp("hub"))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_sb3.load_from_hub", hub.download)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(logs)
    cli.main(["push_to_hub", "--env", "Pendulum-v1", "-f", "logs", "-orga", "me", "--no-render"])
    card = (hub.folder / "me/bn_ddpg-Pendulum-v1/README.md").read_text()
    assert "**BNDDPG** Agent playing **Pendulum-v1**" in card
    assert "pip install sb3-bn-ddpg[zoo]" in card
    assert "python -m sb3_bn_ddpg enjoy --algo bn_ddpg --env Pendulum-v1" in card
    assert "rl_zoo3." not in card

    cli.main(["load_from_hub", "--env", "Pendulum-v1", "-f", "back", "-orga", "me"])
    sent = BNDDPG.load("logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    back = BNDDPG.load("back/bn_ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    observation = np.array([0.5, 0.5, 1.0], dtype=np.float32)
    assert back.predict(observation)[0] == sent.predict(observation)[0]


@pytest.mark.parametrize("command", ["push_to_hub", "load_from_hub"])
def test_hub_commands_check_their_arguments(command, tmp_path):
    output = subprocess.run(
        [sys.executable, "-m", "sb3_bn_ddpg", command, "--env", "Pendulum-v1"], capture_output=True, text=True, cwd=tmp_path
    )
    assert output.returncode == 2
    assert "the following arguments are required: -f/--folder" in output.stderr
