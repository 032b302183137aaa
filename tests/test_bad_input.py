"""Bad input fails with a ``ValueError`` that names argument, value and what is allowed, before anything is stored."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, SpaceEnv, VectorEnv
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.td3.policies import Actor, TD3Policy

from sb3_bn_ddpg import BNDDPG, MlpPolicy, OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.networks.actors import Actor as OurActor
from sb3_bn_ddpg.networks.actors import GaussianActor
from sb3_bn_ddpg.networks.critics import Critic, ValueNetwork
from sb3_bn_ddpg.networks.policies import BNTD3Policy

BOX = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("learning_rate", -1e-3, ">= 0"),
        ("learning_rate", float("nan"), "a finite number"),
        ("learning_rate", "fast", "a finite number"),
        ("learning_rate", lambda progress_remaining: -progress_remaining, ">= 0"),
        ("critic_learning_rate", -1e-3, ">= 0"),
        ("critic_learning_rate", lambda progress_remaining: progress_remaining - 0.5, ">= 0"),
        ("critic_weight_decay", -1e-2, ">= 0"),
        ("buffer_size", 0, ">= 1"),
        ("learning_starts", 2.5, "an integer"),
        ("batch_size", 0, ">= 1"),
        ("batch_size", 1, ">= 2"),
        ("batch_size", 2.5, "an integer"),
        ("tau", 1.5, "<= 1"),
        ("tau", -0.1, ">= 0"),
        ("gamma", 1.01, "<= 1"),
        ("gamma", None, "a finite number"),
        ("train_freq", 0, ">= 1"),
        ("train_freq", (1, "minute"), "'step', 'episode'"),
        ("gradient_steps", -2, ">= -1"),
        ("n_steps", 0, ">= 1"),
        ("n_steps_final", 0, ">= 1"),
        ("n_steps_final", 2, "<= 1"),
        ("policy_delay", 0, ">= 1"),
        ("policy_delay", 1.5, "an integer"),
        ("action_noise", "pink", "'ou'"),
        ("action_noise", 0.2, "ActionNoise"),
        ("action_noise", NormalActionNoise(np.zeros(3), np.ones(3)), "(2,)"),
        ("action_noise", NormalActionNoise(np.zeros(1), np.ones(1)), "(2,)"),  # SB3 would broadcast it
        ("action_noise", OrnsteinUhlenbeckNoise(np.zeros(3)), "(1, 2)"),
        ("action_noise", VectorizedActionNoise(OrnsteinUhlenbeckNoise(np.zeros(2)), 1), "must not be wrapped"),
        ("use_target_networks", "yes", "True, False"),
        ("target_statistics", "moving", "'running', 'batch', 'running_update', 'batch_update', 'joint'"),
        ("target_statistics_sync", "never", "'copy', 'polyak', None"),
        ("critic_loss_statistics", "running", "'batch_update', 'running_update'"),
        ("actor_loss_actor_statistics", "batch", "'batch_update', 'running_update'"),
        ("actor_loss_critic_statistics", None, "'running', 'batch', 'running_update', 'batch_update'"),
    ],
)
def test_arguments(make_model, argument, value, allowed):
    with pytest.raises(ValueError, match="is not allowed") as error:
        make_model(**{argument: value})
    message = str(error.value)
    assert message.startswith(f"`{argument}")
    assert allowed in message
    if not callable(value):
        assert repr(value[1] if argument == "train_freq" and value else value)[:40] in message


def test_a_whole_number_of_random_steps_may_be_a_float(make_model):
    """``learning_starts=1e4`` stands in many a script for SB3, which only compares it."""
    model = make_model(learning_starts=2e1)
    assert repr(model.learning_starts) == "20"
    model.learning_starts = np.float64(30.0)
    model.learn(31)
    assert model._n_updates == 1


@pytest.mark.parametrize("learning_starts", [0, -1, -100])
def test_learning_from_the_first_step_on(make_model, learning_starts):
    """SB3 takes negative numbers for none at all."""
    counts = [
        algorithm("MlpPolicy", VectorEnv(), learning_starts=learning_starts, buffer_size=10, batch_size=4).learn(5)._n_updates
        for algorithm in (BNDDPG, DDPG)
    ]
    assert counts == [5, 5]


@pytest.mark.parametrize("net_arch", [(8, 6), dict(pi=(8, 6), qf=(5, 4)), dict(pi=(), qf=[5])])
def test_hidden_layers_in_a_tuple(make_model, net_arch, tmp_path):
    """SB3's networks are made of any sequences."""
    model = make_model(policy_kwargs=dict(net_arch=net_arch)).learn(30)
    as_lists = {key: list(arch) for key, arch in net_arch.items()} if isinstance(net_arch, dict) else list(net_arch)
    expected = make_model(policy_kwargs=dict(net_arch=as_lists))
    for network in ("actor", "critic"):
        assert repr(getattr(model, network)) == repr(getattr(expected, network))
    model.save(tmp_path / "model")
    assert repr(BNDDPG.load(tmp_path / "model").actor) == repr(model.actor)


