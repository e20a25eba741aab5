"""The page of a sweep: it shows the numbers of its points, loads nothing, keeps what users provide as text, and is made of files alone."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from sweep_cases import NASTY, report, runs_of, sweep_of, write_report

from orchestrator import compare
from orchestrator.sweep.callback import status_of, write
from orchestrator.sweep.comparison import compare as compared_runs
from orchestrator.sweep.gather import compared_points
from orchestrator.sweep.page import headline_of, page
from orchestrator.sweep.records import State, fail_point, finish_point, read_points, start_point, write_command
from workers.errors import ConfigError, SecateurError


class Page(HTMLParser):
    """What a browser would load, the rows of the tables, the links to other pages, and the data of the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.data: dict[str, str] = {}
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        self.inside.append(given.get("id", "script") if tag == "script" else tag)
        self.loaded += [value for name, value in given.items() if name in ("src", "srcset", "data", "action")]
        if tag == "link":
            self.loaded.append(given["href"])
        elif "href" in given:
            self.links.append(given["href"])
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        known = tag if tag != "script" else self.inside[-1]
        while self.inside and self.inside.pop() != known:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside and (self.inside[-1] in ("script", "chart", "figures")):
            self.data[self.inside[-1]] = self.data.get(self.inside[-1], "") + data
        elif "style" not in self.inside:
            self.text += data
            if self.rows and {"td", "th"} & set(self.inside):
                self.rows[-1][-1] += data.strip().replace("\N{NO-BREAK SPACE}", " ")


def read(sweep: Path) -> Page:
    written = write(sweep)
    assert written is not None
    return Page(written.read_text(encoding="utf-8"))


def three_points(folder: Path) -> Path:
    """Two seeds at a sparsity of 0.5 with accuracies 0.9 and 0.8, and one at 0.75."""
    points = [([f"pruner.target.sparsity={s}", f"seed={seed}"], report(sparsity=s, seed=seed, accuracy=top1)) for s, seed, top1 in POINTS]
    return sweep_of(folder, points)


POINTS = ((0.5, 0, 0.9), (0.5, 1, 0.8), (0.75, 0, 0.7))


# ------------------------------------------------------------------------------------------------------------------ the page


def test_the_table_has_a_row_for_each_setting_with_its_points_inside(tmp_path: Path) -> None:
    shown = read(three_points(tmp_path))
    head, *rows = shown.rows
    assert head[:4] == ["report", "pruner.target.sparsity", "top-1, one-shot", "top-1, recovered"]
    assert [row[:4] for row in rows] == [
        ["2 runs", "0.5", "75.0 ± 5.0 %", "85.0 ± 5.0 %"],
        ["point 0, seed 0", "0.5", "80.0 %", "90.0 %"],
        ["point 1, seed 1", "0.5", "70.0 %", "80.0 %"],
        ["point 2", "0.75", "60.0 %", "70.0 %"],
    ]


def test_rows_within_noise_of_the_best_are_marked(tmp_path: Path) -> None:
    """1,000 images: a lead of two points is noise, one of ten is not."""
    points = [([f"pruner.target.sparsity={s}"], report(sparsity=s, accuracy=top1)) for s, top1 in ((0.5, 0.9), (0.6, 0.88), (0.75, 0.8))]
    assert [row[3] for row in read(sweep_of(tmp_path, points)).rows[1:]] == ["90.0 %", "≈ 88.0 %", "80.0 %"]


def test_every_link_leads_to_a_report_also_when_the_folder_moves(tmp_path: Path) -> None:
    """Names with characters that addresses escape."""
    three_points(tmp_path / "before #1")
    (tmp_path / "before #1").rename(tmp_path / "after é?")
    sweep = tmp_path / "after é?" / "sweeps" / "today"
    links = read(sweep).links
    assert len(links) == 3
    for link in links:
        assert (sweep / unquote(link)).read_text(encoding="utf-8") == "<p>the report</p>"


