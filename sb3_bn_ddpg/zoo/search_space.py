"""What an Optuna search varies, and how a trial's parameters become hyperparameters, in the search and ever after."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, get_args

import optuna
from rl_zoo3.hyperparams_opt import sample_her_params

from sb3_bn_ddpg.networks.critics import CriticNormLayers
from sb3_bn_ddpg.networks.normalization import Normalization
from sb3_bn_ddpg.zoo.action_noise import build_action_noise

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "paper": [400, 300], "wide": [512, 512]}
NESTED = ("policy_kwargs", "replay_buffer_kwargs")
"""Hyperparameters that are mappings: a trial changes entries of the file's, it does not replace them."""
HER_PARAMETERS = ("n_sampled_goal", "goal_selection_strategy")
"""What a search varies of ``HerReplayBuffer``'s arguments"""

_file_policy_kwargs: ContextVar[dict[str, Any]] = ContextVar("_file_policy_kwargs")


@contextmanager
def file_policy_kwargs(policy_kwargs: dict[str, Any]) -> Iterator[None]:
    """
    Let trials sampled in this context (and thread) keep the hyperparameter file's ``policy_kwargs``. The Zoo would replace
    them by the sampled ones, and has no argument by which the sampler could see them.

    :param policy_kwargs: The file's
    """
    token = _file_policy_kwargs.set(policy_kwargs)
    try:
        yield
    finally:
        _file_policy_kwargs.reset(token)


def sample_bn_ddpg_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample the hyperparameters of one trial.

    Every parameter is drawn in every trial, also where another one makes it idle (as dt without noise): the Zoo's
    multivariate TPE sampler models only parameters that all trials share.

    :param trial: The trial
    :param n_actions: Number of action dimensions
    :param n_envs: Number of parallel environments
    :param additional_args: The Zoo's, about hindsight experience replay
    :return: Arguments of ``BNDDPG``
    """
    trial.suggest_float("one_minus_gamma", 1e-4, 3e-2, log=True)
    trial.suggest_float("learning_rate", 1e-5, 3e-3, log=True)
    trial.suggest_float("critic_learning_rate", 1e-5, 1e-2, log=True)
    trial.suggest_float("critic_weight_decay", 1e-6, 1e-1, log=True)
    trial.suggest_float("tau", 5e-4, 8e-2, log=True)
    trial.suggest_int("batch_size_pow", 4, 9)
    trial.suggest_int("train_freq_pow", 0, 3)
    trial.suggest_categorical("updates_per_step", [0.25, 0.5, 1.0, 2.0])
    trial.suggest_categorical("net_arch", list(NET_ARCHS))
    trial.suggest_categorical("normalization", [*get_args(Normalization), None])
    trial.suggest_float("norm_momentum", 1e-3, 0.3, log=True)
    trial.suggest_categorical("critic_norm_layers", list(get_args(CriticNormLayers)))
    trial.suggest_categorical("action_layer", [1, 2])
    trial.suggest_categorical("use_target_networks", [True, False])
    trial.suggest_int("policy_delay", 1, 3)
    trial.suggest_categorical("noise_type", ["ou", "normal", None])
    trial.suggest_float("noise_sigma", 0.02, 0.6, log=True)
    trial.suggest_float("noise_dt", 1e-2, 1.0, log=True)
    her_kwargs = additional_args["her_kwargs"]
    if additional_args["using_her_replay_buffer"]:
        sample_her_params(trial, {}, her_kwargs)

    hyperparams = convert_bn_ddpg_params(trial.params)
    for name in ("gamma", "batch_size", "gradient_steps"):
        trial.set_user_attr(name, hyperparams[name])
    hyperparams["action_noise"] = build_action_noise(hyperparams["action_noise"], n_actions)
    in_file = {"policy_kwargs": _file_policy_kwargs.get({}), "replay_buffer_kwargs": her_kwargs}
    return merge_hyperparams(in_file, hyperparams)


def convert_bn_ddpg_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a trial, fresh or read from a storage, into hyperparameters as a file spells them.

    :param sampled_params: The trial's
    :return: Hyperparameters made of numbers, words, lists and mappings
    """
    train_freq = 2 ** sampled_params["train_freq_pow"]
    noise: dict[str, Any] | None = None
    if sampled_params["noise_type"] is not None:
        noise = {"type": sampled_params["noise_type"], "sigma": sampled_params["noise_sigma"]}
        if sampled_params["noise_type"] == "ou":
            noise["dt"] = sampled_params["noise_dt"]
    hyperparams = {
        "gamma": 1 - sampled_params["one_minus_gamma"],
        "learning_rate": sampled_params["learning_rate"],
        "critic_learning_rate": sampled_params["critic_learning_rate"],
        "critic_weight_decay": sampled_params["critic_weight_decay"],
        "tau": sampled_params["tau"],
        "batch_size": 2 ** sampled_params["batch_size_pow"],
        "train_freq": train_freq,
        "gradient_steps": max(int(train_freq * sampled_params["updates_per_step"]), 1),
        "use_target_networks": sampled_params["use_target_networks"],
        # Without target networks, states and next states in one pass: in two, batch norm diverges where episodes end early
        "target_statistics": "batch" if sampled_params["use_target_networks"] else "joint",
        "policy_delay": sampled_params["policy_delay"],
        # Named also when it is None, or the noise of the file would stay
        "action_noise": noise,
        "policy_kwargs": {
            "net_arch": NET_ARCHS[sampled_params["net_arch"]],
            "normalization": sampled_params["normalization"],
            "norm_momentum": sampled_params["norm_momentum"],
            "critic_norm_layers": sampled_params["critic_norm_layers"],
            "action_layer": sampled_params["action_layer"],
        },
    }
    her_kwargs = {key: sampled_params[key] for key in HER_PARAMETERS if key in sampled_params}
    return hyperparams | ({"replay_buffer_kwargs": her_kwargs} if her_kwargs else {})


def merge_hyperparams(base: dict[str, Any], overrides: dict[str, Any], nested: tuple[str, ...] = NESTED) -> dict[str, Any]:
    """
    Override hyperparameters, mappings entry by entry. A mapping in the Zoo's notation, a word like
    ``"dict(activation_fn=nn.ReLU)"`` that the Zoo evaluates, stays one.

    :param base: Hyperparameters of a file
    :param overrides: Those of a trial
    :param nested: The mappings; of others the trial's replaces the file's
    :return: Both, the trial's before the file's
    """
    merged = base | overrides
    for key in nested:
        before = base.get(key)
        if key in overrides and isinstance(before, str):
            merged[key] = f"dict({before}, **{overrides[key]!r})"
        elif key in overrides and before is not None:
            merged[key] = {**before, **overrides[key]}
    return {key: value for key, value in merged.items() if key not in nested or value}
