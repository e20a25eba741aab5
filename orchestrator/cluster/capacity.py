"""What nodes have and workers ask for. Resources are amounts by kind: CPU, GPU, memory (bytes), and whatever nodes were given."""

from __future__ import annotations

import sys

Amounts = dict[str, float]


def room(nodes: list[Amounts], asks: Amounts) -> int:
    """How many workers that ask for so much fit on the nodes, each on one, were nothing else there."""
    return sum(
        min((int(node.get(kind, 0) / amount + 1e-9) for kind, amount in asks.items() if amount), default=sys.maxsize) for node in nodes
    )


def words(asks: Amounts, count: int = 1) -> str:
    """As in: 4 CPU, 1 GPU."""
    return ", ".join(f"{count * amount:g} {kind}" for kind, amount in asks.items())


def together(nodes: list[Amounts], asks: Amounts) -> str:
    """What all nodes have of the kinds that a worker asks for."""
    return words({kind: sum(node.get(kind, 0) for node in nodes) for kind in asks})
