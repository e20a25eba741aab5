"""The words of the report: verdict, sentences, tables, and never more than was measured."""

import io
import math
from dataclasses import replace
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from example_report import MISSING, example, layer, metrics, said, stages
from rich.console import Console

from orchestrator.report import FileSizes, LossIncrease, plain, sentences, summary_table, verdict
from orchestrator.report_words import standard_error


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


def test_a_loss_that_nobody_predicted_is_told_as_measured():
    report = example(loss_increase=LossIncrease(None, 0.3, "cross-entropy"))
    assert said(report, "calibration loss") == "Pruning raised the calibration loss by 0.3 (cross-entropy); nothing was predicted."


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
