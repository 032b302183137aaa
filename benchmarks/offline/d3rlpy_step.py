"""
One gradient step of d3rlpy's IQL, TD3+BC and AWAC, from given weights and a given minibatch, all in float64.

It runs in d3rlpy's own environment, which ``make bench-offline-speed`` builds::

    benchmarks/offline/envs/d3rlpy/bin/python benchmarks/offline/d3rlpy_step.py FILE [SEED]

``FILE`` gets all that the step was made of and all that it made, ``case/kind/name`` each: the numbers of the ``batch``, the
parameters ``before`` and ``after``, and of each parameter the ``gradient``. ``tests/test_offline_peers.py`` makes the same
steps with this package, and compares. The reference beside that test is the file of seed 0.

The arrays are named as this package's networks are: an actor, Q-networks 0 and 1, their targets, a value function; of each the
layers, counted from 0.
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

OBS_DIM, ACTION_DIM, UNITS, BATCH_SIZE = 4, 2, (8, 8), 12
GAMMA, TAU, RATE, EPS = 0.97, 0.1, 1e-2, 1e-3
EXPECTILE, BETA, WEIGHT_LIMIT = 0.75, 3.0, 2.0
"""Of IQL. d3rlpy has the expectile in float32, where 0.75 is exact."""
ALPHA, SIGMA, CLIP = 2.5, 0.2, 0.3
"""Of TD3+BC"""
LAM = 0.7
"""AWAC's temperature"""
LOG_STD_RANGES = {"iql": (-5.0, 2.0), "awac": (-6.0, 0.0)}

CASES = {
    "iql": "V and actor at their rates, and the critics to r: d3rlpy's take V before its step, the authors' V after it",
    "iql_without_v": "V stays, so that the critics' target r + gamma V(s') is the same in both orders",
    "td3_bc": "critics, actor and targets",
    "awac": "critics to r, for d3rlpy's target is SAC's, with an entropy coefficient of 1; actor with the new critics",
}
"""What each compares"""


def problem(case: str, seed: int) -> dict[str, dict[str, Any]]:
    """
    :param case: One of :data:`CASES`
    :param seed: Seed of all its numbers
    :return: The minibatch and the parameters before the step
    """
    rng = np.random.default_rng([seed, sorted(CASES).index(case)])

    def layers(name: str, n_inputs: int, n_outputs: int) -> dict[str, Any]:
        sizes = (n_inputs, *UNITS, n_outputs)
        arrays: dict[str, Any] = {}
        for index, (rows, columns) in enumerate(zip(sizes[1:], sizes[:-1], strict=True)):
            arrays[f"{name}.{index}.weight"] = rng.normal(size=(rows, columns)) / columns**0.5
            arrays[f"{name}.{index}.bias"] = 0.1 * rng.normal(size=rows)
        return arrays

    before = layers("actor", OBS_DIM, ACTION_DIM)
    for name in ("q0", "q1", "q0_target", "q1_target"):
        before |= layers(name, OBS_DIM + ACTION_DIM, 1)
    if case == "td3_bc":
        before |= layers("actor_target", OBS_DIM, ACTION_DIM)
    else:
        before["actor.log_std"] = rng.uniform(-1.5, -0.5, ACTION_DIM)
    if case.startswith("iql"):
        before |= layers("value", OBS_DIM, 1)
    if case == "iql_without_v":
        before["value.2.bias"] -= 0.8  # so that there are advantages of both signs, and weights beyond the limit
    batch = dict(
        observations=rng.normal(size=(BATCH_SIZE, OBS_DIM)),
        actions=rng.uniform(-1, 1, size=(BATCH_SIZE, ACTION_DIM)),
        rewards=rng.normal(size=(BATCH_SIZE, 1)),
        next_observations=rng.normal(size=(BATCH_SIZE, OBS_DIM)),
        terminals=(rng.random((BATCH_SIZE, 1)) < (0.3 if case in ("iql_without_v", "td3_bc") else 2)).astype(float),
        # Of the next actions and of the policy's own; TD3+BC takes the first
        noise=rng.normal(size=(2, BATCH_SIZE, ACTION_DIM)),
    )
    # SB3 hands observations over in float32
    batch = {name: value.astype(np.float32).astype(float) for name, value in batch.items()}
    return dict(batch=batch, before=before)


def main() -> None:
    """Write the file."""
    path, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    arrays = {}
    for case in CASES:
        made = problem(case, seed)
        for kind, named in (made | d3rlpy_step(case, made["batch"], made["before"])).items():
            arrays |= {f"{case}/{kind}/{name}": value for name, value in named.items()}
    np.savez_compressed(path, **arrays)


