"""The list of runs is made of files alone, says what is true of each run, and survives whatever the files contain."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
from example_report import example
from rich.console import Console

from orchestrator.progress import Progress
from orchestrator.report.write import write_report
from orchestrator.status import live as live_module
from orchestrator.status.listing import SILENT_SECONDS, runs_in
from orchestrator.status.live import LiveState, reason
from orchestrator.status.page import write_page
from orchestrator.status.state import STATE, Accuracy, State, read_state
from orchestrator.status.table import show_status

NOW = 1_800_000_000.0
ELSEWHERE = State(
    name="digits",
    prunes="CAP, 75 % of the weights, seed 0",
    phase="running",
    host="another-machine",
    pid=1,
    process_started=NOW - 100,
    started=NOW - 99,
    updated=NOW - 5,
    stage="collect",
    done=3,
    total=12,
    planned=0.25,
    error="",
    accuracy=None,
)


def listed(output: Path, state: State, name: str = "digits-12345678", now: float = NOW):
    """What the list says about a run with this state."""
    (output / name).mkdir(parents=True, exist_ok=True)
    state.write(output / name)
    (run,) = [run for run in runs_in(output, now) if run.directory == name]
    return run


class Page(HTMLParser):
    """Elements, attributes and text of a page, as a browser sees them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [str(found[attribute]) for _, found in self.elements if attribute in found]

    @property
    def refreshes(self) -> bool:
        return "refresh" in self.values("http-equiv")


def shown(output: Path) -> str:
    """What ``mode=status`` prints."""
    with Console(width=300, file=open(os.devnull, "w"), record=True) as console:
        show_status(output, console)
    return console.export_text()


# ------------------------------------------------------------------------------------------------------- alive or gone


def test_a_run_on_another_machine_is_judged_by_its_last_sign_of_life(tmp_path):
    running = listed(tmp_path, replace(ELSEWHERE, updated=NOW - SILENT_SECONDS + 1))
    assert running.kind == "running" and "another-machine" in running.what and "1 min 59 s ago" in running.what
    silent = listed(tmp_path, replace(ELSEWHERE, updated=NOW - 3600))
    assert silent.kind == "stopped" and silent.what.startswith("stopped at collect") and "1 h 00 min ago" in silent.what


def test_a_run_on_this_machine_is_judged_by_its_process_whatever_its_last_sign_of_life(tmp_path):
    here = replace(ELSEWHERE, host=socket.gethostname(), updated=NOW - 3600)
    me = psutil.Process()
    assert listed(tmp_path, replace(here, pid=me.pid, process_started=me.create_time())).kind == "running"
    assert listed(tmp_path, replace(here, pid=me.pid, process_started=me.create_time() - 60)).kind == "stopped", "a number used again"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    begun = psutil.Process(gone.pid).create_time()
    while psutil.Process(gone.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert listed(tmp_path, replace(here, pid=gone.pid, process_started=begun)).what == "stopped at collect", "dead, but not yet reaped"
    gone.wait()
    assert listed(tmp_path, replace(here, pid=gone.pid, process_started=begun)).kind == "stopped"


def test_a_run_that_has_ended_needs_no_process(tmp_path):
    assert listed(tmp_path, replace(ELSEWHERE, phase="done", updated=0.0)).what == "done"
    failed = listed(tmp_path, replace(ELSEWHERE, phase="failed", error="the disk is full", updated=0.0))
    assert failed.what == "failed at collect: the disk is full"


# --------------------------------------------------------------------------------------------------------- other files


def test_a_run_without_a_state_is_done_if_it_has_a_report(tmp_path):
    write_report(example(), tmp_path / "old-12345678")
    (run,) = runs_in(tmp_path)
    assert (run.name, run.kind, run.prunes) == ("digits", "done", "CAP")
    assert run.accuracy == Accuracy("top1", 0.97, 0.965) and run.accuracy_words == "97.0 % → 96.5 %"


def test_a_run_without_a_state_and_without_a_report_stopped_and_other_folders_are_no_runs(tmp_path):
    (tmp_path / "old-12345678").mkdir()
    (tmp_path / "old-12345678" / "config.json").write_text("{}")
    (tmp_path / "store" / "import").mkdir(parents=True)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "notes.txt").write_text("state.json")
    assert [(run.directory, run.kind) for run in runs_in(tmp_path)] == [("old-12345678", "stopped")]


