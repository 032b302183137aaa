"""Who is measured: one line a contender. Standard library only, so that every worker's environment can import it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """
    One column of the comparison.

    :param label: Name in tables and plots
    :param subject: ``module:class`` in this folder that builds and drives it
    :param imports: The module whose import time is measured, and that holds the algorithm
    :param algorithm: Name of the algorithm's class in that module
    :param environment: Virtual environment it runs in: ``"main"`` is the one that runs the benchmark
    :param kwargs: Arguments of the constructor, besides those every contender gets
    :param learns: Whether it can run ``learn()``
    :param peer: Name of the contender that the family's table compares it with
    """

    label: str
    subject: str
    imports: str
    algorithm: str = ""
    environment: str = "main"
    kwargs: dict[str, Any] = field(default_factory=dict)
    learns: bool = True
    peer: str = ""


PACKAGES: dict[str, tuple[str, ...]] = {
    "main": ("sb3-bn-ddpg", "stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium", "mujoco"),
    "jax": ("sbx-rl", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "mujoco"),
    "tianshou": ("tianshou", "torch", "numpy", "gymnasium", "mujoco"),
}
"""Of each virtual environment, those whose versions are recorded."""

SB3, FLOOR_SUBJECT = "sb3_subject:SB3Subject", "floor:FloorSubject"

DDPGS: dict[str, Contender] = {
    "bnddpg": Contender("BNDDPG", SB3, "sb3_bn_ddpg", "BNDDPG"),
    "bnddpg_compiled": Contender("BNDDPG, compiled", SB3, "sb3_bn_ddpg", "BNDDPG", kwargs=dict(fast_update="compiled")),
    "bnddpg_no_norm": Contender(
        "BNDDPG, no batch norm", SB3, "sb3_bn_ddpg", "BNDDPG", kwargs=dict(policy_kwargs=dict(normalization=None))
    ),
    "bnddpg_autograd": Contender("BNDDPG by autograd", SB3, "sb3_bn_ddpg", "BNDDPG", kwargs=dict(fast_update=False)),
    "sb3_ddpg": Contender("SB3 DDPG", SB3, "stable_baselines3", "DDPG"),
    "sb3_td3": Contender("SB3 TD3", SB3, "stable_baselines3", "TD3", peer="sb3_td3"),
    "crossq": Contender("sb3-contrib CrossQ", SB3, "sb3_contrib", "CrossQ", peer="crossq"),
    "sbx_ddpg": Contender("SBX DDPG (JAX)", SB3, "sbx", "DDPG", environment="jax"),
    "tianshou_ddpg": Contender(
        "Tianshou DDPG", "tianshou_subject:TianshouSubject", "tianshou.algorithm", "DDPG", environment="tianshou"
    ),
    "floor": Contender("Floor (matrix products)", FLOOR_SUBJECT, "torch", learns=False),
    "whole_floor": Contender("Floor with Adam, targets, sampling", "floor:WholeFloorSubject", "torch", learns=False),
}
"""In the order of the tables."""

COMPILES: dict[str, Any] = dict(fast_update="compiled")
JOINT: dict[str, Any] = dict(use_target_networks=False, target_statistics="joint")
CROSSQ: dict[str, Any] = JOINT | dict(
    learning_rate=1e-3,
    policy_delay=3,
    policy_kwargs=dict(
        normalization="batch_renorm",
        norm_order="after_activation",
        norm_momentum=0.01,
        norm_eps=1e-3,
        critic_input_norm="state_action",
        critic_norm_layers="all",
        action_layer=1,
        optimizer_kwargs=dict(betas=(0.5, 0.999)),
    ),
)
"""``sb3_bn_ddpg.CROSSQ`` without its widths, which are the measurement's."""


def _ours(label: str, algorithm: str, peer: str, **kwargs: Any) -> Contender:
    return Contender(label, SB3, "sb3_bn_ddpg", algorithm, kwargs=kwargs, peer=peer)


FAMILY: dict[str, Contender] = {
    "bntd3": _ours("BNTD3", "BNTD3", "sb3_td3"),
    "bntd3_compiled": _ours("BNTD3, compiled", "BNTD3", "sb3_td3", **COMPILES),
    "bntd3_joint": _ours("BNTD3, joint pass, no targets", "BNTD3", "sb3_td3", **JOINT),
    "bntd3_joint_compiled": _ours("BNTD3, joint pass, no targets, compiled", "BNTD3", "sb3_td3", **JOINT, **COMPILES),
    "sb3_td3": DDPGS["sb3_td3"],
    "floor_td3": Contender(
        "Floor of TD3", FLOOR_SUBJECT, "torch", kwargs=dict(n_critics=2, policy_delay=2), learns=False, peer="sb3_td3"
    ),
    "bnsac": _ours("BNSAC", "BNSAC", "sb3_sac"),
    "bnsac_compiled": _ours("BNSAC, compiled", "BNSAC", "sb3_sac", **COMPILES),
    "sb3_sac": Contender("SB3 SAC", SB3, "stable_baselines3", "SAC", peer="sb3_sac"),
    "floor_sac": Contender(
        "Floor of SAC",
        FLOOR_SUBJECT,
        "torch",
        kwargs=dict(n_critics=2, n_of_actor=2, n_heads=2),
        learns=False,
        peer="sb3_sac",
    ),
    "sbx_sac": Contender("SBX SAC (JAX)", SB3, "sbx", "SAC", environment="jax", peer="sb3_sac"),
    "bnsac_crossq": _ours("BNSAC as CrossQ", "BNSAC", "crossq", **CROSSQ),
    "bnsac_crossq_compiled": _ours("BNSAC as CrossQ, compiled", "BNSAC", "crossq", **CROSSQ, **COMPILES),
    "crossq": DDPGS["crossq"],
    "sbx_crossq": Contender("SBX CrossQ (JAX)", SB3, "sbx", "CrossQ", environment="jax", peer="crossq"),
}
"""TD3, SAC and CrossQ, which a table of their own compares, in its order."""

CONTENDERS: dict[str, Contender] = DDPGS | FAMILY

OURS, COMPILED, BASELINE, JAX_BASELINE = "bnddpg", "bnddpg_compiled", "sb3_ddpg", "sbx_ddpg"
FLOOR, WHOLE_FLOOR = "floor", "whole_floor"
"""Those that the ratios and the bars name."""
