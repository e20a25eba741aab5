"""How much memory work really took: what a plan's prediction is held against."""

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
COUNTED = ("RssAnon:", "RssShmem:")  # pages of mapped files can be dropped at any time: they are no need of ours

Verb = TypeVar("Verb", bound=Callable[..., Any])


class Peak:
    """The most memory that was seen in use; None where it cannot be measured."""

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


_watched: list[Peak] = []  # the work that goes on, innermost last


def resident_bytes() -> int | None:
    """Anonymous and shared memory of this process that is resident now; None where there is no ``/proc``. Other processes are not seen."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(COUNTED))


@contextmanager
def peak_bytes(device: torch.device | None = None) -> Iterator[Peak]:
    """Watch memory meanwhile: all of this process, sampled 100 times a second, or on CUDA what torch allocated there (exactly).

    Processes that decode images are not seen.
    """
    peak, over = Peak(device), Event()

    def keep_looking() -> None:
        while not over.wait(INTERVAL_SECONDS):
            peak.look()

    watcher = Thread(target=keep_looking, daemon=True)
    peak.look()
    watcher.start()
    _watched.append(peak)
    try:
        yield peak
    finally:
        _watched.remove(peak)
        over.set()
        watcher.join()
        peak.look()


def give_back() -> None:
    """Return to the system what was freed and is still in reserve for small allocations, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Keep up to 64 MiB of freed memory for what is allocated next, where the C library can (glibc).

    Its own limits start low and grow as the program goes on. Until then activations of a forward pass are taken from the system and given
    back again and again, page by page: a MobileNetV2 takes twice as long.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is not None:
        options(TRIM_THRESHOLD, 64 << 20)
        options(MMAP_THRESHOLD, 32 << 20)  # what glibc's own limit grows to at most


def watched(verb: Verb) -> Verb:
    """A verb of a worker that starts without the leftovers of the last one, and whose memory is watched, so that its records can tell."""

    @wraps(verb)
    def watching(worker: Any, task: Any) -> Any:
        give_back()
        with peak_bytes(worker.device):
            return verb(worker, task)

    return watching  # type: ignore[return-value]


def peak_so_far() -> int | None:
    """The peak of the work that is being watched; None if none is."""
    if not _watched:
        return None
    _watched[-1].look()
    return _watched[-1].bytes
