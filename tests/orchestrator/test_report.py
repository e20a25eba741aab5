"""The page of the report: it loads nothing, what users provide stays text, and its figures show the numbers of the run."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import plotly.graph_objects as go
import pytest
from example_report import MISSING, example, layer
from rich.console import Console

from orchestrator.report import figures
from orchestrator.report.console import summary_table
from orchestrator.report.page import drawn_figures, figure_page
from orchestrator.report.parts import LossIncrease, TaskRun
from orchestrator.report.terms import verb_name
from orchestrator.report.words import sentences, verdict
from orchestrator.report.write import write_report
from workers.records import KINDS

NASTY = '<script>alert("x")</script>&<b>'


class Page(HTMLParser):
    """What a browser would load, and the text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.inside: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        self.ids |= {value or "" for name, value in attributes if name == "id"}
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self.inside:
            self.scripts[-1] += data
        elif "style" not in self.inside:
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return Page(write_report(example(), tmp_path_factory.mktemp("report")).read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------------ the page


def test_the_page_loads_nothing(page):
    assert page.links == ["data:,"]
    assert "link" in page.tags and "iframe" not in page.tags and "img" not in page.tags


def test_the_style_loads_nothing(tmp_path):
    html = write_report(example(), tmp_path).read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_plotly_is_inside_exactly_once(tmp_path):
    html = write_report(example(), tmp_path).read_text(encoding="utf-8")
    assert len(re.findall(r"plotly\.js v\d", html)) == 1
    assert 1_000_000 < len(html) < 8_000_000


def test_every_figure_has_its_place_and_every_place_its_figure(page):
    drawn = json.loads(page.scripts[0])
    assert {"accuracy", "sparsity", "loss_curves", "timeline", "seconds", "training_0"} == set(drawn)
    assert {f"figure-{name}" for name in drawn} == {found for found in page.ids if found.startswith("figure-")}


def test_the_figures_cannot_end_their_script_element(page):
    assert "\\u003cbr" in page.scripts[0] and "<" not in page.scripts[0]


def test_the_page_says_the_verdict_and_every_sentence(page):
    assert all(text in page.text.replace("\N{NO-BREAK SPACE}", " ") for text in [verdict(example()), *sentences(example())])


def test_what_users_provide_cannot_become_markup(tmp_path):
    report = example(
        name=NASTY, command=NASTY, warnings=[NASTY], experiment={NASTY: NASTY}, environment={NASTY: NASTY}, files={NASTY: NASTY}
    )
    report = replace(report, layers=[replace(layer(0, "mlp.fc1"), name=NASTY, notes={NASTY: 1.0})], asked={"sparsity": 0.75, NASTY: NASTY})
    report = replace(report, curves={NASTY: report.curves["recovery"]}, stage_seconds={NASTY: 1.0}, skipped={NASTY: 1})
    report = replace(report, timeline=[replace(task, what=NASTY, verb=NASTY, worker=NASTY) for task in report.timeline])
    html = write_report(report, tmp_path).read_text(encoding="utf-8")
    assert '<script>alert("x")' not in html
    assert Page(html).tags.count("script") == 3
    assert Page(html).text.count(NASTY) >= 10
    assert "<b>" not in json.dumps([trace.get("name") for figure in drawn_figures(report).values() for trace in figure["data"]])


def test_report_json_holds_every_number_and_is_strict(tmp_path):
    report = example(loss_increase=LossIncrease(math.inf, math.nan, "cross-entropy"))
    write_report(report, tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["loss_increase"] == {"predicted": "inf", "measured": "nan", "loss": "cross-entropy"}
    assert read["layers"][0]["curve"][3] == pytest.approx([0.3, 0.01 * math.expm1(1.2)])
    assert read["stages"][1]["metrics"] == report.stages[1].metrics
    assert read["verdict"] == verdict(report)


# --------------------------------------------------------------------------------------------------------------- missing parts


@pytest.mark.parametrize("name", MISSING)
def test_a_report_with_missing_parts_is_still_a_page_with_valid_figures_and_a_table(name, tmp_path):
    report = MISSING[name]
    write_report(report, tmp_path)
    for figure in drawn_figures(report).values():
        go.Figure(figure)  # plotly refuses unknown properties and bad values
        json.dumps(figure, allow_nan=False)
    Console(file=io.StringIO(), width=80).print(summary_table(report))
    assert verdict(report).endswith(".") and all(sentence.endswith(".") for sentence in sentences(report))


# -------------------------------------------------------------------------------------------------------------------- figures


def test_bars_have_the_sparsities_of_their_layers_few_or_many():
    layers = [layer(index // 4, kind, 0.3 + 0.001 * index) for index in range(100) for kind in ["attn.qkv", "mlp.fc1"][index % 2 :][:1]]
    for count, place, length in ((24, "y", "x"), (100, "x", "y")):
        bars = [trace for trace in drawn_figures(example(layers=layers[:count]))["sparsity"]["data"] if trace["type"] == "bar"]
        drawn = {at: value for trace in bars for at, value in zip(trace[place], trace[length], strict=True)}
        assert drawn == {index: found.sparsity for index, found in enumerate(layers[:count])}
        assert [trace["name"] for trace in bars] == ["attn.qkv", "mlp.fc1"]


def test_marks_lie_where_the_layers_ended():
    report = example()
    marks = next(trace for trace in drawn_figures(report)["loss_curves"]["data"] if trace["mode"] == "markers")
    assert list(zip(marks["x"], marks["y"], strict=True)) == [(found.sparsity, found.predicted_loss_increase) for found in report.layers]


def test_the_time_line_draws_what_was_computed_and_lists_what_was_read():
    report = example()
    figure = drawn_figures(report)["timeline"]
    drawn = {
        (trace["name"], worker, base, seconds)
        for trace in figure["data"]
        for worker, base, seconds in zip(trace["y"], trace["base"], trace["x"], strict=True)
    }
    assert drawn == {("collect", "worker-0", 0.0, 2.0), ("collect", "worker-1", 0.5, 1.5), ("recover", "worker-0", 3.0, 9.0)}


def test_every_verb_has_a_colour_of_its_own_but_for_those_with_the_same_part_in_the_algorithm():
    verbs = {verb_name(verb) for verb in KINDS}
    assert verbs == set(figures.VERB_COLOURS)
    alike = [{"solve", "refit"}, {"score", "rank"}, {"allocate", "choose"}, {"join", "shrink"}]
    for first, second in combinations(sorted(verbs), 2):
        apart = math.dist(*(bytes.fromhex(figures.VERB_COLOURS[verb][1:]) for verb in (first, second)))
        assert apart == 0 if {first, second} in alike else apart > 50, (first, second)


def test_work_on_units_is_shown_under_the_name_that_people_know(tmp_path):
    tasks = [TaskRun(verb, "shard 0", "worker 0", 1000.0, 2.0, computed) for verb in KINDS for computed in (True, False)]
    report = example(timeline=tasks)
    names = [trace["name"] for trace in drawn_figures(report)["timeline"]["data"]]
    assert len(names) == len(set(names)) and {"collect", "time"} <= set(names)
    text = Page(write_report(report, tmp_path).read_text(encoding="utf-8")).text
    assert "collect_units" not in text and "3 × collect" in text and "5 × time" in text


@pytest.mark.parametrize(("environment", "told"), [({"workers": 2}, True), ({}, False)])
def test_workers_are_those_of_the_environment_and_not_the_rows_of_the_time_line(environment, told, tmp_path):
    places = ("driver", "rank 0", "worker 0", "worker 1")
    report = example(timeline=[TaskRun("collect", "shard", place, 1000.0, 2.0, True) for place in places], environment=environment)
    text = Page(write_report(report, tmp_path).read_text(encoding="utf-8")).text
    assert ("4 tasks on 2 workers." in text) == told and ("4 tasks." in text) == (not told) and "4 workers" not in text
    assert text.count("2 workers") == (2 if told else 0), "a tile and a line"


def test_read_work_is_listed_on_the_page(page):
    (note,) = re.findall("Read from the store.*?[.]", page.text, flags=re.DOTALL)
    assert "1 × evaluate" in note and "collect" not in note and "recover" not in note


def test_predicted_and_measured_seconds_are_drawn_where_both_exist():
    traces = {trace.get("name"): trace for trace in drawn_figures(example())["seconds"]["data"]}
    assert dict(zip(traces["predicted"]["y"], traces["predicted"]["x"], strict=True)) == {"collect": 1.5, "recover": 12.0}
    assert dict(zip(traces["measured"]["y"], traces["measured"]["x"], strict=True)) == {"collect": 2.1, "recover": 9.2, "export": 0.1}


def test_the_page_with_one_figure_loads_nothing_either():
    page = Page(figure_page(NASTY, figures.figure(300, [go.Bar(x=[1], y=[2])]), [NASTY]))
    assert page.links == ["data:,"] and page.tags.count("script") == 3 and page.text.count(NASTY) == 3
    assert json.loads(page.scripts[0])["figure"]["data"] == [{"type": "bar", "x": [1], "y": [2]}]


# ------------------------------------------------------------------------------------------------------------------- dark mode


@pytest.mark.parametrize("name", ["everything", "mixed", "units, 80 groups"])
def test_every_colour_without_a_hue_has_another_one_in_dark_mode(name):
    """Greys, white and black are colours of text, lines and grounds: on a dark page they would vanish or glare."""
    drawn = json.dumps(drawn_figures(MISSING[name]))
    assert '"white"' not in drawn and '"black"' not in drawn
    greys = {found for found in re.findall(r'"(#[0-9a-f]{6})"', drawn) if is_grey(found)}
    assert figures.INK in greys and greys - {figures.OTHER} <= set(figures.DARK)
    assert not set(figures.DARK) & set(figures.DARK.values())


def is_grey(colour):
    channels = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return max(channels) - min(channels) < 40


def test_the_page_follows_the_readers_colour_scheme(page, tmp_path):
    html = write_report(example(), tmp_path).read_text(encoding="utf-8")
    assert "@media screen and (prefers-color-scheme: dark)" in html
    shades = json.loads(re.search(r"const shades = (\{.*?\});", page.scripts[-1])[1])
    assert shades == figures.DARK
