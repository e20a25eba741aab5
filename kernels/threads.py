"""Compiled kernels run on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

import numba
import torch

_one_at_a_time = Lock()


def run(kernel: Callable[..., None], *arguments: object) -> None:
    """Runs a kernel on as many threads as torch uses.

    The first use of numba's threads changes torch's number of threads, since both share OpenMP; it is restored. Several threads of Python
    may call this at once.
    """
    threads = torch.get_num_threads()
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        with _alone():
            kernel(*arguments)
    finally:
        numba.set_num_threads(before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _alone() -> AbstractContextManager[object]:
    """Returns a lock where numba's threads serve one kernel at a time (they do not with OpenMP or TBB), or are not started yet."""
    try:
        return _one_at_a_time if numba.threading_layer() == "workqueue" else nullcontext()
    except ValueError:
        return _one_at_a_time
