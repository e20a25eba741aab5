"""Which differences of accuracy are noise."""

from __future__ import annotations

import math
from typing import NamedTuple

from orchestrator.report.parts import StageResult

ERRORS = 2  # a difference within so many standard errors is noise


class Pairs(NamedTuple):
    """Numbers of test images that only the dense model answers correctly, and that only the other model does."""

    lost: float
    gained: float


def images_behind(stage: StageResult) -> float | None:
    """The number of images that an accuracy is a fraction of: the labelled ones where they were counted, else all test images."""
    return stage.metrics.get("labelled_samples") or stage.metrics.get("test_samples")


def pairs_of(stage: StageResult, key: str) -> Pairs | None:
    """How the answers of a model differ from those of the dense model; None if that was not counted for the metric ``key``."""
    lost, gained = stage.metrics.get("top1_lost"), stage.metrics.get("top1_gained")
    return None if key != "top1" or lost is None or gained is None else Pairs(lost, gained)


def unpaired_error(first: float, second: float, samples: float) -> float:
    r"""Standard error of the difference of two accuracies over ``samples`` images each, if the models were equally good.

        sqrt(2 p (1 - p) / n),  p = (first + second) / 2

    The usual pooled two-proportion estimate. If both models see the same images, the true error is smaller: this errs towards "noise".
    """
    pooled = (first + second) / 2
    return math.sqrt(2 * pooled * (1 - pooled) / samples)


def paired_error(unlike: float, difference: float, samples: float) -> float:
    r"""Standard error of the difference of two accuracies over the same ``samples`` images.

        sqrt(u - n d^2) / n

    ``unlike`` images are answered correctly by only one of the two models, and ``difference`` is that of the accuracies. With McNemar's
    counts b and c, this is sqrt(b + c - (b - c)^2 / n) / n.
    """
    return math.sqrt(max(0.0, unlike - samples * difference**2)) / samples


def error_from_dense(dense: StageResult, stage: StageResult, key: str) -> float | None:
    """Standard error of the difference of ``key`` between a model and the dense one; None without a number of test images."""
    before, after, samples = dense.metrics.get(key), stage.metrics.get(key), images_behind(stage)
    if before is None or after is None or not samples:
        return None
    pairs = pairs_of(stage, key)
    if pairs is None:
        return unpaired_error(before, after, samples)
    return paired_error(sum(pairs), (pairs.gained - pairs.lost) / samples, samples)


def error_between(first: StageResult, second: StageResult, key: str) -> float | None:
    """An upper bound for the standard error of the difference of ``key`` between two pruned models; None if it is not known.

    Where only one of the two is right, one of them differs from the dense model. So the images for which that holds are at most those for
    which the first or the second model differs from it.
    """
    before, after, samples = first.metrics.get(key), second.metrics.get(key), images_behind(second)
    if before is None or after is None or not samples:
        return None
    unpaired, one, other = unpaired_error(before, after, samples), pairs_of(first, key), pairs_of(second, key)
    if one is None or other is None:
        return unpaired
    return min(unpaired, paired_error(sum(one) + sum(other), after - before, samples))
