"""The sparse runtime: a masked model whose layers multiply only the weights that are left, where that is faster.

``load_pruned(path, runtime="sparse")`` returns such a model. Each layer times both products on the first inputs that it gets, keeps the
faster one and lets the other go, so a model is not slower than its dense twin. The first inputs also show which batch normalisations can be
folded into the convolutions before them.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from kernels import sparse
from workers.errors import SecateurError
from workers.models.folding import SoleReaders, factors, normalisations, remaining

LEAST_ZEROS = 0.3  # with fewer zeros the dense product is faster on every machine
TURNS = 5  # in which both products are timed
COMPUTE_CAPABILITY = (8, 0)  # of devices with sparse tensor cores

_choosing = RLock()


@dataclass(frozen=True)
class Choice:
    """How a layer is computed, and what both products took; None before the first forward pass."""

    layer: str
    zeros: float
    runtime: str | None  # "sparse", "2:4" or "dense"
    dense_ms: float | None
    sparse_ms: float | None


class SparseLayer(nn.Module):
    """A Linear or Conv2d with zeros in its weight, which the first inputs decide whether to use.

    It computes no gradients. Code that reads ``weight`` gets the dense weight, scaled by the normalisation that was folded into the layer.
    """

    def __init__(self, dense: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.dense: nn.Linear | nn.Conv2d | None = dense
        self.bias, self.shape = dense.bias, dense.weight.shape
        self.zeros = _zeros(dense)
        self.runtime: str | None = None
        self.dense_ms: float | None = None
        self.sparse_ms: float | None = None
        self._product: Product | None = None

    @property
    def weight(self) -> Tensor:
        if self.dense is not None:
            return self.dense.weight
        assert isinstance(self._product, RowsProduct)
        return self._product.rows.dense().reshape(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.runtime is None:
            with _choosing:
                if self.runtime is None:
                    self._choose(x)
        if self._product is not None:
            return self._product(x)
        assert self.dense is not None
        return self.dense(x)

    def _choose(self, x: Tensor) -> None:
        """Times both products in turn on ``x`` and keeps the faster one."""
        assert self.dense is not None
        found = _sparse_product(self.dense, x)
        if found is not None:
            turns = [(_milliseconds(self.dense, x), _milliseconds(found, x)) for _ in range(TURNS + 1)]
            self.dense_ms, self.sparse_ms = (min(times_ms[1:]) for times_ms in zip(*turns, strict=True))  # the first turn compiles
            if self.dense_ms <= self.sparse_ms:
                found = None
        if found is None:
            self.runtime = "dense"
            return
        self._product = found
        if isinstance(found, RowsProduct):
            self.dense = None
        self.runtime = found.runtime

    def scale(self, scale_R: Tensor, shift_R: Tensor) -> None:
        """Scales and shifts the outputs from now on."""
        if self.dense is not None:
            _scale(self.dense, scale_R, shift_R)
            self.bias = self.dense.bias
        if isinstance(self._product, RowsProduct):
            self._product.scale(scale_R, shift_R)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.zeros:.0%} zeros, runtime={self.runtime or 'not chosen yet'}"


class RowsProduct:
    """The product of a layer by ``kernels.sparse``."""

    runtime = "sparse"

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.rows = sparse.sparse_rows(layer.weight.detach().flatten(1))
        self.bias_R = torch.zeros(self.rows.shape[0]) if layer.bias is None else layer.bias.detach().contiguous()
        self.geometry = None if isinstance(layer, nn.Linear) else _geometry(layer)
        self._placed: dict[tuple[int, int], sparse.Placed] = {}  # by the size of the images

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            what = f"expected float32 inputs on the CPU, where the layer was timed, got {x.dtype} on {x.device}"
            raise SecateurError(f"sparse layer: {what}; load the model once more for other inputs")
        if x.requires_grad and torch.is_grad_enabled():
            raise SecateurError("sparse layer: expected inputs without gradients; call the model in torch.inference_mode()")
        if self.geometry is None:
            return sparse.linear(x, self.rows, self.bias_R)
        images_NCHW = x if x.ndim == 4 else x[None]
        if self.geometry.is_pointwise and self.geometry.groups == 1 and images_NCHW.is_contiguous(memory_format=torch.channels_last):
            out_NHWR = sparse.linear(images_NCHW.permute(0, 2, 3, 1), self.rows, self.bias_R)  # pixels are tokens
            return out_NHWR.permute(0, 3, 1, 2) if x.ndim == 4 else out_NHWR[0].permute(2, 0, 1)
        size = (images_NCHW.shape[2], images_NCHW.shape[3])
        placed = self._placed.get(size) or self._placed.setdefault(size, self.geometry.placed(self.rows, *size))
        out_NRHW = sparse.conv2d(images_NCHW, self.rows, self.bias_R, self.geometry, placed)
        return out_NRHW if x.ndim == 4 else out_NRHW[0]

    def scale(self, scale_R: Tensor, shift_R: Tensor) -> None:
        """Scales and shifts the outputs from now on."""
        scale_n = scale_R.repeat_interleave(self.rows.starts.diff())
        self.rows = replace(self.rows, values=(self.rows.values * scale_n).float())
        self.bias_R = (self.bias_R * scale_R + shift_R).float()


class TwoOfFourProduct:
    """The product of a Linear by sparse tensor cores. It has not been measured on a device yet."""

    runtime = "2:4"

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = torch.sparse.to_sparse_semi_structured(layer.weight.detach()), layer.bias

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


Product = RowsProduct | TwoOfFourProduct


def _sparse_product(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Product | None:
    """Returns the product that skips zeros; None if there is none for these inputs."""
    same = x.device == layer.weight.device and x.dtype == layer.weight.dtype
    if not same or not x.numel():
        return None
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return RowsProduct(layer)
    if x.device.type != "cuda" or not isinstance(layer, nn.Linear) or not _is_two_of_four(layer.weight):
        return None
    if torch.cuda.get_device_capability(x.device) < COMPUTE_CAPABILITY:
        return None
    try:
        return TwoOfFourProduct(layer)
    except (RuntimeError, ValueError):  # a shape or a type that the device's kernels do not take
        return None


def _is_two_of_four(weight_RC: Tensor) -> bool:
    """Returns whether two of every four neighbours are zero."""
    return weight_RC.shape[1] % 4 == 0 and int((weight_RC.reshape(-1, 4) != 0).sum(1).max()) <= 2


def _geometry(layer: nn.Conv2d) -> sparse.Convolution:
    pairs = [(int(pair[0]), int(pair[1])) for pair in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    return sparse.Convolution(layer.groups, layer.in_channels, *pairs)


def _milliseconds(product: nn.Module | Product, x: Tensor) -> float:
    started = time.perf_counter()
    product(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return 1e3 * (time.perf_counter() - started)


def is_taken(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Returns whether a module is a plain Linear or Conv2d, which the sparse runtime can compute if it has zeros."""
    if isinstance(module, nn.Conv2d):
        plain = type(module).forward is nn.Conv2d.forward and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    else:
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return plain and not hasattr(module, "parametrizations") and 0 < module.weight[0].numel() <= sparse.MOST_COLUMNS  # type: ignore[index]


