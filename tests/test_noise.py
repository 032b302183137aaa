"""The Ornstein-Uhlenbeck process against its closed form, its generator, its environments, and SB3's noises."""

import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from conftest import SMALL, SpaceEnv, VectorEnv
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_bn_ddpg import BNDDPG, BNTD3, OrnsteinUhlenbeckNoise


def sample(noise: OrnsteinUhlenbeckNoise, n_steps: int) -> np.ndarray:
    return np.stack([noise() for _ in range(n_steps)])


def test_defaults_are_the_papers():
    noise = OrnsteinUhlenbeckNoise(np.zeros(2))
    assert isinstance(noise, ActionNoise)
    assert noise.sigma == 0.2  # section 7
    assert noise._theta == 0.15  # section 7
    assert noise._dt == 1
    assert noise().shape == (1, 2)
    assert noise().dtype == np.float32


@pytest.mark.parametrize(("theta", "sigma", "dt"), [(0.15, 0.2, 1.0), (0.15, 0.2, 0.5), (0.5, 0.3, 1.0), (1.6, 0.1, 1.0)])
def test_stationary_distribution(theta, sigma, dt):
    """Mean, variance and autocorrelation of many long processes, each within four standard errors or so."""
    mean = np.array([0.3, -0.1])
    n_envs, n_steps = 2000, 200
    noise = OrnsteinUhlenbeckNoise(mean, sigma, theta, dt, n_envs=n_envs, seed=0, dtype=np.float64)
    x = sample(noise, n_steps)[100:]  # (100, n_envs, 2), past 15 correlation times
    a = 1 - theta * dt
    variance = sigma**2 * dt / (1 - a**2)
    np.testing.assert_allclose(x[-1].mean(axis=0), mean, atol=4 * np.sqrt(variance / n_envs))
    np.testing.assert_allclose(x[-1].var(axis=0), variance, rtol=4 * np.sqrt(2 / n_envs))
    deviation = x - mean
    for lag in (1, 3, 7):
        # Over environments and over pairs of steps
        correlation = (deviation[lag:] * deviation[:-lag]).mean() / variance
        assert correlation == pytest.approx(a**lag, abs=0.02)
    # The two action dimensions are independent
    assert abs((deviation[..., 0] * deviation[..., 1]).mean() / variance) < 0.02


def test_first_steps_after_a_reset():
    """From 0, the variance after k steps is the stationary one times 1 - a^(2k)."""
    noise = OrnsteinUhlenbeckNoise(np.zeros(1), n_envs=20_000, seed=1)
    x = sample(noise, 3)[..., 0]
    a = 0.85
    for k in (1, 2, 3):
        expected = 0.04 / (1 - a**2) * (1 - a ** (2 * k))
        assert x[k - 1].var() == pytest.approx(expected, rel=0.05)


def test_one_seed_gives_one_sequence():
    first, second, third = (OrnsteinUhlenbeckNoise(np.zeros(3), n_envs=2, seed=seed) for seed in (7, 7, 8))
    np.random.seed(0)
    x = sample(first, 50)
    np.random.seed(1)  # the global generator has no say
    np.testing.assert_array_equal(x, sample(second, 50))
    assert not np.array_equal(x, sample(third, 50))


def test_noise_does_not_foretell_the_environment():
    """Gymnasium's generators have the model's seed too: drawn from the same numbers, noise and disturbances would be alike."""
    for seed in (0, 7):
        generators = [gym.utils.seeding.np_random(seed)[0], gym.spaces.Box(-1, 1, (1,), seed=seed).np_random]
        noise = OrnsteinUhlenbeckNoise(np.zeros(1), sigma=1.0, theta=0.0, seed=seed, dtype=np.float64)
        innovations = np.diff(sample(noise, 1001).ravel())
        for generator in generators:
            assert abs(np.corrcoef(innovations, generator.standard_normal(1001)[1:])[0, 1]) < 0.15


def test_a_generator_to_draw_from():
    noises = [OrnsteinUhlenbeckNoise(np.zeros(3), seed=np.random.default_rng(seed)) for seed in (7, 7, 8)]
    x = [sample(noise, 5) for noise in noises]
    np.testing.assert_array_equal(x[0], x[1])
    assert not np.array_equal(x[0], x[2])


