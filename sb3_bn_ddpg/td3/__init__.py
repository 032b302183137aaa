"""BNTD3: two critics, smoothed targets, a delayed actor."""
