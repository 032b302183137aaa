"""BNDDPG: the paper's algorithm."""