def test_noise_leaves_the_global_generator_alone():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    sample(OrnsteinUhlenbeckNoise(np.zeros(3)), 10)
    assert np.random.random() == expected


def test_environments_are_independent_and_reset_one_by_one():
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), initial_noise=np.array([0.5, -0.5]), n_envs=3, seed=0)
    x = sample(noise, 10)
    assert not np.allclose(x[:, 0], x[:, 1])
    before = noise.noise_prev.copy()
    noise.reset(indices=[1])
    np.testing.assert_array_equal(noise.noise_prev[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(noise.noise_prev[1], [0.5, -0.5])
    noise.reset()
    np.testing.assert_array_equal(noise.noise_prev, np.tile([0.5, -0.5], (3, 1)))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda noise: pickle.loads(pickle.dumps(noise))])
def test_state_and_generator_are_copied_and_pickled(clone):
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), n_envs=2, seed=3, sigma=LinearSchedule(0.4, 0.1, 1.0))
    noise.update_progress(0.5)
    sample(noise, 5)
    twin = clone(noise)
    np.testing.assert_array_equal(sample(noise, 5), sample(twin, 5))


def test_sigma_schedule():
    noise = OrnsteinUhlenbeckNoise(np.zeros(1), sigma=lambda progress_remaining: 0.3 * progress_remaining, seed=0)
    assert noise.sigma == pytest.approx(0.3)
    noise.update_progress(0.25)
    assert noise.sigma == pytest.approx(0.075)
    noise.update_progress(0.0)
    noise.reset()
    assert noise() == 0


def test_sigma_for_each_action():
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), sigma=np.array([0.0, 1.0]), seed=0)
    x = sample(noise, 10)
    assert (x[..., 0] == 0).all()
    assert (x[..., 1] != 0).all()


# In the model


def test_default_noise_follows_the_environment(make_model):
    env = make_vec_env(lambda: VectorEnv(action_dim=3), n_envs=2)
    model = make_model(env)
    assert isinstance(model.action_noise, OrnsteinUhlenbeckNoise)
    assert model.action_noise().shape == (2, 3)


def test_model_resets_each_environment_at_its_own_episode_end(make_model):
    """Environments of unlike episode length: after each step, exactly those that ended start from zero again."""
    env = DummyVecEnv([lambda length=length: VectorEnv(ep_length=length) for length in (3, 5)])
    model = make_model(env)
    resets: list[tuple[int, list[int]]] = []

    class Recording(OrnsteinUhlenbeckNoise):
        def reset(self, indices=None):
            resets.append((model.num_timesteps // 2, list(indices) if indices is not None else None))
            super().reset(indices)

    model.action_noise.__class__ = Recording
    model.learn(2 * 15)
    assert resets[0] == (0, None)
    assert resets[1:] == [(3, [0]), (5, [1]), (6, [0]), (9, [0]), (10, [1]), (12, [0]), (15, [0]), (15, [1])]


def test_same_seed_same_run_to_the_bit(make_model):
    runs = []
    for _ in range(2):
        model = make_model(learning_starts=10)
        model.learn(60)
        runs.append((model.replay_buffer.actions[:60].copy(), model.policy.state_dict()))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert all((value == runs[1][1][key]).all() for key, value in runs[0][1].items())


def test_exploration_adds_the_noise_to_the_scaled_action(make_model):
    """Actions in the replay buffer are clip(mu(s) + noise, -1, 1) in [-1, 1]; the environment gets them unscaled."""
    env = VectorEnv(high=3.0)
    model = make_model(env, learning_starts=0, gradient_steps=0)
    twin = copy.deepcopy(model.action_noise)
    model.learn(20)
    twin.reset()
    obs = model.replay_buffer.observations[:20, 0]
    mu = model.policy.scale_action(model.predict(obs)[0])
    expected = np.clip(mu + np.concatenate([twin() for _ in range(20)]), -1, 1)
    np.testing.assert_allclose(model.replay_buffer.actions[:20, 0], expected, atol=1e-6)


def test_schedule_advances_while_learning(make_model):
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), sigma=LinearSchedule(0.4, 0.0, 1.0))
    model = make_model(action_noise=noise)
    seen = []
    model.learn(40, callback=lambda local, _: seen.append(float(model.action_noise.sigma)) or True)
    np.testing.assert_allclose(seen, 0.4 * (1 - np.arange(40) / 40), atol=1e-7)
    assert noise.sigma == pytest.approx(0.4)  # the user's own object is left alone
    # A second call of learn starts from its own progress, not from the end of the first
    seen.clear()
    model.learn(40, callback=lambda local, _: seen.append(float(model.action_noise.sigma)) or True, reset_num_timesteps=False)
    assert seen[0] == pytest.approx(0.2)


