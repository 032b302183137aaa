"""Rates of several contenders in turns, A B C A B C, so that a busy moment of the machine hits all of them alike."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rich.console import Console

from benchmarks.speed.store import Key, Store
from benchmarks.speed.worker import Worker, WorkerError

console = Console()


class Field:
    """
    The contenders of a run, each with its worker.

    :param names: Names of the contenders
    :param threads: Threads and cores of each
    :param store: Where the measurements go
    :param failed: Receives the names of those that failed
    :param device: ``"cpu"`` or ``"cuda"``
    """

    def __init__(self, names: list[str], threads: int, store: Store, failed: set[str], device: str = "cpu") -> None:
        self.names = names
        self.threads = threads
        self.store = store
        self.failed = failed
        self.device = device

    def __enter__(self) -> "Field":
        self.stack = ExitStack()
        self.workers: dict[str, Worker] = {}
        for name in self.names:
            try:
                self.workers[name] = self.stack.enter_context(Worker(name, self.threads, self.device))
            except OSError as error:  # its virtual environment is missing
                self._drop(name, error)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def _drop(self, name: str, error: Exception) -> None:
        console.print(f"[red]{name} is left out:[/red]", str(error), markup=True)
        self.failed.add(name)
        self.workers.pop(name, None)

    def ask(self, name: str, request: str, **arguments: Any) -> dict[str, Any] | None:
        """
        :param name: The contender
        :param request: The request, as of :meth:`~benchmarks.speed.worker.Worker.ask`
        :param arguments: Its arguments
        :return: The answer, or None from a contender that failed, now or before
        """
        if name not in self.workers:
            return None
        try:
            return self.workers[name].ask(request, **arguments)
        except WorkerError as error:
            self._drop(name, error)
            return None

    def ask_all(self, request: str, **arguments: Any) -> None:
        """
        :param request: A request to each contender
        :param arguments: Its arguments
        """
        for name in self.names:
            self.ask(name, request, **arguments)

    def unfinished(self, key: Key, rounds: int) -> list[str]:
        """
        :param key: What is to be measured, but for contender and round
        :param rounds: Number of rounds
        :return: The contenders with rounds yet to measure
        """
        return [
            name
            for name in self.names
            if any(replace(key, contender=name, round=number) not in self.store for number in range(rounds))
        ]

    def measure(
        self,
        key: Key,
        rounds: int,
        slice_seconds: float,
        request: str,
        multiple: int = 1,
        on_round: Callable[[], object] = lambda: None,
        **arguments: Any,
    ) -> None:
        """
        Measure a rate of every contender in turns, what is already stored left out.

        :param key: What is measured, but for contender and round
        :param rounds: Number of rounds
        :param slice_seconds: Time of one measurement
        :param request: The request, which takes a ``count``
        :param multiple: The counts are multiples of this
        :param on_round: Called after every round
        :param arguments: Its other arguments
        """
        names = self.unfinished(key, rounds)
        counts = {name: self.calibrate(name, multiple, slice_seconds, request, arguments) for name in names}
        for number in range(rounds):
            start = number % max(len(names), 1)  # nobody always runs after the same neighbour's cache and clock
            for name in names[start:] + names[:start]:
                row = replace(key, contender=name, round=number)
                if row in self.store:
                    continue
                reply = self.ask(name, request, count=counts[name], **arguments)
                if reply is not None:
                    self.store.add(row, counts[name] / reply["seconds"], counts[name], reply["seconds"])
            on_round()

    def calibrate(self, name: str, multiple: int, slice_seconds: float, request: str, arguments: dict[str, Any]) -> int:
        """
        :param name: The contender
        :param multiple: The count is a multiple of this
        :param slice_seconds: Time that a measurement should take
        :param request: The request
        :param arguments: Its arguments besides the count
        :return: A count for that time, at least ``multiple``
        """
        count, seconds = multiple, 0.0
        while seconds < slice_seconds / 4:
            reply = self.ask(name, request, count=count, **arguments)
            if reply is None:
                break
            seconds = reply["seconds"]
            count = max(round(count * min(slice_seconds / seconds, 16) / multiple), 1) * multiple
        return count
