"""Runs one rank of a training gang, and finds the cause of its failure. Does not import Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.cluster.base import threads_of_rank
from workers.disks import full, refusal
from workers.errors import SecateurError, first_line


def train_rank(config: dict[str, Any]) -> None:
    """Trains as one rank. The launcher has set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Relative paths in the settings of the data are relative to ``folder``, in which the driver was started.
    """
    import torch

    from workers.models.permitted import permit
    from workers.training.loop import train

    permit(config["builders"])
    if os.path.isdir(config["folder"]):  # Ray Train starts its processes in another folder
        os.chdir(config["folder"])
    os.environ["SECATEUR_WORKER"] = f"rank {os.environ['RANK']}"
    torch.set_num_threads(threads_of_rank(config["threads"], int(os.environ["LOCAL_WORLD_SIZE"])))
    train(config["task"], config["device"])


def cause(error: BaseException, died: type[BaseException], folder: Path) -> BaseException:
    """Returns the project's own error inside Ray Train's ``error``, or what the disk refused, or ``error`` if there is neither.

    ``died`` is the class of errors of processes that have died. If the gang was lost to one, the result is an error that says so, or that
    the disk of ``folder``, which Ray Train writes to, is full.
    """
    failures = list(getattr(error, "worker_failures", {}).values())
    for inner in [*failures, error.__cause__]:
        while inner is not None:
            next_cause = getattr(inner, "cause", None) or getattr(inner, "_cause", None) or inner.__cause__
            if isinstance(inner, SecateurError):
                return inner
            inner = next_cause
    for inner in failures:
        if (refused := refusal(inner)) is not None:
            return refused
    for lost in [error, *failures]:
        if isinstance(lost, died):
            return full(folder) or SecateurError(
                f"training: expected all ranks to finish, got a process that died ({first_line(lost)}); run the same command again to "
                "resume after the last complete epoch"
            )
    return error
