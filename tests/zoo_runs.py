"""Running the command line as its users do: in a process of its own."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fork_server import ForkedProcess, fork

# Small networks and an early start: a run learns something within a few hundred steps
TINY = ["-params", "learning_starts:50", "buffer_size:5000", "policy_kwargs:dict(net_arch=[16, 16])"]
PATIENCE = 600
"""Seconds that a process may take on a busy machine; a limit that only a process that hangs reaches."""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}

PYTHON_FILE = """
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

class Sets(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=8):
        super().__init__(observation_space, features_dim)
        self.net = nn.Linear(3, features_dim)

    def forward(self, observations):
        return self.net(observations)

def rounded():
    return nn.Softplus()

hyperparams = {
    "Pendulum-v1": dict(
        n_timesteps=60, policy="MlpPolicy", learning_starts=50, buffer_size=1000, batch_size=8,
        policy_kwargs=dict(
            net_arch=[8], features_extractor_class=Sets, features_extractor_kwargs=dict(features_dim=5), activation_fn=rounded
        ),
    )
}
"""
"""A hyperparameter file with a class and a function in it"""


def start(*arguments: str, cwd: Path) -> ForkedProcess:
    """Start a command of ``bn-ddpg`` in the folder."""
    return fork("-m", "sb3_bn_ddpg", *arguments, cwd=cwd, env=ENVIRONMENT)


def run(*arguments: str, cwd: Path, returncode: int = 0) -> str:
    """Run a command of ``bn-ddpg`` in the folder and return what it printed."""
    process = start(*arguments, cwd=cwd)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == returncode, output
    return output


def run_code(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that ends in the command line, and return what became of it."""
    process = fork("-c", code, *arguments, cwd=cwd, env=ENVIRONMENT, merges_streams=False)
    output, errors = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def wait_for(condition: Callable[[], object], *processes: ForkedProcess | subprocess.Popen, seconds: float = PATIENCE) -> None:
    """Wait until a condition holds, as long as the processes live."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.2)