def _zeros(layer: nn.Linear | nn.Conv2d) -> float:
    """Returns the fraction of a layer's weights that are zero."""
    return 1 - int(torch.count_nonzero(layer.weight)) / layer.weight.numel()


def sparse_model(model: nn.Module) -> nn.Module:
    """Returns a copy of a masked model, in eval mode, whose layers use the zeros of their weights where that is faster.

    The copy shares the tensors of ``model`` and computes no gradients. Each layer decides on the first forward pass, which should therefore
    have the batch size and the number of threads of later ones.
    """
    shared: dict[int, object] = {id(tensor): tensor for tensor in model.buffers()}
    shared |= {id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared).eval()
    replaced: dict[nn.Module, SparseLayer] = {}
    for module in list(copied.modules()):
        for name, layer in list(module.named_children()):
            if is_taken(layer) and _zeros(layer) >= LEAST_ZEROS:
                setattr(module, name, replaced.setdefault(layer, SparseLayer(layer)))
    if replaced and normalisations(copied):
        copied.register_forward_pre_hook(Folding(), with_kwargs=True)
    return copied


class Folding:
    """Folds batch normalisations into the convolutions before them, before the first forward pass of a model."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.done:
            return
        with _choosing, torch.no_grad():
            if not self.done:
                self._fold(model, inputs, named)
                self.done = True

    def _fold(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        convolutions = [module for module in model.modules() if isinstance(module, SparseLayer) or is_taken(module)]
        with SoleReaders(convolutions, normalisations(model)) as readers:
            outputs = model.forward(*inputs, **named)
            pairs = {after: before for before, after in readers.pairs() if before.weight.dtype == torch.float32}
            del outputs
        for normalisation, convolution in pairs.items():
            if isinstance(convolution, SparseLayer):
                convolution.scale(*factors(normalisation))
            elif is_taken(convolution):
                _scale(convolution, *factors(normalisation))
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d) and child in pairs:
                    setattr(module, name, remaining(child))


def _scale(layer: nn.Linear | nn.Conv2d, scale_R: Tensor, shift_R: Tensor) -> None:
    """Scales and shifts the outputs of a layer, which gets tensors of its own."""
    shape = (-1, *(1,) * (layer.weight.ndim - 1))
    bias_R = shift_R if layer.bias is None else layer.bias * scale_R + shift_R
    layer.weight = nn.Parameter((layer.weight * scale_R.reshape(shape)).to(layer.weight), requires_grad=False)
    layer.bias = nn.Parameter(bias_R.to(layer.weight), requires_grad=False)


def choices(model: nn.Module) -> list[Choice]:
    """Returns how each layer with zeros is computed."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, SparseLayer))
    return [Choice(name, layer.zeros, layer.runtime, layer.dense_ms, layer.sparse_ms) for name, layer in layers]
