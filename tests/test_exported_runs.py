"""Runs that go on from what an earlier run exported: it is their dense model, and what is pruned in it stays so."""

import math
import re
from pathlib import Path

import pytest
import torch
from run_cases import SHAPE, directory, macs, model_bytes, report_of, run, start, stored

from workers.export import load_family, load_masks, load_pruned, load_state
from workers.files import read_tensors
from workers.models.structures.find import find_groups
from workers.models.structures.groups import take

TRAINING = ["recovery=adamw", "recovery.epochs=1", "recovery.batch_size=32", "recovery.ranks=1", "data.train_size=128"]


def exported(folder: Path) -> Path:
    return directory(folder) / "model.safetensors"


def going_on_from(folder: Path) -> tuple[str, str]:
    return "model=exported", f"model.checkpoint={exported(folder)}"


def outputs(folder: Path, which: int) -> torch.Tensor:
    """Of the model that was evaluated first (0) or last (-1), on the test images."""
    return read_tensors(stored(folder, "evaluate")[which] / "outputs.safetensors")["outputs"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the multiply-adds removed, then half of the remaining weights masked."""
    folder = tmp_path_factory.mktemp("first")
    rounds = ["+pruner@rounds.shrink.pruner=sosp_h", "+pruner@rounds.mask.pruner=cap", "rounds.mask.pruner.target.sparsity=0.5"]
    run(folder, *rounds, "rounds.shrink.pruner.target.removed=0.5", "rounds.mask.pruner.block_size=16")
    return folder


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From there by another method: again half of what is left, and a training."""
    folder = tmp_path_factory.mktemp("second")
    run(folder, *going_on_from(first), "pruner=taylor", "pruner.target.removed=0.5", *TRAINING)
    return folder


def test_weights_that_were_masked_count_and_more_are_masked_beside_them(first: Path, tmp_path: Path) -> None:
    run(tmp_path, *going_on_from(first), "pruner.target.sparsity=0.8")
    assert torch.equal(outputs(tmp_path, 0), outputs(first, -1)), "the dense model is the file's"
    before, after, said = load_masks(exported(first)), load_masks(exported(tmp_path)), report_of(tmp_path)
    assert before.keys() == after.keys() and not any((after[name] & ~before[name]).any() for name in before)
    weights = sum(keep.numel() for keep in after.values())
    assert sum(int((~keep).sum()) for keep in before.values()) == round(0.5 * weights)
    assert sum(int((~keep).sum()) for keep in after.values()) == said["pruned_weights"] == round(0.8 * weights)


def test_units_are_taken_out_of_what_was_left_and_its_zeros_survive_a_training(first: Path, second: Path) -> None:
    whole, small, said = load_pruned(exported(first)), load_pruned(exported(second)), report_of(second)
    assert torch.equal(outputs(second, 0), outputs(first, -1))
    assert said["dense_size"]["macs"] == macs(whole) and said["final_size"]["macs"] == macs(small)
    assert 0.4 * macs(whole) < macs(small) <= 0.5 * macs(whole)
    kept = {name: stays.bool() for name, stays in read_tensors(stored(second, "choose")[0] / "kept.safetensors").items()}
    groups, masks = find_groups(load_family(exported(first)), SHAPE, streams=False), load_masks(exported(first))
    left = take({f"{name}.weight": keep for name, keep in masks.items()}, groups, kept)
    state, held = load_state(exported(second))
    assert {f"{name}.weight" for name in held} == left.keys()
    assert all(torch.equal(keep, left[f"{name}.weight"]) for name, keep in held.items())
    assert all(not state[name][~keep].any() and state[name][keep].any() for name, keep in left.items() if keep.any())


def test_a_third_run_goes_on_from_the_second(second: Path, tmp_path: Path) -> None:
    run(tmp_path, *going_on_from(second), "pruner=unit_random", "pruner.target.removed=0.3", "pruner.target.of=structures", "steps=2")
    assert torch.equal(outputs(tmp_path, 0), outputs(second, -1))
    of_each = [find_groups(load_family(exported(folder)), SHAPE, streams=False) for folder in (second, tmp_path)]
    before, after = [sum(group.units for group in groups) for groups in of_each]
    assert after == math.floor(0.7 * before)


def test_what_is_only_masked_gives_the_bytes_of_a_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "half", "pruner.target.sparsity=0.4")
    run(tmp_path / "one", "pruner.target.sparsity=0.8", f"model.checkpoint={exported(tmp_path / 'half')}")
    same_layers = 'model.include=["*.attn.qkv","*.attn.proj","*.mlp.fc*"]'
    run(tmp_path / "other", "pruner.target.sparsity=0.8", *going_on_from(tmp_path / "half"), same_layers)
    assert model_bytes(tmp_path / "one") == model_bytes(tmp_path / "other")


def test_it_is_planned_from_the_file_and_other_layers_may_be_chosen(first: Path, tmp_path: Path) -> None:
    output = run(tmp_path, *going_on_from(first), "mode=plan", 'model.include=["*.mlp.fc1"]')
    model = load_pruned(exported(first))
    assert f"of {sum(parameter.numel() for parameter in model.parameters()):,} weights" in output
    for name in ("blocks.0.mlp.fc1", "blocks.1.mlp.fc1"):
        rows, columns = model.get_parameter(f"{name}.weight").shape
        assert re.search(rf"{name} .* {rows} x {columns} ", output), output
    assert "attn" not in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("as_what", ["a checkpoint of another architecture", "nothing"])
def test_a_misplaced_file_is_one_line_with_the_remedy(as_what: str, first: Path, tmp_path: Path) -> None:
    if as_what == "nothing":
        settings, expected = ("model=exported", "model.checkpoint=/nowhere/model.safetensors"), "/nowhere/model.safetensors"
    else:
        settings, expected = (going_on_from(first)[1],), f"model=exported {going_on_from(first)[1]}"
    process = start(tmp_path, *settings)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 2 and expected in output and "Traceback" not in output
    assert [line.startswith("error: model.checkpoint: ") for line in output.splitlines() if "error" in line] == [True]
