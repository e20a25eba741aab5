"""How the ranks of a gang find each other. Nothing listens on more interfaces than the gang needs."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from ipaddress import ip_address

import torch.distributed as dist

from workers.errors import SecateurError

PATIENCE = timedelta(minutes=30)  # for a rank that starts late or takes long over a step


def meet(backend: str) -> None:
    """Starts torch's process group from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    The store of rank 0 listens at MASTER_ADDR alone, where torch's own would listen on all interfaces. If that is a loopback address, all
    ranks are on this machine, and gloo and NCCL use the loopback interface, too.
    Raises: SecateurError if rank 0 cannot listen there.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if ip_address(address).is_loopback:
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    listener = _listener(address, port).detach() if rank == 0 else None
    store = dist.TCPStore(address, port, ranks, rank == 0, PATIENCE, master_listen_fd=listener)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=PATIENCE)


def free_port(address: str) -> int:
    """Returns a port at which nothing listens."""
    with _listener(address, 0) as listener:
        return listener.getsockname()[1]


def _listener(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        raise SecateurError(
            f"training: rank 0 cannot listen at {address} ({error.strerror}); start Ray with an address of the machine as --node-ip-address"
        ) from error
