"""
Processes of their own, without the seconds that each would take to import PyTorch, SB3 and RL Zoo: a server imports them once
a test session, and forks for each process. It runs no code of the tests itself.

A process runs what ``python -m``, ``python -c`` or ``python <file>`` would run, in the folder and with the environment
variables that it is given, and has the exit code that it would have there; it leads a session of its own.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WITH_ZOO = ("pandas", "rl_zoo3.train", "rl_zoo3.enjoy", "sb3_bn_ddpg.zoo")
WITHOUT_ZOO = ("matplotlib", "pandas", "sb3_bn_ddpg")
"""RL Zoo changes Gymnasium where it is imported."""


class ForkedProcess:
    """As much of ``subprocess.Popen`` as the tests use."""

    def __init__(self, server: socket.socket, request: dict[str, Any], merges_streams: bool) -> None:
        # To append: a process goes on writing where it was, whoever reads in between
        self.stdout, self.stderr = (tempfile.TemporaryFile("a+") for _ in range(2))  # noqa: SIM115
        self._status, its_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        streams = [self.stdout, self.stdout if merges_streams else self.stderr, its_status]
        socket.send_fds(server, [json.dumps(request).encode()], [stream.fileno() for stream in streams])
        its_status.close()
        self.pid = int(self._status.recv(32))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = int(self._status.recv(32))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0, output=self._output()[0]) from None
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written at its end."""
        self.wait(timeout)
        return self._output()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _output(self) -> tuple[str, str]:
        for stream in (self.stdout, self.stderr):
            stream.seek(0)
        return self.stdout.read(), self.stderr.read()


@cache
def _server(imported: tuple[str, ...]) -> socket.socket:
    """The connection to a server that has imported these modules. It ends with this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}
    subprocess.Popen([sys.executable, __file__, str(its.fileno()), *imported], pass_fds=[its.fileno()], env=environment)
    its.close()
    return ours


def fork(
    *command: str, cwd: Path, env: dict[str, str], imported: tuple[str, ...] = WITH_ZOO, merges_streams: bool = True
) -> ForkedProcess:
    """
    :param command: As after ``python``: ``-m`` and a module, ``-c`` and code, or a file; and its arguments
    :param cwd: Its folder
    :param env: Its environment variables
    :param imported: What is imported already
    :param merges_streams: Whether stderr goes where stdout goes
    """
    return ForkedProcess(_server(imported), {"command": command, "cwd": str(cwd), "env": env}, merges_streams)


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns it in the new process only; the server ends with the connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel clears away the processes that fork the ones asked for
    while True:
        message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            sys.exit()
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            status = socket.socket(fileno=streams[2])
            if (process := os.fork()) != 0:
                _, code = os.waitpid(process, 0)
                with contextlib.suppress(OSError):
                    status.send(str(os.waitstatus_to_exitcode(code)).encode())
                os._exit(0)
            os.setsid()
            os.dup2(streams[0], 1)
            os.dup2(streams[1], 2)
            status.send(str(os.getpid()).encode())
            status.close()
            request: dict[str, Any] = json.loads(message)
            return request
        for stream in streams:
            os.close(stream)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[1:1] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    np.random.seed()  # Python's own generator is seeded anew by the fork
    kind, *rest = request["command"]
    sys.orig_argv[:] = [sys.executable, kind, *rest]
    if kind == "-m":
        sys.path[0], sys.argv[:] = os.getcwd(), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0], sys.argv[:] = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv[:] = str(Path(kind).parent), [kind, *rest]
        runpy.run_path(kind, run_name="__main__")
