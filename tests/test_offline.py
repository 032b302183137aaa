"""Learning from stored data: counting, files, callbacks, policies, images, errors."""

import copy
import math
import warnings
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SpaceEnv, VectorEnv
from gymnasium import spaces
from offline_models import ALL, Untouchable, data, make, same_parameters
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_bn_ddpg import BNAWAC, BNBCQ, BNIQL, BNTD3BC, CheckpointEvery, load_policy
from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.export.policy_description import build, check_description, describe
from sb3_bn_ddpg.networks.layers import PaperCNN

# --- Learning


def test_another_factor_of_the_rewards_is_told(tmp_path):
    make(BNIQL).learn(3).save(tmp_path / "model")
    same, larger = data(), data() | dict(rewards=10 * data()["rewards"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BNIQL.load(tmp_path / "model", env=VectorEnv(), dataset=same).learn(1)
    with pytest.warns(UserWarning, match="its critics are of that unit") as told:
        BNIQL.load(tmp_path / "model", env=VectorEnv(), dataset=larger).learn(1)
    with pytest.warns(UserWarning, match="its critics are of that unit"):
        BNIQL.load(tmp_path / "model", env=VectorEnv(), dataset=larger).learn_online(1)
    kept = float(str(told[0].message).rpartition("reward_scaling=")[2].partition(")")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BNIQL.load(tmp_path / "model", env=VectorEnv(), dataset=larger, reward_scaling=kept).learn(1)


@pytest.mark.parametrize("cls", ALL)
def test_gradient_steps_are_counted_and_the_environment_is_left_alone(cls):
    model = make(cls).learn(7)
    assert (model.num_timesteps, model._n_updates) == (7, 7)
    model.learn(3, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (10, 10)
    assert model.learn(4).num_timesteps == 4


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("normalization", ["batch", "batch_renorm", "layer", "batch_layer"])
def test_normalisations_by_a_word(cls, normalization):
    model = make(cls, policy_kwargs=dict(normalization=normalization)).learn(4)
    networks = [model.actor, model.critic]
    if cls is BNIQL:
        networks.append(model.value)
    elif cls is BNBCQ and normalization != "batch_layer":  # its inputs are not normalised
        networks.append(model.vae)
    for network in networks:
        assert bool(network.norm_layers) == (normalization != "layer")
    assert make(cls).actor.norm_layers == ()


@pytest.mark.parametrize("cls", ALL)
def test_save_load_and_learn_on(cls, tmp_path):
    model = make(cls, policy_kwargs=dict(normalization="batch")).learn(5)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_size < 200_000
    loaded = cls.load(tmp_path / "model", device="cpu")
    observation = np.ones(4, np.float32)
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))
    with pytest.raises(
        ValueError, match=rf"`dataset=None` is not allowed for learning: .*`{cls.__name__}.load\(path, dataset"
    ):
        loaded.learn(1)
    loaded = cls.load(tmp_path / "model", dataset=data(), device="cpu")
    for each in (model, loaded):
        each.set_random_seed(3)
        each.learn(5, reset_num_timesteps=False)
    assert same_parameters(model, loaded)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("env", [True, False])
def test_a_checkpoint_resumes_to_the_bit_without_the_dataset(cls, env, tmp_path):
    dataset = make(cls).replay_buffer
    kwargs = dict(dataset=dataset, policy_kwargs=dict(net_arch=[16, 12], normalization="batch"), device="cpu", batch_size=16)
    model = cls("MlpPolicy", Untouchable() if env else None, **kwargs)
    model.learn(9, callback=CheckpointEvery(5, tmp_path / "checkpoint"), schedule_timesteps=30)
    th.manual_seed(1)
    model.save_checkpoint(tmp_path / "checkpoint")
    model.learn(8, reset_num_timesteps=False, schedule_timesteps=30)
    resumed = cls.resume(tmp_path / "checkpoint", Untouchable() if env else None, device="cpu")
    assert resumed.num_timesteps == 9
    resumed.learn(8, reset_num_timesteps=False, schedule_timesteps=30)
    assert same_parameters(model, resumed)


def test_checkpoints_are_written_between_steps(tmp_path):
    class Look(BaseCallback):
        seen = ()

        def _on_step(self):
            if (tmp_path / "checkpoint").exists() and not self.seen:
                self.seen = (self.num_timesteps,)
            return self.num_timesteps < 8

    look = Look()
    make(BNIQL).learn(20, callback=[CheckpointEvery(5, tmp_path / "checkpoint"), look])
    assert look.seen == (6,)
    assert BNIQL.resume(tmp_path / "checkpoint", Untouchable(), device="cpu").num_timesteps == 8


def test_callbacks_log_and_progress_bar(tmp_path):
    pytest.importorskip("tensorboard")
    evaluation = EvalCallback(VectorEnv(), n_eval_episodes=1, eval_freq=4, log_path=str(tmp_path), verbose=0)
    model = make(BNIQL, tensorboard_log=str(tmp_path), batch_size=8)
    model.learn(9, callback=evaluation, log_interval=3, progress_bar=True)
    assert evaluation.evaluations_timesteps == [4, 8]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "BNIQL_1")).Reload()
    assert [event.step for event in events.Scalars("train/value_loss")] == [3, 4, 6, 8, 9]
    assert {"train/advantage", "train/weight", "train/critic_loss", "time/fps", "eval/mean_reward"} <= {
        *events.Tags()["scalars"]
    }


