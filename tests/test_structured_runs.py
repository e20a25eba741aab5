"""Runs that take units out, from the command line: what they leave computes what it should, is smaller, and does not depend on how."""

import json
from pathlib import Path

import pytest
import torch
from run_cases import SHAPE, computed, directory, kill_at, macs, model_bytes, report_of, run, start, stored
from tiny import TINY_MODEL, tiny_overrides

from workers.export import load_family, load_pruned
from workers.files import read_tensors
from workers.models.memory_costs import written
from workers.models.structures.find import find_groups
from workers.models.structures.groups import mask_

SOSP = ("pruner=sosp_h", "pruner.target.removed=0.5", "pruner.target.of=macs")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, *SOSP)
    return folder


def test_what_is_left_is_the_dense_model_with_units_silenced_and_half_of_its_work(undisturbed: Path) -> None:
    """Against torch's own counter, and against zeros in the dense model; the report says the same numbers."""
    small, (dense,), (chosen,) = (
        load_pruned(directory(undisturbed) / "model.safetensors"),
        stored(undisturbed, "import"),
        stored(undisturbed, "choose"),
    )
    whole = load_pruned(dense / "model.safetensors")
    groups = find_groups(load_family(dense / "model.safetensors"), SHAPE, streams=False)
    said = report_of(undisturbed)
    assert said["dense_size"]["macs"] == macs(whole) and said["final_size"]["macs"] == macs(small)
    assert 0.45 * macs(whole) < macs(small) <= 0.5 * macs(whole)
    kept = {name: stays.bool() for name, stays in read_tensors(chosen / "kept.safetensors").items()}
    assert {group["name"]: group["kept"] for group in said["groups"]} == {name: int(stays.sum()) for name, stays in kept.items()}
    mask_(dict(whole.named_parameters()), groups, kept)
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(small(images), whole(images), rtol=1e-4, atol=1e-5)
    assert said["final_size"]["parameters"] == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.slow
def test_workers_on_ray_leave_the_bytes_of_one_process(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path, *SOSP, "cluster=ray", "cluster.cpus_per_worker=0.5", "cluster.workers=2")
    assert model_bytes(tmp_path) == model_bytes(undisturbed)


