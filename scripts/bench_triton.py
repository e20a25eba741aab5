"""Show the resources of the elimination kernel for GPUs and, if there is a GPU, its speed relative to the GPU's limits.

    python scripts/bench_triton.py [--blocks 4096]

The first table needs no GPU: the kernel is compiled for each target ahead of time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.linalg import dampened_inverse
from kernels.obs import gpu, reference
from kernels.patterns import FREE

TARGETS = {80: "A100", 90: "H100"}
BLOCK_SIZES = (64, 128, 192, 256)
DOUBLES, INTEGERS = ("w", "inverse", "floor", "rows", "loss"), ("alive", "lost", "step")
SIGNATURE = {f"{name}_ptr": "*fp64" for name in DOUBLES} | {f"{name}_ptr": "*i32" for name in INTEGERS} | {"removable": "i32"}


@dataclass(frozen=True)
class Resources:
    """Resources of one program: 32-bit registers per thread, bytes of shared memory, and bytes per thread that spilled to local memory."""

    threads: int
    registers: int
    shared_bytes: int
    spilled_bytes: int


def resources(architecture: int, block_size: int) -> Resources:
    """Compiles for ``sm_<architecture>`` and reads the resources that the assembler allocated."""
    settings = gpu.launch_settings(block_size, bucket=4)
    warps = settings.pop("num_warps")
    names = gpu.eliminate_block.arg_names
    source = ASTSource(
        gpu.eliminate_block,
        {name: SIGNATURE.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in settings.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(32 * warps, numbers["REG"], compiled.metadata.shared, numbers["STACK"] + numbers["LOCAL"])


def compiled_table() -> Table:
    table = Table(title="Compiled ahead of time", title_justify="left")
    resource_columns = ("threads", "registers", "shared bytes", "spilled bytes")
    for column in ("target", "B", *resource_columns, "flops per block", "bytes of rows", "bytes of the inverse"):
        table.add_column(column, justify="right" if column != "target" else "left")
    for architecture, name in TARGETS.items():
        for size in BLOCK_SIZES:
            used = resources(architecture, size)
            numbers = (size, used.threads, used.registers, used.shared_bytes, used.spilled_bytes)
            table.add_row(f"sm_{architecture} ({name})", *map(str, numbers), f"{size**3:,}", f"{4 * size**3:,}", f"{8 * size**2:,}")
    return table


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Returns the time of the fastest of several calls on the GPU."""
    work()
    taken = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return min(taken)


def measured_table(blocks: int) -> Table:
    """Compares elimination, alone and with factor and inverse, with a copy and a float64 matrix product on the same GPU."""
    device = torch.device("cuda")
    square, line = torch.randn(4096, 4096, dtype=torch.float64, device=device), torch.empty(2**28, dtype=torch.float32, device=device)
    product = 2 * 4096**3 / seconds(lambda: square @ square)
    copied = 2 * line.nbytes / seconds(lambda: line.clone())
    name = torch.cuda.get_device_name(device)
    table = Table(title=f"{name}: copy {copied / 1e9:,.0f} GB/s, float64 product {product / 1e9:,.0f} GFLOP/s; {blocks} blocks")
    for column in ("B", "eliminate", "M weights/s", "of the product", "rows of the copy", "with factor, inverse", "reference loop"):
        table.add_column(column, justify="right")
    for size in BLOCK_SIZES:
        x = torch.randn(blocks, size, size, device=device)
        mean_nBB, weights_nB = x.mT @ x / size, torch.randn(blocks, size, device=device)
        alive_nB = torch.ones_like(weights_nB, dtype=torch.bool)
        inverse_nBB, dampening_n = dampened_inverse(mean_nBB, alive_nB, 1e-2, relative=False)
        floor_nB = reference.least_pivots(mean_nBB, alive_nB, dampening_n, tile=1)[..., 0]
        arguments = (weights_nB, mean_nBB, alive_nB, 1e-2, False)
        alone = seconds(partial(gpu.eliminate_inverse, weights_nB, inverse_nBB, floor_nB, alive_nB, FREE))
        whole = seconds(partial(gpu.eliminate, *arguments))
        loop = seconds(partial(reference.eliminate, *arguments), repeats=1)
        table.add_row(
            str(size),
            f"{1e3 * alone:.1f} ms",
            f"{blocks * size / alone / 1e6:.1f}",
            f"{blocks * size**3 / alone / product:.0%}",
            f"{4 * blocks * size**3 / alone / copied:.2f} x",
            f"{1e3 * whole:.1f} ms",
            f"{1e3 * loop:.1f} ms",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4096)
    options, console = parser.parse_args(), Console()
    console.print(compiled_table())
    console.print(measured_table(options.blocks) if torch.cuda.is_available() else "This machine has no CUDA device, so nothing was timed.")


if __name__ == "__main__":
    main()
