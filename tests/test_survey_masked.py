"""Masked pruning of timm's architectures by the script that surveys them: every layer is measured, pruned models load and run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import survey_timm_masked as survey

SAMPLE = {  # what is odd about each
    "coat": "coat_tiny",  # layers that are used twice
    "cait": "cait_xxs24_224",  # a class token that is expanded
    "eva": "vit_tiny_patch16_dinov3_qkvb",  # weights that are handed on without calling their module
    "iformer": "iformer_t",  # values wider than queries
    "nfnet": "test_nfnet",  # convolutions that standardise their weights
    "levit": "levit_128s",
    "maxxvit": "test_coatnet",
    "mambaout": "test_mambaout",
}


@pytest.mark.parametrize("module", SAMPLE)
def test_a_sample_is_measured_pruned_and_run(module):
    row = survey.surveyed(module, SAMPLE[module])
    assert row.error == "" and row.measured == row.layers > 0
    assert row.side == 96 and 0 < row.pruned <= 0.5 * survey.PRUNED


def test_what_fails_is_told_by_its_row_and_not_raised(monkeypatch):
    monkeypatch.setattr(survey, "fitting", lambda architecture: 1 / 0)
    assert survey.surveyed("vision_transformer", "test_vit").error == "ZeroDivisionError: division by zero"


@pytest.mark.slow
def test_all_modules_of_timm_can_be_pruned_by_masks():
    rows = [survey.surveyed(module, name) for module, name in survey.smallest_architectures().items()]
    assert len(rows) >= 98 and [row for row in rows if row.error] == []
