"""A policy for other programs: the same actions as ``predict``, from files that run no code, or a clear refusal."""

import json
import pickle
import warnings
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, SpaceEnv, VectorEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3, CROSSQ, MlpPolicy, load_policy
from sb3_bn_ddpg.common.atomic_files import FileError
from sb3_bn_ddpg.export import files as export
from sb3_bn_ddpg.networks.actors import Actor

safetensors = pytest.importorskip("safetensors")


class UnequalEnv(VectorEnv):
    """Actions of unequal bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(np.array([-2.0, 1.0], np.float32), np.array([1.0, 30.0], np.float32))


def _trained(
    env, policy="MlpPolicy", algorithm: type[BNDDPG] | type[BNTD3] | type[BNSAC] = BNDDPG, **kwargs
) -> BNDDPG | BNTD3 | BNSAC:
    arguments = dict(learning_starts=10, buffer_size=100, batch_size=8, seed=0, device="cpu", learning_rate=1e-2)
    return algorithm(policy, env, **(arguments | dict(policy_kwargs=SMALL) | kwargs)).learn(40)


ACTIONS = spaces.Box(-1, 1, (2,))


def _of_images(**kwargs) -> BNDDPG:
    return _trained(FakeImageEnv(36, 36, discrete=False), "CnnPolicy", policy_kwargs=dict(SMALL, **kwargs))


def _of_boxes(sizes=(3, 3), image: bool = False, **kwargs) -> BNDDPG:
    """A dictionary of vectors, its keys not sorted, and an image if wanted."""
    entries = [(name, spaces.Box(-9, 9, (size,))) for name, size in zip(("velocity", "position"), sizes, strict=True)]
    if image:
        entries.append(("image", spaces.Box(0, 255, (3, 36, 36), np.uint8)))
    env = SpaceEnv(spaces.Dict(OrderedDict(entries)), ACTIONS)
    return _trained(env, "MultiInputPolicy", policy_kwargs=dict(SMALL, **kwargs))


MODELS = {
    "vector": lambda: _trained(UnequalEnv()),
    "pendulum": lambda: _trained("Pendulum-v1"),
    "two critics": lambda: _trained(VecNormalize(make_vec_env(UnequalEnv)), algorithm=BNTD3),
    "two critics on the actor's features of images": lambda: _trained(
        FakeImageEnv(36, 36, discrete=False),
        "CnnPolicy",
        BNTD3,
        learning_rate=1e-3,
        policy_kwargs=dict(SMALL, share_features_extractor=True, shared_extractor_loss="critic"),
    ),
    "batch renorm, Tanh": lambda: _trained(
        UnequalEnv(), policy_kwargs=dict(net_arch=[9, 8], normalization="batch_renorm", activation_fn=th.nn.Tanh)
    ),
    "norm after the activation": lambda: _trained(
        UnequalEnv(), policy_kwargs=dict(SMALL, norm_order="after_activation", final_init="fan_in", norm_eps=1e-3)
    ),
    "layer norm": lambda: _trained(UnequalEnv(), policy_kwargs=dict(SMALL, normalization="layer")),
    "batch and layer norm": lambda: _trained(UnequalEnv(), policy_kwargs=dict(SMALL, normalization="batch_layer")),
    "linear, no norm": lambda: _trained(UnequalEnv(), policy_kwargs=dict(net_arch=[], normalization=None)),
    "VecNormalize": lambda: _trained(VecNormalize(make_vec_env(UnequalEnv), clip_obs=1.5)),
    # Without normalisation, at a larger rate, the actions lie at a bound with one processor's kernels and not with another's
    "images": lambda: _trained(FakeImageEnv(36, 36, discrete=False), "CnnPolicy", learning_rate=1e-3),
    "images, batch norm of their own": lambda: _of_images(
        norm_eps=0.5,
        features_extractor_kwargs=dict(conv_normalization="batch", features_dim=20, features_normalization="batch"),
    ),
    "images, Tanh": lambda: _of_images(activation_fn=th.nn.Tanh),
    "scaled images": lambda: _trained(
        SpaceEnv(spaces.Box(-1, 1, (3, 36, 36)), ACTIONS), "CnnPolicy", policy_kwargs=dict(SMALL, normalize_images=False)
    ),
    "dictionary": lambda: _trained(SimpleMultiObsEnv(discrete_actions=False), "MultiInputPolicy"),
    "unsorted dictionary": lambda: _of_boxes(),
    "unsorted dictionary, other sizes, epsilon": lambda: _of_boxes((2, 5), norm_eps=0.5),
    "dictionary with an image, Tanh": lambda: _of_boxes(image=True, activation_fn=th.nn.Tanh),
    "dictionary, no norm": lambda: _of_boxes(normalization=None),
    "dictionary, layer norm": lambda: _of_boxes(normalization="layer"),
    "dictionary, batch renorm": lambda: _of_boxes(normalization="batch_renorm"),
    "stochastic": lambda: _trained(UnequalEnv(), algorithm=BNSAC),
    "stochastic, linear": lambda: _trained(UnequalEnv(), algorithm=BNSAC, policy_kwargs=dict(net_arch=[])),
    "CrossQ, VecNormalize": lambda: _trained(
        VecNormalize(make_vec_env(UnequalEnv), clip_obs=1.5),
        algorithm=BNSAC,
        **CROSSQ | dict(policy_kwargs=CROSSQ["policy_kwargs"] | SMALL),
    ),
    "stochastic, images": lambda: _trained(
        FakeImageEnv(36, 36, discrete=False), "CnnPolicy", algorithm=BNSAC, learning_rate=1e-3
    ),
    "stochastic, dictionary": lambda: _trained(SimpleMultiObsEnv(discrete_actions=False), "MultiInputPolicy", algorithm=BNSAC),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    th.manual_seed(0)
    return MODELS[request.param]()


def _observations(model, n: int):
    """Observations of the environment, before any normalisation."""
    space = model.observation_space
    if isinstance(space, spaces.Dict):
        return {key: np.stack([space[key].sample() for _ in range(n)]) for key in space.spaces}
    if space.dtype == np.uint8:
        return np.stack([space.sample() for _ in range(n)])
    return (np.random.default_rng(0).normal(size=(n, *space.shape)) * 5 + 2).astype(np.float32)


def _expected(model, observations):
    normalize = model.get_vec_normalize_env()
    return model.predict(observations if normalize is None else normalize.normalize_obs(observations), deterministic=True)[0]


def test_safetensors(model, tmp_path):
    model.export_policy(tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    observations = _observations(model, 300)
    np.testing.assert_array_equal(policy.predict(observations)[0], _expected(model, observations))
    singles = [
        {key: entry[i] for key, entry in observations.items()} if isinstance(observations, dict) else observations[i]
        for i in range(50)
    ]
    for single in singles:
        np.testing.assert_array_equal(policy.predict(single)[0], _expected(model, single))
    assert policy.action_space == model.action_space
    assert policy.observation_space == model.observation_space


def test_onnx(model, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model.export_onnx(tmp_path / "policy.onnx")
    session = runtime.InferenceSession(str(tmp_path / "policy.onnx"))
    is_vector = isinstance(model.observation_space, spaces.Box) and len(model.observation_space.shape) == 1
    observations = _observations(model, 10_000 if is_vector else 50)
    inputs = observations if isinstance(observations, dict) else {"observation": observations}
    (actions,) = session.run(["action"], inputs)
    expected = _expected(model, observations)
    assert expected.std() > 1e-3
    extent = model.action_space.high - model.action_space.low
    assert np.max(np.abs(actions - expected) / extent) < 16 * np.finfo(np.float32).eps  # ONNX Runtime 1.18 has eleven of them
    (single,) = session.run(["action"], {name: entry[:1] for name, entry in inputs.items()})
    np.testing.assert_allclose(single, expected[:1], rtol=1e-4, atol=1e-5)


class OwnNorm(nn.BatchNorm1d):
    """Batch norm that calculates something else."""

    def forward(self, x):
        return super().forward(x) * 2


class OwnExtractor(BaseFeaturesExtractor):
    """Vectors through layers of many kinds, one of them used twice, with a hook."""

    def __init__(self, observation_space, width=6):
        super().__init__(observation_space, width)
        self.first = nn.Linear(observation_space.shape[0], width)
        self.second = nn.Linear(width, width)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(width), OwnNorm(width), nn.BatchNorm1d(width, affine=False), nn.LayerNorm(width)]
        )
        self.dropout = nn.Dropout(0.5)
        self.second.register_forward_hook(lambda module, inputs, output: output + 0.1)

    def forward(self, observations):
        x = self.first(observations)
        for norm in self.norms:
            x = x + th.where(x > 0, norm(self.second(x)), x.sin())
        return self.dropout(x) / (1 + observations.norm(dim=1, keepdim=True)) - self.norms[0].running_mean


class OwnImages(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 4 * 9)
        channels = observation_space.shape[0]
        self.net = nn.Sequential(nn.Conv2d(channels, 4, 8, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(3))

    def forward(self, observations):
        return self.net(observations).reshape(observations.shape[0], -1)


class OwnDictionary(BaseFeaturesExtractor):
    """The entries as a sequence, by attention."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.embed = nn.ModuleDict({key: nn.Linear(space.shape[0], 8) for key, space in observation_space.spaces.items()})
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, observations):
        entries = th.stack([layer(observations[key]) for key, layer in self.embed.items()], dim=1)
        return self.attention(entries, entries, entries)[0].mean(dim=1)