def test_the_page_loads_nothing_and_holds_plotly_once(tmp_path: Path) -> None:
    html = page(compared_points(three_points(tmp_path)), tmp_path)
    assert Page(html).loaded == ["data:,"] and not {"iframe", "img"} & set(Page(html).tags)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert len(re.findall(r"plotly\.js v\d", html)) == 1


def test_what_users_provide_cannot_become_markup(tmp_path: Path) -> None:
    points: list[tuple[list[str], dict[str, Any]]] = []
    for index, text in enumerate((NASTY, f"{NASTY}2")):
        content = report(pruner=text, environment={"device": text}, accuracy=0.9 - index / 10)
        content["experiment"][NASTY] = text
        points.append(([f"name={text}", f"+{NASTY}={text}"], content))
    sweep = sweep_of(tmp_path, points, command=f"python -m orchestrator {NASTY}")
    fail_point(sweep, start_point(sweep, 2, [f"name={NASTY}"]), RuntimeError(NASTY))
    html = page(compared_points(sweep), sweep)
    shown = Page(html)
    assert '<script>alert("x")' not in html and "</script>&" not in html
    assert shown.tags.count("script") == 4
    assert shown.text.count(NASTY) >= 6
    labels = [row["label"] for row in json.loads(shown.data["chart"])["rows"]]
    assert all("<script>" not in label and "&lt;script&gt;" in label for label in labels), "plotly reads HTML"
    assert all("<" not in group for group in json.loads(shown.data["chart"])["groups"])


def test_the_figure_and_the_sorting_have_the_numbers_of_the_table(tmp_path: Path) -> None:
    sweep = three_points(tmp_path)
    shown, numbers = json.loads(read(sweep).data["chart"]), json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    assert [row["values"]["top1_recovered"] for row in shown["rows"]] == [pytest.approx([0.85, 0.05]), [0.7, 0.0]]
    assert shown["fronts"] == numbers["fronts"] and shown["fronts"]["top1_recovered sparsity"] == [0, 1]
    assert shown["fronts"]["top1_one_shot top1_recovered"] == [0]
    assert shown["first"] == {"x": "sparsity", "y": "top1_recovered"}
    titles = [column["title"] for column in shown["columns"]]
    order = dict(zip(["report", "axis", *titles], shown["order"], strict=True))
    assert order["axis"] == [0, 1] and order["top-1, recovered"] == [pytest.approx(0.85), 0.7]


def test_sweep_json_is_strict_and_has_every_number(tmp_path: Path) -> None:
    sweep = three_points(tmp_path)
    broken = report(sparsity=0.9, seed=0, loss_increase={"measured": "inf"})
    broken["stages"][-1]["metrics"]["images_per_second"] = "nan"
    finish_point(
        sweep, start_point(sweep, 3, ["name=case", "pruner.target.sparsity=0.9"]), write_report(tmp_path / "case-3", broken).parent
    )
    assert write(sweep) is not None

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    numbers = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [row["place"] for row in numbers["rows"]] == [{"pruner.target.sparsity": text} for text in ("0.5", "0.75", "0.9")]
    assert numbers["rows"][0]["values"]["file_bytes"] == {"mean": 4000, "spread": 0, "count": 2}
    assert [run["seed"] for run in numbers["rows"][0]["runs"]] == ["0", "1"]
    assert "images_per_second" not in numbers["rows"][2]["values"]


@pytest.mark.parametrize("points", [1, 3, 200])
def test_few_and_many_points_are_a_page(tmp_path: Path, points: int) -> None:
    reports = [report(sparsity=0.3 + index / 1000, accuracy=0.9 - index / 1000) for index in range(points)]
    compared = compared_runs(runs_of(tmp_path, *reports), "many")
    shown = Page(page(compared, tmp_path))
    assert len(shown.rows) == 1 + points and headline_of(compared).startswith(f"{points} run")
    assert ("select" in shown.tags) == (points > 1)


# ------------------------------------------------------------------------------------------------------------- records, failures


