"""What offline algorithms learn from: every kind of dataset becomes the same replay buffer, a bad one a clear error."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from conftest import SpaceEnv, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_bn_ddpg import BNDDPG, BNIQL, FileError, dataset_buffer
from sb3_bn_ddpg.datasets.dataset_buffer import episode_ends, episode_returns
from sb3_bn_ddpg.datasets.transitions import Transitions

OBS = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def arrays(n=40, length=10, seed=0):
    """Four episodes, the first two of which terminate."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(n + n // length, 3))  # each episode has one more
    rows = np.arange(n) + np.arange(n) // length
    ends = np.arange(n) % length == length - 1
    return dict(
        observations=observations[rows],
        actions=rng.uniform(ACTIONS.low, ACTIONS.high, size=(n, 2)),
        rewards=rng.normal(size=n),
        next_observations=observations[rows + 1],
        terminations=ends & (np.arange(n) < 2 * length),
        truncations=ends & (np.arange(n) >= 2 * length),
    )


def scaled(actions):
    return 2 * (actions - ACTIONS.low) / (ACTIONS.high - ACTIONS.low) - 1


def sampled_dones(buffer):
    return (buffer.dones * (1 - buffer.timeouts))[:, 0]


def assert_holds(buffer, data):
    assert (buffer.size(), buffer.buffer_size, buffer.n_envs) == (len(data["rewards"]), len(data["rewards"]), 1)
    for name in ("observations", "next_observations", "rewards"):
        array = getattr(buffer, name)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array[:, 0], data[name].astype(np.float32))
    np.testing.assert_allclose(buffer.actions[:, 0], scaled(data["actions"]), atol=1e-6)
    np.testing.assert_array_equal(sampled_dones(buffer), data["terminations"])


# --- Arrays


@pytest.mark.parametrize("without", [[], ["truncations"]])
def test_arrays(without):
    data = arrays()
    buffer = dataset_buffer({name: value for name, value in data.items() if name not in without}, OBS, ACTIONS)
    assert_holds(buffer, data)
    np.testing.assert_array_equal(buffer.dones[:, 0], data["terminations"] | data["truncations"])
    batch = buffer.sample(1000)
    assert 0 < batch.dones.mean() < 2 / 10  # of ends, half are no terminal states
    assert batch.observations.dtype == batch.rewards.dtype


def test_a_termination_at_the_time_limit_is_a_termination():
    data = arrays()
    data["truncations"] = data["truncations"] | data["terminations"]
    np.testing.assert_array_equal(sampled_dones(dataset_buffer(data, OBS, ACTIONS)), data["terminations"])


def test_columns_are_taken():
    data = arrays()
    columns = data | {name: data[name][:, np.newaxis] for name in ("rewards", "terminations", "truncations")}
    assert_holds(dataset_buffer(columns, OBS, ACTIONS), data)


def test_actions_are_clipped_as_iql_does():
    data = arrays() | dict(actions=np.tile(ACTIONS.high, (40, 1)))
    assert dataset_buffer(data, OBS, ACTIONS, action_limit=1 - 1e-5).actions.max() == np.float32(1 - 1e-5)
    assert BNIQL.action_limit == 1 - 1e-5


