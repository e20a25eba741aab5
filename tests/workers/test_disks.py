"""Files that a disk does not take: one line with the path and a remedy, and nothing left behind."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from disk_cases import files_of_at_most

from workers.disks import CAUSES, full, refusal, writing
from workers.errors import SecateurError
from workers.files import append_lines, copy_file, read_lines, write_tensors, write_text


@pytest.mark.parametrize("kind", ["text", "tensors", "copy"])
def test_a_file_that_is_cut_short_is_one_line_and_leaves_the_file_before_it(kind: str, tmp_path: Path) -> None:
    path, large = tmp_path / "a" / "result", tmp_path / "large"
    write_text(path, "before")
    large.write_bytes(bytes(100_000))
    write = {
        "text": lambda: write_text(path, "x" * 100_000),
        "tensors": lambda: write_tensors(path, {"w": torch.zeros(25_000)}),
        "copy": lambda: copy_file(large, path),
    }[kind]
    with files_of_at_most(20_000), pytest.raises(SecateurError) as refused:
        write()
    assert str(refused.value).startswith(f"{path}: expected a file of any size") and "\n" not in str(refused.value)
    assert path.read_text() == "before" and list(path.parent.iterdir()) == [path]
    write()
    assert path.stat().st_size >= 100_000


def test_half_a_line_of_a_full_disk_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    append_lines(path, [{"a": 1}])
    with files_of_at_most(20), pytest.raises(SecateurError, match="expected a file of any size"):
        append_lines(path, [{"b": "x" * 100}])
    append_lines(path, [{"c": 2}, {"d": 3}])
    assert read_lines(path) == [{"a": 1}, {"c": 2}, {"d": 3}] and read_lines(tmp_path / "none") == []


@pytest.mark.parametrize("number", CAUSES, ids=lambda number: errno.errorcode[number])
def test_every_error_of_a_disk_says_where_and_what_to_do(number: int, tmp_path: Path) -> None:
    """Whoever raises it: Python, a library that hides it behind an error of its own, one in Rust, or a task of Ray."""

    class OfTask(Exception):
        cause: BaseException

    of_python = OSError(number, os.strerror(number), str(tmp_path / "temporary"))
    hidden = RuntimeError("unexpected pos 20800 vs 20694")
    hidden.__context__ = of_python
    of_rust = ValueError(f"Error while serializing: I/O error: some words (os error {number})")
    of_task = OfTask("a long trace")
    of_task.cause = of_python
    told = set()
    for error in (of_python, hidden, of_rust, of_task):
        with pytest.raises(SecateurError) as refused, writing(tmp_path):
            raise error
        told.add(str(refused.value).partition(" MB free")[0].rpartition(", ")[0] or str(refused.value))
    (line,) = told
    assert line.startswith(f"{tmp_path}: expected {CAUSES[number][0]}, got {os.strerror(number).lower()}") and "\n" not in line
    assert str(refusal(of_python)).startswith(f"{tmp_path / 'temporary'}: expected")
    assert str(refusal(OSError(number, "words"))).startswith("output: expected")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_a_library_that_hides_why_it_cannot_write_is_understood_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = os.statvfs(tmp_path)
    with pytest.raises(RuntimeError, match="unexpected pos"), writing(tmp_path / "epoch1"):
        raise RuntimeError("unexpected pos 20800 vs 20694")
    with pytest.raises(SecateurError, match="epoch1: expected a disk that takes the file"), writing(tmp_path / "epoch1"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 17088 vs 16976")
    assert full(tmp_path / "epoch1") is None
    nothing_left = os.statvfs_result((*used[:3], 0, 0, *used[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: nothing_left)
    with pytest.raises(SecateurError) as refused, writing(tmp_path / "epoch1"):
        raise RuntimeError("unexpected pos 20800 vs 20694")
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / 'epoch1'}: expected room on the disk, got no space left on device, 0 MB free; free space")
    assert str(full(tmp_path / "epoch1")) == line


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "gone", "x"), SecateurError("one line")):
        with pytest.raises(type(error)) as kept, writing(tmp_path):
            raise error
        assert kept.value is error
    assert refusal(ValueError("a bug")) is None and refusal(FileNotFoundError(errno.ENOENT, "gone", "x")) is None
