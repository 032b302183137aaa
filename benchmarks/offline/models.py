"""From a unit of the offline benchmark to what learns: one of this project's algorithms, or d3rlpy's."""

from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.learning.evaluation import make_env
from benchmarks.learning.matrix import VARIANTS, Unit, kwargs_of
from benchmarks.offline.d3rlpy_model import D3rlpyModel
from benchmarks.offline.data import dataset
from benchmarks.offline.variants import PEERS, Recipe
from sb3_bn_ddpg import BNAWAC, BNBCQ, BNIQL, BNTD3BC

CLASSES: dict[str, type[OffPolicyAlgorithm]] = {
    "bn_iql": BNIQL,
    "bn_td3_bc": BNTD3BC,
    "bn_awac": BNAWAC,
    "bn_bcq": BNBCQ,
}


def build_offline(unit: Unit, device: str) -> OffPolicyAlgorithm | D3rlpyModel:
    """
    :param unit: A unit that learns from a dataset
    :param device: ``"cpu"`` or ``"cuda"``; d3rlpy's are on the processor
    :return: The model, with one torch thread
    """
    variant = VARIANTS[unit.variant]
    if variant.algorithm in PEERS:
        return D3rlpyModel(unit)
    th.set_num_threads(1)
    kwargs = dict(kwargs_of(unit))
    kind, recipe = kwargs.pop("dataset"), Recipe(**kwargs.pop("recipe"))
    if device == "cpu":
        kwargs["fast_update"] = "compiled"
    algorithm: Any = CLASSES[variant.algorithm]
    env = DummyVecEnv([lambda: make_env(unit.task)])
    model: OffPolicyAlgorithm = algorithm(
        "MlpPolicy", env, dataset(unit.task, kind, recipe), seed=unit.seed, device=device, **kwargs
    )
    return model
