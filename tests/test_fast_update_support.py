"""What the fast update leaves to autograd, and says so."""

import pytest
import torch as th
from conftest import SMALL, VectorEnv
from fast_updates import COMPILED, PATHS, PlainExtractor, by, needs_numba, with_layers
from torch import nn
from torch.optim import optimizer as of_optimizers

from sb3_bn_ddpg import BNDDPG, BNTD3, MlpPolicy
from sb3_bn_ddpg.fast.update import FastUpdate
from sb3_bn_ddpg.networks.policies import BNDDPGPolicy


def test_it_is_the_default_and_learns(make_model):
    model = make_model()
    model.learn(60)
    assert model._fast_update is not None


@pytest.mark.parametrize("path", [True, COMPILED])
def test_a_loop_of_learn_says_once_what_is_not_fast(make_model, path, capsys):
    model = make_model(**by(path), verbose=1, policy_kwargs=SMALL | dict(activation_fn=nn.Tanh)).learn(30)
    for _ in range(5):
        model.learn(1, reset_num_timesteps=False)
    assert capsys.readouterr().out.count("Updating by autograd: there is a layer Tanh") == 1
    model.critic.optimizer = th.optim.SGD(model.critic.parameters(), lr=1e-3)
    model.learn(1, reset_num_timesteps=False)
    assert "Updating by autograd" in capsys.readouterr().out
    assert model._fast_update is None


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(policy_kwargs=dict(SMALL, activation_fn=nn.Tanh)), "Tanh"),
        (dict(policy_kwargs=dict(SMALL, activation_fn=nn.Tanh, normalization=None)), "Tanh"),
        (dict(policy_kwargs=dict(SMALL, optimizer_class=th.optim.SGD)), "SGD"),
        (dict(policy_kwargs=dict(SMALL, optimizer_class=th.optim.AdamW)), "AdamW"),
        (dict(policy_kwargs=dict(SMALL, optimizer_kwargs=dict(amsgrad=True))), "Adam with options"),
        (dict(policy_kwargs=dict(SMALL, features_extractor_class=PlainExtractor)), "PlainExtractor"),
        (dict(policy_kwargs=dict(SMALL, share_features_extractor=True)), "share"),
        (dict(policy_kwargs=dict(SMALL, share_features_extractor=True, shared_extractor_loss="critic")), "share"),
        (dict(critic_loss_statistics="running_update"), "running_update"),
    ],
)
def test_everything_else_goes_by_autograd_and_says_so_once(make_model, capsys, kwargs, reason):
    model = make_model(verbose=1, **kwargs)
    model.learn(40)
    assert model._fast_update is None
    output = capsys.readouterr().out
    assert output.count("Updating by autograd") == 1
    assert reason in output


@pytest.mark.parametrize("normalization", ["layer", None])
def test_a_joint_input_without_a_layer_is_fast(make_model, normalization):
    """Where nothing normalises the input, it makes no difference what would be normalised."""
    policy_kwargs = dict(SMALL, normalization=normalization, critic_input_norm="state_action", action_layer=1)
    assert type(make_model(policy_kwargs=policy_kwargs).learn(40)._fast_update) is FastUpdate


TIED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Hardtanh()), "the last layer of the actor is Hardtanh"),
        ((nn.ReLU(), nn.Linear(4, 2), nn.Tanh()), "a layer ReLU stands where"),
        ((nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2), nn.Tanh()), "two normalisations"),
        ((nn.Linear(4, 8), nn.Linear(8, 2), nn.Tanh()), "no ReLU follows a layer"),
        ((nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2), nn.Tanh()), "has no gamma or beta"),
        ((nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2), nn.Tanh()), "has no gamma or beta"),
        ((nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 2), nn.Tanh()), "has no running averages"),
        ((TIED, nn.ReLU(), TIED, nn.ReLU(), nn.Linear(4, 2), nn.Tanh()), "networks or layers share parameters"),
    ],
)
def test_layers_that_it_does_not_know_go_by_autograd(layers, reason, capsys):
    model = BNDDPG(
        with_layers(*layers), VectorEnv(), buffer_size=100, learning_starts=10, batch_size=8, verbose=1, device="cpu"
    )
    model.learn(30)
    assert model._fast_update is None
    assert reason in capsys.readouterr().out


def test_networks_that_share_a_parameter_learn(capsys):
    class SharedTrunk(BNDDPGPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            for actor, critic in ((self.actor, self.critic), (self.actor_target, self.critic_target)):
                critic.state_net[0] = actor.mu[0]
            self.critic.optimizer = self.optimizer_class(self.critic.parameters(), lr=lr_schedule(1))

    policy_kwargs = dict(net_arch=[8, 8], normalization=None)
    model = BNDDPG(SharedTrunk, VectorEnv(), buffer_size=100, learning_starts=10, verbose=1, policy_kwargs=policy_kwargs)
    model.learn(20)
    assert "networks or layers share parameters" in capsys.readouterr().out


def tied_layers(model, monkeypatch):
    for critic in (model.critic, model.critic_target):
        critic.qf1.q_net[-1].weight = critic.qf0.q_net[-1].weight
    model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=1e-3)


