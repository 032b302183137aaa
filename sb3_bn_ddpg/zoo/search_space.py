"""What an Optuna search varies, and how a trial's parameters become hyperparameters, in the search and ever after."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import optuna
from rl_zoo3.hyperparams_opt import sample_her_params

from sb3_bn_ddpg.deterministic.step import ActorLossCritics
from sb3_bn_ddpg.networks.critics import CriticInputNorm, CriticNormLayers
from sb3_bn_ddpg.networks.normalization import Normalization, NormOrder
from sb3_bn_ddpg.offline.losses import Weighting
from sb3_bn_ddpg.profiles.action_noise import build_action_noise

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "paper": [400, 300], "wide": [512, 512]}
NESTED = ("policy_kwargs", "replay_buffer_kwargs")
"""Hyperparameters that are mappings: a trial changes entries of the file's, it does not replace them."""
HER_PARAMETERS = ("n_sampled_goal", "goal_selection_strategy")
"""What a search varies of ``HerReplayBuffer``'s arguments"""
CALCULATED = ("gamma", "batch_size", "gradient_steps")
"""Hyperparameters that a trial draws in another form: what they come to is noted on it"""

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


class Part(NamedTuple):
    """What a search varies of one concern, which several algorithms can share."""

    suggest: Callable[[optuna.Trial], None]
    """Draws the trial's parameters. Every one of them in every trial, also where another one makes it idle (as dt without
    noise): the Zoo's multivariate TPE sampler models only parameters that all trials share."""
    convert: Callable[[dict[str, Any]], dict[str, Any]]
    """Makes hyperparameters of them, as a file spells them: numbers, words, lists and mappings."""


