"""How the stages of rounds are called, in the progress, the plan and the report."""

from __future__ import annotations

from collections.abc import Mapping


def prefix(name: str, step: int = 0, steps: int = 1) -> str:
    """What the names of a round's stages begin with: "round to_60, step 1/4: ", and nothing where there is only one of both."""
    parts = ([f"round {name}"] if name else []) + ([f"step {step}/{steps}"] if step and steps > 1 else [])
    return f"{', '.join(parts)}: " if parts else ""


def whose(stage: str) -> str:
    """The name of the round that a stage belongs to; "" if to none."""
    first = stage.partition(": ")[0].partition(",")[0]
    return first.removeprefix("round ") if ": " in stage and first.startswith("round ") else ""


def kind(stage: str) -> str:
    """A stage's name without its round and step."""
    return stage.rpartition(": ")[2]


def over_rounds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of stages, those of all rounds and steps added up."""
    total: dict[str, float] = {}
    for stage, amount in seconds.items():
        total[kind(stage)] = total.get(kind(stage), 0.0) + amount
    return total
