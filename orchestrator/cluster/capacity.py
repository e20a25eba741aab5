"""Compares the resources of nodes with what workers request: amounts of CPU, GPU, memory (bytes) and custom kinds."""

from __future__ import annotations

import sys

Amounts = dict[str, float]


def room(nodes: list[Amounts], request: Amounts) -> int:
    """Returns how many workers with this ``request`` fit on empty nodes. A worker fits on one node."""
    return sum(
        min((int(node.get(kind, 0) / amount + 1e-9) for kind, amount in request.items() if amount), default=sys.maxsize) for node in nodes
    )


def described(request: Amounts, count: int = 1) -> str:
    """Returns, for example, "4 CPU, 1 GPU" for ``count`` requests."""
    return ", ".join(f"{count * amount:g} {kind}" for kind, amount in request.items())


def total_described(nodes: list[Amounts], request: Amounts) -> str:
    """Returns what all nodes have of the requested kinds, for example "4 CPU, 1 GPU"."""
    return described({kind: sum(node.get(kind, 0) for node in nodes) for kind in request})