DAMAGED = {
    "half": b'{"name": "digits", "pru',
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "null": b"null",
    "a key is missing": b'{"name": "digits", "accuracy": null}',
    "deep": b"[" * 100_000,
    "another type": json.dumps({**ELSEWHERE.__dict__, "done": "three"}).encode(),
    "another phase": json.dumps({**ELSEWHERE.__dict__, "phase": "sleeping"}).encode(),
    "not finite": json.dumps({**ELSEWHERE.__dict__, "updated": float("inf")}).encode(),
    "too large": json.dumps({**ELSEWHERE.__dict__, "started": 10**400}).encode(),
    "negative": json.dumps({**ELSEWHERE.__dict__, "started": -1e9}).encode(),
    "more than all": json.dumps({**ELSEWHERE.__dict__, "planned": 5.0}).encode(),
    "an accuracy of another type": json.dumps({**ELSEWHERE.__dict__, "accuracy": {"metric": 1, "dense": "x", "final": []}}).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_called_so_and_the_other_runs_are_shown(content, tmp_path):
    for name, file in (("a-12345678", STATE), ("b-12345678", "report.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(content)
    replace(ELSEWHERE, phase="done").write((tmp_path / "good-12345678").mkdir() or tmp_path / "good-12345678")
    assert {run.directory: run.what for run in runs_in(tmp_path)} == {
        "a-12345678": "state.json is damaged",
        "b-12345678": "report.json is damaged",
        "good-12345678": "done",
    }
    assert "state.json is damaged" in Page(write_page(tmp_path)).text and "report.json is damaged" in shown(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_damaged_too(tmp_path):
    (tmp_path / "a-12345678" / STATE).mkdir(parents=True)
    (run,) = runs_in(tmp_path)
    assert run.kind == "damaged"


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_loads_nothing_and_asks_for_itself_only_while_something_is_running(tmp_path):
    listed(tmp_path, replace(ELSEWHERE, updated=time.time()))
    running = Page(write_page(tmp_path))
    assert running.refreshes and "collect 3/12" in running.text and "25 % of the planned time" in running.text
    listed(tmp_path, replace(ELSEWHERE, phase="done", accuracy=Accuracy("knn", 0.5, 0.25)))
    ended = Page(write_page(tmp_path))
    assert not ended.refreshes and "50.0 % → 25.0 %" in ended.text and "k-NN accuracy" in ended.text
    for found in (running, ended):
        assert not found.values("src") and all(not re.match(r"[a-z]+:(?!,)|//", href) for href in found.values("href"))
        assert "url(" not in found.text and "@import" not in found.text


def test_whatever_users_provide_is_text(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> [red]x[/red] {{ 7 * 7 }}"
    folder = "javascript:alert(1)?#&%20 \"'<b>-12345678"
    state = replace(ELSEWHERE, name=evil, prunes=evil, stage=evil, host=evil, error=evil, accuracy=Accuracy(evil, 0.5, 0.5))
    for phase in ("running", "failed", "done"):
        listed(tmp_path, replace(state, phase=phase, updated=time.time()), folder)
        write_report(example(), tmp_path / folder)
        found = Page(write_page(tmp_path))
        assert not {"img", "b"} & {tag for tag, _ in found.elements}
        assert [tag for tag, _ in found.elements].count("script") == 1, "the page's own"
        assert evil in found.text
        links = [href for href in found.values("href") if href != "data:,"]
        assert links and all((tmp_path / unquote(href)).exists() for href in links), "each link leads to a file"
        assert not any(href.startswith("javascript:") for href in links)
        assert "[red]x[/red]" in shown(tmp_path)


def test_two_hundred_runs_are_a_page_that_reads_no_report_of_a_run_with_a_state(tmp_path):
    """Reports may be large, so they must not be read: these cannot be."""
    for index in range(200):
        listed_at = tmp_path / f"digits-{index:08d}"
        listed_at.mkdir()
        replace(ELSEWHERE, phase="done", started=NOW + index).write(listed_at)
        (listed_at / "report.json").write_text("{")
    runs = runs_in(tmp_path)
    assert [run.directory for run in runs] == [f"digits-{index:08d}" for index in reversed(range(200))], "the newest first"
    assert [tag for tag, _ in Page(write_page(tmp_path)).elements].count("tr") == 201
    assert "200 done" in shown(tmp_path)


def test_no_runs_are_a_sentence_and_no_folder_is_made(tmp_path):
    assert "no runs" in shown(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------------------------------------------------- the driver


def test_the_state_follows_the_stages_and_their_planned_seconds(tmp_path):
    """1 s of import, 3 s of collect and 6 s of solve: after the import and a half of collect, 1 + 1.5 of 10."""
    seen = []
    with (
        LiveState(tmp_path, "digits", "CAP", {"import": 1.0, "collect": 3.0, "solve": 6.0}) as live,
        Progress(open(os.devnull, "w"), watcher=live) as progress,
    ):
        seen.append(read_state(tmp_path))
        progress.entered("import")
        with progress.stage("collect", 4) as stage:
            seen.append(read_state(tmp_path))
            stage.advance(2)
            live._write()
            seen.append(read_state(tmp_path))
        with progress.stage("solve", None) as stage:
            seen.append(read_state(tmp_path))
            stage.reach(1, 3)
            live._write()
            seen.append(read_state(tmp_path))
    seen.append(read_state(tmp_path))
    assert [(state.stage, state.done, state.total) for state in seen[:-1]] == [
        ("", 0, None),
        ("collect", 0, 4),
        ("collect", 2, 4),
        ("solve", 0, None),
        ("solve", 1, 3),
    ]
    assert [state.planned for state in seen] == pytest.approx([0.0, 0.1, 0.25, 0.4, 0.6, 1.0])
    assert [state.phase for state in seen] == ["running"] * 5 + ["done"]


def test_signs_of_life_come_while_nothing_else_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(live_module, "STATE_SECONDS", 0.02)
    (tmp_path / "digits-1").mkdir()
    with LiveState(tmp_path / "digits-1", "digits"):
        first = read_state(tmp_path / "digits-1").updated
        while read_state(tmp_path / "digits-1").updated == first:
            time.sleep(0.01)
    assert runs_in(tmp_path)[0].kind == "done" and (tmp_path / "index.html").exists()


def test_a_state_that_cannot_be_written_ends_no_run(tmp_path):
    with LiveState(tmp_path / "nowhere" / "digits-1", "digits") as live:
        live.entered("collect")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("the first line\nand more"), "the first line"),
        (ValueError(), "ValueError"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "terminated (SIGTERM)"),
        (SystemExit(15), "terminated (SIGTERM)"),
        (ValueError("x" * 10_000), "x" * 500),
    ],
)
def test_why_a_run_failed_is_one_line(error, words, tmp_path):
    assert reason(error) == words
    with pytest.raises(type(error)), LiveState(tmp_path, "digits") as live:
        live.entered("solve")
        raise error
    state = read_state(tmp_path)
    assert (state.phase, state.stage, state.error) == ("failed", "solve", words)


def test_an_accuracy_that_is_no_number_leaves_the_file_readable(tmp_path):
    report = example()
    broken = replace(report, stages=[replace(stage, metrics={"top1": float("nan")}) for stage in report.stages])
    with LiveState(tmp_path, "digits") as live:
        live.achieved(broken)
    assert read_state(tmp_path).accuracy == Accuracy("top1", None, None)
