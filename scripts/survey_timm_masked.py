"""Masked pruning of one architecture of every module of timm: the smallest one that builds without weights, measured, pruned and run.

    python scripts/survey_timm_masked.py [ARCHITECTURE ...] [--json survey.json]

Weights are random, images are noise: the table says that every layer is found, measured and pruned and that the model runs afterwards, and
nothing about accuracy. Of each architecture: the plan at its own image size; at a small size the block Fisher (two batches, loss=sampled)
and inputs of every layer; then CAP takes half of the weights of its smaller layers, and the model file is loaded and evaluated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from kernels import masks, select
from kernels.patterns import parse
from kernels.second_moment import SecondMoment
from orchestrator.allocation.weights import Units, allocate
from workers import evaluation
from workers.collect.products import Products
from workers.collect.statistic import BlockFisher, LayerHessian
from workers.data.base import Batch
from workers.export import load_pruned, save_model
from workers.losses import Loss
from workers.models.base import Layer
from workers.models.profile import profile
from workers.models.timm import TimmModel
from workers.pruners.base import Scope, Target
from workers.pruners.cap import CAP, Score

SIDES = (96, 112, 128, 160, 192, 224, 256)  # of images that are tried, the smallest first
BATCHES, SAMPLES = 2, 2
NORMALISED = 8  # images that batch norms are set by
PORTION = 24_000_000  # weights whose gradients are collected at a time
WIDEST = 2048  # columns up to which the matrix of a layer's inputs is summed too
PRUNED = 400_000  # weights of the layers that are scored and solved, the smaller ones first
PRUNER = CAP(Target(0.5, Scope.GLOBAL), block_size=8, dampening=1e-3, relative_dampening=True, score_rule=Score.HULL)


@dataclass(frozen=True)
class Row:
    """What came of one architecture; ``error`` is empty if all of it worked."""

    module: str
    architecture: str
    side: int = 0  # of the images in pixels
    parameters: int = 0
    layers: int = 0
    weights: int = 0  # that can be pruned
    measured: int = 0  # layers with a statistic that is not zero
    pruned: int = 0  # weights that were taken, of the layers that were scored
    agreement: float = 0.0  # of the pruned model's decisions with those of the dense one
    seconds: float = 0.0
    error: str = ""


def smallest_architectures(modules: Sequence[str] = ()) -> dict[str, str]:
    """By module of timm (all of them by default), the architecture with the fewest parameters that builds without weights.

    Of all it takes two minutes."""
    found = {}
    for module in modules or timm.list_modules():
        sizes = {name: size for name in timm.list_models(module=module) if (size := _parameters(name)) is not None}
        found[module] = min(sizes, key=lambda name: sizes[name])
    return found


def _parameters(architecture: str) -> int | None:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(architecture, pretrained=False).parameters())
    except Exception:
        return None


def surveyed(module: str, architecture: str) -> Row:
    """Everything of one architecture; what fails is told, not raised."""
    started = time.perf_counter()
    torch.manual_seed(0)
    try:
        own_size = timm.get_pretrained_cfg(architecture)
        profile(_family(architecture, {}), (3, 224, 224) if own_size is None else own_size.input_size)
        arguments, side = fitting(architecture)
        with tempfile.TemporaryDirectory() as folder:
            row = _pruned(module, _family(architecture, arguments), side, Path(folder))
    except Exception as error:
        row = Row(module, architecture, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Row(**asdict(row) | {"seconds": time.perf_counter() - started})


def fitting(architecture: str) -> tuple[dict[str, int], int]:
    """The smallest of the tried images that it takes, and the arguments that it needs for this."""
    own_size = timm.get_pretrained_cfg(architecture)
    for side in (*SIDES, 224 if own_size is None else own_size.input_size[-1]):
        for arguments in ({}, {"img_size": side}):
            try:
                with torch.device("meta"), torch.no_grad():
                    _family(architecture, arguments).build().eval()(torch.empty(2, 3, side, side))
            except Exception:
                continue
            return arguments, side
    raise ValueError(f"{architecture} takes none of the images that were tried")


def _family(architecture: str, arguments: dict[str, int]) -> TimmModel:
    return TimmModel(name=architecture, arguments=arguments, checkpoint=None, include=["*"], exclude=[])


def _pruned(module: str, family: TimmModel, side: int, folder: Path) -> Row:
    batches = [Batch(_images(SAMPLES, side), torch.full((SAMPLES,), -1)) for _ in range(BATCHES)]
    initial = _unlike_initial(family.build(), _images(NORMALISED, side))
    layers = family.layers(initial)
    save_model(folder / "dense.safetensors", family, initial.state_dict(), {})
    dense = load_pruned(folder / "dense.safetensors")
    _require_inputs(dense, layers, batches)
    chosen = _smaller(layers)
    moments = _measured(dense, layers, batches, {layer.name for layer in chosen})
    state, keeps = dense.state_dict(), {}
    for layer, weight_RC, keep_RC in _solved(dense, chosen, moments):
        shape = state[f"{layer.name}.weight"].shape
        state[f"{layer.name}.weight"], keeps[layer.name] = weight_RC.reshape(shape), keep_RC.reshape(shape)
    save_model(folder / "pruned.safetensors", family, state, keeps)
    before, after = (_outputs(model, batches) for model in (dense, load_pruned(folder / "pruned.safetensors")))
    if not torch.isfinite(after).all() or torch.equal(before, after):
        raise ValueError("the pruned model's outputs are not finite, or those of the dense one")
    return Row(
        module=module,
        architecture=family.name,
        side=side,
        parameters=sum(parameter.numel() for parameter in initial.parameters()),
        layers=len(layers),
        weights=sum(layer.weights for layer in layers),
        measured=len(layers),
        pruned=sum(int((~keep).sum()) for keep in keeps.values()),
        agreement=float((before.argmax(1) == after.argmax(1)).double().mean()),
    )


def _images(samples: int, side: int) -> Tensor:
    """Noise that is coarse and fine, so that samples differ after pooling too."""
    coarse = torch.nn.functional.interpolate(torch.randn(samples, 3, 4, 4), size=(side, side), mode="bilinear")
    return coarse + 0.5 * torch.randn(samples, 3, side, side)


@torch.no_grad()
def _unlike_initial(model: nn.Module, images_NCHW: Tensor) -> nn.Module:
    """As a trained model is: a block that is switched off to begin with passes no gradient on, nor does a softmax that is saturated.

    So scales and shifts are not all zero or one, and batch norms know what they normalise.
    """
    for parameter in model.parameters():
        if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(images_NCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
    return model


def _smaller(layers: Sequence[Layer]) -> list[Layer]:
    chosen: list[Layer] = []
    for layer in sorted(layers, key=lambda layer: layer.weights):
        if chosen and sum(other.weights for other in chosen) + layer.weights > PRUNED:
            break
        chosen.append(layer)
    return chosen


@torch.no_grad()
def _require_inputs(model: nn.Module, layers: list[Layer], batches: list[Batch]) -> None:
    """Every layer's weight meets inputs, and where the matrix of these is small, it is summed."""
    met: set[str] = set()
    with Products(model, layers, lambda name, _: met.add(name)):
        model(batches[0].images_NCHW)
    if unmet := [layer.name for layer in layers if layer.name not in met]:
        raise ValueError(f"{len(unmet)} layers met no inputs: {', '.join(unmet[:3])}")
    narrow = [layer for layer in layers if layer.columns <= WIDEST]
    for part in _portions(narrow, [layer.groups * layer.columns**2 for layer in narrow]):
        found = LayerHessian(parse("unstructured")).collect(model, part, iter(batches), Loss.SAMPLED, 0)
        _require_measured(part, found.moments, least=BATCHES)


