"""Runs beside each other: rows, means, spreads, fronts and noise agree with numbers that were computed by hand or by brute force."""

import math
import random
from pathlib import Path

import pytest
from sweep_cases import report, runs_of, sweep_of

from orchestrator.sweep.columns import columns_of, values_of
from orchestrator.sweep.comparison import compare, natural
from orchestrator.sweep.gather import compared_points
from orchestrator.sweep.notes import best_of, error_of, notes
from orchestrator.sweep.pareto import front
from orchestrator.sweep.reports import headline, read_report
from orchestrator.sweep.settings import Run, axes_of, seed_of


def titles(compared) -> list[str]:
    return [column.title for column in compared.columns]


# ---------------------------------------------------------------------------------------------------------------- Pareto fronts


@pytest.mark.parametrize("seed", range(20))
def test_the_front_holds_exactly_the_points_that_no_other_beats(seed: int) -> None:
    """Against all pairs, with many equal numbers."""
    draw = random.Random(seed)
    points = [(draw.randrange(8) / 7, draw.randrange(8) / 7) for _ in range(draw.randrange(60))]
    beaten = [any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]
    assert front(points) == [not lost for lost in beaten]


def test_fronts_know_which_columns_are_better_when_they_fall(tmp_path: Path) -> None:
    """Files of 4,000, 2,000 and 800 bytes with accuracies 0.8, 0.9 and 0.7: the first is beaten by the second."""
    runs = runs_of(tmp_path, *(report(sparsity=sparsity, accuracy=top1) for sparsity, top1 in ((0.5, 0.8), (0.75, 0.9), (0.9, 0.7))))
    compared = compare(runs, "")
    assert compared.fronts["top1_recovered file_bytes"] == [1, 2]
    assert compared.fronts["sparsity file_bytes"] == [2]
    assert compared.fronts["top1_one_shot top1_recovered"] == [1]


def test_rows_that_lack_a_column_are_on_none_of_its_fronts(tmp_path: Path) -> None:
    bare = report(sparsity=0.7, sizes=None)
    compared = compare(runs_of(tmp_path, report(), bare, report(sparsity=0.9)), "")
    assert compared.fronts["sparsity file_bytes"] == [2]


# ------------------------------------------------------------------------------------------------------------ rows and columns


def test_points_that_differ_only_in_the_seed_are_one_row_with_mean_and_spread(tmp_path: Path) -> None:
    """Accuracies 0.8, 0.9 and 0.91: mean 0.87, standard deviation sqrt((0.07^2 + 0.03^2 + 0.04^2) / 3)."""
    reports = [report(seed=seed, accuracy=top1) for seed, top1 in enumerate((0.8, 0.9, 0.91))]
    compared = compare(runs_of(tmp_path, *reports, report(sparsity=0.75, accuracy=0.7)), "")
    first, second = compared.rows
    assert compared.axes == ["pruner.target.sparsity"] and [row.place for row in compared.rows] == [["0.5"], ["0.75"]]
    value = first.values["top1_recovered"]
    assert value.mean == pytest.approx(0.87) and value.spread == pytest.approx(math.sqrt(0.0074 / 3)) and value.count == 3
    assert second.values["top1_recovered"].spread == 0 and len(second.runs) == 1
    assert [seed_of(run) for run in first.runs] == ["0", "1", "2"]


def test_every_number_comes_from_its_place_in_the_report(tmp_path: Path) -> None:
    whole = report(
        sparsity=0.25,
        final_size={"parameters": 1500, "macs": 2000},
        latency={"measured_ms": 7.5},
        loss_increase={"measured": 0.125},
        int8={"metrics": {"top1": 0.88}, "ms": 3.0, "bytes": 900},
    )
    whole["stages"][-1]["metrics"] |= {"images_per_second": 250.0, "sparse_images_per_second": 400.0}
    (run,) = runs_of(tmp_path, whole)
    assert values_of(run) == {
        "top1_dense": 0.95,
        "top1_one_shot": pytest.approx(0.8),
        "top1_recovered": 0.9,
        "top1_final": 0.9,
        "top1_int8": 0.88,
        "sparsity": 0.25,
        "macs_removed": 0.75,
        "parameters": 1500,
        "loss_increase": 0.125,
        "pass_ms": 7.5,
        "images_per_second": 250,
        "sparse_images_per_second": 400,
        "file_bytes": 6000,
        "int8_ms": 3,
        "int8_bytes": 900,
        "seconds": 3,
    }


