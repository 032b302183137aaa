"""What is saved comes back: models, policies by themselves, replay buffers, parameters, noise and statistics."""

import copy
import io
import pathlib
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, VectorEnv, random_batch
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_bn_ddpg import BNDDPG, MlpPolicy, OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.networks.actors import Actor
from sb3_bn_ddpg.networks.critics import Critic

OBSERVATIONS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)

UNUSUAL_POLICY = dict(
    net_arch=dict(pi=[9], qf=[8, 7, 6]),
    activation_fn=th.nn.Tanh,
    normalization="batch_renorm",
    norm_momentum=0.05,
    norm_eps=1e-3,
    renorm_warmup_steps=12,
    final_init=0.1,
    action_layer=3,
    critic_norm_layers="all",
    optimizer_class=th.optim.AdamW,
    optimizer_kwargs=dict(betas=(0.8, 0.9)),
)

CROSSQ_POLICY = dict(
    net_arch=[9, 8],
    normalization="batch_renorm",
    norm_order="after_activation",
    final_init="fan_in",
    action_layer=1,
    critic_norm_layers="all",
    critic_input_norm="state_action",
)


def assert_same_state(first, second) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert th.equal(value, second[key]), key


@pytest.mark.parametrize("policy_kwargs", [SMALL, UNUSUAL_POLICY, CROSSQ_POLICY])
def test_save_and_load(make_model, tmp_path, policy_kwargs):
    model = make_model(
        policy_kwargs=policy_kwargs,
        critic_learning_rate=LinearSchedule(2e-3, 1e-3, 1.0),
        critic_weight_decay=0.03,
        target_statistics="running_update",
        target_statistics_sync=None,
        actor_loss_critic_statistics="batch",
        action_noise=OrnsteinUhlenbeckNoise(np.zeros(2), sigma=LinearSchedule(0.4, 0.1, 1.0)),
    )
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv())

    assert_same_state(model.policy.state_dict(), loaded.policy.state_dict())
    np.testing.assert_array_equal(model.predict(OBSERVATIONS)[0], loaded.predict(OBSERVATIONS)[0])
    assert model.policy_kwargs == loaded.policy_kwargs
    assert model._pass_statistics == loaded._pass_statistics
    assert loaded.critic_weight_decay == 0.03
    assert loaded.critic_lr_schedule(1.0) == 2e-3
    assert loaded.critic_lr_schedule(0.0) == pytest.approx(1e-3)
    for name in ("actor", "critic"):
        ours, theirs = (getattr(m, name).optimizer.state_dict() for m in (model, loaded))
        assert ours["param_groups"] == theirs["param_groups"]
        for key, state in ours["state"].items():
            assert_same_state(state, theirs["state"][key])
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 100


def test_loaded_model_makes_the_same_update(make_model, tmp_path):
    """Parameters, optimizer state and statistics together: the next gradient steps agree to the bit."""
    model = make_model(learning_rate=1e-3)
    model.learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    for algorithm in (model, loaded):
        algorithm.set_random_seed(3)
        algorithm.train(5, 16)
    assert_same_state(model.policy.state_dict(), loaded.policy.state_dict())


def test_noise_is_resumed(make_model, tmp_path):
    """State and generator of the noise are saved; SB3's re-seeding of loaded models leaves them alone."""
    model = make_model(VectorEnv(ep_length=1000), gradient_steps=0)
    model.learn(33)
    model.save(tmp_path / "model")
    env = VectorEnv(ep_length=1000)
    loaded = BNDDPG.load(tmp_path / "model", env=env, force_reset=False)
    np.testing.assert_array_equal(loaded.action_noise.noise_prev, model.action_noise.noise_prev)
    expected = np.concatenate([model.action_noise() for _ in range(5)])
    np.testing.assert_array_equal(np.concatenate([loaded.action_noise() for _ in range(5)]), expected)


def test_load_without_environment_predicts(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model")
    np.testing.assert_array_equal(model.predict(OBSERVATIONS)[0], loaded.predict(OBSERVATIONS)[0])


@pytest.mark.parametrize("n_envs", [1, 3])
def test_load_with_another_number_of_environments(make_model, tmp_path, n_envs):
    model = make_model(make_vec_env(VectorEnv, n_envs=2))
    model.learn(40)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=make_vec_env(VectorEnv, n_envs=n_envs))
    loaded.learn(60)
    assert loaded.action_noise.n_envs == n_envs