def test_failed_points_are_listed_with_their_settings_and_errors(tmp_path: Path) -> None:
    sweep = three_points(tmp_path)
    bad = fail_point(sweep, start_point(sweep, 3, ["name=case", "seed=-1"]), ConfigError("seed: expected 0 or more, got -1"))
    worse = fail_point(sweep, start_point(sweep, 4, ["name=case", "seed=7"]), ValueError("no such thing\nand a trace"))
    assert bad == "point 3 failed (seed=-1): seed: expected 0 or more, got -1"
    assert worse == f"point 4 failed (seed=7): ValueError: no such thing (traceback: {sweep / 'points' / '4.txt'})"
    shown = read(sweep)
    assert shown.rows[-2:] == [
        ["3", "seed=-1", "seed: expected 0 or more, got -1"],
        ["4", "seed=7", "ValueError: no such thing (traceback)"],
    ]
    assert "ValueError: no such thing\nand a trace" in (sweep / unquote(shown.links[-1])).read_text(encoding="utf-8")
    assert "2 points without a result" in shown.text


def test_the_status_of_a_sweep_is_2_only_if_all_that_failed_had_bad_settings(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for number, error in enumerate((ConfigError("a"), ConfigError("b"), SecateurError("c"))):
        fail_point(sweep, start_point(sweep, number, []), error)
    points = read_points(sweep)
    assert [status_of(points[:2]), status_of(points), status_of(points[2:])] == [2, 1, 1]


def test_the_page_of_a_killed_sweep_shows_what_was_done_and_what_had_not_ended(tmp_path: Path) -> None:
    sweep = three_points(tmp_path)
    start_point(sweep, 3, ["name=case", "pruner.target.sparsity=0.9"])
    (sweep / "points" / ".4.json.host.1").write_text('{"number": 4, "over', encoding="utf-8")  # half a record, under its temporary name
    shown = read(sweep)
    assert shown.rows[0][1] == "pruner.target.sparsity" and shown.rows[-1][:2] == ["3", "pruner.target.sparsity=0.9"]
    assert "has not ended" in shown.rows[-1][2]
    assert len(shown.rows) == 1 + 4 + 2
    (last,) = [point for point in read_points(sweep) if point.has_failed]
    assert last.state is State.STARTED and status_of([last]) == 1


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "{}", '{"number": 1}', '{"number": 1, "overrides": 2, "state": "done", "started": 0}', '{"state": "odd"}', "\0"],
)
def test_a_damaged_record_is_a_point_that_failed(tmp_path: Path, content: str) -> None:
    sweep = three_points(tmp_path)
    (sweep / "points" / "1.json").write_text(content, encoding="utf-8")
    shown = read(sweep)
    assert shown.rows[-1][0] == "1" and "1.json is damaged" in shown.rows[-1][2]
    assert [point.number for point in read_points(sweep) if point.has_failed] == [1]


def test_a_report_that_is_gone_or_damaged_is_listed_and_the_others_are_shown(tmp_path: Path) -> None:
    sweep = three_points(tmp_path)
    (tmp_path / "case-0" / "report.json").unlink()
    (tmp_path / "case-1" / "report.json").write_text("{", encoding="utf-8")
    shown = read(sweep)
    assert [row[0] for row in shown.rows if len(row) == 3] == ["point", "0", "1"]
    assert "No such file" in shown.text and "a damaged file" in shown.text


