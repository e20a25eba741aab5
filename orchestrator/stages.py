"""The names of stages in the progress display, the plan and the report."""

from __future__ import annotations

from collections.abc import Mapping


def prefix(name: str, step: int = 0, steps: int = 1) -> str:
    """Returns the prefix of a round's stages, such as "round to_60, step 1/4: ", or "" for a single round with one step."""
    parts = ([f"round {name}"] if name else []) + ([f"step {step}/{steps}"] if step and steps > 1 else [])
    return f"{', '.join(parts)}: " if parts else ""


def whose(stage: str) -> str:
    """Returns the name of the round that a stage belongs to, or ""."""
    first = stage.partition(": ")[0].partition(",")[0]
    return first.removeprefix("round ") if ": " in stage and first.startswith("round ") else ""


def kind(stage: str) -> str:
    """Returns a stage's name without its round and step."""
    return stage.rpartition(": ")[2]


def over_rounds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds of each kind of stage, summed over rounds and steps."""
    total: dict[str, float] = {}
    for stage, amount in seconds.items():
        total[kind(stage)] = total.get(kind(stage), 0.0) + amount
    return total
