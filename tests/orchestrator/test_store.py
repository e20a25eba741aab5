"""Fingerprints, records and what happens to damaged ones."""

import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.store import Store, fingerprint
from workers.errors import DamagedResult
from workers.files import finish, read_record, read_result, write_tensors
from workers.pruners.base import Scope, Target
from workers.records import KINDS, MODEL, Destination, ImportedModel, Metrics, Record


def stored(store: Store, **inputs: object) -> Record[ImportedModel]:
    to = store.destination("import", **inputs)
    return finish(to, ImportedModel(["a note"]), 0.0, write_tensors(to.directory / MODEL, {"w": torch.arange(4.0)}))


def test_a_fingerprint_sees_values_types_and_names_and_nothing_else() -> None:
    a = Target(0.5, Scope.GLOBAL)
    assert fingerprint("v", t=a) == fingerprint("v", t=Target(0.5, Scope.GLOBAL))
    others = [fingerprint("v", t=Target(0.6, Scope.GLOBAL)), fingerprint("v", t=Target(0.5, Scope.UNIFORM)), fingerprint("w", t=a)]
    others += [fingerprint("v", u=a), fingerprint("v", t={"sparsity": 0.5}), fingerprint("v", t=a, more=None)]
    assert len({fingerprint("v", t=a), *others}) == 7
    with pytest.raises(TypeError, match="cannot fingerprint"):
        fingerprint(object())


def test_what_was_finished_is_found_and_what_was_not_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = stored(store, a=1)
    found = store.find(store.destination("import", a=1))
    assert found is not None and found.numbers == ImportedModel(["a note"]) and not found.computed and record.computed
    assert store.find(store.destination("import", a=2)) is None
    unfinished = store.destination("import", a=3)
    write_tensors(unfinished.directory / MODEL, {"w": torch.zeros(1)})
    assert store.find(unfinished) is None, "files without a record are no result"


@pytest.mark.parametrize(
    "damage",
    ["flip a byte", "cut the file", "delete the file", "cut the record", "other inputs", "a number that is not known", "another verb"],
)
def test_damage_is_noticed_and_can_be_discarded(tmp_path: Path, damage: str) -> None:
    record = stored(Store(tmp_path), a=1)
    model, entry = record.file, record.directory / "record.json"
    if damage == "flip a byte":
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        model.write_bytes(content)
    elif damage == "cut the file":
        model.write_bytes(model.read_bytes()[:-3])
    elif damage == "delete the file":
        model.unlink()
    elif damage == "cut the record":
        entry.write_text(entry.read_text()[:-20])
    else:
        changed = {"other inputs": {"fingerprint": "0" * 64}, "another verb": {"verb": "guess"}}
        content = json.loads(entry.read_text())
        content["numbers"] |= {"height": 1} if damage == "a number that is not known" else {}
        entry.write_text(json.dumps(content | changed.get(damage, {})))
    store = Store(tmp_path)
    with pytest.raises(DamagedResult) as caught:
        store.find(store.destination("import", a=1))
    store.discard(caught.value)
    assert store.find(store.destination("import", a=1)) is None


def test_no_byte_of_a_record_can_change_unnoticed(tmp_path: Path) -> None:
    """Every bit of every byte, and every length: it is damaged, or says the same (a blank is another blank)."""
    metrics = Metrics({"top1": 0.25, "top5": 1.0, "loss": 1.5e-7}, 2.5)
    entry = finish(Destination("f" * 64, tmp_path), metrics, 0.0).directory / "record.json"
    whole = entry.read_bytes()
    cut = [whole[:length] for length in range(len(whole))]
    flipped = [whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for at in range(len(whole)) for bit in range(8)]
    said_the_same = 0
    for content in [*cut, *flipped]:
        entry.write_bytes(content)
        try:
            read = read_record(tmp_path)
        except DamagedResult:
            continue
        assert read is not None and read.numbers == metrics and read.fingerprint == "f" * 64
        said_the_same += 1
    assert said_the_same <= 1 + len(whole.split(b"\n"))


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a better accuracy": lambda entries: entries["numbers"]["metrics"].update(top1=0.999),
    "no numbers": lambda entries: entries["numbers"]["metrics"].clear(),
    "no entries of numbers": lambda entries: entries["numbers"].clear(),
    "a text for a number": lambda entries: entries["numbers"]["metrics"].update(top1="0.25"),
    "freed": lambda entries: entries.update(freed=True),
    "another time": lambda entries: entries.update(seconds=0.0),
    "without its checksum": lambda entries: entries.pop("sha256"),
    "no object": lambda entries: [entries],
    "nothing": lambda entries: None,
}


@pytest.mark.parametrize("edit", [*EDITS, "empty", "nested", "not text"])
def test_a_record_that_was_edited_is_discarded(edit: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    to = store.destination("assess", a=1)
    entry = finish(to, Metrics({"top1": 0.25}, 2.5), 0.0).directory / "record.json"
    if edit in EDITS:
        entries = json.loads(entry.read_text())
        changed = EDITS[edit](entries)
        entry.write_text(json.dumps(changed if edit in ("no object", "nothing") else entries))
    else:
        entry.write_bytes({"empty": b"", "nested": b'{"a":' * 100_000, "not text": b"\xff\xfe\x00"}[edit])
    with pytest.raises(DamagedResult) as caught:
        store.find(to)
    assert str(caught.value).startswith(f"{to.directory}: record.json ")
    assert store.discard(caught.value) and store.find(to) is None


def test_a_worker_refuses_a_file_that_changed_after_it_was_written(tmp_path: Path) -> None:
    record = stored(Store(tmp_path), a=1)
    write_tensors(record.file, {"w": torch.ones(4)})
    with pytest.raises(DamagedResult, match="does not match its checksum"):
        read_result(record)


def test_only_results_inside_the_store_can_be_discarded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not inside the store"):
        Store(tmp_path / "store").discard(DamagedResult(tmp_path / "elsewhere", "x"))


def test_the_numbers_of_every_verb_survive_their_record(tmp_path: Path) -> None:
    """Made up from the types of their fields; tuples come back as lists, as in any JSON."""
    values = {
        "str": "text",
        "int": 3,
        "float": 0.5,
        "float | None": None,
        "dict[str, float] | None": {"a": 0.5},
        "dict[str, float]": {"a": 0.5},
    }
    values |= {
        "dict[str, int]": {"a": 3},
        "dict[str, list[int]]": {"a": [3]},
        "dict[str, list[float]]": {"a": [0.5]},
        "list[str]": ["text"],
        "list[tuple[float, float]]": [[0.5, 0.5]],
    }
    values |= {"list[dict[str, Any]]": [{"a": 3}], "dict[str, Any]": {"a": 3}}
    for verb, kind in KINDS.items():
        numbers = kind(**{field.name: values[str(field.type)] for field in fields(kind)})
        written = finish(Destination(verb, tmp_path / verb), numbers, 0.0)
        read = read_record(tmp_path / verb)
        assert read is not None and read.numbers == written.numbers and read.verb == verb


def test_a_clock_that_is_set_during_a_task_changes_when_it_started_and_not_how_long_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    record = finish(Destination("f", tmp_path), ImportedModel([]), started)
    assert 0 <= record.seconds <= time.monotonic() - started
    assert record.started == 1000.0 - record.seconds