def test_schedules_count_gradient_steps():
    rates = []

    class Rates(BaseCallback):
        def _on_step(self):
            rates.append((self.model.actor.optimizer.param_groups[0]["lr"], self.model.value.optimizer.param_groups[0]["lr"]))
            return True

    make(BNIQL, learning_rate=1e-3).learn(4, callback=Rates())
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates == [(pytest.approx(rate), 1e-3) for rate in cosine]
    rates.clear()
    make(BNIQL, learning_rate=lambda left: left, actor_learning_rate_decay=None, critic_learning_rate=0.5).learn(2, Rates())
    assert rates == [(1.0, 0.5), (0.5, 0.5)]


def test_no_environment_to_act_in():
    model = BNIQL("MlpPolicy", None, make(BNIQL).replay_buffer, device="cpu", batch_size=8).learn(2)
    with pytest.raises(RuntimeError, match="The model has no environment to act in"):
        model.get_env().reset()


def test_observations_are_standardised_by_the_dataset(tmp_path):
    dataset = data()
    model = make(BNTD3BC, dataset=dataset)
    for network in (model.actor, model.critic, model.actor_target, model.critic_target):
        features = network.features(th.as_tensor(dataset["observations"], dtype=th.float32)).detach().numpy()
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-3)
    model.learn(1).save(tmp_path / "model")
    other = BNTD3BC.load(tmp_path / "model", dataset=data(seed=1), device="cpu")
    assert other.actor.features_extractor.mean.equal(model.actor.features_extractor.mean)  # what its networks know
    assert make(BNTD3BC, normalize_observations=False).actor.features_extractor.mean.eq(0).all()


def test_td3_bc_that_is_loaded_without_standardising_leaves_observations_as_they_are(tmp_path):
    make(BNTD3BC).save(tmp_path / "model")
    loaded = BNTD3BC.load(tmp_path / "model", env=VectorEnv(), dataset=data(), normalize_observations=False, device="cpu")
    for network in (loaded.actor, loaded.actor_target, loaded.critic, loaded.critic_target):
        assert (network.features_extractor.mean == 0).all()
        assert (network.features_extractor.scale == 1).all()


