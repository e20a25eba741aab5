"""The report tells what a run achieved, in words and pictures, and never more than was measured."""

import io
import json
import math
import re
from dataclasses import replace
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from example_report import example, layer, metrics
from rich.console import Console

from orchestrator.report import FileSizes, LossIncrease, StageResult, plain, sentences, summary_table, verdict, write_report
from orchestrator.report_page import figures
from orchestrator.report_words import standard_error

NASTY = '<script>alert("x")</script>&<b>'


def said(report, *words: str) -> str:
    """The only sentence with all these words."""
    (found,) = [sentence for sentence in sentences(report) if all(word in sentence for word in words)]
    return found


def stages(dense: dict, one_shot: dict, recovered: dict | None = None) -> list[StageResult]:
    named = {"dense": dense, "one_shot": one_shot} | ({"recovered": recovered} if recovered else {})
    return [StageResult(name, values, 1.0) for name, values in named.items()]


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
    assert {"accuracy", "loss_increase", "sparsity", "loss_curves", "timeline", "seconds", "training_0"} == set(drawn)
    assert {f"figure-{name}" for name in drawn} == {found for found in page.ids if found.startswith("figure-")}


def test_the_figures_cannot_end_their_script_element(page):
    assert "\\u003cbr>" in page.scripts[0] and "<" not in page.scripts[0]


def test_the_page_says_the_verdict_and_every_sentence(page):
    assert verdict(example()) in page.text
    assert all(sentence in page.text for sentence in sentences(example()))


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
    assert "<b>" not in json.dumps([trace.get("name") for figure in figures(report).values() for trace in figure["data"]])