def test_arguments_changed_by_load_count_and_are_checked(make_model, tmp_path):
    model = make_model()
    model.learn(40)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(
        tmp_path / "model", env=VectorEnv(), critic_weight_decay=0.0, critic_learning_rate=5e-4, action_noise=None
    )
    loaded.learn(40)
    assert [group["weight_decay"] for group in loaded.critic.optimizer.param_groups] == [0, 0]
    assert [group["lr"] for group in loaded.critic.optimizer.param_groups] == [5e-4, 5e-4]
    with pytest.raises(ValueError, match=r"`tau=7` is not allowed"):
        BNDDPG.load(tmp_path / "model", tau=7)


@pytest.mark.parametrize(("saved", "loaded"), [(3, 3), (3, 5), (3, 1), (1, 3)])
def test_load_changes_the_returns_of_several_steps(make_model, tmp_path, saved, loaded):
    make_model(n_steps=saved).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SB3's own classes warn that n_steps is ignored
        model = BNDDPG.load(tmp_path / "model", env=VectorEnv(), gamma=0.9, n_steps=loaded)
    assert isinstance(model.replay_buffer, NStepReplayBuffer) == (loaded > 1)
    if loaded > 1:
        model.learn(60)
        assert model.replay_buffer.sample(50).discounts.min().item() == pytest.approx(0.9**loaded)


def test_a_loaded_replay_buffer_has_the_models_returns(make_model, tmp_path):
    model = make_model(n_steps=3).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    for n_steps in (5, 1):
        loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv(), n_steps=n_steps, gamma=0.5)
        loaded.load_replay_buffer(tmp_path / "buffer")
        assert loaded.replay_buffer.sample(50).discounts.min().item() == pytest.approx(0.5**n_steps)
        loaded.learn(30)


def test_a_loaded_replay_buffer_that_does_not_suit(make_model, tmp_path):
    model = make_model().learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    several = make_model(n_steps=3)
    before = several.replay_buffer
    with pytest.raises(ValueError, match=r"`n_steps=3` is not allowed with a replay buffer of single steps"):
        several.load_replay_buffer(tmp_path / "buffer")
    assert several.replay_buffer is before
    with pytest.raises(ValueError, match=r"the replay buffer with the spaces Box.*\(4,\).* must be the model's, Box.*\(5,\)"):
        make_model(VectorEnv(obs_dim=5)).load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"a replay buffer of 1 environments is not allowed: .* the model's, 3"):
        make_model(make_vec_env(VectorEnv, n_envs=3)).load_replay_buffer(tmp_path / "buffer")


def test_going_on_without_vec_normalize_warns(make_model, tmp_path):
    make_model(VecNormalize(make_vec_env(VectorEnv))).learn(60).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        BNDDPG.load(tmp_path / "model", env=VecNormalize(make_vec_env(VectorEnv))).learn(5)
    model = BNDDPG.load(tmp_path / "model", env=VectorEnv())
    with pytest.warns(
        UserWarning, match="on the observations of VecNormalize, whose statistics it does not have, and goes on"
    ):
        model.learn(5)


def test_a_copy_after_learning(make_model):
    model = make_model().learn(40)
    copied = copy.deepcopy(model)
    copied.learn(30)
    assert copied.num_timesteps == 30
    assert model.num_timesteps == 40
    assert not th.equal(copied.actor.mu[1].weight, model.actor.mu[1].weight)


def test_load_names_the_callers_mistakes(make_model, tmp_path):
    make_model().save(tmp_path / "model")
    for kwargs, error, message in (
        (dict(custom_objects=dict(tau=7)), ValueError, "`tau=7` is not allowed"),
        (dict(replay_buffer_kwargs=dict(foo=1)), TypeError, "foo"),
        (dict(device="nonsense"), RuntimeError, "nonsense"),
    ):
        with pytest.raises(error, match=message) as caught:
            BNDDPG.load(tmp_path / "model", env=VectorEnv(), **kwargs)
        assert "damaged" not in str(caught.value)


def test_a_named_replay_buffer_is_loaded_as_it_was_named(make_model, tmp_path):
    named = dict(n_steps=5, replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3))

    def warned(make):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = make()
        return made, any("`n_steps=5` is ignored" in str(warning.message) for warning in caught)

    # SB3's of late, not in its 2.7: the class that was named has its own
    _, expected = warned(lambda: DDPG("MlpPolicy", VectorEnv(), **named))
    model, is_warned = warned(lambda: make_model(**named))
    assert is_warned == expected
    model.save(tmp_path / "model")
    model, is_warned = warned(lambda: BNDDPG.load(tmp_path / "model", env=VectorEnv()))
    assert is_warned == expected
    assert model.replay_buffer.n_steps == 3


