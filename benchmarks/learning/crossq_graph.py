"""
sb3-contrib's CrossQ on a GPU, its update recorded as CUDA graphs.

The graphs are recorded from ``CrossQ.train`` itself: the library's operations in the library's order, launched in one call
instead of some 800.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

FIRST = 6
"""Updates without a graph: what PyTorch allocates once must be there before a graph is recorded."""

LOGGED = ("ent_coef", "critic_loss", "ent_coef_loss", "actor_loss")
"""What ``CrossQ.train`` reads from the GPU, in its order; the last two only where it updates the actor."""


class GraphedCrossQ(CrossQ):
    """CrossQ with its defaults, for ``device="cuda"``. Its constructor's arguments are CrossQ's."""

    def _setup_model(self) -> None:
        super()._setup_model()
        assert self.ent_coef_optimizer is not None
        self.graphs: dict[bool, tuple[th.cuda.CUDAGraph, ReplayBufferSamples, list[th.Tensor]]] = {}
        for optimizer in (self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer):
            for group in optimizer.param_groups:
                group["capturable"] = True  # Adam counts its steps on the GPU
        self.renorms = [module for module in self.policy.modules() if isinstance(module, BatchRenorm)]
        for module in self.renorms:
            # Counts batches for nothing but the end of the warm-up, and the comparison needs the number on the CPU
            module.steps = module.steps.cpu()

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        for _ in range(gradient_steps):
            if self._n_updates < FIRST:
                stream = th.cuda.Stream()  # type: ignore[no-untyped-call]
                stream.wait_stream(th.cuda.current_stream())
                with th.cuda.stream(stream):
                    super().train(1, batch_size)
                th.cuda.current_stream().wait_stream(stream)
                continue
            # A graph has the branch of the warm-up, in which a batch's statistics normalise it
            assert all(self._n_updates < module.warmup_steps for module in self.renorms)
            with_actor = (self._n_updates + 1) % self.policy_delay == 0
            batch = self.replay_buffer.sample(batch_size)  # type: ignore[union-attr]
            if with_actor not in self.graphs:
                self.graphs[with_actor] = self._record(batch)
            graph, inputs, logged = self.graphs[with_actor]
            for mine, new in zip(inputs, batch, strict=True):
                if mine is not None and new is not None:  # discounts are None
                    mine.copy_(new)
            graph.replay()
            self._n_updates += 1
            self._update_learning_rate([])  # logs it; the graph has the constant
            self.logger.record("train/n_updates", self._n_updates)
            for name, value in zip(LOGGED, th.stack(logged).tolist(), strict=False):
                self.logger.record(f"train/{name}", value)

    def _record(self, batch: ReplayBufferSamples) -> tuple[th.cuda.CUDAGraph, ReplayBufferSamples, list[th.Tensor]]:
        """
        :param batch: A minibatch, whose tensors become the graph's inputs
        :return: The graph of the next update, its inputs, and its outputs in the order of :data:`LOGGED`
        """
        graph, updates = th.cuda.CUDAGraph(), self._n_updates
        logged: list[th.Tensor] = []
        with _recorded(self, batch, logged), th.cuda.graph(graph):
            super().train(1, len(batch.rewards))
        self._n_updates = updates  # recorded is not yet done
        return graph, batch, logged


@contextmanager
def _recorded(model: GraphedCrossQ, batch: ReplayBufferSamples, logged: list[th.Tensor]) -> Iterator[None]:
    """``CrossQ.train`` takes the minibatch, and where it would wait for a number of the GPU, the tensor is kept instead."""

    def item(tensor: th.Tensor) -> float:
        logged.append(tensor.detach().reshape(()))
        return 0.0

    silent: Any = Logger(folder=None, output_formats=[])
    replay = SimpleNamespace(sample=lambda *_, **__: batch)
    with (
        patch.object(th.Tensor, "item", item),
        patch.multiple(model, replay_buffer=replay, _logger=silent),
        # No check of a distribution's arguments either: it waits for its result
        patch.object(th.distributions.Distribution, "_validate_args", False),
    ):
        yield