@pytest.mark.parametrize(
    ("maker", "network_type", "network"),
    [("make_actor", Actor, "actors.Actor"), ("make_critic", ContinuousCritic, "critics.Critic")],
)
def test_networks_of_another_library(maker, network_type, network):
    """The recipe of SB3's documentation for a policy of one's own, with SB3's networks in it."""

    def make(self, features_extractor=None):
        space = spaces.Box(-1, 1, (4,))
        return network_type(space, BOX, [4], FlattenExtractor(space), 4)

    other_policy = type("OtherPolicy", (MlpPolicy,), {maker: make})
    with pytest.raises(
        ValueError, match=rf"`{maker}\(\)=stable_baselines3.* is not allowed: .*sb3_bn_ddpg.networks.{network} "
    ):
        BNDDPG(other_policy, VectorEnv())


def test_policies_of_another_algorithm(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"`policy=TD3Policy` is not allowed: .*'MlpPolicy'.* or a subclass of BNDDPGPolicy"):
        BNDDPG(TD3Policy, VectorEnv())
    DDPG("MlpPolicy", VectorEnv(), policy_kwargs=dict(net_arch=[4]), buffer_size=10).save(tmp_path / "ddpg")
    with pytest.raises(ValueError, match="`policy=TD3Policy` is not allowed"):
        BNDDPG.load(tmp_path / "ddpg")


def test_number_of_critics(make_model):
    """SB3's DDPG writes it into the dictionary that it is given."""
    policy_kwargs = dict(net_arch=[4])
    DDPG("MlpPolicy", VectorEnv(), policy_kwargs=policy_kwargs, buffer_size=10)
    assert policy_kwargs["n_critics"] == 1
    make_model(policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match="`n_critics=2` is not allowed: it must be 1, DDPG has one critic"):
        make_model(policy_kwargs=dict(n_critics=2))


@pytest.mark.parametrize("n_critics", [0, -1, 1.5, None, "two"])
def test_number_of_critics_of_other_algorithms(n_critics):
    space = spaces.Box(-1, 1, (4,))
    with pytest.raises(ValueError, match=rf"`n_critics={n_critics!r}` is not allowed: it must be an integer >= 1"):
        BNTD3Policy(space, BOX, lambda progress_remaining: 1e-3, n_critics=n_critics)


