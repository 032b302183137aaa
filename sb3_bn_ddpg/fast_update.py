"""
The gradient step of ``update.py`` again, several times faster on small networks: gradients derived by hand, no autograd, and
each network's parameters, gradients, Adam moments and running statistics laid out in one tensor each.

``update.gradient_step`` is the definition; the tests hold both to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_bn_ddpg.normalization import Statistics
from sb3_bn_ddpg.policies import Actor, Critic
from sb3_bn_ddpg.update import Batch, Networks, PassStatistics, UpdateInfo, restore_norms

ALIGNMENT = 16
"""Parameters start at multiples of so many floats (a cache line) in the flat tensors; the gaps stay zero."""

DENORMAL_INTERVAL = 100
DENORMAL_THRESHOLD = 1e-30
"""
Once in so many steps, moments below the threshold become zero. Those of a parameter without gradient otherwise decay into
denormal numbers after some 800 steps, and stay there, which makes Adam several times slower. Beside Adam's epsilon
they count for nothing.
"""


class UnsupportedError(Exception):
    """The reason why a model's update needs ``update.gradient_step``."""


class FastUpdate:
    """
    The gradient step for the networks that ``MlpPolicy`` builds by default: linear layers, batch norm or none, ReLU.

    It takes over the storage of parameters, running statistics and optimizer state; modules and optimizers keep views into it,
    so saving, loading and every other use of them go on as before.

    :param nets: The networks, with the optimizers of actor and critic
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :raises UnsupportedError: if networks, optimizers or statistics are others than it knows
    """

    def __init__(self, nets: Networks, statistics: PassStatistics) -> None:
        _check_supported(nets, statistics)
        self.nets, self.statistics = nets, statistics
        # Look at everything before anything is moved
        sequences = _parsed_networks(nets.actor, nets.critic)
        self.n_steps = 0
        self.actor_storage = FlatStorage(nets.actor, nets.actor_target)
        self.critic_storage = FlatStorage(nets.critic, nets.critic_target)
        self.dtype = self.actor_storage.values.dtype
        self.actor, self.state_net, self.q_net = (Mlp(*sequence) for sequence in sequences)
        if nets.actor_target is nets.actor:
            self.actor_target, self.state_net_target, self.q_net_target = self.actor, self.state_net, self.q_net
        else:
            sequences = _parsed_networks(nets.actor_target, nets.critic_target)
            self.actor_target, self.state_net_target, self.q_net_target = (Mlp(*sequence) for sequence in sequences)

    def is_current(self, nets: Networks, statistics: PassStatistics) -> bool:
        """
        :param nets: The networks of the model
        :param statistics: The model's choice of statistics
        :return: Whether this object still holds their storage: not after an optimizer's state was loaded, for example
        """
        return (
            nets is self.nets
            and statistics == self.statistics
            and self.actor_storage.is_current()
            and self.critic_storage.is_current()
        )

    @th.inference_mode()
    def gradient_step(self, batch: Batch, gamma: float, tau: float) -> UpdateInfo:
        """
        One gradient step, as ``update.gradient_step``.

        :param batch: Transitions sampled from the replay buffer
        :param gamma: Discount factor, unless the batch has its own (n-step returns)
        :param tau: Polyak coefficient of the target networks, in [0, 1]
        :return: Losses and values of this step
        """
        assert isinstance(batch.observations, th.Tensor)
        assert isinstance(batch.next_observations, th.Tensor)
        obs, next_obs = (x.flatten(1).to(self.dtype) for x in (batch.observations, batch.next_observations))
        actions, n = batch.actions, len(obs)

        # The TD target y = r + gamma Q'(s', mu'(s'))
        use = self.statistics.target
        next_actions = self.actor_target.forward(next_obs, use).output.tanh_()
        next_features = self.state_net_target.forward(next_obs, use).output
        next_q = self.q_net_target.forward(th.cat([next_features, next_actions], dim=1), use).output
        discounts = (1 - batch.dones).mul_(gamma if batch.discounts is None else batch.discounts)
        target = th.addcmul(batch.rewards, discounts, next_q)
        _count_updates(use, self.actor_storage.target_counts, self.critic_storage.target_counts)

        # The critic's loss mean (Q(s, a) - y)^2, its gradient and its step
        use = self.statistics.critic_loss
        state_pass = self.state_net.forward(obs, use)
        q_pass = self.q_net.forward(th.cat([state_pass.output, actions], dim=1), use)
        q_values, td_error = q_pass.output, q_pass.output - target
        reported = [td_error.square(), q_values, q_values.abs(), target]
        # The input of the Q-network is (n, features + action_dim); the state layers get the gradient of the features
        n_features = state_pass.output.shape[1]
        features_grad = self.q_net.backward(q_pass, td_error.mul_(2 / n), slice(0, n_features))
        self.state_net.backward(state_pass, features_grad)
        _count_updates(use, self.critic_storage.counts)
        self.critic_storage.adam_step()
        restore_norms(self.nets.fixed_norm_critic_weights)

        # The actor's loss -mean Q(s, mu(s)); of the critic, only the gradient of the action is needed
        actor_pass = self.actor.forward(obs, self.statistics.actor_loss_actor)
        mu = actor_pass.output.tanh_()
        use = self.statistics.actor_loss_critic
        features = self.state_net.forward(obs, use).output
        q_pass = self.q_net.forward(th.cat([features, mu], dim=1), use)
        reported.append(-q_pass.output)
        action_grad = self.q_net.input_gradient(q_pass, th.full_like(target, -1 / n), slice(n_features, None))
        self.actor.backward(actor_pass, th.ops.aten.tanh_backward(action_grad, mu))
        _count_updates(self.statistics.actor_loss_actor, self.actor_storage.counts)
        _count_updates(use, self.critic_storage.counts)
        self.actor_storage.adam_step()
        restore_norms(self.nets.fixed_norm_actor_weights)

        self.n_steps += 1
        for storage in (self.actor_storage, self.critic_storage):
            storage.move_target(tau, self.statistics.target_sync)
            if self.n_steps % DENORMAL_INTERVAL == 0:
                storage.flush_denormals()
        # One mean of all columns instead of a mean each
        critic_loss, q_value, abs_q_value, mean_target, actor_loss = th.cat(reported, dim=1).mean(dim=0).unbind()
        return UpdateInfo(actor_loss, critic_loss, q_value, abs_q_value, mean_target)


