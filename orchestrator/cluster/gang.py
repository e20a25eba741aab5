"""What a rank of a training gang does, and what ended it. Imports no Ray."""

from __future__ import annotations

import os
from typing import Any

from orchestrator.cluster.base import threads_of_rank
from workers.errors import SecateurError


def train_rank(config: dict[str, Any]) -> None:
    """One rank's part; the launcher has set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Relative paths in the settings of the data are relative to ``folder``, which the driver was started in.
    """
    import torch

    from workers.training.loop import train

    if os.path.isdir(config["folder"]):  # on this machine too: Ray Train starts its processes in a folder of their own
        os.chdir(config["folder"])
    os.environ["SECATEUR_WORKER"] = f"rank {os.environ['RANK']}"
    torch.set_num_threads(threads_of_rank(config["threads"], int(os.environ["LOCAL_WORLD_SIZE"])))
    train(config["task"], config["device"])


def cause(error: BaseException) -> BaseException:
    """The failure of ours inside Ray Train's, if there is one."""
    failures = getattr(error, "worker_failures", {})
    for inner in [*failures.values(), error.__cause__]:
        while inner is not None:
            following = getattr(inner, "cause", None) or getattr(inner, "_cause", None) or inner.__cause__
            if isinstance(inner, SecateurError):
                return inner
            inner = following
    return error