def test_report_json_holds_every_number_and_is_strict(tmp_path):
    report = example(loss_increase=LossIncrease(math.inf, math.nan, "cross-entropy"))
    write_report(report, tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["loss_increase"] == {"predicted": "inf", "measured": "nan", "unit": "cross-entropy"}
    assert read["layers"][0]["curve"][3] == pytest.approx([0.3, 0.01 * math.expm1(1.2)])
    assert read["stages"][1]["metrics"] == report.stages[1].metrics
    assert read["verdict"] == verdict(report)


# --------------------------------------------------------------------------------------------------------------- missing parts


MISSING = {
    "everything": example(),
    "160 layers": example(blocks=40),
    "no recovery": example(stages=stages(metrics(0.9), metrics(0.8)), curves={}),
    "headless": example(
        stages=stages({"knn": 0.9, "agreement": 1.0, "loss": 0.0, "test_samples": 100}, {"knn": 0.8, "agreement": 0.7, "loss": 0.1})
    ),
    "no metrics": example(stages=stages({}, {})),
    "no stages": example(stages=[]),
    "no layers": example(layers=[], prunable_weights=0, pruned_weights=0),
    "no curves of layers": example(layers=[replace(layer(0, "mlp.fc1"), curve=[])]),
    "only zeros in a curve": example(layers=[replace(layer(0, "mlp.fc1"), curve=[(0.0, 0.0), (1.0, 0.0)], predicted_loss_increase=0.0)]),
    "no predictions": example(
        layers=[replace(layer(0, "mlp.fc1"), predicted_loss_increase=None)], loss_increase=LossIncrease(None, None, "")
    ),
    "no file": example(sizes=None),
    "no work": example(timeline=[], stage_seconds={}, predicted_stage_seconds={}),
    "all from the store": example(timeline=[replace(task, computed=False) for task in example().timeline]),
    "not finite": example(
        stages=stages(metrics(math.nan, loss=math.nan), metrics(0.1, loss=math.inf)),
        loss_increase=LossIncrease(math.inf, math.nan, "cross-entropy"),
        curves={"recovery": [{"step": 1, "loss": math.nan}, {"step": 2}, {"step": 3, "loss": "nan"}]},
    ),
    "nothing known": example(environment={}, files={}, asked={}, experiment={}, command="", curves={"recovery": []}),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_report_with_missing_parts_is_still_a_page_with_valid_figures_and_a_table(name, tmp_path):
    report = MISSING[name]
    write_report(report, tmp_path)
    for figure in figures(report).values():
        go.Figure(figure)  # plotly refuses unknown properties and bad values
        json.dumps(figure, allow_nan=False)
    Console(file=io.StringIO(), width=80).print(summary_table(report))
    assert verdict(report).endswith(".") and all(sentence.endswith(".") for sentence in sentences(report))


# -------------------------------------------------------------------------------------------------------------------- figures


def test_bars_have_the_sparsities_of_their_layers_few_or_many():
    layers = [layer(index // 4, kind, 0.3 + 0.001 * index) for index in range(100) for kind in ["attn.qkv", "mlp.fc1"][index % 2 :][:1]]
    for count, place, length in ((24, "y", "x"), (100, "x", "y")):
        bars = [trace for trace in figures(example(layers=layers[:count]))["sparsity"]["data"] if trace["type"] == "bar"]
        drawn = {at: value for trace in bars for at, value in zip(trace[place], trace[length], strict=True)}
        assert drawn == {index: found.sparsity for index, found in enumerate(layers[:count])}
        assert [trace["name"] for trace in bars] == ["attn.qkv", "mlp.fc1"]


def test_marks_lie_where_the_layers_ended():
    report = example()
    marks = next(trace for trace in figures(report)["loss_curves"]["data"] if trace["mode"] == "markers")
    assert list(zip(marks["x"], marks["y"], strict=True)) == [(found.sparsity, found.predicted_loss_increase) for found in report.layers]


def test_the_time_line_draws_what_was_computed_and_lists_what_was_read():
    report = example()
    figure = figures(report)["timeline"]
    drawn = {
        (trace["name"], worker, base, seconds)
        for trace in figure["data"]
        for worker, base, seconds in zip(trace["y"], trace["base"], trace["x"], strict=True)
    }
    assert drawn == {("collect", "worker-0", 0.0, 2.0), ("collect", "worker-1", 0.5, 1.5), ("recover", "worker-0", 3.0, 9.0)}


def test_read_work_is_listed_on_the_page(page):
    assert "Read from the store, computed by an earlier run and not drawn: 1 × evaluate." in page.text


def test_predicted_and_measured_seconds_are_drawn_where_both_exist():
    traces = {trace.get("name"): trace for trace in figures(example())["seconds"]["data"]}
    assert dict(zip(traces["predicted"]["y"], traces["predicted"]["x"], strict=True)) == {"collect": 1.5, "recover": 12.0}
    assert dict(zip(traces["measured"]["y"], traces["measured"]["x"], strict=True)) == {"collect": 2.1, "recover": 9.2, "export": 0.1}


# ------------------------------------------------------------------------------------------------------------------ sentences


def test_standard_error_is_that_of_simulated_binomial_differences():
    rng = np.random.default_rng(0)
    differences = rng.binomial(400, 0.9, 200_000) / 400 - rng.binomial(400, 0.9, 200_000) / 400
    assert standard_error(0.9, 0.9, 400) == pytest.approx(differences.std(), rel=0.01)


def test_a_difference_within_one_standard_error_is_called_noise():
    # sqrt(2 * 0.9675 * 0.0325 / 360) = 1.32 points
    assert "0.5 points lower than dense, which is noise: one standard error of such a difference is 1.3 points" in said(
        example(), "Recovered"
    )


def test_a_difference_beyond_one_standard_error_is_stated():
    sentence = said(example(), "One-shot top-1")
    assert "7.0 points lower than dense" in sentence and "noise" not in sentence and "360 test images" in sentence


def test_the_same_difference_is_no_noise_on_more_images():
    report = example(stages=stages(metrics(0.97, test_samples=50_000), metrics(0.965, test_samples=50_000)))
    assert "noise" not in said(report, "One-shot top-1")


def test_without_a_test_size_nothing_is_said_about_noise_but_that():
    report = example(stages=stages(metrics(0.97), metrics(0.9, test_samples=None)))
    assert "number of test images is not known" in said(report, "One-shot top-1")


def test_equal_and_better_accuracies_are_said_so():
    report = example(stages=stages(metrics(0.9), metrics(0.9), metrics(0.95)))
    assert said(report, "One-shot") == "One-shot top-1 accuracy equals that of the dense model."
    assert "5.0 points higher than dense" in said(report, "Recovered")


def test_masked_weights_make_the_file_smaller_not_the_model_faster():
    sentence = said(example(), "masked")
    assert "not faster on cpu (2 threads)" in sentence
    assert "(measured: 900 images/s dense, 900 pruned)" in sentence
    assert "smaller: 27.6 kB instead of 98.3 kB (3.6 times)" in sentence


def test_a_file_that_did_not_shrink_is_admitted():
    assert "not smaller either: 110 kB against 100 kB dense" in said(example(sizes=FileSizes(100_000, 110_000)), "masked")


def test_a_missing_export_is_admitted():
    assert "No file was exported" in said(example(sizes=None), "masked")


def test_zeros_are_given_of_the_prunable_weights_and_of_the_model():
    # 2 blocks of 96*32 + 32*32 + 128*32 + 32*128 weights, three of four zero, and 1000 parameters that cannot be pruned
    sentence = said(example(), "exactly zero")
    assert (
        "18,432 of 24,576 prunable weights are exactly zero (75.00 %)" in sentence
        and "25,576 parameters in all, so this is 72.1 %" in sentence
    )


def test_a_missed_target_is_said_and_rounding_is_not():
    assert "50.00 % was asked for, 75.00 % was reached" in said(example(asked={"sparsity": 0.5}), "missed")
    assert not any("missed" in sentence for sentence in sentences(example(asked={"sparsity": 0.75 + 1 / 24_576})))


@pytest.mark.parametrize(("measured", "words"), [(0.3, "right to a factor of 1.5"), (2.0, "10 times more"), (0.02, "10 times less")])
def test_the_prediction_of_the_loss_is_judged(measured, words):
    assert words in said(example(loss_increase=LossIncrease(0.2, measured, "cross-entropy")), "calibration loss")


def test_a_loss_that_fell_is_no_factor():
    assert "raised it by -0.1" in said(example(loss_increase=LossIncrease(0.2, -0.1, "cross-entropy")), "calibration loss")


def test_an_unmeasured_loss_increase_is_said():
    assert (
        said(example(loss_increase=LossIncrease(0.2, None, "")), "calibration loss")
        == "The true rise of the calibration loss was not measured."
    )


def test_skipped_batches_and_blocks_with_raised_dampening_are_said():
    layers = [
        replace(layer(0, "mlp.fc1"), notes={"blocks_with_raised_dampening": 3}),
        replace(layer(1, "mlp.fc2"), notes={"blocks_with_raised_dampening": 2.0}),
    ]
    report = example(layers=layers, skipped={"calibration batches with non-finite values": 2, "others": 0})
    assert said(report, "Left out") == "Left out: 2 calibration batches with non-finite values."
    assert "5 blocks in 2 layers" in said(report, "positive definite") and "most in blocks.0.mlp.fc1" in said(report, "positive definite")


def test_a_run_without_trouble_does_not_speak_of_trouble():
    assert not any(
        word in sentence for sentence in sentences(example()) for word in ("Left out", "positive definite", "Not measured", "missed")
    )


def test_what_came_from_the_store_is_said():
    assert said(example(), "store").startswith("1 result of an earlier run was read from the store, 3 computed now")


def test_metrics_that_some_stages_lack_are_named():
    report = example(stages=stages(metrics(0.9, loss=None, agreement=None), metrics(0.8, loss=0.3)))
    assert "Not measured: loss of the dense model." in sentences(report)
    assert not any("agreement" in sentence for sentence in sentences(report))  # the dense model agrees with itself


def test_a_run_without_recovery_says_so():
    assert "not recovered" in said(MISSING["no recovery"], "recovered")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("everything", "75.0 % of the prunable weights removed; top-1 accuracy 97.0 % dense, 96.5 % after recovery (90.0 % one-shot)."),
        ("no recovery", "75.0 % of the prunable weights removed; top-1 accuracy 90.0 % dense, 80.0 % without recovery."),
        ("headless", "75.0 % of the prunable weights removed; k-NN accuracy 90.0 % dense, 80.0 % without recovery."),
        ("no metrics", "75.0 % of the prunable weights removed; no accuracy was measured."),
    ],
)
def test_the_verdict_is_one_plain_sentence(name, expected):
    assert verdict(MISSING[name]) == expected


# ---------------------------------------------------------------------------------------------------------------- the table


def test_the_table_shows_what_a_run_is_judged_by_in_eighty_columns():
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(example()))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80

    def row(name: str) -> list[str]:
        (found,) = [line for line in lines if line.strip("│ ").startswith(name)]
        return [cell.strip() for cell in found.strip("│ ").split("│")]

    assert row("one-shot") == ["one-shot", "90.0 %", "99.0 %", "95.0 %", "0.2", "900"]
    assert row("sparsity") == ["sparsity", "75.00 %", "75.00 %"]
    assert row("loss increase") == ["loss increase", "0.2", "0.3"]
    assert row("recover ") == ["recover", "12 s", "9.2 s"]
    assert row("export") == ["export", "–", "0.10 s"]


def test_plain_values_are_what_json_knows():
    class Colour(Enum):
        RED = "red"

    value = {1: (Colour.RED, Path("a/b")), "n": np.float32(0.5), "i": np.int64(3), "b": True, "x": math.nan, "none": None}
    assert plain(value) == {"1": ["red", "a/b"], "n": 0.5, "i": 3, "b": True, "x": "nan", "none": None}
    assert type(plain(np.int64(3))) is int and plain(True) is True
