"""The hyperparameters that are shipped for each algorithm and environment, in Python and without RL Zoo."""
