"""The memory of a model as units are removed: its parameters, and everything that a forward pass writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.models.shrunk import shrunk
from workers.models.structure_costs import Part, parameters
from workers.models.structures.groups import Group, take

if TYPE_CHECKING:
    from workers.models.base import ModelFamily

NUMBER = 4  # bytes in float32


class Memory:
    """Bytes of all parameters and of everything that a forward pass of one sample writes, in float32, as units are removed.

    This is about what a training keeps of weights and activations; inference needs less, since it frees activations. The written bytes are
    linear in the number of units of each group (except for copies that a reshape of a single head does not need), so the change is measured
    by one forward pass on the meta device without one unit of the group.
    """

    def __init__(self, family: ModelFamily, groups: Sequence[Group], input_shape: tuple[int, int, int]) -> None:
        with torch.device("meta"):
            model, image_1CHW = family.build().eval(), torch.empty(1, *input_shape)
        state = model.state_dict()
        self._parameters, self._written = parameters(model), written(model, image_1CHW)
        self._written_by_unit = {}
        for group in groups:
            kept = {other.name: torch.arange(other.units) >= (other is group) for other in groups}
            after = shrunk(family, state, take(state, groups, kept), groups, kept)
            with torch.device("meta"):
                smaller = after.build().eval()
            self._written_by_unit[group.name] = self._written - written(smaller, image_1CHW)
        self._units = {group.name: group.units for group in groups}

    @property
    def total(self) -> float:
        return NUMBER * (self._parameters.total + self._written)

    def take(self, group: Group) -> None:
        """Removes one unit of ``group`` from the cost."""
        self._parameters.take(group)
        self._written -= self._written_by_unit[group.name]

    def parts(self, groups: Sequence[Group]) -> list[Part]:
        """Returns the cost as a function of the units that are kept, for a model from which nothing was removed yet."""

        def in_bytes(part: Part) -> Part:
            return Part(part.groups, lambda units: NUMBER * part.value(units))

        def change(name: str) -> Part:
            return Part((name,), lambda units: NUMBER * self._written_by_unit[name] * (units[name] - self._units[name]))

        fixed, changes = NUMBER * self._written, [change(group.name) for group in groups]
        return [Part((), lambda _: fixed), *(in_bytes(part) for part in self._parameters.parts(groups)), *changes]


@torch.no_grad()
def written(model: nn.Module, image_1CHW: Tensor) -> int:
    """Returns how many numbers a forward pass writes into new tensors. Views and in-place changes do not count."""
    with _Writes() as writes:
        model(image_1CHW)
    return writes.numbers


class _Writes(TorchDispatchMode):
    """A mode that counts the numbers in all new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if all(part.alias_info is None for part in function._schema.returns):
            self.numbers += sum(part.numel() for part in tree_leaves(output) if isinstance(part, Tensor))
        return output
