"""
What a death leaves behind: ``python -m benchmarks.reliability.kills`` kills a process that saves in a loop at random moments
(SIGKILL), and ``... kills full-disk`` lets it write to a disk that is too small.
"""

import argparse
import contextlib
import multiprocessing
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch as th

from sb3_bn_ddpg import BNDDPG

FILES = ("checkpoint", "model.zip", "buffer.pkl")


def small_model() -> BNDDPG:
    """A model whose files are small, and yet of many writes."""
    arguments = dict(
        policy_kwargs=dict(net_arch=[8, 8]), learning_starts=10, buffer_size=300, batch_size=8, device="cpu", seed=0
    )
    return BNDDPG("MlpPolicy", "Pendulum-v1", **arguments)


def save_all(model: BNDDPG, folder: Path) -> None:
    """Replace each kind of file."""
    model.save_checkpoint(folder / "checkpoint")
    model.save(folder / "model.zip")
    model.save_replay_buffer(folder / "buffer.pkl")


def load_all(folder: Path) -> int:
    """
    Load each kind of file, and train with what comes of it.

    :return: The step that the checkpoint is from
    """
    resumed = BNDDPG.resume(folder / "checkpoint", device="cpu")
    step = resumed.num_timesteps
    resumed.learn(1, reset_num_timesteps=False)
    model = BNDDPG.load(folder / "model.zip", device="cpu")
    model.load_replay_buffer(folder / "buffer.pkl")
    assert abs(model.num_timesteps - step) <= 1  # the two were written one after the other
    return step


def save_in_a_loop(folder: Path) -> None:
    """Train and save until killed."""
    model = small_model()
    model.learn(20)
    while True:
        save_all(model, folder)
        (folder / "ready").touch()
        model.learn(1, reset_num_timesteps=False)


def kill(n_kills: int, seed: int = 0) -> tuple[int, int]:
    """
    :param n_kills: How often to kill a process that saves
    :param seed: Seed of the moments
    :return: After how many kills all files could be loaded, and how often the kill left a half-written file beside them
    """
    moments = random.Random(seed)
    n_loaded = n_mid_write = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = small_model()
        model.learn(20)
        start = time.monotonic()
        save_all(model, folder)
        save_time = time.monotonic() - start
        for _ in range(n_kills):
            (folder / "ready").unlink(missing_ok=True)
            process = multiprocessing.get_context("fork").Process(target=save_in_a_loop, args=[folder])
            process.start()
            deadline = time.monotonic() + 600
            while not (folder / "ready").exists():
                assert process.is_alive(), "the process died by itself"
                assert time.monotonic() < deadline, "the process saves nothing"
                time.sleep(0.01)
            # As long as a few saves take, on a busy machine too
            time.sleep(moments.uniform(0, 10) * save_time)
            process.kill()
            process.join()
            n_mid_write += any(folder.glob(".*.tmp"))
            load_all(folder)
            n_loaded += 1
        # The next save clears up
        save_all(model, folder)
        assert not list(folder.glob(".*.tmp"))
    return n_loaded, n_mid_write


@contextlib.contextmanager
def small_disk() -> Iterator[tuple[Path, str]]:
    """A folder on a disk of 256 KiB; where nobody may mount one, a folder in which no file may grow beyond that."""
    with tempfile.TemporaryDirectory() as name:
        mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", name], capture_output=True)
        if mounting.returncode == 0:
            try:
                yield Path(name), "a file system of 256 KiB (tmpfs)"
            finally:
                subprocess.run(["umount", name], check=True)
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
        try:
            yield Path(name), "a limit of 256 KiB on a file's size (RLIMIT_FSIZE)"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_disk() -> tuple[list[str], str]:
    """
    Save to a disk on which there is place for the first files, but not for replacing them by larger ones.

    :return: The errors, and what stood in for a full disk
    """
    errors = []
    with small_disk() as (folder, kind):
        model = small_model()
        model.learn(20)
        save_all(model, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        model.policy_kwargs["ballast"] = "x" * 300_000  # in the checkpoint and the model
        model.replay_buffer.ballast = b"x" * 300_000
        saves = [
            lambda: model.save_checkpoint(folder / "checkpoint"),
            lambda: model.save(folder / "model.zip"),
            lambda: model.save_replay_buffer(folder / "buffer.pkl"),
        ]
        for save in saves:
            try:
                save()
            except OSError as error:
                errors.append(str(error))
        assert len(errors) == len(saves), "there was enough place"
        assert sum(path.stat().st_size for path in folder.iterdir()) == size, "something was left behind"
        assert load_all(folder) == 20
    return errors, kind


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="kill", choices=("kill", "full-disk"))
    parser.add_argument("--n", type=int, default=100, help="number of kills")
    options = parser.parse_args(argv)
    th.set_num_threads(1)  # with more, a forked process would hang
    if options.what == "full-disk":
        errors, kind = fill_disk()
        print(f"{len(errors)} saves failed on {kind} ({errors[0]}); every earlier file was loaded")
    else:
        n_loaded, n_mid_write = kill(options.n)
        print(f"{options.n} kills, {n_mid_write} of them in the middle of writing; all files loaded after {n_loaded}")


if __name__ == "__main__":
    main()
