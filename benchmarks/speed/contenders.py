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
    """

    label: str
    subject: str
    imports: str
    algorithm: str = ""
    environment: str = "main"
    kwargs: dict[str, Any] = field(default_factory=dict)
    learns: bool = True


PACKAGES: dict[str, tuple[str, ...]] = {
    "main": ("sb3-bn-ddpg", "stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium", "mujoco"),
    "jax": ("sbx-rl", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "mujoco"),
    "tianshou": ("tianshou", "torch", "numpy", "gymnasium", "mujoco"),
}
"""Of each virtual environment, those whose versions are recorded."""

SB3 = "sb3_subject:SB3Subject"

CONTENDERS: dict[str, Contender] = {
    "bnddpg": Contender("BNDDPG", SB3, "sb3_bn_ddpg", "BNDDPG"),
    "bnddpg_compiled": Contender("BNDDPG, compiled", SB3, "sb3_bn_ddpg", "BNDDPG", kwargs=dict(fast_update="compiled")),
    "bnddpg_no_norm": Contender(
        "BNDDPG, no batch norm", SB3, "sb3_bn_ddpg", "BNDDPG", kwargs=dict(policy_kwargs=dict(normalization=None))
    ),
    "bnddpg_autograd": Contender("BNDDPG by autograd", SB3, "sb3_bn_ddpg", "BNDDPG", kwargs=dict(fast_update=False)),
    "sb3_ddpg": Contender("SB3 DDPG", SB3, "stable_baselines3", "DDPG"),
    "sb3_td3": Contender("SB3 TD3", SB3, "stable_baselines3", "TD3"),
    "crossq": Contender("sb3-contrib CrossQ", SB3, "sb3_contrib", "CrossQ"),
    "sbx_ddpg": Contender("SBX DDPG (JAX)", SB3, "sbx", "DDPG", environment="jax"),
    "tianshou_ddpg": Contender(
        "Tianshou DDPG", "tianshou_subject:TianshouSubject", "tianshou.algorithm", "DDPG", environment="tianshou"
    ),
    "floor": Contender("Floor (matrix products)", "floor:FloorSubject", "torch", learns=False),
}
"""In the order of the tables."""

OURS, COMPILED, BASELINE, JAX_BASELINE, FLOOR = "bnddpg", "bnddpg_compiled", "sb3_ddpg", "sbx_ddpg", "floor"
"""Those that the ratios and the bars name."""