def _measured(model: nn.Module, layers: list[Layer], batches: list[Batch], kept: set[str]) -> dict[str, SecondMoment]:
    """The block Fisher of every layer; that of the layers in ``kept`` is returned."""
    moments: dict[str, SecondMoment] = {}
    statistic = BlockFisher(PRUNER.block_size, PRUNER.pattern)
    for part in _portions(layers, [layer.weights for layer in layers]):
        found = statistic.collect(model, part, iter(batches), Loss.SAMPLED, 0)
        _require_measured(part, found.moments, least=BATCHES)
        moments |= {name: moment for name, moment in found.moments.items() if name in kept}
    return moments


def _require_measured(layers: list[Layer], moments: dict[str, SecondMoment], least: int) -> None:
    empty = [name for name, moment in moments.items() if moment.count < least or not bool((moment.diagonal_nB() > 0).any())]
    if empty or len(moments) != len(layers):
        raise ValueError(f"{len(empty)} layers have no statistic: {', '.join(empty[:3])}")


def _portions(layers: list[Layer], sizes: Sequence[int]) -> Iterator[list[Layer]]:
    part: list[Layer] = []
    taken = 0
    for layer, size in zip(layers, sizes, strict=True):
        if part and taken + size > PORTION:
            yield part
            part, taken = [], 0
        part.append(layer)
        taken += size
    yield part


