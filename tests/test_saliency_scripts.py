"""The scripts that compare saliencies, on small models."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import report_of, run
from scipy.stats import rankdata
from tiny import tiny_overrides
from torch.nn.functional import cross_entropy

from orchestrator.composing import experiment_of
from workers.data.base import Batch
from workers.losses import Loss
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import mask_, take
from workers.models.timm import TimmModel

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import bench_saliency  # noqa: E402
import rank_correlation  # noqa: E402

SHAPE = (3, 32, 32)
CONVNEXT = [
    "model=digits_convnext",
    "model.checkpoint=null",
    "model.arguments.depths=[1,1,1,1]",
    "model.arguments.dims=[4,8,8,12]",
    "model.arguments.patch_size=1",
    "+model.arguments.ls_init_value=1.0",  # with the default, blocks hardly contribute after a few steps
    "recovery@training=convnext_scratch",
    "training.epochs=3",
    "training.batch_size=32",
    "training.ranks=1",
    "training.warmup_epochs=0.0",
    "data.train_size=256",
    "pruner=unit_random",
    "pruner.target.removed=0.2",
]


def output_of(script: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=3600)
    assert process.returncode == 0, process.stderr
    return process.stdout


def small_vit() -> tuple[TimmModel, torch.nn.Module]:
    torch.manual_seed(0)
    family = bench_saliency.vit(32, 1, 10)
    return family, family.build().eval()


# ---------------------------------------------------------------------------------------------------------- rank_correlation.py


def test_the_rise_of_a_unit_is_that_of_the_model_without_it() -> None:
    """Against the mean cross-entropy of models that are really smaller. The measured model is unchanged afterwards."""
    family, model = small_vit()
    groups, state = find_groups(family, SHAPE, streams=False), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [Batch(torch.randn(8, *SHAPE), torch.randint(10, (8,))) for _ in range(2)]
    images, labels = torch.cat([batch.images_NCHW for batch in batches]), torch.cat([batch.labels for batch in batches])
    heads = groups[0].units
    units = [0, heads - 1, heads, heads + 17]  # two heads, two neurons
    rises = rank_correlation.rises(model, groups, units, batches, Loss.LABELS)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    places = [(group.name, unit) for group in groups for unit in range(group.units)]
    for rise, position in zip(rises, units, strict=True):
        kept = {group.name: torch.tensor([places[position] != (group.name, unit) for unit in range(group.units)]) for group in groups}
        smaller = take(state, groups, kept)
        without = shrunk(family, state, smaller, groups, kept).build().eval()
        without.load_state_dict(smaller)
        with torch.no_grad():
            expected = cross_entropy(without(images), labels) - cross_entropy(model(images), labels)
        assert rise == pytest.approx(float(expected), rel=1e-2, abs=1e-6)


def test_correlations_are_those_of_ranks_and_random_scores_have_a_low_one(tmp_path: Path) -> None:
    arguments = [*tiny_overrides(tmp_path), "--sample", "60", "--batches", "2", "--json", "correlation.json", "--threads", "1"]
    output = output_of("rank_correlation.py", *arguments, folder=tmp_path)
    result = json.loads((tmp_path / "correlation.json").read_text())
    assert len(set(result["units"])) == len(result["rise"]) == 60 and "60 of 260 units" in output  # 2 blocks of 2 heads, 128 neurons
    assert {"random", "magnitude", "taylor", "sosp_h", "sosp_h, exact", "sosp_i", "sosp_i, alone"} == set(result["correlation"])
    for name, row in result["correlation"].items():
        assert row["all"] == pytest.approx(np.corrcoef(rankdata(result["score"][name]), rankdata(result["rise"]))[0, 1], abs=1e-9)
    assert abs(result["correlation"]["random"]["size"]) < 4 / math.sqrt(60) < result["correlation"]["sosp_i, alone"]["size"]


# ------------------------------------------------------------------------------------------------------------ bench_saliency.py


def test_the_bench_counts_units_and_weights_and_skips_models_that_are_too_large(tmp_path: Path) -> None:
    small = ["--depth", "2", "--batches", "1", "--batch-size", "4", "--repeats", "1", "--threads", "1"]
    arguments = ["--widths", "32", "64", *small, "--most-units", "300", "--json", "bench.json"]
    output = output_of("bench_saliency.py", *arguments, folder=tmp_path)
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    for row in rows:
        assert row["units"] == 2 * (row["width"] // 16 + 4 * row["width"])
        assert row["parameters"] == sum(p.numel() for p in bench_saliency.vit(row["width"], 2, 10).build().parameters())
        first = next(other for other in rows if other["width"] == row["width"] and other["method"] == "first order")
        assert row["seconds"] > 0 and row["times_seconds"] == pytest.approx(row["seconds"] / first["seconds"])
    methods = [(row["width"], row["method"]) for row in rows]
    assert [entry for entry in methods if entry[1] == "SOSP-I"] == [(32, "SOSP-I")] and len(methods) == 4 + 3
    worst = max(row["times_seconds"] for row in rows if row["method"] == "SOSP-H")
    assert f"at most {worst:.2f} first-order passes" in output


def test_the_bench_measures_time_and_memory() -> None:
    """A function that sleeps for 50 ms and fills 64 MB."""
    import time

    def work() -> None:
        torch.ones(16_000_000).sum()
        time.sleep(0.05)

    seconds, extra = bench_saliency.measured(work, torch.device("cpu"), repeats=2)
    assert seconds >= 0.05 and 0.5 * 64e6 < extra < 2 * 64e6


# ------------------------------------------------------------------------------------------------------ compare_torch_pruning.py


@pytest.mark.slow
def test_torch_pruning_is_compared_on_the_dense_model_and_the_images_of_a_run(tmp_path: Path) -> None:
    """If nothing is removed, every row is the accuracy in the report; with half of the units removed it is not."""
    pytest.importorskip("torch_pruning")
    import compare_torch_pruning

    recovery = ["recovery=adamw", "recovery.epochs=1", "recovery.batch_size=32", "recovery.ranks=1"]
    run(tmp_path, *CONVNEXT, *recovery)  # its store has a recovered model, too
    settings = [o for o in tiny_overrides(tmp_path) if not o.startswith(("model.", "pruner.", "recovery="))]
    output = output_of(
        "compare_torch_pruning.py", *settings, *CONVNEXT, *recovery, "--removed", "0", "0.5", "--recover", "0.5", folder=tmp_path
    )
    rows = {name: re.findall(r"\| ([\d.]+) ", cells) for name, cells in re.findall(r"^\| (Group.*?) (\|.*)$", output, flags=re.MULTILINE)}
    dense = report_of(tmp_path)["stages"][0]["metrics"]["top1"]
    assert list(rows) == list(compare_torch_pruning.IMPORTANCES)
    assert {cells[0] for cells in rows.values()} == {f"{100 * dense:.1f}"}
    assert any(float(cells[1]) < 100 * dense - 1 for cells in rows.values())
    assert any(float(cells[2]) > float(cells[1]) for cells in rows.values()) and all(len(cells) == 3 for cells in rows.values())


def test_units_that_are_zero_have_no_importance_in_torch_pruning(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    import compare_torch_pruning

    settings = [o for o in tiny_overrides(tmp_path) if not o.startswith(("model.", "pruner."))]
    experiment = experiment_of([*settings, *CONVNEXT, "data.calibration_batches=2"])
    torch.manual_seed(0)
    model = experiment.model.build().eval()
    groups = find_groups(experiment.model, experiment.data.input_shape, streams=False)
    kept = {group.name: torch.arange(group.units) >= 2 for group in groups}
    dead = ~torch.cat(list(kept.values()))
    mask_(dict(model.named_parameters()), groups, kept)
    names = [
        name for name in compare_torch_pruning.IMPORTANCES if "Magnitude" not in name
    ]  # magnitudes also count columns that read a unit
    for name in names:
        score_S = compare_torch_pruning.scores(name, model, groups, experiment)
        assert not score_S[dead].any() and (score_S[~dead] > 0).all(), name