def d3rlpy_step(case: str, batch: dict[str, Any], before: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """
    :param case: One of :data:`CASES`
    :param batch: The minibatch
    :param before: The parameters before the step
    :return: The parameters after it, and their gradients
    """
    import d3rlpy
    import torch as th
    from d3rlpy.torch_utility import TorchMiniBatch

    algorithm = made_algorithm(case, d3rlpy)
    algorithm.create_impl((OBS_DIM,), ACTION_DIM)
    modules = algorithm.impl.modules
    parameters = named_parameters(modules, th)
    assert parameters.keys() == before.keys()
    for name, value in before.items():
        parameters[name].data = th.from_numpy(raw_log_std(case, value)[None] if name == "actor.log_std" else value.copy())
    for optimizer in (modules.actor_optim.optim, modules.critic_optim.optim):
        (group,) = optimizer.param_groups
        if case == "iql_without_v" and optimizer is modules.critic_optim.optim:
            of_value = {id(value) for name, value in parameters.items() if name.startswith("value")}
            still = [param for param in group["params"] if id(param) in of_value]
            group["params"] = [param for param in group["params"] if id(param) not in of_value]
            optimizer.add_param_group(dict(params=still, lr=0.0))

    tensors = {name: th.from_numpy(value) for name, value in batch.items()}
    noise = list(tensors.pop("noise"))

    def drawn(shape: Any, *_: Any, **__: Any) -> Any:
        return noise.pop(0).reshape(tuple(shape))

    minibatch = TorchMiniBatch(
        **tensors,
        next_actions=tensors["actions"],
        returns_to_go=th.zeros_like(tensors["rewards"]),
        intervals=th.ones_like(tensors["rewards"]),
        device="cpu:0",
    )
    with mock.patch.object(th, "randn", drawn), mock.patch("torch.distributions.normal._standard_normal", drawn):
        algorithm.impl.update(minibatch, 0)

    states = modules.actor_optim.optim.state | modules.critic_optim.optim.state
    # After one step Adam's first moment is a tenth of the gradient
    gradients = {name: states[param]["exp_avg"] * 10 for name, param in parameters.items() if param in states}
    if case == "awac":  # d3rlpy's loss is the sum, not the mean
        gradients |= {name: value / BATCH_SIZE for name, value in gradients.items() if name.startswith("actor")}
    after = {name: param.detach() for name, param in parameters.items()}
    return dict(
        after={name: value.numpy() for name, value in after.items()},
        gradient={name: value.numpy() for name, value in gradients.items()},
    )


def made_algorithm(case: str, d3rlpy: Any) -> Any:
    """
    :param case: One of :data:`CASES`
    :param d3rlpy: That module
    :return: The algorithm with the settings above
    """
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=list(UNITS))
    adam = d3rlpy.optimizers.AdamFactory(eps=EPS)
    common: dict[str, Any] = dict(
        actor_learning_rate=RATE,
        critic_learning_rate=RATE,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        critic_optim_factory=adam,
        actor_optim_factory=adam,
        batch_size=BATCH_SIZE,
        gamma=GAMMA,
        tau=TAU,
    )
    if case == "td3_bc":
        own: dict[str, Any] = dict(alpha=ALPHA, target_smoothing_sigma=SIGMA, target_smoothing_clip=CLIP)
        config = d3rlpy.algos.TD3PlusBCConfig(**common, **own, update_actor_interval=1)
    elif case == "awac":
        # Of a loss that is larger by a factor, Adam makes the same step if its epsilon is
        common["actor_optim_factory"] = d3rlpy.optimizers.AdamFactory(eps=EPS * BATCH_SIZE)
        config = d3rlpy.algos.AWACConfig(**common, lam=LAM)
    else:
        own = dict(expectile=EXPECTILE, weight_temp=BETA, max_weight=WEIGHT_LIMIT, value_encoder_factory=encoder)
        config = d3rlpy.algos.IQLConfig(**common, **own)
    return config.create(device="cpu:0")


def named_parameters(modules: Any, th: Any) -> dict[str, Any]:
    """
    :param modules: The networks of a d3rlpy algorithm
    :param th: PyTorch
    :return: Their parameters, by this file's names
    """
    networks = {"actor": modules.policy}
    networks |= {f"q{index}": network for index, network in enumerate(modules.q_funcs)}
    networks |= {f"q{index}_target": network for index, network in enumerate(modules.targ_q_funcs)}
    for name, attribute in (("actor_target", "targ_policy"), ("value", "value_func")):
        if hasattr(modules, attribute):
            networks[name] = getattr(modules, attribute)
    named = {}
    for name, network in networks.items():
        linears = [module for module in network.modules() if isinstance(module, th.nn.Linear)]
        for index, linear in enumerate(linears):
            named |= {f"{name}.{index}.weight": linear.weight, f"{name}.{index}.bias": linear.bias}
    if isinstance(getattr(modules.policy, "_logstd", None), th.nn.Parameter):
        named["actor.log_std"] = modules.policy._logstd
    return named


def raw_log_std(case: str, log_std: Any) -> Any:
    """
    d3rlpy keeps the logarithm of the standard deviation in its range by a sigmoid.

    :param case: One of :data:`CASES`
    :param log_std: That logarithm
    :return: What d3rlpy's parameter is
    """
    low, high = LOG_STD_RANGES[case.partition("_")[0]]
    share = (log_std - low) / (high - low)
    return np.log(share / (1 - share))


if __name__ == "__main__":
    main()
