"""
Spaces and hyperparameters drawn by hypothesis: ``python -m benchmarks.reliability.configurations`` draws 2,000 of them. Each
either trains for five steps or is refused with a ``ValueError`` when the model is made.
"""

import argparse
import signal
import warnings
from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule

from sb3_bn_ddpg import BNDDPG, OrnsteinUhlenbeckNoise

TIME_LIMIT = 60
"""Seconds, after which a configuration counts as one that hangs"""
N_STEPS = 5


class SampleEnv(gym.Env):
    """Random observations of any space, short episodes."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, reward_scale: float) -> None:
        self.observation_space, self.action_space, self.reward_scale = observation_space, action_space, reward_scale
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        # Of any type, as SB3's are: gymnasium takes none for contained whose type is wider
        space = self.action_space
        action = np.asarray(action, dtype=space.dtype)
        assert space.contains(action), f"the action {action} is not in {space}"
        self.n_steps += 1
        reward = self.reward_scale * self.np_random.normal()
        return self._observation(), reward, self.n_steps == 4, self.n_steps == 3 and reward > 0, {}

    def _observation(self) -> Any:
        """A sample; within wide bounds its numbers are moderate, as single precision cannot hold the squares of others."""
        sample = self.observation_space.sample()
        if isinstance(self.observation_space, spaces.Box) and sample.dtype.kind == "f":
            return sample.clip(-1e6, 1e6).astype(sample.dtype)
        return sample


SHAPES = st.one_of(st.just((3,)), st.lists(st.integers(0, 4), max_size=3).map(tuple))
IMAGE_SHAPES = st.tuples(st.sampled_from([1, 8, 36, 40]), st.sampled_from([36, 40]), st.sampled_from([1, 3, 4]))
FLOATS = st.sampled_from([np.float32, np.float64, np.float16])
INTEGERS = st.sampled_from([np.uint8, np.int8, np.int32, np.int64])


@st.composite
def boxes(draw: Any) -> spaces.Box:
    """Boxes of any shape, type and bounds."""
    shape = draw(SHAPES)
    if draw(st.booleans()):
        low = draw(st.sampled_from([-1.0, 0.0, -np.inf, -1e30, -1e-30, 3.0, -7.5]))
        high = draw(st.sampled_from([1.0, np.inf, 1e30, 1e-30, 3.0, 100.0]))
        dtype = np.float64 if 1e30 in (-low, high) else draw(FLOATS)
    else:
        low, high, dtype = draw(st.sampled_from([0, -3, 1])), draw(st.sampled_from([0, 1, 100])), draw(INTEGERS)
        low = max(low, np.iinfo(dtype).min)
    return spaces.Box(min(low, high), max(low, high), shape, dtype)


IMAGES = IMAGE_SHAPES.map(lambda shape: spaces.Box(0, 255, shape, np.uint8))
FLAT_SPACES = st.one_of(
    boxes(),
    IMAGES,
    st.integers(1, 5).map(spaces.Discrete),
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.integers(1, 4).map(spaces.MultiBinary),
)
OBSERVATION_SPACES = st.one_of(
    boxes(),
    FLAT_SPACES,
    st.dictionaries(st.sampled_from(["a", "b", "c.d", ""]), FLAT_SPACES, max_size=3).map(spaces.Dict),
    st.lists(FLAT_SPACES, min_size=1, max_size=2).map(lambda each: spaces.Tuple(each)),
    st.just(spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2)))),
)
# Most of them allowed: of the others one says as much as a hundred
ACTION_SPACES = st.one_of(
    st.tuples(SHAPES, st.sampled_from([(-1, 1), (0, 1), (-2, 5), (-1e-3, 1e3)]), FLOATS).map(
        lambda drawn: spaces.Box(*drawn[1], drawn[0], drawn[2])
    ),
    st.just(spaces.Box(-1, 1, (2,))),
    st.just(spaces.Box(-1, 1, (1,))),
    boxes(),
    FLAT_SPACES,
)
SCHEDULES = st.sampled_from([LinearSchedule(1e-3, 1e-4, 1.0), LinearSchedule(1e-3, -1.0, 1.0)])
RATES = st.one_of(st.floats(0, 0.1), st.sampled_from([-1.0, 1.0, float("nan"), float("inf"), None, "fast"]), SCHEDULES)
STATISTICS = st.sampled_from(["running", "batch", "running_update", "batch_update"])
HYPERPARAMETERS = dict(
    learning_rate=RATES,
    critic_learning_rate=RATES,
    buffer_size=st.sampled_from([0, 1, 2, 5, 50]),
    learning_starts=st.sampled_from([0, 1, 3, -1]),
    batch_size=st.sampled_from([2, 3, 8, 1, 0, 2.0, 2.5, None]),
    tau=st.one_of(st.floats(0, 1), st.sampled_from([-0.1, 1.1, None])),
    gamma=st.one_of(st.floats(0, 1), st.sampled_from([-0.1, 1.1, "1"])),
    train_freq=st.sampled_from([1, 2, 7, (1, "episode"), (2, "step"), 0, (1, "minute"), None, (1,), [1, "step"], "x", 2.0]),
    gradient_steps=st.sampled_from([1, 2, -1, 0, -2, 1.5, 1.0]),
    action_noise=st.sampled_from(
        [
            "ou",
            None,
            "pink",
            OrnsteinUhlenbeckNoise(np.zeros(2)),
            NormalActionNoise(np.zeros(2), np.ones(2)),
            OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)),
        ]
    ),
    optimize_memory_usage=st.booleans(),
    replay_buffer_kwargs=st.sampled_from([None, {}, dict(handle_timeout_termination=False)]),
    n_steps=st.sampled_from([1, 2, 3, 0, 7]),
    critic_weight_decay=st.sampled_from([0.0, 1e-2, -1.0]),
    use_target_networks=st.sampled_from([True, False, None]),
    fast_update=st.booleans(),
    target_statistics=STATISTICS,
    target_statistics_sync=st.sampled_from(["copy", "polyak", None]),
    critic_loss_statistics=STATISTICS,
    actor_loss_actor_statistics=STATISTICS,
    actor_loss_critic_statistics=STATISTICS,
    stats_window_size=st.sampled_from([1, 100, 0]),
    seed=st.sampled_from([None, 0, 2**31, 2**33, -1, "a", 1.5]),
)
POLICY_KWARGS = dict(
    net_arch=st.sampled_from([[4], [], (4, 3), [3, 3, 3], dict(pi=[3], qf=()), [0], [2.5], "4", dict(pi=[3]), [[4]], [4.0]]),
    activation_fn=st.sampled_from([th.nn.ReLU, th.nn.Tanh]),
    normalization=st.sampled_from(["batch", "batch_renorm", "layer", "batch_layer", None, "group"]),
    norm_momentum=st.sampled_from([0.1, 1.0, 0.0]),
    norm_eps=st.sampled_from([1e-5, 1.0, 0.0, -1.0]),
    renorm_warmup_steps=st.sampled_from([0, 2, 1.5]),
    final_init=st.sampled_from([3e-3, 0.0, 10.0]),
    action_layer=st.sampled_from([1, 2, 9, 0]),
    critic_norm_layers=st.sampled_from(["before_action", "all", "none"]),
    optimizer_class=st.sampled_from([th.optim.Adam, th.optim.SGD]),
    share_features_extractor=st.booleans(),
    shared_extractor_loss=st.sampled_from(["actor", "critic"]),
    normalize_images=st.booleans(),
)


@st.composite
def configurations(draw: Any) -> dict[str, Any]:
    """A configuration: few hyperparameters differ from the defaults, so that not every one has something wrong with it."""
    kinds = draw(st.lists(st.sampled_from(sorted(HYPERPARAMETERS)), max_size=4, unique=True))
    arguments = {name: draw(HYPERPARAMETERS[name]) for name in kinds}
    policy_kinds = draw(st.lists(st.sampled_from(sorted(POLICY_KWARGS)), max_size=2, unique=True))
    policy_kwargs = dict(net_arch=[4, 3]) | {name: draw(POLICY_KWARGS[name]) for name in policy_kinds}
    observation_space = draw(OBSERVATION_SPACES)
    fitting = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    return dict(
        observation_space=observation_space,
        action_space=draw(ACTION_SPACES),
        reward_scale=draw(st.sampled_from([1.0, 0.0, 1e6, 1e-6])),
        n_envs=draw(st.sampled_from([1, 1, 2, 3])) if _fits_vec_env(observation_space) else 1,
        policy=draw(st.sampled_from([fitting, fitting, fitting, "MlpPolicy", "CnnPolicy", "MultiInputPolicy"])),
        arguments=dict(learning_starts=1, batch_size=4, buffer_size=20) | arguments | dict(policy_kwargs=policy_kwargs),
    )


def _fits_vec_env(space: spaces.Space) -> bool:
    """Whether SB3's ``DummyVecEnv`` can be made of environments with this observation space, before any model is."""
    entries = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return not any(isinstance(entry, (spaces.Dict, spaces.Tuple)) for entry in entries)


