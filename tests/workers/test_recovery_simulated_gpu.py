"""Trainings by DeepSpeed on a GPU that is simulated: no tensor is on the wrong device, and the weights are those of plain torch on a CPU.

DeepSpeed decides once for a process what it runs on, so the trainings have a process of their own. ZeRO stages above 0 need addresses and
streams, which the simulated GPU does not have; nor does it round to bfloat16.
"""

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.pool import Pool
from pathlib import Path
from unittest import mock

import pytest
import torch
from recovery_cases import Gang, free_port, plain_training, recipe, sparse_model, stripes, task
from simulated_gpu import simulated_gpu

from workers.errors import SecateurError
from workers.export import load_state
from workers.messages import TrainTask
from workers.training import loop
from workers.training.meeting import meet
from workers.training.settings import Distill, Optimizer

PLAIN = {
    "adamw": recipe(),
    "sgd": recipe(optimizer=Optimizer.SGD),
    "recompute": recipe(recompute=True),
}
DISTILLED = {kind: recipe(distill=kind, distill_weight=0.5) for kind in (Distill.LOGITS, Distill.FEATURES)}


def _train(sent: TrainTask) -> int | str:
    """Carried out in a process of its own. Returns the epochs that were done before, or the error."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    with simulated_gpu(), mock.patch.object(loop, "meet", lambda backend: meet("gloo")):
        try:
            record = loop.train(sent, "cuda")
        except (SecateurError, OSError) as error:
            return str(error)
    assert record is not None
    return record.numbers.epochs_resumed_from


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[Pool]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Gang]:
    gang = Gang(1)
    yield gang
    gang.close()


@pytest.mark.parametrize("name", PLAIN)
def test_a_training_on_a_gpu_equals_a_plain_torch_loop_and_keeps_zeros(name: str, on_gpu: Pool, tmp_path: Path) -> None:
    model, data = sparse_model(tmp_path / "model.safetensors"), stripes()
    assert on_gpu.apply(_train, [task(tmp_path / "trained", model, PLAIN[name], data)]) == 0
    trained, masks = load_state(tmp_path / "trained" / "model.safetensors")
    expected = plain_training(model, PLAIN[name], data)
    assert all(torch.allclose(trained[layer], tensor, atol=1e-5) for layer, tensor in expected.items())
    assert all(not trained[f"{layer}.weight"][~keep].any() for layer, keep in masks.items())


@pytest.mark.parametrize("kind", DISTILLED)
def test_a_model_learns_from_its_teacher_as_on_a_cpu(kind: Distill, on_gpu: Pool, on_cpu: Gang, tmp_path: Path) -> None:
    model, teacher = sparse_model(tmp_path / "model.safetensors"), sparse_model(tmp_path / "dense.safetensors", sparsity=0.0)
    asked = [task(tmp_path / where, model, DISTILLED[kind], teacher=teacher) for where in ("gpu", "cpu")]
    assert on_gpu.apply(_train, [asked[0]]) == 0
    (record,) = on_cpu.train(asked[1])
    (weights, masks), (expected, _) = load_state(tmp_path / "gpu" / "model.safetensors"), load_state(record.file)
    assert all(torch.allclose(weights[layer], tensor, atol=1e-5) for layer, tensor in expected.items())
    assert all(not weights[f"{layer}.weight"][~keep].any() for layer, keep in masks.items())


def test_a_training_on_a_gpu_resumes_from_its_checkpoint(on_gpu: Pool, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "model.safetensors")
    asked = task(tmp_path / "trained", model, recipe())
    assert "the data went away" in str(on_gpu.apply(_train, [replace(asked, data=stripes(fails_in_epoch=1))]))
    assert on_gpu.apply(_train, [asked]) == 1
    assert on_gpu.apply(_train, [task(tmp_path / "whole", model, recipe())]) == 0
    resumed, whole = (load_state(tmp_path / folder / "model.safetensors")[0] for folder in ("trained", "whole"))
    assert all(torch.equal(resumed[layer], tensor) for layer, tensor in whole.items())


def test_a_gpu_training_that_diverges_says_so(on_gpu: Pool, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "model.safetensors")
    said = on_gpu.apply(_train, [task(tmp_path / "trained", model, recipe(), stripes(nan_from=3))])
    assert "expected finite numbers, got NaN or infinity" in str(said)