def test_a_named_replay_buffer_has_the_models_discount_factor(make_model, tmp_path):
    """Of whose sums of rewards and next states it is, whatever the model's says."""
    named = dict(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3))
    model = make_model(gamma=0.8, **named).learn(40)
    assert model.replay_buffer.gamma == 0.8
    assert model.replay_buffer_kwargs == dict(n_steps=3)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv(), gamma=0.9)
    assert loaded.replay_buffer.gamma == 0.9
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.gamma == 0.9
    with pytest.raises(ValueError, match=r"`replay_buffer_kwargs={'gamma': 0.99}` is not allowed.* the model's `gamma=0.8`"):
        make_model(gamma=0.8, replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(gamma=0.99))


def test_the_users_replay_buffer_kwargs_stay_as_they_are(make_model):
    kwargs = dict(handle_timeout_termination=True)
    model = make_model(n_steps=3, replay_buffer_kwargs=kwargs)
    assert kwargs == dict(handle_timeout_termination=True)
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, model.gamma)


def test_load_accepts_the_same_policy_kwargs(make_model, tmp_path):
    """Nothing is added to the user's dictionary, so SB3's comparison with the saved one holds."""
    policy_kwargs = dict(SMALL)
    model = make_model(policy_kwargs=policy_kwargs)
    assert policy_kwargs == SMALL
    model.save(tmp_path / "model")
    BNDDPG.load(tmp_path / "model", policy_kwargs=dict(SMALL))
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        BNDDPG.load(tmp_path / "model", policy_kwargs=dict(net_arch=[3]))


def test_save_to_a_stream_and_to_a_path(make_model, tmp_path):
    model = make_model()
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    model.save(pathlib.Path(tmp_path / "folder" / "model.zip"))
    for source in (stream, str(tmp_path / "folder" / "model")):
        assert_same_state(model.policy.state_dict(), BNDDPG.load(source).policy.state_dict())


@pytest.mark.parametrize("how", ["load", "set_parameters"])
def test_the_online_networks_of_a_model_with_targets_go_on_without(make_model, tmp_path, how):
    model = make_model(learning_rate=1e-2).learn(200)
    if how == "load":
        model.save(tmp_path / "model")
        loaded = BNDDPG.load(tmp_path / "model", use_target_networks=False)
    else:
        loaded = make_model(use_target_networks=False)
        loaded.set_parameters(model.get_parameters())
    for name in ("actor", "critic"):
        assert_same_state(getattr(model, name).state_dict(), getattr(loaded, name).state_dict())
        assert getattr(loaded, f"{name}_target") is getattr(loaded, name)
    actions, expected = (each.predict(OBSERVATIONS)[0] for each in (loaded, model))
    assert np.array_equal(actions, expected)


def test_without_target_networks(make_model, tmp_path):
    model = make_model(use_target_networks=False)
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv())
    assert loaded.policy.actor_target is loaded.policy.actor
    assert_same_state(model.policy.state_dict(), loaded.policy.state_dict())
    loaded.learn(40)


class InterruptingFile(io.BytesIO):
    """Raises an error at the write of the given number."""

    def __init__(self, number, error):
        super().__init__()
        self.number, self.error = number, error

    def write(self, data):
        self.number -= 1
        if self.number == 0:
            raise self.error
        return super().write(data)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_of_the_file_comes_out_as_it_is(make_model, error):
    """PyTorch's writer would answer with one of its own, which no one expects."""
    model = make_model()
    for number in (*range(1, 200, 9), 10**9):
        file = InterruptingFile(number, error)
        if file.number < 10**9:
            with pytest.raises(type(error)):
                model.save(file)
    model.save(file)
    file.seek(0)
    BNDDPG.load(file)


@pytest.mark.parametrize("how", ["none", "deleted"])
def test_replay_buffer(make_model, tmp_path, how):
    model = make_model()
    model.learn(60)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    expected = model.replay_buffer
    model.replay_buffer = None
    if how == "deleted":  # as users of SB3 free its memory
        del model.replay_buffer
    model.save(tmp_path / "model")
    model.set_env(model.get_env())
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert model.replay_buffer.pos == expected.pos == 60
    np.testing.assert_array_equal(model.replay_buffer.observations, expected.observations)


def test_get_and_set_parameters(make_model):
    model, other = make_model(seed=0), make_model(seed=1)
    model.learn(40)
    parameters = model.get_parameters()
    assert list(parameters) == ["policy", "actor.optimizer", "critic.optimizer"]  # SB3's own DDPG's
    other.set_parameters(parameters)
    assert_same_state(model.policy.state_dict(), other.policy.state_dict())
    with pytest.raises(ValueError, match="invalid object name"):
        other.set_parameters({"nonsense": {}}, exact_match=False)
    with pytest.raises(ValueError, match="do not match"):
        other.set_parameters({"policy": parameters["policy"]})


def test_set_env(make_model):
    model = make_model()
    model.learn(40)
    env = VectorEnv(ep_length=3)
    model.set_env(env)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 60
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(VectorEnv(obs_dim=5))