@pytest.mark.parametrize(
    ("space", "normalized"),
    [
        (spaces.Box(-np.inf, np.inf, (4,)), True),
        (spaces.Discrete(5), False),
        (spaces.MultiDiscrete([3, 4]), False),
        (spaces.Box(0, 255, (1, 8, 8), np.uint8), False),
    ],
)
def test_what_is_standardised_is_what_the_networks_get(space, normalized):
    """Not what the dataset holds: VecNormalize and SB3's preprocessing come between."""
    space.seed(0)
    observations = np.stack([100 + np.float32(5) * space.sample() if normalized else space.sample() for _ in range(5001)])
    dataset = data(5000) | dict(observations=observations[:-1], next_observations=observations[1:])
    env = SpaceEnv(space, spaces.Box(-1, 1, (2,)))
    if normalized:
        env = VecNormalize(DummyVecEnv([lambda: SpaceEnv(space, spaces.Box(-1, 1, (2,)))]), norm_reward=False)
        env.obs_rms.update(observations * 0.9)
        env.training = False
    model = make(BNTD3BC, env=env, dataset=dataset)
    obs = th.as_tensor(env.normalize_obs(observations[:-1]) if normalized else observations[:-1])
    for network in (model.actor, model.critic_target):
        features = network.features(obs).detach().double().numpy()
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
        deviation = network.features_extractor.scale.numpy() - 1e-3
        np.testing.assert_allclose(features.std(axis=0), deviation / (deviation + 1e-3), atol=1e-4)
    assert model.learn(2).num_timesteps == 2


@pytest.mark.parametrize("cls", ALL)
def test_predicted_actions_are_in_the_space(cls):
    space = spaces.Box(np.array([-3.0, 1.0], np.float32), np.array([0.0, 4.0], np.float32))
    env = VectorEnv()
    env.action_space = space
    model = make(cls, env=env, dataset=data() | dict(actions=np.full((200, 2), [-1.0, 2.0])))
    for deterministic in (True, False):
        actions, _ = model.predict(
            np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), deterministic=deterministic
        )
        assert (actions >= space.low).all()
        assert (actions <= space.high).all()


BAD = [
    (BNIQL, "expectile", 0.0),
    (BNIQL, "expectile", 1.0),
    (BNIQL, "beta", -1.0),
    (BNIQL, "weight_limit", 0.0),
    (BNIQL, "actor_learning_rate_decay", "linear"),
    (BNIQL, "reward_scaling", 0),
    (BNIQL, "target_statistics", "joint"),
    (BNTD3BC, "alpha", -0.1),
    (BNTD3BC, "normalize_observations", 2),
    (BNTD3BC, "policy_delay", 0),
    (BNTD3BC, "target_policy_noise", -1.0),
    (BNBCQ, "lmbda", 1.1),
    (BNBCQ, "n_target_actions", 0),
    (BNAWAC, "beta", 0.0),
    (BNAWAC, "weighting", "sum"),
]


@pytest.mark.parametrize(("cls", "name", "value"), BAD, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_arguments(cls, name, value):
    with pytest.raises(ValueError, match=f"`{name}={value!r}` is not allowed"):
        make(cls, **{name: value})


def test_a_dataset_that_comes_with_load_is_what_standardises(tmp_path):
    """Of a model that has not learned: the way that the message about a missing dataset names."""
    of_data = make(BNTD3BC).actor.features_extractor
    BNTD3BC("MlpPolicy", VectorEnv(), policy_kwargs=dict(net_arch=[16, 12])).save(tmp_path / "none")
    make(BNTD3BC, dataset=data(seed=1)).save(tmp_path / "other")
    for name in ("none", "other"):
        loaded = BNTD3BC.load(tmp_path / name, dataset=data()).actor.features_extractor
        assert loaded.mean.equal(of_data.mean)
        assert loaded.scale.equal(of_data.scale)


@pytest.mark.parametrize(("cls", "name"), [(BNIQL, "value"), (BNBCQ, "vae")])
def test_weight_decay_is_the_actors(cls, name):
    model = make(cls, policy_kwargs=dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.1)))
    decays = [group["weight_decay"] for group in getattr(model.policy, name).optimizer.param_groups]
    assert decays == [0.0]
    assert model.actor.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_saturation_is_of_the_actions_not_of_bcqs_perturbations():
    at_bound = data() | dict(actions=np.full((200, 2), 1.0))
    model = make(BNBCQ, dataset=at_bound, learning_rate=1e-2).learn(150, log_interval=1000)
    assert model.logger.name_to_value["train/actor_saturation"] > 0.2


def test_callbacks_find_infos():
    def look(local_variables, global_variables):
        assert local_variables["infos"] == [{}]

    make(BNIQL).learn(2, callback=look)


