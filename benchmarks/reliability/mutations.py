"""
Damaged files: ``python -m benchmarks.reliability.mutations files`` loads models, checkpoints, replay buffers and exported
policies of which a few bytes were changed, ``... yaml`` reads hyperparameter files of which a few characters were.
"""

import argparse
import contextlib
import io
import json
import random
import signal
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from benchmarks.reliability.kills import small_model
from sb3_bn_ddpg import BNDDPG, load_policy
from sb3_bn_ddpg.common.atomic_files import FileError

TIME_LIMIT = 60
"""Seconds, after which a file counts as one that hangs"""


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One change of a few bytes: flipped bits, another byte, a piece cut off, left out, doubled, zeroed or moved."""
    data = bytearray(content)
    start = rng.randrange(len(data))
    # Often near the ends, where formats keep what the rest hangs on
    if rng.random() < 0.5:
        start = rng.randrange(min(400, len(data)))
        start = start if rng.random() < 0.5 else len(data) - 1 - start
    end = min(start + rng.randint(1, 64), len(data))
    match rng.randrange(7):
        case 0:
            data[start] ^= 1 << rng.randrange(8)
        case 1:
            data[start] = (data[start] + rng.randint(1, 255)) % 256
        case 2:
            del data[start:]
        case 3:
            del data[start:end]
        case 4:
            data[start:start] = data[start:end]
        case 5:
            data[start:end] = bytes(end - start) if any(data[start:end]) else b"\xff" * (end - start)
        case 6:
            data[start:start] = rng.randbytes(end - start)
    return bytes(data) if bytes(data) != content else content + b"?"


def mutate_model(content: bytes, rng: random.Random) -> bytes:
    """A model's archive with right checksums, in which a member or an entry of its JSON is another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    kind = rng.randrange(3)
    if kind == 0:
        del members[rng.choice(sorted(members))]
    elif kind == 1:
        name = rng.choice([name for name in members if name.endswith(".pth")])
        members[name] = mutate(members[name], rng)
    else:
        data = json.loads(members["data"])
        key = rng.choice(sorted(data))
        if rng.random() < 0.5:
            del data[key]
        else:
            data[key] = rng.choice([None, -1, 0, 3.5, "x", [], {}, [1, 2], {"a": 1}, float("nan"), 10**6, True])
        members["data"] = json.dumps(data).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return stream.getvalue()


