"""What could be taken out of a model whole, as people read it."""

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
    """A line for each group. Needs no weights. Raises: ConfigError if the model's structure cannot be found."""
    import torch

    with torch.device("meta"):
        model = family.build().eval()
    found = find_structure(family, input_shape)
    groups = found.groups
    shapes = shapes_of(family)
    total = sum(shape.numel() for shape in shapes.values())
    table = Table(title="Groups (a unit goes with all of its slices)", title_justify="left")
    for column in ("group", "kind", "units", "weights of one", "of the model", "read by"):
        numeric = column in ("units", "weights of one", "of the model")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column == "group", overflow="fold")
    for group in groups:
        weights = unit_weights(group, shapes)
        share = percent(group.units * weights / total)
        table.add_row(group.name, group.kind.value, f"{group.units:,}", f"{weights:,}", share, _modules(group.consumed))
    return rich.console.Group(table, *_sentences(family, model, groups), *left_out_sentences(found.left_out))


def left_out_sentences(reasons: Mapping[str, str]) -> list[str]:
    """Groups that were seen and are not offered: a sentence for those whose output is another one, and one for each other reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason.partition(DIFFERS)[1] or reason, []).append(name)
    found = []
    for reason, names in by_reason.items():
        if reason == DIFFERS:
            reason += f" by up to {max(float(reasons[name].rpartition(' ')[2]) for name in names):.2g} of its largest value"
        found.append(
            f"{count(len(names), 'group')} not offered, since the model without half of the units is not the one with these silenced "
            f"({reason}): {', '.join(names)}"
        )
    return found


def shapes_of(family: ModelFamily) -> dict[str, torch.Size]:
    """Of all parameters, by name."""
    import torch

    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in family.build().named_parameters()}


def unit_weights(group: Group, shapes: dict) -> int:
    """Weights that go with one unit."""
    parts = (*group.produced, *group.consumed)
    return sum(part.index_UK.shape[1] * (shapes[part.tensor].numel() // shapes[part.tensor][part.dim]) for part in parts)


def _modules(parts: tuple) -> str:
    """Names of modules, the first and how many more."""
    names = list(dict.fromkeys(part.tensor.rpartition(".")[0] for part in parts))
    return names[0] + (f" + {len(names) - 1}" if len(names) > 1 else "")


def _sentences(family: ModelFamily, model: object, groups: list[Group]) -> list[str]:
    covered = {part.tensor.removesuffix(".weight") for group in groups for part in group.produced}
    whole = [layer.name for layer in family.layers(model) if layer.name not in covered]  # type: ignore[arg-type]
    found = [f"{count(len(groups), 'group')}, {count(sum(group.units for group in groups), 'unit')}."]
    if whole:
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        found.append(
            f"No output of {', '.join(whole[:3])}{more} can be taken out: it is added to others, leaves the model, or meets a norm that "
            "takes a mean over all of them."
        )
    return found
