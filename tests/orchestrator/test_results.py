"""What the report makes of records."""

from pathlib import Path

import pytest

from orchestrator.results import _stage
from workers.records import Metrics, Record


def assessed(**metrics: float) -> Record[Metrics]:
    return Record("f", Path(), {}, Metrics(metrics, 2.0), "worker", 0.0, 2.0)


def test_speeds_of_models_that_were_measured_at_different_times_compare():
    """A machine that was twice as fast when the pruned model was evaluated: 1.5 times the dense speed stays 1.5 times."""
    pruned = _stage("one_shot", assessed(images_per_second=600.0, dense_images_per_second=400.0), 200.0)
    assert pruned.metrics == {"images_per_second": pytest.approx(300.0)} and pruned.seconds == 2.0
    masked = _stage("recovered", assessed(images_per_second=400.0, dense_images_per_second=400.0, sparse_images_per_second=1000.0), 200.0)
    assert masked.metrics == {"images_per_second": pytest.approx(200.0), "sparse_images_per_second": pytest.approx(500.0)}
    assert _stage("dense", assessed(images_per_second=123.0), 200.0).metrics == {"images_per_second": 200.0}
