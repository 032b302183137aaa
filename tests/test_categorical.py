"""Critics of atoms and scaled rewards, each formula against a plain one, and what a training makes of them."""

import copy
import importlib.util
import math
import pickle
from contextlib import suppress

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, DoubleExtractor, VectorEnv, as_double, learns, random_batch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from test_td3 import Target

from benchmarks.reliability.resumes import InterruptAt, Interrupted, fingerprint
from sb3_bn_ddpg import BNDDPG, BNIQL, BNSAC, BNTD3, XQC, CheckpointEvery, load_policy
from sb3_bn_ddpg.common.return_scaler import ReturnScaler
from sb3_bn_ddpg.critic_step.step import least_distribution, target_from
from sb3_bn_ddpg.networks.categorical import make_atoms, projected

ATOMS = dict(n_atoms=11, v_min=-2.0, v_max=3.0)
GENERATOR = np.random.default_rng(0)


def make(algorithm=BNSAC, env=None, policy="MlpPolicy", **kwargs):
    policy_kwargs = SMALL | ATOMS | kwargs.pop("policy_kwargs", {})
    arguments = dict(learning_starts=20, batch_size=16, buffer_size=1000, device="cpu", seed=0) | kwargs
    return algorithm(policy, VectorEnv() if env is None else env, policy_kwargs=policy_kwargs, **arguments)


# --- The projection


def plain_projection(probabilities, values, v_min, v_max, n_atoms) -> np.ndarray:
    """C51's Algorithm 1, entry by entry."""
    result, distance = np.zeros((len(probabilities), n_atoms)), (v_max - v_min) / (n_atoms - 1)
    for row in range(len(probabilities)):
        for probability, value in zip(probabilities[row], values[row], strict=True):
            place = (min(max(value, v_min), v_max) - v_min) / distance
            lower, upper = math.floor(place), math.ceil(place)
            if lower == upper:
                result[row, lower] += probability
            else:
                result[row, lower] += probability * (upper - place)
                result[row, upper] += probability * (place - lower)
    return result


def distributions(n_rows: int, n_atoms: int) -> np.ndarray:
    return GENERATOR.dirichlet(np.ones(n_atoms), n_rows)


@pytest.mark.parametrize("n_atoms", [2, 11, 101])
def test_projection(n_atoms):
    """Of values inside the support, beyond its ends, and all the same, as after a termination."""
    atoms = th.linspace(-2.0, 3.0, n_atoms, dtype=th.float64)
    np.testing.assert_allclose(make_atoms(n_atoms, -2.0, 3.0), atoms, atol=1e-6)
    probabilities, rewards = distributions(40, n_atoms), GENERATOR.normal(0, 2, (40, 1))
    discounts = np.where(GENERATOR.random((40, 1)) < 0.3, 0.0, 0.9)
    values = rewards + discounts * atoms.numpy()
    result = projected(th.from_numpy(probabilities), th.from_numpy(values), atoms).numpy()
    np.testing.assert_allclose(result, plain_projection(probabilities, values, -2.0, 3.0, n_atoms), atol=1e-12)
    np.testing.assert_allclose(result.sum(axis=1), 1)
    inside = (values.min(axis=1) >= -2) & (values.max(axis=1) <= 3)
    assert inside.any()
    np.testing.assert_allclose((result * atoms.numpy()).sum(1)[inside], (probabilities * values).sum(1)[inside], atol=1e-12)


def test_what_lies_beyond_the_support_is_at_its_ends():
    atoms = make_atoms(5, -1.0, 1.0).double()
    values = th.tensor([[-7.0, 8.0, 1.0, -1.0, 0.5], [math.inf, -math.inf, 0.25, 0.5, 0.0]], dtype=th.float64)
    probabilities = th.tensor([[0.1, 0.2, 0.3, 0.25, 0.15], [0.1, 0.2, 0.4, 0.2, 0.1]], dtype=th.float64)
    expected = [[0.35, 0, 0, 0.15, 0.5], [0.2, 0, 0.3, 0.4, 0.1]]
    np.testing.assert_allclose(projected(probabilities, values, atoms), expected, atol=1e-12)