def test_images_stay_bytes():
    space = spaces.Box(0, 255, (1, 8, 8), np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    data = arrays() | dict(observations=images, next_observations=images, truncations=None)
    assert dataset_buffer(data, space, ACTIONS).observations.dtype == np.uint8


def test_discrete_observations():
    data = arrays() | dict(observations=np.arange(40) % 5, next_observations=np.arange(1, 41) % 5)
    buffer = dataset_buffer(data, spaces.Discrete(5), ACTIONS)
    assert buffer.sample(3).observations.shape == (3, 1)


def test_images_get_their_channels_first():
    """As SB3 has them, whichever way the dataset and the environment do."""
    first, last = spaces.Box(0, 255, (3, 8, 6), np.uint8), spaces.Box(0, 255, (8, 6, 3), np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (41, 8, 6, 3), np.uint8)
    data = arrays() | dict(observations=images[:-1], next_observations=images[1:])
    buffer = dataset_buffer(data, first, ACTIONS)
    np.testing.assert_array_equal(buffer.observations[:, 0], images[:-1].transpose(0, 3, 1, 2))
    assert BNIQL("MlpPolicy", SpaceEnv(last, ACTIONS), data, device="cpu").replay_buffer.observations.shape[2:] == (3, 8, 6)
    of_a_buffer = Transitions(**data, observation_space=last, action_space=ACTIONS)
    np.testing.assert_array_equal(dataset_buffer(of_a_buffer, first, ACTIONS).observations, buffer.observations)
    with pytest.raises(ValueError, match=r"`dataset` with the observation space Box.* \(8, 6, 3\), uint8\) is not allowed"):
        dataset_buffer(of_a_buffer, spaces.Box(0, 255, (1, 8, 6), np.uint8), ACTIONS)


# --- Rewards


def test_return_range():
    data = arrays()
    returns = data["rewards"].reshape(4, 10).sum(axis=1)
    buffer = dataset_buffer(data, OBS, ACTIONS, reward_scaling="return_range")
    expected = data["rewards"] * 1000 / (returns.max() - returns.min())
    np.testing.assert_allclose(buffer.rewards[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(dataset_buffer(data, OBS, ACTIONS, reward_scaling=0.5).rewards[:, 0], data["rewards"] / 2)


def test_episodes_end_where_the_next_one_starts_elsewhere():
    data = arrays()
    ends = episode_ends(data["observations"], data["next_observations"], data["terminations"], None)
    np.testing.assert_array_equal(np.flatnonzero(ends), [9, 19, 29, 39])
    np.testing.assert_allclose(episode_returns(data["rewards"], ends), data["rewards"].reshape(4, 10).sum(axis=1))


@pytest.mark.parametrize("scaling", [0, -1.0, "range", float("nan"), True])
def test_bad_reward_scaling(scaling):
    with pytest.raises(ValueError, match=r"`reward_scaling=.*` is not allowed"):
        dataset_buffer(arrays(), OBS, ACTIONS, reward_scaling=scaling)


def test_equal_returns_have_no_range():
    with pytest.raises(ValueError, match=r"episodes all have the return 0 \(4 of them\): it must be a number, or None"):
        dataset_buffer(arrays() | dict(rewards=np.zeros(40)), OBS, ACTIONS, reward_scaling="return_range")
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=10)
    equal = np.concatenate([rng.permutation(rewards) for _ in range(4)])
    assert len({*episode_returns(equal, np.arange(40) % 10 == 9)}) > 1  # by rounding
    with pytest.raises(ValueError, match=r"whose episodes all have the return -?\d"):
        dataset_buffer(arrays() | dict(rewards=equal), OBS, ACTIONS, reward_scaling="return_range")


# --- Replay buffers


def filled(size=100, n_steps=30, n_envs=2, kind=ReplayBuffer, **kwargs):
    """A replay buffer of episodes of seven steps, each of which counts up; the second of two ends by a time limit."""
    buffer = kind(size, OBS, ACTIONS, n_envs=n_envs, device="cpu", **kwargs)
    for step in range(n_steps):
        now = np.array([[1000 * env + step] * 3 for env in range(n_envs)], np.float32)
        done = np.full(n_envs, step % 7 == 6)
        infos = [{"TimeLimit.truncated": bool(done[0] and step % 14 == 13)} for _ in range(n_envs)]
        buffer.add(now, now + 1, np.full((n_envs, 2), step / 100), now[:, 0], done, infos)
    return buffer


@pytest.mark.parametrize("kind", [ReplayBuffer, NStepReplayBuffer])
def test_a_replay_buffer(kind):
    buffer = filled(kind=kind)
    made = dataset_buffer(buffer, OBS, ACTIONS)
    steps = np.arange(30)
    np.testing.assert_array_equal(made.rewards[:, 0], [*steps, *(1000 + steps)])
    np.testing.assert_array_equal(made.next_observations[:, 0, 0], made.observations[:, 0, 0] + 1)
    np.testing.assert_allclose(made.actions[:30, 0, 1], steps / 100)  # they are scaled already
    np.testing.assert_array_equal(sampled_dones(made)[:30], (steps % 7 == 6) & (steps % 14 != 13))
    # An episode that goes on where the buffer ends is cut off there
    np.testing.assert_array_equal(np.flatnonzero(made.dones[:, 0]), [6, 13, 20, 27, 29, 36, 43, 50, 57, 59])


@pytest.mark.parametrize("thrifty", [False, True])
def test_a_ring_begins_with_its_oldest_transition(thrifty):
    kwargs = dict(optimize_memory_usage=True, handle_timeout_termination=False) if thrifty else {}
    made = dataset_buffer(filled(size=20, n_steps=33, n_envs=1, **kwargs), OBS, ACTIONS)
    steps = np.arange(14 if thrifty else 13, 33)  # the oldest one's observation is the newest one's next
    np.testing.assert_array_equal(made.rewards[:, 0], steps)
    np.testing.assert_array_equal(made.next_observations[:, 0, 0], steps + 1)


def test_the_file_of_a_replay_buffer(tmp_path):
    model = BNDDPG("MlpPolicy", VectorEnv(), buffer_size=50, learning_starts=100, device="cpu").learn(30)
    model.save_replay_buffer(tmp_path / "buffer")
    made = dataset_buffer(tmp_path / "buffer", model.observation_space, model.action_space)
    np.testing.assert_array_equal(made.observations[:, 0], model.replay_buffer.observations[:30, 0])
    dataset_buffer(f"{tmp_path}/buffer.pkl", model.observation_space, model.action_space)
    content = bytearray((tmp_path / "buffer.pkl").read_bytes())
    content[1000] ^= 1
    (tmp_path / "buffer.pkl").write_bytes(content)
    with pytest.raises(FileError, match="was altered"):
        dataset_buffer(tmp_path / "buffer.pkl", model.observation_space, model.action_space)
    (tmp_path / "other.pkl").write_bytes(b"\x80\x04]\x94.")  # an empty list
    with pytest.raises(FileError, match="holds a list, which is no replay buffer"):
        dataset_buffer(tmp_path / "other.pkl", model.observation_space, model.action_space)


DICT = spaces.Dict(
    dict(b=spaces.Box(-9, 9, (2, 2)), a=spaces.Dict(dict(d=spaces.Box(-9, 9, (3,)), c=spaces.Box(-9, 9, (1,)))))
)
UNSORTED = spaces.Dict(b=DICT["b"], a=DICT["a"])


class OfDictionaries(gym.Env):
    """Random dictionaries."""

    observation_space, action_space = DICT, ACTIONS

    def __init__(self, space=DICT):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        return DICT.sample(), {}

    def step(self, action):
        return DICT.sample(), 1.0, False, False, {}


def test_dictionaries_become_the_vectors_of_flatten_observation():
    simple = spaces.Dict(dict(b=DICT["b"], d=DICT["a"]["d"]))  # SB3's buffers know no dictionaries in dictionaries
    buffer, samples = DictReplayBuffer(10, simple, ACTIONS, device="cpu"), [simple.sample() for _ in range(8)]
    for now, then in itertools.pairwise(samples):
        as_arrays = ({key: value[np.newaxis] for key, value in each.items()} for each in (now, then))
        buffer.add(*as_arrays, np.zeros((1, 2)), np.ones(1), np.zeros(1), [{}])
    made = dataset_buffer(buffer, spaces.flatten_space(simple), ACTIONS)
    expected = np.array([spaces.flatten(simple, sample) for sample in samples])
    np.testing.assert_array_equal(made.observations[:, 0], expected[:-1])
    np.testing.assert_array_equal(made.next_observations[:, 0], expected[1:])
    for policy in ("MlpPolicy", "MultiInputPolicy"):
        with pytest.raises(ValueError, match=r"is not allowed.* `gymnasium\.wrappers\.FlattenObservation`"):
            BNIQL(policy, OfDictionaries(simple), buffer)
    with pytest.raises(ValueError, match=r"is not allowed.* `gymnasium\.wrappers\.FlattenObservation`"):
        BNIQL("MlpPolicy", OfDictionaries(simple))


def test_a_reset_between_two_transitions_cuts_the_episode_off():
    """As between two calls of ``learn``, of which a replay buffer keeps no mark."""
    buffer = filled(n_steps=5, n_envs=1)
    buffer.add(*np.full((2, 1, 3), [[50.0]]), np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    made = dataset_buffer(buffer, OBS, ACTIONS)
    np.testing.assert_array_equal(np.flatnonzero(made.dones[:, 0]), [4, 5])
    np.testing.assert_array_equal(np.flatnonzero(made.timeouts[:, 0]), [4, 5])


def test_a_file_of_arrays(tmp_path):
    data = arrays()
    np.savez_compressed(tmp_path / "data.npz", **data)
    for path in (tmp_path / "data.npz", f"{tmp_path}/data.npz"):
        assert_holds(dataset_buffer(path, OBS, ACTIONS), data)
    (tmp_path / "short.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:-200])
    np.savez(tmp_path / "pickled.npz", **data | dict(rewards=np.array([{}] * 40)))
    for name in ("short", "pickled"):
        with pytest.raises(FileError, match=rf"{name}\.npz is damaged or of another kind"):
            dataset_buffer(tmp_path / f"{name}.npz", OBS, ACTIONS)


# --- Minari


@pytest.fixture
def minari_id(tmp_path, monkeypatch):
    """A Minari dataset of the four episodes on the disk."""
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data, episodes = arrays(), []
    for number in range(4):
        rows = slice(10 * number, 10 * number + 10)
        episode = {name: value[rows] for name, value in data.items()}
        last = episode.pop("next_observations")[-1:]
        episode["observations"] = np.concatenate([episode["observations"], last]).astype(np.float32)
        episodes.append(EpisodeBuffer(**{name: list(value) for name, value in episode.items()}))
    minari.create_dataset_from_buffers(
        "test/four-v0", episodes, observation_space=OBS, action_space=ACTIONS, data_format="hdf5"
    )
    return "test/four-v0"


def test_minari(minari_id):
    import minari

    for dataset in (minari_id, minari.load_dataset(minari_id)):
        buffer = dataset_buffer(dataset, OBS, ACTIONS)
        assert_holds(buffer, arrays())
        np.testing.assert_array_equal(np.flatnonzero(buffer.dones[:, 0]), [9, 19, 29, 39])
    assert BNIQL("MlpPolicy", None, minari_id, device="cpu").action_space == ACTIONS
    with pytest.raises(ValueError, match=r"`dataset` with the action space .* it must be the environment's"):
        dataset_buffer(minari_id, OBS, spaces.Box(-1, 1, (2,)))


def test_a_minari_dataset_of_dictionaries(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    samples = [DICT.sample() for _ in range(6)]
    columns = dict(actions=[ACTIONS.sample() for _ in range(5)], rewards=[1.0] * 5, terminations=[False] * 5)
    episode = EpisodeBuffer(observations=dict_of(samples), truncations=[False] * 5, **columns)
    minari.create_dataset_from_buffers("test/dict-v0", [episode] * 2, observation_space=DICT, action_space=ACTIONS)
    env = gym.wrappers.FlattenObservation(OfDictionaries())
    buffer = BNIQL("MlpPolicy", env, "test/dict-v0", reward_scaling=None, device="cpu").replay_buffer
    expected = np.array([spaces.flatten(DICT, sample) for sample in samples], np.float32)
    np.testing.assert_array_equal(buffer.observations[:5, 0], expected[:-1])
    np.testing.assert_array_equal(buffer.next_observations[5:, 0], expected[1:])
    np.testing.assert_array_equal(np.flatnonzero(buffer.dones[:, 0]), [4, 9])  # which end without a mark
    with pytest.raises(ValueError, match=r"the entries a/c, a/d, b in its .* those of the environment, b, a/c, a/d, in this"):
        BNIQL("MlpPolicy", gym.wrappers.FlattenObservation(OfDictionaries(UNSORTED)), "test/dict-v0")


def dict_of(samples):
    """A dictionary of lists out of a list of dictionaries."""
    if not isinstance(samples[0], dict):
        return samples
    return {key: dict_of([sample[key] for sample in samples]) for key in samples[0]}


def test_a_damaged_minari_dataset(minari_id, tmp_path):
    (file,) = tmp_path.rglob("*.hdf5")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(
        ValueError,
        match=r"is not allowed: .*its episodes cannot be read.*download or record it again|"
        r"is not allowed: it cannot be loaded from this machine",
    ):
        dataset_buffer(minari_id, OBS, ACTIONS)


def test_a_minari_dataset_that_is_not_here(minari_id):
    with pytest.raises(
        ValueError, match=r"`dataset='mujoco/hopper/expert-v9'` is not allowed: it cannot be .*`minari download"
    ):
        dataset_buffer("mujoco/hopper/expert-v9", OBS, ACTIONS)


def test_without_minari(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"minari is not installed: run `pip install sb3-bn-ddpg\[offline\]`"):
        dataset_buffer("mujoco/hopper/expert-v0", OBS, ACTIONS)


# --- What is refused


def with_one(name, value):
    data = arrays()
    data[name] = data[name].astype(float)
    data[name][17] = value
    return data


BAD = {
    "no kind of dataset": (5, "`dataset` of type int is not allowed: it must be a MinariDataset or its id"),
    "no file": ("nothing", "`dataset='nothing'` is not allowed: there is no file nothing"),
    "a missing array": ({"observations": []}, "without actions, next_observations, rewards, terminations is not allowed"),
    "an unknown array": (arrays() | dict(dones=[]), "with dones is not allowed: its keys must be"),
    "empty": ({name: value[:0] for name, value in arrays().items()}, "without transitions is not allowed"),
    "other lengths": (arrays() | dict(rewards=np.zeros(39)), "arrays of the lengths .*'rewards': 39.* must have one length"),
    "other observations": (arrays() | dict(observations=np.zeros((40, 4))), r"observations of shape \(40, 4\) .* \(40, 3\)"),
    "other actions": (arrays() | dict(actions=np.zeros((40, 3))), r"actions of shape \(40, 3\) .* of shape \(40, 2\)"),
    "words": (arrays() | dict(rewards=np.full(40, "a")), "rewards of shape .* and type <U1 is not allowed"),
    "NaN": (with_one("observations", np.nan), "observations that are not finite .* 1 of 40 .* the first is number 17"),
    "infinite": (with_one("rewards", np.inf), "rewards that are not finite is not allowed"),
    "NaN actions": (with_one("actions", np.nan), "actions that are not finite is not allowed"),
    "actions outside": (with_one("actions", 3.0), r"actions outside of Box.* they reach 5\. If the environment clips them"),
    "dictionaries of words": (
        DictReplayBuffer(5, spaces.Dict(a=OBS, b=spaces.Discrete(3)), ACTIONS),
        r"`dataset` with observations of Dict.* is not allowed: its entries must be arrays of numbers \(Box\)",
    ),
    "a lost end": (
        arrays() | dict(truncations=np.zeros(40)),
        "without some of its ends is not allowed: after 1 of 40 transitions, the first of them number 29,",
    ),
    "integers changed": (arrays() | dict(terminations=np.full(40, 0.5)), "with terminations of 0.5 .* must be 0 or 1"),
    "too large for float32": (
        {name: value[:9] for name, value in with_one("observations", 1.0).items()}
        | {name: np.full((9, 3), 1e39) for name in ("observations", "next_observations")},
        "observations, in float32, that are not finite is not allowed: 9 of 9",
    ),
    "too large a reward": (with_one("rewards", -1e39), "rewards, in float32, that are not finite is not allowed"),
    "no file of arrays": ("nothing.npz", "`dataset='nothing.npz'` is not allowed: there is no file nothing.npz"),
    "an empty buffer": (ReplayBuffer(5, OBS, ACTIONS), "without transitions is not allowed"),
    "another space": (filled(n_envs=1, size=50), "with the observation space .* is not allowed: it must be the environment's"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_datasets(name):
    dataset, message = BAD[name]
    space = spaces.Box(-1, 1, (4,)) if name == "another space" else OBS
    with pytest.raises(ValueError, match=message):
        dataset_buffer(dataset, space, ACTIONS)


@pytest.mark.parametrize(
    ("space", "draw", "example"),
    [
        (spaces.Box(0, 255, (1, 8, 8), np.uint8), lambda rng: rng.uniform(0.1, 0.9, size=(41, 1, 8, 8)), r"0\.\d+"),
        (spaces.Box(0, 255, (1, 8, 8), np.uint8), lambda rng: np.full((41, 1, 8, 8), 300), "300"),
        (spaces.Box(0, 255, (1, 8, 8), np.uint8), lambda rng: np.full((41, 1, 8, 8), -1), "-1"),
        (spaces.Box(-5, 5, (3,), np.int32), lambda rng: rng.uniform(0.1, 0.9, size=(41, 3)), r"0\.\d+"),
        (spaces.Discrete(5), lambda rng: np.full(41, 5), "5"),
        (spaces.MultiDiscrete([3, 9]), lambda rng: np.full((41, 2), 8), "8"),
        (spaces.MultiBinary(2), lambda rng: np.full((41, 2), 2), "2"),
    ],
)
def test_observations_that_the_space_cannot_hold(space, draw, example):
    observations = draw(np.random.default_rng(0))
    data = arrays() | dict(observations=observations[:-1], next_observations=observations[1:])
    with pytest.raises(ValueError, match=f"`dataset` with observations such as {example} is not allowed: they must be in "):
        dataset_buffer(data, space, ACTIONS)


def test_transitions_in_no_order():
    data = {name: array[np.random.default_rng(0).permutation(40)] for name, array in arrays().items() if name != "truncations"}
    with pytest.warns(
        UserWarning, match="`dataset` has no truncations, and after 3. of its 40 transitions the next one starts"
    ):
        dataset_buffer(data, OBS, ACTIONS)


def test_an_environment_of_dictionaries():
    with pytest.raises(ValueError, match=r"`env` with the observation space Dict.* must not be a dictionary"):
        dataset_buffer(arrays(), spaces.Dict(a=OBS), ACTIONS)


def test_no_environment_and_no_spaces():
    with pytest.raises(ValueError, match="`env=None` is not allowed with a dataset that does not know its spaces"):
        BNIQL("MlpPolicy", None, arrays())


def test_an_id_of_an_environment_is_made():
    assert isinstance(gym.make("Pendulum-v1").action_space, spaces.Box)
    data = arrays() | dict(actions=np.zeros((40, 1)))
    assert BNIQL("MlpPolicy", "Pendulum-v1", data, device="cpu").replay_buffer.size() == 40
