"""The paper's network for pixels: layers, number of parameters, initialisation, statistics, and every image SB3 accepts."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import learns
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage, is_vecenv_wrapped
from torch import nn

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3, CnnPolicy
from sb3_bn_ddpg.deterministic.step import gradient_step
from sb3_bn_ddpg.networks.layers import PaperCNN
from sb3_bn_ddpg.networks.norm_layers import BatchNorm2d, BatchRenorm2d, batch_statistics
from sb3_bn_ddpg.networks.statistics import PassStatistics

PIXELS = spaces.Box(0, 255, (9, 64, 64), np.uint8)
CONV_BATCH_NORM = dict(features_extractor_kwargs=dict(conv_normalization="batch"))
SMALL_CNN = dict(net_arch=[16, 12])
SHARING = {loss: dict(share_features_extractor=True, shared_extractor_loss=loss) for loss in ("actor", "critic")}


def make_policy(observation_space=PIXELS, **kwargs) -> CnnPolicy:
    return CnnPolicy(observation_space, spaces.Box(-1, 1, (1,)), lambda progress_remaining: 1e-4, **kwargs)


def make_model(env=None, **kwargs) -> BNDDPG:
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=False) if env is None else env
    arguments = dict(buffer_size=100, learning_starts=10, batch_size=8, policy_kwargs=SMALL_CNN, seed=0, device="cpu")
    return BNDDPG("CnnPolicy", env, **(arguments | kwargs))


def image_batch(model, size=8, seed=0) -> ReplayBufferSamples:
    generator = th.Generator().manual_seed(seed)
    shape = (size, *model.observation_space.shape)
    first, second = (th.randint(0, 256, shape, generator=generator, dtype=th.uint8) for _ in range(2))
    actions = th.rand(size, *model.action_space.shape, generator=generator) * 2 - 1
    return ReplayBufferSamples(first, actions, second, th.zeros(size, 1), th.randn(size, 1, generator=generator))


def test_layers():
    # "3 convolutional layers (no pooling) with 32 filters at each layer", then "two fully connected layers with 200 units" (7)
    policy = make_policy()
    for network in (policy.actor, policy.critic):
        modules = list(network.features_extractor.cnn)
        assert [type(module) for module in modules] == [nn.Conv2d, nn.ReLU] * 3 + [nn.Flatten]
        convolutions = modules[:6:2]
        assert [conv.in_channels for conv in convolutions] == [9, 32, 32]
        assert [conv.out_channels for conv in convolutions] == [32, 32, 32]
    assert [type(module) for module in policy.actor.mu] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear, nn.Tanh]
    assert [m.out_features for m in policy.actor.mu if isinstance(m, nn.Linear)] == [200, 200, 1]


def test_weight_normalization_keeps_the_norms_of_convolutions():
    model = make_model(weight_normalization="both", learning_rate=0.1, policy_kwargs=SMALL_CNN | CONV_BATCH_NORM)
    networks = (model.policy.actor, model.policy.critic)
    weights = [module.weight for net in networks for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(weights) == 6
    before = [weight.detach().clone() for weight in weights]
    gradient_step(model._networks, image_batch(model), 0.99, 0.5, PassStatistics())
    for weight, old in zip(weights, before, strict=True):
        assert not th.equal(weight, old)
        assert th.linalg.vector_norm(weight).item() == pytest.approx((32 / 3) ** 0.5, rel=1e-5)


def test_number_of_parameters():
    # "about 430,000 parameters" a network (section 7)
    policy = make_policy()
    count = {name: sum(p.numel() for p in getattr(policy, name).parameters()) for name in ("actor", "critic")}
    convolutions = (9 * 8 * 8 + 1) * 32 + 2 * (32 * 5 * 5 + 1) * 32
    hidden = (32 * 7 * 7 + 1) * 200 + 200 * 200 + 200
    assert count == {"actor": convolutions + hidden + 201, "critic": convolutions + hidden + 200 + 201}
    assert all(abs(n / 430_000 - 1) < 0.02 for n in count.values())


def test_initialisation():
    policy = make_policy()
    for network, output in ((policy.actor, policy.actor.mu[-2]), (policy.critic, policy.critic.q_net[-1])):
        for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
            values = conv.weight.detach().flatten() * (conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]) ** 0.5
            assert 0.99 < values.abs().max() <= 1
            assert values.std().item() == pytest.approx(3**-0.5, abs=0.01)  # of U[-1, 1]
            assert (conv.bias.abs() <= values.numel()).all()
        # The final layers are smaller than those of vectors
        assert 2e-4 < output.weight.abs().max() <= 3e-4
        assert output.bias.abs().max() <= 3e-4


def test_the_action_enters_at_the_second_fully_connected_layer():
    critic = make_policy().critic
    assert [m.in_features for m in critic.state_net if isinstance(m, nn.Linear)] == [32 * 7 * 7]
    assert [m.in_features for m in critic.q_net if isinstance(m, nn.Linear)] == [201, 200]


def test_images_are_scaled_to_the_unit_interval():
    policy = make_policy()
    seen = []
    policy.actor.features_extractor.cnn[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    policy.actor(th.tensor([0, 51, 255], dtype=th.uint8).repeat(1, 3)[..., None, None].expand(1, 9, 64, 64))
    assert th.equal(seen[0].unique(), th.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize(
    ("kind", "norm"), [("batch", BatchNorm2d), ("batch_renorm", BatchRenorm2d), ("layer", nn.GroupNorm), (None, None)]
)
def test_normalised_convolutions(kind, norm):
    kwargs = dict(features_extractor_kwargs=dict(conv_normalization=kind), norm_eps=2e-3, norm_momentum=0.3)
    policy = make_policy(normalization=kind, activation_fn=nn.Tanh, renorm_warmup_steps=7, **kwargs)
    types = [type(module) for module in policy.actor.features_extractor.cnn]
    assert types == [nn.Conv2d, *([norm] if norm else []), nn.Tanh] * 3 + [nn.Flatten]
    for network in (policy.actor, policy.critic):
        # The features are normalised convolution by convolution, not once more as an input
        assert isinstance(next(iter(network.mu if network is policy.actor else network.state_net)), nn.Linear)
        for module in network.features_extractor.modules():
            assert getattr(module, "eps", 2e-3) == 2e-3
            assert getattr(module, "momentum", 0.3) == 0.3
            assert getattr(module, "warmup_steps", 7) == 7
            if isinstance(module, nn.Conv2d):
                assert (module.bias is None) == (kind == "batch")  # batch norm's beta takes its place


@pytest.mark.parametrize("kind", ["batch", "batch_renorm", "layer", None])
def test_a_fully_connected_layer_of_features(kind):
    kwargs = dict(features_extractor_kwargs=dict(features_dim=11, features_normalization=kind), norm_momentum=0.3)
    policy = make_policy(net_arch=[6], action_layer=1, **kwargs)
    for network in (policy.actor, policy.critic):
        assert network.features_extractor.features_dim == 11
        linear, *norm, activation = list(network.features_extractor.cnn)[7:]
        assert (linear.in_features, linear.out_features) == (32 * 7 * 7, 11)
        assert isinstance(activation, nn.Tanh)
        assert len(norm) == (kind is not None)
        assert all(getattr(layer, "momentum", 0.3) == 0.3 for layer in norm)
        assert (linear.bias is None) == (kind == "batch")
    # The actor's one hidden layer, and the critic's, which the action enters
    assert policy.actor.mu[0].in_features == 11
    assert [m.in_features for m in policy.critic.q_net if isinstance(m, nn.Linear)] == [12, 6]
    assert policy.predict(PIXELS.sample())[0].shape == (1,)


def test_batch_renorm_of_images_is_that_of_their_places():
    from sb3_contrib.common.torch_layers import BatchRenorm1d

    images = th.randn(6, 3, 5, 4) * 2 + 1
    ours, theirs = BatchRenorm2d(3, warmup_steps=2), BatchRenorm1d(3, warmup_steps=2)
    for _ in range(5):  # past the warm-up
        rows = theirs(images.movedim(1, -1).reshape(-1, 3))
        with batch_statistics([ours], [ours]):
            output = ours(images)
        assert th.allclose(output.movedim(1, -1).reshape(-1, 3), rows)
    assert output.shape == images.shape
    assert th.equal(ours.ra_mean, theirs.ra_mean)


@pytest.mark.parametrize("channels_first", [True, False])
def test_channel_orders(channels_first, tmp_path):
    """SB3's rules: channels last is transposed once, by VecTransposeImage; predict takes the environment's own order."""
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=False, channel_first=channels_first)
    model = make_model(env)
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage) != channels_first
    assert model.observation_space.shape == (3, 40, 40)
    model.learn(30)
    observation = env.observation_space.sample()
    action, _ = model.predict(observation)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=env)
    np.testing.assert_array_equal(loaded.predict(observation)[0], action)
    loaded.learn(20)
    # A batch too, and channels first whatever the environment has
    first = observation if channels_first else observation.transpose(2, 0, 1)
    np.testing.assert_allclose(model.predict(np.stack([first] * 2))[0], np.stack([action] * 2), atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (84, 84), (36, 36), (20, 30), (4, 6), (1, 7)])
def test_image_sizes(size):
    """Every size that SB3 takes for an image: kernels are cut to it."""
    space = spaces.Box(0, 255, (1, *size), np.uint8)
    policy = make_policy(space)
    observation = space.sample()
    assert policy.predict(observation)[0].shape == (1,)
    assert PaperCNN(space)(th.zeros(2, 1, *size)).shape == (2, PaperCNN(space).features_dim)


@pytest.mark.parametrize("wrapper", ["frame_stack", "vec_normalize"])
def test_wrappers(wrapper):
    env = DummyVecEnv([lambda: FakeImageEnv(screen_height=40, screen_width=40, discrete=False, channel_first=True)] * 2)
    env = VecFrameStack(env, 4, channels_order="first") if wrapper == "frame_stack" else VecNormalize(env)
    if wrapper == "vec_normalize":
        # Its observations are floats without bounds: SB3 wants to be told that they are images
        model = make_model(env, policy_kwargs=dict(SMALL_CNN, normalize_images=False), gradient_steps=-1)
    else:
        model = make_model(env, gradient_steps=-1)
        assert model.observation_space.shape == (4, 40, 40)
    model.learn(40)
    assert model._n_updates > 20


def test_a_subclass_with_fewer_arguments():
    class Features(PaperCNN):
        def __init__(self, observation_space):
            super().__init__(observation_space, features_dim=24)

    model = make_model(policy_kwargs=dict(SMALL_CNN, features_extractor_class=Features))
    assert model.actor.features_extractor.features_dim == 24


def test_natures_network_still_fits():
    model = make_model(policy_kwargs=dict(features_extractor_class=NatureCNN, features_extractor_kwargs=dict(features_dim=32)))
    assert model.policy.net_arch == [200, 200]
    model.learn(20)


@pytest.mark.parametrize(("cls", "units"), [(BNDDPG, [400, 300]), (BNTD3, [400, 300]), (BNSAC, [256, 256])])
def test_images_without_convolutions_have_the_layers_of_states(cls, units):
    env = FakeImageEnv(screen_height=6, screen_width=6, n_channels=3, discrete=False)
    assert cls("MlpPolicy", env, buffer_size=10).policy.net_arch == units


@pytest.mark.parametrize("sharing", [{}, *SHARING.values()], ids=["none", *SHARING])
def test_target_networks_follow(sharing):
    """SB3's own test: equal at first, apart after training, and moved by tau of the way."""
    model = make_model(policy_kwargs=dict(SMALL_CNN, **sharing, **CONV_BATCH_NORM))
    pairs = [(model.actor, model.actor_target), (model.critic, model.critic_target)]
    assert (model.actor.features_extractor is model.critic.features_extractor) == bool(sharing)
    assert (model.actor_target.features_extractor is model.critic_target.features_extractor) == bool(sharing)
    for network, target in pairs:
        for param, target_param in zip(network.parameters(), target.parameters(), strict=True):
            assert th.equal(param, target_param)
    model.learn(30)
    statistics, batch = PassStatistics(), image_batch(model)
    for tau in (0.0, 1.0):
        before = [param.clone() for param in model.critic_target.parameters()]
        gradient_step(model._networks, batch, 0.99, tau, statistics)
        expected = before if tau == 0 else [param.clone() for param in model.critic.parameters()]
        for param, value in zip(model.critic_target.parameters(), expected, strict=True):
            assert th.allclose(param, value)
    for network, target in pairs:
        for (name, buffer), target_buffer in zip(network.named_buffers(), target.buffers(), strict=True):
            assert th.equal(buffer, target_buffer), name


