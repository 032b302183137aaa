"""
Have the next states of a replay buffer its states' variance? ``python -m benchmarks.learning.next_states`` prints the ratios.

Where they have not, normalising each by its own minibatch gives the target critic another function than the critic.
"""

import numpy as np

from benchmarks.learning.evaluation import make_env
from benchmarks.learning.tasks import TASKS
from benchmarks.markdown import table

N_STEPS = 5_000


def ratios(task: str) -> tuple[float, np.ndarray]:
    """
    :param task: The id of an environment
    :return: Mean length of the random policy's episodes, and by dimension the variance of next states over that of states
    """
    env = make_env(task)
    env.action_space.seed(0)
    states, next_states, ends = [], [], 0
    obs, _ = env.reset(seed=0)
    for _ in range(N_STEPS):
        next_obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        states.append(obs)
        next_states.append(next_obs)
        obs = next_obs
        if terminated or truncated:
            ends += 1
            obs, _ = env.reset()
    before, after = np.var(states, axis=0), np.var(next_states, axis=0)
    varying = before > 1e-12
    return N_STEPS / max(ends, 1), after[varying] / before[varying]


def main() -> None:
    """Print the table."""
    lines = []
    for task in TASKS:
        length, values = ratios(task)
        lines.append([task, f"{length:.0f}", f"{values.min():.2f}", f"{np.median(values):.2f}", f"{values.max():.2f}"])
    print(table(["Variance of next states over that of states", "steps an episode", "least", "median", "largest"], lines))


if __name__ == "__main__":
    main()
