"""
Deterministic policies in files that run no code: weights by safetensors with a JSON description, and ONNX.

Both take the environment's own observations and return its own actions: if the model was trained with ``VecNormalize``, its
statistics of observations are in the file. Batch norm uses its running statistics.
"""

import hashlib
import importlib.util
import json
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_bn_ddpg import torch_layers
from sb3_bn_ddpg.atomic_files import FileError, atomic_write, clear_errors
from sb3_bn_ddpg.policies import Actor

if TYPE_CHECKING:
    from sb3_bn_ddpg.bn_ddpg import BNDDPG

FORMAT_VERSION = 1
METADATA_KEY = "bn_ddpg_policy"
SHA256_KEY = "bn_ddpg_sha256"
FEATURES_EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    cls.__name__: cls
    for cls in (FlattenExtractor, NatureCNN, CombinedExtractor, *vars(torch_layers).values())
    if isinstance(cls, type) and issubclass(cls, BaseFeaturesExtractor)
}
ACTIVATIONS = {
    cls.__name__: cls
    for cls in (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Mish, nn.Identity)
}
"""What a description may name. Everything else is refused, on writing and on reading."""
NETWORK_KEYS = ("net_arch", "normalization", "norm_momentum", "norm_eps", "renorm_warmup_steps", "final_init")
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


class ObservationStatistics(nn.Module):
    """
    The part of ``VecNormalize`` that concerns one observation: ``clip((x - mean) / sqrt(var + epsilon))``.

    :param mean: Mean of each entry
    :param var: Variance of each entry
    :param epsilon: Value added to the variance
    :param clip: Largest absolute value of a normalised entry
    """

    mean: th.Tensor
    var: th.Tensor

    def __init__(self, mean: th.Tensor, var: th.Tensor, epsilon: float, clip: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("var", var)
        self.epsilon, self.clip = epsilon, clip

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Observations
        :return: Normalised ones
        """
        # In double precision, as VecNormalize
        normalised = (x.double() - self.mean) / (self.var + self.epsilon).sqrt()
        return normalised.clamp(-self.clip, self.clip).float()


class ExportedPolicy(BasePolicy):
    """
    The deterministic policy alone: the environment's observations in, its actions out.

    :param actor: The actor
    :param statistics: What normalises the observations, or each entry of a dictionary of them, before; empty if nothing does
    """

    action_space: spaces.Box

    def __init__(self, actor: Actor, statistics: dict[str, ObservationStatistics]) -> None:
        super().__init__(actor.observation_space, actor.action_space, squash_output=True)
        self.actor = actor
        self.statistics = nn.ModuleDict(statistics)
        self.register_buffer("low", th.as_tensor(np.array(actor.action_space.low), dtype=th.float32))
        self.register_buffer("high", th.as_tensor(np.array(actor.action_space.high), dtype=th.float32))
        self.low: th.Tensor
        self.high: th.Tensor
        self.set_training_mode(False)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        if isinstance(observation, dict):
            observation = {
                key: self.statistics[key](entry) if key in self.statistics else entry for key, entry in observation.items()
            }
        elif "observation" in self.statistics:
            observation = self.statistics["observation"](observation)
        actions: th.Tensor = self.actor(observation)
        return actions

    def forward(self, observation: PyTorchObs) -> th.Tensor:
        """
        :param observation: Observations, of shape ``(n, ...)``
        :return: Actions within the action space's bounds, of shape ``(n, ...)``
        """
        scaled = self._predict(observation).reshape(-1, *self.low.shape)
        return self.low + 0.5 * (scaled + 1.0) * (self.high - self.low)


def exported_policy(model: "BNDDPG") -> ExportedPolicy:
    """
    :param model: A model
    :return: A copy of its deterministic policy, on the CPU
    """
    description, tensors = _describe(model)
    return _build(description, tensors)


def export_policy(model: "BNDDPG", path: str | pathlib.Path) -> None:
    """
    Write a model's deterministic policy to one safetensors file, whose metadata hold the description.

    :param model: The model
    :param path: The file to write or replace, as it is spelled
    :raises ValueError: if the policy has custom parts, which a description without code cannot hold
    :raises ImportError: if the package safetensors is missing
    """
    _require("safetensors")
    from safetensors.torch import save

    description, tensors = _describe(model)
    _build(description, tensors)  # what cannot be read is not written
    about = json.dumps(description)
    content = save(tensors, {METADATA_KEY: about, SHA256_KEY: _sha256(about, tensors)})
    with atomic_write(path) as file:
        file.write(content)


def load_policy(path: str | pathlib.Path) -> ExportedPolicy:
    """
    Rebuild a policy from a file of :func:`export_policy`. Nothing in the file is executed, whoever wrote it.

    :param path: The file
    :return: The policy, on the CPU: ``load_policy(path).predict(observation)``
    :raises FileError: if the file is damaged, or holds anything that this version does not know
    :raises ImportError: if the package safetensors is missing
    """
    _require("safetensors")
    from safetensors import safe_open

    with open(path, "rb"):  # for the system's own errors
        pass
    with clear_errors(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if set(metadata) != {METADATA_KEY, SHA256_KEY}:
            raise FileError(path, f"is no policy of bn-ddpg: its metadata are {sorted(metadata)}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
        if _sha256(metadata[METADATA_KEY], tensors) != metadata[SHA256_KEY]:
            raise FileError(path, "was altered: its content does not match its SHA-256")
        description = json.loads(metadata[METADATA_KEY])
        _check_description(path, description)
        return _build(description, tensors)


def export_onnx(model: "BNDDPG", path: str | pathlib.Path) -> None:
    """
    Write a model's deterministic policy as an ONNX graph. Its inputs are ``observation``, of shape ``(n, ...)`` (of a
    dictionary the keys, sorted), its output is ``action``.

    :param model: The model
    :param path: The file to write or replace, as it is spelled
    :raises ImportError: if the packages onnx or onnxscript are missing
    """
    _require("onnx", "onnxscript")
    policy: nn.Module = _without_batch_norm(exported_policy(model))
    space = model.observation_space
    if isinstance(space, spaces.Dict):
        names = sorted(space.spaces)
        policy = _FromPositions(policy, names)
        inputs = tuple(_example(space[name]) for name in names)
    else:
        names, inputs = ["observation"], (_example(space),)
    n = th.export.Dim("n")
    dynamic_shapes: Any = ({0: n},) * len(names) if len(names) == 1 else (tuple({0: n} for _ in names),)
    program = th.onnx.export(
        policy.eval(),
        inputs,
        input_names=names,
        output_names=["action"],
        dynamic_shapes=dynamic_shapes,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    content = program.model_proto.SerializeToString()
    with atomic_write(path) as file:
        file.write(content)


class _RunningNorm(nn.Module):
    """
    What batch norm in evaluation mode does with its running statistics.

    :param layer: The batch norm layer
    """

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # One number a feature of (n, features), one a channel of (n, channels, height, width)
        shape = (-1, 1, 1) if isinstance(layer, nn.BatchNorm2d) else (-1,)
        scale = th.rsqrt(layer.running_var + layer.eps)
        self.register_buffer("mean", layer.running_mean.reshape(shape))
        self.register_buffer("scale", (scale if layer.weight is None else scale * layer.weight.detach()).reshape(shape))
        self.register_buffer("shift", th.zeros(()) if layer.bias is None else layer.bias.detach().reshape(shape))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Input of the layer, of shape ``(n, features)`` or ``(n, channels, height, width)``
        :return: Its output
        """
        return (x - self.get_buffer("mean")) * self.get_buffer("scale") + self.get_buffer("shift")


