"""BNSAC: a stochastic policy with entropy, and CrossQ as one of its settings."""