def test_networks_by_themselves_check_their_arguments():
    space = spaces.Box(-1, 1, (4,))
    arguments = (space, BOX, [4], FlattenExtractor(space), 4)
    for kwargs, message in (
        (dict(n_critics=0), "`n_critics=0` is not allowed: it must be an integer >= 1"),
        (dict(norm_layers="none"), "`critic_norm_layers='none'` is not allowed"),
        (dict(input_norm="action"), "`critic_input_norm='action'` is not allowed"),
        (dict(input_norm="state_action"), "`critic_input_norm='state_action'` is not allowed with `action_layer=2`"),
        (dict(final_init="fan_out"), "`final_init='fan_out'` is not allowed: it must be a finite number > 0 or 'fan_in'"),
    ):
        with pytest.raises(ValueError, match=message):
            Critic(*arguments, **kwargs)
    for network_type in (OurActor, GaussianActor, ValueNetwork):
        with pytest.raises(ValueError, match=r"`final_init=-0\.1` is not allowed: it must be a finite number > 0 or 'fan_in'"):
            network_type(*arguments, final_init=-0.1)


def test_targets_without_any_statistics(make_model):
    with pytest.raises(ValueError, match=r"`target_statistics_sync=None` is not allowed with `target_statistics='running'`"):
        make_model(target_statistics="running", target_statistics_sync=None)


def test_joint_pass_with_target_networks(make_model):
    with pytest.raises(ValueError, match=r"`target_statistics_sync=None` is not allowed with `target_statistics='joint'`"):
        make_model(target_statistics="joint", target_statistics_sync=None)


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("normalization", "group", "'batch', 'batch_renorm', 'layer', 'batch_layer', None"),
        ("norm_momentum", 0, "> 0"),
        ("norm_momentum", 1.1, "<= 1"),
        ("norm_eps", 0, "> 0"),
        ("renorm_warmup_steps", -1, ">= 0"),
        ("final_init", 0, "> 0"),
        ("action_layer", 0, ">= 1"),
        ("critic_norm_layers", "some", "'before_action', 'all'"),
        ("critic_input_norm", "action", "'state', 'state_action'"),
        ("critic_input_norm", "state_action", "`action_layer` must be 1"),
        ("norm_order", "before", "'before_activation', 'after_activation'"),
        ("norm_order", None, "'before_activation', 'after_activation'"),
        ("final_init", "fan_out", "> 0 or 'fan_in'"),
        ("net_arch", [64, 0], ">= 1"),
        ("net_arch", [64, 3.5], "an integer"),
        ("net_arch", [64.0], "an integer"),
        ("net_arch", 64, "a list of integers"),
        ("net_arch", "64", "a list of integers"),
        ("net_arch", (64, 0), ">= 1"),
        ("net_arch", dict(pi=[64]), "dict(pi=[...], qf=[...])"),
        ("net_arch", dict(pi=64, qf=[64]), "dict(pi=[...], qf=[...])"),
    ],
)
def test_policy_arguments(make_model, argument, value, allowed):
    with pytest.raises(ValueError, match="is not allowed") as error:
        make_model(policy_kwargs={argument: value})
    message = str(error.value)
    assert message.startswith(f"`{argument}=")
    assert allowed in message


@pytest.mark.parametrize("normalization", ["layer", None])
def test_batch_of_one_is_allowed_without_batch_norm(make_model, normalization):
    make_model(batch_size=1, policy_kwargs=dict(SMALL, normalization=normalization)).learn(30)


@pytest.mark.parametrize("fast_update", [True, False])
def test_batch_of_one_after_construction(make_model, fast_update):
    """Nothing of the networks is lost."""
    model = make_model(fast_update=fast_update).learn(30)
    with pytest.raises(ValueError, match=r"`batch_size=1` is not allowed: it must be an integer >= 2"):
        model.train(2, batch_size=1)
    model.batch_size = 1
    with pytest.raises(ValueError, match=r"`batch_size=1` is not allowed"):
        model.learn(30)
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())


def test_attributes_set_after_construction(make_model):
    model = make_model(fast_update=True).learn(30)
    model.fast_update, model.target_statistics = False, "running"
    model.learn(30, reset_num_timesteps=False)
    assert model._fast_update is None
    assert model._pass_statistics.target == "running"
    model.tau = 7
    with pytest.raises(ValueError, match="`tau=7` is not allowed"):
        model.learn(30)
    model.tau, model.use_target_networks = 0.1, False
    with pytest.raises(ValueError, match="`use_target_networks=False` is not allowed for a model that was made with True"):
        model.learn(30)


