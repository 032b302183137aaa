"""Counters and records of SB3's callbacks, which must survive a resume: when the next evaluation is due, what was the best."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

RECORDS = (
    "n_calls",
    "num_timesteps",
    "last_time_trigger",  # EveryNTimesteps
    "n_episodes",  # StopTrainingOnMaxEpisodes
    "best_mean_reward",  # EvalCallback
    "last_mean_reward",
    "evaluations_timesteps",
    "evaluations_results",
    "evaluations_length",
    "evaluations_successes",
    "last_best_mean_reward",  # StopTrainingOnNoModelImprovement
    "no_improvement_evals",
)
"""What SB3's callbacks count and keep. Their settings are left to whoever makes them anew."""


def callback_states(callback: BaseCallback | None) -> list[tuple[str, dict[str, Any]]]:
    """
    :param callback: The callback of a training
    :return: Class name and records of it and of each callback in it
    """
    return [
        (type(each).__name__, {name: vars(each)[name] for name in RECORDS if name in vars(each)}) for each in _tree(callback)
    ]


def restore_callback_states(callback: BaseCallback, states: list[tuple[str, dict[str, Any]]]) -> None:
    """
    Give callbacks the records of those of the same class; the second of a class those of the second, and so on.

    :param callback: The callback of a resumed training
    :param states: The records
    """
    waiting = list(states)
    for each in _tree(callback):
        for index, (name, records) in enumerate(waiting):
            if name == type(each).__name__:
                vars(each).update({key: value for key, value in records.items() if key in vars(each)})
                del waiting[index]
                break


def _tree(callback: BaseCallback | None) -> list[BaseCallback]:
    """A callback and all that it calls."""
    if callback is None:
        return []
    children = [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    if isinstance(callback, CallbackList):
        children += callback.callbacks
    tree = [callback]
    for child in children:
        # EvalCallback's callback after each evaluation is its `callback`; ConvertCallback's is a function
        if isinstance(child, BaseCallback):
            tree += _tree(child)
    return tree