def test_a_projection_in_float32_is_a_distribution():
    atoms = make_atoms(101, -5.0, 5.0)
    probabilities = th.from_numpy(distributions(200, 101)).float()
    for moved in (atoms.expand(200, -1), atoms * 0.99 + th.randn(200, 1)):
        result = projected(probabilities, moved, atoms)
        assert result.min() >= 0
        np.testing.assert_allclose(result.sum(dim=1), 1, rtol=1e-5)
    np.testing.assert_allclose(projected(probabilities, atoms.expand(200, -1), atoms), probabilities, atol=1e-5)


# --- Target, loss and gradients


def test_the_target_is_that_of_the_smaller_mean():
    """Entropy is taken from the atoms of the next state, the reward added after the discount; an end has the reward alone."""
    model = make(policy_kwargs=dict(n_critics=3)).policy.double()
    batch = as_double(random_batch(make(), size=30))
    assert 0 < batch.dones.sum() < 30
    logits = [th.from_numpy(GENERATOR.normal(size=(30, 11))) for _ in range(3)]
    loss_of_value = th.from_numpy(GENERATOR.normal(size=(30, 1)))
    probabilities = [(each.exp() / each.exp().sum(dim=1, keepdim=True)).numpy() for each in logits]
    atoms = np.linspace(-2, 3, 11)
    means = np.stack([(each * atoms).sum(axis=1) for each in probabilities])
    least = np.stack(probabilities)[means.argmin(axis=0), np.arange(30)]
    for loss in (loss_of_value, None):
        values = batch.rewards + 0.9 * (1 - batch.dones) * (th.from_numpy(atoms) - (0 if loss is None else loss))
        expected = plain_projection(least, values.numpy(), -2.0, 3.0, 11)
        result = target_from(tuple(logits), model.critic, batch, 0.9, loss)
        np.testing.assert_allclose(result, expected, atol=1e-12)
    assert not result.requires_grad


def test_the_first_of_equal_means():
    atoms = make_atoms(3, -1.0, 1.0).double()
    first, second = th.tensor([[0.0, 9.0, 0.0]], dtype=th.float64), th.tensor([[9.0, 0.0, 9.0]], dtype=th.float64)
    for pair in ((first, second), (second, first)):
        assert th.equal(least_distribution(pair, atoms), pair[0].softmax(dim=1))


def test_the_loss_is_the_cross_entropy():
    """What a step reports, and what it leaves as the gradient of the last layer, whose biases are added to the logits."""
    model = make(BNTD3, policy_kwargs=dict(features_extractor_class=DoubleExtractor), fast_update=False)
    model.policy.double()
    batch = as_double(random_batch(model))
    critic, critic_target = copy.deepcopy(model.critic), model.critic_target
    model._step_noise = lambda batch: None
    with th.no_grad():
        next_actions = model.actor_target.forward_with("batch", batch.next_observations)
        next_inputs = batch.next_observations, next_actions
        next_outputs = critic_target.forward_with("batch", *next_inputs, part=critic_target.outputs)
        outputs = critic.forward_with("batch", batch.observations, batch.actions, part=critic.outputs)
    target = target_from(next_outputs, critic, batch, model.gamma, None).numpy()
    info = model._gradient_step(batch)
    losses, means = [], []
    for logits, q_network in zip(outputs, model.critic.q_networks, strict=True):
        shifted = logits.numpy() - logits.numpy().max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        losses.append(-(target * log_probabilities).sum(axis=1).mean())
        means.append((np.exp(log_probabilities) * np.linspace(-2, 3, 11)).sum(axis=1))
        np.testing.assert_allclose(
            q_network.q_net[-1].bias.grad, (np.exp(log_probabilities) - target).mean(axis=0), atol=1e-12
        )
    assert info.critic_loss.item() == pytest.approx(sum(losses), rel=1e-9)
    assert info.q_value.item() == pytest.approx(np.mean(means), rel=1e-9)
    assert info.abs_q_value.item() == pytest.approx(np.abs(means).mean(), rel=1e-9)
    assert info.td_target.item() == pytest.approx((target * np.linspace(-2, 3, 11)).sum(axis=1).mean(), rel=1e-9)