@pytest.mark.parametrize("normalization", ["batch", "batch_renorm", "batch_layer"])
def test_batch_of_one_with_batch_norm(make_model, normalization):
    with pytest.raises(ValueError, match=r"`batch_size=1` is not allowed: it must be an integer >= 2"):
        make_model(batch_size=1, policy_kwargs=dict(SMALL, normalization=normalization))


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3),
        spaces.MultiBinary(2),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(np.array([-1, -np.inf]), np.array([1, 1]), dtype=np.float64),
        spaces.Box(np.array([-1.0, 1.0]), np.array([1.0, 1.0]), dtype=np.float64),
    ],
)
def test_action_spaces(action_space):
    with pytest.raises(ValueError, match="`env` with the action space") as error:
        BNDDPG("MlpPolicy", SpaceEnv(BOX, action_space))
    assert str(action_space) in str(error.value)
    assert "finite bounds" in str(error.value)


@pytest.mark.parametrize(
    "observation_space",
    [
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([3, 2], start=[0, 1]),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict(values=spaces.Box(-1, 1, (2,))),
        spaces.Dict(training=spaces.Box(-1, 1, (2,))),
        spaces.Dict({"a.b": spaces.Box(-1, 1, (2,))}),
    ],
)
def test_observation_spaces(observation_space):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=r"`env` with .*observation.* is not allowed"):
        BNDDPG(policy, SpaceEnv(observation_space, BOX))


def test_integers_of_numpy(make_model):
    model = make_model(train_freq=np.int64(2), seed=np.int64(3), stats_window_size=np.int64(5), batch_size=np.int64(16))
    assert model.learn(40)._n_updates == 10


def test_train_freq_as_a_list(make_model):
    assert make_model(train_freq=[1, "episode"], gradient_steps=-1).learn(60)._n_updates == 40


def test_action_space_of_a_named_environment():
    with pytest.raises(ValueError, match="Discrete"):
        BNDDPG("MlpPolicy", "CartPole-v1")


@pytest.mark.parametrize(
    ("kwargs", "allowed"),
    [
        (dict(mean=np.array([np.nan])), "finite numbers"),
        (dict(mean="zero"), "finite numbers"),
        (dict(sigma=-0.1), ">= 0"),
        (dict(sigma=np.array([0.1, -0.1])), ">= 0"),
        (dict(sigma=np.ones(3)), "broadcast to the shape (2,)"),
        (dict(sigma=lambda progress_remaining: -1.0), ">= 0"),
        (dict(theta=-0.1), ">= 0"),
        (dict(dt=0), "> 0"),
        (dict(theta=0.5, dt=4.0), "< 2"),
        (dict(initial_noise=np.zeros(3)), "broadcast"),
        (dict(n_envs=0), ">= 1"),
        (dict(seed=-1), ">= 0"),
        (dict(seed=1.5), "integer"),
    ],
)
def test_noise_arguments(kwargs, allowed):
    with pytest.raises(ValueError, match="is not allowed") as error:
        OrnsteinUhlenbeckNoise(**(dict(mean=np.zeros(2)) | kwargs))
    message = str(error.value)
    assert allowed in message
    assert next(iter(kwargs)) in message


def test_reset_of_an_unknown_environment():
    with pytest.raises(ValueError, match=r"`indices=2` is not allowed: it must be an integer >= 0 and <= 1"):
        OrnsteinUhlenbeckNoise(np.zeros(2), n_envs=2).reset(indices=[2])


