"""Models, checkpoints, the state of environments and callbacks."""
