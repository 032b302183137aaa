"""From a unit of the offline benchmark to what learns: one of this project's algorithms, or d3rlpy's."""

from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.learning.evaluation import make_env
from benchmarks.learning.matrix import VARIANTS, Unit, kwargs_of
from benchmarks.learning.store import UnitFile
from benchmarks.offline.d3rlpy_model import D3rlpyModel, require_environment
from benchmarks.offline.data import dataset
from benchmarks.offline.variants import PEERS, Recipe
from sb3_bn_ddpg import BNAWAC, BNBCQ, BNIQL, BNTD3BC
from sb3_bn_ddpg.datasets.transitions import transitions_of

CLASSES: dict[str, type[OffPolicyAlgorithm]] = {
    "bn_iql": BNIQL,
    "bn_td3_bc": BNTD3BC,
    "bn_awac": BNAWAC,
    "bn_bcq": BNBCQ,
}


def build_offline(unit: Unit, file: UnitFile, device: str) -> OffPolicyAlgorithm | D3rlpyModel:
    """
    :param unit: A unit that learns from a dataset
    :param file: Its file, whose first line gets a digest of the dataset: another kind of processor makes another one
    :param device: ``"cpu"`` or ``"cuda"``; d3rlpy's are on the processor
    :return: The model, with one torch thread
    """
    variant = VARIANTS[unit.variant]
    if variant.algorithm in PEERS:
        require_environment()  # before a dataset is made
    kwargs = dict(kwargs_of(unit))
    kind, recipe = kwargs.pop("dataset"), Recipe(**kwargs.pop("recipe"))
    data = dataset(unit.task, kind, recipe)
    transitions = transitions_of(data)
    file.header["dataset"] = transitions.digest()
    if variant.algorithm in PEERS:
        return D3rlpyModel(unit, transitions)
    th.set_num_threads(1)
    if device == "cpu":
        kwargs["fast_update"] = "compiled"
    algorithm: Any = CLASSES[variant.algorithm]
    env = DummyVecEnv([lambda: make_env(unit.task)])
    model: OffPolicyAlgorithm = algorithm("MlpPolicy", env, data, seed=unit.seed, device=device, **kwargs)
    return model
