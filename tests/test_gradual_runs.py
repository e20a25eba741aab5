"""Runs in rounds, from the command line: what is pruned stays pruned, and a round is what a run by itself would be."""

import json
from pathlib import Path

import pytest
import torch
from run_cases import computed, directory, kill_at, model_bytes, report_of, run

from workers.export import load_state

TRAINING = ["recovery=adamw", "recovery.epochs=1", "recovery.batch_size=32", "recovery.ranks=1", "data.train_size=128"]
HALF, MORE = "{pruner:{target:{sparsity:0.5}}}", "{pruner:{target:{sparsity:0.8}},recovery:{epochs:2}}"
TWO_ROUNDS = [*TRAINING, f"+rounds={{half:{HALF},more:{MORE}}}"]


@pytest.fixture(scope="module")
def gradual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradual")
    run(folder, *TWO_ROUNDS)
    return folder


def models(folder: Path, verb: str) -> list[dict[str, torch.Tensor]]:
    """Masks of the models that a verb left, the denser first."""
    found = [load_state(path)[1] for path in (folder / "runs" / "store" / verb).glob("*/*/model.safetensors")]
    return sorted(found, key=lambda masks: -sum(int(mask.sum()) for mask in masks.values()))


def test_zeros_of_a_round_survive_its_training_and_all_later_rounds(gradual: Path) -> None:
    first, second = models(gradual, "join")
    trained, final = models(gradual, "train")
    weights = sum(mask.numel() for mask in first.values())
    for masks, sparsity in ((first, 0.5), (trained, 0.5), (second, 0.8), (final, 0.8)):
        assert sum(int((~mask).sum()) for mask in masks.values()) == round(sparsity * weights)
    assert all(not (second[name] & ~first[name]).any() for name in first), "a weight came back"
    assert all(torch.equal(first[name], trained[name]) and torch.equal(second[name], final[name]) for name in first)
    state, masks = load_state(directory(gradual) / "model.safetensors")
    assert all(torch.equal(state[f"{name}.weight"] != 0, masks[name]) for name in masks)


def test_a_second_round_prunes_every_kind_of_layer_and_empties_none(gradual: Path) -> None:
    """The research code returned all zeros from its second step, and later stages no longer matched the fused qkv layers."""
    first, second = models(gradual, "join")
    assert sorted(first) == sorted(second) and sum("qkv" in name for name in second) == 2
    for kind in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert sum(int((first[name] & ~second[name]).sum()) for name in first if kind in name) > 0
    assert all(mask.any() for mask in second.values())


def test_a_round_starts_from_the_trained_weights_of_the_one_before(gradual: Path) -> None:
    """Its statistic is of that model: collected anew, once."""
    tasks = [json.loads(line) for line in (directory(gradual) / "tasks.jsonl").read_text().splitlines()]
    collected = [task["fingerprint"] for task in tasks if task["verb"] == "collect"]
    assert len(collected) == len(set(collected)) == 2 * 8 * 2
    assert {task["what"].partition(":")[0] for task in tasks if task["verb"] == "solve"} == {"round half", "round more"}


def test_the_report_tells_of_each_round_and_the_plan_knows_every_stage(gradual: Path) -> None:
    report = report_of(gradual)
    assert [(part["name"], part["asked"], part["epochs"]) for part in report["rounds"]] == [("half", 0.5, 1), ("more", 0.8, 2)]
    assert [part["sparsity"] for part in report["rounds"]] == pytest.approx([0.5, 0.8], abs=1e-4)
    assert report["rounds"][-1]["after_recovery"] == report["stages"][-1] and report["stages"][0]["name"] == "dense"
    assert report["asked"]["sparsity"] == 0.8 and sum(layer["zeros"] for layer in report["layers"]) == report["pruned_weights"]
    assert set(report["curves"]) == {"half/recovery", "more/recovery"}
    assert set(report["predicted_stage_seconds"]) <= set(report["stage_seconds"])
    assert {"round half: collect", "round more: recover"} <= set(report["predicted_stage_seconds"])
    lines = [json.loads(line) for line in (directory(gradual) / "metrics.jsonl").read_text().splitlines()]
    assert [line["metrics"]["sparsity"] for line in lines if line["stage"] == "rounds"] == [part["sparsity"] for part in report["rounds"]]
    assert {"half/one_shot", "half/recovered", "more/one_shot", "more/recovered"} <= {line["stage"] for line in lines}