class FaultyEnv(VectorEnv):
    """Returns a bad number in one field at one step."""

    def __init__(self, field: str, value: float, at_step: int = 7, ep_length: int = 1000) -> None:
        super().__init__(ep_length=ep_length)
        self.field, self.value, self.at_step = field, value, at_step
        self.total_steps = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.total_steps += 1
        if self.total_steps == self.at_step:
            if self.field == "reward":
                reward = self.value
            else:
                obs[1] = self.value
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["reward", "observation"])
def test_numbers_of_the_environment(make_model, field, value):
    model = make_model(FaultyEnv(field, value))
    with pytest.raises(ValueError, match=rf"`{field}=.*{value}.*` of environment 0 at step 7 is not allowed"):
        model.learn(30)
    assert model.replay_buffer.pos == 6  # nothing of the bad step was stored
    assert np.isfinite(model.replay_buffer.observations).all()
    assert np.isfinite(model.replay_buffer.next_observations).all()
    assert np.isfinite(model.replay_buffer.rewards).all()


@pytest.mark.parametrize("field", ["reward", "observation"])
def test_infinite_numbers_that_vec_normalize_clips(make_model, field):
    """With its statistics frozen, it lets the clipped ones through; the replay buffer stores the others."""
    env = VecNormalize(make_vec_env(lambda: FaultyEnv(field, np.inf)))
    env.training = False
    model = make_model(env)
    with pytest.raises(ValueError, match=rf"`{field}=.*inf.*` of environment 0 at step 7 is not allowed"):
        model.learn(30)
    assert model.replay_buffer.pos == 6


def test_the_environment_is_named(make_model):
    env = make_vec_env(lambda: FaultyEnv("reward", np.nan, at_step=10**6), n_envs=3)
    env.envs[2].unwrapped.at_step = 4
    with pytest.raises(ValueError, match="of environment 2 at step 12 "):
        make_model(env).learn(60)


def test_terminal_observation(make_model):
    """The last observation of an episode, which the vectorised environment hides behind the first of the next."""
    model = make_model(FaultyEnv("observation", np.nan, at_step=5, ep_length=5))
    with pytest.raises(ValueError, match=r"`terminal_observation=.*nan.*` of environment 0 at step 5 "):
        model.learn(30)
    assert model.replay_buffer.pos == 4


def test_first_observation(make_model):
    class Env(VectorEnv):
        def reset(self, **kwargs):
            return np.full(4, np.nan, dtype=np.float32), super().reset(**kwargs)[1]

    with pytest.raises(ValueError, match=r"`observation=.* of environment 0 at step 0 "):
        make_model(Env()).learn(30)


def test_observations_beyond_float32(make_model):
    class Env(VectorEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)

        def _observation(self):
            return super()._observation().astype(np.float64) * (1e40 if getattr(self, "steps", 0) == 3 else 1.0)

    model = make_model(Env())
    with pytest.raises(ValueError, match=r"`observation=.* at step 3 .* within the range of float32"):
        model.learn(30)
    assert model.replay_buffer.pos == 2


@pytest.mark.parametrize("fast_update", [True, False])
def test_where_numpy_is_told_to_raise(make_model, fast_update):
    """SB3's page on NaN advises ``np.seterr(all="raise")``; in float64 a damped velocity goes below all float32."""

    class Env(VectorEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)

        def _observation(self):
            return np.array([1e-300, 1e-42, 0.0, 1e-320])

    with np.errstate(all="raise"):
        assert make_model(Env(), fast_update=fast_update).learn(60).num_timesteps == 60


class WithoutNan(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations).nan_to_num(nan=0.5)


class NeighboursEnv(VectorEnv):
    """NaN stands for what is not there."""

    def _observation(self):
        obs = super()._observation()
        obs[getattr(self, "steps", 0) % 4] = np.nan
        return obs


def learns_with_nan(env, **kwargs):
    model = BNDDPG("MlpPolicy", env, learning_starts=20, batch_size=16, seed=0, device="cpu", **kwargs)
    model.learn(60)
    assert np.isnan(model.replay_buffer.observations[:60]).sum() == 60
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    assert np.isfinite(model.predict(np.array([1, np.nan, 2, 3], np.float32))[0]).all()


WITHOUT_NAN = dict(SMALL, features_extractor_class=WithoutNan)