def test_the_gradient_of_an_action_goes_through_the_mean():
    critic = make(BNDDPG, policy_kwargs=dict(final_init=0.3)).critic.double()
    obs = th.from_numpy(GENERATOR.normal(size=(3, 4)))
    actions = th.from_numpy(GENERATOR.uniform(-1, 1, (3, 2))).requires_grad_()
    critic.values_of(obs, actions)[0].sum().backward()

    def values(moved: th.Tensor) -> np.ndarray:
        with th.no_grad():
            logits = critic.qf0(obs, moved).numpy()
        return (np.exp(logits) * np.linspace(-2, 3, 11)).sum(axis=1) / np.exp(logits).sum(axis=1)

    for column in range(2):
        step = th.zeros(2, dtype=th.float64)
        step[column] = 1e-6
        difference = (values(actions.detach() + step) - values(actions.detach() - step)) / 2e-6
        np.testing.assert_allclose(actions.grad[:, column], difference, rtol=1e-5, atol=1e-9)


def test_without_atoms_nothing_is_different():
    model = BNTD3("MlpPolicy", VectorEnv(), policy_kwargs=SMALL, device="cpu", buffer_size=10)
    assert model.critic.atoms is None
    assert model.reward_scaler is None
    assert [q.q_net[-1].out_features for q in model.critic.q_networks] == [1, 1]
    assert not [name for name in make().policy.state_dict() if "atoms" in name]


# --- Scaled rewards


def test_the_spread_of_returns():
    """Over episodes that end by termination or time limit, of three environments, and one more after a reset."""
    rewards, dones = GENERATOR.normal(5, 2, (50, 3)), GENERATOR.random((50, 3)) < 0.1
    scaler, returns, running = ReturnScaler(3), [], [0.0, 0.0, 0.0]
    assert scaler.scale == 1
    for step in range(50):
        if step == 30:
            scaler.begin_episodes(3)
            running = [0.0, 0.0, 0.0]
        scaler.update(rewards[step], dones[step], 0.9)
        for env in range(3):
            running[env] = 0.9 * running[env] + rewards[step, env]
            returns.append(running[env])
            running[env] = 0.0 if dones[step, env] else running[env]
        assert scaler.scale == pytest.approx(np.std(returns) + 1e-8, rel=1e-12)
    assert scaler.mean == pytest.approx(np.mean(returns))


def test_equal_returns_have_no_spread():
    scaler = ReturnScaler(1)
    for _ in range(5):
        scaler.update(np.zeros(1), np.zeros(1, bool), 0.9)
    assert scaler.scale == 1
    scaler.update(np.ones(1, np.float32), np.zeros(1, bool), 0.9)
    assert scaler.scale == pytest.approx(np.std([0, 0, 0, 0, 0, 1]) + 1e-8)


class EndingEnv(VectorEnv):
    """Episodes end by a time limit, or before it by a termination."""

    def step(self, action):
        observation, reward, _, is_truncated, info = super().step(action)
        return observation, 10 * reward, bool(self.np_random.random() < 0.05), is_truncated, info


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("algorithm", [BNDDPG, BNTD3, BNSAC])
def test_sampled_rewards_are_scaled_and_stored_ones_are_not(algorithm, n_steps):
    env = make_vec_env(EndingEnv, n_envs=3)
    model = make(algorithm, env, reward_scaling="return_std", n_steps=n_steps).learn(240)
    buffer = model.replay_buffer
    rewards, dones, returns, running = buffer.rewards[:80], buffer.dones[:80], [], np.zeros(3)
    assert dones.sum() > 10
    assert 0 < buffer.timeouts[:80].sum() < dones.sum()
    for reward, done in zip(rewards, dones, strict=True):
        running = model.gamma * running + reward
        returns.append(running.copy())
        running[done == 1] = 0
    assert model.reward_scaler.scale == pytest.approx(np.std(returns) + 1e-8, rel=1e-6)
    assert model.logger.name_to_value["train/reward_scale"] == model.reward_scaler.scale
    states = np.random.get_state()
    sampled = model._sample(50)
    np.random.set_state(states)
    np.testing.assert_allclose(sampled.rewards, buffer.sample(50).rewards / model.reward_scaler.scale, rtol=1e-6)
    assert sampled.rewards.dtype == th.float32
    model._learning_guard.note_rewards(model)
    assert model._learning_guard.largest_reward >= np.abs(rewards).max() / model.reward_scaler.scale * (1 - 1e-6)


def test_new_episodes_begin_new_returns():
    model = make(reward_scaling="return_std").learn(33)
    assert model.reward_scaler.returns[0] != 0
    running, count = model.reward_scaler.returns.copy(), model.reward_scaler.count
    model.learn(0, reset_num_timesteps=False)
    assert model.reward_scaler.returns == running
    model.learn(0)
    assert (model.reward_scaler.returns[0], model.reward_scaler.count) == (0, count)
    model.learn(3)
    model.begin_episodes()
    assert (model.reward_scaler.returns[0], model.reward_scaler.count) == (0, count + 3)


