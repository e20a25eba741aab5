"""Survey masking in timm's models: collect, prune and run the smallest architecture of every module.

    python scripts/survey_timm_masked.py [ARCHITECTURE ...] [--json survey.json]

Weights are random and images are noise, so the table says nothing about accuracy: only that every layer gets a statistic and is pruned, and
that the model runs afterwards. For each architecture, the script profiles the model at its own image size, and collects the block Fisher of
every layer (two batches, loss=sampled) and its inputs at a small size. Then CAP masks half of the weights of the smaller layers, and the
model file is loaded and evaluated.
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
from orchestrator.allocation.weights import Tiles, allocate
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

SIDES = (96, 112, 128, 160, 192, 224, 256)  # image sizes to try, the smallest first
BATCHES, SAMPLES = 2, 2
NORMALISED = 8  # images for the statistics of batch norms
PORTION = 24_000_000  # weights that are collected at a time
WIDEST = 2048  # the largest number of columns for which the layer Hessian is collected, too
PRUNED = 400_000  # weights in the layers that are scored and solved, the smallest layers first
PRUNER = CAP(Target(0.5, Scope.GLOBAL), block_size=8, dampening=1e-3, relative_dampening=True, score_rule=Score.HULL)


@dataclass(frozen=True)
class Row:
    """The result for one architecture. ``error`` is empty if everything worked."""

    module: str
    architecture: str
    side: int = 0  # of the images, in pixels
    parameters: int = 0
    layers: int = 0
    weights: int = 0  # that can be pruned
    measured: int = 0  # layers whose statistic is not zero
    pruned: int = 0  # masked weights in the layers that were scored
    agreement: float = 0.0  # of the pruned model's predictions with the dense model's
    seconds: float = 0.0
    error: str = ""


def smallest_architectures(modules: Sequence[str] = ()) -> dict[str, str]:
    """Returns, for each module of timm (all by default), the architecture with the fewest parameters that builds without weights.

    Takes two minutes for all modules.
    """
    smallest = {}
    for module in modules or timm.list_modules():
        sizes = {name: size for name in timm.list_models(module=module) if (size := _parameters(name)) is not None}
        smallest[module] = min(sizes, key=lambda name: sizes[name])
    return smallest


def _parameters(architecture: str) -> int | None:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(architecture, pretrained=False).parameters())
    except Exception:
        return None


def survey(module: str, architecture: str) -> Row:
    """Surveys one architecture. An error becomes the error of its row."""
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
    """Returns the arguments of the smallest image size that the architecture accepts, and that size."""
    own_size = timm.get_pretrained_cfg(architecture)
    for side in (*SIDES, 224 if own_size is None else own_size.input_size[-1]):
        for arguments in ({}, {"img_size": side}):
            try:
                with torch.device("meta"), torch.no_grad():
                    _family(architecture, arguments).build().eval()(torch.empty(2, 3, side, side))
            except Exception:
                continue
            return arguments, side
    raise ValueError(f"{architecture} accepts none of the image sizes")


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
    moments = _collected(dense, layers, batches, {layer.name for layer in chosen})
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
    """Returns coarse and fine noise, so that samples also differ after pooling."""
    coarse = torch.nn.functional.interpolate(torch.randn(samples, 3, 4, 4), size=(side, side), mode="bilinear")
    return coarse + 0.5 * torch.randn(samples, 3, side, side)


@torch.no_grad()
def _unlike_initial(model: nn.Module, images_NCHW: Tensor) -> nn.Module:
    """Makes initial weights like those of a trained model, since initial zeros and saturated softmaxes pass no gradients.

    Scales and shifts are not all zero or one, and batch norms have statistics.
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
    """Checks that every layer gets inputs, and that a layer Hessian of moderate size can be collected."""
    reached: set[str] = set()
    with Products(model, layers, lambda name, _: reached.add(name)):
        model(batches[0].images_NCHW)
    if missing := [layer.name for layer in layers if layer.name not in reached]:
        raise ValueError(f"{len(missing)} layers got no inputs: {', '.join(missing[:3])}")
    narrow = [layer for layer in layers if layer.columns <= WIDEST]
    for part in _portions(narrow, [layer.groups * layer.columns**2 for layer in narrow]):
        collected = LayerHessian(parse("unstructured")).collect(model, part, iter(batches), Loss.SAMPLED, 0)
        _require_collected(part, collected.moments, BATCHES)


