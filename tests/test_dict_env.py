"""Dictionaries of observations: images and vectors mixed, batch norm on the vectors, and the wrappers SB3 has for them."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import nn

from sb3_bn_ddpg import BNDDPG, MultiInputPolicy
from sb3_bn_ddpg.networks.norm_layers import BatchNorm1d

IMAGE, IMAGE_LAST = spaces.Box(0, 255, (3, 40, 40), np.uint8), spaces.Box(0, 255, (40, 40, 3), np.uint8)
VECTOR = spaces.Box(-10, 10, (4,))
MIXTURES = {
    "vectors": dict(a=VECTOR, b=spaces.Box(-1, 1, (2, 3), np.float64)),
    "image and vector": dict(img=IMAGE, vec=VECTOR),
    "channels last": dict(img=IMAGE_LAST, vec=VECTOR),
    "two images": dict(first=IMAGE, second=spaces.Box(0, 255, (1, 36, 36), np.uint8)),
    "all kinds": dict(
        img=IMAGE_LAST, vec=VECTOR, choice=spaces.Discrete(3), choices=spaces.MultiDiscrete([2, 3]), bits=spaces.MultiBinary(2)
    ),
}


class DictEnv(gym.Env):
    """Random observations of any dictionary; episodes of ten steps."""

    def __init__(self, entries: dict[str, spaces.Space]) -> None:
        self.observation_space, self.action_space = spaces.Dict(entries), spaces.Box(-2, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action.sum()), False, self.steps >= 10, {}


def make_model(env, **kwargs) -> BNDDPG:
    arguments = dict(buffer_size=200, learning_starts=10, batch_size=8, policy_kwargs=SMALL, seed=0, device="cpu")
    return BNDDPG("MultiInputPolicy", env, **(arguments | kwargs))


def test_joint_pass_over_a_dictionary():
    model = make_model(DictEnv(MIXTURES["image and vector"]), use_target_networks=False, target_statistics="joint")
    sizes = []
    model.critic.q_net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    model.learn(12)
    assert sizes == [16, 8] * 2  # eight states and eight next states; the states again in the actor's loss


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("shared_extractor_loss", [None, "actor", "critic"])
def test_mixtures(name, shared_extractor_loss, tmp_path):
    env = DictEnv(MIXTURES[name])
    sharing = dict(share_features_extractor=True, shared_extractor_loss=shared_extractor_loss) if shared_extractor_loss else {}
    model = make_model(env, policy_kwargs=dict(SMALL, **sharing))
    model.learn(30)
    observation = env.observation_space.sample()
    action, _ = model.predict(observation)
    assert env.action_space.contains(action)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=env)
    np.testing.assert_array_equal(loaded.predict(observation)[0], action)
    loaded.learn(20)
    batch = {key: np.stack([value] * 3) for key, value in observation.items()}
    np.testing.assert_allclose(model.predict(batch)[0], np.stack([action] * 3), atol=1e-6)


@pytest.mark.parametrize("n_envs", [2, 4])
def test_several_environments(n_envs):
    model = make_model(make_vec_env(lambda: DictEnv(MIXTURES["all kinds"]), n_envs=n_envs), gradient_steps=-1)
    model.learn(40)
    assert model._n_updates == {2: 30, 4: 32}[n_envs]  # from the step after the tenth on


def test_vectors_are_batch_normalised_and_images_are_not():
    env = DictEnv(MIXTURES["image and vector"])
    model = make_model(env)
    for network in (model.actor, model.critic):
        extractors = network.features_extractor.extractors
        assert [type(module) for module in extractors["vec"]] == [nn.Flatten, BatchNorm1d]
        assert [type(m) for m in extractors["img"].cnn] == [nn.Conv2d, nn.ReLU] * 3 + [nn.Flatten]
        # What was normalised key by key is not normalised once more
        first = next(iter(network.mu if network is model.actor else network.state_net))
        assert isinstance(first, nn.Linear)
        assert first.in_features == model.actor.features_extractor.features_dim == 32 + 4
    observations = {key: np.stack([space.sample() for _ in range(16)]) for key, space in env.observation_space.items()}
    tensors = {key: th.as_tensor(value) for key, value in observations.items()}
    norm = model.actor.features_extractor.extractors["vec"][1]
    model.actor.forward_with("batch_update", tensors)
    assert th.allclose(norm.running_mean, 0.1 * tensors["vec"].mean(0), atol=1e-5)
    features = model.actor.forward_with("batch", tensors, part=model.actor.features)
    assert th.allclose(features[:, 32:].mean(0), th.zeros(4), atol=1e-5)
    assert th.allclose(features[:, 32:].std(0, correction=0), th.ones(4), atol=1e-3)


@pytest.mark.parametrize(
    ("normalization", "kinds"), [("batch", 1), ("batch_renorm", 1), ("layer", 0), ("batch_layer", 1), (None, 0)]
)
def test_normalizations(normalization, kinds):
    policy_kwargs = dict(SMALL, normalization=normalization, features_extractor_kwargs=dict(conv_normalization="batch"))
    model = make_model(DictEnv(MIXTURES["image and vector"]), policy_kwargs=policy_kwargs)
    extractors = model.actor.features_extractor.extractors
    assert len(extractors["vec"]) == 1 + kinds
    assert sum(isinstance(module, nn.BatchNorm2d) for module in extractors["img"].modules()) == 3
    model.learn(30)


def test_default_networks():
    """The paper's layers for states where there are vectors alone, those for pixels where there is an image."""
    for name, net_arch, bound in (("vectors", [400, 300], 3e-3), ("image and vector", [200, 200], 3e-4)):
        policy = MultiInputPolicy(spaces.Dict(MIXTURES[name]), spaces.Box(-1, 1, (2,)), lambda _: 1e-4)
        assert [m.out_features for m in policy.actor.mu if isinstance(m, nn.Linear)] == [*net_arch, 2]
        assert bound / 2 < policy.actor.mu[-2].weight.abs().max() <= bound


