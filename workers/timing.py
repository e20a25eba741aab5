"""The clock: modules made ready as they are deployed, and timed until their median is known."""

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
BURST = 4  # runs of a model in its turn; the first finds the caches full of another model, so it is not counted
CACHE_BYTES = 4 << 20  # read between two runs of an operation: inside a model, others have used the caches since its last run
MEDIAN_ERROR = 1.4826 * 1.2533  # standard error of a median, in median absolute deviations over the root of the runs (for normal noise)


def time_model(model: nn.Module, images_NCHW: Tensor, settings: Latency) -> Timing:
    """A forward pass of a whole model, which is left as it was found."""
    with prepared(model, (images_NCHW,), settings) as run:
        return clocked(run, images_NCHW.device, settings.spread, MODEL_PATIENCE * settings.seconds)


def time_in_turn(models: Sequence[nn.Module], beside: nn.Module, images_NCHW: Tensor, settings: Latency) -> list[Comparison]:
    """Forward passes of each of ``models`` against ``beside``."""
    with ExitStack() as stack:
        runs = [stack.enter_context(prepared(model, (images_NCHW,), settings)) for model in (*models, beside)]
        return in_turn(runs, images_NCHW.device, settings)


def in_turn(runs: Sequence[Callable[[], object]], device: torch.device, settings: Latency) -> list[Comparison]:
    """All but the last of ``runs`` against the last, a few of each at a time, so that a machine whose speed drifts drifts for all of them.

    A turn counts with the median of its runs; turns go on until the standard errors of all ratios are below ``settings.spread`` of them.
    """
    ratios: list[list[float]] = [[] for _ in runs[1:]]
    beside_ms: list[float] = []
    begun = time.perf_counter()
    while True:
        *found, reference = [_burst(run, device) for run in runs]
        beside_ms.append(reference)
        for of, ms in zip(ratios, found, strict=True):
            of.append(ms / reference)
        over = time.perf_counter() - begun > len(runs) * MODEL_PATIENCE * settings.seconds or len(beside_ms) >= MOST
        if len(beside_ms) >= FEWEST and (over or all(relative_error(of) < settings.spread for of in ratios)):
            return [Comparison(median(of), median(beside_ms), relative_error(of), len(beside_ms)) for of in ratios]


def _burst(run: Callable[[], object], device: torch.device) -> float:
    clock = _by_events if device.type == "cuda" else _by_clock
    return median([clock(run) for _ in range(BURST)][1:])


def time_operation(module: nn.Module, shapes: Sequence[tuple[int, ...]], settings: Latency, device: torch.device) -> Timing:
    """A module that may be on the meta device, on random tensors of ``shapes``, less what calling the runtime takes by itself.

    In eager torch every module of a model is called, so there the call counts.
    """
    generator = torch.Generator().manual_seed(0)
    real = realised(copy.deepcopy(module), device)
    inputs = tuple(torch.randn(shape, generator=generator).to(device) for shape in shapes)
    used = torch.zeros(CACHE_BYTES // 4, device=device)
    with prepared(real, inputs, settings) as run:
        found = clocked(run, device, settings.spread, settings.seconds, between=lambda: used.add_(1))
    call_ms = 0.0 if settings.runtime is Runtime.EAGER else _call_ms(settings, device)
    return replace(found, ms=max(found.ms - call_ms, 0.0))


@cache
def _call_ms(settings: Latency, device: torch.device) -> float:
    """What a call into the runtime takes by itself: a whole model pays it once, so it belongs to no operation."""
    nothing = (torch.zeros(1, device=device),)
    with prepared(nn.ReLU(), nothing, settings) as run:
        return clocked(run, device, settings.spread, settings.seconds).ms


@torch.no_grad()
def realised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on a device, in eval mode, with weights whose outputs are neither huge nor denormal, which would take another time."""
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
    """A call of ``module`` on ``inputs`` as the runtime makes it, with the threads that are asked for meanwhile.

    Raises: ConfigError if the runtime cannot carry it out on this device, or is not installed.
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
        raise ConfigError("latency.runtime: expected eager or compile on a GPU, got 'onnxruntime'; its sessions here are for CPUs")
    from workers.onnx_export import check_packages, in_memory

    check_packages()
    session, feeds = in_memory(module, inputs, threads)
    return lambda: session.run(None, feeds)


def clocked(
    run: Callable[[], object], device: torch.device, spread: float, seconds: float, between: Callable[[], object] | None = None
) -> Timing:
    """The median time of ``run``, after runs to warm up: until its standard error is below ``spread`` of it, or for ``seconds``.

    ``between`` is done before each run, outside of the time. On a GPU, its own events tell the time.
    """
    clock = _by_events if device.type == "cuda" else _by_clock
    for _ in range(WARM_UPS):
        run()
    found_ms: list[float] = []
    begun = time.perf_counter()
    while True:
        if between is not None:
            between()
        found_ms.append(clock(run))
        over = time.perf_counter() - begun > seconds or len(found_ms) >= MOST
        if len(found_ms) >= FEWEST and (over or relative_error(found_ms) < spread):
            return Timing(median(found_ms), relative_error(found_ms), len(found_ms))


def relative_error(values: Sequence[float]) -> float:
    """Standard error of their median, as a fraction of it, from the median absolute deviation, which stray values do not move."""
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
