"""Gives tasks to workers, also when workers die, are missing, or join late. Does not import Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from workers.errors import SecateurError

START_SECONDS = 60.0  # that a worker may take to start where there is room for it


class WorkerDied(Exception):
    """A worker ended or became unreachable before its result arrived. The message gives the reason."""


class Actors(ABC):
    """Workers in processes of their own. A reference stands for a result that may not have arrived."""

    @abstractmethod
    def start(self, index: int) -> tuple[Any, Any]:
        """Returns a new actor, which may have to wait for room, and the reference to its first answer."""

    @abstractmethod
    def ask(self, actor: Any, verb: str, task: Any) -> Any:
        """Starts a task and returns the reference to its result."""

    @abstractmethod
    def wait(self, references: list[Any], seconds: float | None) -> list[Any]:
        """Waits up to ``seconds`` and returns the first of ``references`` that arrived or failed, if any."""

    @abstractmethod
    def result(self, reference: Any) -> Any:
        """Returns the result of a reference. Raises: WorkerDied, or the error of the task."""

    @abstractmethod
    def end(self, actor: Any) -> None:
        """Ends an actor, dead or alive."""

    @abstractmethod
    def room(self) -> int:
        """Returns for how many workers the present nodes would have room if they were empty."""

    @abstractmethod
    def account(self) -> str:
        """Describes what a worker needs and what the cluster has."""


@dataclass
class Seat:
    """The place of one worker. When its actor dies, another one takes it."""

    index: int
    actor: Any
    answer: Any | None  # the reference to the first answer; None once it arrived: the worker is up
    failures: int = 0  # actors in a row that died before they were up
    host: str = ""  # of the worker, once it is up


class Crew:
    """A number of seats for workers. Gives tasks to the workers that are up. Replaces a dead worker as soon as there is room."""

    def __init__(self, actors: Actors, workers: int, wait_seconds: float, retries: int, warn: Callable[[str], None]) -> None:
        self.actors, self.workers, self.wait_seconds, self.retries, self.warn = actors, workers, wait_seconds, retries, warn
        self.seats: list[Seat] = []
        self._reported: set[str] = set()

    def ready(self) -> None:
        """Starts the workers, or fewer if there is no room for all.

        Raises: SecateurError if no worker came up in time, or if one died repeatedly while it started.
        """
        if self.seats:
            return
        self.seats = [Seat(index, *self.actors.start(index)) for index in range(self.workers)]
        begun = monotonic()
        while starting := [seat for seat in self.seats if seat.answer is not None]:
            up, room = len(self.seats) - len(starting), self.actors.room()
            if 0 < room <= up or monotonic() - begun > (START_SECONDS if up else self._patience(room)):
                break
            self._note_answers(self.actors.wait([seat.answer for seat in starting], 1.0))
        if len(starting) == len(self.seats):
            raise self._no_worker()
        self._warn_of_missing()

    def release(self) -> None:
        """Ends the workers. ``ready`` starts new ones."""
        for seat in self.seats:
            self.actors.end(seat.actor)
        self.seats = []

    def map(self, verb: str, tasks: Sequence[Any], done: Callable[[int, Any], None], alone: bool = False) -> list[Any]:
        """See ``Cluster.map``. With ``alone``, each host runs one task at a time.

        Raises: the error of a task; SecateurError if a task lost too many workers, or no worker remains.
        """
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
        self._warn_of_missing()
        return [results[index] for index in range(len(tasks))]

    def _ended(self, running: list[Any]) -> list[Any]:
        """Waits until a task has ended or a worker has come up, and returns the tasks that ended."""
        begun = monotonic()
        starting = [seat.answer for seat in self.seats if seat.answer is not None]
        while not (answers := self.actors.wait([*starting, *running], None if running else 1.0)):
            if monotonic() - begun > self._patience(self.actors.room()):
                raise self._no_worker()
        self._note_answers(answers)
        return [reference for reference in answers if reference in running]

    def _patience(self, room: int) -> float:
        """Returns how long to wait without any worker, in seconds. A node with room may join at the last moment."""
        return self.wait_seconds + (START_SECONDS if room else 0)

    def _note_answers(self, answers: list[Any]) -> None:
        """Marks the workers that came up, and replaces those that died while they started."""
        for seat in self.seats:
            if seat.answer is None or seat.answer not in answers:
                continue
            try:
                seat.host = self.actors.result(seat.answer).host
            except WorkerDied as death:
                seat.failures += 1
                if seat.failures > self.retries:
                    raise SecateurError(f"cluster.workers: worker {seat.index} did not start ({death})") from death
                self._replace(seat)
            else:
                seat.answer, seat.failures = None, 0

    def _died(self, seat: Seat, verb: str, attempts: int, death: WorkerDied) -> None:
        if attempts > self.retries:
            raise SecateurError(
                f"{verb}: a task lost {attempts} workers in a row ({death}); if memory ran out, lower cluster.memory_gb or "
                "pruner.block_size, then run the same command again: finished work is kept"
            ) from death
        self.warn(f"worker {seat.index} died during {verb} ({death}); another worker got its task")
        self._replace(seat)

    def _replace(self, seat: Seat) -> None:
        self.actors.end(seat.actor)  # an actor that is only unreachable would keep its device
        seat.actor, seat.answer = self.actors.start(seat.index)

    def _warn_of_missing(self) -> None:
        """Warns once of workers that are neither up nor starting."""
        up = sum(seat.answer is None for seat in self.seats)
        room = self.actors.room() if up < len(self.seats) else up
        text = f"{up} of {len(self.seats)} workers are up, since the cluster has room for {room}; the others start when it has more"
        if up < len(self.seats) and room < len(self.seats) and text not in self._reported:
            self._reported.add(text)
            self.warn(text)

    def _no_worker(self) -> SecateurError:
        return SecateurError(
            f"cluster.workers: no worker came up within {self.wait_seconds:g} seconds ({self.actors.account()}); add nodes, then run the "
            "same command again: finished work is kept"
        )
