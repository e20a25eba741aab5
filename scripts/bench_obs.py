"""Time the block kernels on this machine: from gradients to pruned weights, stage by stage.

Rates use the operation counts of the method (per weight of a block of B, N gradients): collect 2 N B, invert 2 B^2, eliminate 2/3 B^2,
solve B^2. The code does less: symmetry saves half of the operations to invert and to eliminate. Rows of a layer that share one Hessian are
only eliminated. Fractions are of this machine's own matrix product in the same precision (float32 to collect, float64 otherwise), as the
best rate measured during the same run. Times are lower quartiles, which other processes disturb less than means.

    python scripts/bench_obs.py [--sizes 64 128 192 256] [--threads 2] [--json bench_obs.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from kernels import obs
from kernels.masks import prefix_mask
from kernels.obs import reference
from kernels.obs.block import invert_block, scratch
from kernels.obs.cpu import PORTIONS
from kernels.patterns import parse
from kernels.scores import hull
from kernels.second_moment import SecondMoment, add_outer_, zeros
from kernels.select import select_smallest
from workers.collect.base import chunk_size

DAMPENING = 1e-8
SPARSITY = 0.75
BLOCKS = 768  # from gradients to weights: the 384 x 384 projection of a small vision transformer


def usual_seconds(work: Callable[[], object], repeats: int) -> float:
    """Returns the lower quartile of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 4]


def matrix_product_rate(dtype: torch.dtype, repeats: int, size: int = 1024) -> float:
    """Returns the flops per second of a square matrix product."""
    square = torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / usual_seconds(lambda: square @ square, repeats)


