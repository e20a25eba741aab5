"""The times of layers with zeros, and of models in the sparse runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from kernels.scores import hull
from workers import sparse_times
from workers.export import load_weight
from workers.files import finish, write_tensors
from workers.latency import Comparison, Latency, Runtime
from workers.messages import ImportTask, PredictTask, ScoreTask, TimeLayersTask, TimeSparseTask
from workers.models.base import Layer
from workers.models.timm import TimmModel
from workers.pruners.base import Scope, Target
from workers.pruners.magnitude import Magnitude
from workers.records import Destination, LayerScores
from workers.sparse import RowsProduct
from workers.worker import Worker

LATENCY = Latency(Runtime.EAGER, 2, 1, 16, 0.5, 0.001)
VIT = TimmModel(
    name="vit_tiny_patch16_224",
    arguments={"img_size": 32, "num_classes": 10, "depth": 2, "embed_dim": 48, "num_heads": 3},
    checkpoint=None,
    include=["*"],
    exclude=[],
)


def task(tmp_path: Path, *layers: str) -> TimeLayersTask:
    return TimeLayersTask(VIT, (3, 32, 32), layers, (0.0, 0.5, 0.9), LATENCY, Destination("f", tmp_path))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Each product that was timed: its kind, the zeros of its weight, and the shape of its inputs."""
    timed: list[tuple] = []

    def clocked(run, device, spread, seconds, between):
        products = [cell.cell_contents for cell in run.__closure__]
        (product,) = (each for each in products if isinstance(each, nn.Module | RowsProduct))
        (x,) = (each for each in products if isinstance(each, torch.Tensor))
        weight = product.rows.dense() if isinstance(product, RowsProduct) else product.weight
        timed.append((type(product).__name__, round(1 - int(weight.count_nonzero()) / weight.numel(), 1), tuple(x.shape)))
        run()
        between()
        return type("Timed", (), {"ms": 1.0 + len(timed)})

    monkeypatch.setattr(sparse_times, "clocked", clocked)
    return timed


def test_layers_are_timed_dense_and_with_the_zeros_that_were_asked_for_on_the_inputs_that_they_get(tmp_path, seen):
    """A ViT of 4 patches and a class token, two images at a time; equal layers of the two blocks share their times."""
    ms, measured = sparse_times.layer_times(task(tmp_path, "blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "blocks.0.mlp.fc2"), torch.device("cpu"))
    kinds = [("Linear", 0.0), ("RowsProduct", 0.5), ("RowsProduct", 0.9)]
    assert seen == [(*kind, (2, 5, 48)) for kind in kinds] + [(*kind, (2, 5, 192)) for kind in kinds]
    assert ms == {"blocks.0.mlp.fc1": [2.0, 3.0, 4.0], "blocks.1.mlp.fc1": [2.0, 3.0, 4.0], "blocks.0.mlp.fc2": [5.0, 6.0, 7.0]}
    assert measured == 6


def test_a_layer_that_is_called_twice_takes_both_calls_and_one_that_is_not_called_takes_nothing(seen):
    layer = nn.Linear(8, 4)
    calls = (((2, 8), (8, 1)), ((3, 8), (8, 1)))
    assert sparse_times._times(layer, calls, (0.0, 0.5), LATENCY) == [2.0 + 3.0, 4.0 + 5.0]
    assert sparse_times._times(layer, (), (0.0, 0.5), LATENCY) == [0.0, 0.0]


def test_layers_that_the_sparse_runtime_does_not_take_save_no_time():
    """Paddings that are computed, as timm's TensorFlow models have them, and modules of another kind."""
    calls = (((1, 4, 9, 9), (324, 81, 9, 1)),)
    for layer in (Conv2dSame(4, 4, 3), nn.Conv2d(4, 4, 3, padding="same"), nn.ConvTranspose2d(4, 4, 3)):
        assert sparse_times._times(layer, calls, (0.0, 0.5), LATENCY) == [0.0, 0.0]


def test_inputs_have_the_strides_that_they_have_in_the_model():
    """A convolution of channels-last images is another one than that of contiguous images."""
    model, images = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), torch.zeros(2, 3, 5, 5).to(memory_format=torch.channels_last)
    calls = sparse_times._calls(model, ["0", "1"], images)
    assert calls == {"0": (((2, 3, 5, 5), (75, 1, 15, 3)),), "1": (((2, 4, 5, 5), (100, 1, 20, 4)),)}


def test_a_model_is_timed_as_it_is_or_with_the_masks_that_it_will_get(tmp_path, monkeypatch):
    """The mask is that of the smallest weights, by hand."""
    worker, compared = Worker("cpu", 1), []
    model = worker.import_model(ImportTask(VIT, True, 0, Destination("m", tmp_path / "m"))).file
    layer, pruner = Layer("blocks.0.mlp.fc1", 192, 48), Magnitude(Target(0.5, Scope.GLOBAL))
    weight_RC = load_weight(model, layer.name)
    scores = worker.score(ScoreTask(model, pruner, layer, (), Destination("s", tmp_path / "s")))

    def in_turn(models, beside, images_NCHW, settings):
        compared.append((models[0].get_submodule(layer.name).weight.clone(), beside.get_submodule(layer.name).weight))
        return [Comparison(0.5, 1.0, 0.0, 7)]

    monkeypatch.setattr(sparse_times, "time_in_turn", in_turn)
    for masks in ((), ((layer, scores, 7000),)):
        asked = TimeSparseTask(model, model, (3, 32, 32), pruner, masks, LATENCY, Destination("t", tmp_path / f"t{len(masks)}"))
        assert worker.time_sparse(asked).numbers.ratio == 0.5
    (own, dense), (masked, beside) = compared
    threshold = weight_RC.abs().flatten().sort().values[7000]
    assert torch.equal(own, weight_RC) and torch.equal(dense, weight_RC) and torch.equal(beside, weight_RC)
    assert torch.equal(masked, weight_RC * (weight_RC.abs() >= threshold)) and int((masked == 0).sum()) == 7000


def test_the_predicted_loss_of_a_count_is_that_of_the_cheapest_removals(tmp_path):
    """Of two rows with rising losses, against a sum by hand; without predictions, scores are added instead."""
    loss_nG = torch.tensor([[1.0, 4.0, 9.0], [2.0, 3.0, torch.inf]])
    numbers = LayerScores("a", 0, 6, 5, [], {})

    def predicted(losses: torch.Tensor, to: Destination) -> list[float]:
        written = write_tensors(to.directory / LayerScores.file, {"score_nG": hull(loss_nG), "loss_nG": losses})
        record = finish(to, numbers, 0.0, written)
        return Worker("cpu", 1).predict(PredictTask(record, (0, 1, 3, 5))).tolist()

    assert predicted(loss_nG, Destination("a", tmp_path / "a")) == [0.0, 1.0, 6.0, 19.0]
    assert predicted(torch.full_like(loss_nG, torch.nan), Destination("b", tmp_path / "b")) == [0.0, 1.0, 6.0, 19.0]