def test_models_do_not_share_a_generator(make_model):
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), seed=5)
    first, second = make_model(action_noise=noise), make_model(action_noise=noise)
    np.testing.assert_array_equal(sample(first.action_noise, 5), sample(second.action_noise, 5))


class SetSigma(BaseCallback):
    """Silences a noise after some steps, as schedules of users do; what noise the actions have from then on."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.largest = noise, 0.0

    def _on_step(self):
        if self.num_timesteps > 30:
            clean, _ = self.model.predict(self.model._last_obs)
            self.largest = max(self.largest, float(np.abs(self.locals["actions"] - clean).max()))
        elif self.num_timesteps == 30:
            self.noise._sigma = np.zeros(2)
        return True


@pytest.mark.parametrize("kind", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
def test_sb3s_noise_stays_the_users_object(make_model, kind):
    noise = kind(np.zeros(2), 0.5 * np.ones(2))
    model = make_model(action_noise=noise, learning_starts=20, learning_rate=1e-9)
    assert model.action_noise is noise
    callback = SetSigma(noise)
    model.learn(50, callback=callback)
    assert (callback.largest == 0) == (kind is NormalActionNoise)  # the other one's process still remembers
    assert callback.largest < 0.5


def test_whoever_changes_the_noise_that_was_copied_is_told(make_model):
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), sigma=np.full(2, 0.3), initial_noise=np.ones(2))
    model = make_model(action_noise=noise)
    for name, value in (("_sigma", np.zeros(2)), ("_theta", 0.5), ("initial_noise", np.zeros(2))):
        with pytest.warns(UserWarning, match=f"`{name}` is changed of the noise that was passed to a model"):
            setattr(noise, name, value)
    with pytest.raises(ValueError, match="read-only"):
        noise._mean += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.action_noise._sigma = np.zeros(2)  # the model's own
        model.action_noise._mean += 1
        sample(noise, 5)  # the original is still a noise
        other = make_model(action_noise=noise)
        other.action_noise._sigma = np.ones(2)
    np.testing.assert_array_equal(model.action_noise.sigma, np.zeros(2))


def test_noise_where_numpy_raises():
    """Without sigma the process decays, below the smallest float32 and in the end below the smallest float64."""
    noise = OrnsteinUhlenbeckNoise(np.zeros(1), sigma=0.0, initial_noise=np.ones(1))
    with np.errstate(all="raise"):
        assert sample(noise, 5000)[-1] == 0


def test_model_seed_reaches_an_unseeded_noise_only(make_model):
    unseeded = [make_model(seed=seed, action_noise=OrnsteinUhlenbeckNoise(np.zeros(2))) for seed in (1, 1, 2)]
    x = [sample(model.action_noise, 5) for model in unseeded]
    np.testing.assert_array_equal(x[0], x[1])
    assert not np.array_equal(x[0], x[2])
    seeded = [make_model(seed=seed, action_noise=OrnsteinUhlenbeckNoise(np.zeros(2), seed=9)) for seed in (1, 2)]
    np.testing.assert_array_equal(*(sample(model.action_noise, 5) for model in seeded))


def test_set_random_seed_reseeds_the_noise(make_model):
    model = make_model()
    draws = []
    for _ in range(2):
        model.set_random_seed(4)
        model.action_noise.reset()
        draws.append(sample(model.action_noise, 5))
    np.testing.assert_array_equal(*draws)


def test_noise_goes_on_in_the_middle_of_an_episode(make_model):
    """``learn(reset_num_timesteps=False)`` continues process and generator; a new run starts the process anew."""
    model = make_model(VectorEnv(ep_length=1000), gradient_steps=0)
    model.learn(30)
    for reset_num_timesteps in (False, True):
        twin = copy.deepcopy(model.action_noise)
        if reset_num_timesteps:
            twin.reset()
        model.learn(1, reset_num_timesteps=reset_num_timesteps)
        twin()
        np.testing.assert_array_equal(model.action_noise.noise_prev, twin.noise_prev)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    "noise",
    [
        None,
        NormalActionNoise(np.zeros(2), 0.1 * np.ones(2)),
        OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.1 * np.ones(2)),
    ],
)
def test_sb3_noises_go_on_working(make_model, noise, n_envs):
    model = make_model(make_vec_env(VectorEnv, n_envs=n_envs), action_noise=noise)
    model.learn(60)
    if noise is None:
        assert model.action_noise is None
    elif n_envs == 1:
        assert type(model.action_noise) is type(noise)
    else:
        assert isinstance(model.action_noise, VectorizedActionNoise)
        assert model.action_noise.n_envs == n_envs


def test_checking_a_noise_does_not_disturb_the_global_generator(make_model):
    """Same seed, same run, whether or not the shape of SB3's noise was asked for at construction."""
    model = make_model(action_noise=NormalActionNoise(np.zeros(2), np.ones(2)))
    model.set_random_seed(0)
    expected = np.random.random()
    model.set_random_seed(0)
    model._fit_action_noise()
    assert np.random.random() == expected


