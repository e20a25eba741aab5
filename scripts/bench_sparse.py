"""Time products with sparse weights against torch's dense ones, for the layers of common models.

Prints, for each layer and sparsity, the rate of useful work (two flops for each weight that is left and each position), that rate as a
fraction of the machine's largest matrix product, the bytes of inputs that the vector units read as a fraction of what they read from the
second-level cache in order, and how many times faster than torch's dense layer the sparse one is.

    python scripts/bench_sparse.py [--threads 1] [--batch 1] [--pattern groups:4]

All rates are of the same run, and products take turns. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numba
import torch
from torch import Tensor, nn

from kernels.patterns import parse
from kernels.sparse.vector import LANES, MOST_VECTORS
from orchestrator.cluster.base import processor
from workers.latency import Latency, Runtime
from workers.sparse import RowsProduct
from workers.timing import clocked, in_turn

SPARSITIES = (0.5, 0.75, 0.9, 0.95)
CPU, CLOCK = torch.device("cpu"), Latency(Runtime.EAGER, 1, None, 2, spread=0.01, seconds=0.1)
TOKENS = 197
CACHED_BYTES = 384 * 1024  # more than a first-level cache, less than a second-level one

LINEAR = {  # outputs, inputs
    "ViT-S qkv": (1152, 384),
    "ViT-S fc1": (1536, 384),
    "ViT-S fc2": (384, 1536),
    "ViT-B qkv": (2304, 768),
    "ViT-B fc1": (3072, 768),
    "ViT-B fc2": (768, 3072),
}
CONVOLUTIONS = {  # outputs, inputs, kernel, stride, size of the images
    "ConvNeXt downsample": (192, 96, 2, 2, 56),
    "EfficientNet 1x1": (96, 16, 1, 1, 112),
    "EfficientNet 1x1, 14 px": (112, 480, 1, 1, 14),
    "EfficientNet 1x1, 7 px": (1152, 192, 1, 1, 7),
    "ResNet 1x1": (256, 64, 1, 1, 56),
    "ResNet 3x3": (64, 64, 3, 1, 56),
    "ResNet 3x3, 14 px": (256, 256, 3, 1, 14),
    "ResNet 3x3, stride 2": (128, 128, 3, 2, 56),
}


def milliseconds(run: Callable[[], object]) -> float:
    """Returns the median time of a function."""
    return clocked(run, CPU, CLOCK.spread / 10, seconds=1.0).ms


def product_rate() -> float:
    """Returns the flops per second of a large matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / (1e-3 * milliseconds(lambda: a @ b))


def cache_bandwidth() -> float:
    """Returns the bytes per second that all threads read from second-level caches, where full rows read the inputs of a tile in order."""
    positions = MOST_VECTORS * LANES
    inputs, rows = CACHED_BYTES // (4 * positions), 8 * LANES
    tokens = torch.ones(positions, inputs)
    few, many = RowsProduct(nn.Linear(inputs, LANES)), RowsProduct(nn.Linear(inputs, LANES + rows))  # so packing does not count
    return rows * CACHED_BYTES / (1e-3 * (milliseconds(lambda: many(tokens)) - milliseconds(lambda: few(tokens))))


def masked(weight: Tensor, sparsity: float, tile: int) -> Tensor:
    """Returns a weight with random tiles of neighbouring inputs at zero."""
    tiles = torch.rand(len(weight), -(-weight[0].numel() // tile)) >= sparsity
    return weight * tiles.repeat_interleave(tile, dim=1)[:, : weight[0].numel()].reshape(weight.shape)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pattern", default="unstructured")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    peak, bandwidth = product_rate(), cache_bandwidth()
    print(f"{processor()}, {options.threads} threads, {LANES} floats in a register, torch {torch.__version__}, numba {numba.__version__}")
    print(f"matrix product: {peak / 1e9:.0f} GFLOP/s; second-level cache: {bandwidth / 1e9:.0f} GB/s")
    layers: dict[str, tuple[nn.Linear | nn.Conv2d, Tensor]] = {
        name: (nn.Linear(inputs, outputs), torch.randn(options.batch, TOKENS, inputs)) for name, (outputs, inputs) in LINEAR.items()
    }
    for name, (outputs, inputs, kernel, stride, size) in CONVOLUTIONS.items():
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
        layers[name] = layer, torch.randn(options.batch, inputs, size, size)
    print(f"{'layer':26}{'zeros':>7}{'GFLOP/s':>9}{'of peak':>9}{'of cache':>10}{'dense ms':>10}{'sparse ms':>11}{'times':>7}")
    for name, (layer, x) in layers.items():
        weight = layer.weight.clone()
        for sparsity in SPARSITIES:
            layer.weight.copy_(masked(weight, sparsity, parse(options.pattern).tile))
            product = RowsProduct(layer)
            (found,) = in_turn([partial(product, x), partial(layer, x)], CPU, CLOCK)
            dense, sparse = 1e-3 * found.beside_ms, 1e-3 * found.ratio * found.beside_ms
            positions = layer(x).numel() / len(layer.weight)
            flops = 2 * len(product.rows.values) * positions
            rates = f"{flops / sparse / 1e9:9.0f}{flops / sparse / peak:9.0%}{2 * flops / sparse / bandwidth:10.0%}"
            print(f"{name:26}{sparsity:7.0%}{rates}{1e3 * dense:10.2f}{1e3 * sparse:11.2f}{dense / sparse:7.1f}", flush=True)


if __name__ == "__main__":
    main()
