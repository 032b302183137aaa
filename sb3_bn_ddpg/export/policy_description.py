"""A deterministic policy as a JSON description and tensors, and back: nothing in them is code."""

import json
from collections import OrderedDict
from itertools import zip_longest
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.export.deterministic_part import ACTIVATIONS, FEATURES_EXTRACTORS, deterministic_part
from sb3_bn_ddpg.export.exported_policy import ExportedPolicy, ObservationStatistics
from sb3_bn_ddpg.networks import layers as torch_layers
from sb3_bn_ddpg.networks.actors import Actor
from sb3_bn_ddpg.networks.base import Network
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.generative import ActionVAE, GenerativeActor, PerturbationActor
from sb3_bn_ddpg.networks.normalization import NormalizationConfig

FORMAT_VERSION = 2
NORMALIZATION_KEYS = ("kind", "momentum", "eps", "renorm_warmup_steps", "order")
NETWORK_KEYS = ("net_arch", "normalization", "final_init")
CRITIC_KEYS = (*NETWORK_KEYS, "action_layer", "norm_layers", "input_norm")
GENERATIVE_KEYS = ("phi", "n_latents", "critic", "vae")
"""What a description has more of under ``generative``, if it is that of a :class:`GenerativeActor`"""
DESCRIPTION_KEYS = {
    "format_version",
    "observation_space",
    "action_space",
    "features_extractor",
    "features_extractor_kwargs",
    "activation_fn",
    "normalize_images",
    "network",
    "observation_statistics",
}


