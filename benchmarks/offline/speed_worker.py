"""The contenders of one virtual environment, for :mod:`benchmarks.offline.speed`: makes the steps that the parent asks for."""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.offline.contenders import CONTENDERS, Contender

OBS_DIM, ACTION_DIM, BATCH_SIZE, UNITS = 17, 6, 256, [256, 256]
"""Of HalfCheetah, and the authors' networks"""
N_EPISODES, EPISODE_LENGTH = 20, 1000


def dataset() -> dict[str, Any]:
    """
    :return: Synthetic transitions, the same for all: standard normal states and rewards, uniform actions; episodes are cut off
    """
    rng = np.random.default_rng(0)
    n = N_EPISODES * EPISODE_LENGTH
    observations = rng.standard_normal((n, OBS_DIM), dtype=np.float32)
    return dict(
        observations=observations,
        actions=rng.uniform(-1, 1, (n, ACTION_DIM)).astype(np.float32),
        rewards=rng.standard_normal(n, dtype=np.float32),
        next_observations=np.roll(observations, -1, axis=0),
        terminations=np.zeros(n, dtype=bool),
        truncations=np.arange(n) % EPISODE_LENGTH == EPISODE_LENGTH - 1,
    )


Steps = dict[str, Callable[[int], Any]]
"""Of ``"learning"`` and ``"update"``, what makes a number of gradient steps."""


def ours(contender: Contender) -> Steps:
    """
    :param contender: One of this package
    :return: ``learn``; the step alone, on one minibatch
    """
    from gymnasium import spaces

    import sb3_bn_ddpg
    from sb3_bn_ddpg.offline.no_environment import no_environment

    env = no_environment(spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32), spaces.Box(-1, 1, (ACTION_DIM,), np.float32))
    kwargs = contender.kwargs | dict(policy_kwargs=dict(net_arch=UNITS) | contender.kwargs["policy_kwargs"])
    algorithm = getattr(sb3_bn_ddpg, contender.algorithm)
    model = algorithm("MlpPolicy", env, dataset(), batch_size=BATCH_SIZE, seed=0, device="cpu", **kwargs)
    model.learn(20, log_interval=None)
    expected = {True: "FastUpdate", "compiled": "CompiledUpdate", False: "NoneType"}[contender.kwargs["fast_update"]]
    assert type(model._fast_update).__name__ == expected
    batch = model._sample(BATCH_SIZE)

    def update(count: int) -> None:
        for index in range(count):
            model._gradient_step(batch, index % model.policy_delay == 0)

    return dict(learning=lambda count: model.learn(count, log_interval=None), update=update)


def theirs(contender: Contender) -> Steps:
    """
    :param contender: One of d3rlpy
    :return: ``fit``; the step alone, on one minibatch
    """
    import d3rlpy
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # says at each call of fit what it does
    data = dataset()
    buffer = d3rlpy.dataset.MDPDataset(
        data["observations"], data["actions"], data["rewards"], data["terminations"], data["truncations"]
    )
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=UNITS)
    encoders = dict(actor_encoder_factory=encoder, critic_encoder_factory=encoder)
    if contender.algorithm == "IQL":
        config: Any = d3rlpy.algos.IQLConfig(batch_size=BATCH_SIZE, value_encoder_factory=encoder, **encoders)
    else:
        scaler = d3rlpy.preprocessing.StandardObservationScaler()
        config = d3rlpy.algos.TD3PlusBCConfig(batch_size=BATCH_SIZE, observation_scaler=scaler, **encoders)
    algorithm = config.create(device="cpu:0")
    quiet = dict(show_progress=False, logger_adapter=d3rlpy.logging.NoopAdapterFactory())

    def fit(count: int) -> None:
        algorithm.fit(buffer, n_steps=count, n_steps_per_epoch=count, save_interval=count + 1, **quiet)

    fit(20)
    batch = buffer.sample_transition_batch(BATCH_SIZE)

    def update(count: int) -> None:
        for _ in range(count):
            algorithm.update(batch)

    return dict(learning=fit, update=update)


def main() -> None:
    """Answer requests, a line each: the contender, what it is to do, and how many steps."""
    environment = sys.argv[1]
    import torch as th

    th.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    packages = ("torch", "numpy", "d3rlpy" if environment == "d3rlpy" else "sb3-bn-ddpg")
    print(json.dumps({name: importlib.metadata.version(name) for name in packages}), file=answers, flush=True)
    made: dict[str, Steps] = {}
    for line in sys.stdin:
        name, what, count = json.loads(line)
        if name not in made:
            made[name] = (theirs if environment == "d3rlpy" else ours)(CONTENDERS[name])
        wall, cpu = time.perf_counter(), time.process_time()
        made[name][what](count)
        seconds = dict(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main()
