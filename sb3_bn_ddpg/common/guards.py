"""Noticing during training that something went wrong: losses, Q-values, environments."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_bn_ddpg.common.vec_env_layers import layers_of

SLACK = 2.0
"""Q-values may exceed the return's bound by this factor, and by 1 beside it, before they count as exploding."""
RELABELED_SAMPLE = 10_000
"""Transitions sampled to find the largest reward, where rewards depend on the goals of the sample."""


class EnvironmentFailureError(RuntimeError):
    """The processes of an environment were interrupted in the middle of a step: their answers no longer fit the questions."""


class LearningGuard:
    """
    Looks at what each training reports: at numbers that the logger needs anyway, so it costs next to nothing.

    The return cannot exceed the largest reward divided by ``1 - gamma``. Rewards are looked up in the replay buffer only when
    the Q-values exceed the bound by those known so far. Where the entropy is rewarded too, it counts as a reward.

    :param largest_reward: The largest absolute reward of earlier trainings
    :param largest_bonus: The largest absolute reward for the entropy of earlier trainings
    """

    def __init__(self, largest_reward: float = 0.0, largest_bonus: float = 0.0) -> None:
        self.largest_reward, self.largest_bonus = largest_reward, largest_bonus
        self.has_warned = False

    def check(self, model: OffPolicyAlgorithm, means: dict[str, float], slower_targets: str) -> None:
        """
        :param model: The model
        :param means: Losses, Q-values and TD targets of its last gradient steps (:func:`~sb3_bn_ddpg.common.steps.averages`)
        :param slower_targets: Which arguments make its TD targets move more slowly, for the messages
        :raises ValueError: if one is not finite
        """
        if not math.isfinite(sum(means.values())):  # sums of finite losses are finite
            for name, value in means.items():
                if math.isfinite(value):
                    continue
                raise ValueError(
                    f"`{name}={value}` at step {model.num_timesteps} (update {model._n_updates}) is not finite: training "
                    "cannot go on. The last checkpoint is from before; try a lower critic_learning_rate or learning_rate, "
                    f"smaller rewards (VecNormalize), or {slower_targets}"
                )
        if "entropy" in means:
            self.largest_bonus = max(self.largest_bonus, abs(means["ent_coef"] * means["entropy"]))
        is_bonus_unknown = "ent_coef" in means and not self.largest_bonus  # before the actor's first update
        if self.has_warned or model.gamma >= 1 or (is_bonus_unknown and "entropy" not in means):
            return
        q_value = max(means["abs_q_value"], abs(means["td_target"]))
        if q_value <= self._limit(model):
            return
        self.note_rewards(model)
        if isinstance(model.replay_buffer, HerReplayBuffer):
            self.largest_reward = max(self.largest_reward, _largest_relabeled_reward(model, model.replay_buffer))
        if q_value <= self._limit(model):
            return
        self.has_warned = True
        of_entropy = f", up to {self.largest_bonus:.3g} for the entropy" if self.largest_bonus else ""
        warnings.warn(
            f"Q-values explode: they reach {q_value:.3g} at step {model.num_timesteps}, but with rewards up to "
            f"{self.largest_reward:.3g}{of_entropy} and gamma={model.gamma} no return exceeds "
            f"{self._largest_return(model):.3g}. Try a lower critic_learning_rate, {slower_targets}, "
            "a larger batch_size, a lower gamma or smaller rewards (VecNormalize)",
            stacklevel=2,
        )

    def check_actions(self, model: OffPolicyAlgorithm, actions: NDArray[Any], slower_targets: str) -> None:
        """
        :param model: The model
        :param actions: What it is about to do, of shape ``(n_envs, action_dim)``
        :param slower_targets: As for :meth:`check`
        :raises ValueError: if a number is not finite: the environment, a robot perhaps, does not get it
        """
        if not np.isfinite(actions).all():
            raise ValueError(
                f"`actions={actions}` of the policy after step {model.num_timesteps} (update {model._n_updates}) are not "
                "finite: training cannot go on. The last checkpoint is from before; try a lower critic_learning_rate or "
                f"learning_rate, smaller rewards (VecNormalize), or {slower_targets}"
            )

    def note_rewards(self, model: OffPolicyAlgorithm) -> None:
        """
        :param model: The model, whose replay buffer is looked through for a larger reward than those known so far
        """
        self.largest_reward = max(self.largest_reward, _largest_stored_reward(model))

    def _largest_return(self, model: OffPolicyAlgorithm) -> float:
        return (self.largest_reward + self.largest_bonus) / (1 - model.gamma)

    def _limit(self, model: OffPolicyAlgorithm) -> float:
        return SLACK * self._largest_return(model) + 1


