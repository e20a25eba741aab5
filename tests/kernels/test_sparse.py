"""Products with sparse weights against torch's dense ones."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kernels import sparse, threads
from kernels.sparse.vector import LANES, MOST_VECTORS

ROUNDING = 2e-6  # of float32 sums of a few thousand products, relative to the sum of their sizes


def masked(shape: tuple[int, ...], zeros: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) >= zeros)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_equal_but_for_rounding(found: Tensor, expected: Tensor, sizes: Tensor) -> None:
    """``sizes`` are the sums of the absolute products."""
    assert found.shape == expected.shape
    assert bool(((found.double() - expected).abs() <= ROUNDING * sizes + 1e-30).all())


def check_linear(x: Tensor, weight_RC: Tensor, bias_R: Tensor) -> None:
    expected = functional.linear(x.double(), weight_RC.double(), bias_R.double())
    sizes = functional.linear(x.double().abs(), weight_RC.double().abs(), bias_R.double().abs())
    assert_equal_but_for_rounding(sparse.linear(x, sparse.sparse_rows(weight_RC), bias_R), expected, sizes)


def sparse_conv2d(x: Tensor, weight: Tensor, bias_R: Tensor, geometry: sparse.Convolution) -> Tensor:
    rows = sparse.sparse_rows(weight.flatten(1))
    return sparse.conv2d(x, rows, bias_R, geometry, geometry.placed(rows, x.shape[2], x.shape[3]))


def check_conv2d(x: Tensor, weight: Tensor, bias_R: Tensor, geometry: sparse.Convolution) -> None:
    more = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    expected = functional.conv2d(x.double(), weight.double(), bias_R.double(), *more)
    sizes = functional.conv2d(x.double().abs(), weight.double().abs(), bias_R.double().abs(), *more)
    assert_equal_but_for_rounding(sparse_conv2d(x, weight, bias_R, geometry), expected, sizes)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 90), tokens=st.integers(1, 300), zeros=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_a_linear_layer_equals_the_dense_product_for_all_shapes(rows, columns, tokens, zeros):
    check_linear(random(tokens, columns), masked((rows, columns), zeros), random(rows))


@pytest.mark.parametrize("vectors", range(1, MOST_VECTORS + 1))
def test_tiles_of_every_width_are_right(vectors):
    for tokens in (vectors * LANES, vectors * LANES - 1):
        assert sparse._cut(tokens, 40, 1)[:2] == (vectors, 1)
        check_linear(random(tokens, 40), masked((33, 40), 0.7), random(33))
        geometry = sparse.Convolution(1, 5, (1, 3), (1, 1), (0, 1), (1, 1))
        check_conv2d(random(1, 5, 1, tokens), masked((6, 5, 1, 3), 0.5), random(6), geometry)


def test_wide_layers_have_narrow_tiles_that_fit_into_the_cache():
    for columns in (1536, 3072, 20_000):
        vectors, tiles, _ = sparse._cut(197, columns, 1)
        assert 4 * vectors * LANES * columns <= max(sparse.TILE_BYTES, 4 * LANES * columns) and vectors * tiles * LANES >= 197
        check_linear(random(197, columns), masked((5, columns), 0.9), random(5))


def test_leading_dimensions_empty_rows_full_rows_and_strided_inputs_are_right():
    weight_RC = masked((40, 24), 0.8)
    weight_RC[3], weight_RC[7] = 0, 1
    check_linear(random(2, 3, 5, 24), weight_RC, random(40))
    check_linear(random(24, 50).T, weight_RC, random(40))
    check_linear(random(24), weight_RC, random(40))
    assert sparse.linear(torch.empty(0, 24), sparse.sparse_rows(weight_RC), random(40)).shape == (0, 40)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 6]),
    images=st.integers(1, 3),
    zeros=st.sampled_from([0.0, 0.7, 1.0]),
)
def test_a_convolution_equals_the_dense_one_for_all_geometries(size, kernel, stride, padding, dilation, groups, images, zeros):
    geometry = sparse.Convolution(groups, 6, kernel, stride, padding, dilation)
    if min(geometry.out_HW(*size)) >= 1:
        check_conv2d(random(images, 6, *size), masked((12, 6 // groups, *kernel), zeros), random(12), geometry)


@pytest.mark.parametrize("size", [(7, 7), (8, 16), (14, 14), (32, 32), (1, 1)])
def test_pointwise_convolutions_are_right_with_and_without_a_copy_of_the_images(size):
    geometry = sparse.Convolution(2, 32, (1, 1), (1, 1), (0, 0), (1, 1))
    weight = masked((24, 16, 1, 1), 0.8)
    copied = geometry.placed(sparse.sparse_rows(weight.flatten(1)), *size).height > 0
    assert copied == (size in [(7, 7), (1, 1)])  # others fill whole tiles
    check_conv2d(random(2, 32, *size), weight, random(24), geometry)
    check_conv2d(random(2, *size, 32).permute(0, 3, 1, 2), weight, random(24), geometry)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batches_of_images_are_right(batch):
    geometry = sparse.Convolution(1, 8, (3, 3), (2, 2), (1, 1), (1, 1))
    check_conv2d(random(batch, 8, 9, 9), masked((10, 8, 3, 3), 0.75), random(10), geometry)


def test_results_are_the_same_bytes_for_any_number_of_threads_and_beside_other_calls():
    """Also called from several threads of Python at once, with different layers."""
    x, weight, bias_R = random(2, 16, 30, 30), masked((32, 16, 3, 3), 0.8), random(32)
    geometry = sparse.Convolution(1, 16, (3, 3), (1, 1), (1, 1), (1, 1))
    tokens, dense_RC = random(197, 64), masked((48, 64), 0.8)
    rows, before = sparse.sparse_rows(dense_RC), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = sparse_conv2d(x, weight, bias_R, geometry), sparse.linear(tokens, rows, random(48))
        torch.set_num_threads(2)
        with ThreadPoolExecutor(4) as pool:
            images = [pool.submit(sparse_conv2d, x, weight, bias_R, geometry) for _ in range(20)]
            lines = [pool.submit(sparse.linear, tokens, rows, random(48)) for _ in range(20)]
            assert all(torch.equal(each.result(), expected[0]) for each in images)
            assert all(torch.equal(each.result(), expected[1]) for each in lines)
    finally:
        torch.set_num_threads(before)


def test_a_thread_pool_that_serves_one_kernel_at_a_time_gets_one(monkeypatch):
    monkeypatch.setattr(threads.numba, "threading_layer", lambda: "workqueue")
    assert threads._alone() is threads._one_at_a_time
    monkeypatch.setattr(threads.numba, "threading_layer", lambda: "omp")
    assert threads._alone() is not threads._one_at_a_time


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 50), zeros=st.sampled_from([0.0, 0.5, 1.0]))
def test_sparse_rows_hold_the_matrix(rows, columns, zeros):
    weight_RC = masked((rows, columns), zeros)
    found = sparse.sparse_rows(weight_RC)
    assert torch.equal(found.dense(), weight_RC)
    assert len(found.values) == int((weight_RC != 0).sum()) == int(found.starts[-1])


def test_too_many_columns_are_refused():
    assert sparse.sparse_rows(torch.ones(1, sparse.MOST_COLUMNS)).dense().sum() == sparse.MOST_COLUMNS
    with pytest.raises(ValueError, match="at most 65,536 columns, got 65,537"):
        sparse.sparse_rows(torch.ones(1, sparse.MOST_COLUMNS + 1))


BEYOND = """
import ctypes, mmap, torch
from kernels import sparse
page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, 65 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert libc.mprotect(ctypes.c_void_p(start + 64 * page), page, 0) == 0
def at_the_end(*shape):
    count = torch.Size(shape).numel()
    return torch.frombuffer(memory, dtype=torch.float32, count=count, offset=64 * page - 4 * count).reshape(shape)