class FlatStorage:
    """
    Everything an update changes of a network and its target, each kind in one tensor, of which the modules' parameters and
    buffers, the parameters' gradients and the optimizer's moments become views.

    :param network: The network, with its Adam optimizer
    :param target: Its target network, or the network itself
    """

    def __init__(self, network: Actor | Critic, target: Actor | Critic) -> None:
        self.optimizer = network.optimizer
        groups = self.optimizer.param_groups
        names = {param: name for name, param in network.named_parameters()}
        # Group by group, so that each group is one slice
        self.params: list[nn.Parameter] = [param for group in groups for param in group["params"]]
        target_params = dict(target.named_parameters())
        self.values, views = _flattened(self.params)
        for param, view in zip(self.params, views, strict=True):
            param.data = view
        self.target_values = self.values
        if target is not network:
            matching = [target_params[names[param]] for param in self.params]
            self.target_values, views = _flattened(matching)
            for param, view in zip(matching, views, strict=True):
                param.data = view
        self.grads, self.grad_views = _flattened(th.zeros_like(param) for param in self.params)
        for param, view in zip(self.params, self.grad_views, strict=True):
            param.grad = view

        # Adam's state: zeros before the first step, or what was loaded or reached by the reference
        state: Any = self.optimizer.state
        for moment in ("exp_avg", "exp_avg_sq"):
            flat, views = _flattened(state.get(param, {}).get(moment, th.zeros_like(param)) for param in self.params)
            setattr(self, moment, flat)
            for param, view in zip(self.params, views, strict=True):
                state.setdefault(param, {})[moment] = view
        self.exp_avg: th.Tensor
        self.exp_avg_sq: th.Tensor
        steps = [float(state[param].get("step", 0.0)) for param in self.params]
        # Where Adam itself keeps them
        self.steps = th.tensor(steps, dtype=th.float32, device=self.values.device if groups[0].get("fused") else "cpu")
        for index, param in enumerate(self.params):
            state[param]["step"] = self.steps[index]
        self._slices = []
        start = first = 0
        for group in groups:
            end = start + sum(_aligned(param.numel()) for param in group["params"])
            # One counter a slice, where fused Adam reads it
            step = th.tensor(steps[first], dtype=th.float32, device=self.values.device)
            tensors = [[flat[start:end]] for flat in (self.values, self.grads, self.exp_avg, self.exp_avg_sq)]
            self._slices.append((group, tensors, step))
            start, first = end, first + len(group["params"])

        # Running means and variances in one tensor, counters in another
        self.stats, self.counts = _flat_statistics(network)
        self.target_stats, self.target_counts = (self.stats, self.counts) if target is network else _flat_statistics(target)

    def is_current(self) -> bool:
        """
        :return: Whether parameters and optimizer state are still views of this storage
        """
        address = self.values.data_ptr()
        for param, grad in ((self.params[0], self.grad_views[0]), (self.params[-1], self.grad_views[-1])):
            offset = param.data_ptr() - address
            moment = self.optimizer.state[param].get("exp_avg") if param in self.optimizer.state else None
            if param.grad is not grad or moment is None or moment.data_ptr() - self.exp_avg.data_ptr() != offset:
                return False
        return self.params[0].data_ptr() == address

    def adam_step(self) -> None:
        """One step of the optimizer with the gradients that lie in the storage."""
        self.steps.add_(1)
        for group, (values, grads, exp_avgs, exp_avg_sqs), step in self._slices:
            step.add_(1)
            # What torch.optim.adam.adam(fused=True) calls, without its grouping of tensors by device and type
            th._fused_adam_(
                values,
                grads,
                exp_avgs,
                exp_avg_sqs,
                [],
                [step],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def flush_denormals(self) -> None:
        """Set moments that are too small to count to zero."""
        for flat in (self.exp_avg, self.exp_avg_sq):
            flat.copy_(nn.functional.hardshrink(flat, DENORMAL_THRESHOLD))

    def move_target(self, tau: float, sync: str | None) -> None:
        """
        :param tau: Polyak coefficient, in [0, 1]
        :param sync: How running statistics follow: ``"copy"``, ``"polyak"`` or None
        """
        if self.target_values is self.values:
            return
        self.target_values.lerp_(self.values, tau)
        if sync == "copy":
            self.target_stats.copy_(self.stats)
        elif sync == "polyak":
            self.target_stats.lerp_(self.stats, tau)
        if sync is not None:
            self.target_counts.copy_(self.counts)


@dataclass
class Pass:
    """What a forward pass leaves for its backward pass."""

    inputs: list[th.Tensor]
    """The input of the network as it came, then of each linear layer, (n, features) each"""
    linear_outputs: list[th.Tensor]
    moments: list[tuple[th.Tensor, th.Tensor]]
    """Mean and inverse standard deviation of each batch norm that used the batch's"""
    output: th.Tensor


class Norm:
    """A batch-norm layer's tensors, without the cost of looking attributes up in a module."""

    def __init__(self, module: nn.BatchNorm1d) -> None:
        assert module.momentum is not None
        self.weight, self.bias = module.weight.detach(), module.bias.detach()
        self.weight_grad, self.bias_grad = module.weight.grad, module.bias.grad
        self.mean, self.var = module.running_mean, module.running_var
        self.momentum, self.eps = module.momentum, module.eps

    def forward(self, x: th.Tensor, statistics: Statistics) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Normalised x, and the mean and inverse standard deviation of the batch (empty if the running ones were used)."""
        is_batch = statistics != "running"
        mean, var = (None, None) if statistics == "batch" else (self.mean, self.var)
        y, batch_mean, batch_invstd = th.native_batch_norm(
            x, self.weight, self.bias, mean, var, is_batch, self.momentum, self.eps
        )
        return y, batch_mean, batch_invstd

    def backward(
        self, grad: th.Tensor, x: th.Tensor, moments: tuple[th.Tensor, th.Tensor], is_input: bool = False
    ) -> th.Tensor:
        """Fill the gradients of gamma and beta, and return that of x unless it is the network's input."""
        grad, weight_grad, bias_grad = th.ops.aten.native_batch_norm_backward(
            grad, x, self.weight, None, None, *moments, True, self.eps, [not is_input, True, True]
        )
        assert self.weight_grad is not None
        assert self.bias_grad is not None
        self.weight_grad.copy_(weight_grad)
        self.bias_grad.copy_(bias_grad)
        return grad


class Mlp:
    """
    A sequence of linear layers, normalised or not, with ReLUs between them, that differentiates itself.

    :param input_norm: Batch norm of the input, or None
    :param layers: Linear layers and the batch norm behind each, or None
    :param has_output: Whether the last layer is the output: no batch norm, no ReLU
    """

    def __init__(
        self, input_norm: nn.BatchNorm1d | None, layers: list[tuple[nn.Linear, nn.BatchNorm1d | None]], has_output: bool
    ) -> None:
        self.input_norm = None if input_norm is None else Norm(input_norm)
        self.norms = [None if norm is None else Norm(norm) for _, norm in layers]
        self.weights = [linear.weight.detach() for linear, _ in layers]
        self.transposed = [weight.t() for weight in self.weights]
        self.weight_grads = [linear.weight.grad for linear, _ in layers]
        self.biases = [None if linear.bias is None else linear.bias.detach() for linear, _ in layers]
        self.bias_grads = [None if linear.bias is None else linear.bias.grad for linear, _ in layers]
        self.n_hidden = len(layers) - has_output

    def forward(self, x: th.Tensor, statistics: Statistics) -> Pass:
        """
        :param x: Inputs, of shape ``(n, features)``
        :param statistics: Which statistics to normalise with and to update
        :return: The output and what the backward pass needs
        """
        inputs, outputs, moments = [x], [], []
        if self.input_norm is not None:
            x, mean, invstd = self.input_norm.forward(x, statistics)
            moments.append((mean, invstd))
        for index, (weight, bias, norm) in enumerate(zip(self.transposed, self.biases, self.norms, strict=True)):
            inputs.append(x)
            x = th.mm(x, weight) if bias is None else th.addmm(bias, x, weight)
            outputs.append(x)
            if norm is not None:
                x, mean, invstd = norm.forward(x, statistics)
                moments.append((mean, invstd))
            if index < self.n_hidden:
                x = x.relu_()
        return Pass(inputs, outputs, moments, x)

    def backward(self, forward: Pass, grad: th.Tensor, columns: slice | None = None) -> th.Tensor:
        """
        Fill the gradients of all parameters.

        :param forward: A forward pass on batch statistics
        :param grad: Gradient of its output
        :param columns: Inputs whose gradient is wanted, if any; not together with batch norm of the input
        :return: Gradient of these inputs
        """
        moments = list(forward.moments)
        # The output of a hidden layer is the input of the next
        activations = [*forward.inputs[2:], forward.output]
        for index in reversed(range(len(self.weights))):
            if index < self.n_hidden:
                grad = th.ops.aten.threshold_backward(grad, activations[index], 0)
            norm, bias_grad = self.norms[index], self.bias_grads[index]
            if norm is not None:
                grad = norm.backward(grad, forward.linear_outputs[index], moments.pop())
            if bias_grad is not None:
                th.sum(grad, dim=0, out=bias_grad)
            th.mm(grad.t(), forward.inputs[index + 1], out=self.weight_grads[index])
            if index or self.input_norm is not None:
                grad = th.mm(grad, self.weights[index])
            elif columns is not None:
                grad = th.mm(grad, self.weights[index][:, columns])
        if self.input_norm is not None:
            grad = self.input_norm.backward(grad, forward.inputs[0], moments.pop(), is_input=True)
        return grad

    def input_gradient(self, forward: Pass, grad: th.Tensor, columns: slice) -> th.Tensor:
        """
        The gradient of the input alone, for a sequence without batch norm.

        :param forward: A forward pass
        :param grad: Gradient of its output
        :param columns: Inputs whose gradient is wanted
        :return: Gradient of these inputs
        """
        for index in reversed(range(len(self.weights))):
            if index < self.n_hidden:
                grad = th.ops.aten.threshold_backward(grad, forward.inputs[index + 2], 0)
            weight = self.weights[index] if index else self.weights[index][:, columns]
            grad = th.mm(grad, weight)
        return grad


def _check_supported(nets: Networks, statistics: PassStatistics) -> None:
    """
    :param nets: The networks
    :param statistics: Which batch-norm statistics each pass normalises with and updates
    :raises UnsupportedError: if their update needs the reference, for a reason that is not in the layers
    """
    for network, network_type in ((nets.actor, Actor), (nets.critic, Critic)):
        if type(network) is not network_type:
            raise UnsupportedError(f"the network {type(network).__name__} is a custom class")
        if type(network.features_extractor) is not FlattenExtractor:
            raise UnsupportedError(f"the features extractor is {type(network.features_extractor).__name__}")
        if not isinstance(network.observation_space, spaces.Box) or is_image_space(network.observation_space):
            raise UnsupportedError(f"the observation space is {network.observation_space}")
        if not all(param.requires_grad for param in network.parameters()):
            raise UnsupportedError("a parameter is frozen")
        optimizer = network.optimizer
        # SGD, AdamW and others are not Adam itself
        if type(optimizer) is not th.optim.Adam or any(
            group["amsgrad"] or group["maximize"] or group.get("decoupled_weight_decay") for group in optimizer.param_groups
        ):
            raise UnsupportedError(f"the optimizer is {type(optimizer).__name__} with options of its own")
    if nets.critic.share_features_extractor:
        raise UnsupportedError("actor and critic share their features extractor")
    choices = (
        statistics.target,
        statistics.critic_loss,
        statistics.actor_loss_actor,
        statistics.actor_loss_critic,
    )
    if "running_update" in choices:
        raise UnsupportedError("a pass has the statistics 'running_update'")


MlpArguments = tuple[nn.BatchNorm1d | None, list[tuple[nn.Linear, nn.BatchNorm1d | None]], bool]


def _parsed_networks(actor: Actor, critic: Critic) -> list[MlpArguments]:
    """
    :param actor: The actor, whose last layer is its tanh
    :param critic: The critic
    :return: The arguments of :class:`Mlp` for the actor before its tanh, and for the critic before and after the action
    :raises UnsupportedError: if there is a layer that ``Mlp`` does not know
    """
    return [_parsed(modules) for modules in (list(actor.mu)[:-1], list(critic.state_net), list(critic.q_net))]


def _parsed(modules: list[nn.Module]) -> MlpArguments:
    """
    :param modules: Layers in order
    :return: The arguments of :class:`Mlp`
    :raises UnsupportedError: if there is a layer that it does not know
    """
    for module in modules:
        if type(module) not in (nn.Linear, nn.BatchNorm1d, nn.ReLU):
            raise UnsupportedError(f"there is a layer {type(module).__name__}")

    def pop_norm() -> nn.BatchNorm1d | None:
        if modules and isinstance(modules[0], nn.BatchNorm1d):
            norm = modules.pop(0)
            assert isinstance(norm, nn.BatchNorm1d)
            return norm
        return None

    input_norm, has_output = pop_norm(), False
    layers: list[tuple[nn.Linear, nn.BatchNorm1d | None]] = []
    while modules:
        linear = modules.pop(0)
        assert isinstance(linear, nn.Linear)
        layers.append((linear, pop_norm()))
        has_output = not modules
        if modules:
            assert isinstance(modules.pop(0), nn.ReLU)
    return input_norm, layers, has_output


def _count_updates(statistics: Statistics, *counts: th.Tensor) -> None:
    """
    :param statistics: What a pass did with the statistics
    :param counts: The batch-norm counters of its networks, which advance by one if it updated
    """
    if statistics == "batch_update":
        for count in counts:
            count.add_(1)


def _aligned(n: int) -> int:
    """The next multiple of the alignment."""
    return -(-n // ALIGNMENT) * ALIGNMENT


def _flattened(tensors: Iterable[th.Tensor]) -> tuple[th.Tensor, list[th.Tensor]]:
    """
    :param tensors: Tensors of one type and device
    :return: One flat tensor with their values, and a view of it for each, of its shape
    """
    tensors = [tensor.detach() for tensor in tensors]
    flat = tensors[0].new_zeros(sum(_aligned(tensor.numel()) for tensor in tensors))
    views, start = [], 0
    for tensor in tensors:
        view = flat[start : start + tensor.numel()].view(tensor.shape)
        view.copy_(tensor)
        views.append(view)
        start += _aligned(tensor.numel())
    return flat, views


def _flat_statistics(network: Actor | Critic) -> tuple[th.Tensor, th.Tensor]:
    """
    :param network: A network, whose batch-norm buffers become views
    :return: One tensor with all running means and variances, one with all counters of updates
    """
    flats = []
    for names in (("running_mean", "running_var"), ("num_batches_tracked",)):
        keys = [(layer, name) for layer in network.norm_layers for name in names]
        if not keys:
            flats.append(th.zeros(0))
            continue
        flat, views = _flattened(getattr(layer, name) for layer, name in keys)
        for (layer, name), view in zip(keys, views, strict=True):
            layer._buffers[name] = view
        flats.append(flat)
    return flats[0], flats[1]