class OwnActivation(nn.Module):
    def forward(self, x):
        return x * th.sigmoid(1.7 * x)


class OwnActor(Actor):
    def actions_of(self, features):
        return super().actions_of(features) ** 3


class OwnPolicy(MlpPolicy):
    """Actions of the actor's, and a smaller part of those for the opposite state."""

    def make_actor(self, features_extractor=None):
        return OwnActor(**self._update_features_extractor(self.actor_kwargs, features_extractor))

    def _predict(self, observation, deterministic=False):
        return 0.8 * super()._predict(observation) + 0.2 * super()._predict(-observation)


def _with(policy="MlpPolicy", env=UnequalEnv, **kwargs) -> BNDDPG:
    return _trained(env(), policy, policy_kwargs=dict(SMALL, **kwargs), learning_rate=3e-2)


def _with_other_layers() -> BNDDPG:
    model = _with()
    for network in (model.actor, model.actor_target):
        network.mu[-1] = nn.Hardtanh()
    return model


OWN_PARTS = {
    "features extractor": lambda: _with(
        env=lambda: VecNormalize(make_vec_env(UnequalEnv), clip_obs=1.5),
        features_extractor_class=OwnExtractor,
        features_extractor_kwargs=dict(width=5),
    ),
    "shared": lambda: _with(features_extractor_class=type("Local", (OwnExtractor,), {}), share_features_extractor=True),
    "images": lambda: _with("CnnPolicy", lambda: FakeImageEnv(36, 36, discrete=False), features_extractor_class=OwnImages),
    "dictionary": lambda: _of_boxes((2, 5), features_extractor_class=OwnDictionary),
    "activation": lambda: _with(activation_fn=OwnActivation),
    "policy": lambda: _trained(UnequalEnv(), OwnPolicy),
    "layers": _with_other_layers,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("shared", "images", "layers") else []) for name in OWN_PARTS],
)
def test_onnx_of_a_users_own_parts(name, tmp_path):
    """What calculates actions may be any code: the graph holds what it calculates, and the model is left as it was."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    th.manual_seed(0)
    model = OWN_PARTS[name]()
    observations = _observations(model, 50)
    expected, before = _expected(model, observations), repr(model.policy)
    model.export_onnx(tmp_path / "policy.onnx")
    session = runtime.InferenceSession(str(tmp_path / "policy.onnx"))
    inputs = observations if isinstance(observations, dict) else {"observation": observations}
    (actions,) = session.run(["action"], inputs)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
    (single,) = session.run(["action"], {name: entry[:1] for name, entry in inputs.items()})
    np.testing.assert_allclose(single, expected[:1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(_expected(model, observations), expected)
    assert repr(model.policy) == before


def test_an_exported_stochastic_policy_leaves_the_model_as_it_was(tmp_path):
    model = _trained(UnequalEnv(), algorithm=BNSAC)
    before, random_state = repr(model.policy), th.get_rng_state()
    names = [name for name, _ in model.policy.named_parameters()]
    model.export_policy(tmp_path / "policy")
    assert repr(model.policy) == before
    assert [name for name, _ in model.policy.named_parameters()] == names
    assert th.equal(th.get_rng_state(), random_state)
    # Nothing in the file tells that the actor was a stochastic one
    assert type(load_policy(tmp_path / "policy").actor) is Actor
    model.actor.mu = nn.Sequential(model.actor.mu)
    with pytest.raises(ValueError, match=r"`actor` with .*Sequential.* cannot be exported"):
        model.export_policy(tmp_path / "other")


class Branching(OwnExtractor):
    def forward(self, observations):
        return super().forward(observations * 2 if float(observations.sum()) > 0 else observations)


def test_onnx_of_what_no_graph_can_hold(tmp_path):
    pytest.importorskip("onnxscript")
    model = _with(features_extractor_class=Branching)
    with pytest.raises(ValueError, match=r"`features_extractor_class=Branching` or .* no `if` on their values"):
        model.export_onnx(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_statistics_of_observations(tmp_path):
    model = MODELS["VecNormalize"]()
    model.save(tmp_path / "model")
    model.env.save(tmp_path / "statistics")
    with pytest.warns(UserWarning, match="takes normalised observations"):
        BNDDPG.load(tmp_path / "model").export_policy(tmp_path / "without")
    env = VecNormalize.load(tmp_path / "statistics", make_vec_env(UnequalEnv))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BNDDPG.load(tmp_path / "model", env=env).export_policy(tmp_path / "with")
    observations = _observations(model, 10)
    np.testing.assert_array_equal(load_policy(tmp_path / "with").predict(observations)[0], _expected(model, observations))


def test_custom_parts_are_refused(tmp_path):
    class Activation(th.nn.ReLU):
        pass

    model = _trained(VectorEnv(), policy_kwargs=dict(SMALL, activation_fn=Activation))
    with pytest.raises(ValueError, match="`activation_fn=Activation` cannot be exported"):
        model.export_policy(tmp_path / "policy")
    assert not list(tmp_path.iterdir())


def test_a_policy_with_a_predict_of_its_own_is_refused(tmp_path):
    """Its actor alone acts otherwise."""

    class Halved(MlpPolicy):
        def _predict(self, observation, deterministic=False):
            return 0.5 * super()._predict(observation)

    with pytest.raises(ValueError, match="`policy=Halved` cannot be exported: it has a method `_predict` of its own"):
        _trained(UnequalEnv(), Halved).export_policy(tmp_path / "policy")
    assert not list(tmp_path.iterdir())


def test_other_layers_than_the_arguments_say_are_refused(make_model, tmp_path):
    model = make_model()
    model.actor.mu[-1] = nn.Hardtanh()
    with pytest.raises(ValueError, match=r"`actor` with .*Hardtanh.* cannot be exported: by its arguments, that is .*Tanh"):
        model.export_policy(tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


def test_hooks_are_refused(make_model, tmp_path):
    model = make_model()
    model.actor.mu[1].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(ValueError, match=r"`actor` with hooks at mu\.1 cannot be exported"):
        model.export_policy(tmp_path / "policy.safetensors")


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the bomb went off')",)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from safetensors import safe_open

    path = tmp_path_factory.mktemp("exported") / "policy"
    _trained(gym.make("Pendulum-v1")).export_policy(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["bn_ddpg_policy"])  # noqa: SIM118


def _write(path, tensors, description) -> None:
    from safetensors.torch import save_file

    about = description if isinstance(description, str) else json.dumps(description)
    save_file(tensors, path, {"bn_ddpg_policy": about, "bn_ddpg_sha256": export._sha256(about, tensors)})


def _without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: (t, d | dict(format_version=1)), "format version 1: only version 2 is known"),
        (lambda t, d: (t, _without(d, "format_version")), "no format_version"),
        (lambda t, d: (t, d | dict(code="import os")), r"unknown or missing: \['code'\]"),
        (lambda t, d: (t, _without(d, "network")), r"unknown or missing: \['network'\]"),
        (lambda t, d: (t, d | dict(activation_fn="exec")), "unknown activation_fn: 'exec'"),
        (lambda t, d: (t, d | dict(features_extractor="subprocess.Popen")), "unknown features_extractor"),
        (lambda t, d: (t, d | dict(features_extractor_kwargs=dict(shell=True))), "shell"),
        (lambda t, d: (t, d | dict(observation_space=dict(type="Graph"))), "unknown kind"),
        (lambda t, d: (t, d | dict(network=d["network"] | dict(net_arch=[16, 10**9]))), "size mismatch"),
        (lambda t, d: (t, d | dict(network=d["network"] | dict(net_arch=[-1]))), "policy"),
        (
            lambda t, d: (t, d | dict(network=d["network"] | dict(normalization="batch"))),
            "a normalization whose keys are unknown or missing: batch",
        ),
        (
            lambda t, d: (
                t,
                d | dict(network=d["network"] | dict(normalization=d["network"]["normalization"] | dict(order="first"))),
            ),
            "`norm_order='first'` is not allowed",
        ),
        (lambda t, d: (t, d | dict(network=d["network"] | dict(final_init="fan_out"))), "`final_init='fan_out'`"),
        (lambda t, d: (t, "[" * 100_000), "Recursion|damaged"),
        (lambda t, d: (t, "no json"), "JSONDecodeError"),
        (lambda t, d: (t | {"extra": th.zeros(1)}, d), r"unknown tensors \['extra'\]"),
        (lambda t, d: (_without(t, "actor.mu.1.weight"), d), "Missing key"),
        (lambda t, d: (_without(t, "action_space.low"), d), "action_space.low"),
        (lambda t, d: (t | {"actor.mu.1.weight": th.zeros(16, 4)}, d), "size mismatch"),
        (lambda t, d: (t | {"actor.mu.1.weight": t["actor.mu.1.weight"].double()}, d), "float64"),
        (lambda t, d: (t | {"actor.mu.1.weight": t["actor.mu.1.weight"] * np.nan}, d), "not finite"),
    ],
)
def test_what_is_unknown_is_refused(exported, change, message, tmp_path):
    path = tmp_path / "policy"
    _write(path, *change(*exported))
    with pytest.raises(FileError, match=message) as error:
        load_policy(path)
    assert str(path) in str(error.value)


def test_other_files_are_refused_and_not_run(tmp_path, make_model):
    model = make_model()
    model.save(tmp_path / "model.zip")
    model.save_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb()))
    th.save({"policy": Bomb()}, tmp_path / "torch bomb")
    (tmp_path / "empty").touch()
    for path in tmp_path.iterdir():
        with pytest.raises(FileError, match="damaged or of another kind"):
            load_policy(path)
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "nothing")


def test_unchanged_file_loads(exported, tmp_path):
    """What the refusals above start from."""
    _write(tmp_path / "policy", *exported)
    assert load_policy(tmp_path / "policy").predict(np.zeros(3, np.float32))[0].shape == (1,)


def test_onnx_of_a_dictionary_of_one_key(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    env = SpaceEnv(spaces.Dict(only=spaces.Box(-1, 1, (3,))), spaces.Box(-1, 1, (1,)))
    model = BNDDPG("MultiInputPolicy", env, policy_kwargs=SMALL)
    model.export_onnx(tmp_path / "policy.onnx")
    obs = {"only": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    (actions,) = onnxruntime.InferenceSession(tmp_path / "policy.onnx").run(None, obs)
    np.testing.assert_allclose(actions, model.predict(obs, deterministic=True)[0], atol=1e-5)


def test_onnx_of_an_observation_called_as_the_output_is_refused(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnx")
    box = spaces.Box(-1, 1, (3,))
    env = SpaceEnv(spaces.Dict(action=box, state=box), spaces.Box(-1, 1, (1,)))
    model = BNDDPG("MultiInputPolicy", env, policy_kwargs=SMALL)
    with pytest.raises(ValueError, match="the key 'action' is not allowed"):
        model.export_onnx(tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


def test_a_vec_normalize_in_another_is_not_exported(make_model, tmp_path):
    pytest.importorskip("safetensors")
    inner = VecNormalize(DummyVecEnv([VectorEnv]), norm_reward=False)
    model = make_model(VecNormalize(inner, norm_obs=False))
    with pytest.raises(ValueError, match="one VecNormalize in another"):
        model.export_policy(tmp_path / "policy.safetensors")
