"""FrameReplayBuffer against SB3's ReplayBuffer: the same samples for the same seed, at half the memory or less."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from test_pixels import CountingEnv

from sb3_bn_ddpg import BNDDPG, FrameReplayBuffer, PixelObservation
from sb3_bn_ddpg.pixels.frame_buffer import CHUNK_SIZE

SPACE = spaces.Box(0, 255, (9, 8, 8), np.uint8)
ACTIONS = spaces.Box(-1, 1, (2,))
FRAME_BYTES = 3 * 8 * 8


class Stream:
    """Steps of vectorised environments with random frames, whose episodes end by a time limit or for good."""

    def __init__(self, n_envs: int, seed: int = 0) -> None:
        self.rng, self.n_envs = np.random.default_rng(seed), n_envs
        self.obs = np.stack([self.first() for _ in range(n_envs)])

    def frame(self) -> np.ndarray:
        return self.rng.integers(0, 256, (3, 8, 8), np.uint8)

    def first(self) -> np.ndarray:
        return np.concatenate([self.frame()] * 3)

    def step(self) -> tuple:
        """The arguments of ``add``; then the environments go on as SB3's do."""
        # An episode may end within a repetition: then one or two of the frames were seen before
        n_new = self.rng.integers(1, 4, self.n_envs)
        next_obs = np.stack(
            [np.concatenate([obs[3 * n :], *(self.frame() for _ in range(n))]) for obs, n in zip(self.obs, n_new, strict=True)]
        )
        dones = self.rng.random(self.n_envs) < 0.2
        infos = [{"TimeLimit.truncated": bool(done and self.rng.random() < 0.5)} for done in dones]
        actions = self.rng.uniform(-1, 1, (self.n_envs, 2)).astype(np.float32)
        transition = (self.obs.copy(), next_obs, actions, self.rng.normal(size=self.n_envs), dones, infos)
        self.obs = np.stack([self.first() if done else obs for done, obs in zip(dones, next_obs, strict=True)])
        return transition


def both(n_envs=1, buffer_size=60, n_steps=1, n_added=50, handle_timeout_termination=True) -> tuple:
    kwargs = dict(device="cpu", n_envs=n_envs, handle_timeout_termination=handle_timeout_termination)
    ours = FrameReplayBuffer(buffer_size, SPACE, ACTIONS, n_steps=n_steps, gamma=0.9, **kwargs)
    if n_steps > 1:
        theirs = NStepReplayBuffer(buffer_size, SPACE, ACTIONS, n_steps=n_steps, gamma=0.9, **kwargs)
    else:
        theirs = ReplayBuffer(buffer_size, SPACE, ACTIONS, **kwargs)
    stream = Stream(n_envs)
    for _ in range(n_added):
        transition = stream.step()
        for buffer in (ours, theirs):
            buffer.add(*transition)
    return ours, theirs


@pytest.mark.parametrize("n_added", [1, 13, 20, 47, 200])  # part of the buffer, all of it, and round it many times
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_same_samples_as_sb3s(n_added, n_envs, n_steps):
    ours, theirs = both(n_envs, n_steps=n_steps, n_added=n_added)
    assert (ours.size(), ours.pos, ours.full) == (theirs.size(), theirs.pos, theirs.full)
    for seed in range(3):
        batches = []
        for buffer in (ours, theirs):
            np.random.seed(seed)
            batches.append(buffer.sample(64))
        for name, value in batches[0]._asdict().items():
            other = getattr(batches[1], name)
            if other is None:
                assert value is None
            else:
                assert value.dtype == other.dtype, name
                assert th.equal(value, other), name
    # Every transition, and not those alone that were drawn
    rows, envs = np.indices((ours.size(), n_envs))
    np.testing.assert_array_equal(ours.observations[rows, envs], theirs.observations[: ours.size()])
    np.testing.assert_array_equal(ours.next_observations[rows, envs], theirs.next_observations[: ours.size()])