def _largest_stored_reward(model: OffPolicyAlgorithm) -> float:
    """
    :param model: A model
    :return: The largest absolute reward in its replay buffer, and in a dataset beside that, as the update sees it (normalised,
        if ``VecNormalize`` does that, or scaled); infinite if a buffer of another kind keeps them in its own way
    """
    buffer: Any = getattr(model, "replay_buffer", None)  # deleted, to free its memory
    if not isinstance(getattr(buffer, "rewards", None), np.ndarray):
        return math.inf
    stored = [buffer.rewards[: buffer.size()], getattr(getattr(buffer, "dataset", None), "rewards", np.zeros(0))]
    largest = max(float(np.abs(rewards).max(initial=0.0)) for rewards in stored)
    if model._vec_normalize_env is not None:
        largest = float(model._vec_normalize_env.normalize_reward(np.array([largest]))[0])
    scaler = getattr(model, "reward_scaler", None)
    return largest if scaler is None else largest / scaler.scale


def _largest_relabeled_reward(model: OffPolicyAlgorithm, buffer: HerReplayBuffer) -> float:
    """
    :param model: A model
    :param buffer: Its replay buffer, which calculates rewards anew when it samples
    :return: The largest absolute reward in a large sample, for which no random number is drawn that training would miss
    """
    random_state = np.random.get_state()
    try:
        return buffer.sample(RELABELED_SAMPLE, env=model._vec_normalize_env).rewards.abs().max().item()
    finally:
        np.random.set_state(random_state)


def check_no_answer_is_due(model: OffPolicyAlgorithm) -> None:
    """
    :param model: A model
    :raises EnvironmentFailureError: if the processes of its environment were interrupted between question and answer: the
        answer would be taken for that to the next question, and so on with all later ones
    """
    env = layers_of(model.env)[-1]
    if not isinstance(env, SubprocVecEnv):
        return
    pairs = zip(env.processes, env.remotes, strict=True)
    # What is there to read from a dead one is its end, which the next question to it finds
    if env.waiting or any(process.is_alive() and remote.poll() for process, remote in pairs):
        raise EnvironmentFailureError(
            "The processes of the environment were interrupted in the middle of a step, and are out of step since: "
            "give the model a new environment with `set_env`"
        )


@contextmanager
def environment_failures(model: OffPolicyAlgorithm) -> Iterator[None]:
    """
    Note on an error that comes out of the training environment where it happened. Its class stays what it is: scripts that
    catch their simulator's exceptions, RL Zoo and Optuna go by it.

    :param model: The model that learns
    """
    try:
        yield
    except Exception as error:
        frame = _environment_frame(error.__traceback__, model.env)
        if frame is not None:
            if dead := _dead_processes(model.env):
                what = f"the process of environment {dead[0][0]} died (exit code {dead[0][1]}; its own output says why)"
            elif "env_idx" in frame:
                what = f"environment {frame['env_idx']} raised this"
            else:
                what = f"the environment ({type(frame['self']).__name__}) raised this"
            add_note(error, f"At step {model.num_timesteps} of the training, {what}.")
        raise


class _Note(Exception):
    """Says something about the exception that it is the cause of, for Python 3.10."""


def add_note(error: BaseException, note: str) -> None:
    """
    Add a line to what a traceback says of an exception.

    :param error: The exception
    :param note: The line. Where exceptions have no notes, in Python 3.10, it is the first in the chain of causes.
    """
    if hasattr(error, "add_note"):
        error.add_note(note)
        return
    error.__notes__ = [*getattr(error, "__notes__", []), note]
    while (earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = earlier
    error.__cause__ = _Note(note)


def _environment_frame(traceback: TracebackType | None, env: VecEnv | None) -> dict[str, Any] | None:
    """
    :param traceback: Where an error came through
    :param env: The training environment
    :return: The local variables of the call of its innermost layer that the error came through, None if it came through none
    """
    layers, found = layers_of(env), None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name in ("reset", "step_async", "step_wait"):
            caller = frame.f_locals.get("self")
            if any(caller is layer for layer in layers):
                found = frame.f_locals
        traceback = traceback.tb_next
    return found


def _dead_processes(env: VecEnv | None) -> list[tuple[int, int | None]]:
    """
    :param env: The training environment
    :return: Index and exit code of each of its processes that is no more
    """
    base = layers_of(env)[-1]
    processes = base.processes if isinstance(base, SubprocVecEnv) else []
    for process in processes:
        process.join(timeout=0.2 / len(processes))  # one that dies now has closed its pipe already
    return [(index, process.exitcode) for index, process in enumerate(processes) if not process.is_alive()]
