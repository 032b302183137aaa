"""Measurements on disk: one CSV row each, written as they come, so that a stopped run goes on where it was."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """
    What was measured. The fields that a figure does not depend on keep their defaults.

    :param figure: ``train``, ``family``, ``neighbour``, ``learn``, ``first_call``, ``import``, ``first_update``,
        ``first_train``, ``peak_memory``, ``breakdown``, ``scale_batch``, ``scale_width``, ``scale_envs`` or ``buffer_memory``
    :param contender: Its name in the table of contenders
    :param threads: Threads and processor cores
    :param obs_dim: Dimension of the states
    :param action_dim: Dimension of the actions
    :param width: Units of the hidden layers
    :param batch_size: Transitions in an update
    :param per_call: Updates in one call of ``train()``
    :param n_envs: Environments in processes of their own, or 0
    :param variant: Number type of the states in the replay buffer, where that is measured; part of an update in a breakdown;
        ``alone`` or ``beside`` a second training
    :param round: Number of the repetition
    """

    figure: str
    contender: str
    threads: int = 2
    obs_dim: int = 17
    action_dim: int = 6
    width: str = "400-300"
    batch_size: int = 64
    per_call: int = 1
    n_envs: int = 0
    variant: str = ""
    round: int = 0


RESULTS = ["count", "seconds", "value"]


class Store:
    """
    The rows of one run.

    :param folder: Where they lie
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "measurements.csv"
        self.columns = [field.name for field in fields(Key)]
        self.done: set[tuple[str, ...]] = set()
        if not self.path.exists():
            with self.path.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow([*self.columns, *RESULTS])
        with self.path.open(newline="") as file:
            for row in csv.DictReader(file):
                self.done.add(tuple(row[column] for column in self.columns))

    def __contains__(self, key: Key) -> bool:
        return tuple(str(value) for value in asdict(key).values()) in self.done

    def add(self, key: Key, value: float, count: int = 1, seconds: float = 0.0) -> None:
        """
        :param key: What was measured
        :param value: The figure: a rate, seconds or bytes
        :param count: Updates or steps that it comes from
        :param seconds: The time they took
        """
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([*asdict(key).values(), count, f"{seconds:.6g}", f"{value:.6g}"])
        self.done.add(tuple(str(entry) for entry in asdict(key).values()))
