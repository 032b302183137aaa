"""The critics' half of a gradient step, which all algorithms share whose target is r + gamma Q."""