def test_points_without_reports_leave_no_page(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    write_command(sweep, "python -m orchestrator mode=plan", [])
    finish_point(sweep, start_point(sweep, 0, []), None)
    assert write(sweep) is None and not (sweep / "sweep.html").exists()


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = three_points(tmp_path)
    (sweep / "sweep.html").mkdir()
    assert write(sweep) is None
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {sweep}: the page of the sweep was not written: ") and told.count("\n") == 1
    assert f"{sweep / 'sweep.html'}" in told and "folder that is in its place" in told


def test_processes_that_write_the_page_at_once_leave_a_whole_one(tmp_path: Path) -> None:
    """Eight processes, each of which replaces the page several times while it is read."""
    sweep = three_points(tmp_path)
    write(sweep)
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            status = 0 if all(write(sweep) is not None for _ in range(3)) else 1
            os._exit(status)
        children.append(child)
    while children:
        assert (sweep / "sweep.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
        json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
        ended, status = os.waitpid(-1, 0)
        assert status == 0
        children.remove(ended)
    assert sorted(path.name for path in sweep.iterdir()) == ["points", "sweep.html", "sweep.json"]


# ---------------------------------------------------------------------------------------------------------------------- compare


def test_compare_reads_directories_files_and_sweeps_and_names_what_it_skips(tmp_path: Path) -> None:
    write_report(tmp_path / "a", report(sparsity=0.5))
    file = write_report(tmp_path / "b", report(sparsity=0.75))
    sweep = three_points(tmp_path / "c")
    (tmp_path / "store").mkdir()
    foreign = write_report(tmp_path / "d", {"name": "other"})
    text, written, skipped = compare.compare([tmp_path / "a", tmp_path / "a" / "report.json", file, sweep, tmp_path / "store", foreign])
    assert written == tmp_path / "sweep.html" and len(Page(written.read_text(encoding="utf-8")).links) == 5
    assert len(text.splitlines()) == 2 + 2
    assert skipped == [
        f"{tmp_path / 'store'}: it has no report.json",
        f'{foreign}: expected the report.json of a run, got a file without "experiment"',
    ]


def test_compare_writes_where_it_is_told_or_into_the_sweep(tmp_path: Path) -> None:
    sweep = three_points(tmp_path)
    assert compare.compare([sweep])[1] == sweep / "sweep.html"
    assert compare.compare([tmp_path / "case-0"], tmp_path / "there" / "deep")[1] == tmp_path / "there" / "deep" / "sweep.html"
    assert compare.compare([tmp_path / "case-0"])[1] == tmp_path / "sweep.html"


def test_compare_of_a_sweep_in_which_every_point_failed_lists_them(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    fail_point(sweep, start_point(sweep, 0, ["seed=-1"]), ConfigError("seed: expected 0 or more"))
    assert compare.compare([sweep, sweep])[1] == sweep / "sweep.html"
    _, written, _ = compare.compare([sweep])
    shown = Page(written.read_text(encoding="utf-8"))
    assert shown.rows == [["point", "settings", "error"], ["0", "seed=-1", "seed: expected 0 or more"]]
    assert "0 runs; 1 point without a result." in shown.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "a damaged file"),
        ("[]", "without a JSON object"),
        ('{"name": "x"}', 'without "experiment"'),
        ('{"name": "x", "experiment": {}, "asked": {}, "stages": [3]}', 'whose "stages" are none'),
        ('{"name": "x", "experiment": {}, "asked": {}, "stages": [], "rounds": [1]}', 'whose "rounds" are none'),
    ],
)
def test_foreign_and_damaged_files_are_one_line(tmp_path: Path, content: str | None, words: str, monkeypatch: Any, capsys: Any) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "report.json")])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1 and said.startswith("error: ") and words in said


@pytest.mark.parametrize("options", [[], ["--grid"], ["--by", "pruner.target.sparsity"]])
def test_reports_of_earlier_versions_are_compared(tmp_path: Path, options: list[str], monkeypatch: Any, capsys: Any) -> None:
    """From before units, sizes, files and environments were reported."""
    old = {name: report()[name] for name in ("name", "experiment", "asked", "stages")}
    write_report(tmp_path / "old", old)
    write_report(tmp_path / "new", report(sparsity=0.75, accuracy=0.8))
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "old"), str(tmp_path / "new"), *options])
    compare.main()
    assert "80.0" in capsys.readouterr().out
    assert len(Page((tmp_path / "sweep.html").read_text(encoding="utf-8")).rows) == 3
