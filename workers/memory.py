"""Measured peak memory, which the report compares with the plan's prediction."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

INTERVAL_SECONDS = 0.01
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
STATUS = Path("/proc/self/status")
COUNTED = ("RssAnon:", "RssShmem:")  # not the pages of mapped files, which the system can drop at any time

Verb = TypeVar("Verb", bound=Callable[..., Any])


class Peak:
    """The largest memory use that was sampled, in ``bytes``; None where it cannot be measured."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None
        self.bytes: int | None = None
        if self._gpu is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._gpu)

    def look(self) -> None:
        if self._gpu is not None:
            import torch

            self.bytes = torch.cuda.max_memory_allocated(self._gpu)
        elif (now := resident_bytes()) is not None:
            self.bytes = max(now, self.bytes or 0)


_watched: list[Peak] = []  # of the work in progress, innermost last


def resident_bytes() -> int | None:
    """Returns the resident anonymous and shared memory of this process alone; None where there is no ``/proc``."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(COUNTED))


@contextmanager
def peak_bytes(device: torch.device | None = None) -> Iterator[Peak]:
    """A context in which memory use is sampled 100 times a second: that of this process, or on CUDA exactly what torch allocates.

    Processes that decode images do not count.
    """
    peak, ended = Peak(device), Event()

    def sample() -> None:
        while not ended.wait(INTERVAL_SECONDS):
            peak.look()

    watcher = Thread(target=sample, daemon=True)
    peak.look()
    watcher.start()
    _watched.append(peak)
    try:
        yield peak
    finally:
        _watched.remove(peak)
        ended.set()
        watcher.join()
        peak.look()


def give_back() -> None:
    """Returns freed memory that the C library keeps for small allocations to the system (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Keeps up to 64 MiB of freed memory for the next allocations (glibc only).

    The limits of glibc start low and grow while the program runs. Until then the activations of every forward pass are allocated from the
    system and returned to it, page by page; a MobileNetV2 then takes twice as long.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is not None:
        options(TRIM_THRESHOLD, 64 << 20)
        options(MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc's own limit grows to


def watched(verb: Verb) -> Verb:
    """Decorates a verb of a worker: freed memory is returned to the system first, and the peak is measured for the verb's records."""

    @wraps(verb)
    def watching(worker: Any, task: Any) -> Any:
        give_back()
        with peak_bytes(worker.device):
            return verb(worker, task)

    return watching  # type: ignore[return-value]


def peak_so_far() -> int | None:
    """Returns the peak of the work in progress so far; None if its memory is not measured."""
    if not _watched:
        return None
    _watched[-1].look()
    return _watched[-1].bytes
