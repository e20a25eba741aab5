"""Which worker does which task, and what happens when workers die, are missing or come late. Knows no Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from workers.errors import SecateurError

START_SECONDS = 60.0  # a worker may take to come up where there is room for it


class WorkerDied(Exception):
    """The worker ended, or cannot be reached, before its result was here. The message says why."""


class Actors(ABC):
    """Workers in processes of their own. References are to results that will be there."""

    @abstractmethod
    def start(self, index: int) -> tuple[Any, Any]:
        """A new actor, which may wait for room, and the reference to its first answer."""

    @abstractmethod
    def ask(self, actor: Any, verb: str, task: Any) -> Any:
        """Reference to the result of a task."""

    @abstractmethod
    def wait(self, references: list[Any], seconds: float | None) -> list[Any]:
        """The first of ``references`` that is there or failed; none if that takes longer than ``seconds``."""

    @abstractmethod
    def result(self, reference: Any) -> Any:
        """Raises: WorkerDied, or what the task raised."""

    @abstractmethod
    def end(self, actor: Any) -> None:
        """End an actor, dead or alive."""

    @abstractmethod
    def room(self) -> int:
        """For how many workers the cluster as it is now has room, were nothing else there."""

    @abstractmethod
    def account(self) -> str:
        """What a worker needs, and what there is."""


@dataclass
class Seat:
    """The place of one worker, whose actors come and go."""

    index: int
    actor: Any
    answer: Any | None  # to the first question; None once it is here: the worker is up
    failures: int = 0  # actors in a row that died before they were up
    host: str = ""  # where it is, once it is up


class Crew:
    """``workers`` seats. Works with those that are up; a dead worker is asked for again at once, and works when there is room for it."""

    def __init__(self, actors: Actors, workers: int, wait_seconds: float, retries: int, warn: Callable[[str], None]) -> None:
        self.actors, self.workers, self.wait_seconds, self.retries, self.warn = actors, workers, wait_seconds, retries, warn
        self.seats: list[Seat] = []
        self._told: set[str] = set()

    def ready(self) -> None:
        """Start the workers. Goes on with fewer where there is no room for all.

        Raises: SecateurError if no worker came up in time, or one died again and again.
        """
        if self.seats:
            return
        self.seats = [Seat(index, *self.actors.start(index)) for index in range(self.workers)]
        begun = monotonic()
        while starting := [seat for seat in self.seats if seat.answer is not None]:
            up, room = len(self.seats) - len(starting), self.actors.room()
            if 0 < room <= up or monotonic() - begun > (START_SECONDS if up else self._patience(room)):
                break
            self._hear(self.actors.wait([seat.answer for seat in starting], 1.0))
        if len(starting) == len(self.seats):
            raise self._nobody()
        self._tell_missing()

    def release(self) -> None:
        """End the workers; ``ready`` starts new ones."""
        for seat in self.seats:
            self.actors.end(seat.actor)
        self.seats = []

    def map(self, verb: str, tasks: Sequence[Any], done: Callable[[int, Any], None], alone: bool = False) -> list[Any]:
        """As ``Cluster.map``; if ``alone``, one task at a time on each host.

        Raises: what a task raised; SecateurError if a task lost too many workers, or none is left."""
        waiting = deque(range(len(tasks)))
        running: dict[Any, tuple[int, Seat]] = {}
        attempts = [0] * len(tasks)
        results: dict[int, Any] = {}
        while waiting or running:
            busy = {seat.index for _, seat in running.values()}
            hosts = {seat.host for _, seat in running.values()} if alone else set()
            for seat in self.seats:
                if waiting and seat.answer is None and seat.index not in busy and seat.host not in hosts:
                    hosts |= {seat.host} if alone else set()
                    index = waiting.popleft()
                    running[self.actors.ask(seat.actor, verb, tasks[index])] = (index, seat)
            for reference in self._ended(list(running)):
                index, seat = running.pop(reference)
                try:
                    results[index] = self.actors.result(reference)
                except WorkerDied as death:
                    attempts[index] += 1
                    self._died(seat, verb, attempts[index], death)
                    waiting.appendleft(index)
                else:
                    done(index, results[index])
        self._tell_missing()
        return [results[index] for index in range(len(tasks))]

    def _ended(self, running: list[Any]) -> list[Any]:
        """Wait until a task has ended or a worker has come up; returns the tasks that have."""
        begun = monotonic()
        starting = [seat.answer for seat in self.seats if seat.answer is not None]
        while not (heard := self.actors.wait([*starting, *running], None if running else 1.0)):
            if monotonic() - begun > self._patience(self.actors.room()):
                raise self._nobody()
        self._hear(heard)
        return [reference for reference in heard if reference in running]

    def _patience(self, room: int) -> float:
        """Seconds without any worker before giving up: a node with room for one may join at the last moment."""
        return self.wait_seconds + (START_SECONDS if room else 0)

    def _hear(self, answers: list[Any]) -> None:
        """Workers that are up now, or died before they were."""
        for seat in self.seats:
            if seat.answer is None or seat.answer not in answers:
                continue
            try:
                seat.host = self.actors.result(seat.answer).host
            except WorkerDied as death:
                seat.failures += 1
                if seat.failures > self.retries:
                    raise SecateurError(f"cluster.workers: worker {seat.index} did not start ({death})") from death
                self._refill(seat)
            else:
                seat.answer, seat.failures = None, 0

    def _died(self, seat: Seat, verb: str, attempts: int, death: WorkerDied) -> None:
        if attempts > self.retries:
            raise SecateurError(
                f"{verb}: a task lost {attempts} workers in a row ({death}); if memory ran out, lower cluster.memory_gb or "
                "pruner.block_size, then run the same command again: finished work is kept"
            ) from death
        self.warn(f"worker {seat.index} died during {verb}, and its task was given to another ({death})")
        self._refill(seat)

    def _refill(self, seat: Seat) -> None:
        self.actors.end(seat.actor)  # one that only cannot be reached would keep its device
        seat.actor, seat.answer = self.actors.start(seat.index)

    def _tell_missing(self) -> None:
        """Warn, once, of workers that are neither up nor on their way."""
        up = sum(seat.answer is None for seat in self.seats)
        room = self.actors.room() if up < len(self.seats) else up
        text = f"{up} of {len(self.seats)} workers were at work, since the cluster had room for {room}; others join when it has more"
        if up < len(self.seats) and room < len(self.seats) and text not in self._told:
            self._told.add(text)
            self.warn(text)

    def _nobody(self) -> SecateurError:
        return SecateurError(
            f"cluster.workers: no worker came up within {self.wait_seconds:g} seconds ({self.actors.account()}); add nodes, then run the "
            "same command again: finished work is kept"
        )