def test_nan_that_a_features_extractor_leaves_out():
    with pytest.warns(UserWarning, match="NaN in observations, which the features extractor WithoutNan leaves out"):
        learns_with_nan(NeighboursEnv(), policy_kwargs=WITHOUT_NAN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learns_with_nan(NeighboursEnv(), policy_kwargs=WITHOUT_NAN, allow_nan_observations=True)
        learns_with_nan(
            VecNormalize(make_vec_env(NeighboursEnv), norm_obs=False), policy_kwargs=WITHOUT_NAN, allow_nan_observations=True
        )


@pytest.mark.parametrize("allow", [None, False])
def test_nan_that_is_not_allowed(make_model, allow):
    kwargs = dict(policy_kwargs=WITHOUT_NAN) if allow is False else {}
    with pytest.raises(ValueError, match=r"`observation=.*nan.* of environment 0 at step 0 is not allowed"):
        make_model(NeighboursEnv(), allow_nan_observations=allow, **kwargs).learn(60)


def test_nan_allowed_is_no_infinity_allowed(make_model):
    model = make_model(FaultyEnv("observation", np.inf), policy_kwargs=WITHOUT_NAN, allow_nan_observations=True)
    with pytest.raises(ValueError, match=r"`observation=.*inf.*it must hold finite numbers or NaN only"):
        model.learn(30)
    assert model.replay_buffer.pos == 6


def test_nan_that_vec_normalize_averages(make_model):
    env = VecNormalize(make_vec_env(NeighboursEnv))
    with pytest.raises(ValueError, match="is not allowed with a VecNormalize that averages it: its `norm_obs` must be False"):
        make_model(env, policy_kwargs=WITHOUT_NAN, allow_nan_observations=True).learn(60)


def test_nan_with_an_extractor_that_hands_it_on(make_model):
    with pytest.raises(ValueError, match="`allow_nan_observations=True` is not allowed with the features extractor Flatten"):
        make_model(allow_nan_observations=True)


def test_dictionary_observation():
    class Env(VectorEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3))

        def _observation(self):
            sample = self.observation_space.sample()
            if getattr(self, "steps", 0) == 3:
                sample["a"][0] = np.nan
            return sample

    model = BNDDPG("MultiInputPolicy", Env(), buffer_size=100, policy_kwargs=SMALL)
    with pytest.raises(ValueError, match=r"`observation\['a'\]=.* of environment 0 at step 3 "):
        model.learn(30)
    assert model.replay_buffer.pos == 2


def test_policy_class_for_vectors_with_dictionaries():
    with pytest.raises(ValueError, match=r"`features_extractor_class=FlattenExtractor` is not allowed .*MultiInputPolicy"):
        BNDDPG(MlpPolicy, SimpleMultiObsEnv(discrete_actions=False))


def test_final_steps_of_a_replay_buffer_of_ones_own(make_model):
    with pytest.raises(ValueError, match="`n_steps_final=1` is not allowed with `replay_buffer_class=NStepReplayBuffer`"):
        make_model(n_steps=3, n_steps_final=1, replay_buffer_class=NStepReplayBuffer)
    model = make_model(n_steps=3, n_steps_final=2)
    model.n_steps_final = 4
    with pytest.raises(ValueError, match="`n_steps_final=4` is not allowed: it must be an integer >= 1 and <= 3"):
        model._check_arguments()


def test_n_steps_of_dictionaries():
    """SB3 has no replay buffer for them."""
    with pytest.raises(ValueError, match="`n_steps=3` is not allowed: it must be 1 where observations are dictionaries"):
        BNDDPG("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), n_steps=3)


def test_unknown_policy_and_environment():
    with pytest.raises(ValueError, match="Policy LstmPolicy unknown"):
        BNDDPG("LstmPolicy", VectorEnv())
    with pytest.raises(gym.error.Error, match="doesn't exist"):
        BNDDPG("MlpPolicy", "NoSuchEnv-v0")
