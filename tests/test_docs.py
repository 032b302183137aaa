"""The documentation: its Python blocks run, its commands exist, its pages build, its figure is the code's."""

import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import VectorEnv
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.saving.models import SavingAlgorithm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CAP = 250
"""Environment steps that a block's ``learn`` may take here."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


WITH_PYTHON = {page: "".join(blocks(page, "python")) for page in PAGES if blocks(page, "python")}
DRAWING = [page for page, code in WITH_PYTHON.items() if "-pixels-v0" in code]
"""Those that ``rendering.py`` runs."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in DRAWING], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    run_blocks(page, tmp_path, monkeypatch, request)


def run_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    code_of_page = WITH_PYTHON[page]
    if re.search(r"import.*zoo", code_of_page):
        pytest.importorskip("rl_zoo3")
        request.getfixturevalue("zoo_registrations")
    if "record_dataset" in code_of_page:
        pytest.importorskip("minari")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    if "export_onnx" in code_of_page:
        for package in ("onnxscript", "onnxruntime", "safetensors"):
            pytest.importorskip(package)
    learn = BNOffPolicyAlgorithm.learn

    def capped_learn(model, total_timesteps, **kwargs):
        return learn(model, min(total_timesteps, CAP), **kwargs)

    monkeypatch.setattr(BNOffPolicyAlgorithm, "learn", capped_learn)
    monkeypatch.chdir(tmp_path)
    # One namespace a page: later blocks use what earlier ones made, as a reader does
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


def model_of_block(page: str, holds: str) -> Any:
    """The model that the page's one block with these words makes."""
    (block,) = [block for block in blocks(ROOT / "docs" / page, "python") if holds in block]
    namespace: dict[str, Any] = {"BNDDPG": BNDDPG, "BNSAC": BNSAC, "BNTD3": BNTD3}
    exec(block, namespace)
    return namespace["model"]


def test_example_of_the_first_profile_has_its_values():
    yaml = pytest.importorskip("yaml")
    entry = yaml.safe_load((ROOT / "hyperparams" / "bn_ddpg.yml").read_text())["default"]
    model = model_of_block("algorithm.md", "n_steps=")
    assert model.policy_kwargs == entry["policy_kwargs"]
    for name in entry.keys() - {"n_timesteps", "policy", "train_freq", "action_noise", "policy_kwargs"}:
        assert (name, getattr(model, name)) == (name, entry[name])
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (entry["train_freq"], "step")
    assert entry["action_noise"] == {"type": "normal", "sigma": model.action_noise._sigma[0]}


@pytest.mark.numerics
@pytest.mark.parametrize("fast_update", [False, True])
def test_arguments_that_make_sb3s_td3(fast_update):
    """The page's: from the same weights and random numbers, a training of each, with the same noise."""
    policy_kwargs = model_of_block("td3.md", "fan_in").policy_kwargs
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    common = dict(action_noise=noise, learning_starts=30, batch_size=64, buffer_size=1000, device="cpu")
    ours = BNTD3("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, fast_update=fast_update, **common)
    theirs = TD3("MlpPolicy", "Pendulum-v1", **common)
    pairs = list(zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True))
    for our, their in pairs:
        # PyTorch's initialisation, by its bound; the output's is drawn from 300 weights and one bias
        assert our.shape == their.shape
        if our.numel() > 1:
            assert our.abs().max().item() == pytest.approx(their.abs().max().item(), rel=0.1)
        our.data.copy_(their.data)
    for model in (ours, theirs):
        model.set_random_seed(0)
        model.learn(100)
    assert ours._n_updates == theirs._n_updates == 70
    for our, their in pairs:
        np.testing.assert_allclose(our.detach(), their.detach(), rtol=0, atol=1e-3 if fast_update else 1e-6)