@pytest.mark.parametrize("stage", [pytest.param("round more: collect", marks=pytest.mark.slow), "round more: recover"])
def test_a_driver_killed_in_the_second_round_continues_to_equal_bytes(stage: str, gradual: Path, tmp_path: Path) -> None:
    kill_at(stage, tmp_path, *TWO_ROUNDS)
    run(tmp_path, *TWO_ROUNDS)
    assert model_bytes(tmp_path) == model_bytes(gradual)
    assert max(computed(tmp_path).values()) == 1, "finished work was repeated"


def test_a_single_round_is_the_run_without_rounds(tmp_path: Path) -> None:
    run(tmp_path / "none", *TRAINING, "pruner.target.sparsity=0.6")
    run(tmp_path / "one", *TRAINING, "+rounds={only:{pruner:{target:{sparsity:0.6}}}}")
    assert model_bytes(tmp_path / "one") == model_bytes(tmp_path / "none")
    assert report_of(tmp_path / "none")["rounds"] == [] and "collect" in report_of(tmp_path / "none")["stage_seconds"]


@pytest.mark.slow
def test_two_steps_are_half_the_way_and_a_second_run_from_its_exported_model(tmp_path: Path) -> None:
    run(tmp_path / "steps", "steps=2", "pruner.target.sparsity=0.8")
    run(tmp_path / "half", "pruner.target.sparsity=0.4")
    exported = directory(tmp_path / "half") / "model.safetensors"
    run(tmp_path / "rest", "pruner.target.sparsity=0.8", f"model.checkpoint={exported}")
    assert model_bytes(tmp_path / "steps") == model_bytes(tmp_path / "rest")
    report = report_of(tmp_path / "steps")
    assert {"step 1/2: collect", "step 2/2: solve", "compare"} <= set(report["stage_seconds"]) & set(report["predicted_stage_seconds"])
    assert report["asked"]["steps"] == 2 and report["rounds"] == []
    assert report["stages"][0]["metrics"]["agreement"] == 1.0, "the dense model, not the half pruned one"


def test_steps_with_sparsities_per_layer_are_linear_in_each_layer(tmp_path: Path) -> None:
    """fc layers to 0.8 in two steps, attention stays dense: after the first step 0.4."""
    run(tmp_path, "steps=2", "pruner.target.scope=per_layer", "+pruner.target.per_layer={*.mlp.fc*:0.8}")
    half, whole = models(tmp_path, "join")
    for masks, sparsity in ((half, 0.4), (whole, 0.8)):
        for name, mask in masks.items():
            assert float((~mask).double().mean()) == pytest.approx(sparsity if "mlp" in name else 0.0, abs=1 / mask.numel())


def test_another_pruner_may_carry_out_a_later_round(tmp_path: Path) -> None:
    chosen = ["+pruner@rounds.first.pruner=cap", "+pruner@rounds.second.pruner=magnitude"]
    run(tmp_path, *chosen, "rounds.first.pruner.target.sparsity=0.5", "rounds.second.pruner.target.sparsity=0.75")
    report = report_of(tmp_path)
    assert [part["pruner"] for part in report["rounds"]] == ["CAP", "Magnitude"]
    assert report["pruned_weights"] == round(0.75 * report["prunable_weights"])


def test_a_round_that_prunes_nothing_is_warned_of(tmp_path: Path) -> None:
    run(tmp_path, "+rounds={first:{},again:{}}")
    assert any("round again: nothing was pruned" in warning for warning in report_of(tmp_path)["warnings"])