def layer_norm_before_the_action(model, monkeypatch):
    for critic in (model.critic, model.critic_target):
        n = critic.qf0.q_net[0].in_features
        critic.qf0.q_net = nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, 1))
    model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=1e-3)


def hook_of_a_target_network(model, monkeypatch):
    model.critic_target.register_forward_hook(lambda module, inputs, output: None)


def hook_of_all_modules(model, monkeypatch):
    monkeypatch.setitem(th.nn.modules.module._global_forward_hooks, 0, lambda module, inputs, output: None)


def hook_of_all_optimizers(model, monkeypatch):
    monkeypatch.setitem(of_optimizers._global_optimizer_pre_hooks, 0, lambda *args: None)


def own_forward(model, monkeypatch):
    q_net = model.critic.qf0.q_net
    q_net.forward = lambda inputs: 2 * type(q_net).forward(q_net, inputs)


def a_parameter_less_in_the_optimizer(model, monkeypatch):
    model.actor.optimizer.param_groups[-1]["params"].pop()


CHANGES = [
    tied_layers,
    layer_norm_before_the_action,
    hook_of_a_target_network,
    hook_of_all_modules,
    hook_of_all_optimizers,
    own_forward,
    a_parameter_less_in_the_optimizer,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("begins", [True, False], ids=["at first", "in mid-training"])
def test_what_only_autograd_knows(change, begins, monkeypatch):
    policy_kwargs = dict(net_arch=[8, 8], normalization=None)
    model = BNTD3("MlpPolicy", VectorEnv(), learning_starts=10, buffer_size=100, policy_kwargs=policy_kwargs, device="cpu")
    if not begins:
        model.learn(15)
        assert type(model._fast_update) is FastUpdate
    change(model, monkeypatch)
    model.learn(15, reset_num_timesteps=begins)
    assert model._fast_update is None


@needs_numba
def test_q_networks_of_other_layers_are_not_compiled(capsys):
    """Compiled, all of them share one memory."""
    arguments = dict(
        learning_starts=10, buffer_size=100, policy_kwargs=dict(net_arch=[8, 8], normalization=None), device="cpu"
    )
    model = BNTD3("MlpPolicy", VectorEnv(), fast_update="compiled", verbose=1, **arguments)
    for critic in (model.critic, model.critic_target):
        state_net = nn.Sequential(nn.Linear(4, 12), nn.ReLU())
        critic.qf1.state_net, critic.qf1.q_net = state_net, nn.Sequential(nn.Linear(14, 8), nn.ReLU(), nn.Linear(8, 1))
    model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=1e-3)
    model.learn(15)
    assert model._fast_update is None
    assert "a Q-network has other layers than another one" in capsys.readouterr().out


def test_atoms_that_are_exchanged_count(make_model):
    model = make_model(policy_kwargs=SMALL | dict(n_atoms=11, v_min=-1.0, v_max=1.0)).learn(40)
    model.critic.atoms = 2 * model.critic.atoms
    model.learn(1, reset_num_timesteps=False)
    assert model._fast_update.parts.atoms is model.critic.atoms


def test_shared_memory_stays_shared(make_model, capsys):
    model = make_model(verbose=1)
    model.policy.share_memory()
    model.learn(40)
    assert "shared memory" in capsys.readouterr().out
    assert model.actor.mu[1].weight.is_shared()


class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs) / 2


@pytest.mark.parametrize("name", ["actor.mu", "critic.qf0", "critic.qf0.state_net", "critic.qf0.q_net"])
@PATHS
def test_modules_of_ones_own_go_by_autograd(make_model, path, name):
    model = make_model(**by(path), verbose=1)
    network, attribute = name.split(".", 1)
    for each in (network, f"{network}_target"):
        owner = getattr(model, each).get_submodule(attribute.rpartition(".")[0])
        inner = getattr(owner, attribute.rpartition(".")[2])
        setattr(owner, attribute.rpartition(".")[2], Scaled(inner))
    model.learn(30)
    assert model._fast_update is None


@needs_numba
def test_compiled_by_autograd_if_nothing_else_goes(make_model, capsys):
    model = make_model(fast_update="compiled", verbose=1, policy_kwargs=dict(SMALL, activation_fn=nn.Tanh))
    model.learn(40)
    assert model._fast_update is None
    assert "Updating by autograd: there is a layer Tanh" in capsys.readouterr().out


def test_frozen_parameters_stay_frozen(make_model):
    model = make_model()
    model.actor.mu[1].weight.requires_grad_(False)
    before = model.actor.mu[1].weight.clone()
    model.learn(40)
    assert model._fast_update is None
    assert th.equal(model.actor.mu[1].weight, before)


def test_spectral_norm_is_trained():
    class SpectralPolicy(MlpPolicy):
        def make_critic(self, features_extractor=None):
            critic = super().make_critic(features_extractor)
            nn.utils.spectral_norm(critic.q_net[0])
            return critic

    model = BNDDPG(
        SpectralPolicy, VectorEnv(), learning_starts=20, batch_size=16, critic_weight_decay=0.0, seed=0, device="cpu"
    )
    before = model.critic.q_net[0].weight_orig.clone()
    model.learn(40)
    assert (model.critic.q_net[0].weight_orig - before).abs().max() > 1e-3