@numba.njit(parallel=True, error_model="numpy")
def _invert_all(mean_nBB, absolute):  # type: ignore[no-untyped-def]
    """Computes only the factor and inverse of ``cpu.eliminate``."""
    blocks, block_size = mean_nBB.shape[:2]
    for portion in numba.prange(PORTIONS):
        work, report, everything = scratch(block_size, 1), np.zeros(2), np.ones(block_size, dtype=np.bool_)
        for block in range(portion * blocks // PORTIONS, (portion + 1) * blocks // PORTIONS):
            invert_block(mean_nBB[block], everything, absolute, 1, report, work)


def problem(blocks: int, size: int, gradients: int) -> tuple[Tensor, Tensor]:
    """Returns gradients of the magnitude that large vision models have, and weights."""
    generator = torch.Generator().manual_seed(0)
    scale_nB = torch.randn(blocks, size, generator=generator).exp() * 1e-3
    return torch.randn(gradients, blocks, size, generator=generator) * scale_nB, torch.randn(blocks, size, generator=generator) * 0.02


def collect(gradients_KnB: Tensor) -> SecondMoment:
    moment = zeros(*gradients_KnB.shape[1:])
    add(moment.sum_nBB, gradients_KnB)
    return SecondMoment(moment.sum_nBB, len(gradients_KnB))


def add(sum_nBB: Tensor, gradients_KnB: Tensor) -> None:
    for chunk_KnB in gradients_KnB.split(chunk_size(sum_nBB.shape[1])):
        add_outer_(sum_nBB, chunk_KnB)


def prune(gradients_KnB: Tensor, weights_nB: Tensor) -> Tensor:
    """Computes pruned weights from gradients with this project's kernels."""
    mean_nBB = collect(gradients_KnB).mean_nBB()
    alive_nB = torch.ones_like(weights_nB, dtype=torch.bool)
    done = obs.eliminate(weights_nB, mean_nBB, alive_nB, DAMPENING, False)
    counts_n = select_smallest(hull(done.loss_nB), round(SPARSITY * weights_nB.numel())).sum(dim=1)
    return obs.solve_on_mask(weights_nB, mean_nBB, ~prefix_mask(done.order_nB, counts_n), alive_nB, DAMPENING, False)


def prune_by_rank_one(gradients_KnB: Tensor, weights_nB: Tensor) -> Tensor:
    """Computes pruned weights from gradients as published: N Sherman-Morrison updates of the inverse, and elimination with traces."""
    count, blocks, size = gradients_KnB.shape
    everything_n = torch.arange(blocks)
    inverse_nBB = (torch.eye(size) / DAMPENING).repeat(blocks, 1, 1)
    for gradient_nB in gradients_KnB:
        product_nB = torch.bmm(inverse_nBB, gradient_nB[:, :, None])[:, :, 0]
        root_n1 = (count + (gradient_nB * product_nB).sum(dim=1, keepdim=True)).sqrt()
        product_nB /= root_n1
        inverse_nBB.baddbmm_(product_nB[:, :, None], product_nB[:, None, :], alpha=-1)
    w_nB, pruned_nB = weights_nB.clone(), torch.zeros(blocks, size, dtype=torch.bool)
    trace = torch.empty(size + 1, blocks, size)
    trace[0] = w_nB
    loss_nB = torch.empty(blocks, size)
    for step in range(size):
        diagonal_nB = inverse_nBB.diagonal(dim1=1, dim2=2)
        cost_nB = (w_nB.square() / diagonal_nB).masked_fill(pruned_nB, torch.inf)
        loss_nB[:, step], q_n = cost_nB.min(dim=1)
        column_nB = inverse_nBB[everything_n, :, q_n] / diagonal_nB[everything_n, q_n].sqrt()[:, None]
        w_nB -= (w_nB[everything_n, q_n] / diagonal_nB[everything_n, q_n].sqrt())[:, None] * column_nB
        inverse_nBB.baddbmm_(column_nB[:, :, None], column_nB[:, None, :], alpha=-1)
        pruned_nB[everything_n, q_n] = True
        w_nB[pruned_nB] = 0
        inverse_nBB[everything_n, q_n, q_n] = 1
        trace[step + 1] = w_nB
    score_nB = loss_nB.cumsum(dim=1)
    threshold = score_nB.flatten().kthvalue(round(SPARSITY * score_nB.numel())).values
    return trace[(score_nB <= threshold).sum(dim=1), everything_n]


def stages(size: int, weights: int, repeats: int) -> list[dict[str, Any]]:
    """Returns the time, weights per second and rate of each stage at one block size, and its speed relative to plain torch."""
    blocks, gradients = max(1, weights // size), size
    gradients_KnB, weights_nB = problem(blocks, size, gradients)
    mean_nBB = collect(gradients_KnB).mean_nBB()
    alive_nB = torch.ones_like(weights_nB, dtype=torch.bool)
    order_nB = obs.eliminate(weights_nB, mean_nBB, alive_nB, DAMPENING, False).order_nB
    keep_nB = ~prefix_mask(order_nB, torch.full((blocks,), size // 2))
    few = slice(0, max(1, blocks // 16))
    arguments = weights_nB[few], mean_nBB[few], alive_nB[few], DAMPENING, False

    sum_nBB = zeros(blocks, size).sum_nBB  # a run allocates this memory once, not for each chunk
    collecting = usual_seconds(lambda: add(sum_nBB, gradients_KnB), repeats)
    inverting = usual_seconds(lambda: _invert_all(mean_nBB.numpy(), DAMPENING), repeats)
    both = usual_seconds(lambda: obs.eliminate(weights_nB, mean_nBB, alive_nB, DAMPENING, False), repeats)
    solving = usual_seconds(lambda: obs.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, DAMPENING, False), repeats)
    two_of_four = usual_seconds(lambda: obs.eliminate(weights_nB, mean_nBB, alive_nB, DAMPENING, False, parse("2:4")), repeats)
    in_fours = usual_seconds(lambda: obs.eliminate(weights_nB, mean_nBB, alive_nB, DAMPENING, False, parse("groups:4")), repeats)
    torch_both = usual_seconds(lambda: reference.eliminate(*arguments), 1) * blocks / len(weights_nB[few])
    torch_solving = (
        usual_seconds(lambda: reference.solve_on_mask(weights_nB[few], mean_nBB[few], keep_nB[few], *arguments[2:]), 1)
        * blocks
        / len(weights_nB[few])
    )

    entries = weights_nB.numel()
    table = [
        ("collect", collecting, 2.0 * gradients, size, "float32", None),
        ("factor + inverse", inverting, 2.0 * size, size, "float64", None),
        ("eliminate", both - inverting, 2 / 3 * size, size, "float64", None),
        ("both, fused", both, 8 / 3 * size, size, "float64", torch_both),
        ("both, 2:4", two_of_four, 8 / 3 * size, size, "float64", None),
        ("both, groups of 4", in_fours, 8 / 3 * size, size, "float64", None),
        ("solve (half kept)", solving, 1.0 * size, size, "float64", torch_solving),
    ]
    return [
        {
            "block": size,
            "stage": name,
            "seconds": seconds,
            "weights_per_second": entries / seconds,
            "flops_per_second": entries * count * width / seconds,
            "precision": precision,
            "times_torch": None if in_torch is None else in_torch / seconds,
        }
        for name, seconds, count, width, precision, in_torch in table
    ]


def layer_rows(columns: int, rows: int, repeats: int) -> dict[str, Any]:
    """Whole rows that share one layer Hessian: its inverse is computed once."""
    inputs_KC = torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(0))
    mean_1CC = (inputs_KC.T @ inputs_KC / len(inputs_KC))[None]
    weights_RC, alive_RC = torch.randn(rows, columns), torch.ones(rows, columns, dtype=torch.bool)
    seconds = usual_seconds(lambda: obs.eliminate(weights_RC, mean_1CC, alive_RC, 1e-2, True), repeats)
    return {
        "block": columns,
        "stage": f"{rows} rows, shared",
        "seconds": seconds,
        "weights_per_second": rows * columns / seconds,
        "flops_per_second": rows * columns * 2 / 3 * columns**2 / seconds,
        "precision": "float64",
        "times_torch": None,
    }


def whole_way(size: int, gradients: int, blocks: int, repeats: int) -> dict[str, float]:
    """Seconds from gradients in hand to pruned weights, ours and as published, on the same blocks."""
    gradients_KnB, weights_nB = problem(blocks, size, gradients)
    ours = usual_seconds(lambda: prune(gradients_KnB, weights_nB), repeats)
    published = usual_seconds(lambda: prune_by_rank_one(gradients_KnB, weights_nB), 1)
    return {
        "block": size,
        "gradients": gradients,
        "blocks": blocks,
        "seconds": ours,
        "rank_one_seconds": published,
        "times": published / ours,
    }


def machine() -> dict[str, object]:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 192, 256])
    parser.add_argument("--weights", type=int, default=96_000, help="weights per measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    numba.set_num_threads(min(options.threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(options.threads)

    rates = dict.fromkeys(("float32", "float64"), 0.0)
    rows = []
    for size in options.sizes:
        rows += stages(size, options.weights, options.repeats)
        for name in rates:
            rates[name] = max(rates[name], matrix_product_rate(getattr(torch, name), 5 * options.repeats))
    rows += [layer_rows(384, 384, 2), layer_rows(1536, 64, 1)]
    for row in rows:
        row["of_matrix_product"] = row["flops_per_second"] / rates[row["precision"]]
    way = whole_way(192, 1024, BLOCKS, options.repeats)

    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print("matrix product: " + ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in rates.items()))
    print(f"{'B':>4} {'stage':18} {'seconds':>8} {'Mweights/s':>11} {'GFLOP/s':>8} {'of product':>11} {'x torch':>8}")
    for row in rows:
        times = "" if row["times_torch"] is None else f"{row['times_torch']:.1f}"
        print(
            f"{row['block']:>4} {row['stage']:18} {row['seconds']:8.4f} {row['weights_per_second'] / 1e6:11.2f} "
            f"{row['flops_per_second'] / 1e9:8.1f} {row['of_matrix_product']:11.0%} {times:>8}"
        )
    print(
        f"from gradients to pruned weights (N={way['gradients']}, B={way['block']}, {way['blocks']} blocks): {way['seconds']:.3f} s, "
        f"with rank-one updates as published {way['rank_one_seconds']:.2f} s: {way['times']:.0f} times as long"
    )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "matrix_product": rates, "stages": rows, "whole_way": way}, indent=1))


if __name__ == "__main__":
    main()
