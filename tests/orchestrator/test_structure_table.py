"""The sentences on groups that are not offered."""

from orchestrator.structure_table import left_out_sentences


def test_groups_that_are_not_offered_are_named_with_the_largest_difference():
    reasons = {
        "stem": "the output differs by 5.0e-04",
        "head": "the output differs by 2.3e-01",
        "attn": "without units: shape '[1, 4]' is invalid",
    }
    differing, broken = left_out_sentences(reasons)
    assert differing.startswith("2 groups not offered") and differing.endswith(" by up to 0.23 of its largest value): stem, head")
    assert broken.startswith("1 group not offered") and broken.endswith("(without units: shape '[1, 4]' is invalid): attn")
    assert left_out_sentences({}) == []