class WideExtractor(FlattenExtractor):
    def __init__(self, observation_space, width: int) -> None:
        super().__init__(observation_space)
        self._features_dim = width
        self.linear = th.nn.Linear(observation_space.shape[0], width)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(super().forward(observations))


@pytest.mark.parametrize(
    ("share_features_extractor", "shared_extractor_loss"), [(False, "actor"), (True, "actor"), (True, "critic")]
)
def test_policy_by_itself(make_model, tmp_path, share_features_extractor, shared_extractor_loss):
    """A policy saved alone loads with its buffers and with every argument it was made with."""
    policy_kwargs = dict(
        UNUSUAL_POLICY,
        features_extractor_class=WideExtractor,
        features_extractor_kwargs=dict(width=11),
        share_features_extractor=share_features_extractor,
        shared_extractor_loss=shared_extractor_loss,
        normalize_images=False,
    )
    model = make_model(policy_kwargs=policy_kwargs)
    model.learn(60)
    model.policy.save(tmp_path / "policy.pt")
    loaded = MlpPolicy.load(tmp_path / "policy.pt")
    assert_same_state(model.policy.state_dict(), loaded.state_dict())
    np.testing.assert_array_equal(model.predict(OBSERVATIONS)[0], loaded.predict(OBSERVATIONS)[0])
    arguments = loaded._get_constructor_parameters()
    for name, value in policy_kwargs.items():
        assert arguments[name] == value, name
    # None is forgotten: the signature and the saved arguments agree
    import inspect

    assert set(inspect.signature(MlpPolicy.__init__).parameters) - {"self"} == set(arguments)
    assert isinstance(loaded.actor.optimizer, th.optim.AdamW)


@pytest.mark.parametrize(("name", "cls"), [("actor", Actor), ("critic", Critic)])
def test_network_by_itself(make_model, tmp_path, name, cls):
    model = make_model(policy_kwargs=UNUSUAL_POLICY)
    model.learn(60)
    network = getattr(model, name)
    network.save(tmp_path / "network.pt")
    loaded = cls.load(tmp_path / "network.pt")
    assert_same_state(network.state_dict(), loaded.state_dict())
    batch = random_batch(model)
    inputs = [batch.observations] + ([batch.actions] if name == "critic" else [])
    with th.no_grad():
        ours, theirs = network(*inputs), loaded(*inputs)
    assert th.equal(ours[0], theirs[0])


def test_real_environment_by_its_name(tmp_path):
    model = BNDDPG("MlpPolicy", "Pendulum-v1", policy_kwargs=SMALL, learning_starts=20, buffer_size=100, batch_size=8)
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = BNDDPG.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    loaded.learn(30)


def test_arguments_that_are_numpys(make_model, tmp_path):
    """Nothing of NumPy gets into the optimizer's state, which PyTorch would then refuse to load, or into JSON."""
    kwargs = dict(
        critic_weight_decay=np.float64(0.01), policy_kwargs=dict(net_arch=[np.int64(8)], norm_momentum=np.float32(0.1))
    )
    model = make_model(**kwargs).learn(np.int64(40))
    model.save(tmp_path / "model")
    model.save_checkpoint(tmp_path / "checkpoint")
    assert BNDDPG.load(tmp_path / "model", env=VectorEnv()).critic.optimizer.param_groups[0]["weight_decay"] == 0.01
    assert BNDDPG.resume(tmp_path / "checkpoint", env=VectorEnv()).num_timesteps == 40
    pytest.importorskip("safetensors")
    model.export_policy(tmp_path / "policy")


def test_a_replay_buffer_saved_with_the_model_is_on_its_device(make_model, tmp_path):
    model = make_model().learn(40)
    model.replay_buffer.device = th.device("meta")  # as one from another machine's GPU
    model.save(tmp_path / "model", include=["replay_buffer"])
    loaded = BNDDPG.load(tmp_path / "model", env=VectorEnv(), device="cpu")
    assert loaded.replay_buffer.device == loaded.device
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 50


def test_train_freq_of_episodes_with_more_environments(make_model, tmp_path):
    message = r"`train_freq=\(1, 'episode'\)` is not allowed with 2 environments"
    with pytest.raises(ValueError, match=message):
        make_model(DummyVecEnv([VectorEnv] * 2), train_freq=(1, "episode"))
    make_model(train_freq=(1, TrainFrequencyUnit.EPISODE), gradient_steps=-1).learn(40).save(tmp_path / "model")
    assert BNDDPG.load(tmp_path / "model", env=VectorEnv()).train_freq == (1, TrainFrequencyUnit.EPISODE)
    with pytest.raises(ValueError, match=message):
        BNDDPG.load(tmp_path / "model", env=DummyVecEnv([VectorEnv] * 2))
