"""Workers that die, are missing or join late: the crew on simulated nodes, with their own clock."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cluster import crew as crew_module
from orchestrator.cluster.capacity import described, room, total_described
from orchestrator.cluster.crew import START_SECONDS, Actors, Crew, WorkerDied
from workers.errors import SecateurError

BOOT = 5.0  # seconds that a worker with room takes to start


@dataclass
class Pending:
    """A reference to ``value``, which arrives at a time."""

    actor: "SimulatedActor"
    value: Any
    time: float | None  # None: its actor has no room yet


@dataclass
class SimulatedActor:
    index: int
    node: str | None = None
    dead: bool = False


@dataclass
class Nodes(Actors):
    """Nodes with places for workers. A task takes as many seconds as its value. ``events`` change the nodes at their times."""

    places: dict[str, int]
    events: list[tuple[float, Callable[["Nodes"], None]]] = field(default_factory=list)
    boot: Callable[[int], float] = lambda started: BOOT  # start time of the n-th actor; negative: it dies after this time
    now: float = 0.0
    actors: list[SimulatedActor] = field(default_factory=list)
    references: list[Pending] = field(default_factory=list)
    done_by: dict[Any, list[int]] = field(default_factory=dict)

    def start(self, index: int) -> tuple[Any, Any]:
        actor = SimulatedActor(index)
        self.actors.append(actor)
        self.references.append(Pending(actor, len(self.actors) - 1, None))
        self._place()
        return actor, id(self.references[-1])

    def ask(self, actor: Any, verb: str, task: Any) -> Any:
        self.references.append(Pending(actor, task, self.now + task))
        return id(self.references[-1])

    def wait(self, references: list[Any], seconds: float | None) -> list[Any]:
        until = float("inf") if seconds is None else self.now + seconds
        while True:
            pending = {id(r): r for r in self.references if id(r) in references}
            ended = [key for key in references if pending[key].actor.dead or (pending[key].time or float("inf")) <= self.now]
            if ended:
                return ended[:1]
            times = [r.time for r in pending.values() if r.time is not None] + [time for time, _ in self.events]
            next_time = min([time for time in times if time > self.now], default=float("inf"))
            if next_time > until:
                self.now = until
                return []
            assert next_time < float("inf"), "waits forever"
            self.now = next_time
            for event in [event for event in self.events if event[0] <= self.now]:
                self.events.remove(event)
                event[1](self)
                self._place()

    def result(self, reference: Any) -> Any:
        pending = next(r for r in self.references if id(r) == reference)
        if pending.actor.dead:
            raise WorkerDied("its node has died")
        if pending.value in range(len(self.actors)):
            if self.boot(pending.value) < 0:
                pending.actor.dead = True
                raise WorkerDied("it could not be made")
            return SimpleNamespace(host=pending.actor.node)
        self.done_by.setdefault(pending.value, []).append(pending.actor.index)
        return pending.value * 2

    def end(self, actor: Any) -> None:
        actor.dead, actor.node = True, None
        self._place()

    def room(self) -> int:
        return sum(self.places.values())

    def account(self) -> str:
        return f"each needs 1 place; {self.room()} there"

    def lose(self, node: str) -> None:
        del self.places[node]
        for actor in self.actors:
            actor.dead |= actor.node == node

    def _place(self) -> None:
        for reference in self.references:
            taken = [actor.node for actor in self.actors if not actor.dead]
            free = [node for node, places in self.places.items() if taken.count(node) < places]
            if reference.time is None and not reference.actor.dead and free:
                reference.actor.node = free[0]
                reference.time = self.now + abs(self.boot(int(reference.value)))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Nodes]:
    """The crew reads the clock of its nodes."""
    current: list[Nodes] = []
    monkeypatch.setattr(crew_module, "monotonic", lambda: current[-1].now)
    return current


def crew_on(clock: list[Nodes], nodes: Nodes, workers: int, retries: int = 1) -> tuple[Crew, list[str]]:
    warnings: list[str] = []
    clock.append(nodes)
    return Crew(nodes, workers, wait_seconds=100.0, retries=retries, warn=warnings.append), warnings


TASKS = [1000.0 + n for n in range(9)]


def test_all_workers_share_the_tasks(clock: list[Nodes]) -> None:
    nodes = Nodes({"a": 2, "b": 1})
    crew, warnings = crew_on(clock, nodes, 3)
    crew.ready()
    assert nodes.now == BOOT
    assert crew.map("verb", TASKS, lambda index, result: None) == [2 * task for task in TASKS]
    assert not warnings and nodes.now == BOOT + TASKS[2] + TASKS[5] + TASKS[8], (
        "three rounds of three tasks, of which the last is the longest"
    )


def test_timed_tasks_have_a_node_for_themselves(clock: list[Nodes]) -> None:
    """Only one of two workers on a node works at a time; the worker of the other node works beside it."""
    nodes = Nodes({"a": 2, "b": 1})
    crew, _ = crew_on(clock, nodes, 3)
    crew.ready()
    busy_nodes: list[set[str]] = []
    ask = nodes.ask

    def watched(actor: Any, verb: str, task: Any) -> Any:
        reference = ask(actor, verb, task)
        busy = [r.actor.node for r in nodes.references if r.value in TASKS and r.time is not None and r.time > nodes.now]
        assert len(busy) == len(set(busy)), "two tasks at a time on a node"
        busy_nodes.append(set(busy))
        return reference

    nodes.ask = watched  # type: ignore[method-assign]
    assert crew.map("verb", TASKS, lambda index, result: None, alone=True) == [2 * task for task in TASKS]
    assert {"a", "b"} in busy_nodes


def test_the_tasks_of_a_lost_node_are_done_by_others(clock: list[Nodes]) -> None:
    nodes = Nodes({"a": 2, "b": 1}, [(1500.0, lambda n: n.lose("a"))])
    crew, warnings = crew_on(clock, nodes, 3)
    crew.ready()
    seen: list[int] = []
    assert crew.map("verb", TASKS, lambda index, result: seen.append(index)) == [2 * task for task in TASKS]
    assert sorted(seen) == list(range(9)), "each task is done once"
    assert sum("died during verb" in text for text in warnings) == 2 and any("1 of 3 workers" in text for text in warnings)


def test_a_node_that_joins_late_gets_tasks(clock: list[Nodes]) -> None:
    def join(nodes: Nodes) -> None:
        nodes.places["c"] = 1

    nodes = Nodes({"a": 1, "b": 1}, [(1500.0, lambda n: n.lose("b")), (3500.0, join)])
    crew, _ = crew_on(clock, nodes, 2)
    crew.ready()
    crew.map("verb", TASKS, lambda index, result: None)
    late = [actor for actor in nodes.actors if actor.node == "c"]
    assert len(late) == 1 and late[0].index == 1, "the lost worker's seat"
    assert sum(workers[-1] == 1 for workers in nodes.done_by.values() if workers) > 2


def test_without_a_node_for_wait_seconds_the_run_ends_and_says_what_is_missing(clock: list[Nodes]) -> None:
    nodes = Nodes({"a": 1}, [(1500.0, lambda n: n.lose("a"))])
    crew, _ = crew_on(clock, nodes, 1)
    crew.ready()
    finished: list[int] = []
    with pytest.raises(SecateurError, match=r"cluster.workers.*each needs 1 place; 0 there.*finished work is kept"):
        crew.map("verb", TASKS, lambda index, result: finished.append(index))
    assert finished == [0] and 1600 < nodes.now < 1605


def test_a_node_may_join_at_the_last_moment(clock: list[Nodes]) -> None:
    def join(nodes: Nodes) -> None:
        nodes.places["b"] = 1

    nodes = Nodes({"a": 1}, [(1500.0, lambda n: n.lose("a")), (1599.0, join)])
    crew, _ = crew_on(clock, nodes, 1)
    crew.ready()
    assert crew.map("verb", TASKS, lambda index, result: None) == [2 * task for task in TASKS]


def test_the_run_starts_with_the_workers_that_have_room(clock: list[Nodes]) -> None:
    nodes = Nodes({"a": 2})
    crew, warnings = crew_on(clock, nodes, 3)
    crew.ready()
    assert nodes.now == BOOT, "it does not wait for a place that does not exist"
    assert [text for text in warnings if text.startswith("2 of 3 workers")]


def test_it_waits_only_briefly_for_places_that_others_use(clock: list[Nodes]) -> None:
    nodes = Nodes({"a": 2})
    nodes.actors.append(SimulatedActor(99, node="a"))  # of another user
    crew, _ = crew_on(clock, nodes, 2)
    crew.ready()
    assert START_SECONDS <= nodes.now <= START_SECONDS + 2
    assert crew.map("verb", TASKS[:2], lambda index, result: None) == [2 * task for task in TASKS[:2]]


def test_a_start_without_any_room_fails(clock: list[Nodes]) -> None:
    crew, _ = crew_on(clock, Nodes({}), 2)
    with pytest.raises(SecateurError, match=r"no worker came up within 100 seconds"):
        crew.ready()


def test_a_worker_that_dies_while_it_starts_is_replaced_as_often_as_retries_allow(clock: list[Nodes]) -> None:
    nodes = Nodes({"a": 1}, boot=lambda started: -1.0 if started < 2 else BOOT)
    crew, _ = crew_on(clock, nodes, 1, retries=2)
    crew.ready()
    assert len(nodes.actors) == 3
    crew, _ = crew_on(clock, Nodes({"a": 1}, boot=lambda started: -1.0), 1, retries=2)
    with pytest.raises(SecateurError, match=r"worker 0 did not start \(it could not be made\)"):
        crew.ready()


def test_a_task_that_kills_its_workers_ends_the_run(clock: list[Nodes]) -> None:
    def kill(nodes: Nodes) -> None:
        for actor in nodes.actors:
            actor.dead = True

    nodes = Nodes({"a": 1}, [(500.0, kill), (1000.0, kill)])
    crew, _ = crew_on(clock, nodes, 1, retries=1)
    crew.ready()
    with pytest.raises(SecateurError, match="verb: a task lost 2 workers in a row"):
        crew.map("verb", TASKS, lambda index, result: None)


@settings(max_examples=60)
@given(
    tasks=st.lists(st.floats(100, 200), min_size=1, max_size=12),
    workers=st.integers(1, 5),
    changes=st.lists(st.tuples(st.floats(0, 1500), st.sampled_from("abc"), st.booleans()), max_size=8),
)
def test_every_task_is_done_once_and_in_order_whatever_happens_to_nodes(
    tasks: list[float], workers: int, changes: list[tuple[float, str, bool]]
) -> None:
    """Node ``z`` is always there; the others join and leave at any time."""

    def change(node: str, joins: bool) -> Callable[[Nodes], None]:
        def event(nodes: Nodes) -> None:
            if joins:
                nodes.places[node] = 2
            elif node in nodes.places:
                nodes.lose(node)

        return event

    nodes = Nodes({"a": 1, "z": 1}, [(time, change(node, joins)) for time, node, joins in changes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew_module, "monotonic", lambda: nodes.now)
        crew = Crew(nodes, workers, wait_seconds=10.0, retries=20, warn=lambda text: None)
        seen: list[int] = []
        crew.ready()
        assert crew.map("verb", tasks, lambda index, result: seen.append(index)) == [2 * task for task in tasks]
    assert sorted(seen) == list(range(len(tasks)))
    assert nodes.now <= sum(tasks) + (len(changes) + 1) * (200 + BOOT) + 60, "no slower than node z alone plus the lost work"


@pytest.mark.parametrize(
    ("request_of_worker", "expected"),
    [
        ({"CPU": 1.0}, 4 + 7),
        ({"CPU": 4.0, "GPU": 1.0}, 1 + 1),  # limited by CPUs; GPUs of one node do not help another
        ({"CPU": 0.5, "GPU": 1.0}, 2 + 8),
        ({"CPU": 0.0, "GPU": 0.1}, 20 + 80),  # 0.1 + 0.1 + ... is not 1 in binary
        ({"CPU": 1.0, "accelerator_type:A100": 0.001}, 0 + 7),
        ({"CPU": 8.0}, 0),  # 11 in total, but no node has 8
    ],
)
def test_room_is_counted_node_by_node(request_of_worker: dict[str, float], expected: int) -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 7.0, "GPU": 8.0, "accelerator_type:A100": 1.0}]
    assert room(nodes, request_of_worker) == expected


def test_amounts_are_described() -> None:
    assert described({"CPU": 0.5, "GPU": 1.0}, 3) == "1.5 CPU, 3 GPU"
    assert total_described([{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}], {"CPU": 1.0, "GPU": 1.0, "label": 1.0}) == "6 CPU, 1 GPU, 0 label"
