"""The processes that train together on one machine."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from multiprocessing.process import BaseProcess
from typing import Any

from workers.errors import SecateurError
from workers.files import read_record
from workers.messages import TrainTask
from workers.models.permitted import Builder, permit, permitted
from workers.records import Record, TrainedModel

HERE = "127.0.0.1"
ERROR_SECONDS = 5.0  # how long the other ranks may still run after the first failure
LOOK_SECONDS = 1.0  # between looks at the processes of the ranks


def run_gang(task: TrainTask, ranks: int, threads: int, device: str | None = None) -> Record[TrainedModel]:
    """Trains on this machine: in this process if ``ranks`` is 1, else in ``ranks`` new processes. Raises the error of a rank."""
    from workers.training.meeting import free_port

    arguments = (ranks, free_port(HERE), threads, task, device)
    if ranks == 1:
        before = dict(os.environ)
        try:
            _rank(0, *arguments)
        finally:
            os.environ.clear()
            os.environ.update(before)
            gc.collect()  # DeepSpeed's engine is a cycle, with the model, its gradients and sockets
    else:
        _spawn(ranks, threads, arguments)
    record = read_record(task.to.directory)
    assert record is not None
    return record


def _rank(rank: int, ranks: int, port: int, threads: int, task: TrainTask, device: str | None) -> None:
    import torch

    from workers.training.loop import train

    os.environ["SECATEUR_WORKER"] = f"rank {rank}"
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": HERE})
    torch.set_num_threads(threads)
    train(task, device)


def _spawn(ranks: int, threads: int, arguments: tuple[Any, ...]) -> None:
    """Runs the ranks in new processes. A failure of one ends all of them, and its error is raised here."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    start: dict[str, Any] = {"mp_context": get_context("spawn"), "initializer": _begin, "initargs": (threads, permitted())}
    with ProcessPoolExecutor(ranks, **start) as pool:
        futures = [pool.submit(_rank, rank, *arguments) for rank in range(ranks)]
        processes = list(pool._processes.values())
        try:
            running = _until_one_fails(futures, processes)
            wait(running, timeout=ERROR_SECONDS)  # a failed rank breaks the connections of the others: collect all errors
            died = any(process.exitcode for process in processes)  # by themselves, and not by what follows
        finally:
            if not all(future.done() for future in futures):
                for process in processes:
                    process.kill()
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    if errors:
        raise _cause(errors, died)


def _cause(errors: Sequence[BaseException], died: bool) -> BaseException:
    """Returns what ended a gang: an error of ours, or else the death of a process, or else what a rank raised.

    ``died`` says whether a process died. If none did, the others were ended here, and their errors are a consequence.
    """
    from concurrent.futures.process import BrokenProcessPool

    ours = [error for error in errors if isinstance(error, SecateurError)]
    raised = [error for error in errors if not isinstance(error, BrokenProcessPool)]
    if ours or (raised and not died):
        return (ours or raised)[0]
    return SecateurError(
        "training: expected all ranks to finish, got a process that died; run the same command again to resume after the last complete "
        "epoch"
    )


def _until_one_fails(futures: Sequence[Future[None]], processes: Sequence[BaseProcess]) -> set[Future[None]]:
    """Waits until all ranks are done or one has failed, and returns those that are not done.

    A pool looks at the processes that it has when it begins to wait, and may overlook the death of one that started later.
    """
    while True:
        done, running = wait(futures, LOOK_SECONDS, FIRST_EXCEPTION)
        failed = any(future.exception() is not None for future in done)
        if not running or failed or not all(process.is_alive() for process in processes):
            return running


def _begin(threads: int, builders: Mapping[str, Builder | None]) -> None:
    """Limits the threads of libraries before they are imported; each rank would start as many threads as there are cores otherwise.

    Also ends this process when its parent is killed, so that no orphan continues to train and to write.
    """
    import threading
    from multiprocessing import parent_process

    permit(builders)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