for height, width in ((9, 13), (14, 14), (16, 16), (3, 5)):
    for kernel in (1, 3):
        weight = torch.ones(8, 4, kernel, kernel)
        rows = sparse.sparse_rows(weight.flatten(1))
        geometry = sparse.Convolution(1, 4, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1))
        x = at_the_end(1, 4, height, width)
        assert not sparse.conv2d(x, rows, torch.zeros(8), geometry, geometry.placed(rows, height, width)).any()
for tokens, columns in ((37, 50), (1, 3), (128, 64)):
    rows = sparse.sparse_rows(torch.ones(20, columns))
    assert not sparse.linear(at_the_end(tokens, columns), rows, torch.zeros(20)).any()
print("read nothing else")
"""


def test_nothing_beyond_the_inputs_is_read():
    """The page behind them is protected: reading it ends the process."""
    done = subprocess.run([sys.executable, "-c", BEYOND], capture_output=True, text=True, timeout=3600, check=False)
    assert done.stdout.strip() == "read nothing else", done.stderr[-2000:]


NARROW = """
import torch
import kernels.registers
kernels.registers.REGISTER_BITS = 256
from kernels import sparse
from kernels.sparse.vector import LANES
assert LANES == 8
torch.manual_seed(0)
for tokens in (1, 37, 64, 197):
    x, weight, bias = torch.randn(tokens, 50), torch.randn(20, 50) * (torch.rand(20, 50) > 0.7), torch.randn(20)
    torch.testing.assert_close(sparse.linear(x, sparse.sparse_rows(weight), bias), torch.nn.functional.linear(x, weight, bias))
for kernel, stride in ((1, 1), (3, 1), (3, 2)):
    x, weight, bias = torch.randn(2, 6, 17, 19), torch.randn(10, 6, kernel, kernel), torch.randn(10)
    weight *= torch.rand_like(weight) > 0.7
    rows, geometry = sparse.sparse_rows(weight.flatten(1)), sparse.Convolution(1, 6, (kernel,) * 2, (stride,) * 2, (1, 1), (1, 1))
    expected = torch.nn.functional.conv2d(x, weight, bias, stride, 1)
    found = sparse.conv2d(x, rows, bias, geometry, geometry.placed(rows, 17, 19))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
print("right")
"""


def test_a_processor_with_registers_of_256_bits_computes_the_same(tmp_path: Path) -> None:
    """Compiled for Haswell, which has AVX2 and no AVX-512."""
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", NARROW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, env=environment)
    assert done.stdout.strip() == "right", done.stderr[-2000:]
