"""The script that surveys the groups of units in timm's architectures."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import survey_timm as survey

SAMPLE = {"byobnet": "test_byobnet", "mambaout": "test_mambaout", "nfnet": "test_nfnet", "vision_transformer": "test_vit"}


def test_a_sample_of_architectures_is_exact_without_half_of_every_group():
    rows = [survey.survey(module, name) for module, name in SAMPLE.items()]
    assert [row.architecture for row in rows if not row.exact] == [] and all(row.groups and 0 < row.share <= 1 for row in rows)
    text = survey.table(rows)
    assert (
        "4 architectures: 4 exact, 0 without units that can be removed, 0 that differ, 0 errors" in text
        and "| vision_transformer | test_vit |" in text
    )


def test_an_error_is_in_its_row_and_not_raised(monkeypatch):
    monkeypatch.setattr(survey, "find_structure", lambda *_: 1 / 0)
    row = survey.survey("vision_transformer", "test_vit")
    assert row.error == "ZeroDivisionError: division by zero" and not row.exact and row.error in survey.table([row])


@pytest.mark.slow
def test_of_98_modules_of_timm_at_least_92_are_exact_and_none_is_an_error():
    rows = [survey.survey(module, name) for module, name in survey.smallest_architectures().items()]
    assert len(rows) >= 98 and [row.error for row in rows if row.error] == []
    assert sum(row.exact for row in rows) >= 92 and all(row.exact or row.difference is None for row in rows)
