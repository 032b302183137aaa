"""The gradient step by hand-derived formulas: PyTorch, Numba, CUDA graphs."""