def statistics_of(network) -> list[th.Tensor]:
    return [buffer.clone() for buffer in network.features_extractor.buffers()]


@pytest.mark.parametrize("kind", ["batch", "batch_renorm"])
@pytest.mark.parametrize("statistics", ["running", "batch", "running_update", "batch_update"])
def test_each_pass_obeys_in_the_convolutions(kind, statistics):
    """Which statistics BatchNorm2d normalises with and which it moves, whatever mode the network is in."""
    policy_kwargs = dict(SMALL_CNN, features_extractor_kwargs=dict(conv_normalization=kind), renorm_warmup_steps=10**6)
    model = make_model(policy_kwargs=policy_kwargs)
    model.learn(30)
    obs = image_batch(model).observations
    norm = model.actor.features_extractor.cnn[1]
    outputs = []
    norm.register_forward_hook(lambda module, inputs, output: outputs.append((inputs[0], output)))
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        before = statistics_of(model.actor)
        model.actor.forward_with(statistics, obs)
        changed = [not th.equal(a, b) for a, b in zip(before, statistics_of(model.actor), strict=True)]
        assert changed == [statistics.endswith("update")] * len(before)
        inputs, output = outputs[-1]
        if statistics.startswith("batch"):
            # PyTorch divides by n, batch renorm by n - 1
            mean, var = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), correction=int(kind == "batch_renorm"))
        else:
            mean, var = list(norm.buffers())[:2]
        gamma, beta = list(norm.parameters())
        shaped = [value.detach()[:, None, None] for value in (mean, var, gamma, beta)]
        expected = (inputs - shaped[0]) / (shaped[1] + norm.eps).sqrt() * shaped[2] + shaped[3]
        assert th.allclose(output, expected, atol=1e-4)


