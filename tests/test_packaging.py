"""What is handed out: wheel and source distribution, the core without extras, and the workflow that tests them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from zoo_runs import TINY

import sb3_bn_ddpg

ROOT = Path(__file__).parents[1]
NAME = "sb3-bn-ddpg"


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command where Python does not find the checkout by itself, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"])
def installation(request: pytest.FixtureRequest, distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with this package, from the wheel or the source distribution, and our dependencies."""
    (distribution,) = distributions.glob(request.param)
    folder = tmp_path_factory.mktemp("installation")
    venv.create(folder)
    programs = folder / "bin"
    (site,) = folder.glob("lib/python*/site-packages")
    # Where *.pth files are read, but not those of the folders they add: an editable installation of the checkout stays out
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", distribution]
    run(sys.executable, "-m", "pip", "--python", programs / "python", *install, cwd=folder)
    return programs


@pytest.mark.slow
def test_installed_package_works(installation: Path, tmp_path: Path):
    code = """import importlib.util, sys, sb3_bn_ddpg
sb3_bn_ddpg.BNDDPG("MlpPolicy", "Pendulum-v1", learning_starts=10, policy_kwargs=dict(net_arch=[8, 8])).learn(20)
assert sb3_bn_ddpg.hyperparameters("bn_td3", "Pendulum-v1", "paper").n_timesteps == 1_000_000
print(sb3_bn_ddpg.__version__, sb3_bn_ddpg.__file__)"""
    version, file = run(installation / "python", "-c", code, cwd=tmp_path).split()
    package = Path(file).parent
    assert version == sb3_bn_ddpg.__version__
    assert package.is_relative_to(installation.parent)
    assert (package / "py.typed").is_file()
    shipped = {file.name: file.read_text() for file in (package / "hyperparams").iterdir()}
    assert shipped == {file.name: file.read_text() for file in (ROOT / "hyperparams").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("installation", ["*.whl"], indirect=True)  # what the source distribution installs is a wheel too
def test_installed_command_finds_its_hyperparameters(installation: Path, tmp_path: Path):
    pytest.importorskip("rl_zoo3")
    run(installation / "bn-ddpg", "train", "--env", "Pendulum-v1", "-n", "60", "--eval-freq", "-1", *TINY, cwd=tmp_path)
    (trained_with,) = tmp_path.glob("logs/bn_ddpg/Pendulum-v1_1/Pendulum-v1/config.yml")
    used = dict(yaml.unsafe_load(trained_with.read_text()))
    entry = yaml.safe_load((ROOT / "hyperparams" / "bn_ddpg.yml").read_text())["Pendulum-v1"]
    from_command_line = ("n_timesteps", "learning_starts", "buffer_size", "policy_kwargs")
    assert entry.keys() <= used.keys()
    assert all(used[name] == value for name, value in entry.items() if name not in from_command_line)


def test_metadata(distributions: Path):
    (wheel,) = distributions.glob("*.whl")
    (info,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    about = metadata.PathDistribution(info).metadata
    assert (about["Name"], about["License-Expression"], about["Author"]) == (NAME, "MIT", "sb3-bn-ddpg developers")
    assert about["Version"] == sb3_bn_ddpg.__version__
    assert info.joinpath("licenses", "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "Paper, https://arxiv.org/abs/1509.02971" in about.get_all("Project-URL")
    assert (about["Description-Content-Type"], about.get_payload()) == ("text/markdown", (ROOT / "README.md").read_text())


def test_one_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == sb3_bn_ddpg.__version__
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0] == sb3_bn_ddpg.__version__


def test_a_copy_without_metadata(tmp_path: Path):
    """As in a frozen program, or with ``PYTHONPATH``: nothing asks an installation for the version of anything."""
    code = """import importlib.metadata, sys
def nothing(name):
    raise importlib.metadata.PackageNotFoundError(name)
import stable_baselines3, torch  # which ask for their own
importlib.metadata.version = nothing
import sb3_bn_ddpg
from sb3_bn_ddpg.saving import checkpoint
model = sb3_bn_ddpg.BNDDPG("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8, 8]))
model.save_checkpoint(sys.argv[1])
sb3_bn_ddpg.BNDDPG.resume(sys.argv[1])"""
    run(sys.executable, "-c", code, str(tmp_path / "model"), cwd=tmp_path)


def test_source_distribution_is_the_repository(distributions: Path):
    """So that tests, documentation and benchmarks run from it."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {file for file in listed.stdout.splitlines() if (ROOT / file).is_file()}
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        assert files <= {name.partition("/")[2] for name in tar.getnames()}


def with_dependencies(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """An installed distribution and all that it asks for, without extras that nobody asks for."""
    seen, waiting = set(), [(name, extras)]
    while waiting:
        seen.add(each := waiting.pop())
        for line in metadata.requires(each[0]) or ():
            required = Requirement(line)
            if required.marker is None or any(required.marker.evaluate({"extra": extra}) for extra in {"", *each[1]}):
                found = (canonicalize_name(required.name), frozenset(required.extras))
                waiting += {found} - seen
    return {name for name, _ in seen}


CORE = """
import json, sys
sys.modules |= dict.fromkeys(json.loads(sys.argv[1]))  # importing them fails
from sb3_bn_ddpg import BNDDPG, load_policy
model = BNDDPG("MlpPolicy", "Pendulum-v1", learning_starts=10, policy_kwargs=dict(net_arch=[8, 8]))
model.learn(20, progress_bar=True)
model.save("model")
model.save_checkpoint("checkpoint")
BNDDPG.resume("checkpoint", "Pendulum-v1").learn(10, reset_num_timesteps=False)
observation = model.get_env().reset()
assert (BNDDPG.load("model").predict(observation)[0] == model.predict(observation)[0]).all()
for needs, extra in {
    "zoo": lambda: __import__("sb3_bn_ddpg.zoo"),
    "compiled": lambda: BNDDPG("MlpPolicy", "Pendulum-v1", fast_update="compiled"),
    "export": lambda: model.export_policy("policy.safetensors"),
    "profiles": lambda: __import__("sb3_bn_ddpg").hyperparameters("bn_ddpg", "Pendulum-v1"),
    "pixels": lambda: __import__("gymnasium").make("bn_ddpg/cartpole-swingup-pixels-v0"),
}.items():
    try:
        extra()
    except ImportError as error:
        assert f"pip install sb3-bn-ddpg[{needs}]" in str(error), error
    else:
        raise AssertionError(needs)
"""


def test_core_needs_no_extra(tmp_path: Path):
    core = with_dependencies(NAME)
    assert {"torch", "stable-baselines3", "rich"} <= core
    assert core.isdisjoint({"rl-zoo3", "optuna", "pyyaml", "pytest", "safetensors", "dm-control"})
    # By the files: Python 3.10's packages_distributions() misses those without a top_level.txt, as safetensors
    modules: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])  # parses a file each time
        for file in distribution.files or ():
            module = file.parts[0].partition(".")[0]
            if module.isidentifier() and (len(file.parts) > 1 or file.suffix in (".py", ".so")):
                modules.setdefault(module, set()).add(name)
    others = [module for module, distributions in modules.items() if core.isdisjoint(distributions)]
    assert {"pytest", "safetensors", "yaml"} <= set(others)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", CORE, json.dumps(others)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_workflow_is_ci_run_on_every_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands["ci"] == [".ci/run"]
    assert commands["lowest"][-1] == "make test-lowest"
    pythons = jobs["ci"]["strategy"]["matrix"]["python"]
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"Programming Language :: Python :: (3\.\d+)", project) == pythons
    assert f'requires-python = ">={pythons[0]}"' in project
    (lowest,) = (step["with"]["python-version"] for step in jobs["lowest"]["steps"] if "with" in step)
    assert lowest == pythons[0]
