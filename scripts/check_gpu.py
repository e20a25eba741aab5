"""What only a GPU can show, in one json file: see scripts/check_gpu.sh.

Each check stands by itself: the error of one is written down, and the others go on. The file is written after each of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_triton import seconds as fastest
from torch import nn

DEVICE = torch.device("cuda", 0)
VIT_G = ["+experiment=dino_vitg_50pct", "cluster=local", "data.shards=1", "recovery=none"]


def limits(quick: bool) -> dict[str, Any]:
    """The rates of this GPU: a copy in GB/s, and products in TFLOP/s."""
    side = 256 if quick else 4096
    line = torch.empty(2**18 if quick else 2**28, device=DEVICE)
    found: dict[str, Any] = {"copy_gbs": 2 * line.nbytes / fastest(line.clone) / 1e9}
    for name, kind in {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        square = torch.randn(side, side, device=DEVICE).to(kind)
        found[f"{name}_tflops"] = 2 * side**3 / fastest(partial(torch.mm, square, square)) / 1e12
    return found


def elimination(quick: bool) -> dict[str, Any]:
    """The Triton kernel: order and losses against the reference on the CPU, and its share of the limits."""
    from kernels.linalg import dampened_inverse
    from kernels.obs import gpu, reference
    from kernels.patterns import FREE

    rates, found = limits(quick), {}
    for size in (64, 128, 192):
        blocks = 16 if quick else 2048
        x = torch.randn(blocks, size, size, generator=torch.Generator().manual_seed(size))
        weights_nB = torch.randn(blocks, size, generator=torch.Generator().manual_seed(1))
        mean_nBB, alive_nB = x.mT @ x / size, torch.ones(blocks, size, dtype=torch.bool)
        there = [tensor.to(DEVICE) for tensor in (weights_nB, mean_nBB, alive_nB)]
        few = slice(0, 16)
        expected = reference.eliminate(weights_nB[few], mean_nBB[few], alive_nB[few], 1e-2, False)
        got = gpu.eliminate(*(tensor[few] for tensor in there), 1e-2, False)
        inverse_nBB, dampening_n = dampened_inverse(there[1], there[2], 1e-2, relative=False)
        floor_nB = reference.least_pivots(there[1], there[2], dampening_n, tile=1)[..., 0]
        alone = fastest(partial(gpu.eliminate_inverse, there[0], inverse_nBB, floor_nB, there[2], FREE)) if not quick else 1.0
        found[f"B={size}"] = {
            "equal_order": float((got.order_nB.cpu() == expected.order_nB).double().mean()),
            "largest_difference_of_losses": float((got.loss_nB.cpu() / expected.loss_nB - 1).abs().max()),
            "seconds": alone,
            "million_weights_per_second": blocks * size / alone / 1e6,
            "share_of_float64_product": blocks * size**3 / alone / (rates["float64_tflops"] * 1e12),
            "rows_read_relative_to_copy": 4 * blocks * size**3 / alone / (rates["copy_gbs"] * 1e9),
        }
    return {"limits": rates, "eliminate": found}


def backbone(quick: bool) -> nn.Module:
    import timm

    torch.manual_seed(0)
    size = {"depth": 1, "embed_dim": 32, "num_heads": 2} if quick else {}
    return timm.create_model("vit_small_patch14_dinov2", img_size=42, num_classes=0, **size)


def masks(quick: bool) -> dict[str, Any]:
    """A ViT-S without labels, pruned on the GPU and on the CPU: the share of equal entries in the masks, and seconds."""
    from orchestrator import prune

    model, found = backbone(quick), {}
    images = torch.randn(16 if quick else 128, 3, 42, 42, generator=torch.Generator().manual_seed(2))
    for pruner, more in {"cap": [], "guided": ["pruner.refit.order=parallel"], "sparsegpt": [], "magnitude": []}.items():
        kept, seconds = {}, {}
        for device in ("cuda", "cpu"):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                settings = [f"cluster.device={device}", "compare=false", *more]
                pruned = prune(model, [images], pruner=pruner, sparsity=0.75, output=folder, settings=settings)
                seconds[device], kept[device] = time.perf_counter() - started, pruned.masks
        equal = [(kept["cuda"][name] == kept["cpu"][name]).double().mean() for name in kept["cpu"]]
        found[pruner] = {"equal_masks": float(min(equal)), "seconds_gpu": seconds["cuda"], "seconds_cpu": seconds["cpu"]}
    return found


def vit_g(quick: bool) -> dict[str, Any]:
    """The four layers of one block of a ViT-g, collected, scored and solved: seconds and bytes, predicted and measured."""
    from one_wave import wave
    from stand_ins import images

    from orchestrator.composing import experiment_of
    from orchestrator.launch import plan_experiment

    experiment = experiment_of([*VIT_G, f"data.calibration_batches={2 if quick else 64}"])
    plan = plan_experiment(experiment)
    block = [planned for planned in plan.layers if planned.layer.name.startswith("blocks.20.")]
    experiment.data = images(experiment)[0]
    with tempfile.TemporaryDirectory() as folder:
        return {"layers": [asdict(line) for line in wave(experiment, plan, block, Path(folder))]}


def two_of_four(quick: bool) -> dict[str, Any]:
    """2:4 Linears of a ViT-B and a ViT-g: milliseconds of the dense and of the semi-structured product, and their largest difference."""
    from workers.sparse import TwoOfFourProduct

    found: dict[str, Any] = {}
    for kind in (torch.float16, torch.bfloat16):
        for rows, columns in ((3072, 768), (768, 3072), (8192, 1536)):
            layer = nn.Linear(columns, rows).to(DEVICE, kind)
            keep = torch.tensor([True, True, False, False], device=DEVICE).repeat(columns // 4)
            layer.weight.data *= keep
            x = torch.randn(256 if quick else 8 * 257, columns, device=DEVICE).to(kind)
            with torch.no_grad():
                product = TwoOfFourProduct(layer)
                difference = float((product(x) - layer(x)).abs().max() / layer(x).abs().max())
                dense, sparse = fastest(partial(layer, x)), fastest(partial(product, x))
            found[f"{kind} {rows}x{columns}"] = {"dense_ms": 1e3 * dense, "sparse_ms": 1e3 * sparse, "difference": difference}
    return found


def precision(quick: bool) -> dict[str, Any]:
    """Forward passes of a ViT-S in float32, with TF32 and under bfloat16: images per second, and the cosine with float32."""
    model, found = backbone(quick).to(DEVICE).eval(), {}
    images = torch.randn(8 if quick else 256, 3, 42, 42, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    with torch.no_grad():
        exact = model(images)
        for name, tf32, kind in (("float32", False, None), ("tf32", True, None), ("bfloat16", False, torch.bfloat16)):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            with torch.autocast("cuda", kind or torch.bfloat16, enabled=kind is not None):
                seconds, outputs = fastest(partial(model, images)), model(images).float()
            cosine = nn.functional.cosine_similarity(outputs.flatten(1).cpu(), exact.flatten(1).cpu(), dim=1)
            found[name] = {"images_per_second": len(images) / seconds, "cosine": float(cosine.mean())}
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


CHECKS = {"elimination": elimination, "masks": masks, "vit_g": vit_g, "two_of_four": two_of_four, "precision": precision}


def check(output: Path, quick: bool) -> dict[str, Any]:
    """Runs all checks; returns what the file says."""
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(DEVICE),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "checks": {},
    }
    for name, work in CHECKS.items():
        started = time.perf_counter()
        try:
            result = work(quick)
        except Exception:
            result = {"error": traceback.format_exc()}
        found["checks"][name] = result | {"check_seconds": time.perf_counter() - started}
        output.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{name}: {'failed' if 'error' in result else 'done'} in {found['checks'][name]['check_seconds']:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("check_gpu.json"))
    parser.add_argument("--quick", action="store_true", help="small sizes, whose times say nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: expected a GPU that torch can see, got none; run this on a machine with one")
    found = check(options.output, options.quick)
    failed = [name for name, result in found["checks"].items() if "error" in result]
    print(f"written: {options.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
