"""A file is the old one or the new one, whatever happens while it is written; a bad one is refused by name."""

import errno
import io
import os
import stat
import sys
import zipfile
from unittest.mock import Mock

import numpy as np
import pytest
import torch as th
from conftest import VectorEnv
from stable_baselines3.common.save_util import load_from_pkl

from benchmarks.reliability import configurations, endurance, kills, mutations
from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.common import atomic_files
from sb3_bn_ddpg.common.atomic_files import FileError, atomic_write

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits and locks of POSIX")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_write_replaces(tmp_path):
    target = tmp_path / "folder" / "file"
    link = tmp_path / "link"
    link.symlink_to(target)
    previous = os.umask(0o027)
    try:
        with atomic_write(link) as file:
            file.write(b"new")
            assert not target.exists()
    finally:
        os.umask(previous)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert list(target.parent.iterdir()) == [target]


@posix
def test_a_disk_without_locks_and_without_flushes_of_folders(tmp_path, monkeypatch):
    def not_implemented(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(atomic_files.fcntl, "flock", not_implemented)
    monkeypatch.setattr(os, "fsync", only_files)
    for content in (b"first", b"second"):
        with atomic_write(tmp_path / "file") as file:
            file.write(content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@posix
def test_what_is_about_to_be_locked_may_be_taken_for_a_leftover(tmp_path, monkeypatch):
    """Another process begins to write the same file in between: this one begins again."""
    lock, others = atomic_files.fcntl.flock, []

    def lock_later(file, operation):
        if not others:
            others.append(file)
            with atomic_write(tmp_path / "file") as other:
                other.write(b"other")
        lock(file, operation)

    monkeypatch.setattr(atomic_files.fcntl, "flock", lock_later)
    with atomic_write(tmp_path / "file") as file:
        assert (tmp_path / "file").read_bytes() == b"other"
        file.write(b"own")
    assert others
    assert (tmp_path / "file").read_bytes() == b"own"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_being_written_is_no_leftover(tmp_path):
    """Two processes that write the same file: the last one wins, none breaks the other."""
    with atomic_write(tmp_path / "file") as first:
        first.write(b"first")
        with atomic_write(tmp_path / "file") as second:
            second.write(b"second")
    assert (tmp_path / "file").read_bytes() == b"first"


@posix
def test_kills():
    n_loaded, _ = kills.kill(3)
    assert n_loaded == 3


@posix
def test_full_disk():
    errors, _ = kills.fill_disk()
    assert len(errors) == 3


def test_names_of_files_are_sb3s(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "new folder" / "model")
    model.save(tmp_path / "model.v1")
    model.save_replay_buffer(tmp_path / "buffer")
    (tmp_path / "folder.zip").mkdir()
    model.save(tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"new folder", "model.v1", "buffer.pkl", "folder.zip", "folder.zip_2"}
    assert BNDDPG.load(tmp_path / "new folder" / "model").num_timesteps == 0
    model.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing, nor .*nothing\.zip"):
        BNDDPG.load(tmp_path / "nothing")


def test_sb3_reads_the_files(make_model, tmp_path):
    model = make_model().learn(30)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    np.testing.assert_array_equal(load_from_pkl(tmp_path / "buffer.pkl").actions, model.replay_buffer.actions)
    stream = io.BytesIO()
    model.save_replay_buffer(stream)
    stream.seek(0)
    model.load_replay_buffer(stream)
    assert model.replay_buffer.pos == 30


def _damage(path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_damaged_files(make_model, tmp_path):
    model = make_model().learn(30)
    model.save(tmp_path / "model.zip")
    model.save_checkpoint(tmp_path / "checkpoint")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        info = archive.getinfo("policy.pth")
    _damage(tmp_path / "model.zip", info.header_offset + info.file_size // 2)
    with pytest.raises(FileError, match=r"model\.zip is damaged.* 'policy\.pth'"):
        BNDDPG.load(tmp_path / "model.zip", VectorEnv())
    _damage(tmp_path / "checkpoint", 5000)
    with pytest.raises(FileError, match=r"checkpoint is truncated or was altered: .* SHA-256"):
        BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
    _damage(tmp_path / "buffer.pkl", 5000)
    with pytest.raises(FileError, match=r"buffer\.pkl was altered: .* SHA-256"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert model.replay_buffer.pos == 30


def test_parameters_are_set_all_or_none(make_model, tmp_path):
    model, other = make_model().learn(30), make_model(policy_kwargs=dict(net_arch=[16, 13]))
    other.save(tmp_path / "other")
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.set_parameters(tmp_path / "other.zip")
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())


@posix
def test_mutated_files():
    outcomes = mutations.fuzz_files(100, seed=1)
    assert outcomes.total() == 100
    assert outcomes["checkpoint", "refused"] > 5


@posix
def test_mutated_hyperparameter_files():
    pytest.importorskip("rl_zoo3")
    assert mutations.fuzz_yaml(60, seed=1).total() == 60


@posix
def test_configurations():
    outcomes = configurations.draw_and_try(60, seed_number=1)
    assert outcomes["trained"] + outcomes["refused"] == outcomes.total() >= 60
    assert outcomes["trained"] > 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files as Linux does")
def test_open_files():
    counts = endurance.open_files_of_learns(4)
    assert max(counts[1:]) <= counts[0]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_that_is_replaced_keeps_its_permissions(make_model, tmp_path):
    model, path = make_model(), tmp_path / "model.zip"
    model.save(path)
    path.chmod(0o640)
    model.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_lack_of_memory_is_no_damaged_file(make_model, tmp_path, monkeypatch):
    make_model().learn(30).save_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr("sb3_bn_ddpg.saving.checkpoint.read_buffer", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        BNDDPG.resume(tmp_path / "checkpoint", VectorEnv())