def describe(policy: BNActorCriticPolicy, normalize: VecNormalize | None) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """
    :param policy: A policy
    :param normalize: What normalises its observations, if anything does
    :return: The description, and all tensors
    :raises ValueError: if the policy has parts that a description cannot hold
    """
    acting = deterministic_part(policy)
    actor = acting.actor if isinstance(acting, GenerativeActor) else acting
    tensors = {f"actor.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in acting.state_dict().items()}
    description: dict[str, Any] = dict(
        format_version=FORMAT_VERSION,
        observation_space=_describe_space(policy.observation_space, "observation_space", tensors),
        action_space=_describe_space(policy.action_space, "action_space", tensors),
        features_extractor=type(actor.features_extractor).__name__,
        features_extractor_kwargs=policy.features_extractor_kwargs,
        activation_fn=actor.constructor_parameters["activation_fn"].__name__,
        normalize_images=actor.normalize_images,
        network=_describe_network(actor, NETWORK_KEYS),
        observation_statistics=_describe_statistics(normalize, tensors),
    )
    if isinstance(acting, GenerativeActor):
        description["generative"] = dict(
            phi=float(acting.actor.phi),
            n_latents=len(acting.latents),
            critic=_describe_network(acting.critic, CRITIC_KEYS),
            vae=_describe_network(acting.vae, NETWORK_KEYS),
        )
    try:
        json.dumps(description)
    except TypeError as error:
        raise ValueError(
            f"`features_extractor_kwargs={policy.features_extractor_kwargs}` cannot be exported: {error}"
        ) from error
    assert isinstance(policy.action_space, spaces.Box)
    made = _make_acting(description, policy.observation_space, policy.action_space)
    for line, expected in zip_longest(repr(acting).splitlines(), repr(made).splitlines()):
        if line != expected:
            raise ValueError(f"`actor` with {str(line).strip()} cannot be exported: by its arguments, that is {expected}")
    return description, tensors


def _describe_network(network: Network, keys: tuple[str, ...]) -> dict[str, Any]:
    """
    :param network: A network
    :param keys: Which of its arguments
    :return: These
    """
    arguments = network.constructor_parameters
    config: NormalizationConfig = arguments["normalization"]
    normalization = {name: _plain(getattr(config, name)) for name in NORMALIZATION_KEYS}
    return {key: normalization if key == "normalization" else _plain(arguments[key]) for key in keys}


def _plain(value: Any) -> Any:
    """
    :param value: An argument of a network
    :return: It as JSON has it, which knows no numbers of NumPy's
    """
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _describe_space(space: spaces.Space[Any], name: str, tensors: dict[str, th.Tensor]) -> dict[str, Any]:
    """
    :param space: A space
    :param name: Its name
    :param tensors: Where its bounds go
    :return: The rest of it
    :raises ValueError: if it is of an unknown kind
    """
    if isinstance(space, spaces.Dict):
        entries = {key: _describe_space(child, f"{name}.{key}", tensors) for key, child in space.spaces.items()}
        return dict(type="Dict", spaces=entries)
    if isinstance(space, spaces.Box):
        tensors[f"{name}.low"] = th.as_tensor(np.array(space.low))
        tensors[f"{name}.high"] = th.as_tensor(np.array(space.high))
        return dict(type="Box")
    if isinstance(space, spaces.Discrete):
        return dict(type="Discrete", n=int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return dict(type="MultiDiscrete", nvec=[int(n) for n in space.nvec])
    if isinstance(space, spaces.MultiBinary):
        return dict(type="MultiBinary", n=[int(n) for n in space.shape])
    raise ValueError(f"`{name}={space}` cannot be exported")


def _describe_statistics(normalize: VecNormalize | None, tensors: dict[str, th.Tensor]) -> dict[str, Any]:
    """
    :param normalize: What normalises observations, if anything does
    :param tensors: Where mean and variance of its observations go
    :return: The rest of what it does to them; empty if it does nothing
    """
    if normalize is None or not normalize.norm_obs:
        return {}
    statistics: Any = normalize.obs_rms
    if not isinstance(statistics, dict):
        statistics = {"observation": statistics}
    for key, rms in statistics.items():
        tensors[f"statistics.{key}.mean"] = th.as_tensor(np.array(rms.mean, dtype=np.float64))
        tensors[f"statistics.{key}.var"] = th.as_tensor(np.array(rms.var, dtype=np.float64))
    return dict(epsilon=float(normalize.epsilon), clip=float(normalize.clip_obs), keys=sorted(statistics))


def observation_statistics(
    normalize: VecNormalize | None, observation_space: spaces.Space[Any]
) -> dict[str, ObservationStatistics]:
    """
    :param normalize: What normalises observations, if anything does
    :param observation_space: Their space
    :return: The same as modules, for each entry of a dictionary one; empty if nothing does
    """
    tensors: dict[str, th.Tensor] = {}
    about = _describe_statistics(normalize, tensors)
    return _build_statistics(about, observation_space, tensors)


def check_description(path: Any, description: Any) -> None:
    """
    :param path: The file, for the message
    :param description: What its metadata say
    :raises FileError: if there is anything unknown
    """
    if not isinstance(description, dict) or "format_version" not in description:
        raise FileError(path, "is no policy of bn-ddpg: its description has no format_version")
    if description["format_version"] != FORMAT_VERSION:
        version = description["format_version"]
        raise FileError(path, f"is a policy of format version {version!r}: only version {FORMAT_VERSION} is known")
    if set(description) - {"generative"} != DESCRIPTION_KEYS:
        unknown = sorted((set(description) - {"generative"}) ^ DESCRIPTION_KEYS)
        raise FileError(path, f"has a description whose keys are unknown or missing: {unknown}")
    for key, known in (("features_extractor", FEATURES_EXTRACTORS), ("activation_fn", ACTIVATIONS)):
        if description[key] not in known:
            raise FileError(path, f"has an unknown {key}: {description[key]!r}")
    networks: list[tuple[Any, tuple[str, ...]]] = [(description["network"], NETWORK_KEYS)]
    if "generative" in description:
        generative = description["generative"]
        if set(generative) != set(GENERATIVE_KEYS):
            raise FileError(path, f"has a generative model whose keys are unknown or missing: {sorted(generative)}")
        networks += [(generative["critic"], CRITIC_KEYS), (generative["vae"], NETWORK_KEYS)]
    for network, keys in networks:
        if set(network) != set(keys):
            raise FileError(path, f"has a network whose keys are unknown or missing: {sorted(network)}")
        normalization = network["normalization"]
        if not isinstance(normalization, dict) or set(normalization) != set(NORMALIZATION_KEYS):
            raise FileError(path, f"has a normalization whose keys are unknown or missing: {normalization}")


def build(description: dict[str, Any], tensors: dict[str, th.Tensor]) -> ExportedPolicy:
    """
    :param description: A checked description
    :param tensors: All tensors
    :return: The policy
    :raises ValueError: if the tensors are not exactly those of the description
    """
    tensors = dict(tensors)
    observation_space = _build_space(description["observation_space"], "observation_space", tensors)
    action_space = _build_space(description["action_space"], "action_space", tensors)
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"the action space {action_space} is no Box")
    statistics = _build_statistics(description["observation_statistics"], observation_space, tensors)
    # No memory is taken before the sizes are known to be those of the tensors
    acting = _make_acting(description, observation_space, action_space)
    weights = {name.removeprefix("actor."): tensor for name, tensor in tensors.items() if name.startswith("actor.")}
    if left := sorted(set(tensors) - {f"actor.{name}" for name in weights}):
        raise ValueError(f"there are unknown tensors {left}")
    for name, expected in acting.state_dict().items():
        if name in weights and weights[name].dtype != expected.dtype:
            raise ValueError(f"{name} is of type {weights[name].dtype}, not {expected.dtype}")
    if bad := [name for name, tensor in weights.items() if not th.isfinite(tensor).all()]:
        raise ValueError(f"{bad} hold numbers that are not finite")
    acting.load_state_dict(weights, strict=True, assign=True)
    return ExportedPolicy(acting, statistics).requires_grad_(False)


def _build_statistics(
    about: dict[str, Any], observation_space: spaces.Space[Any], tensors: dict[str, th.Tensor]
) -> dict[str, ObservationStatistics]:
    """
    :param about: What :func:`_describe_statistics` returned
    :param observation_space: The observation space
    :param tensors: The tensors, of which mean and variance are taken out
    :return: What normalises observations, or each entry of a dictionary of them
    :raises ValueError: if they do not fit the space
    """
    statistics = {}
    for key in about["keys"] if about else ():
        mean, var = tensors.pop(f"statistics.{key}.mean"), tensors.pop(f"statistics.{key}.var")
        shape = (observation_space[key] if isinstance(observation_space, spaces.Dict) else observation_space).shape
        if not tuple(mean.shape) == tuple(var.shape) == shape or not (th.isfinite(mean).all() and (var >= 0).all()):
            raise ValueError(f"the statistics of {key} do not fit the observation space")
        statistics[key] = ObservationStatistics(mean, var, float(about["epsilon"]), float(about["clip"]))
    return statistics


def _make_acting(
    description: dict[str, Any], observation_space: spaces.Space[Any], action_space: spaces.Box
) -> Actor | GenerativeActor:
    """
    :param description: A description
    :param observation_space: Its observation space
    :param action_space: Its action space
    :return: What acts, without memory for its tensors
    """

    def make(cls: Any, network: dict[str, Any], **kwargs: Any) -> Any:
        activation_fn, normalization = (
            ACTIVATIONS[description["activation_fn"]],
            NormalizationConfig(**network["normalization"]),
        )
        extractor_class: Any = FEATURES_EXTRACTORS[description["features_extractor"]]
        inherited = torch_layers.inherited_kwargs(
            extractor_class, activation_fn, normalization, description["normalize_images"]
        )
        extractor = extractor_class(observation_space, **(inherited | description["features_extractor_kwargs"]))
        return cls(
            observation_space,
            action_space,
            features_extractor=extractor,
            features_dim=extractor.features_dim,
            normalize_images=description["normalize_images"],
            **(network | dict(activation_fn=activation_fn, normalization=normalization) | kwargs),
        )

    with th.device("meta"):
        if "generative" not in description:
            actor: Actor = make(Actor, description["network"])
            return actor
        generative = description["generative"]
        vae = make(ActionVAE, generative["vae"])
        return GenerativeActor(
            make(PerturbationActor, description["network"], phi=generative["phi"]),
            make(Critic, generative["critic"], n_critics=1),
            vae,
            th.empty(generative["n_latents"], vae.latent_dim),
        )


def _build_space(about: Any, name: str, tensors: dict[str, th.Tensor]) -> spaces.Space[Any]:
    """
    :param about: What :func:`_describe_space` returned
    :param name: The space's name
    :param tensors: The tensors, of which its bounds are taken out
    :return: The space
    :raises ValueError: if it is of an unknown kind
    """
    match about:
        case {"type": "Dict", "spaces": dict(entries), **rest} if not rest:
            # A plain dictionary would be sorted by Gymnasium, but the network takes the entries in the model's order
            return spaces.Dict(
                OrderedDict((key, _build_space(child, f"{name}.{key}", tensors)) for key, child in entries.items())
            )
        case {"type": "Box", **rest} if not rest:
            low, high = tensors.pop(f"{name}.low").numpy(), tensors.pop(f"{name}.high").numpy()
            return spaces.Box(low, high, dtype=low.dtype.type)
        case {"type": "Discrete", "n": int(n), **rest} if not rest:
            return spaces.Discrete(n)
        case {"type": "MultiDiscrete", "nvec": list(nvec), **rest} if not rest:
            return spaces.MultiDiscrete(nvec)
        case {"type": "MultiBinary", "n": list(n), **rest} if not rest:
            return spaces.MultiBinary(n)
    raise ValueError(f"the space {about} is of an unknown kind")
