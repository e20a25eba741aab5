"""What a reader must know to judge a comparison, in sentences: above all, which differences are noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from statistics import mean

from orchestrator.quantities import count, listed, percent, points
from orchestrator.report.noise import ERRORS, error_between, images_behind
from orchestrator.report.parts import StageResult
from orchestrator.report.terms import ACCURACY_NAMES
from orchestrator.sweep.columns import DENSE, FINAL, PRUNED, RECOVERED, Column, accuracy_key, final_metrics
from orchestrator.sweep.comparison import Comparison, Row
from orchestrator.sweep.reports import headline
from orchestrator.sweep.settings import axis_title


@dataclass(frozen=True)
class Best:
    """The row with the best accuracy of the final model, and the rows that are as good within noise. ``places`` are those of rows."""

    metric: str
    column: Column
    place: int
    places_alike: list[int]
    places_other: list[int]


def final_column(compared: Comparison) -> Column | None:
    """The accuracy to judge the runs by: that of the final models, by the metric that most rows have."""
    shown = {column.key: column for column in compared.columns}
    metrics = [metric for run in compared.runs if (metric := headline(run.report)) is not None]
    for metric in sorted(dict.fromkeys(metrics), key=metrics.count, reverse=True):
        for stage in (FINAL, RECOVERED, PRUNED, DENSE):
            if accuracy_key(metric, stage) in shown:
                return shown[accuracy_key(metric, stage)]
    return None


def best_of(compared: Comparison) -> Best | None:
    """The best row and those within noise of it; None if fewer than two rows have an accuracy, or its number of images is not known."""
    column = final_column(compared)
    known = [place for place, row in enumerate(compared.rows) if column is not None and column.key in row.values]
    if column is None or len(known) < 2:
        return None
    metric = next(metric for metric in ACCURACY_NAMES if column.key.startswith(f"{metric}_"))
    place = max(known, key=lambda index: compared.rows[index].values[column.key].mean)
    errors = {other: error_of(compared.rows[place], compared.rows[other], metric, column.key) for other in known if other != place}
    lead = {other: compared.rows[place].values[column.key].mean - compared.rows[other].values[column.key].mean for other in errors}
    if any(error is None for error in errors.values()):
        return None
    alike = [other for other, error in errors.items() if error is not None and lead[other] <= ERRORS * error]
    return Best(metric, column, place, alike, [other for other in errors if other not in alike])


def error_of(first: Row, second: Row, metric: str, key: str) -> float | None:
    r"""Standard error of the difference between the mean accuracies of two rows; None if the number of test images is not known.

        sqrt(e^2 + s_1^2 / (n_1 - 1) + s_2^2 / (n_2 - 1))

    ``e`` is the error because of the number of test images (see ``error_between``), for metrics that are averaged over the seeds. ``s`` is
    the standard deviation over the ``n`` seeds of a row; a row with one seed adds nothing, because its spread is not known.
    """
    images = error_between(averaged(first), averaged(second), metric)
    if images is None:
        return None
    seeds = [row.values[key] for row in (first, second)]
    return math.sqrt(images**2 + sum(value.spread**2 / (value.count - 1) for value in seeds if value.count > 1))


def averaged(row: Row) -> StageResult:
    """The final models of a row as one, with the means of those metrics that all of them have."""
    metrics = [final_metrics(run.report) for run in row.runs]
    shared = reduce(lambda keys, other: keys & other.keys(), metrics[1:], set(metrics[0]))
    return StageResult(FINAL, {key: mean(values[key] for values in metrics) for key in shared}, 0.0)


def notes(compared: Comparison) -> list[str]:
    """Every sentence about the rows of a comparison."""
    told = [*_about_noise(compared), *_about_seeds(compared), *_about_constants(compared), *_about_devices(compared)]
    return told + _about_images(compared)


def _about_noise(compared: Comparison) -> list[str]:
    best = best_of(compared)
    if best is None:
        return []
    row = compared.rows[best.place]
    images = images_behind(averaged(row))
    base = f"two standard errors, with {images:,.0f} test images" if images else "two standard errors"
    what = f"{ACCURACY_NAMES[best.metric]}, {percent(row.values[best.column.key].mean)}, has {named(compared, row)}"
    if not best.places_alike:
        return [f"The best {what}. It leads over every other row by more than noise ({base})."]
    alike = [compared.rows[place] for place in best.places_alike]
    furthest = max(row.values[best.column.key].mean - other.values[best.column.key].mean for other in alike)
    some = f"{count(len(alike), 'row')}, marked ≈," if best.places_other else f"{'the only' if len(alike) == 1 else 'any'} other row"
    return [f"The best {what}. Its lead over {some} of at most {points(furthest)} is noise: it is within {base}."]


def named(compared: Comparison, row: Row) -> str:
    """A row by its place on the axes."""
    place = [f"{axis_title(axis)} {text}" for axis, text in zip(compared.axes, row.place, strict=True)]
    return listed(place) if place else row.runs[0].name


def _about_seeds(compared: Comparison) -> list[str]:
    counts = {len(row.runs) for row in compared.rows}
    if counts <= {1}:
        return []
    several = f"{min(counts)} to {max(counts)} runs" if len(counts) > 1 else f"{max(counts)} runs"
    return [f"Rows are means of {several} that differ only in the seed, ± their standard deviation. Open a row to see its runs."]


def _about_constants(compared: Comparison) -> list[str]:
    values = [f"{column.title} {column.unit.written(compared.rows[0].values[column.key].mean)}" for column in compared.constant]
    return [f"The same in every row: {'; '.join(values)}."] if values else []


def _about_devices(compared: Comparison) -> list[str]:
    """Times of different devices do not compare."""
    places = set()
    for run in compared.runs:
        environment = run.report.get("environment")
        facts = environment if isinstance(environment, dict) else {}
        if "device" in facts:
            threads = f" with {count(facts['threads'], 'thread')}" if isinstance(facts.get("threads"), int) else ""
            places.add(f"{facts['device']}{threads}")
    return [f"Times were measured on different devices ({listed(sorted(places))}); do not compare them."] if len(places) > 1 else []


def _about_images(compared: Comparison) -> list[str]:
    numbers = {final_metrics(run.report).get("test_samples") for run in compared.runs} - {None}
    counts = [f"{images:,.0f}" for images in sorted(images for images in numbers if images is not None)]
    return [f"Accuracies were measured on different numbers of test images: {listed(counts)}."] if len(counts) > 1 else []
