"""
Deterministic policies in files that run no code: weights by safetensors with a JSON description, and ONNX.

Both take the environment's own observations and return its own actions: if the model was trained with ``VecNormalize``, its
statistics of observations are in the file. Batch norm uses its running statistics.
"""

import copy
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb3_bn_ddpg.common.atomic_files import FileError, atomic_write, clear_errors
from sb3_bn_ddpg.common.checks import check_installed
from sb3_bn_ddpg.export.exported_policy import ExportedPolicy
from sb3_bn_ddpg.export.policy_description import build, check_description, describe, observation_statistics
from sb3_bn_ddpg.networks.base_policy import BNActorCriticPolicy

METADATA_KEY = "bn_ddpg_policy"
SHA256_KEY = "bn_ddpg_sha256"
OUTPUT = "action"
"""Name of an ONNX graph's output."""


def export_policy(policy: BNActorCriticPolicy, normalize: VecNormalize | None, path: str | pathlib.Path) -> None:
    """
    Write a deterministic policy to one safetensors file, whose metadata hold the description.

    :param policy: The policy
    :param normalize: What normalises its observations, if anything does
    :param path: The file to write or replace, exactly as given
    :raises ValueError: if the policy has custom parts, which a description without code cannot hold
    :raises ImportError: if the package safetensors is missing
    """
    check_installed("export", "safetensors")
    from safetensors.torch import save

    description, tensors = describe(policy, normalize)
    build(description, tensors)  # what cannot be read is not written
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
    check_installed("export", "safetensors")
    from safetensors import safe_open

    with open(path, "rb"):  # for the system's own errors
        pass
    with clear_errors(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if set(metadata) != {METADATA_KEY, SHA256_KEY}:
            raise FileError(path, f"is no policy of bn-ddpg: its metadata are {sorted(metadata)}")
        # Copies, as those of a file lie at any address, where matrix products round differently
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dictionary
        if _sha256(metadata[METADATA_KEY], tensors) != metadata[SHA256_KEY]:
            raise FileError(path, "was altered: its content does not match its SHA-256")
        description = json.loads(metadata[METADATA_KEY])
        check_description(path, description)
        return build(description, tensors)


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


def export_onnx(policy: BNActorCriticPolicy, normalize: VecNormalize | None, path: str | pathlib.Path) -> None:
    """
    Write a deterministic policy as an ONNX graph. Its inputs are ``observation``, of shape ``(n, ...)`` (of a
    dictionary the keys, sorted), its output is ``action``. PyTorch's exporter writes what the policy calculates, also by
    classes of the user's: a graph holds no code.

    :param policy: The policy
    :param normalize: What normalises its observations, if anything does
    :param path: The file to write or replace, exactly as given
    :raises ValueError: if the exporter cannot tell what a class of the user's calculates, or an observation is called as the
        output is
    :raises ImportError: if the packages onnx or onnxscript are missing
    """
    check_installed("export", "onnx", "onnxscript")
    has_own_predict = type(policy)._predict is not BNActorCriticPolicy._predict
    network: BasePolicy = copy.deepcopy(policy if has_own_predict else policy.acting_network()).cpu()
    space = policy.observation_space
    statistics = observation_statistics(normalize, space)
    exported: nn.Module = ExportedPolicy(_without_batch_norm(network), statistics).requires_grad_(False)
    if isinstance(space, spaces.Dict):
        names = sorted(space.spaces)
        if OUTPUT in names:
            raise ValueError(
                f"`observation_space` with the key {OUTPUT!r} is not allowed for an ONNX graph, whose output has that name: "
                "name the key differently in the environment"
            )
        exported = _FromPositions(exported, names)
        inputs = tuple(_example(space[name]) for name in names)
    else:
        names, inputs = ["observation"], (_example(space),)
    n = th.export.Dim("n")
    # A module of `*entries` takes them as one tuple
    dynamic_shapes: Any = (tuple({0: n} for _ in names),) if isinstance(space, spaces.Dict) else ({0: n},)
    try:
        with _quiet("torch.onnx"):
            program = th.onnx.export(
                exported.eval(),
                inputs,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                verbose=False,
            )
    except th.onnx.errors.OnnxExporterError as error:
        extractor = type(policy.actor.features_extractor).__name__
        raise ValueError(
            f"`features_extractor_class={extractor}` or another part of the policy cannot be exported: PyTorch's exporter "
            "cannot follow what it calculates, which must be by operations on tensors, with no `if` on their values"
        ) from error
    assert program is not None
    content = program.model_proto.SerializeToString()
    with atomic_write(path) as file:
        file.write(content)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a logger say nothing below an error: PyTorch's exporter warns of operations of packages that are not installed."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _RunningNorm(nn.Module):
    """What batch norm in evaluation mode does with its running statistics. A layer of batch norm becomes one of these."""

    weight: th.Tensor | None
    bias: th.Tensor | None
    running_mean: th.Tensor
    running_var: th.Tensor
    eps: float

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Input of the layer, of shape ``(n, features)`` or ``(n, channels, ...)``
        :return: Its output
        """
        shape = (-1, *(1,) * (x.ndim - 2))  # one number a feature or channel
        scale = th.rsqrt(self.running_var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = (x - self.running_mean.reshape(shape)) * scale.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)


SelfModule = TypeVar("SelfModule", bound=nn.Module)


def _without_batch_norm(network: SelfModule) -> SelfModule:
    """
    Let each batch norm layer do plain arithmetic: the ONNX exporter of torch 2.6 fails at batch norm.

    :param network: A network, changed in place
    :return: The network
    """
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            # Other subclasses calculate something else
            others = [
                cls for cls in type(layer).__mro__ if "forward" in vars(cls) and cls.__module__.split(".")[0] != "sb3_bn_ddpg"
            ]
            if others[0] is _BatchNorm:
                layer.__class__ = _RunningNorm  # type: ignore[assignment]
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