@pytest.mark.parametrize(
    ("cls", "name", "value"), [(BNBCQ, "vae_arch", 750), (BNBCQ, "vae_arch", None), (BNIQL, "final_init", 1e-5)]
)
def test_bad_arguments_of_the_policy(cls, name, value):
    with pytest.raises(ValueError, match=f"`{name}={value!r}` is not allowed"):
        make(cls, policy_kwargs={name: value})


def test_bcq_chooses_the_best_of_its_samples():
    model = make(BNBCQ, policy_kwargs=dict(n_sampled_actions=7)).learn(3)
    policy, observation = model.policy, th.randn(1, 4)
    actions = [policy.actor.perturbed_in(observation, policy.vae.generated_in(observation, z[None])) for z in policy.latents]
    values = [policy.critic.q1_forward(observation, action).item() for action in actions]
    chosen, _ = model.predict(observation.numpy(), deterministic=True)
    np.testing.assert_allclose(chosen, actions[np.argmax(values)].detach(), atol=1e-6)
    assert not np.array_equal(*(model.predict(observation.numpy())[0] for _ in range(2)))
    with pytest.raises(ValueError, match="`phi=-1` is not allowed"):
        make(BNBCQ, policy_kwargs=dict(phi=-1))


@pytest.mark.parametrize("cls", ALL)
def test_onnx_holds_the_deterministic_policy(cls, tmp_path):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    model = make(cls, policy_kwargs=dict(normalization="batch")).learn(3)
    model.export_onnx(tmp_path / "policy.onnx")
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    (actions,) = session.run(None, {"observation": observations})
    np.testing.assert_allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-5)


@pytest.mark.parametrize("normalization", ["batch", "layer", None])
@pytest.mark.parametrize("cls", ALL)
def test_exported_policies_act_as_the_model(cls, normalization, tmp_path):
    """With TD3+BC's standardisation, and BCQ's choice among generated actions."""
    pytest.importorskip("safetensors")
    model = make(cls, policy_kwargs=dict(normalization=normalization)).learn(3)
    path = tmp_path / "policy"
    random_state = th.get_rng_state()
    model.export_policy(path)
    assert th.equal(th.get_rng_state(), random_state)
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        load_policy(path).predict(observations)[0], model.predict(observations, deterministic=True)[0]
    )


def test_a_changed_part_of_bcq_is_refused(tmp_path):
    """Each of the three networks that act is looked at; the second critic does not act."""
    pytest.importorskip("safetensors")
    for change, message in (
        (lambda policy: setattr(policy.vae, "decoder", th.nn.Sequential(*policy.vae.decoder, th.nn.Hardtanh())), "Hardtanh"),
        (lambda policy: setattr(policy.critic.qf0, "q_net", policy.critic.qf0.q_net[:-1]), "by its arguments"),
        (lambda policy: policy.vae.decoder[0].register_forward_hook(lambda *_: None), r"hooks at vae\.decoder\.0"),
        (lambda policy: setattr(policy.actor, "__class__", type("Own", (type(policy.actor),), {})), "class of the actor=Own"),
    ):
        model = make(BNBCQ)
        change(model.policy)
        with pytest.raises(ValueError, match=message):
            model.export_policy(tmp_path / "policy")
    assert not list(tmp_path.iterdir())
    model = make(BNBCQ)
    model.policy.critic.qf1.q_net = th.nn.Sequential(th.nn.Hardtanh())
    model.export_policy(tmp_path / "policy")
    assert not any("qf1" in name for name in load_policy(tmp_path / "policy").state_dict())


def test_a_description_of_bcq_is_checked(tmp_path):
    pytest.importorskip("safetensors")
    description, tensors = describe(make(BNBCQ).policy, None)
    check_description("file", description)
    generative = description["generative"]
    for change, message in (
        (dict(code="import os"), "a generative model whose keys are unknown or missing"),
        (dict(vae=generative["vae"] | dict(code="import os")), "a network whose keys are unknown or missing"),
        (dict(critic=generative["critic"] | dict(normalization="batch")), "a normalization whose keys are unknown"),
    ):
        with pytest.raises(FileError, match=message):
            check_description("file", description | dict(generative=generative | change))
    for change, message in ((dict(phi=-1.0), "`phi=-1.0` is not allowed"), (dict(n_latents=10**9), "size mismatch")):
        with pytest.raises((ValueError, RuntimeError), match=message):
            build(description | dict(generative=generative | change), tensors)