def test_acting_and_predicting_move_no_statistics():
    model = make_model(policy_kwargs=dict(SMALL_CNN, **CONV_BATCH_NORM), gradient_steps=0)
    before = statistics_of(model.actor)
    model.policy.set_training_mode(True)
    model.predict(model.observation_space.sample())
    model.learn(30)
    assert all(th.equal(a, b) for a, b in zip(before, statistics_of(model.actor), strict=True))


class BarEnv(gym.Env):
    """A bar stands somewhere in the image; the best action is its place."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(0, 255, (1, 24, 24), np.uint8), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._image(), {}

    def step(self, action):
        reward = -abs(float(action[0]) - (self.place - 11.5) / 11.5)
        self.steps += 1
        return self._image(), reward, False, self.steps >= 10, {}

    def _image(self):
        self.place = int(self.np_random.integers(24))
        image = np.full((1, 24, 24), 40, np.uint8)
        image[:, :, max(self.place - 1, 0) : self.place + 2] = 220
        return image


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sharing"), [(None, {}), ("batch", {}), ("batch", SHARING["critic"])])
def test_it_learns_from_images(kind, sharing):
    """Random actions are 0.67 off on average, and one action for all places at least 0.5."""
    extractor_kwargs = dict(conv_normalization=kind)
    policy_kwargs = dict(net_arch=[64, 64], normalization=kind, features_extractor_kwargs=extractor_kwargs, **sharing)
    model = make_model(
        BarEnv(),
        learning_rate=1e-4,  # with ten times that, and no normalisation, the actor saturates
        critic_weight_decay=0.0,
        gamma=0.0,
        tau=0.05,
        batch_size=32,
        buffer_size=3000,
        learning_starts=300,
        policy_kwargs=policy_kwargs,
    )
    # Most seeds need 1,000 steps; the slowest of four is at 0.21 off after 2,500, at 0.13 after 3,500
    assert learns(model, 5000, lambda: evaluate_policy(model, BarEnv(), n_eval_episodes=10, warn=False)[0] / 10 > -0.2)


def test_wrong_spaces_are_named():
    with pytest.raises(ValueError, match=r"`observation_space=Box.*` is not allowed: it must hold images"):
        BNDDPG("CnnPolicy", "Pendulum-v1", buffer_size=10)
    with pytest.raises(ValueError, match="`conv_normalization='group'` is not allowed: it must be one of 'batch'"):
        make_policy(features_extractor_kwargs=dict(conv_normalization="group"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(conv_normalization="batch_layer"), "`conv_normalization='batch_layer'` is not allowed: it must be one of"),
        (dict(features_dim=0), "`features_dim=0` is not allowed: it must be an integer >= 1"),
        (dict(features_normalization="layer"), "`features_normalization='layer'` is not allowed without `features_dim`"),
        (
            dict(features_dim=3, features_normalization="max"),
            "`features_normalization='max'` is not allowed: it must be one of",
        ),
    ],
)
def test_wrong_features_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_policy(features_extractor_kwargs=kwargs)


def test_policy_by_itself(tmp_path):
    model = make_model(policy_kwargs=dict(SMALL_CNN, normalization="batch", **CONV_BATCH_NORM))
    model.learn(30)
    model.policy.save(tmp_path / "policy.pt")
    loaded = CnnPolicy.load(tmp_path / "policy.pt")
    observation = model.observation_space.sample()
    np.testing.assert_array_equal(loaded.predict(observation)[0], model.predict(observation)[0])
