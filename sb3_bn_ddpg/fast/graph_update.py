"""
The fast update as CUDA graphs: on a GPU, its hundred and more launches take several times longer than what they launch, so a
step is recorded once, and then launched as a whole.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch as th

from sb3_bn_ddpg.common.steps import Batch, on_device
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.fast.step import StepCall, UnsupportedError
from sb3_bn_ddpg.fast.support import ParsedNetworks
from sb3_bn_ddpg.fast.update import FastUpdate
from sb3_bn_ddpg.networks.actor_critic import Networks
from sb3_bn_ddpg.networks.norm_layers import BatchRenorm1d

MAX_KINDS = 8
"""
Kinds of steps that are remembered: with two batch sizes and a delayed actor there are four. Where every step is another kind,
as where a callback changes ``tau`` at each, none is recorded.
"""


@dataclass
class Recording:
    """A recorded step, with the memory that it reads the minibatch from and writes what it reports to."""

    graph: th.cuda.CUDAGraph
    entries: tuple[Any, ...]
    reported: th.Tensor


class CudaGraphUpdate(FastUpdate):
    """
    As :class:`FastUpdate`, on a CUDA device: the same kernels in the same order, so the same numbers.

    A graph has its numbers written into it: ``gamma``, ``tau``, Adam's settings, the minibatch's shape, and whether the actor
    is updated. A step with others is another kind of step. The first of each kind is made as by ``FastUpdate``, which also has
    cuBLAS take what it needs; the second is recorded. Learning rates, which schedules change, lie on the device instead.

    :param nets: The networks, with the optimizers of actor and critic
    :param step: The algorithm's step
    :raises UnsupportedError: if the device is no CUDA device, or ``FastUpdate`` does not know a part of them
    """

    takes_any_device: ClassVar[bool] = True

    def __init__(self, nets: Networks, step: EngineStep) -> None:
        super().__init__(nets, step)
        self.kinds: dict[Hashable, Recording | None] = {}

    @classmethod
    def parsed(cls, nets: Networks, step: EngineStep) -> tuple[ParsedNetworks, ParsedNetworks]:
        """As ``FastUpdate.parsed``."""
        if nets.actor.device.type != "cuda":
            raise UnsupportedError(f"the device is {nets.actor.device}")
        if any(isinstance(module, BatchRenorm1d) for module in nets.modules):
            # What it does depends on how many passes there were, which a recording does not know
            raise UnsupportedError("there is batch renormalisation, which cannot be recorded")
        return super().parsed(nets, step)

    def _step(self, batch: Batch, noise: th.Tensor, call: StepCall) -> th.Tensor:
        for storage in self.storages:
            storage.hold_learning_rates()
        settings = tuple(storage.settings() for storage in self.storages)
        entries: tuple[Any, ...] = (*batch, noise)
        shapes = tuple(None if entry is None else (entry.shape, entry.dtype) for entry in entries)
        kind = (call, settings, shapes)
        device = self.actor_storage.values.device
        with th.cuda.device(device):
            if kind not in self.kinds:
                if len(self.kinds) == MAX_KINDS:
                    self.kinds.clear()
                self.kinds[kind] = None
                # On the stream that it is recorded on, for cuBLAS has its workspace by stream
                stream, current = side_stream(device), th.cuda.current_stream(device)
                stream.wait_stream(current)
                with th.cuda.stream(stream):
                    reported = self._on_device(on_device(batch, device), noise.to(device), call)
                current.wait_stream(stream)
                return reported
            recording = self.kinds[kind]
            if recording is None:
                # Does nothing on the device, but counts the optimizers' step where they have their counters on the CPU
                recording = self.kinds[kind] = self._record(batch, noise, call)
            else:
                of_actor = (self.actor_storage, self.entropy_storage)
                for storage in self.storages:
                    if (call.update_actor or storage not in of_actor) and not storage.steps.is_cuda:
                        storage.count_where_the_optimizer_reads(1)
            for own, entry in zip(recording.entries, entries, strict=True):
                if own is not None:
                    own.copy_(entry if entry.is_cuda else entry.pin_memory(), non_blocking=True)
            recording.graph.replay()
            return recording.reported.clone()  # the next step writes its own over them

    def _on_device(self, batch: Batch, noise: th.Tensor, call: StepCall) -> th.Tensor:
        """As ``FastUpdate``'s, which reports a tensor."""
        reported = super()._step(batch, noise, call)
        assert isinstance(reported, th.Tensor)
        return reported

    def _record(self, batch: Batch, noise: th.Tensor, call: StepCall) -> Recording:
        """
        :param batch: A minibatch of the shape that is recorded
        :param noise: The random numbers, of the shape that is recorded
        :param call: What else the step is told
        :return: The step's recording
        """
        entries: tuple[Any, ...] = (*batch, noise)
        device = self.actor_storage.values.device
        own: tuple[Any, ...] = tuple(None if entry is None else th.empty_like(entry, device=device) for entry in entries)
        graph = th.cuda.CUDAGraph()
        stream = side_stream(device)
        # Other threads, as an environment's that renders or computes on the GPU, go on meanwhile
        with th.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            reported = self._on_device(type(batch)(*own[:-1]), own[-1], call)
        return Recording(graph, own, reported)


@cache
def side_stream(device: th.device) -> th.cuda.Stream:
    """
    :param device: A CUDA device
    :return: The stream on which steps are recorded there: recording is not possible on the default one
    """
    return th.cuda.Stream(device)  # type: ignore[no-untyped-call]