# --- Files


XQC_LIKE = dict(
    reward_scaling="return_std",
    target_statistics="joint",
    policy_delay=2,
    ent_coef="auto_0.01",
    policy_kwargs=dict(critic_norm_layers="all", action_layer=1),
)
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the extra `compiled` is not installed")
TRAININGS = {
    "DDPG": (BNDDPG, dict(reward_scaling="return_std")),
    "TD3, n-step": (BNTD3, dict(reward_scaling="return_std", n_steps=3)),
    "SAC": (BNSAC, XQC_LIKE),
    "SAC by autograd": (BNSAC, XQC_LIKE | dict(fast_update=False)),
    "SAC, compiled": (BNSAC, XQC_LIKE | dict(fast_update="compiled")),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_numba if "compiled" in name else ()) for name in TRAININGS])
def test_resumed_equals_uninterrupted(name, tmp_path):
    algorithm, kwargs = TRAININGS[name]

    def make_env():
        return make_vec_env(VectorEnv, 2, env_kwargs=dict(ep_length=7))

    def training():
        return make(algorithm, make_env(), **copy.deepcopy(kwargs))

    expected = fingerprint(training().learn(160))
    with suppress(Interrupted):
        training().learn(160, [CheckpointEvery(80, tmp_path / "checkpoint"), InterruptAt(88)])
    np.random.seed(99)
    th.manual_seed(99)
    resumed = algorithm.resume(tmp_path / "checkpoint", make_env(), device="cpu")
    assert (resumed.reward_scaler.returns != 0).all()
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    ways = {True: "FastUpdate", "compiled": "CompiledUpdate", False: "NoneType"}
    assert type(resumed._fast_update).__name__ == ways[resumed.fast_update]
    assert [thing for thing, value in fingerprint(resumed).items() if value != expected[thing]] == []


def test_save_and_load(tmp_path):
    model = make(reward_scaling="return_std").learn(60)
    model.save(tmp_path / "model")
    loaded = BNSAC.load(tmp_path / "model", env=make_vec_env(VectorEnv, n_envs=3), device="cpu")
    assert th.equal(loaded.critic.atoms, model.critic.atoms)
    assert loaded.reward_scaler.scale == model.reward_scaler.scale != 1
    for key, value in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[key], value)
    loaded.learn(30)
    assert loaded.reward_scaler.count == model.reward_scaler.count + 30
    with pytest.warns(UserWarning, match="critics of scaled rewards, but `reward_scaling=None`: values of unscaled ones will"):
        unscaled = BNSAC.load(tmp_path / "model", env=VectorEnv(), device="cpu", reward_scaling=None)
    assert unscaled.reward_scaler is None
    unscaled.learn(30)
    other = make().learn(60)
    other.save(tmp_path / "other")
    with pytest.warns(UserWarning, match="critics of unscaled rewards, but `reward_scaling='return_std'`"):
        scaled = BNSAC.load(tmp_path / "other", env=VectorEnv(), device="cpu", reward_scaling="return_std").learn(30)
    assert scaled.reward_scaler.count == 30


def test_files_hold_no_float64(tmp_path):
    """They are put onto the model's device, and Apple's GPUs do not know it. Older files had some."""
    model = make(reward_scaling="return_std").learn(60)
    for name, state in model.get_parameters().items():
        assert not [key for key, value in state.items() if getattr(value, "dtype", None) == th.float64], name
    state = model.reward_scaler.state_dict()
    model.reward_scaler.load_state_dict({key: th.tensor(value, dtype=th.float64) for key, value in state.items()})
    assert model.reward_scaler.state_dict() == state


