"""The base of every algorithm of the family."""

from sb3_bn_ddpg.off_policy.algorithm import BNOffPolicyAlgorithm

__all__ = ["BNOffPolicyAlgorithm"]
