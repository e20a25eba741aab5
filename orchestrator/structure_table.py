"""Prints the groups of units that can be removed from a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import rich.console
from rich.table import Table

from orchestrator.quantities import count, percent
from workers.models.base import ModelFamily
from workers.models.structures.find import find_structure
from workers.models.structures.groups import DIFFERS, Group

if TYPE_CHECKING:
    import torch


def structure_table(family: ModelFamily, input_shape: tuple[int, int, int]) -> rich.console.RenderableType:
    """Returns a table with a row for each group, and sentences about the rest. Needs no weights.

    Raises: ConfigError if the structure of the model cannot be found.
    """
    import torch

    with torch.device("meta"):
        model = family.build().eval()
    structure = find_structure(family, input_shape)
    groups = structure.groups
    shapes = shapes_of(family)
    total = sum(shape.numel() for shape in shapes.values())
    table = Table(title="Groups of units that can be removed", title_justify="left")
    for column in ("group", "kind", "units", "weights per unit", "of the model", "read by"):
        numeric = column in ("units", "weights per unit", "of the model")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column == "group", overflow="fold")
    for group in groups:
        weights = unit_weights(group, shapes)
        share = percent(group.units * weights / total)
        table.add_row(group.name, group.kind.value, f"{group.units:,}", f"{weights:,}", share, _modules(group.consumed))
    return rich.console.Group(table, *_sentences(family, model, groups), *left_out_sentences(structure.left_out))


def left_out_sentences(reasons: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each reason why groups are not offered. All groups whose removal changes the output share a reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason.partition(DIFFERS)[1] or reason, []).append(name)
    sentences = []
    for reason, names in by_reason.items():
        if reason == DIFFERS:
            reason += f" by up to {max(float(reasons[name].rpartition(' ')[2]) for name in names):.2g} of its largest value"
        sentences.append(
            f"{count(len(names), 'group')} not offered, because removing half of the units is not equivalent to setting them to zero "
            f"({reason}): {', '.join(names)}"
        )
    return sentences


def shapes_of(family: ModelFamily) -> dict[str, torch.Size]:
    """Returns the shapes of all parameters, by name."""
    import torch

    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in family.build().named_parameters()}


def unit_weights(group: Group, shapes: dict) -> int:
    """Returns how many weights are removed with one unit."""
    parts = (*group.produced, *group.consumed)
    return sum(part.index_UK.shape[1] * (shapes[part.tensor].numel() // shapes[part.tensor][part.dim]) for part in parts)


def _modules(parts: tuple) -> str:
    """Returns the name of the first module, and how many more there are."""
    names = list(dict.fromkeys(part.tensor.rpartition(".")[0] for part in parts))
    return names[0] + (f" + {len(names) - 1}" if len(names) > 1 else "")


def _sentences(family: ModelFamily, model: object, groups: list[Group]) -> list[str]:
    covered = {part.tensor.removesuffix(".weight") for group in groups for part in group.produced}
    kept = [layer.name for layer in family.layers(model) if layer.name not in covered]  # type: ignore[arg-type]
    sentences = [f"{count(len(groups), 'group')}, {count(sum(group.units for group in groups), 'unit')}."]
    if kept:
        more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
        sentences.append(
            f"No output of {', '.join(kept[:3])}{more} can be removed: it is added to other outputs, is an output of the model, or is "
            "normalised over all channels."
        )
    return sentences