def test_parameters_are_those_of_scaled_rewards(tmp_path):
    """Critics are in units of the scale, so it goes where they go; not the returns of the episodes that go on."""
    model = make(reward_scaling="return_std").learn(60)
    model.save(tmp_path / "model")
    for parameters in (model.get_parameters(), tmp_path / "model"):
        other = make(env=make_vec_env(VectorEnv, n_envs=3), reward_scaling="return_std").learn(30)
        other.set_parameters(parameters)
        assert other.reward_scaler.scale == model.reward_scaler.scale
        assert other.reward_scaler.returns.shape == (3,)
        assert other.learn(30, reset_num_timesteps=False).reward_scaler.count == 90
        count, before = other.reward_scaler.count, other.reward_scaler.scale
        with pytest.raises(RuntimeError, match="Missing key"):
            other.set_parameters(model.get_parameters() | {"policy": {}})
        assert (other.reward_scaler.count, other.reward_scaler.scale) == (count, before)
    with pytest.warns(UserWarning, match="critics of scaled rewards"):
        make().set_parameters(tmp_path / "model")
    with pytest.warns(UserWarning, match="critics of unscaled rewards"):
        make(reward_scaling="return_std").set_parameters(make().get_parameters())


def test_a_policy_and_a_critic_by_themselves(tmp_path):
    model = make()
    for name in ("policy", "critic"):
        saved = getattr(model, name)
        saved.save(tmp_path / name)
        loaded = type(saved).load(tmp_path / name, device="cpu")
        critic = loaded if name == "critic" else loaded.critic
        assert th.equal(critic.atoms, model.critic.atoms)
        obs, actions = th.randn(5, 4), th.rand(5, 2)
        assert th.equal(critic(obs, actions)[1], model.critic(obs, actions)[1])
    assert th.equal(pickle.loads(pickle.dumps(model.critic)).atoms, model.critic.atoms)


@pytest.mark.parametrize("algorithm", [BNTD3, BNSAC])
def test_exported_policies_know_nothing_of_it(algorithm, tmp_path):
    pytest.importorskip("safetensors")
    model = make(algorithm, reward_scaling="return_std").learn(60)
    obs = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    expected = model.predict(obs, deterministic=True)[0]
    model.export_policy(tmp_path / "policy")
    np.testing.assert_allclose(load_policy(tmp_path / "policy").predict(obs)[0], expected, rtol=1e-5, atol=1e-6)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model.export_onnx(tmp_path / "policy.onnx")
    session = runtime.InferenceSession(str(tmp_path / "policy.onnx"))
    (actions,) = session.run(None, {session.get_inputs()[0].name: obs})
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)


