"""Whether the files of models and replay buffers are whole, before anything is read from them."""

import json
import pathlib
import re
import zipfile
from typing import Any

from sb3_bn_ddpg.common.atomic_files import FileError, clear_errors, sha256
from sb3_bn_ddpg.saving import checkpoint

SHA256_LINE = b"sha256 %s\n"
"""The last line of a replay buffer's file"""


def check_model_file(path: Any) -> str | None:
    """
    Read all of a model's file once, so that a change of any byte in its members is found by their checksums.

    :param path: The file, or an open one, which is left where it was
    :return: The name of the class that saved it, None for an algorithm of SB3's
    :raises FileError: if it is truncated, was altered, or is no model
    """
    if isinstance(path, pathlib.Path) and checkpoint.is_checkpoint(path):
        algorithm = checkpoint.read_manifest(path)["algorithm"]
        raise FileError(path, f"is a checkpoint: it takes `{algorithm}.resume`, not `load`")
    position = None if isinstance(path, pathlib.Path) else path.tell()
    try:
        with clear_errors(path), zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise FileError(path, f"is damaged: the checksum of its member {damaged!r} is wrong")
            missing = {"data", "policy.pth"} - set(archive.namelist())
            if missing:
                raise FileError(path, f"is no model of Stable-Baselines3: it has no {' and no '.join(sorted(missing))}")
            saved_by: str | None = json.loads(archive.read("data")).get("_saved_by")  # plain text: nothing is unpickled
            return saved_by
    finally:
        if position is not None:
            path.seek(position)


def check_pickle(path: pathlib.Path) -> None:
    """
    :param path: The file of a replay buffer
    :raises FileError: if it was altered. Files that SB3 wrote have no checksum and pass.
    """
    n_bytes = path.stat().st_size - len(SHA256_LINE % (b"0" * 64))
    with open(path, "rb") as file:
        file.seek(max(n_bytes, 0))
        match = re.fullmatch(rb"sha256 ([0-9a-f]{64})\n", file.read())
        file.seek(0)
        if match and sha256(file, n_bytes) != match[1].decode():
            raise FileError(path, "was altered: its content does not match its SHA-256")