def test_sb3s_combined_extractor_still_fits():
    model = make_model(
        DictEnv(MIXTURES["image and vector"]), policy_kwargs=dict(SMALL, features_extractor_class=CombinedExtractor)
    )
    assert isinstance(model.actor.mu[0], BatchNorm1d)  # an extractor it does not know: its features are normalised
    model.learn(30)


def test_sb3s_size_of_image_features():
    """``cnn_output_dim`` of SB3's extractor, which is allowed, and without effect, where there is no image."""
    policy_kwargs = dict(SMALL, features_extractor_kwargs=dict(cnn_output_dim=7))
    model = make_model(DictEnv(MIXTURES["image and vector"]), policy_kwargs=policy_kwargs)
    assert model.actor.features_extractor.features_dim == 7 + VECTOR.shape[0]
    model.learn(30)
    make_model(DictEnv(MIXTURES["vectors"]), policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match=r"`cnn_output_dim=0` is not allowed: it must be an integer >= 1"):
        make_model(DictEnv(MIXTURES["vectors"]), policy_kwargs=dict(features_extractor_kwargs=dict(cnn_output_dim=0)))


class AsDict(gym.ObservationWrapper):
    def __init__(self, env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict(obs=env.observation_space)

    def observation(self, observation):
        return {"obs": observation}


def test_a_dictionary_of_one_vector_is_that_vector():
    """The same seeds, the same steps: MultiInputPolicy learns what MlpPolicy learns, number for number."""
    actions = []
    for policy, wrapper in (("MlpPolicy", lambda env: env), ("MultiInputPolicy", AsDict)):
        model = BNDDPG(
            policy,
            wrapper(gym.make("Pendulum-v1")),
            learning_starts=20,
            batch_size=16,
            buffer_size=200,
            policy_kwargs=SMALL,
            fast_update=False,
            seed=3,
        )
        model.learn(80)
        state = np.array([[0.6, 0.8, -1.0], [1.0, 0.0, 3.0]], np.float32)
        actions.append(model.predict(state if policy == "MlpPolicy" else {"obs": state})[0])
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-5)


def test_vec_normalize_of_some_keys():
    env = VecNormalize(make_vec_env(lambda: DictEnv(MIXTURES["image and vector"]), n_envs=2), norm_obs_keys=["vec"])
    model = make_model(env)
    model.learn(40)
    assert model.replay_buffer.observations["vec"].max() > 5  # as the environment returned it
    batch = model.replay_buffer.sample(50, env=env)
    assert batch.observations["vec"].abs().max() < 5
    assert batch.observations["img"].dtype == th.uint8


def test_frame_stack():
    env = VecFrameStack(make_vec_env(lambda: DictEnv(MIXTURES["channels last"]), n_envs=2), 3)
    model = make_model(env)
    assert model.observation_space["img"].shape == (9, 40, 40)
    assert model.observation_space["vec"].shape == (12,)
    model.learn(30)


def test_nested_dictionaries_are_refused():
    nested = dict(a=spaces.Dict(b=VECTOR))
    with pytest.raises(ValueError, match=r"observation space Dict\('b'.*must be a `Box`"):
        make_model(DictEnv(nested))


def test_other_policies_are_named():
    with pytest.raises(ValueError, match="MlpPolicy is for vectors, CnnPolicy for images"):
        make_model(VectorEnv())
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy` when working with dict observation space"):
        BNDDPG("MlpPolicy", DictEnv(MIXTURES["vectors"]))


@pytest.mark.parametrize("channel_last", [True, False])
def test_sb3s_grid_world(channel_last):
    env = SimpleMultiObsEnv(random_start=True, discrete_actions=False, channel_last=channel_last)
    model = make_model(
        make_vec_env(lambda: env, n_envs=1), policy_kwargs=dict(net_arch=[16, 12], normalization="batch_renorm")
    )
    model.learn(60)
    assert model._n_updates == 50
