"""The Triton kernel against the torch reference: in Triton's interpreter, and on a GPU if there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.obs import reference
from kernels.obs.reference import Elimination
from kernels.patterns import parse

pytest.importorskip("triton")
from kernels.obs import gpu

ROOT = Path(__file__).parent.parent.parent
DEVICES = ["interpreter", "cuda"] if torch.cuda.is_available() else ["interpreter"]
INTERPRETED = """
import sys, torch
from kernels.obs import gpu
from kernels.patterns import parse
cases = torch.load(sys.argv[1])
results = {name: gpu.eliminate(*tensors, 1e-3, True, parse(pattern)) for name, (pattern, *tensors) in cases.items()}
torch.save({name: (result.order_nB, result.loss_nB, result.dampening_n) for name, result in results.items()}, sys.argv[2])
"""


def problem(seed: int, blocks: int, size: int, samples: int, pattern: str = "unstructured", dead: float = 0.0) -> tuple:
    """Pattern, weights (n, B), second moments (n, B, B) of as many samples, and what is alive."""
    generator = torch.Generator().manual_seed(seed)
    x_nKB = torch.randn(blocks, samples, size, generator=generator)
    alive_nB = torch.rand(blocks, size, generator=generator) >= dead
    return pattern, torch.randn(blocks, size, generator=generator), x_nKB.mT @ x_nKB / samples, alive_nB


def ties() -> tuple:
    """Equal weights under the identity: every removal costs the same."""
    return "unstructured", torch.ones(2, 16), torch.eye(16).repeat(2, 1, 1), torch.ones(2, 16, dtype=torch.bool)


def shared() -> tuple:
    pattern, weights_nB, mean_nBB, alive_nB = problem(7, 3, 24, 60)
    return pattern, weights_nB, mean_nBB[:1], alive_nB


CASES = {
    "small": problem(0, 3, 16, 40),
    "no power of two": problem(1, 2, 48, 100),
    "64": problem(2, 1, 64, 200),
    "smaller than a tile": problem(3, 3, 5, 20),
    "few samples": problem(4, 2, 32, 8),
    "dead entries": problem(5, 3, 32, 90, dead=0.4),
    "all dead": problem(6, 2, 16, 40, dead=1.0),
    "ties": ties(),
    "shared matrix": shared(),
    "2:4": problem(8, 3, 32, 90, "2:4"),
    "4:8, some zero": problem(9, 3, 48, 100, "4:8", dead=0.3),
    "buckets of six": problem(10, 2, 24, 60, "4:6"),
    "tiles of four": problem(11, 2, 24, 60, "groups:4"),
}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Elimination]:
    """All cases through Triton's interpreter, which a process must choose before it imports the kernel."""
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(CASES, folder / "cases")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERPRETED, str(folder / "cases"), str(folder / "results")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr
    return {name: Elimination(*tensors) for name, tensors in torch.load(folder / "results").items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", list(CASES))
def test_the_kernel_removes_what_the_reference_does_at_the_same_loss(name: str, device: str, interpreted: dict[str, Elimination]) -> None:
    pattern, *tensors = CASES[name]
    on_gpu = [tensor.cuda() for tensor in tensors] if device == "cuda" else None
    actual = gpu.eliminate(*on_gpu, 1e-3, True, parse(pattern)) if on_gpu else interpreted[name]
    expected = reference.eliminate(*tensors, 1e-3, True, parse(pattern))
    assert torch.equal(actual.order_nB.cpu(), expected.order_nB)
    torch.testing.assert_close(actual.loss_nB.cpu(), expected.loss_nB, rtol=1e-5, atol=0)
    torch.testing.assert_close(actual.dampening_n.cpu(), expected.dampening_n)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("block_size", [48, 128, 256])
def test_compiled_ahead_of_time_it_spills_nothing_and_several_programs_fit_a_multiprocessor(architecture: int, block_size: int) -> None:
    """65,536 registers and 164 KB (A100) of shared memory for all programs of a multiprocessor; a thread may have 255 registers."""
    spec = importlib.util.spec_from_file_location("bench_triton", ROOT / "scripts" / "bench_triton.py")
    bench = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = bench
    spec.loader.exec_module(bench)
    used = bench.resources(architecture, block_size)
    assert used.spilled_bytes == 0 and 0 < used.registers <= 255
    assert 2 * used.registers * used.threads <= 65_536 and 2 * used.shared_bytes <= 164_000
