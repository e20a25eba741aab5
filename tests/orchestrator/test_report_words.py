"""Sentences of the report follow from its numbers: which numbers they give, and when they speak of noise, misses and unknowns."""

import io
import math
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_report import MISSING, example, layer, metrics, numbers, said, says, stages
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.quantities import number
from orchestrator.report.console import summary_table
from orchestrator.report.noise import error_between, paired_error, unpaired_error
from orchestrator.report.parts import FileSizes, LossIncrease, StageResult
from orchestrator.report.result import Report
from orchestrator.report.words import sentences, verdict
from orchestrator.report.write import as_json


def test_the_unpaired_error_is_that_of_simulated_binomial_differences():
    rng = np.random.default_rng(0)
    differences = rng.binomial(400, 0.9, 200_000) / 400 - rng.binomial(400, 0.9, 200_000) / 400
    assert unpaired_error(0.9, 0.9, 400) == pytest.approx(differences.std(), rel=0.01)


# Fractions of the images that both models answer correctly, only the dense one, only the other one, and none.
PAIRS = [0.90, 0.05, 0.02, 0.03]


def test_the_paired_error_is_that_of_simulated_pairs():
    drawn = np.random.default_rng(0).multinomial(400, PAIRS, 200_000)
    differences = (drawn[:, 2] - drawn[:, 1]) / 400
    assert paired_error(0.07 * 400, -0.03, 400) == pytest.approx(differences.std(), rel=0.01)
    assert paired_error(8, -8 / 360, 360) == pytest.approx(math.sqrt(8 - 64 / 360) / 360), "McNemar's, with b = 8 and c = 0"


def test_the_error_between_two_pruned_models_is_bounded_by_how_they_differ_from_the_dense_model():
    rng = np.random.default_rng(0)
    dense_NM = rng.random((2000, 360)) < 0.97
    one_NM, other_NM = (np.where(rng.random((2000, 360)) < 0.02, rng.random((2000, 360)) < 0.5, dense_NM) for _ in range(2))
    true = (other_NM.mean(1) - one_NM.mean(1)).std()
    lost, gained = ((first & ~second).sum(1).mean() for first, second in ((dense_NM, one_NM), (one_NM, dense_NM)))
    first, second = (StageResult("", metrics(one_NM.mean(), top1_lost=lost, top1_gained=gained), 1.0) for _ in range(2))
    bound = error_between(first, second, "top1")
    assert true * 0.95 < bound < 0.8 * unpaired_error(one_NM.mean(), other_NM.mean(), 360)


def test_an_evaluation_that_waited_for_images_says_so_and_what_may_help() -> None:
    def loading(waiting: float, **data: Any) -> list[str]:
        report = example(experiment={"pruner": {"block_size": 32, "target": {"sparsity": 0.75}}, "recovery": None, "data": data})
        report.stages[-1].metrics.update(waiting=waiting, loaded_images_per_second=1234.5)
        return [sentence for sentence in sentences(report) if "waited for images" in sentence]

    (sentence,) = loading(0.43, decoders=8)
    assert "43.0 % of the time" in sentence and "1,234 images/s" in sentence and "8 processes" in sentence and "data.decoders" in sentence
    assert not loading(0.1, decoders=8), "it is not worth a word"
    assert not loading(0.43), "the images were in memory, and nothing decodes them"


# ----------------------------------------------------------------------------------------------------------------- accuracy


def test_a_difference_within_two_standard_errors_is_called_noise():
    sentence = said(example(), "recovered", "accuracy")  # 2 sqrt(2 * 0.9675 * 0.0325 / 360) = 2.64 points
    assert "noise" in sentence and "below" in sentence and {"0.5", "2.6", "360"} <= set(numbers(sentence))


def test_a_difference_beyond_two_standard_errors_is_stated():
    sentence = said(example(), "one-shot", "accuracy")  # 2 sqrt(2 * 0.935 * 0.065 / 360) = 3.68 points
    assert "noise" not in sentence and "below" in sentence and {"7.0", "3.7", "360"} <= set(numbers(sentence))


@pytest.mark.parametrize(
    ("lost", "gained", "noise", "error"),
    [
        (9, 2, False, "1.8"),  # 7 fewer of 360; 2 sqrt(11 - 49 / 360) / 360: the models differ on few images
        (19, 12, True, "3.1"),  # 7 fewer again; 2 sqrt(31 - 49 / 360) / 360
    ],
)
def test_with_counted_pairs_noise_depends_on_the_images_on_which_the_models_differ(lost: int, gained: int, noise: bool, error: str):
    before = 350 / 360
    pruned = metrics(before - (lost - gained) / 360, top1_lost=lost, top1_gained=gained)
    sentence = said(example(stages=stages(metrics(before), pruned)), "one-shot", "accuracy")
    assert ("noise" in sentence) == noise and numbers(sentence) == ["1.9", error, "360", str(lost), str(gained)]


