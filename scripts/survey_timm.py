"""Survey the groups of units in timm's models: the smallest architecture of every module, with half of each group removed.

    python scripts/survey_timm.py [--modules cait beit] [--out units.md]

Finds groups like ``mode=structure``, including residual streams. Removes half of the units of every group at once, and compares the output
of the smaller model with that of the model in which these units are set to zero, in float64, on random images and weights. Takes about
half an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from rich.progress import track
from survey_timm_masked import smallest_architectures
from torch import Tensor, nn

from workers.models.base import ModelFamily
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_structure
from workers.models.structures.groups import Group, mask_, take
from workers.models.timm import TimmModel

EXACT = 1e-9  # relative to the largest output


@dataclass(frozen=True)
class Row:
    """One architecture. ``difference`` is None if no unit can be removed. ``error`` is the reason if the architecture failed."""

    module: str
    architecture: str
    groups: Mapping[str, int]  # number of groups by kind
    share: float  # of the weights, in units
    left_out: int
    difference: float | None
    seconds: float  # to find the groups
    error: str = ""

    @property
    def exact(self) -> bool:
        return self.difference is not None and self.difference <= EXACT


def family(name: str) -> tuple[ModelFamily, tuple[int, int, int]]:
    """Returns the family of an architecture, and the shape of its images."""
    model_family = TimmModel(checkpoint=None, name=name, arguments={}, include=["*"], exclude=[])
    config = timm.get_pretrained_cfg(name)
    return model_family, tuple(config.input_size) if config is not None else (3, 224, 224)


def survey(module: str, name: str) -> Row:
    """Surveys one architecture. An error becomes the error of its row."""
    model_family, shape = family(name)
    started = time.perf_counter()
    try:
        structure = find_structure(model_family, shape)
        seconds = time.perf_counter() - started
        groups = structure.groups
        largest = difference(model_family, shape, groups) if groups else None
        kinds = Counter(group.kind.value for group in groups)
        return Row(module, name, kinds, share(model_family, groups), len(structure.left_out), largest, seconds)
    except Exception as error:  # the survey reports errors
        text = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return Row(module, name, {}, 0.0, 0, None, time.perf_counter() - started, text)


@torch.no_grad()
def difference(model_family: ModelFamily, shape: tuple[int, int, int], groups: list[Group]) -> float:
    """Returns the largest difference of the outputs, relative to the largest output."""
    torch.manual_seed(0)
    model, images_NCHW = perturbed(model_family.build()), torch.randn(1, *shape, dtype=torch.float64)
    kept = {group.name: half(group.units) for group in groups}
    state = model.state_dict()
    smaller = shrunk(model_family, state, take(state, groups, kept), groups, kept).build().double().eval()
    smaller.load_state_dict(take(state, groups, kept))
    output = smaller(images_NCHW)
    mask_(dict(model.named_parameters()), groups, kept)
    expected = model(images_NCHW)
    return float((output - expected).abs().max() / expected.abs().max())


def perturbed(model: nn.Module) -> nn.Module:
    """Returns the model in float64, without the zeros, ones and equal values of initial weights."""
    for parameter in model.double().eval().parameters():
        parameter.add_(torch.randn_like(parameter) * 0.03)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.8, 1.5)
    return model


def half(units: int) -> Tensor:
    """Returns a bool mask that keeps a random half of the units."""
    return torch.zeros(units, dtype=torch.bool).index_fill_(0, torch.randperm(units)[: max(1, units // 2)], True)


def share(model_family: ModelFamily, groups: list[Group]) -> float:
    """Returns the fraction of all parameters that are removed with some unit."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_family.build().named_parameters()}
    places: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        for part in (*group.produced, *group.consumed):
            dims = places.setdefault(part.tensor, {})
            in_unit = dims.setdefault(part.dim, torch.zeros(shapes[part.tensor][part.dim], dtype=torch.bool))
            in_unit[part.index_UK.reshape(-1)] = True
    inside = 0.0
    for name, dims in places.items():
        outside = 1.0
        for in_unit in dims.values():
            outside *= 1 - float(in_unit.double().mean())
        inside += (1 - outside) * shapes[name].numel()
    return inside / sum(shape.numel() for shape in shapes.values())


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        "| module | architecture | heads | neurons | channels | streams | of the weights | left out | difference | seconds |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        kinds = " | ".join(str(row.groups.get(kind, 0)) for kind in ("head", "neuron", "channel", "stream"))
        result = row.error or ("no units" if row.difference is None else f"{row.difference:.0e}")
        lines.append(f"| {row.module} | {row.architecture} | {kinds} | {row.share:.0%} | {row.left_out} | {result} | {row.seconds:.1f} |")
    exact, none = sum(row.exact for row in rows), sum(row.difference is None and not row.error for row in rows)
    errors = sum(bool(row.error) for row in rows)
    other = len(rows) - exact - none - errors
    slow = max((row.seconds for row in rows), default=0.0)
    counts = f"{exact} exact, {none} without units that can be removed, {other} that differ, {errors} errors"
    return "\n".join([*lines, "", f"{len(rows)} architectures: {counts}; at most {slow:.0f} s."])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modules", nargs="*", help="modules of timm.models; all by default")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = [(module, name) for module, name in sorted(smallest_architectures(options.modules or ()).items())]
    rows = [survey(module, name) for module, name in track(chosen, "architectures")]
    text = table(rows)
    print(text)
    if options.out:
        options.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