@pytest.mark.parametrize("stage", ["collect", pytest.param("shrink", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_and_repeats_nothing(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    kill_at(stage, tmp_path, *SOSP)
    run(tmp_path, *SOSP)
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert set(computed(tmp_path).values()) == {1}


def test_a_second_budget_is_kept_and_told(undisturbed: Path) -> None:
    """It is met, not undercut, where the first alone would leave more parameters; nothing is measured again."""
    run(undisturbed, *SOSP, "pruner.target.removed=0.1", "pruner.target.solver=exact", "+pruner.target.also={parameters:0.5}", "name=both")
    (folder,) = (undisturbed / "runs").glob("both-*")
    told, page = json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text(encoding="utf-8")
    assert told["final_size"]["parameters"] <= 0.5 * told["dense_size"]["parameters"] < told["final_size"]["parameters"] * 1.03
    assert told["final_size"]["macs"] <= 0.9 * told["dense_size"]["macs"]
    assert told["asked"]["also"] == {"parameters": 0.5} and "<td>50.00 %</td>" in page


def test_another_target_reads_the_same_ranking(undisturbed: Path) -> None:
    """A sweep measures once."""
    before, chosen = {verb: stored(undisturbed, verb) for verb in ("collect_units", "rank")}, stored(undisturbed, "choose")
    run(undisturbed, *SOSP[:1], "pruner.target.removed=0.25", "pruner.target.of=parameters", "name=other")
    assert {verb: stored(undisturbed, verb) for verb in ("collect_units", "rank")} == before
    assert len(stored(undisturbed, "choose")) == len(chosen) + 1


def test_units_go_first_and_weights_inside_what_survives_after_them(tmp_path: Path) -> None:
    """SOSP in two steps, training, CAP, training: smaller, half of what is left is zero, and each round says what it did."""
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "both.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - /pruner@rounds.shrink.pruner: sosp_h\n  - /pruner@rounds.mask.pruner: cap\n  - override /recovery: adamw\n"
        "recovery: {epochs: 1, ranks: 1}\n"
        "rounds:\n"
        "  shrink: {steps: 2, pruner: {target: {removed: 0.4, of: parameters}}}\n"
        "  mask: {pruner: {block_size: 16, target: {sparsity: 0.5}}}\n"
    )
    output = run(tmp_path, "--config-dir=my", "+experiment=both", "recovery=adamw")
    model, said = load_pruned(directory(tmp_path) / "model.safetensors"), report_of(tmp_path)
    assert "round shrink, step 2/2: shrink" in output and "round mask: solve" in output
    assert said["final_size"]["parameters"] <= 0.6 * said["dense_size"]["parameters"]
    shrink, mask = said["rounds"]
    assert shrink["asked_of"] == "parameters" and shrink["removed"]["parameters"] == pytest.approx(mask["removed"]["parameters"])
    assert mask["sparsity"] == pytest.approx(0.5, abs=1e-3)
    names = [layer["name"] for layer in said["layers"]]
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    assert sum(int((weight == 0).sum()) for weight in weights) == said["pruned_weights"]
    assert sum(weight.numel() for weight in weights) == said["prunable_weights"]


def test_a_pattern_inside_what_is_left_needs_widths_that_fit_it(tmp_path: Path) -> None:
    """2:4 after units were removed: refused before any work where widths may be odd, and carried out where they are multiples of four."""
    (tmp_path / "my" / "experiment").mkdir(parents=True)

    def experiment(round_to: int) -> None:
        (tmp_path / "my" / "experiment" / "both.yaml").write_text(
            "# @package _global_\n"
            "defaults:\n  - /pruner@rounds.shrink.pruner: unit_magnitude\n  - /pruner@rounds.mask.pruner: magnitude\n"
            "rounds:\n"
            f"  shrink: {{pruner: {{target: {{removed: 0.3, of: macs, round_to: {round_to}}}}}}}\n"
            '  mask: {pruner: {target: {sparsity: 0.5, pattern: "2:4"}}}\n'
        )

    experiment(2)
    refused = start(tmp_path, "--config-dir=my", "+experiment=both")
    output, _ = refused.communicate(timeout=3600)
    assert refused.returncode == 2
    assert all(text in output for text in ("rounds.shrink.pruner.target.round_to: ", "multiple of 4", "round mask", "got 2"))
    assert not (tmp_path / "runs").exists()
    experiment(4)
    run(tmp_path, "--config-dir=my", "+experiment=both")
    assert report_of(tmp_path)["rounds"][1]["sparsity"] == pytest.approx(0.5)


def test_a_model_without_units_is_refused_before_any_work(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from orchestrator.composing import CONF
    from orchestrator.config import load
    from orchestrator.launch import plan_experiment
    from workers.errors import ConfigError

    given = [o for o in tiny_overrides(tmp_path) if not o.startswith("pruner.") and not o.startswith("model.arguments")]
    arguments = {**TINY_MODEL, "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}
    text = ",".join(f"{name}:{value}" for name, value in arguments.items())
    with initialize_config_dir(CONF, version_base="1.3"):
        experiment = load(compose("config", overrides=[*given, f"++model.arguments={{{text}}}", *SOSP]))
    with pytest.raises(ConfigError, match="heads, hidden neurons or channels that can be removed"):
        plan_experiment(experiment)


@pytest.mark.parametrize("solver", ["exact", pytest.param("ranking", marks=pytest.mark.slow)])
def test_memory_is_a_target_and_is_told_as_it_was_reached(tmp_path: Path, solver: str) -> None:
    """Parameters and what a forward pass writes, of the model in the file: at least a third less, and by less than a twentieth more."""
    run(tmp_path, "pruner=unit_magnitude", "pruner.target.of=memory", "pruner.target.removed=0.33", f"pruner.target.solver={solver}")
    (dense,) = stored(tmp_path, "import")

    def held(file: Path) -> int:
        model = load_pruned(file).to("meta")
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return 4 * (numbers + written(model, torch.empty(1, *SHAPE, device="meta")))

    removed = 1 - held(directory(tmp_path) / "model.safetensors") / held(dense / "model.safetensors")
    assert 0.33 <= removed < 0.38
    said = report_of(tmp_path)
    assert said["memory_removed"] == pytest.approx(removed)
    assert any("33.00 % of the memory" in sentence and f"{100 * removed:.2f} %" in sentence for sentence in said["sentences"])