def test_noise_counts_the_images_with_labels_where_not_all_have_one():
    """7 fewer of 90 labelled ones among 360: 2 sqrt(11 - 49 / 90) / 90."""
    pruned = metrics(0.9 - 7 / 90, top1_lost=9, top1_gained=2, labelled_samples=90)
    assert numbers(said(example(stages=stages(metrics(0.9), pruned)), "one-shot", "accuracy")) == ["7.8", "7.2", "90", "9", "2"]


def test_pairs_that_were_counted_for_top1_say_nothing_about_other_accuracies():
    dense, pruned = ({"knn": value, "top1_lost": 1.0, "top1_gained": 0.0, "test_samples": 100} for value in (0.9, 0.8))
    sentence = said(example(stages=stages(dense, pruned)), "one-shot", "accuracy")
    assert "10.1" in numbers(sentence), "200 sqrt(2 * 0.85 * 0.15 / 100)"


@given(st.floats(0, 1), st.floats(0, 1), st.integers(10, 10**6))
def test_noise_is_said_exactly_within_two_standard_errors(before: float, after: float, samples: int):
    report = example(stages=stages(metrics(before, test_samples=samples), metrics(after, test_samples=samples)))
    mean = (before + after) / 2
    within = before != after and (after - before) ** 2 * samples <= 8 * mean * (1 - mean)
    if not math.isclose((after - before) ** 2 * samples, 8 * mean * (1 - mean)):
        assert says(report, "noise") == within
    assert says(report, "above") == (after > before) and says(report, "below") == (after < before)


def test_without_a_number_of_test_images_nothing_is_said_about_noise_but_that():
    sentence = said(example(stages=stages(metrics(0.97), metrics(0.9, test_samples=None))), "one-shot", "accuracy")
    assert numbers(sentence) == ["7.0"] and "not known" in sentence and "standard error" not in sentence


def test_equal_accuracies_are_called_equal():
    report = example(stages=stages(metrics(0.9), metrics(0.9), metrics(0.95)))
    assert "equals" in said(report, "one-shot", "accuracy") and not says(report, "below")
    assert "5.0 points above" in said(report, "recovered", "accuracy")


def after_recovery(top1: float, loss: float, **changes: Any) -> Report:
    """A run whose one-shot model has an accuracy of 99.2 % and a test loss of 0.0962."""
    shown = [metrics(0.992, loss=0.0953), metrics(0.992, loss=0.0962), metrics(top1, loss=loss)]
    return example(stages=stages(*({**each, "test_samples": 1000} for each in shown)), **changes)


def test_a_recovery_that_raised_the_loss_made_the_model_worse():
    sentence = said(after_recovery(0.986, 0.1462), "worse")  # 0.6 points are within 2 sqrt(2 * 0.989 * 0.011 / 1000) = 0.93
    assert numbers(sentence) == ["98.6", "99.2", "0.146", "0.0962"] and "noise" in sentence
    assert "recovery.lr" in sentence and "recovery=none" in sentence and "one-shot" in sentence and "data." not in sentence


def test_a_recovery_that_lost_accuracy_made_the_model_worse():
    report = after_recovery(0.95, 0.0962, experiment={"data": {"max_shift": 2, "flip": True}})
    sentence = said(report, "worse")
    assert numbers(sentence) == ["95.0", "99.2"] and "noise" not in sentence and "loss" not in sentence
    assert "data.max_shift and data.flip" in sentence


@pytest.mark.parametrize(
    ("top1", "loss"), [(0.992, 0.1), (0.99, 0.0962), (0.999, 0.2)], ids=["4 % more loss", "noise", "more accurate, less sure"]
)
def test_a_recovery_that_did_no_harm_is_not_called_worse(top1: float, loss: float):
    assert not says(after_recovery(top1, loss), "worse")


def test_counted_pairs_show_a_smaller_harm():
    dense, pruned = metrics(0.992, test_samples=1000), metrics(0.992, test_samples=1000, top1_lost=0, top1_gained=0)
    harmed = metrics(0.986, test_samples=1000, top1_lost=6, top1_gained=0)
    assert says(example(stages=stages(dense, pruned, harmed)), "worse")  # 6 images, beyond 2 sqrt(6)


