"""Runs functions as the ranks of Ray Train, in the environment that torch's own launcher makes. Imports Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ray.train import get_context
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.util import get_node_ip_address


class Ranks(BackendConfig):
    """Processes without a process group: ranks make their own, since that of Ray Train listens on all interfaces."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _SharedDevices


class _SharedDevices(Backend):
    share_cuda_visible_devices = True  # LOCAL_RANK is the number of a rank's GPU


def as_rank(function: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    """Calls ``function`` with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set."""
    from workers.training.meeting import free_port

    context, here = get_context(), get_node_ip_address()
    address, port = broadcast_from_rank_zero((here, free_port(here)) if context.get_world_rank() == 0 else None)
    values = {
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in values.items()}
    function(config)
