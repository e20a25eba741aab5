"""The times of layers with sparse weights, and of models in the sparse runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from workers.export import load_pruned
from workers.files import read_result
from workers.latency import Comparison, Latency
from workers.sparse import RowsProduct, is_taken, sparse_model
from workers.timing import clocked, flushing, prepared, realised, time_in_turn

if TYPE_CHECKING:
    from workers.messages import TimeLayersTask, TimeSparseTask

Call = tuple[tuple[int, ...], tuple[int, ...]]  # the shape and the strides of an input


@torch.inference_mode()
def layer_times(task: TimeLayersTask, device: torch.device) -> tuple[dict[str, list[float]], int]:
    """Returns the milliseconds of each layer at the sparsities of a task, and how many sizes were timed.

    The first sparsity is 0, the dense layer. A layer is timed alone on random inputs, of the shapes and strides that it gets in the model,
    in all of its calls. One that is never called, or that the sparse runtime does not take, can save no time: it counts as 0 at all
    sparsities.
    """
    model = realised(task.family.build(), device)
    images_NCHW = torch.randn(task.latency.batch_size, *task.input_shape, device=device)
    calls = _calls(model, list(task.layers), images_NCHW)
    known: dict[object, list[float]] = {}
    ms: dict[str, list[float]] = {}
    for name in task.layers:
        layer = model.get_submodule(name)
        key = repr(layer), calls[name]
        if key not in known:
            known[key] = _times(layer, calls[name], task.sparsities, task.latency)
        ms[name] = known[key]
    return ms, len(known) * len(task.sparsities)


def _calls(model: nn.Module, names: list[str], images_NCHW: Tensor) -> dict[str, tuple[Call, ...]]:
    """Returns the inputs of each layer, call by call. Strides count: channels-last images are convolved by other kernels."""
    calls: dict[str, list[Call]] = {name: [] for name in names}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: calls[name].append((tuple(inputs[0].shape), inputs[0].stride()))

    handles = [model.get_submodule(name).register_forward_pre_hook(recorder(name)) for name in names]
    try:
        model(images_NCHW)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(own) for name, own in calls.items()}


def _times(layer: nn.Module, calls: tuple[Call, ...], sparsities: tuple[float, ...], settings: Latency) -> list[float]:
    """Returns the milliseconds of all calls of a layer: dense first, then with random zeros."""
    if not is_taken(layer) or not calls:
        return [0.0] * len(sparsities)
    device = layer.weight.device
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.empty_strided(*call).normal_(generator=generator).to(device) for call in calls]
    between = flushing(device)

    def milliseconds(product: Callable[[Tensor], Tensor]) -> float:
        with prepared(nn.Identity(), (), settings):
            return sum(clocked(lambda: product(x), device, settings.spread, settings.seconds, between).ms for x in inputs)  # noqa: B023

    times_ms = []
    for sparsity in sparsities:
        masked = copy.deepcopy(layer)
        mask_at_random(masked.weight, sparsity, generator)
        times_ms.append(milliseconds(RowsProduct(masked) if sparsity else masked))
    return times_ms


def mask_at_random(weight: Tensor, sparsity: float, generator: torch.Generator) -> None:
    """Sets a random fraction of a weight to zero, in place."""
    with torch.no_grad():
        weight.mul_((torch.rand(weight.shape, generator=generator) >= sparsity).to(weight.device))


def model_time(task: TimeSparseTask, device: torch.device) -> Comparison:
    """Compares the time of a model in the sparse runtime with that of the dense one."""
    model, dense = load_pruned(task.model).to(device), load_pruned(task.beside).to(device)
    for layer, scores, tiles in task.masks:
        weight = model.get_parameter(f"{layer.name}.weight").data
        weight_RC = weight.reshape(layer.rows, layer.columns)
        keep_RC, _ = task.pruner.mask(layer, weight_RC, read_result(scores), tiles)
        weight.mul_(keep_RC.reshape(weight.shape))
    images_NCHW = torch.randn(task.latency.batch_size, *task.input_shape, device=device)
    (measured,) = time_in_turn([sparse_model(model)], dense, images_NCHW, task.latency)
    return measured