def test_metrics_that_some_models_lack_are_named():
    report = example(stages=stages(metrics(0.9, loss=None, agreement=None), metrics(0.8, loss=0.3)))
    sentence = said(report, "Not measured")
    assert "loss" in sentence and "dense" in sentence and "one-shot" not in sentence
    assert not says(report, "agreement"), "the dense model agrees with itself"


def test_a_run_without_recovery_says_so_and_one_with_recovery_does_not():
    assert "recovery" in said(MISSING["no recovery"], "no recovery")
    assert not says(example(), "no recovery")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("everything", ["75.0", "97.0", "90.0", "96.5"]),
        ("no recovery", ["75.0", "90.0", "80.0"]),
        ("headless", ["75.0", "90.0", "80.0"]),
        ("no metrics", ["75.0"]),
    ],
)
def test_the_verdict_gives_what_was_masked_and_the_accuracies_in_order(name, given):
    text = verdict(MISSING[name])
    assert numbers(text) == given
    assert ("recovered" in text) == (name == "everything") and ("no recovery" in text) == (name in ("no recovery", "headless"))
    assert ("not measured" in text) == (name == "no metrics") and ("k-NN" in text) == (name == "headless")
    assert "faster" not in text and "per second" not in text, "masked weights make no model faster"
    assert "masked by CAP;" in text


def test_a_verdict_without_a_known_pruner_names_none():
    assert " by " not in verdict(example(pruner=""))


# --------------------------------------------------------------------------------------------------------- weights, speed, file


def test_zeros_are_given_of_the_prunable_weights_and_of_the_model():
    # 2 blocks of 96*32 + 32*32 + 128*32 + 32*128 weights, three of four zero, and 1000 parameters that cannot be pruned
    assert numbers(said(example(), "zero")) == ["18,432", "24,576", "75.00", "72.1", "25,576"]


def test_a_missed_target_is_said_and_rounding_is_not():
    assert numbers(said(example(asked={"sparsity": 0.5}), "missed")) == ["50.00", "75.00"]
    assert not says(example(asked={"sparsity": 0.75 + 1 / 24_576}), "missed")


@pytest.mark.parametrize("speed", [900.0, 2000.0])
def test_a_masked_model_is_called_not_faster_however_fast_it_was(speed):
    report = example(stages=stages(metrics(0.97), metrics(0.9), metrics(0.965, images_per_second=speed)))
    sentence = said(report, "not faster")
    assert "cpu (2 threads)" in sentence and f"900 images/s dense, {speed:,.0f} pruned" in sentence


def sparse(speed: float, **changes: Any) -> Report:
    return example(stages=stages(metrics(0.97), metrics(0.9), metrics(0.965, sparse_images_per_second=speed, sparse_layers=7.0)), **changes)


def test_the_speed_of_a_masked_model_in_the_sparse_runtime_is_in_the_headline_and_beside_that_of_the_module():
    sentence = said(sparse(2250.0), "With the sparse runtime")
    assert numbers(sentence) == ["2.5", "2,250", "7"] and 'runtime="sparse"' in sentence
    assert says(sparse(2250.0), "as an ordinary module") and "2.5 times as many images per second" in verdict(sparse(2250.0))
    assert numbers(said(sparse(2250.0, environment={"threads": 2}), "With the sparse runtime")) == ["2.5", "2,250", "2", "7"]


def test_a_sparse_runtime_that_gains_nothing_is_called_no_faster():
    assert numbers(said(sparse(910.0), "no faster")) == ["910"]
    assert "sparse" not in verdict(sparse(910.0))


def test_the_sparse_speed_of_the_dense_model_is_not_missed():
    assert not says(example(stages=stages(metrics(0.97), metrics(0.965, sparse_images_per_second=1.0))), "sparse of the dense")


def test_the_file_is_called_smaller_only_if_it_is():
    sentence = said(example(), "file")
    assert "smaller" in sentence and "not smaller" not in sentence and numbers(sentence)[-3:] == ["3.6", "27.6", "98.3"]
    larger = said(example(sizes=FileSizes(100_000, 110_000)), "file")
    assert "not smaller" in larger and numbers(larger)[-2:] == ["110", "100"]
    assert "No file" in said(example(sizes=None), "file")


# ----------------------------------------------------------------------------------------------------------------------- loss


def about_loss(*increase: float | None) -> str:
    return said(example(loss_increase=LossIncrease(*increase, "cross-entropy")), "calibration loss")


