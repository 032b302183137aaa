"""The scripts of docs/examples, each in a process of its own, as its readers run them: what they leave behind is real."""

import ast
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fork_server import WITHOUT_ZOO, fork
from zoo_runs import ENVIRONMENT, PATIENCE, run

from sb3_bn_ddpg import BNDDPG, BNIQL, BNSAC, BNTD3

FOLDER = Path(__file__).parents[1] / "docs" / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
PNG = b"\x89PNG\r\n\x1a\n"


def run_script(name: str, *arguments: object, cwd: Path, returncode: int = 0, **environment: str) -> str:
    """Run a script in the folder and return what it printed."""
    command = [str(FOLDER / name), *map(str, arguments)]
    process = fork(*command, cwd=cwd, env=ENVIRONMENT | environment, imported=WITHOUT_ZOO)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == returncode, output
    return output


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> Path:
    """What `make train` leaves, after a very short training."""
    folder = tmp_path_factory.mktemp("agent")
    run_script("quickstart.py", "--timesteps", 240, cwd=folder)
    return folder / "runs/Pendulum-v1_seed0"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_each_says_how_to_run_it_and_is_on_the_page(script: Path):
    page = (FOLDER.parent / "examples.md").read_text()
    assert f"{{literalinclude}} examples/{script.name}\n" in page
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert f"python docs/examples/{script.name}" in docstring or "make train" in docstring


@pytest.mark.slow
def test_quickstart(agent):
    model = BNDDPG.load(agent / "model.zip")
    assert model.num_timesteps == 240
    assert (agent / "learning_curve.png").read_bytes().startswith(PNG)
    evaluations = np.load(agent / "evaluations.npz")
    assert list(evaluations["timesteps"]) == list(range(20, 241, 20))
    assert len((agent / "training.monitor.csv").read_text().splitlines()) == 2 + 1  # two lines of header, an episode of 200


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "algorithm"), [("bn_td3", BNTD3), ("bn_sac", BNSAC)])
def test_quickstart_of_another_algorithm(algo, algorithm, tmp_path):
    output = run_script("quickstart.py", "--algo", algo, "--timesteps", 120, cwd=tmp_path)
    assert f"{algorithm.__name__}, seed 0" in output
    assert algorithm.load(tmp_path / f"runs/Pendulum-v1_{algo}_seed0/model.zip").num_timesteps == 120


@pytest.mark.slow
def test_watch_films(agent, tmp_path):
    pytest.importorskip("pygame")
    clips = pytest.importorskip("moviepy.video.io.VideoFileClip")
    output = run_script("watch.py", "--model", agent / "model.zip", "--timesteps", 210, cwd=tmp_path)
    assert re.search(r"An episode of 200 steps with a return of -\d+\.\d", output)
    (film,) = (tmp_path / "runs/videos").iterdir()
    assert film.name == "Pendulum-v1-step-0-to-step-210.mp4"
    with clips.VideoFileClip(str(film)) as clip:
        frames = list(clip.iter_frames())
        assert clip.fps == 30  # Pendulum's own
    assert len(frames) == pytest.approx(211, abs=2)
    assert frames[0].ndim == 3
    assert not np.array_equal(frames[0], frames[-1])  # it moves


@pytest.mark.slow
def test_watch_shows(agent, tmp_path):
    pytest.importorskip("pygame")
    output = run_script("watch.py", "--window", "--model", agent / "model.zip", "--timesteps", 5, cwd=tmp_path)
    assert "No film" not in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["moviepy", "pygame"])
