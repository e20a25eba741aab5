"""Whole runs on a GPU that is simulated: no tensor is on the wrong device, and the masks are those of a CPU."""

from pathlib import Path

import pytest
import torch
from run_cases import arguments
from simulated_gpu import OnGPU, simulated_gpu
from torch import nn

from orchestrator.composing import composed
from orchestrator.config import as_dict, load
from orchestrator.launch import run_experiment
from orchestrator.report.result import Report
from workers.export import load_state

SMALL = {"num_classes": 10, "in_chans": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
ARGUMENTS = ",".join(f"{name}:{value}" for name, value in SMALL.items())
CONV = ["model=timm", "model.name=convnext_atto", f"+model.arguments={{{ARGUMENTS}}}", "pruner=obc", "data.calibration_batches=4"]
UNITS = "pruner.target.removed=0.4"
MASKED = {
    "magnitude": ["pruner=magnitude"],
    "cap": ["pruner=cap"],
    "cap in steps": ["pruner=cap", "steps=2"],
    "cap 2:4": ["pruner=cap", "pruner.target.pattern='2:4'", "pruner.target.sparsity=0.5"],
    "woodfisher": ["pruner=woodfisher"],
    "obc": ["pruner=obc"],
    "sparsegpt": ["pruner=sparsegpt"],
    "wanda": ["pruner=wanda"],
    "guided": ["pruner=guided", "loss=features"],
    "guided groups:4": ["pruner=guided", "pruner.target.pattern='groups:4'", "loss=sampled"],
}
REMOVED = {
    "taylor": ["pruner=taylor", UNITS],
    "sosp_h": ["pruner=sosp_h", UNITS],
    "sosp_h exact": ["pruner=sosp_h", UNITS, "pruner.product=exact"],
    "sosp_i": ["pruner=sosp_i", UNITS],
    "unit_magnitude": ["pruner=unit_magnitude", UNITS],
    "halp": ["pruner=halp", UNITS, "latency.widths=3", "latency.seconds=0.01"],
}


def run(folder: Path, where: str, overrides: list[str]) -> tuple[Report, Path]:
    """The report of a run and its directory; ``where`` is its store's own, so that nothing is shared."""
    asked = composed(arguments(folder, *overrides, f"output={folder / where}"))
    return run_experiment(load(asked), as_dict(asked), "")


@pytest.mark.parametrize("name", MASKED)
def test_weights_are_masked_on_a_gpu_as_on_a_cpu(name: str, tmp_path: Path) -> None:
    _, on_cpu = run(tmp_path, "cpu", MASKED[name])
    with simulated_gpu():
        _, on_gpu = run(tmp_path, "gpu", MASKED[name])
    (weights, masks), (theirs, their_masks) = load_state(on_cpu / "model.safetensors"), load_state(on_gpu / "model.safetensors")
    kept = sum(mask.numel() for mask in masks.values())
    differing = sum(int((mask != their_masks[layer]).sum()) for layer, mask in masks.items())
    assert masks.keys() == their_masks.keys() and differing <= 0.001 * kept, "but for ties"
    if not differing:
        assert all(torch.allclose(tensor, theirs[layer], atol=1e-4) for layer, tensor in weights.items())


@pytest.mark.parametrize("name", REMOVED)
def test_units_are_removed_on_a_gpu(name: str, tmp_path: Path) -> None:
    with simulated_gpu():
        report, _ = run(tmp_path, "gpu", REMOVED[name])
    assert report.dense_size is not None and report.final_size is not None
    removed = 1 - report.final_size.macs / report.dense_size.macs
    assert removed >= 0 if name == "halp" else 0.3 < removed < 0.6, "40 % asked; a simulated clock says nothing"


def test_convolutions_are_masked_on_a_gpu(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(0)
    save_file(create_model("convnext_atto", **SMALL).state_dict(), tmp_path / "convnext.safetensors")
    overrides = [*CONV, f"model.checkpoint={tmp_path / 'convnext.safetensors'}", "data.image_size=32"]
    with simulated_gpu():
        _, directory = run(tmp_path, "gpu", overrides)
    assert sum(int((~mask).sum()) for mask in load_state(directory / "model.safetensors")[1].values()) > 0


def test_the_simulation_refuses_what_cuda_refuses() -> None:
    with simulated_gpu():
        layer, inputs = nn.Linear(3, 2).to("cuda"), torch.ones(4, 3)
        assert isinstance(layer.weight, OnGPU) and layer.weight.device == torch.device("cuda:0")
        with pytest.raises(RuntimeError, match="same device"):
            layer(inputs)
        outputs = layer(inputs.to("cuda"))
        outputs.sum().backward()
        assert isinstance(layer.weight.grad, OnGPU) and torch.equal(layer.weight.grad.cpu(), torch.full((2, 3), 4.0))
        with pytest.raises(TypeError, match="device type tensor"):
            outputs.detach().numpy()
        with pytest.raises(RuntimeError, match="same device"):
            outputs += torch.ones(4, 2)
        assert type(outputs.detach().cpu()) is torch.Tensor and outputs[torch.tensor([0, 1])].shape == (2, 2)
        assert torch.zeros(2, device=outputs.device).is_cuda and not torch.zeros(2).is_cuda
    assert not torch.zeros(2).is_cuda