@pytest.mark.numerics
@pytest.mark.parametrize("fast_update", [False, True])
def test_arguments_that_make_sb3s_sac(fast_update, monkeypatch):
    """The page's: from the same weights, and random numbers drawn in SB3's order, a training of each."""
    policy_kwargs = model_of_block("sac.md", "normalization=None").policy_kwargs
    common = dict(learning_starts=30, batch_size=64, buffer_size=1000, device="cpu")
    ours = BNSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, fast_update=fast_update, **common)
    theirs = SAC("MlpPolicy", "Pendulum-v1", **common)
    # SB3 samples for the actor's loss first
    monkeypatch.setattr(BNSAC, "_step_noise", lambda self, batch: th.stack([th.randn(64, 1), th.randn(64, 1)]).flip(0))
    for part in ("actor", "critic", "critic_target"):
        getattr(ours, part).load_state_dict(
            dict(zip(getattr(ours, part).state_dict(), getattr(theirs, part).state_dict().values(), strict=True))
        )
    for model in (ours, theirs):
        model.set_random_seed(0)
        model.learn(100)
    assert ours._n_updates == theirs._n_updates == 70
    np.testing.assert_allclose(ours.log_ent_coef.detach(), theirs.log_ent_coef.detach(), rtol=0, atol=1e-6)
    for our, their in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        np.testing.assert_allclose(our.detach(), their.detach(), rtol=0, atol=1e-3 if fast_update else 1e-5)


def test_make_targets_that_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", *ROOT.glob("benchmarks/*/README.md")]
    named = {name for page in pages for name in re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", " ".join(code(page)))}
    assert named
    assert named <= targets


def code(page: Path) -> list[str]:
    """Blocks and inline code of a page."""
    text = page.read_text()
    fenced = re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)
    return fenced + re.findall(r"`[^`\n]+`", text)


def test_tests_that_the_decisions_name_exist():
    text = (ROOT / "docs" / "decisions.md").read_text()
    named = re.findall(r"`(\w+\.py)?::(test_\w+)`", text)
    assert named
    file = ""
    for name, test in named:
        file = name or file  # `::test` is in the file named before
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


class SuccessfulEnv(gym.Wrapper):
    """Says that its episodes succeed, which SB3 then logs, too."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | {"is_success": True}


def test_logged_values_are_those_that_the_page_explains(make_model, tmp_path: Path):
    model = make_model(SuccessfulEnv(VectorEnv(ep_length=10)), reward_scaling="return_std", n_steps=2, n_steps_final=1)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    evaluation = EvalCallback(SuccessfulEnv(VectorEnv()), eval_freq=50, n_eval_episodes=1, verbose=0, warn=False)
    model.learn(120, callback=evaluation, log_interval=1)
    logged = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    _, _, section = (ROOT / "docs" / "algorithm.md").read_text().partition("\n## Logged values\n")
    explained = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    names = re.findall(r"`(\w+/\w+)`", " ".join(explained))
    assert len(names) == len(set(names))
    assert set(names) == set(logged)


@pytest.mark.slow
def test_pages_build_without_warnings(tmp_path: Path):
    pytest.importorskip("furo")  # the extra docs
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    api = (tmp_path / "api.html").read_text()
    assert "OrnsteinUhlenbeckNoise" in api
    for algorithm in (BNDDPG, BNSAC, BNTD3):
        for cls in (algorithm, BNOffPolicyAlgorithm, SavingAlgorithm):  # also what it inherits
            for name, value in vars(cls).items():
                is_method = isinstance(value, (FunctionType, classmethod, property)) and not name.startswith("_")
                assert not is_method or f'id="sb3_bn_ddpg.{algorithm.__name__}.{name}"' in api, name


@pytest.mark.slow
def test_architecture_figure_is_that_of_the_code(tmp_path: Path):
    script = tmp_path / "architecture.py"
    script.write_text((ROOT / "docs" / "figures" / "architecture.py").read_text())
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)

    def texts(svg: Path) -> list[str]:
        return re.findall(r"<!-- (.*?) -->", svg.read_text())  # Matplotlib names each text above its glyphs

    assert texts(tmp_path / "architecture.svg") == texts(ROOT / "docs" / "figures" / "architecture.svg")
    assert "batch norm 400" in texts(tmp_path / "architecture.svg")


def test_readme_shows_the_table_of_the_results():
    """As the benchmark wrote it from the stored runs, and its figure."""
    readme, results = (path.read_text() for path in (ROOT / "README.md", ROOT / "docs" / "results.md"))
    table = re.findall(r"^\| .*\n", results.split("<!-- results:")[1], flags=re.MULTILINE)
    assert len(table) >= 2 + 4
    assert "".join(table) in readme
    assert "(docs/results/overview.png)" in readme
    assert (ROOT / "docs" / "results" / "overview.png").exists()