def test_what_is_the_same_in_every_row_is_a_sentence_and_no_column(tmp_path: Path) -> None:
    compared = compare(runs_of(tmp_path, report(), report(sparsity=0.75, accuracy=0.8)), "")
    assert "top-1, dense" in titles(compared) and "parameters" not in [column.title for column in compared.varying]
    (sentence,) = [text for text in notes(compared) if text.startswith("The same")]
    assert "top-1, dense 95.0 %" in sentence and "parameters 2,000" in sentence and "top-1, recovered" not in sentence


def test_the_final_accuracy_is_a_column_if_only_some_runs_recover(tmp_path: Path) -> None:
    short = report(sparsity=0.75)
    short["stages"] = short["stages"][:2]
    compared = compare(runs_of(tmp_path, report(), short), "")
    assert "top-1, final" in titles(compared) and [row.mean("top1_final") for row in compared.rows] == [0.9, pytest.approx(0.8)]
    assert "top-1, final" not in titles(compare(runs_of(tmp_path, report(), report(sparsity=0.9)), ""))


@pytest.mark.parametrize(
    ("metrics", "metric", "title"),
    [
        ({"map": 0.4, "map50": 0.6, "agreement": 0.8, "test_samples": 500}, "map", "mAP, one-shot"),
        ({"knn": 0.7, "agreement": 0.9, "test_samples": 500}, "knn", "k-NN, one-shot"),
        ({"agreement": 0.9, "loss": 0.1, "test_samples": 500}, "agreement", "agreement, one-shot"),
        ({"top1": 0.7, "agreement": 0.9, "test_samples": 20}, "agreement", "agreement, one-shot"),
        ({"top1": 0.7, "test_samples": 20}, "top1", "top-1, one-shot"),
        ({}, None, None),
        ({"top1": None}, None, None),
        ({"top1": "nan"}, None, None),
    ],
)
def test_detectors_features_small_tests_and_runs_without_metrics(
    tmp_path: Path, metrics: dict, metric: str | None, title: str | None
) -> None:
    stages = [{"name": name, "metrics": metrics} for name in ("dense", "one_shot")]
    runs = runs_of(tmp_path, report(stages=stages), report(sparsity=0.75, stages=stages))
    assert headline(runs[0].report) == metric
    compared = compare(runs, "")
    assert len(compared.rows) == 2 and (title is None or title in titles(compared))
    assert title is not None or not any(column.key.startswith(("top1", "agreement")) for column in compared.columns)


def test_rounds_and_units_have_their_words(tmp_path: Path) -> None:
    parts = [{"pruner": "SOSP", "asked": 0.5, "asked_of": "macs"}, {"pruner": "CAP", "asked": 0.75, "asked_of": "weights"}]
    columns = columns_of([report(rounds=parts)])
    assert "top-1, pruned" in [column.title for column in columns] and "top-1, one-shot" not in [column.title for column in columns]
    units = report(prunable_weights=0, pruned_weights=0, final_size={"parameters": 900, "macs": 4000})
    (run,) = runs_of(tmp_path, units)
    assert "sparsity" not in values_of(run) and values_of(run)["macs_removed"] == 0.5


# ------------------------------------------------------------------------------------------------------------------------ axes


def test_the_axes_of_a_sweep_are_the_overrides_that_differ_and_rows_keep_them_apart(tmp_path: Path) -> None:
    """The machine changes no result, but where it is an axis its points are rows of their own."""
    points = [([f"cluster.threads={threads}", f"seed={seed}"], report(seed=seed)) for threads in (1, 2) for seed in (0, 1)]
    for (_, content), threads in zip(points, (1, 1, 2, 2), strict=True):
        content["experiment"]["cluster"] = {"threads": threads}
    compared = compared_points(sweep_of(tmp_path, points))
    assert compared.axes == ["cluster.threads"]
    assert [(row.place, len(row.runs)) for row in compared.rows] == [(["1"], 2), (["2"], 2)]


def test_a_component_explains_its_settings_but_not_those_in_which_it_differs_from_itself(tmp_path: Path) -> None:
    def with_blocks(pruner: str, size: int) -> dict:
        changed = report(pruner)
        changed["experiment"]["pruner"]["block_size"] = size
        return changed

    assert axes_of(runs_of(tmp_path, with_blocks("CAP", 16), with_blocks("Wanda", 8))) == ["pruner._target_"]
    three = [with_blocks("CAP", 16), with_blocks("CAP", 64), with_blocks("Wanda", 8)]
    assert axes_of(runs_of(tmp_path, *three)) == ["pruner._target_", "pruner.block_size"]
    assert [row.place for row in compare(runs_of(tmp_path, *three), "").rows] == [["CAP", "16"], ["CAP", "64"], ["Wanda", "8"]]


