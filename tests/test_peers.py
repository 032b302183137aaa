"""
What the README's table says of the peers. SBX and Tianshou have environments of their own, which ``make bench-speed`` builds;
CleanRL's is a script, whose commit stands below the table.
"""

import inspect
import subprocess
from pathlib import Path

import pytest
import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3 import DDPG
from torch import nn

from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.worker import python_of
from sb3_bn_ddpg import BNDDPG, OrnsteinUhlenbeckNoise

ACTION_DIM = 1


@pytest.fixture(scope="module", params=[BNDDPG, DDPG, CrossQ], ids=lambda algorithm: algorithm.__name__)
def model(request):
    return request.param("MlpPolicy", "Pendulum-v1", buffer_size=10, seed=0)


def layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_batch_norm(model):
    """The paper's in BNDDPG, none in SB3's DDPG, batch renormalisation in CrossQ."""
    expected = {BNDDPG: nn.BatchNorm1d, DDPG: None, CrossQ: BatchRenorm1d}[type(model)]
    for network in (model.actor, model.critic):
        for kind in (nn.BatchNorm1d, BatchRenorm1d):
            assert bool(layers(network, kind)) == (kind is expected)


def test_where_the_action_enters_the_critic(model):
    """The first layer of BNDDPG's critic sees the state alone, that of the others the action too."""
    state_dim = model.observation_space.shape[0]
    first = layers(model.critic, nn.Linear)[0]
    assert first.in_features == (state_dim if isinstance(model, BNDDPG) else state_dim + ACTION_DIM)


def test_noise_without_being_asked(model):
    assert isinstance(model.action_noise, OrnsteinUhlenbeckNoise) == isinstance(model, BNDDPG)
    assert (model.action_noise is None) == (not isinstance(model, BNDDPG))


def test_rates_and_weight_decay_of_the_critic(model):
    """Of the three, BNDDPG alone has its own for the critic."""
    parameters = inspect.signature(type(model)).parameters
    assert ("critic_learning_rate" in parameters) == ("critic_weight_decay" in parameters) == isinstance(model, BNDDPG)
    decays = {group["weight_decay"] for group in model.critic.optimizer.param_groups}
    assert decays == ({0.0, 1e-2} if isinstance(model, BNDDPG) else {0})


def test_final_layers(model):
    """U[-3e-3, 3e-3] in BNDDPG, PyTorch's 1/sqrt(fan-in) in the others."""
    for network in (model.actor, model.critic):
        last = layers(network, nn.Linear)[-1]
        assert (last.weight.abs().max().item() <= 3e-3) == isinstance(model, BNDDPG)


def test_what_a_saved_model_holds(model, tmp_path):
    """Of the three, BNDDPG alone writes checkpoints; a saved policy is the same everywhere."""
    assert hasattr(model, "save_checkpoint") == isinstance(model, BNDDPG)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    for key, value in model.policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[key])


SBX = """
import inspect

import jax
from sbx import DDPG


def parameters(state):
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    return {path[-2].key: leaf for path, leaf in leaves if path[-1].key in ("kernel", "scale")}


model = DDPG("MlpPolicy", "Pendulum-v1", buffer_size=10, seed=0)
critic, actor = parameters(model.policy.qf_state), parameters(model.policy.actor_state)
assert not any("Norm" in layer for layer in [*critic, *actor])
assert critic["Dense_0"].shape[-2] == 3 + 1  # the action beside the state
assert abs(critic["Dense_2"]).max() > 3e-3 and abs(actor["Dense_2"]).max() > 3e-3
assert model.action_noise is None
arguments = inspect.signature(DDPG).parameters
assert "qf_learning_rate" in arguments and not any("decay" in name for name in arguments)
model = DDPG("MlpPolicy", "Pendulum-v1", buffer_size=10, seed=0, policy_kwargs=dict(layer_norm=True))
assert "LayerNorm_0" in parameters(model.policy.qf_state)
"""

TIANSHOU = """
import inspect

from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousCritic


def default(function, name):
    return inspect.signature(function).parameters[name].default


assert default(ContinuousDeterministicPolicy, "exploration_noise") is None
assert default(Net, "norm_layer") is None
assert default(ContinuousCritic, "apply_preprocess_net_to_obs_only") is False  # the action beside the state
assert default(AdamOptimizerFactory, "lr") == 1e-3 and default(AdamOptimizerFactory, "weight_decay") == 0
"""


@pytest.mark.parametrize(("contender", "claims"), [("sbx_ddpg", SBX), ("tianshou_ddpg", TIANSHOU)])
def test_peers_of_the_speed_benchmark(contender, claims):
    python = python_of(CONTENDERS[contender])
    if not Path(python).exists():
        pytest.skip("`make bench-speed` builds its environment")
    result = subprocess.run([python, "-c", claims], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
