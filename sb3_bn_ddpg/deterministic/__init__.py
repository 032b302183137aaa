"""The gradient step of a deterministic policy, which BNDDPG and BNTD3 share."""