def _without_batch_norm(network: nn.Module) -> nn.Module:
    """
    Replace each batch norm layer by plain arithmetic: the ONNX exporter of torch 2.6 fails at batch norm.

    :param network: A network, changed in place
    :return: The network
    """
    for name, child in network.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(network, name, _RunningNorm(child))
        else:
            _without_batch_norm(child)
    return network


class _FromPositions(nn.Module):
    """Takes the entries of a dictionary one after another."""

    def __init__(self, policy: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.policy, self.names = policy, names

    def forward(self, *entries: th.Tensor) -> th.Tensor:
        """
        :param entries: The entries in the order of the names
        :return: Actions
        """
        actions: th.Tensor = self.policy(dict(zip(self.names, entries, strict=True)))
        return actions


def _example(space: spaces.Space[Any]) -> th.Tensor:
    """Two observations: a batch of one might be taken for a constant."""
    return th.as_tensor(np.zeros((2, *(space.shape or ())), dtype=space.dtype))


def _require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{package} is not installed: run `pip install sb3-bn-ddpg[export]`")


def _sha256(about: str, tensors: dict[str, th.Tensor]) -> str:
    """
    :param about: The description
    :param tensors: The tensors
    :return: The SHA-256 of all, in hexadecimal digits
    """
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(th.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- Describing


def _describe(model: "BNDDPG") -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """
    :param model: A model
    :return: The description, and all tensors
    :raises ValueError: if the policy has parts that a description cannot hold
    """
    actor, policy = model.actor, model.policy
    tensors = {f"actor.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in actor.state_dict().items()}
    activation_fn: Any = actor.constructor_parameters["activation_fn"]
    parts: list[tuple[str, type, tuple[type, ...]]] = [
        ("the class of the actor", type(actor), (Actor,)),
        ("features_extractor_class", type(actor.features_extractor), tuple(FEATURES_EXTRACTORS.values())),
        ("activation_fn", activation_fn, tuple(ACTIVATIONS.values())),
    ]
    for name, cls, known in parts:
        if cls not in known:
            names = ", ".join(each.__name__ for each in known)
            raise ValueError(f"`{name}={cls.__name__}` cannot be exported: only {names} can, which need no code in the file")
    description = dict(
        format_version=FORMAT_VERSION,
        observation_space=_describe_space(model.observation_space, "observation_space", tensors),
        action_space=_describe_space(model.action_space, "action_space", tensors),
        features_extractor=type(actor.features_extractor).__name__,
        features_extractor_kwargs=policy.features_extractor_kwargs,
        activation_fn=activation_fn.__name__,
        normalize_images=actor.normalize_images,
        network={name: actor.constructor_parameters[name] for name in NETWORK_KEYS},
        observation_statistics=_describe_statistics(model, tensors),
    )
    try:
        json.dumps(description)
    except TypeError as error:
        raise ValueError(
            f"`features_extractor_kwargs={policy.features_extractor_kwargs}` cannot be exported: {error}"
        ) from error
    return description, tensors


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


def _describe_statistics(model: "BNDDPG", tensors: dict[str, th.Tensor]) -> dict[str, Any]:
    """
    :param model: A model
    :param tensors: Where mean and variance of its observations go
    :return: The rest of what ``VecNormalize`` does to them; empty if it does nothing
    """
    normalize = model._vec_normalize_env
    if normalize is None or not normalize.norm_obs:
        return {}
    statistics: Any = normalize.obs_rms
    if not isinstance(statistics, dict):
        statistics = {"observation": statistics}
    for key, rms in statistics.items():
        tensors[f"statistics.{key}.mean"] = th.as_tensor(np.array(rms.mean, dtype=np.float64))
        tensors[f"statistics.{key}.var"] = th.as_tensor(np.array(rms.var, dtype=np.float64))
    return dict(epsilon=float(normalize.epsilon), clip=float(normalize.clip_obs), keys=sorted(statistics))


# --- Rebuilding


def _check_description(path: Any, description: Any) -> None:
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
    if set(description) != DESCRIPTION_KEYS:
        raise FileError(
            path, f"has a description whose keys are unknown or missing: {sorted(set(description) ^ DESCRIPTION_KEYS)}"
        )
    for key, known in (("features_extractor", FEATURES_EXTRACTORS), ("activation_fn", ACTIVATIONS)):
        if description[key] not in known:
            raise FileError(path, f"has an unknown {key}: {description[key]!r}")
    if set(description["network"]) != set(NETWORK_KEYS):
        raise FileError(path, f"has a network whose keys are unknown or missing: {sorted(description['network'])}")


def _build(description: dict[str, Any], tensors: dict[str, th.Tensor]) -> ExportedPolicy:
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
    statistics = {}
    if about := description["observation_statistics"]:
        for key in about["keys"]:
            mean, var = tensors.pop(f"statistics.{key}.mean"), tensors.pop(f"statistics.{key}.var")
            shape = (observation_space[key] if isinstance(observation_space, spaces.Dict) else observation_space).shape
            if not tuple(mean.shape) == tuple(var.shape) == shape or not (th.isfinite(mean).all() and (var >= 0).all()):
                raise ValueError(f"the statistics of {key} do not fit the observation space")
            statistics[key] = ObservationStatistics(mean, var, float(about["epsilon"]), float(about["clip"]))
    # No memory is taken before the sizes are known to be those of the tensors
    with th.device("meta"):
        extractor_class: Any = FEATURES_EXTRACTORS[description["features_extractor"]]
        extractor = extractor_class(observation_space, **description["features_extractor_kwargs"])
        actor = Actor(
            observation_space,
            action_space,
            features_extractor=extractor,
            features_dim=extractor.features_dim,
            activation_fn=ACTIVATIONS[description["activation_fn"]],
            normalize_images=description["normalize_images"],
            **description["network"],
        )
    weights = {name.removeprefix("actor."): tensor for name, tensor in tensors.items() if name.startswith("actor.")}
    if left := sorted(set(tensors) - {f"actor.{name}" for name in weights}):
        raise ValueError(f"there are unknown tensors {left}")
    for name, expected in actor.state_dict().items():
        if name in weights and weights[name].dtype != expected.dtype:
            raise ValueError(f"{name} is of type {weights[name].dtype}, not {expected.dtype}")
    if bad := [name for name, tensor in weights.items() if not th.isfinite(tensor).all()]:
        raise ValueError(f"{bad} hold numbers that are not finite")
    actor.load_state_dict(weights, strict=True, assign=True)
    return ExportedPolicy(actor, statistics).requires_grad_(False)


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
            return spaces.Dict({key: _build_space(child, f"{name}.{key}", tensors) for key, child in entries.items()})
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