def _collected(model: nn.Module, layers: list[Layer], batches: list[Batch], kept: set[str]) -> dict[str, SecondMoment]:
    """Collects the block Fisher of every layer, and returns that of the layers in ``kept``."""
    moments: dict[str, SecondMoment] = {}
    statistic = BlockFisher(PRUNER.block_size, PRUNER.pattern)
    for part in _portions(layers, [layer.weights for layer in layers]):
        collected = statistic.collect(model, part, iter(batches), Loss.SAMPLED, 0)
        _require_collected(part, collected.moments, BATCHES)
        moments |= {name: moment for name, moment in collected.moments.items() if name in kept}
    return moments


def _require_collected(layers: list[Layer], moments: dict[str, SecondMoment], fewest: int) -> None:
    empty = [name for name, moment in moments.items() if moment.count < fewest or not bool((moment.diagonal_nB() > 0).any())]
    if empty or len(moments) != len(layers):
        raise ValueError(f"{len(empty)} layers have no statistic: {', '.join(empty[:3])}")


def _portions(layers: list[Layer], sizes: Sequence[int]) -> Iterator[list[Layer]]:
    part: list[Layer] = []
    size_of_part = 0
    for layer, size in zip(layers, sizes, strict=True):
        if part and size_of_part + size > PORTION:
            yield part
            part, size_of_part = [], 0
        part.append(layer)
        size_of_part += size
    yield part


def _solved(model: nn.Module, layers: list[Layer], moments: dict[str, SecondMoment]) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Yields layers with their new weights and masks, with half of all weights masked."""
    weights = {layer.name: model.get_parameter(f"{layer.name}.weight").detach().reshape(layer.rows, layer.columns) for layer in layers}
    scores = {layer.name: PRUNER.score(weights[layer.name], layer, moments[layer.name]) for layer in layers}
    tiles = {layer.name: Tiles(layer.weights, int(torch.isfinite(scores[layer.name].score_nG).sum())) for layer in layers}

    def histograms(high_bin: int | None) -> list[Tensor]:
        layer_scores = [scores[layer.name].score_nG for layer in layers]
        return [select.high_histogram(score) if high_bin is None else select.low_histogram(score, high_bin) for score in layer_scores]

    allocation = allocate(PRUNER.target, layers, tiles, histograms)
    for layer in layers:
        score, weight_RC = scores[layer.name], weights[layer.name]
        counts_n = select.select_smallest(score.score_nG, allocation[layer.name]).sum(1)
        removed_nG = masks.prefix_mask(score.order_nG, counts_n)
        keep_RC = ~PRUNER.layout(layer).join_tiles(removed_nG) & (weight_RC != 0)
        solution = PRUNER.solve(weight_RC, layer, moments[layer.name], keep_RC)
        yield layer, solution.weight_RC, solution.keep_RC


def _outputs(model: nn.Module, batches: list[Batch]) -> Tensor:
    return evaluation.outputs(model, iter(batches), torch.device("cpu")).outputs


def table(rows: Sequence[Row]) -> Table:
    """Returns a table for the console."""
    printed = Table(title=f"masked: {sum(not row.error for row in rows)} of {len(rows)} modules of timm {timm.__version__}")
    for title in ("module", "architecture", "pixels", "layers", "prunable", "of all", "pruned", "seconds", "ok or the error"):
        printed.add_column(title)
    for row in rows:
        share = f"{row.weights / row.parameters:.0%}" if row.parameters else ""
        numbers = (str(row.side), str(row.layers), f"{row.weights:,}", share, f"{row.pruned:,}", f"{row.seconds:.1f}")
        printed.add_row(row.module, row.architecture, *numbers, row.error or "ok")
    return printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", help="of timm; by default, the smallest of every module")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    console = Console(width=160)
    chosen = [(timm.model_entrypoint(name).__module__.split(".")[-1], name) for name in options.architectures]
    rows = []
    for module, architecture in chosen or list(smallest_architectures().items()):
        rows.append(survey(module, architecture))
        console.print(f"{architecture}: {rows[-1].error or 'ok'}, {rows[-1].seconds:.1f} s")
    console.print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