def test_watch_says_which_module_is_missing(agent, tmp_path, module):
    if module == "pygame":
        pytest.importorskip("moviepy")  # is asked for first
    (tmp_path / f"{module}.py").write_text("raise ModuleNotFoundError(__name__, name=__name__)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = ["--model", agent / "model.zip", "--timesteps", 5]
    output = run_script("watch.py", *arguments, cwd=tmp_path, returncode=1, PYTHONPATH=path)
    assert re.search(f"No film: {module} is not installed", output, flags=re.IGNORECASE)
    assert 'pip install "sb3-bn-ddpg[zoo]"' in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_watch_says_that_ffmpeg_is_missing(agent, tmp_path):
    pytest.importorskip("pygame")
    pytest.importorskip("moviepy")
    missing = dict.fromkeys(["FFMPEG_BINARY", "IMAGEIO_FFMPEG_EXE"], str(tmp_path / "no-ffmpeg"))
    arguments = ["--model", agent / "model.zip", "--timesteps", 5]
    output = run_script("watch.py", *arguments, cwd=tmp_path, returncode=1, **missing)
    assert "no-ffmpeg" in output
    assert "moviepy needs a working ffmpeg" in output


@pytest.mark.slow
def test_watch_says_that_there_is_no_agent(tmp_path):
    output = run_script("watch.py", cwd=tmp_path, returncode=2)
    assert "there is no file runs/Pendulum-v1_seed0/model.zip; docs/examples/quickstart.py trains an agent" in output


@pytest.mark.slow
def test_tune(tmp_path):
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("rl_zoo3")
    for total in (2, 3):  # the second start goes on with the study of the first
        output = run_script("tune.py", "--trials", 2 if total == 2 else 1, "--timesteps", 210, cwd=tmp_path)
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/runs/tune/optuna.db")
        assert len(study.trials) == total
    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert finished
    assert all({"tau", "normalization", "noise_sigma"} <= set(trial.params) for trial in finished)
    assert all(-2000 < trial.value < 0 for trial in finished)
    assert f"Best of 3 trials: {study.best_trial.number}, with {study.best_value:.1f}" in output
    model = BNDDPG.load(tmp_path / "runs/tune/best_model.zip")
    assert (model.tau, model.batch_size) == (study.best_params["tau"], study.best_trial.user_attrs["batch_size"])
    assert model.num_timesteps >= 210


@pytest.mark.slow
def test_own_environment(tmp_path):
    output = run_script("own_environment.py", "--timesteps", 150, cwd=tmp_path)
    assert re.search(r"thermostat: a mean return of -\d+\.\d \+- .*\nBNDDPG: a mean return of -\d+\.\d \+- ", output)
    model = BNDDPG.load(tmp_path / "runs/own_environment/model.zip")
    assert (model.action_space.low.item(), model.action_space.high.item()) == (0, 3000)
    actions, _ = model.predict(np.array([[283, 270, 0], [298, 283, 0]], np.float32))
    assert np.all((actions >= 0) & (actions <= 3000))


@pytest.mark.slow
def test_own_environment_on_the_command_line(tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", path)
    mine = ["--env", "HeatedRoom-v0", "--gym-packages", "own_environment"]
    conf_file = ["--conf-file", str(FOLDER / "own_environment.yml")]
    output = run("train", *mine, *conf_file, "-n", "150", "--eval-freq", "-1", cwd=tmp_path)
    assert "('sigma', 0.3)" in output or "'sigma': 0.3" in output  # the file's entry
    model = BNDDPG.load(tmp_path / "logs/bn_ddpg/HeatedRoom-v0_1/HeatedRoom-v0.zip")
    assert model.lr_schedule(1) == 1e-3
    assert float(model.action_noise.sigma) == 0.3
    output = run("enjoy", *mine, "-f", "logs", "--no-render", "-n", "150", cwd=tmp_path)
    assert "Episode Length 144" in output


@pytest.mark.slow
def test_own_network(tmp_path):
    output = run_script("own_network.py", "--timesteps", 150, cwd=tmp_path)
    sections = dict(re.findall(r"^=== (\w+)\n(.*?)(?=^=== |\Z)", output, flags=re.DOTALL | re.MULTILINE))
    reasons = {name: re.findall(r"Updating by autograd: (.*)", section) for name, section in sections.items()}
    assert reasons == {
        "paper": [],
        "small": [],
        "renorm": [],
        "tanh": ["there is a layer Tanh"],
        "extractor": ["the features extractor is WithSquares"],
        "layer_norm_critic": [],
    }
    for name, section in sections.items():
        assert re.search(rf"^{name}: [\d,]+ parameters, \d+ s, a mean return of -\d+\.\d$", section, flags=re.MULTILINE)
    # The classes of a script's own networks are found again by a process that knows nothing of the script
    model = BNDDPG.load(tmp_path / "runs/own_network/layer_norm_critic.zip")
    networks = [model.actor, model.critic, model.critic_target]
    kinds = [{type(layer).__name__ for layer in network.modules()} for network in networks]
    assert ["LayerNorm" in kind for kind in kinds] == [False, True, True]
    assert ["BatchNorm1d" in kind for kind in kinds] == [True, False, False]
    assert BNDDPG.load(tmp_path / "runs/own_network/extractor.zip").actor.features_extractor.features_dim == 3 + 4


@pytest.mark.slow
def test_compare(tmp_path):
    output = run_script("compare.py", "--seeds", 2, "--timesteps", 120, "--evaluations", 2, cwd=tmp_path)
    folder = tmp_path / "runs/compare"
    assert (folder / "comparison.png").read_bytes().startswith(PNG)
    table = pd.read_csv(folder / "returns.csv")
    assert len(table) == 2 * 2 * 2
    for name, runs in (("BNDDPG", "BNDDPG"), ("SB3's DDPG", "DDPG")):
        for seed in (0, 1):
            evaluations = np.load(folder / f"{runs}_{seed}" / "evaluations.npz")
            rows = table[(table.algorithm == name) & (table.seed == seed)]
            np.testing.assert_allclose(rows.mean_return, evaluations["results"].mean(axis=1))
            np.testing.assert_array_equal(rows.timesteps, evaluations["timesteps"])
        last = table[(table.algorithm == name) & (table.timesteps == 120)].mean_return
        assert len(set(last)) == 2  # two seeds, two runs
        assert f"{name}: {last.mean():.1f} at the end" in output


@pytest.mark.slow
def test_from_records(tmp_path):
    pytest.importorskip("minari")
    steps = ["--teacher-steps", 210, "--record-steps", 250, "--gradient-steps", 16, "--online-steps", 208]
    steps += ["--evaluations", 1]
    output = run_script("from_records.py", *steps, cwd=tmp_path)
    folder = tmp_path / "runs/from_records"
    assert (folder / "comparison.png").read_bytes().startswith(PNG)
    assert (folder / "minari/pendulum/teacher-v0").is_dir()
    assert "Recorded 250 steps in 2 episodes as pendulum/teacher-v0" in output
    assert len(re.findall(r"^BN.*: a mean return of -\d+\.\d at the end, a score of -?\d", output, flags=re.MULTILINE)) == 4
    assert BNIQL.load(folder / "model.zip").num_timesteps == 16 + 208


def test_bootstrap_interval():
    """For two seeds the resampled mean is one of three: the lower, the middle or the higher value."""
    import runpy

    pytest.importorskip("matplotlib")
    interval = runpy.run_path(str(FOLDER / "compare.py"))["bootstrap_interval"]
    low, high = interval(np.array([[1.0, 3.0], [5.0, 5.0]]))
    np.testing.assert_array_equal(low, [1, 5])
    np.testing.assert_array_equal(high, [3, 5])
    (low,), (high,) = interval(np.random.default_rng(1).normal(size=(1, 400)))
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.15)
