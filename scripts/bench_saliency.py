"""Compare the time and memory of unit saliencies with those of a first-order pass over the same images, as a model grows.

    python scripts/bench_saliency.py [--widths 48 96 192 384] [--classes 10] [--threads 2] [--device cpu] [--json bench_saliency.json]
        [--page saliencies.html]

The models are vision transformers of growing width, with growing numbers of heads and hidden neurons. SOSP-H should take at most three
first-order passes, whatever the number of units. SOSP-I takes a backward pass for each class and sample, and memory that is quadratic in
the number of units. Times are the best of several runs after a warm-up. Memory is the peak above what the process, or torch on a GPU,
held before. ``--page`` writes a page with a figure of both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plotly import graph_objects as go
from rich.console import Console
from rich.table import Table

from orchestrator.quantities import size
from orchestrator.report.figures import PALETTE
from orchestrator.report.figures import figure as figure_of
from orchestrator.report.page import figure_page
from workers.collect import unit_saliency as saliency
from workers.data.base import Batch
from workers.losses import Loss
from workers.memory import give_back, peak_bytes
from workers.models.structures.find import find_groups
from workers.models.timm import TimmModel
from workers.pruners.units import UnitSums

HEAD = 16  # channels of a head
IMAGE = (3, 32, 32)
FIRST_ORDER, LIMIT = "first order", 3.0
METHODS = (FIRST_ORDER, "SOSP-H", "SOSP-H, exact", "SOSP-I")


def vit(width: int, depth: int, classes: int) -> TimmModel:
    """Returns a vision transformer for small images."""
    arguments = {
        "img_size": IMAGE[1],
        "patch_size": 4,
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // HEAD,
        "num_classes": classes,
    }
    return TimmModel(name="vit_tiny_patch16_224", arguments=arguments, checkpoint=None, include=["*"], exclude=[])


def measured(work: Callable[[], UnitSums], device: torch.device, repeats: int) -> tuple[float, int]:
    """Returns the seconds of the fastest run, and the peak of the memory that it needed."""
    work()
    seconds, extra = [], []
    for _ in range(repeats):
        give_back()
        with peak_bytes(device) as idle:
            pass
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else idle.bytes or 0
        started = time.perf_counter()
        with peak_bytes(device) as peak:
            work()  # copies its sums to the host, which waits for the device
        seconds.append(time.perf_counter() - started)
        extra.append((peak.bytes or 0) - before)
    return min(seconds), max(extra)


def measure(width: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each method on a model of this width."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    family = vit(width, options.depth, options.classes)
    model, groups = family.build().eval().to(device), find_groups(family, IMAGE, streams=False)
    units = sum(group.units for group in groups)
    images = Batch(torch.randn(options.batch_size, *IMAGE), torch.randint(options.classes, (options.batch_size,)))
    batches = lambda: iter([images] * options.batches)  # noqa: E731
    works: dict[str, Callable[[], UnitSums]] = {
        FIRST_ORDER: lambda: saliency.taylor(model, groups, batches, Loss.LABELS, 0),
        "SOSP-H": lambda: saliency.sosp_h(model, groups, batches, Loss.LABELS, 1e-2),
        "SOSP-H, exact": lambda: saliency.sosp_h_exact(model, groups, batches, Loss.LABELS),
        "SOSP-I": lambda: saliency.sosp_i(model, groups, batches, Loss.LABELS),
    }
    measurements: list[dict[str, Any]] = []
    for method in METHODS:
        if method == "SOSP-I" and units > options.most_units:
            continue
        seconds, extra = measured(works[method], device, options.repeats)
        first = measurements[0] if measurements else {"seconds": seconds, "bytes": extra}
        measurements.append(
            {
                "width": width,
                "units": units,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "method": method,
                "seconds": seconds,
                "bytes": extra,
                "times_seconds": seconds / first["seconds"],
                "times_bytes": extra / max(1, first["bytes"]),
            }
        )
    return measurements


def table(rows: list[dict[str, Any]]) -> Table:
    printed = Table()
    for column in ("units", "weights", "method", "seconds", "x first order", "memory", "x first order"):
        printed.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        times = f"{row['times_seconds']:.2f}", f"{row['times_bytes']:.2f}"
        model = f"{row['units']:,}", f"{row['parameters']:,}"
        printed.add_row(*model, row["method"], f"{row['seconds']:.3f}", times[0], size(row["bytes"]), times[1])
    return printed


def figure(rows: list[dict[str, Any]]) -> go.Figure:
    """Returns a figure with seconds above and memory below, against units, on logarithmic axes."""
    traces = []
    for method, colour in zip(METHODS, PALETTE, strict=False):
        points = [row for row in rows if row["method"] == method]
        units = [row["units"] for row in points]
        style = {"name": method, "mode": "lines+markers", "line": {"color": colour}, "marker": {"size": 7}}
        traces.append(go.Scatter(x=units, y=[row["seconds"] for row in points], **style))
        traces.append(go.Scatter(x=units, y=[row["bytes"] / 1e6 for row in points], yaxis="y2", showlegend=False, **style))
    units = sorted({row["units"] for row in rows})
    unit_axis = {"type": "log", "tickvals": units, "ticktext": [f"{count:,}" for count in units]}
    return figure_of(
        640,
        traces,
        xaxis={"title": "units", "anchor": "y2", **unit_axis},
        yaxis={"title": "seconds", "type": "log", "dtick": "D2", "domain": [0.54, 1]},
        yaxis2={"title": "MB beside the model", "type": "log", "dtick": "D2", "domain": [0, 0.46]},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[48, 96, 192, 384])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most-units", type=int, default=10_000, help="of the largest model for which SOSP-I is measured")
    parser.add_argument("--json", type=Path, default=Path("bench_saliency.json"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for width in options.widths for row in measure(width, options)]
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads"
    console = Console()
    console.print(f"{machine}, torch {torch.__version__}; {options.batches} batches of {options.batch_size} images")
    console.print(table(rows))
    worst = max(row["times_seconds"] for row in rows if row["method"] == "SOSP-H")
    console.print(f"SOSP-H takes at most {worst:.2f} first-order passes: {'within' if worst <= LIMIT else 'MORE than'} {LIMIT:.0f}.")
    if options.page is not None:
        title = f"Saliencies of all units: time and memory on {machine}, {options.batches * options.batch_size} images"
        options.page.write_text(figure_page(title, figure(rows)), encoding="utf-8")
    options.json.write_text(
        json.dumps({"machine": machine, "torch": torch.__version__, "settings": vars(options), "rows": rows}, indent=1, default=str)
    )


if __name__ == "__main__":
    main()
