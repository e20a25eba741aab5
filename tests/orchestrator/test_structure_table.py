"""The sentences on groups that are not offered."""

from orchestrator.structure_table import left_out_sentences


def test_groups_that_are_not_offered_are_named_with_the_largest_difference():
    reasons = {
        "stem": "the output differs by 5.0e-04",
        "head": "the output differs by 2.3e-01",
        "attn": "without units: shape '[1, 4]' is invalid",
    }
    differing, broken = left_out_sentences(reasons)
    assert all(text in differing for text in ("2 groups", "0.23", "stem, head")) and "attn" not in differing
    assert all(text in broken for text in ("1 group ", "shape '[1, 4]' is invalid", "attn")) and "stem" not in broken
    assert left_out_sentences({}) == []
