"""The script that surveys masking in timm's architectures: every layer has a statistic, and pruned models load and run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import survey_timm_masked as survey

SAMPLE = {  # with what is special about each
    "coat": "coat_tiny",  # uses layers twice
    "cait": "cait_xxs24_224",  # expands a class token
    "eva": "vit_tiny_patch16_dinov3_qkvb",  # uses weights without calling their module
    "iformer": "iformer_t",  # has values that are wider than queries
    "nfnet": "test_nfnet",  # standardises the weights of convolutions
    "levit": "levit_128s",
    "maxxvit": "test_coatnet",
    "mambaout": "test_mambaout",
}


@pytest.mark.parametrize("module", SAMPLE)
def test_a_sample_is_collected_pruned_and_run(module):
    row = survey.survey(module, SAMPLE[module])
    assert row.error == "" and row.measured == row.layers > 0
    assert row.side == 96 and 0 < row.pruned <= 0.5 * survey.PRUNED


def test_an_error_is_in_its_row_and_not_raised(monkeypatch):
    monkeypatch.setattr(survey, "fitting", lambda architecture: 1 / 0)
    assert survey.survey("vision_transformer", "test_vit").error == "ZeroDivisionError: division by zero"


@pytest.mark.slow
def test_all_modules_of_timm_can_be_pruned_by_masks():
    rows = [survey.survey(module, name) for module, name in survey.smallest_architectures().items()]
    assert len(rows) >= 98 and [row for row in rows if row.error] == []
