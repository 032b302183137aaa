"""Learning from stored transitions, without an environment."""
