"""Timing of modules in the runtime in which they are deployed, repeated until the median is known well enough."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from statistics import median

import torch
from torch import Tensor, nn

from workers.errors import ConfigError
from workers.latency import MODEL_PATIENCE, Comparison, Latency, Runtime, Timing

WARM_UPS = 3
FEWEST, MOST = 7, 1000  # runs
BURST = 4  # runs of a model in its turn; the first is not counted, since the caches hold another model
CACHE_BYTES = 4 << 20  # read between two runs of an operation, since in a model other operations use the caches between them
MEDIAN_ERROR = 1.4826 * 1.2533  # standard error of a median, in median absolute deviations over the root of the runs (for normal noise)


def time_model(model: nn.Module, images_NCHW: Tensor, settings: Latency) -> Timing:
    """Times a forward pass of a whole model."""
    with prepared(model, (images_NCHW,), settings) as run:
        return clocked(run, images_NCHW.device, settings.spread, MODEL_PATIENCE * settings.seconds)


def time_in_turn(models: Sequence[nn.Module], beside: nn.Module, images_NCHW: Tensor, settings: Latency) -> list[Comparison]:
    """Compares the times of forward passes of each of ``models`` with that of ``beside``."""
    with ExitStack() as stack:
        runs = [stack.enter_context(prepared(model, (images_NCHW,), settings)) for model in (*models, beside)]
        return in_turn(runs, images_NCHW.device, settings)


def in_turn(runs: Sequence[Callable[[], object]], device: torch.device, settings: Latency) -> list[Comparison]:
    """Compares all but the last of ``runs`` with the last one, a few of each in turn, so that all share a drift of the machine's speed.

    A turn counts with the median of its runs. There are more turns until the standard errors of all ratios, relative to the ratios, are
    below ``settings.spread``.
    """
    ratios: list[list[float]] = [[] for _ in runs[1:]]
    beside_ms: list[float] = []
    begun = time.perf_counter()
    while True:
        *times_ms, reference_ms = [_burst(run, device) for run in runs]
        beside_ms.append(reference_ms)
        for values, time_ms in zip(ratios, times_ms, strict=True):
            values.append(time_ms / reference_ms)
        ended = time.perf_counter() - begun > len(runs) * MODEL_PATIENCE * settings.seconds or len(beside_ms) >= MOST
        if len(beside_ms) >= FEWEST and (ended or all(relative_error(values) < settings.spread for values in ratios)):
            return [Comparison(median(values), median(beside_ms), relative_error(values), len(beside_ms)) for values in ratios]


def _burst(run: Callable[[], object], device: torch.device) -> float:
    clock = _by_events if device.type == "cuda" else _by_clock
    return median([clock(run) for _ in range(BURST)][1:])


def time_operation(module: nn.Module, shapes: Sequence[tuple[int, ...]], settings: Latency, device: torch.device) -> Timing:
    """Times a module, which may be on the meta device, on random tensors of ``shapes``, less the time of an empty call into the runtime.

    In eager torch the time of the call counts, since every module of a model is called.
    """
    generator = torch.Generator().manual_seed(0)
    real = realised(copy.deepcopy(module), device)
    inputs = tuple(torch.randn(shape, generator=generator).to(device) for shape in shapes)
    with prepared(real, inputs, settings) as run:
        timing = clocked(run, device, settings.spread, settings.seconds, flushing(device))
    call_ms = 0.0 if settings.runtime is Runtime.EAGER else _call_ms(settings, device)
    return replace(timing, ms=max(timing.ms - call_ms, 0.0))


def flushing(device: torch.device) -> Callable[[], object]:
    """Returns a function that fills the caches with other data, as other operations of a model do between two runs of one."""
    memory = torch.zeros(CACHE_BYTES // 4, device=device)
    return lambda: memory.add_(1)


@cache
def _call_ms(settings: Latency, device: torch.device) -> float:
    """Returns the time of an empty call into the runtime. A whole model pays it once, so it belongs to no operation."""
    inputs = (torch.zeros(1, device=device),)
    with prepared(nn.ReLU(), inputs, settings) as run:
        return clocked(run, device, settings.spread, settings.seconds).ms


@torch.no_grad()
def realised(module: nn.Module, device: torch.device) -> nn.Module:
    """Returns the module on a device, in eval mode, with random weights.

    They are scaled so that outputs are neither huge nor denormal numbers, which would change the time.
    """
    generator = torch.Generator().manual_seed(0)
    real = module.to_empty(device=device).eval()
    for parameter in real.parameters():
        fan_in = max(1, parameter[0].numel()) if len(parameter) else 1
        weights = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5 if parameter.ndim > 1 else torch.ones(parameter.shape)
        parameter.copy_(weights)
    for buffer in real.buffers():
        buffer.fill_(1)
    return real


@contextmanager
def prepared(module: nn.Module, inputs: tuple[Tensor, ...], settings: Latency) -> Iterator[Callable[[], object]]:
    """Yields a function that runs ``module`` on ``inputs`` in the runtime; torch uses the threads of the settings in this context.

    Raises: ConfigError if the runtime does not support the device or is not installed.
    """
    before = torch.get_num_threads()
    threads = settings.threads or before
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(settings.runtime is Runtime.EAGER), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            match settings.runtime:
                case Runtime.EAGER:
                    yield lambda: module(*inputs)
                case Runtime.COMPILE:
                    compiled = torch.compile(module, dynamic=False)
                    try:
                        yield lambda: compiled(*inputs)
                    finally:
                        torch.compiler.reset()
                case Runtime.ONNXRUNTIME:
                    yield _session(module, inputs, threads)
    finally:
        torch.set_num_threads(before)


def _session(module: nn.Module, inputs: tuple[Tensor, ...], threads: int) -> Callable[[], object]:
    if inputs[0].device.type != "cpu":
        raise ConfigError("latency.runtime: expected eager or compile on a GPU, got 'onnxruntime'; onnxruntime is timed on CPUs only")
    from workers.onnx_export import check_packages, in_memory

    check_packages()
    session, feeds = in_memory(module, inputs, threads)
    return lambda: session.run(None, feeds)


def clocked(
    run: Callable[[], object], device: torch.device, spread: float, seconds: float, between: Callable[[], object] | None = None
) -> Timing:
    """Returns the median time of ``run``, after some runs to warm up.

    Runs are repeated until the standard error, as a fraction of the median, is below ``spread``, or for ``seconds``. ``between`` is called
    before each run and is not timed. On a GPU, CUDA events measure the time.
    """
    clock = _by_events if device.type == "cuda" else _by_clock
    for _ in range(WARM_UPS):
        run()
    times_ms: list[float] = []
    begun = time.perf_counter()
    while True:
        if between is not None:
            between()
        times_ms.append(clock(run))
        ended = time.perf_counter() - begun > seconds or len(times_ms) >= MOST
        if len(times_ms) >= FEWEST and (ended or relative_error(times_ms) < spread):
            return Timing(median(times_ms), relative_error(times_ms), len(times_ms))


def relative_error(values: Sequence[float]) -> float:
    """Returns the standard error of the median, as a fraction of it, from the median absolute deviation, which is robust to outliers."""
    middle = median(values)
    deviation = median(abs(value - middle) for value in values)
    return MEDIAN_ERROR * deviation / middle / len(values) ** 0.5 if middle else 0.0


def _by_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _by_events(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