class Hanging(BaseException):
    """Passes through whatever catches exceptions."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """:raises Hanging: if what is done within hangs"""

    def stop(*args: Any) -> None:
        raise Hanging

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def fuzz_files(n_files: int, seed: int = 0) -> Counter[tuple[str, str]]:
    """
    :param n_files: Number of files, half of them models
    :param seed: Seed of the changes
    :return: How many of each kind were refused, and how many were loaded: the change was without effect, or, in a model
        whose checksums are right, of a value that may be so
    """
    rng = random.Random(seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        model = small_model()
        model.learn(60)
        model.save(folder / "model.zip")
        model.save_checkpoint(folder / "checkpoint")
        model.save_replay_buffer(folder / "buffer.pkl")
        model.export_policy(folder / "policy")
        present = model.replay_buffer

        def load_buffer(path: Path) -> None:
            try:
                model.load_replay_buffer(path)
            except FileError:
                assert model.replay_buffer is present, "a refused file changed the model"
                raise
            np.testing.assert_array_equal(model.replay_buffer.rewards, present.rewards)
            model.replay_buffer = present

        def same_weights(loaded: Any) -> None:
            for key, tensor in model.actor.state_dict().items():
                assert th.equal(loaded.actor.state_dict()[key], tensor), f"{key} was altered without a notice"

        kinds: dict[str, tuple[str, Callable[..., bytes], Callable[[Path], Any]]] = {
            "model": ("model.zip", mutate, lambda path: same_weights(BNDDPG.load(path, device="cpu"))),
            "model with right checksums": ("model.zip", mutate_model, lambda path: BNDDPG.load(path, device="cpu")),
            "checkpoint": ("checkpoint", mutate, lambda path: BNDDPG.resume(path, device="cpu")),
            "replay buffer": ("buffer.pkl", mutate, load_buffer),
            "exported policy": ("policy", mutate, load_policy),
        }
        contents = {file: (folder / file).read_bytes() for file, _, _ in kinds.values()}
        weights = [30, 20, 20, 15, 15]
        for number in range(n_files):
            kind = rng.choices(list(kinds), weights)[0]
            file, change, load = kinds[kind]
            path = folder / f"damaged_{file}"
            path.write_bytes(change(contents[file], rng))
            try:
                with time_limit():
                    load(path)
                outcomes[kind, "loaded"] += 1
            except Exception as error:
                if isinstance(error, FileError) and str(path) in str(error):
                    outcomes[kind, "refused"] += 1
                    continue
                raise AssertionError(f"file {number} of seed {seed}, a {kind}: {error!r}") from error
    return outcomes


def mutate_text(text: str, rng: random.Random) -> str:
    """One to three changes of a hyperparameter file: characters, or a value for another."""
    values = [
        "null",
        "-1",
        "0",
        "1e-3",
        ".nan",
        ".inf",
        "'x'",
        "[]",
        "{}",
        "[1, 2]",
        "dict(",
        "true",
        "lin_",
        "!!python/none",
        "*a",
    ]
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        number = rng.randrange(len(lines))
        if ":" in lines[number] and rng.random() < 0.6:
            lines[number] = lines[number].split(":")[0] + ": " + rng.choice(values)
            text = "\n".join(lines)
            continue
        at = rng.randrange(len(text))
        text = (
            text[:at] + rng.choice(["", "", "\n", ":", " ", "\t", "-", "{", "'", "#", "\x00", "é", "&", "%"]) + text[at + 1 :]
        )
    return text


def fuzz_yaml(n_files: int, seed: int = 0) -> Counter[str]:
    """
    :param n_files: Number of files
    :param seed: Seed of the changes
    :return: How many of them were refused, and how many gave a model: their values are allowed
    """
    from benchmarks.reliability.zoo_models import model_from

    rng = random.Random(seed)
    text = (
        "Pendulum-v1: &pendulum\n  n_timesteps: !!float 2000\n  policy: 'MlpPolicy'\n  gamma: 0.98\n  buffer_size: 1000\n"
        "  learning_starts: 50\n  learning_rate: lin_1.0e-3\n  critic_learning_rate: 1.0e-3\n  batch_size: 16\n"
        "  action_noise:\n    type: ou\n    sigma: {start: 0.2, end: 0.05, end_fraction: 0.5}\n    theta: 0.15\n    dt: 1.0\n"
        "  train_freq: 1\n  gradient_steps: 1\n  tau: 0.005\n  n_steps: 1\n  policy_kwargs: 'dict(net_arch=[16, 16])'\n"
        "  target_statistics: batch\n  normalize: \"{'norm_reward': False}\"\n  n_envs: 1\n"
    )
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "damaged.yml"
        for number in range(n_files):
            path.write_text(mutate_text(text, rng))
            try:
                with time_limit(), contextlib.redirect_stdout(io.StringIO()):
                    model_from(path, Path(folder))
                outcomes["accepted"] += 1
            except Exception as error:
                # Of the file as a whole, or of the value that it does not allow
                if isinstance(error, ValueError) and (str(path) in str(error) or "` " in str(error)):
                    outcomes["refused"] += 1
                    continue
                raise AssertionError(f"file {number} of seed {seed}: {error!r}\n{path.read_text()}") from error
    return outcomes


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("files", "yaml"))
    parser.add_argument("--n", type=int, default=2000, help="number of files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    outcomes: Any = (fuzz_files if options.what == "files" else fuzz_yaml)(options.n, options.seed)
    for what, number in sorted(outcomes.items()):
        print(what if isinstance(what, str) else ", ".join(what), number)


if __name__ == "__main__":
    main()