def test_two_settings_that_change_together_are_two_axes(tmp_path: Path) -> None:
    first, second = report(sparsity=0.5), report(sparsity=0.75)
    second["experiment"]["pruner"]["block_size"] = 64
    assert set(axes_of(runs_of(tmp_path, first, second))) == {"pruner.block_size", "pruner.target.sparsity"}


def test_choices_of_an_override_that_is_no_setting_are_shown_as_they_were_given(tmp_path: Path) -> None:
    points = [([f"+experiment={name}"], report(sparsity=sparsity)) for name, sparsity in (("small", 0.5), ("large", 0.75))]
    compared = compared_points(sweep_of(tmp_path, points))
    assert compared.axes == ["experiment"] and [row.place for row in compared.rows] == [["large"], ["small"]]


def test_rows_are_ordered_by_numbers_where_texts_hold_numbers() -> None:
    assert sorted(["10", "9", "0.5", "cap", "1e-3", "layers 12", "layers 9"], key=natural) == [
        "1e-3",
        "0.5",
        "9",
        "10",
        "cap",
        "layers 9",
        "layers 12",
    ]


# ----------------------------------------------------------------------------------------------------------------------- noise


def test_a_lead_within_two_standard_errors_is_noise(tmp_path: Path) -> None:
    """1,000 images at 0.9: sqrt(2 * 0.9 * 0.1 / 1000) = 0.0134. A lead of 2 points is noise, one of 4 points is not."""
    runs = runs_of(tmp_path, report(sparsity=0.5, accuracy=0.91), report(sparsity=0.7, accuracy=0.89), report(sparsity=0.9, accuracy=0.87))
    compared = compare(runs, "")
    best = best_of(compared)
    assert best is not None and (best.place, best.places_alike, best.places_other) == (0, [1], [2])
    assert error_of(*compared.rows[:2], "top1", "top1_recovered") == pytest.approx(math.sqrt(2 * 0.9 * 0.1 / 1000))
    assert (
        "The best top-1 accuracy, 91.0 %, has pruner.target.sparsity 0.5. Its lead over 1 row, marked ≈, of at most 2.0 points"
        in notes(compared)[0]
    )


def test_the_spread_over_seeds_adds_to_the_error(tmp_path: Path) -> None:
    """Seeds at 0.9 and 0.8 (variance of their mean: 0.005 / 2) against 0.8 and 0.8. The images alone give 2 * 0.825 * 0.175 / 1000."""
    seeds = [report(seed=seed, accuracy=top1) for seed, top1 in enumerate((0.9, 0.8))]
    others = [report(sparsity=0.75, seed=seed, accuracy=0.8) for seed in (0, 1)]
    compared = compare(runs_of(tmp_path, *seeds, *others), "")
    error = error_of(*compared.rows, "top1", "top1_recovered")
    assert error == pytest.approx(math.sqrt(2 * 0.825 * 0.175 / 1000 + 0.005 / 2))


def test_changed_answers_make_small_differences_count(tmp_path: Path) -> None:
    """4 and 12 of 1,000 answers differ from the dense model's: sqrt(16 - 1000 * 0.01^2) / 1000 = 0.004, so one point is more than noise."""

    def changed(sparsity: float, accuracy: float, lost: int) -> dict:
        content = report(sparsity=sparsity, accuracy=accuracy)
        content["stages"][-1]["metrics"] |= {"top1_lost": lost, "top1_gained": 0}
        return content

    best = best_of(compare(runs_of(tmp_path, changed(0.5, 0.91, 4), changed(0.75, 0.9, 12)), ""))
    assert best is not None and best.places_other == [1]
    plain = best_of(compare(runs_of(tmp_path, report(sparsity=0.5, accuracy=0.91), report(sparsity=0.75, accuracy=0.9)), ""))
    assert plain is not None and plain.places_alike == [1]


def test_times_of_different_devices_and_different_test_sets_are_told(tmp_path: Path) -> None:
    first, second = report(environment={"device": "cpu", "threads": 1}), report(sparsity=0.75, environment={"device": "cuda"})
    second["stages"][-1]["metrics"]["test_samples"] = 200
    told = notes(compare(runs_of(tmp_path, first, second), ""))
    assert "Times were measured on different devices (cpu with 1 thread and cuda); do not compare them." in told
    assert "Accuracies were measured on different numbers of test images: 200 and 1,000." in told


def test_a_report_is_read_again_when_it_changes(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, report(accuracy=0.9))
    (again,) = runs_of(tmp_path, report(accuracy=0.8125))
    assert isinstance(run, Run) and read_report(again.file)["stages"][-1]["metrics"]["top1"] == 0.8125