@pytest.mark.parametrize("n_steps", [1, 3])
def test_random_shifts(n_steps):
    """Each observation is moved by itself, its frames together, borders repeated; the seed says how far."""
    ours, theirs = both(n_steps=n_steps)
    ours.random_shift = 2
    batches = []
    for buffer in (ours, ours, theirs):
        np.random.seed(0)
        batches.append(buffer.sample(64))
    for name in ("observations", "next_observations"):
        moved, again, still = (getattr(batch, name) for batch in batches)
        assert th.equal(moved, again)
        assert moved.dtype == th.uint8
        padded = np.pad(still.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
        windows = {(y, x): padded[:, :, y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
        found = [[place for place, window in windows.items() if (window[i] == moved[i].numpy()).all()] for i in range(64)]
        assert all(len(places) == 1 for places in found)
        assert len({places[0] for places in found}) > 15
    assert th.equal(batches[0].rewards, batches[2].rewards)
    assert th.equal(batches[0].actions, batches[2].actions)


def test_time_limits_may_count_as_terminations():
    ours, theirs = both(handle_timeout_termination=False)
    np.random.seed(0)
    batch = ours.sample(64)
    np.random.seed(0)
    assert th.equal(batch.dones, theirs.sample(64).dones)
    assert batch.dones.sum() > 0


@pytest.mark.parametrize("n_envs", [1, 3])
def test_every_frame_is_held_once(n_envs):
    """No two slots in use are equal, and none is in use that no transition refers to."""
    ours, _ = both(n_envs, n_added=200)
    used = np.unique([ours.observations.slots, ours.next_observations.slots])
    assert len(used) == ours.frames.n_used
    contents = {ours.frames[slot].tobytes() for slot in used}
    assert len(contents) == len(used)
    references = np.bincount(np.ravel([ours.observations.slots, ours.next_observations.slots]), minlength=CHUNK_SIZE)
    assert references.tolist() == ours.frames.references


def test_memory_stays_bounded():
    ours, _ = both(n_added=2000)
    assert len(ours.frames.chunks) == 1


def test_bytes_per_transition_of_the_papers_environment():
    """An episode of 334 transitions with 1,001 frames, where SB3's buffer holds 2,004."""
    env = PixelObservation(CountingEnv(truncates_at=60))
    buffer = FrameReplayBuffer(21, env.observation_space, env.action_space, device="cpu")
    observation, _ = env.reset()
    truncated = False
    while not truncated:
        following, reward, _, truncated, _ = env.step(np.zeros(1))
        buffer.add(observation[None], following[None], np.zeros((1, 1)), np.array([reward]), np.array([truncated]), [{}])
        observation = following
    assert buffer.size() == 20
    assert buffer.frames.n_used == 61  # all different here
    frame_bytes = 3 * 64 * 64
    assert buffer.bytes_per_transition == pytest.approx(61 * frame_bytes / 20 + 24)
    assert buffer.bytes_per_transition < 0.51 * (2 * 9 * 64 * 64)


def test_stacked_frames_of_sb3():
    """VecFrameStack of four: a transition adds one frame, where SB3's buffer holds eight."""
    env = VecFrameStack(
        DummyVecEnv([lambda: FakeImageEnv(screen_height=40, screen_width=40, discrete=False, channel_first=True)]),
        4,
        channels_order="first",
    )
    model = BNDDPG(
        "CnnPolicy",
        env,
        buffer_size=100,
        batch_size=8,
        learning_starts=50,
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs=dict(n_frames=4),
        policy_kwargs=dict(net_arch=[8, 8]),
    )
    model.learn(60)
    # Six episodes of ten steps, each with a first frame and, before it, one that is black
    assert 60 + 6 <= model.replay_buffer.frames.n_used <= 60 + 2 * 6


def test_a_terminal_observation_is_kept():
    """SB3 passes it in place of the next episode's first one: both are there, exactly."""
    env = make_vec_env(lambda: PixelObservation(CountingEnv(terminates_at=4), size=(16, 16)), n_envs=2)
    model = BNDDPG(
        "CnnPolicy",
        env,
        buffer_size=100,
        batch_size=8,
        learning_starts=8,
        gradient_steps=-1,
        replay_buffer_class=FrameReplayBuffer,
        policy_kwargs=dict(net_arch=[8, 8]),
    )
    model.learn(20)
    seen = model.replay_buffer.observations[:4, 0][:, ::3, 0, 0].tolist()
    following = model.replay_buffer.next_observations[:4, 0][:, ::3, 0, 0].tolist()
    assert seen == [[0, 0, 0], [1, 2, 3], [0, 0, 0], [1, 2, 3]]
    assert following == [[1, 2, 3], [2, 3, 4], [1, 2, 3], [2, 3, 4]]
    assert model.replay_buffer.dones[:4, 0].tolist() == [0, 1, 0, 1]
    assert model._n_updates > 8


def test_save_and_load(tmp_path):
    env = PixelObservation(CountingEnv(terminates_at=5), size=(16, 16))
    kwargs = dict(buffer_size=30, batch_size=8, learning_starts=8, seed=0, policy_kwargs=dict(net_arch=[8, 8]))
    model = BNDDPG("CnnPolicy", env, replay_buffer_class=FrameReplayBuffer, **kwargs)
    model.learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = BNDDPG.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    batches = []
    for buffer in (model.replay_buffer, loaded.replay_buffer):
        np.random.seed(1)
        batches.append(buffer.sample(20))
    assert th.equal(batches[0].observations, batches[1].observations)
    assert th.equal(batches[0].next_observations, batches[1].next_observations)
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 60


def test_reset_and_refill():
    ours, theirs = both()
    stream = Stream(1, seed=5)
    for buffer in (ours, theirs):
        buffer.reset()
    for _ in range(30):
        transition = stream.step()
        for buffer in (ours, theirs):
            buffer.add(*transition)
    np.testing.assert_array_equal(ours.observations[:30], theirs.observations[:30])


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (SPACE, dict(n_frames=2), r"`observation_space=.*` is not allowed: .* a multiple of `n_frames=2`"),
        (SPACE, dict(n_frames=0), "`n_frames=0` is not allowed: it must be an integer >= 1"),
        (SPACE, dict(random_shift=-1), "`random_shift=-1` is not allowed: it must be an integer >= 0"),
        (SPACE, dict(n_steps=0), "`n_steps=0` is not allowed: it must be an integer >= 1"),
        (SPACE, dict(optimize_memory_usage=True), "`optimize_memory_usage=True` is not allowed: `FrameReplayBuffer`"),
        (spaces.Box(-1, 1, (3,)), dict(), r"`observation_space=Box.*` is not allowed: it must be images"),
    ],
)
def test_wrong_arguments_are_named(space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        FrameReplayBuffer(10, space, ACTIONS, **kwargs)


def test_a_buffer_that_may_not_fit_warns():
    with pytest.warns(UserWarning, match="The replay buffer may grow to"):
        FrameReplayBuffer(10**5, spaces.Box(0, 255, (9, 640, 640), np.uint8), spaces.Box(-1, 1, ()))