def _solved(model: nn.Module, layers: list[Layer], moments: dict[str, SecondMoment]) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Layers with their new weights and what survives of them, at half of all weights."""
    weights = {layer.name: model.get_parameter(f"{layer.name}.weight").detach().reshape(layer.rows, layer.columns) for layer in layers}
    scores = {layer.name: PRUNER.score(weights[layer.name], layer, moments[layer.name]) for layer in layers}
    units = {layer.name: Units(layer.weights, int(torch.isfinite(scores[layer.name].score_nG).sum())) for layer in layers}

    def histograms(high_bin: int | None) -> list[Tensor]:
        found = [scores[layer.name].score_nG for layer in layers]
        return [select.high_histogram(score) if high_bin is None else select.low_histogram(score, high_bin) for score in found]

    allocation = allocate(PRUNER.target, layers, units, histograms)
    for layer in layers:
        score, weight_RC = scores[layer.name], weights[layer.name]
        counts_n = select.select_smallest(score.score_nG, allocation[layer.name]).sum(1)
        removed_nG = masks.prefix_mask(score.order_nG, counts_n)
        keep_RC = ~PRUNER.layout(layer).join_tiles(removed_nG) & (weight_RC != 0)
        solution = PRUNER.solve(weight_RC, layer, moments[layer.name], keep_RC)
        yield layer, solution.weight_RC, solution.keep_RC


def _outputs(model: nn.Module, batches: list[Batch]) -> Tensor:
    return evaluation.outputs(model, iter(batches), timed=False, device=torch.device("cpu"))[0]


def table(rows: Sequence[Row]) -> Table:
    """The rows for the console."""
    found = Table(title=f"masked: {sum(not row.error for row in rows)} of {len(rows)} modules of timm {timm.__version__}")
    for title in ("module", "architecture", "pixels", "layers", "prunable", "of all", "pruned", "seconds", "ok or the error"):
        found.add_column(title)
    for row in rows:
        share = f"{row.weights / row.parameters:.0%}" if row.parameters else ""
        numbers = (str(row.side), str(row.layers), f"{row.weights:,}", share, f"{row.pruned:,}", f"{row.seconds:.1f}")
        found.add_row(row.module, row.architecture, *numbers, row.error or "ok")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", help="of timm; without any, the smallest of every module")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    console = Console(width=160)
    asked = [(timm.model_entrypoint(name).__module__.split(".")[-1], name) for name in options.architectures]
    rows = []
    for module, architecture in asked or list(smallest_architectures().items()):
        rows.append(surveyed(module, architecture))
        console.print(f"{architecture}: {rows[-1].error or 'ok'}, {rows[-1].seconds:.1f} s")
    console.print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
