"""Compiled kernels run on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable

import numba
import torch


def run(kernel: Callable[..., None], *arguments: object) -> None:
    """Runs a kernel on as many threads as torch uses.

    The first use of numba's threads changes torch's number of threads, since both share OpenMP; it is restored.
    """
    threads = torch.get_num_threads()
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        kernel(*arguments)
    finally:
        numba.set_num_threads(before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
