"""The gradient step by hand-derived formulas: PyTorch, Numba, CUDA graphs."""

from sb3_bn_ddpg.fast import stamps as stamps  # at the import of the package: it looks at what is imported
