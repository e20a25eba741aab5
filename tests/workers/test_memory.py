"""The measured peak memory in records."""

import json
from pathlib import Path
from time import sleep

import torch

from workers.files import finish
from workers.memory import give_back, peak_bytes, peak_so_far, resident_bytes, watched
from workers.records import Destination, JoinedModel

MEGABYTE = 2**20


def test_the_peak_includes_an_allocation_that_was_freed() -> None:
    give_back()  # else what earlier tests freed may serve the allocation
    before = resident_bytes()
    assert before is not None
    with peak_bytes() as peak:
        held = torch.ones(64 * MEGABYTE)  # 256 MB, written to
        sleep(0.05)
        del held
    assert peak.bytes is not None and 250 * MEGABYTE < peak.bytes - before < 300 * MEGABYTE
    give_back()
    assert resident_bytes() < before + 30 * MEGABYTE


def test_memory_that_is_never_touched_and_pages_of_files_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"1" * (64 * MEGABYTE))
    with peak_bytes() as peak:
        start = resident_bytes()
        untouched = torch.empty(64 * MEGABYTE)
        mapped = torch.from_file(str(file), size=64 * MEGABYTE, dtype=torch.uint8)
        assert int(mapped.view(torch.int64).max()) == int.from_bytes(b"1" * 8)
    assert untouched.numel() and start is not None and peak.bytes is not None and peak.bytes - start < 10 * MEGABYTE


def test_a_verb_starts_without_the_memory_that_the_last_one_freed() -> None:
    class Body:
        device = torch.device("cpu")

        @watched
        def look(self, _: None):
            return resident_bytes()

    pieces = [torch.ones(16 * 1024) for _ in range(3000)]  # 64 kB each: too small to go back to the system one by one
    kept = pieces[-1]
    del pieces
    before = resident_bytes()
    assert before - Body().look(None) > 100 * MEGABYTE and len(kept)


def test_a_record_has_the_peak_of_its_own_verb(tmp_path: Path) -> None:
    class Body:
        device = torch.device("cpu")

        @watched
        def work(self, megabytes: int):
            held = torch.ones(megabytes * MEGABYTE // 4)
            sleep(0.05)
            del held
            return finish(Destination("f", tmp_path / str(megabytes)), JoinedModel(), 0.0)

    much, little = Body().work(200), Body().work(1)
    assert much.peak_bytes - little.peak_bytes > 150 * MEGABYTE
    assert json.loads((tmp_path / "200" / "record.json").read_text())["peak_bytes"] == much.peak_bytes
    assert peak_so_far() is None and Body.work.__name__ == "work"