def test_exchanged_noise_is_set_up_by_learn(make_model):
    model = make_model(make_vec_env(VectorEnv, n_envs=2))
    model.action_noise = NormalActionNoise(np.zeros(2), np.ones(2))
    model.learn(40)
    assert isinstance(model.action_noise, VectorizedActionNoise)


def test_callbacks_of_a_continued_training_find_the_noise(make_model):
    class Look(BaseCallback):
        def _init_callback(self) -> None:
            found.append(self.model.action_noise)

        def _on_step(self) -> bool:
            return True

    class SwitchOff(Look):
        def _init_callback(self) -> None:
            self.model.action_noise = None

    found = []
    model = make_model().learn(30)
    model.learn(1, Look(), reset_num_timesteps=False)
    assert found == [model.action_noise]
    model.learn(1, SwitchOff(), reset_num_timesteps=False)
    assert model.action_noise is None


def test_a_seed_for_a_loaded_model_is_that_of_its_noise(make_model, tmp_path):
    make_model().learn(30).save(tmp_path / "model")
    noises = [BNDDPG.load(tmp_path / "model", env=VectorEnv(), seed=seed).action_noise() for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noises[0], noises[1])
    assert np.all(noises[0] != noises[2])


def test_a_noise_of_ones_own_may_look_at_the_environment(make_model):
    class Following(ActionNoise):
        def __init__(self, env):
            super().__init__()
            self.env, self.seen = env, set()

        def __call__(self):
            self.seen.add(self.env.steps)  # which it has after a reset only
            return np.zeros(2, np.float32)

    env = VectorEnv()
    noise = Following(env)
    model = make_model(env, action_noise=noise).learn(10)
    assert model.action_noise is noise
    assert noise.seen == set(range(10))


def test_works_with_sb3s_own_algorithms():
    env = make_vec_env(lambda: VectorEnv(ep_length=7), n_envs=2)
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), n_envs=2, seed=0)
    model = SAC("MlpPolicy", env, action_noise=noise, learning_starts=10, buffer_size=100, policy_kwargs=dict(net_arch=[8]))
    model.learn(40)
    assert model.action_noise is noise


def test_normal_noise_for_actions_without_a_dimension_is_refused():
    with pytest.raises(ValueError, match="`action_noise='normal'` is not allowed for actions of shape"):
        BNTD3("MlpPolicy", SpaceEnv(spaces.Box(-1, 1, (3,)), spaces.Box(-1.0, 1.0, ())), policy_kwargs=SMALL)