# --- Bad input, and where it learns


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(n_atoms=1), r"`n_atoms=1` is not allowed: it must be an integer >= 2"),
        (dict(n_atoms=51.0), r"`n_atoms=51.0` is not allowed: it must be an integer >= 2"),
        (dict(v_min=5.0, v_max=5.0), r"`v_max=5.0` is not allowed: it must be a finite number > 5.0"),
        (dict(v_min=float("-inf")), r"`v_min=-inf` is not allowed: it must be a finite number"),
        (dict(v_max="10"), r"`v_max='10'` is not allowed: it must be a finite number > -2.0"),
    ],
)
@pytest.mark.parametrize("algorithm", [BNDDPG, BNTD3, BNSAC])
def test_atoms_that_are_not_allowed(algorithm, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(algorithm, policy_kwargs=kwargs)


@pytest.mark.parametrize("algorithm", [BNDDPG, BNTD3, BNSAC])
def test_scalings_that_are_not_allowed(algorithm, tmp_path):
    message = r"`reward_scaling='std'` is not allowed: it must be one of 'return_std', None"
    with pytest.raises(ValueError, match=message):
        make(algorithm, reward_scaling="std")
    model = make(algorithm)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        algorithm.load(tmp_path / "model", reward_scaling="std")
    model.reward_scaling = "std"
    with pytest.raises(ValueError, match=message):
        model.learn(30)
    goals = BitFlippingEnv(n_bits=4, continuous=True)
    with pytest.raises(ValueError, match="`reward_scaling='return_std'` is not allowed with HerReplayBuffer: it must be None"):
        make(algorithm, goals, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer, reward_scaling="return_std")
    venv = VecNormalize(make_vec_env(VectorEnv))
    with pytest.raises(ValueError, match="is not allowed with a VecNormalize that scales rewards, too"):
        make(algorithm, venv, reward_scaling="return_std")
    venv.norm_reward = False
    assert make(algorithm, venv, reward_scaling="return_std").learn(40).reward_scaler.count == 40


def test_offline_algorithms_have_no_atoms():
    data = {name: GENERATOR.normal(size=(30, n)).astype(np.float32) for name, n in (("observations", 4), ("actions", 2))}
    data |= dict(next_observations=data["observations"], rewards=np.zeros(30), terminations=np.zeros(30, bool))
    data["actions"] = data["actions"].clip(-1, 1)
    with pytest.raises(ValueError, match="`n_atoms=11` is not allowed: the offline algorithms have critics without atoms"):
        BNIQL("MlpPolicy", VectorEnv(), dataset=data, policy_kwargs=ATOMS, reward_scaling=None, device="cpu")


class Images(gym.Env):
    """An image and a vector."""

    def __init__(self) -> None:
        image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
        self.observation_space = spaces.Dict(image=image, vector=spaces.Box(-1, 1, (3,)))
        self.action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, bool(action[0] > 0), False, {}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_behind_shared_features(shared, joint):
    """Features that the critics' loss trains for the actor too, in both kinds of passes."""
    share = dict(share_features_extractor=True, shared_extractor_loss="critic") if shared else {}
    joint_pass = dict(target_statistics="joint", use_target_networks=False) if joint else {}
    model = make(BNSAC, Images(), "MultiInputPolicy", policy_kwargs=share, reward_scaling="return_std", **joint_pass)
    start = copy.deepcopy(model.critic.state_dict())
    model.learn(24)
    unmoved = [name for name, value in model.critic.state_dict().items() if th.equal(value, start[name])]
    assert not [name for name in unmoved if name.endswith(("weight", "bias"))]


def test_xqc():
    """The values of the authors' code (conf/agent/base_agent.yaml, conf/config.yaml and the networks)."""
    model = BNSAC("MlpPolicy", VectorEnv(action_dim=3), device="cpu", buffer_size=10, **copy.deepcopy(XQC))
    assert [q.q_net[-1].weight.shape for q in model.critic.q_networks] == [(101, 512)] * 2
    kinds = [type(layer).__name__ for layer in model.critic.qf0.q_net]
    assert kinds == ["BatchNorm1d", *["Linear", "BatchNorm1d", "ReLU"] * 4, "Linear"]
    assert [type(layer).__name__ for layer in model.actor.latent_pi] == kinds[:-1]
    assert {layer.out_features for layer in model.actor.latent_pi if isinstance(layer, th.nn.Linear)} == {256}
    assert {(layer.eps, layer.momentum) for layer in (*model.critic.norm_layers, *model.actor.norm_layers)} == {(1e-3, 0.01)}
    assert (model.critic.atoms.min(), model.critic.atoms.max()) == (-5, 5)
    assert model.entropy_coefficient.coefficient.item() == pytest.approx(0.01)
    assert (model.target_entropy, model.tau, model.batch_size, model.policy_delay) == (-1.5, 0.005, 256, 3)
    assert (model.gradient_steps, model.learning_starts, model.target_update_interval) == (2, 5000, 1)
    assert model.critic_target is not model.critic
    rates = [(model.lr_schedule(remaining), model.critic_lr_schedule(remaining)) for remaining in (1, 0)]
    np.testing.assert_allclose(rates, [(3e-4, 3e-4), (2.1e-4, 3e-5)])
    small = XQC | dict(policy_kwargs=XQC["policy_kwargs"] | SMALL, learning_starts=20, batch_size=16)
    model = BNSAC("MlpPolicy", VectorEnv(), device="cpu", **copy.deepcopy(small)).learn(30)
    assert type(model._fast_update).__name__ == "FastUpdate"
    assert model._n_updates == 20


def test_it_learns():
    arguments = dict(buffer_size=5000, batch_size=64, gamma=0.0, reward_scaling="return_std")
    policy_kwargs = dict(n_atoms=51, v_min=-5.0, v_max=5.0, net_arch=[32, 32])
    model = make(BNTD3, Target(), policy_kwargs=policy_kwargs, **arguments)

    def off() -> float:
        return -evaluate_policy(model, Target(), n_eval_episodes=10, warn=False)[0] / 10

    assert off() > 0.4
    assert learns(model, 3000, lambda: off() < 0.3)  # half of what a random policy has, which a constant one does not reach
    assert type(model._fast_update).__name__ == "FastUpdate"


def test_parameters_of_unscaled_rewards_are_told_after_training_too(make_model, tmp_path):
    scaled, plain = (make_model(VectorEnv(), reward_scaling=word) for word in ("return_std", None))
    scaled.learn(30)
    plain.save(tmp_path / "plain")
    with pytest.warns(UserWarning, match="critics of unscaled rewards"):
        scaled.set_parameters(tmp_path / "plain")