@pytest.mark.parametrize(
    ("measured", "factor", "side"), [(2.0, "10", "too low"), (0.02, "10", "too high"), (2000.0, "100", "more than 100 times too low")]
)
def test_a_prediction_that_is_far_off_is_called_no_forecast(measured, factor, side):
    sentence = about_loss(0.2, measured)
    assert numbers(sentence) == [number(measured), "0.2", factor] and side in sentence
    assert "to rank weights, not to forecast" in sentence and ("more than" in sentence) == (measured == 2000)


def test_a_prediction_that_is_right_to_a_small_factor_is_not_called_off():
    sentence = about_loss(0.2, 0.3)
    assert numbers(sentence) == ["0.3", "0.2", "1.5"] and "too" not in sentence and "forecast" not in sentence


def test_a_loss_that_fell_was_not_raised_and_is_no_factor():
    sentence = about_loss(0.2, -0.1)
    assert "lowered" in sentence and "raised" not in sentence and numbers(sentence) == ["0.1", "0.2"]


def test_what_was_not_measured_or_not_predicted_is_said():
    assert "not measured" in about_loss(0.2, None) and numbers(about_loss(0.2, None)) == ["0.2"]
    assert "no increase was predicted" in about_loss(None, 0.3) and numbers(about_loss(None, 0.3)) == ["0.3"]
    neither = about_loss(None, None)
    assert "not measured" in neither and "no increase was predicted" in neither and numbers(neither) == []


# ------------------------------------------------------------------------------------------------------------ numerics and store


def test_skipped_batches_and_blocks_with_raised_dampening_are_said():
    layers = [
        replace(layer(0, "mlp.fc1"), notes={"blocks_with_raised_dampening": 3}),
        replace(layer(1, "mlp.fc2"), notes={"blocks_with_raised_dampening": 2.0}),
    ]
    report = example(layers=layers, skipped={"calibration batches with non-finite values": 2, "others": 0})
    assert numbers(said(report, "calibration batches with non-finite values")) == ["2"] and not says(report, "others")
    damped = said(report, "positive definite")
    assert "5 blocks in 2 layers" in damped and "blocks.0.mlp.fc1" in damped and "blocks.1.mlp.fc2" not in damped


def test_a_clean_run_says_nothing_of_trouble():
    assert not says(example(), "non-finite", "positive definite", "Not measured", "missed")


def test_what_came_from_the_store_is_counted_apart():
    assert numbers(said(example(), "store")) == ["1", "3"]
    assert not says(example(timeline=example().timeline[:3]), "store")


# ------------------------------------------------------------------------------------------------------------------ console, JSON


def test_the_console_shows_what_a_run_is_judged_by_in_eighty_columns():
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(example()))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80

    def row(name: str) -> list[str]:
        (line,) = [line for line in lines if line.strip().startswith(name)]
        return line.removeprefix(" ").removeprefix(name).replace(" %", "%").split()

    assert row("one-shot") == ["90.0%", "99.0%", "95.0%", "0.2", "900", "1.1", "s"]
    assert row("sparsity")[:2] == ["75.00%", "75.00%"]
    assert row("loss increase")[:4] == ["–", "0.3", "0.2", "predicted;"]
    assert row("recover ") == ["12", "s", "9.2", "s"]
    assert row("export ") == ["–", "0.10", "s"]


def test_the_console_names_the_pruner_and_repeats_the_warnings_below_the_tables():
    warnings = ["the target is out of reach: 80.00 % of the latency was asked for, and at most 61.20 % can be removed", "[red]text"]
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(example(warnings=warnings)))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80 and ["pruner", "CAP"] in [line.split() for line in lines]
    end = " ".join(line.strip() for line in lines[next(at for at, line in enumerate(lines) if line.startswith("warning")) :] if line)
    assert end == f"warning: {warnings[0]} warning: {warnings[1]}"


def test_json_values_are_what_json_knows():
    class Colour(Enum):
        RED = "red"

    value = {1: (Colour.RED, Path("a/b")), "n": np.float32(0.5), "i": np.int64(3), "b": True, "x": math.nan, "none": None}
    assert as_json(value) == {"1": ["red", "a/b"], "n": 0.5, "i": 3, "b": True, "x": "nan", "none": None}
    assert type(as_json(np.int64(3))) is int and as_json(True) is True


@pytest.mark.parametrize("name", MISSING)
def test_every_sentence_is_one_and_none_is_said_twice(name):
    told = [*sentences(MISSING[name]), verdict(MISSING[name])]
    assert all(text.endswith(".") and "  " not in text and ".." not in text for text in told) and len(set(told)) == len(told)