@pytest.mark.parametrize("cls", ALL)
def test_images(cls, tmp_path):
    """Each network has convolutions of its own, which learn; a saved model acts the same."""
    space = spaces.Box(0, 255, (36, 40, 1), np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (201, *space.shape), np.uint8)
    env = Untouchable()
    env.observation_space = space
    dataset = data() | dict(observations=images[:-1], next_observations=images[1:])
    arguments = dict(batch_size=8, device="cpu", policy_kwargs=dict(normalization="batch"))
    model = cls("CnnPolicy", env, dataset, **arguments)
    networks = [model.actor, model.critic, *([model.value] if cls is BNIQL else [model.vae] if cls is BNBCQ else [])]
    assert len({*map(id, networks)}) == len({id(network.features_extractor) for network in networks})
    before = [copy.deepcopy(network.features_extractor) for network in networks]
    model.learn(3)
    for network, extractor in zip(networks, before, strict=True):
        assert type(extractor) is PaperCNN
        assert not extractor.cnn[0].weight.equal(network.features_extractor.cnn[0].weight)
    model.save(tmp_path / "model")
    action, _ = model.predict(images[0], deterministic=True)
    loaded = cls.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(images[0], deterministic=True)[0], action)
    if find_spec("safetensors"):
        loaded.export_policy(tmp_path / "policy")
        np.testing.assert_array_equal(load_policy(tmp_path / "policy").predict(images[0])[0], action)


def test_bad_environments_and_calls():
    with pytest.raises(ValueError, match="`share_features_extractor=True` is not allowed"):
        make(BNIQL, policy_kwargs=dict(share_features_extractor=True))
    with pytest.raises(ValueError, match="`log_interval=0` is not allowed"):
        make(BNIQL).learn(3, log_interval=0)
    with pytest.raises(ValueError, match="`batch_size=1` is not allowed: it must be an integer >= 2 with batch norm"):
        make(BNIQL, batch_size=1, policy_kwargs=dict(normalization="batch"))


# --- It learns


class PointMass(gym.Env):
    """A point on a line that is to be held at 0; episodes of 30 steps, cut off."""

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.speed, self.steps = self.np_random.uniform(-2, 2), 0.0, 0
        return np.array([self.place, self.speed], np.float32), {}

    def step(self, action):
        self.speed += 0.3 * float(action[0])
        self.place += 0.3 * self.speed
        self.steps += 1
        return np.array([self.place, self.speed], np.float32), -(self.place**2), False, self.steps >= 30, {}


def controller(observation):
    return np.clip([-1.5 * observation[0] - 1.5 * observation[1]], -1, 1)


def rollouts(policies, n_episodes=60, seed=0):
    """Transitions of policies that take turns, and the return of each episode."""
    env, rows, returns = PointMass(), [], []
    env.reset(seed=seed)
    for episode in range(n_episodes):
        observation, _ = env.reset()
        policy, done, total = policies[episode % len(policies)], False, 0.0
        while not done:
            action = np.asarray(policy(observation), np.float32)
            following, reward, _, done, _ = env.step(action)
            rows.append((observation, action, reward, following, False, done))
            observation, total = following, total + reward
        returns.append(total)
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}, np.array(returns)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("cls", ALL)
def test_it_acts_better_than_the_data(cls, normalization):
    rng = np.random.default_rng(0)
    dataset, returns = rollouts([lambda _: rng.uniform(-1, 1, 1), controller])
    kwargs = dict(batch_size=128) if cls is BNAWAC else {}
    policy_kwargs = dict(net_arch=[64, 64], normalization=normalization)
    model = make(
        cls,
        env=PointMass(),
        dataset=dataset,
        policy_kwargs=policy_kwargs,
        learning_rate=1e-3,
        **({"batch_size": 128} | kwargs),
    )
    model.learn(1_500)
    _, learned = rollouts([lambda observation: model.predict(observation, deterministic=True)[0]], n_episodes=12, seed=1)
    good, bad = returns[1::2].mean(), returns[::2].mean()
    assert learned.mean() > returns.mean() + 0.5 * (good - returns.mean()), (learned.mean(), good, bad)
