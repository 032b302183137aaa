"""Stored transitions: in whichever form they come, as a replay buffer, as a part of minibatches, and how they are recorded."""
