"""Models that learn from a small dataset, for tests."""

import numpy as np
from conftest import VectorEnv

from sb3_bn_ddpg import BNAWAC, BNBCQ, BNIQL, BNTD3BC

ALL = [BNIQL, BNTD3BC, BNAWAC, BNBCQ]


def data(n=200, seed=0):
    """Random transitions, for the spaces of ``VectorEnv``."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(2, 3, size=(n + 1, 4))
    return dict(
        observations=observations[:-1],
        actions=rng.uniform(-1, 1, size=(n, 2)),
        rewards=rng.normal(size=n),
        next_observations=observations[1:],
        terminations=np.arange(n) % 50 == 49,
        truncations=np.arange(n) % 50 == 24,
    )


class Untouchable(VectorEnv):
    """Fails when anybody acts in it."""

    def reset(self, **kwargs):
        raise AssertionError("learning touched the environment")

    def step(self, action):
        raise AssertionError("learning touched the environment")


def make(cls, env=None, dataset=None, policy_kwargs=None, **kwargs):
    arguments = dict(batch_size=16, seed=0, device="cpu")
    return cls(
        "MlpPolicy",
        Untouchable() if env is None else env,
        data() if dataset is None else dataset,
        policy_kwargs=dict(net_arch=[16, 12]) | ({"vae_arch": [16]} if cls is BNBCQ else {}) | (policy_kwargs or {}),
        **(arguments | kwargs),
    )


def same_parameters(model, other):
    ours, theirs = model.policy.state_dict(), other.policy.state_dict()
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
