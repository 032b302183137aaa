"""From a variant's plain values to a model."""

import copy
from typing import Any

import numpy as np
import torch as th
from sb3_contrib import CrossQ
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.learning.contenders import Variant
from benchmarks.learning.crossq_graph import GraphedCrossQ
from benchmarks.learning.evaluation import make_env
from benchmarks.learning.matrix import LEARNING_STARTS, VARIANTS, Unit
from benchmarks.learning.store import UnitFile
from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3, OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.profiles.action_noise import build_action_noise
from sb3_bn_ddpg.profiles.schedules import build_schedules

OURS: dict[str, type[OffPolicyAlgorithm]] = {"bn_ddpg": BNDDPG, "bn_td3": BNTD3, "bn_sac": BNSAC}
ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"ddpg": DDPG, "td3": TD3, "crossq": CrossQ} | OURS


def build(variant: Variant, env: VecEnv, seed: int, device: str = "cpu") -> OffPolicyAlgorithm:
    """
    :param variant: The contender
    :param env: The training environment
    :param seed: Seed of networks, exploration and replay sampling
    :param device: ``"cpu"`` or ``"cuda"``
    :return: The model, with one torch thread
    """
    th.set_num_threads(1)
    kwargs: dict[str, Any] = copy.deepcopy(variant.kwargs)  # SB3 adds its own entries to policy_kwargs
    if "action_noise" in kwargs:
        kwargs["action_noise"] = build_action_noise(kwargs["action_noise"], env.action_space.shape or ())
    build_schedules(kwargs)
    if variant.algorithm in OURS and device == "cpu":
        kwargs.setdefault("fast_update", "compiled")  # falls back by itself for what it does not know
    algorithm: Any = ALGORITHMS[variant.algorithm]
    if variant.algorithm == "crossq" and device == "cuda":
        algorithm = GraphedCrossQ
    kwargs.setdefault("learning_starts", LEARNING_STARTS)
    model: OffPolicyAlgorithm = algorithm("MlpPolicy", env, seed=seed, device=device, **kwargs)
    if isinstance(model.action_noise, OrnsteinUhlenbeckNoise):
        # The stored runs are from before seeds meant another generator; their tasks draw random numbers at resets only
        model.action_noise.set_random_seed(np.random.default_rng(seed))
    return model


def build_or_resume(unit: Unit, file: UnitFile, device: str = "cpu") -> OffPolicyAlgorithm:
    """
    :param unit: The unit
    :param file: Its file; rows that the resumed training will write again are removed
    :param device: ``"cpu"`` or ``"cuda"``
    :return: The model, with its environment: from the unit's checkpoint if there is one, else a new one
    """

    def env() -> VecEnv:
        return DummyVecEnv([lambda: make_env(unit.task)])

    if file.checkpoint is not None and file.checkpoint.exists():
        th.set_num_threads(1)
        model = BNDDPG.resume(file.checkpoint, env(), device)
        if file.go_on_from(model.num_timesteps):
            return model
    file.rows.clear()
    return build(VARIANTS[unit.variant], env(), unit.seed, device)