class Hanging(BaseException):
    """A configuration takes too long."""


def outcome(configuration: dict[str, Any]) -> str:
    """
    :param configuration: A configuration
    :return: ``"refused"``, ``"trained"``, or that the training diverged and the guard ended it
    """

    def stop(*args: Any) -> None:
        raise Hanging

    def make_env() -> gym.Env:
        return SampleEnv(*(configuration[name] for name in ("observation_space", "action_space", "reward_scale")))

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    try:
        n_envs = configuration["n_envs"]
        env = make_env() if n_envs == 1 else make_vec_env(make_env, n_envs=n_envs)
        try:
            model = BNDDPG(configuration["policy"], env, device="cpu", **configuration["arguments"])
        except ValueError:
            return "refused"
        try:
            model.learn(N_STEPS * n_envs + max(model.learning_starts, 0))
        except ValueError as error:  # as of rewards of a million with SGD
            if "not finite: training cannot go on" not in str(error):
                raise
            return "diverged, and was told so"
        assert model.num_timesteps >= N_STEPS
        return "trained"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def draw_and_try(n: int, seed_number: int = 0) -> Counter[str]:
    """
    :param n: Number of configurations
    :param seed_number: Seed of the drawing
    :return: How many had which outcome
    """
    outcomes: Counter[str] = Counter()

    @seed(seed_number)
    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(configurations())
    def try_one(configuration: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes[outcome(configuration)] += 1

    try_one()
    return outcomes


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=2000, help="number of configurations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    for what, number in sorted(draw_and_try(options.n, options.seed).items()):
        print(what, number)


if __name__ == "__main__":
    main()