@dataclass(frozen=True)
class SearchSpace:
    """
    What a search varies of an algorithm.

    :param parts: Its parts, in the order in which they are drawn. Of two that have the same hyperparameter, the later one's
        counts; mappings (:data:`NESTED`) hold the entries of both.
    """

    parts: tuple[Part, ...]

    def sample(self, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        """
        Sample the hyperparameters of one trial.

        :param trial: The trial
        :param n_actions: Number of action dimensions
        :param n_envs: Number of parallel environments
        :param additional_args: The Zoo's, about hindsight experience replay
        :return: Arguments of the algorithm
        """
        for part in self.parts:
            part.suggest(trial)
        her_kwargs = additional_args["her_kwargs"]
        if additional_args["using_her_replay_buffer"]:
            sample_her_params(trial, {}, her_kwargs)

        hyperparams = self.convert(trial.params)
        for name in CALCULATED:
            if name in hyperparams:
                trial.set_user_attr(name, hyperparams[name])
        if "action_noise" in hyperparams:
            hyperparams["action_noise"] = build_action_noise(hyperparams["action_noise"], n_actions)
        in_file = {"policy_kwargs": _file_policy_kwargs.get({}), "replay_buffer_kwargs": her_kwargs}
        return merge_hyperparams(in_file, hyperparams)

    def convert(self, sampled_params: dict[str, Any]) -> dict[str, Any]:
        """
        Turn the parameters of a trial, fresh or read from a storage, into hyperparameters as a file spells them.

        :param sampled_params: The trial's
        :return: Hyperparameters made of numbers, words, lists and mappings
        """
        hyperparams: dict[str, Any] = {}
        for part in self.parts:
            hyperparams = merge_hyperparams(hyperparams, part.convert(sampled_params))
        her_kwargs = {key: sampled_params[key] for key in HER_PARAMETERS if key in sampled_params}
        return hyperparams | ({"replay_buffer_kwargs": her_kwargs} if her_kwargs else {})


# --- Parts


def _suggest_learning(trial: optuna.Trial) -> None:
    trial.suggest_float("one_minus_gamma", 1e-4, 3e-2, log=True)
    trial.suggest_float("learning_rate", 1e-5, 3e-3, log=True)
    trial.suggest_float("critic_learning_rate", 1e-5, 1e-2, log=True)
    trial.suggest_float("critic_weight_decay", 1e-6, 1e-1, log=True)
    trial.suggest_float("tau", 5e-4, 8e-2, log=True)
    trial.suggest_int("batch_size_pow", 4, 9)


def _learning(params: dict[str, Any]) -> dict[str, Any]:
    same = ("learning_rate", "critic_learning_rate", "critic_weight_decay", "tau")
    return {
        "gamma": 1 - params["one_minus_gamma"],
        **{name: params[name] for name in same},
        "batch_size": 2 ** params["batch_size_pow"],
    }


LEARNING = Part(_suggest_learning, _learning)
"""Discount factor, learning rates, weight decay, tau and the size of minibatches"""


def _suggest_updates(trial: optuna.Trial) -> None:
    trial.suggest_int("train_freq_pow", 0, 3)
    trial.suggest_categorical("updates_per_step", [0.25, 0.5, 1.0, 2.0])


def _updates(params: dict[str, Any]) -> dict[str, Any]:
    train_freq = 2 ** params["train_freq_pow"]
    return {"train_freq": train_freq, "gradient_steps": max(int(train_freq * params["updates_per_step"]), 1)}


UPDATES = Part(_suggest_updates, _updates)
"""How often, and how many, gradient steps are made"""


def _suggest_networks(trial: optuna.Trial) -> None:
    trial.suggest_categorical("net_arch", list(NET_ARCHS))
    trial.suggest_categorical("normalization", [*get_args(Normalization), None])
    trial.suggest_float("norm_momentum", 1e-3, 0.3, log=True)
    trial.suggest_categorical("critic_norm_layers", list(get_args(CriticNormLayers)))
    trial.suggest_categorical("action_layer", [1, 2])


def _networks(params: dict[str, Any]) -> dict[str, Any]:
    same = ("normalization", "norm_momentum", "critic_norm_layers", "action_layer")
    return {"policy_kwargs": {"net_arch": NET_ARCHS[params["net_arch"]], **{name: params[name] for name in same}}}


NETWORKS = Part(_suggest_networks, _networks)
"""Layers and their normalisation"""


def _suggest_targets(trial: optuna.Trial) -> None:
    trial.suggest_categorical("use_target_networks", [True, False])


def _targets(params: dict[str, Any]) -> dict[str, Any]:
    # Without target networks, states and next states in one pass: in two, batch norm diverges where episodes end early
    statistics = "batch" if params["use_target_networks"] else "joint"
    return {"use_target_networks": params["use_target_networks"], "target_statistics": statistics}


TARGETS = Part(_suggest_targets, _targets)
"""Whether TD targets come from target networks, and their statistics"""


def _suggest_policy_delay(trial: optuna.Trial) -> None:
    trial.suggest_int("policy_delay", 1, 3)


def _policy_delay(params: dict[str, Any]) -> dict[str, Any]:
    return {"policy_delay": params["policy_delay"]}


POLICY_DELAY = Part(_suggest_policy_delay, _policy_delay)
"""How many updates of the critic each of the actor has"""


def _suggest_noise(trial: optuna.Trial) -> None:
    trial.suggest_categorical("noise_type", ["ou", "normal", None])
    trial.suggest_float("noise_sigma", 0.02, 0.6, log=True)
    trial.suggest_float("noise_dt", 1e-2, 1.0, log=True)


def _noise(params: dict[str, Any]) -> dict[str, Any]:
    # Named also when it is None, or the noise of the file would stay
    noise: dict[str, Any] | None = None
    if params["noise_type"] is not None:
        noise = {"type": params["noise_type"], "sigma": params["noise_sigma"]}
        if params["noise_type"] == "ou":
            noise["dt"] = params["noise_dt"]
    return {"action_noise": noise}


NOISE = Part(_suggest_noise, _noise)
"""Exploration noise of deterministic actors"""


def _suggest_critics(trial: optuna.Trial) -> None:
    trial.suggest_categorical("n_critics", [1, 2])


def _critics(params: dict[str, Any]) -> dict[str, Any]:
    return {"policy_kwargs": {"n_critics": params["n_critics"]}}


CRITICS = Part(_suggest_critics, _critics)
"""How many critics there are"""


def _suggest_smoothing(trial: optuna.Trial) -> None:
    trial.suggest_categorical("actor_loss_critics", list(get_args(ActorLossCritics)))
    trial.suggest_categorical("target_policy_noise", [0.0, 0.1, 0.2, 0.3])


def _smoothing(params: dict[str, Any]) -> dict[str, Any]:
    same = ("actor_loss_critics", "target_policy_noise")
    return {**{name: params[name] for name in same}, "target_noise_clip": 0.5}


SMOOTHING = Part(_suggest_smoothing, _smoothing)
"""Which critics the actor's loss ascends, and the noise on the target's actions: what TD3 adds"""


def _suggest_layers(trial: optuna.Trial) -> None:
    trial.suggest_categorical("norm_order", list(get_args(NormOrder)))
    trial.suggest_categorical("critic_input_norm", list(get_args(CriticInputNorm)))


def _layers(params: dict[str, Any]) -> dict[str, Any]:
    # State and action can only be normalised together where they enter together
    input_norm = params["critic_input_norm"] if params["action_layer"] == 1 else "state"
    return {"policy_kwargs": {"norm_order": params["norm_order"], "critic_input_norm": input_norm}}


LAYERS = Part(_suggest_layers, _layers)
"""Beside :data:`NETWORKS`, where a layer has its normalisation and what that of the critic's input sees: what CrossQ adds"""


def _suggest_entropy(trial: optuna.Trial) -> None:
    trial.suggest_categorical("ent_coef", ["auto", "auto_0.1", 0.2, 0.05, 0.01])
    trial.suggest_categorical("target_entropy", ["auto", "auto_0.5"])


def _entropy(params: dict[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in ("ent_coef", "target_entropy")}


ENTROPY = Part(_suggest_entropy, _entropy)
"""How random a stochastic policy is"""


def _suggest_expectile(trial: optuna.Trial) -> None:
    trial.suggest_float("expectile", 0.5, 0.95)
    trial.suggest_float("beta", 0.3, 30.0, log=True)
    trial.suggest_categorical("actor_learning_rate_decay", ["cosine", None])


def _expectile(params: dict[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in ("expectile", "beta", "actor_learning_rate_decay")}


EXPECTILE = Part(_suggest_expectile, _expectile)
"""What IQL takes for the value of a state, and how much better actions count more"""


def _suggest_imitation(trial: optuna.Trial) -> None:
    trial.suggest_float("alpha", 0.1, 30.0, log=True)
    trial.suggest_categorical("normalize_observations", [True, False])
    trial.suggest_categorical("target_policy_noise", [0.0, 0.1, 0.2, 0.3])


def _imitation(params: dict[str, Any]) -> dict[str, Any]:
    same = ("alpha", "normalize_observations", "target_policy_noise")
    return {**{name: params[name] for name in same}, "target_noise_clip": 0.5}


IMITATION = Part(_suggest_imitation, _imitation)
"""How much imitation counts beside the value, the observations' scale, and noise on the target's actions: TD3+BC's"""


def _suggest_advantages(trial: optuna.Trial) -> None:
    trial.suggest_float("beta", 0.1, 30.0, log=True)
    trial.suggest_categorical("weighting", list(get_args(Weighting)))


def _advantages(params: dict[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in ("beta", "weighting")}


ADVANTAGES = Part(_suggest_advantages, _advantages)
"""How much more AWAC imitates what has a larger advantage"""


def _suggest_constraint(trial: optuna.Trial) -> None:
    trial.suggest_float("lmbda", 0.0, 1.0)
    trial.suggest_float("phi", 1e-2, 0.3, log=True)


def _constraint(params: dict[str, Any]) -> dict[str, Any]:
    return {"lmbda": params["lmbda"], "policy_kwargs": {"phi": params["phi"]}}


CONSTRAINT = Part(_suggest_constraint, _constraint)
"""How much BCQ prefers the smaller value, and how far it leaves the actions of the data"""

BN_DDPG = SearchSpace((LEARNING, UPDATES, NETWORKS, TARGETS, POLICY_DELAY, NOISE))
BN_TD3 = SearchSpace((*BN_DDPG.parts, CRITICS, SMOOTHING))
BN_SAC = SearchSpace((LEARNING, UPDATES, NETWORKS, LAYERS, TARGETS, POLICY_DELAY, CRITICS, ENTROPY))
BN_IQL = SearchSpace((LEARNING, NETWORKS, EXPECTILE))
BN_TD3_BC = SearchSpace((LEARNING, NETWORKS, POLICY_DELAY, IMITATION))
BN_AWAC = SearchSpace((LEARNING, NETWORKS, ADVANTAGES))
BN_BCQ = SearchSpace((LEARNING, NETWORKS, CONSTRAINT))


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
