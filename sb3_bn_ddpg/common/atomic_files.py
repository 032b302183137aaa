"""Writing files so that a crash at any moment leaves the old file or the new one, and one clear error for reading them."""

import hashlib
import io
import math
import os
import pathlib
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: files that a killed process left behind stay
    fcntl = None  # type: ignore[assignment]

PathOrFile = str | pathlib.Path | io.BufferedIOBase


class FileError(ValueError):
    """A file is truncated, was altered, or is not of the kind it should be."""

    def __init__(self, path: Any, problem: str) -> None:
        super().__init__(f"{_named(path)} {problem}")


@contextmanager
def atomic_write(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """
    Open a file for writing that takes the name ``path`` only when all of it is on the disk: written beside it, flushed,
    renamed. Whatever happens before leaves the file that had the name as it was.

    :param path: The file to write or replace. Missing folders are created.
    :return: The open file
    """
    target = pathlib.Path(os.path.realpath(path))  # through a symbolic link, whose name shall stay
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    # The host's name: another machine's locks may be invisible on a shared disk
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{secrets.token_hex(4)}.tmp")
    try:
        with _open_locked(temporary) as file:
            yield file
            file.flush()
            with suppress(OSError):  # one file that it replaces keeps its permissions
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            os.fsync(file.fileno())
            # While it is open, and so locked: nobody takes it for a leftover
            os.replace(temporary, target) if os.name == "posix" else None
        if os.name != "posix":  # an open file cannot be renamed
            os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _open_locked(path: pathlib.Path) -> BinaryIO:
    """
    :param path: A file that does not exist
    :return: It, open for writing, and locked where that is possible
    """
    while True:
        file = open(path, "xb")  # noqa: SIM115  # the caller closes it
        if fcntl is None:
            return file
        try:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # before it was locked, another process took it for a leftover


@contextmanager
def atomic_sb3_file(path: PathOrFile, suffix: str) -> Iterator[Any]:
    """
    What SB3's functions for saving can write to instead of a path: the name is chosen as they do it.

    :param path: A path, or an open file, which is written as it is
    :param suffix: The suffix of a path that has none
    :return: The open file
    """
    if not isinstance(path, (str, pathlib.Path)):
        yield path
        return
    path = pathlib.Path(path)
    if path.suffix == "":
        path = path.with_name(f"{path.name}.{suffix}")
    if path.is_dir():
        path = path.with_name(f"{path.name}_2")
    with atomic_write(path) as file:
        yield file


def existing_file(path: PathOrFile, suffix: str) -> Any:
    """
    :param path: A path as SB3's functions for loading take it, or an open file
    :param suffix: The suffix to try if there is no such file
    :return: The path of the file, or the open file
    :raises FileNotFoundError: if there is none
    """
    if not isinstance(path, (str, pathlib.Path)):
        return path
    for candidate in (pathlib.Path(path), pathlib.Path(f"{path}.{suffix}")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"there is no file {path}, nor {path}.{suffix}")


@contextmanager
def clear_errors(
    path: Any, but: tuple[type[Exception], ...] = (), what: str = "is damaged or of another kind"
) -> Iterator[None]:
    """
    Turn whatever a parser throws at a bad file into a :class:`FileError` that names it.

    :param path: The file
    :param but: Errors that pass, beside ``FileError`` itself, those of opening a file, and a lack of memory
    :param what: What it says of the file
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (FileError, FileNotFoundError, IsADirectoryError, PermissionError, MemoryError, *but)):
            raise
        detail = " ".join(str(error).split())[:300] or "no details"
        raise FileError(path, f"{what}: {type(error).__name__}: {detail}") from error


class HashingFile:
    """
    A file for writing that hashes what passes through. It cannot seek: archives are written from front to back.

    :param file: The file
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """
        :param data: Bytes
        :return: How many were written
        """
        self.digest.update(data)
        n_written: int = self.file.write(data)
        return n_written

    def flush(self) -> None:
        """Hand over to the operating system what was written."""
        self.file.flush()


def sha256(file: Any, n_bytes: float = math.inf) -> str:
    """
    :param file: An open file
    :param n_bytes: How much of the rest of it to read
    :return: The SHA-256 of that in hexadecimal digits
    """
    digest = hashlib.sha256()
    while block := file.read(int(min(1 << 20, n_bytes))):
        digest.update(block)
        n_bytes -= len(block)
    return digest.hexdigest()


def _named(path: Any) -> str:
    return f"the file {os.fspath(path)}" if isinstance(path, (str, os.PathLike)) else f"the open file {path!r}"


def _remove_leftovers(target: pathlib.Path) -> None:
    """
    Remove what killed processes of this machine left beside a file: they hold no locks any more.

    :param target: The file
    """
    if fcntl is None:
        return
    beginning = f".{target.name}.{socket.gethostname()}."
    for name in os.listdir(target.parent):
        if not (name.startswith(beginning) and name.endswith(".tmp")):
            continue
        leftover = target.with_name(name)
        with suppress(OSError), open(leftover, "rb") as file:  # OSError: it is being written, or gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _sync_folder(folder: pathlib.Path) -> None:
    """Make a change of names in a folder survive a power failure, where the system can."""
    if os.name != "posix":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
