"""Sequential re-fits from the command line: the whole algorithm against a transcription, and how it is carried out."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import ON_RAY, computed, directory, kill_at, model_bytes, run
from tiny import tiny_overrides
from torch import nn

from orchestrator.composing import experiment_of
from workers.export import load_pruned, load_state

SEQUENTIAL = "pruner.refit.order=sequential"
STAGES = "pruner.refit.stages=3"
SHARE, DAMPENING = 0.5, 0.01


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequential")
    run(folder, SEQUENTIAL, STAGES)
    return folder


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    run(folder)
    return folder


def transcribed(dense: nn.Module, masks: dict[str, torch.Tensor], images_NCHW: torch.Tensor) -> dict[str, np.ndarray]:
    """Each layer after those before it, by least squares on its inputs in both models, in float64."""
    dense, pruned = dense.double(), copy.deepcopy(dense).double()
    fitted = {}
    for name, keep_RC in masks.items():
        y, x = inputs_of(dense, name, images_NCHW), inputs_of(pruned, name, images_NCHW)
        weight = dense.get_parameter(f"{name}.weight").detach().numpy()
        penalty = DAMPENING * np.mean(np.mean(x**2, axis=0))
        rows = []
        for w, keep in zip(weight, keep_RC.numpy(), strict=True):
            target = (SHARE * y + (1 - SHARE) * x) @ w
            equations = np.concatenate([x[:, keep] / np.sqrt(len(x)), np.sqrt(penalty) * np.eye(keep.sum())])
            values = np.concatenate([target / np.sqrt(len(x)), np.sqrt(penalty) * w[keep]])
            rows.append(np.zeros_like(w))
            rows[-1][keep] = np.linalg.lstsq(equations, values, rcond=None)[0]
        fitted[name] = np.stack(rows)
        pruned.get_parameter(f"{name}.weight").data = torch.from_numpy(fitted[name])
    return fitted


def inputs_of(model: nn.Module, name: str, images_NCHW: torch.Tensor) -> np.ndarray:
    taken = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        model(images_NCHW)
    handle.remove()
    return torch.cat(taken).numpy()


def test_it_is_the_fit_of_one_layer_after_another(tmp_path: Path, parallel: Path) -> None:
    """Masks are those of the parallel order; weights equal a transcription without stages, shards, files or float32."""
    run(tmp_path, SEQUENTIAL)
    experiment = experiment_of(tiny_overrides(tmp_path))
    state, masks = load_state(directory(tmp_path) / "model.safetensors")
    parallel_masks = load_state(directory(parallel) / "model.safetensors")[1]
    assert masks.keys() == parallel_masks.keys() and all(torch.equal(keep, parallel_masks[name]) for name, keep in masks.items())
    dense = experiment.model.build().eval()
    dense.load_state_dict(experiment.model.pretrained_state())
    shards = experiment.data.shards
    images_NCHW = torch.cat([b.images_NCHW for shard in range(shards) for b in experiment.data.calibration(shard, shards)]).double()
    in_order = {name: masks[name] for name, _ in dense.named_modules() if name in masks}
    for name, truth in transcribed(dense, in_order, images_NCHW).items():
        np.testing.assert_allclose(state[f"{name}.weight"].numpy(), truth, rtol=5e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("pruner", ["cap", "magnitude"])
def test_it_leaves_less_of_an_error_with_the_same_masks(pruner: str, tmp_path: Path) -> None:
    """By the squared error of the features, which is what the calibration with ``loss=features`` measures."""
    for order in ("parallel", "sequential"):
        run(tmp_path, "loss=features", f"pruner={pruner}", f"pruner.refit.order={order}")
    reports = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("tiny-*/report.json")]
    rise = {report["experiment"]["pruner"]["refit"]["order"]: report["loss_increase"]["measured"] for report in reports}
    assert 0 < rise["sequential"] < 0.9 * rise["parallel"]
    assert len({report["pruned_weights"] for report in reports}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_ray_workers_gives_the_bytes_of_one_process(workers: int, undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path, SEQUENTIAL, STAGES, *ON_RAY, f"cluster.workers={workers}")
    assert model_bytes(tmp_path) == model_bytes(undisturbed)


@pytest.mark.parametrize("stage", ["refit", pytest.param("collect pairs", marks=pytest.mark.slow)])
def test_a_killed_driver_continues_where_it_was(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    kill_at(stage, tmp_path, SEQUENTIAL, STAGES)
    run(tmp_path, SEQUENTIAL, STAGES)
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert max(computed(tmp_path).values()) == 1, "finished work was repeated"


def test_settings_of_the_refit_leave_the_masks_and_what_they_come_from_alone(tmp_path: Path) -> None:
    run(tmp_path, SEQUENTIAL, STAGES)
    run(tmp_path, SEQUENTIAL, STAGES, "pruner.refit.dampening=0.1")
    reports = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("tiny-*/report.json")]
    done = [task["verb"] for report in reports for task in report["timeline"] if task["computed"]]
    assert (done.count("collect"), done.count("score"), done.count("solve")) == (8 * 2, 8, 8)
    assert done.count("refit") == 2 * 8 and 8 * 2 < done.count("collect_pairs") < 2 * 8 * 2  # pairs of the first stage serve both


def test_several_steps_fit_to_the_model_that_the_round_started_from(tmp_path: Path) -> None:
    run(tmp_path, SEQUENTIAL, STAGES, "steps=2", "pruner.target.sparsity=0.75")
    model, (_, masks) = load_pruned(directory(tmp_path) / "model.safetensors"), load_state(directory(tmp_path) / "model.safetensors")
    weights = torch.cat([model.get_parameter(f"{name}.weight").flatten() for name in masks])
    assert int((weights == 0).sum()) == round(0.75 * weights.numel())
