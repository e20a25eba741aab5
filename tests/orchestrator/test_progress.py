"""The display follows the stages of a run, on a terminal and without one."""

import io
import json

import pytest
from rich.progress import Task, TaskID

from orchestrator.progress import Progress, TimeColumn, training_note
from orchestrator.tail import Tail


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def lines_of(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


def says(line: str, *parts: str) -> bool:
    return all(part in line for part in parts)


def test_a_stage_prints_a_line_when_it_starts_and_when_it_ends(out, clock):
    with Progress(out, live=False, clock=clock) as progress, progress.stage("collect", 2) as stage:
        stage.advance(1, "blocks.0")
        clock.now += 5
        stage.advance(1, "blocks.1")
    started, done = lines_of(out)
    assert started.startswith("collect: ") and "2" in started
    assert done.startswith("collect: ") and says(done, "5.0 s", "2/2", "100 %", "blocks.1")


def test_many_quick_steps_print_few_lines(out, clock):
    with Progress(out, live=False, clock=clock) as progress, progress.stage("collect", 10_000) as stage:
        for _ in range(10_000):
            clock.now += 0.001
            stage.advance()
    assert len(lines_of(out)) <= 2 + 10


def test_slow_steps_print_a_line_after_ten_seconds(out, clock):
    with Progress(out, live=False, clock=clock) as progress, progress.stage("solve", 1000) as stage:
        for _ in range(4):
            clock.now += 6
            stage.advance(1, "blocks.0")
    assert says(lines_of(out)[1], "solve: ", "2/1000", "12 s", "blocks.0")
    assert len(lines_of(out)) == 4


def estimates(progress: Progress, clock: Clock, seconds: list[float], total: int, stored: int = 0) -> list[float | None]:
    """The remaining seconds that a stage tells after each of its steps; the first ``stored`` are read from the store at once."""
    told = []
    with progress.stage("solve", total) as stage:
        if stored:
            clock.now += 0.01
            stage.advance(stored, "from the store")
        for spent in seconds:
            clock.now += spent
            stage.advance()
            told.append(stage.remaining_seconds)
    return told


@pytest.mark.parametrize("stored", [0, 40])
def test_the_remaining_time_is_that_of_the_steps_after_the_first_which_may_compile_kernels(out, clock, stored):
    told = estimates(Progress(out, live=False, clock=clock), clock, [10.0, *[3.0] * 23], 24 + stored, stored)
    first = 2 if stored == 0 else 1  # 3 steps have to be done, and the stored ones are
    assert told[:first] == [None] * first and told[-1] is None
    assert told[first:-1] == pytest.approx([3.0 * (24 - done) for done in range(first + 1, 24)])


def test_tasks_that_end_together_on_eight_workers_are_no_speed(out, clock):
    wave = [10.0, *[0.01] * 7]
    told = estimates(Progress(out, live=False, clock=clock), clock, wave * 10, 80)
    assert told[:8] == [None] * 8, "8 in 10 s are not 7 in 0.07 s"
    assert told[16] == pytest.approx(63 * 20 / 16, rel=0.01), "after 2 more waves: 16 tasks in 20 s"


def test_the_remaining_time_is_told_only_when_a_tenth_of_the_stage_is_done(out, clock):
    told = estimates(Progress(out, live=False, clock=clock), clock, [13.0] * 30, 264)
    assert told[:26] == [None] * 26 and told[26] == pytest.approx(13.0 * (264 - 27))


@pytest.mark.parametrize("live", [False, True])
def test_the_planned_time_is_told_when_a_stage_starts(out, clock, live):
    with Progress(out, live=live, clock=clock) as progress:
        with progress.stage("collect", 2, planned_seconds=31.0) as stage:
            if not live:
                assert lines_of(out) == ["collect: started, 2 tasks, planned 31 s"]
            stage.advance(2)
        with progress.stage("recover", None, planned_seconds=125.0):
            pass
        with progress.stage("export", 1, planned_seconds=0.02) as stage:
            stage.advance()
    assert "planned 2 min 05 s" in out.getvalue() or live
    assert [line for line in lines_of(out) if line.startswith("export: started")] == ([] if live else ["export: started, 1 task"])


def test_a_terminal_shows_the_planned_time_until_there_is_an_estimate(clock):
    stage = Progress(io.StringIO(), live=True, clock=clock).stage("collect", 10, planned_seconds=31.0)
    column, row = TimeColumn(), Task(TaskID(0), "collect", 10, 0, lambda: 0.0, fields={"stage": stage})
    stage.state, stage._started = "running", clock.now
    clock.now += 5
    assert column.render(row).plain == "5.0 s, planned 31 s"
    stage._first, stage.done, clock.now = (5.0, 1), 3, clock.now + 4
    assert column.render(row).plain == "9.0 s, 14 s left", "2 steps in 4 s, and 7 are left"
    stage.state = "done"
    assert "planned" not in column.render(row).plain


def test_stages_follow_each_other_and_continue_under_the_same_name(out, clock):
    with Progress(out, live=False, clock=clock) as progress:
        with progress.stage("evaluate", 2) as stage:
            clock.now += 1
            stage.advance(2, "from the store")
        with progress.stage("export", 1) as stage:
            stage.advance()
        clock.now += 50
        with progress.stage("evaluate", 1) as stage:
            clock.now += 2
            stage.advance(1)
    lines = lines_of(out)
    assert [line.partition(": ")[0] for line in lines] == ["evaluate", "evaluate", "export", "export", "evaluate"]
    assert says(lines[1], "1.0 s", "2/2", "from the store") and says(lines[3], "1/1")
    assert says(lines[4], "3.0 s", "3/3"), "the time of both parts, without the 50 s between them"


@pytest.mark.parametrize("live", [False, True])
def test_an_exception_marks_the_stage_as_failed_and_passes(out, clock, live):
    progress = Progress(out, live=live, clock=clock)
    with pytest.raises(ValueError, match="no weights"), progress, progress.stage("solve", 4) as stage:
        stage.advance()
        raise ValueError("no weights")
    assert stage.state == "failed"
    assert ("✗" in out.getvalue()) if live else says(lines_of(out)[-1], "solve: ", "failed", "ValueError", "1/4")


def test_notes_and_warnings_are_separate_lines(out):
    with Progress(out, live=False) as progress:
        progress.note("2 workers")
        progress.warn("a stored file was damaged")
    assert lines_of(out) == ["2 workers", "warning: a stored file was damaged"]


def test_a_terminal_shows_every_stage_and_markup_in_notes_is_text(out):
    with Progress(out, live=True) as progress:
        progress.warn("[bold]not bold[/bold]")
        with progress.stage("collect", 3) as stage:
            stage.advance(3, "blocks.0[red]")
        with progress.stage("recover", None):
            pass
    shown = out.getvalue()
    assert all(text in shown for text in ("[bold]not bold[/bold]", "collect", "recover", "✓", "blocks.0[red]", "3/3"))


def test_a_terminal_shows_the_last_stages_as_bars_and_the_others_as_lines(out, clock):
    with Progress(out, live=True, clock=clock) as progress:
        for index in range(50):
            with progress.stage(f"round {index}: solve", 1) as stage:
                stage.advance()
        rows = [task.description for task in progress._display._rich.tasks]
    assert rows == [f"round {index}: solve" for index in range(30, 50)]
    assert all(f"round {index}: solve: done" in out.getvalue() for index in range(30))


def test_a_stream_that_is_not_a_terminal_gets_lines(out):
    with Progress(out) as progress, progress.stage("collect", 1) as stage:
        stage.advance()
    assert "\x1b" not in out.getvalue()


# ------------------------------------------------------------------------------------------------------------------- following


def line(step: int, steps: int = 40) -> str:
    return json.dumps({"epoch": 1, "step": step, "steps": steps, "loss": 0.25, "lr": 0.001, "images_per_second": 812.4}) + "\n"


@pytest.mark.parametrize("live", [False, True])
def test_a_stage_follows_a_file_that_is_created_later_and_ends_in_half_a_line(tmp_path, out, live):
    path = tmp_path / "progress.jsonl"
    with Progress(out, live=live) as progress, progress.stage("recover", None) as stage:
        with stage.follow(path):
            path.write_text(line(1) + line(7) + line(8)[:20], encoding="utf-8")
        assert (stage.done, stage.total, stage.note) == (7, 40, "epoch 1, loss 0.25, 812 images/s")


def test_a_stage_without_a_file_does_not_move(tmp_path, out):
    with Progress(out, live=False) as progress, progress.stage("recover", None) as stage, stage.follow(tmp_path / "none.jsonl"):
        pass
    assert (stage.done, stage.total, stage.state) == (0, None, "done")


def test_following_ends_when_the_training_fails(tmp_path, out):
    path = tmp_path / "progress.jsonl"
    with pytest.raises(RuntimeError), Progress(out, live=False) as progress, progress.stage("recover", None) as stage, stage.follow(path):
        path.write_text(line(3), encoding="utf-8")
        raise RuntimeError
    assert (stage.done, stage.state) == (3, "failed")


def test_a_tail_reads_each_complete_line_once(tmp_path):
    path = tmp_path / "progress.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    with path.open("w", encoding="utf-8") as file:
        seen = []
        text = "".join(line(step) for step in range(1, 30))
        for start in range(0, len(text), 37):  # lines arrive in pieces
            file.write(text[start : start + 37])
            file.flush()
            seen += [entry["step"] for entry in tail.read()]
    assert seen == list(range(1, 30))
    assert tail.read() == []


def test_a_tail_starts_over_with_a_file_that_became_shorter(tmp_path):
    path = tmp_path / "progress.jsonl"
    tail = Tail(path)
    path.write_text(line(1) + line(2), encoding="utf-8")
    assert len(tail.read()) == 2
    path.write_text(line(1), encoding="utf-8")
    assert [entry["step"] for entry in tail.read()] == [1]


def test_a_tail_skips_lines_that_are_not_json_objects(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b"not json\n\n[1]\n\xff\xfe\n" + line(4).encode())
    assert [entry["step"] for entry in Tail(path).read()] == [4]


def test_a_note_contains_only_what_is_known():
    assert training_note({"step": 3}) == ""
    assert training_note({"epoch": 2, "loss": 0.123456}) == "epoch 2, loss 0.1235"
