"""What every test file uses: one torch thread a process, a small network, and a filled replay buffer."""

import signal
from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.critic_step import step
from sb3_bn_ddpg.deterministic.step import acting
from sb3_bn_ddpg.networks.actor_critic import Networks
from sb3_bn_ddpg.networks.norm_layers import PassNorm
from sb3_bn_ddpg.networks.statistics import PassStatistics

SMALL = dict(net_arch=[16, 12])


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    What one process of ``--dist loadgroup`` runs: all that is compiled, which each process would compile anew for half a
    minute; and the tests of a file that share what it has prepared.
    """
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
            continue
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(isinstance(value, str) and value == "compiled" for value in parameters):
            item.add_marker(pytest.mark.xdist_group("compiled"))
        elif any(definition.scope == "module" for definitions in fixtures for definition in definitions):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(autouse=True)
def small_stays_small():
    """SB3's DDPG writes into the ``policy_kwargs`` that it is given, which would be those of all later tests."""
    before = dict(SMALL)
    yield
    changed, _ = dict(SMALL), SMALL.clear()
    SMALL.update(before)
    assert changed == before


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tests run side by side: more threads only make them wait for each other
    th.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    # A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class VectorEnv(gym.Env):
    """Random states, actions and rewards of given dimensions; episodes of ``ep_length`` steps, cut off, not terminated."""

    def __init__(self, obs_dim: int = 4, action_dim: int = 2, ep_length: int = 20, high: float = 1.0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,))
        self.action_space = spaces.Box(-high, high, (action_dim,))
        self.ep_length = ep_length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return self._observation(), float(self.np_random.normal()), False, self.steps >= self.ep_length, {}

    def get_checkpoint_state(self) -> int:
        return self.steps

    def set_checkpoint_state(self, state: int) -> None:
        self.steps = state

    def _observation(self) -> np.ndarray:
        # Off centre and unequally scaled, so that running statistics have somewhere to go
        dim = self.observation_space.shape[0]
        return (self.np_random.normal(size=dim) * np.arange(1, dim + 1) + 2).astype(np.float32)


class SpaceEnv(gym.Env):
    """Random observations of any space, actions of any box."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action.astype(self.action_space.dtype)), action
        self.steps += 1
        return self.observation_space.sample(), 1.0, False, self.steps >= 10, {}


@pytest.fixture
def make_model() -> Callable[..., BNDDPG]:
    """A function that makes a small seeded model; keyword arguments override."""

    def make(env: Any = None, **kwargs: Any) -> BNDDPG:
        arguments: dict[str, Any] = dict(
            buffer_size=1000, learning_starts=20, batch_size=16, policy_kwargs=SMALL, seed=0, device="cpu"
        )
        return BNDDPG("MlpPolicy", VectorEnv() if env is None else env, **(arguments | kwargs))

    return make


@pytest.fixture
def zoo_registrations():
    """What a test registers with RL Zoo is gone after it: later tests of the same process see the Zoo too."""
    pytest.importorskip("rl_zoo3")
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from sb3_bn_ddpg import zoo

    tables: list[dict[str, Any]] = [zoo.ALGORITHMS, ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER]  # type: ignore[list-item]
    contents = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, contents, strict=True):
        table.clear()
        table.update(content)


class StopAt(BaseCallback):
    """Ends a training in the middle of a step, as a callback does or Ctrl-C."""

    def __init__(self, step, interrupts=False):
        super().__init__()
        self.step, self.interrupts = step, interrupts

    def _on_step(self):
        if self.num_timesteps < self.step:
            return True
        if self.interrupts:
            raise KeyboardInterrupt
        return False


def learns(model: BNDDPG, total_timesteps: int, reached: Callable[[], bool], every: int = 500) -> bool:
    """Train until the aim is reached, which is looked at every so many steps, and not longer than so many; whether it was."""
    while not reached():
        if model.num_timesteps >= total_timesteps:
            return False
        model.learn(every, reset_num_timesteps=False)
    return True


class DoubleExtractor(FlattenExtractor):
    """SB3 hands observations over in float32; some comparisons are in float64."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


Module = TypeVar("Module", bound=nn.Module)


def with_modes(network: Module) -> Module:
    """The network with PyTorch's own batch norm in the place of ours, which follows its mode: for what a test expects."""
    for layer in network.modules():
        if isinstance(layer, PassNorm):
            layer.__class__ = next(kind for kind in type(layer).__mro__ if not issubclass(kind, PassNorm))
    return network


def random_batch(model: Any, size: int = 32, seed: int = 0) -> ReplayBufferSamples:
    """Transitions between random states of the model's spaces, some of them terminal."""
    generator = th.Generator().manual_seed(seed)
    obs_shape, action_shape = (size, *model.observation_space.shape), (size, *model.action_space.shape)

    def normal(*shape: int) -> th.Tensor:
        return th.randn(*shape, generator=generator).to(model.device)

    return ReplayBufferSamples(
        observations=normal(*obs_shape) * 2 + 1,
        actions=normal(*action_shape).clamp(-1, 1),
        next_observations=normal(*obs_shape) * 2 + 1.5,
        dones=(normal(size, 1) > 1).float(),
        rewards=normal(size, 1),
    )


def as_double(batch: ReplayBufferSamples) -> ReplayBufferSamples:
    """The batch in float64."""
    return type(batch)(*(None if entry is None else entry.double() for entry in batch))


def td_target(nets: Networks, batch: ReplayBufferSamples, gamma: float, statistics: PassStatistics) -> th.Tensor:
    """Of the deterministic policy, without noise."""
    return step.td_target(nets, batch, gamma, statistics, acting(None))


def joint_pass(nets: Networks, batch: ReplayBufferSamples, gamma: float, statistics: PassStatistics) -> tuple[Any, ...]:
    """Of the deterministic policy, without noise, of one critic."""
    (q_values, *_), target, features = step.joint_pass(nets, batch, gamma, statistics, acting(None))
    return q_values, target, features


@pytest.fixture
def double(monkeypatch):
    """``double_model``, of which the fast update knows the features extractor."""
    from fast_updates import double_model

    monkeypatch.setattr("sb3_bn_ddpg.fast.support.FlattenExtractor", DoubleExtractor)
    return double_model


@pytest.fixture
def double_pair(double):
    """A function that makes the same model twice, updating by a path and by autograd."""

    def make(path: bool | str = True, **kwargs: Any) -> tuple[BNDDPG, BNDDPG]:
        return double(path, **kwargs), double(path, **kwargs | dict(fast_update=False))

    return make
