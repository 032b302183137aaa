"""A training that is interrupted and resumed in another process ends with the same bits as one that was not."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import resume_runs
from resume_runs import TRAININGS, fingerprint, interrupt, whole


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """For each training, what a second process made of its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, training in TRAININGS.items():
            interrupt(training, folder / name)
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    subprocess.run([sys.executable, resume_runs.__file__, str(folder)], check=True, env=environment)
    return pickle.loads((folder / "results").read_bytes())


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resumed_equals_uninterrupted(name, resumed, tmp_path):
    expected = fingerprint(whole(TRAININGS[name], tmp_path))
    result = resumed[name]
    assert "error" not in result, result
    assert [thing for thing in expected if result.get(thing) != expected[thing]] == []
