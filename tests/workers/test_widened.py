"""Models with wider groups: larger as requested, trainable, and shrunk like any other model."""

from fnmatch import fnmatchcase

import pytest
import torch
from structure_cases import VIT, family, half

from workers.errors import ConfigError
from workers.export import load_family, load_pruned, save_model
from workers.models.shrunk import shrunk
from workers.models.structures import find
from workers.models.structures.find import find_groups
from workers.models.structures.groups import take
from workers.models.widened import WidenedModel

CASES = {
    "vit_giant_patch14_dinov2": (VIT, 28, {"blocks.1.mlp": 1.5, "blocks.0.attn": 2.0}),
    "resnet18": ({}, 32, {"layer1.0.conv1": 2.0, "layer4.*": 1.25}),
}


def widened(name):
    arguments, size, widths = CASES[name]
    settings = {"name": name, "arguments": {"num_classes": 10} | arguments, "include": ["*"], "exclude": []}
    return WidenedModel(None, "workers.models.timm.TimmModel", settings, widths, [3, size, size])


def units(made, size):
    return {group.name: group.units for group in find_groups(made, (3, size, size), streams=True)}


@pytest.mark.parametrize("name", CASES)
def test_groups_are_wider_by_their_factor_and_others_as_they_were(name):
    arguments, size, widths = CASES[name]
    before, after = units(family(name, **arguments), size), units(widened(name), size)
    assert after.keys() == before.keys()
    for group, count in before.items():
        factors = [factor for pattern, factor in widths.items() if fnmatchcase(group, pattern)]
        assert after[group] == (round(factors[0] * count) if factors else count)
    assert sum(after.values()) > sum(before.values())


@pytest.mark.parametrize("name", CASES)
def test_a_wide_model_computes_is_drawn_anew_by_the_seed_and_keeps_the_spread_of_its_weights(name):
    made, size = widened(name), CASES[name][1]
    torch.manual_seed(0)
    first = made.build().eval()
    torch.manual_seed(0)
    second = made.build().eval()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert first(torch.randn(2, 3, size, size)).shape == (2, 10)
    narrow = made.narrow.build()
    for key, tensor in first.named_parameters():
        if tensor.shape != narrow.get_parameter(key).shape and tensor.numel() > 2000:
            assert float(tensor.detach().std()) == pytest.approx(float(narrow.get_parameter(key).detach().std()), rel=0.15, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_wide_model_is_shrunk_and_loaded_like_any_other(name, tmp_path):
    made, size = widened(name), CASES[name][1]
    groups, model = find_groups(made, (3, size, size), streams=False), made.build().eval()
    kept = {group.name: half(group.units) for group in groups}
    state = take(model.state_dict(), groups, kept)
    save_model(tmp_path / "model.safetensors", shrunk(made, model.state_dict(), state, groups, kept), state, {})
    loaded = load_pruned(tmp_path / "model.safetensors")
    assert loaded(torch.randn(1, 3, size, size)).shape == (1, 10)
    assert units(load_family(tmp_path / "model.safetensors"), size).items() >= {g: int(stays.sum()) for g, stays in kept.items()}.items()


@pytest.mark.parametrize("name", CASES)
def test_a_wide_model_is_built_without_memory_for_a_plan(name, monkeypatch):
    monkeypatch.setattr(find, "_CACHE", {})
    made = widened(name)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in made.build().state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in made.build().state_dict().items()}


def test_patterns_that_match_nothing_are_refused():
    made = widened("resnet18")
    made.widths = {"layer9.*": 2.0}
    with pytest.raises(ConfigError, match=r"layer9.*matches none of the 12 groups \(conv1"):
        made.build()
