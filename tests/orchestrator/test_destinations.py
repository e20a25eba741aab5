"""Every setting that a verb reads while it is carried out changes what its results are called.

What is read is seen by looking at the settings while a run works. Then each of these is changed by itself, and the algorithm goes through
its stages again with the records of that run, so that nothing is computed: only the names of results are compared.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from budget_cases import steady
from identity_cases import changed
from tiny import tiny_overrides

from orchestrator import pipeline
from orchestrator.composing import experiment_of
from orchestrator.identity.sources import VERBS
from orchestrator.launch import run_experiment
from orchestrator.progress import Progress
from orchestrator.run import Run
from orchestrator.store import Store
from workers import messages
from workers.errors import ConfigError
from workers.records import Record

UNITS = ["recovery=none", "pruner.target.removed=0.3"]
TIMED = ["pruner.target.within=null", "latency.seconds=0.001", "latency.widths=2", "latency.spread=0.5"]
TRAINED = ["training.epochs=1", "training.ranks=1", "training.warmup_epochs=0", "data.train_size=100", "data.image_size=32"]
BUDGET = ["pruner.target.of=latency", "pruner.target.removed=0.5", "latency.seconds=0.001", "latency.spread=0.5"]
RUNS = {
    "cap": ["pruner=cap", "pruner.block_size=16", "recovery=adamw", "recovery.epochs=1", "recovery.ranks=1"],
    "obc": ["pruner=obc", "recovery=none", "pruner.target.sparsity=0.5", "pruner.target.pattern='2:4'", "loss=sampled"],
    "guided": ["pruner=guided", "recovery=none", "loss=sampled"],
    "sequential": ["pruner=magnitude", "recovery=none", "loss=sampled", "pruner.refit.order=sequential"],
    "budget": ["pruner=magnitude", "recovery=none", *BUDGET],
    "sparsegpt": ["pruner=sparsegpt", "recovery=none"],
    "features": ["pruner=magnitude", "loss=features", "recovery=features", "recovery.epochs=1", "recovery.ranks=1"],
    "sosp_i": ["pruner=sosp_i", *UNITS],
    "taylor": ["pruner=taylor", *UNITS, "pruner.target.solver=exact", "pruner.target.of=memory"],
    "unit_magnitude": ["pruner=unit_magnitude", *UNITS, "pruner.target.min_fraction=0.1"],
    "unit_random": ["pruner=unit_random", *UNITS],
    "halp": ["pruner=halp", *UNITS, *TIMED],
    "convolutions": ["pruner=unit_magnitude", *UNITS, "model=digits_convnext", "recovery@training=convnext_scratch", *TRAINED],
}
SLOW = ("sparsegpt", "features", "taylor", "unit_random", "unit_magnitude")  # as others are; for `make test-all`
PARTS = ("model", "data", "pruner", "recovery", "latency")
SCALARS = ("loss", "seed")  # of tasks
OTHER = {"pruner.target.pattern": "groups:2", "data.image_size": 24}  # values that have to be sound
# What may be read without a trace in the name.
EXEMPT = {
    "model.checkpoint": "its content counts",
    "model.include": "which layers are pruned stands in no weight; each is named for itself",
    "model.exclude": "likewise",
    "model.stem_and_head": "likewise",
    "pruner.target.per_layer": "of the driver; what it amounts to is in the name of an allocation",
    "pruner.target.within": "when the closed loop ends; each choice on the way is named by its correction",
}


def settings_of(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    """Each dataclass among the settings below ``value``, and its dotted name."""
    if is_dataclass(value):
        yield value, path
        for field in fields(value):
            yield from settings_of(getattr(value, field.name), f"{path}.{field.name}")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], dict[str, set[str]]]:
    """Settings of an experiment that are read from now on, by the verb that reads them."""
    verbs: list[str] = []
    found: dict[str, set[str]] = defaultdict(set)

    def watch(kind: type, names: dict[str, str]) -> None:
        def read(self: Any, name: str) -> Any:
            if verbs and name in names:
                found[verbs[-1]].add(names[name])
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", read)

    def carried_out(verb: str, function: Callable) -> Callable:
        def carry_out(*arguments: Any, **more: Any) -> Any:
            verbs.append(verb)
            try:
                return function(*arguments, **more)
            finally:
                verbs.pop()

        return carry_out

    def begin(experiment: Any) -> dict[str, set[str]]:
        for part in PARTS:
            for settings, path in settings_of(getattr(experiment, part), part):
                watch(type(settings), {field.name: f"{path}.{field.name}" for field in fields(settings)})
        for task in vars(messages).values():
            if is_dataclass(task) and task.__name__.endswith("Task"):
                watch(task, {field.name: field.name for field in fields(task) if field.name in SCALARS})
        for verb, entries in VERBS.items():
            for entry in entries:
                place, _, name = entry.rpartition(".")
                owner: Any = import_module(place.removesuffix(".Worker"))
                owner = owner.Worker if place.endswith(".Worker") else owner
                monkeypatch.setattr(owner, name, carried_out(verb, getattr(owner, name)))
        return found

    return begin


class Replay:
    """The stages of a finished run once more, with its records under whatever names are asked for."""

    def __init__(self, run: Run, imported: Record, found: list[tuple[str, Record]]) -> None:
        self.run, self.imported = run, imported
        self.records: dict[str, list[Record]] = defaultdict(list)
        for verb, record in found:
            self.records[verb].append(record)

    def names(self, monkeypatch: pytest.MonkeyPatch, path: str = "") -> dict[str, set[str]]:
        """Fingerprints by verb, with the setting at ``path`` changed."""
        experiment = changed(self.run.experiment, tuple(path.split(".")), OTHER.get(path)) if path else self.run.experiment
        named: dict[str, list[str]] = defaultdict(list)

        def find(_: Run, to: Any) -> Record:
            verb = to.directory.relative_to(self.run.store.root).parts[0]
            named[verb].append(to.fingerprint)
            known = self.records[verb]
            return replace(known[(len(named[verb]) - 1) % len(known)], fingerprint=to.fingerprint)

        with Progress() as progress, monkeypatch.context() as patch:
            patch.setattr(Run, "find", find)
            again = replace(self.run, experiment=experiment, progress=progress, store=Store(self.run.store.root))
            imported = pipeline.import_model(again)
            if not path.startswith("model."):  # what another model's other stages are called follows from what it is called itself
                with suppress(ConfigError, KeyError):  # no run beyond this stage, or none that these records tell of
                    pipeline.prune(again, imported)
        return {verb: set(names) for verb, names in named.items()}


def finished(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """A run, and what it stored in the order in which it was asked for."""
    begun: list[tuple[Run, Record]] = []
    found: list[tuple[str, Any]] = []
    prune, find = pipeline.prune, Run.find

    def watched(run: Run, imported: Record) -> Any:
        begun.append((run, imported))
        return prune(run, imported)

    def asked(run: Run, to: Any) -> Record | None:
        found.append((to.directory.relative_to(run.store.root).parts[0], to))
        return find(run, to)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "prune", watched)
        patch.setattr(Run, "find", asked)
        run_experiment(experiment, {}, "")
    (run, imported) = begun[0]
    return Replay(run, imported, [(verb, run.store.find(to)) for verb, to in found])  # type: ignore[misc]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RUNS])
def test_whatever_a_verb_reads_is_in_the_name_of_its_results(
    name: str, looked_at: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steady(monkeypatch)
    gone = ("recovery=", "pruner.", *(("model.", "data.image_size") if any(o.startswith("model=") for o in RUNS[name]) else ()))
    base = [override for override in tiny_overrides(tmp_path) if not override.startswith(gone)]
    experiment = experiment_of(base + RUNS[name])
    reads = looked_at(experiment)
    replay = finished(experiment, monkeypatch)
    read = {verb: set(paths) - EXEMPT.keys() for verb, paths in reads.items()}
    assert len(set().union(*read.values())) > 10 and {"import", "evaluate", "compare"} < read.keys()
    before, compared = replay.names(monkeypatch), 0
    for path in sorted(set().union(*read.values())):
        if is_dataclass(value_at(experiment, path)):
            continue  # its own settings are among them
        after = replay.names(monkeypatch, path)
        for verb in (verb for verb, paths in read.items() if path in paths and verb in after):
            if is_handed_on(experiment, verb, path):
                continue
            compared += 1
            assert not before[verb] & after[verb], f"{verb} reads {path}, which is not in the name of its results"
    assert compared > 20


def is_handed_on(experiment: Any, verb: str, path: str) -> bool:
    """Whether a verb gives a setting to something that does not look at it: augmentation outside of training, losses and noise to methods
    that know none."""
    if path.removeprefix("data.") in experiment.data.training_only:
        return verb != "train"
    statistic, reads_data = getattr(experiment.pruner, "statistic", None), getattr(experiment.pruner, "reads_data", True)
    blind = {"collect": statistic is not None and not statistic.by_gradients, "collect_units": not reads_data}
    return path in SCALARS and blind.get(verb, False)


def value_at(experiment: Any, path: str) -> Any:
    for part in path.split("."):
        experiment = getattr(experiment, part)
    return experiment


def test_a_choice_by_a_table_is_called_by_the_widths_in_it(tmp_path: Path) -> None:
    """13 and 16 widths of 64 units both begin at 4 and end at 64: on one plateau the same two are measured, and others offered."""
    from orchestrator.allocation.latency_table import evenly_spaced
    from orchestrator.shrinking import choose_units

    assert {(len(found), found[0], found[-1]) for found in (evenly_spaced(64, 13), evenly_spaced(64, 16))} == {(13, 4, 64), (16, 4, 64)}
    named: list[str] = []

    def find(to: Any) -> None:
        named.append(to.fingerprint)
        raise StopIteration

    for widths in (13, 16):
        experiment = experiment_of(["pruner=halp", f"latency.widths={widths}"])
        times = SimpleNamespace(dense_ms=1.0, table=SimpleNamespace(model_ms=1.0, measured=("at 4", "at 64")))
        run = SimpleNamespace(experiment=experiment, steps_left=1, store=Store(tmp_path), once=lambda _stage, to, _make: find(to))
        with pytest.raises(StopIteration):
            choose_units(run, experiment.pruner, None, "ranking", times)  # type: ignore[arg-type]
    assert len(set(named)) == 2
