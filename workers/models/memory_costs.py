"""What a model holds in memory as units go: its parameters, and what a forward pass writes."""

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
    """Bytes of all parameters and of all that a forward pass of one sample writes, in float32; falls as units are taken out.

    So much a training keeps of its weights and for its backward pass, about; inference holds less, since it forgets. What is written is
    linear in the numbers of units (but for copies that a reshape of a single head does not need), so one forward pass on the meta device
    without one unit of each group says how it falls.
    """

    def __init__(self, family: ModelFamily, groups: Sequence[Group], input_shape: tuple[int, int, int]) -> None:
        with torch.device("meta"):
            model, image_1CHW = family.build().eval(), torch.empty(1, *input_shape)
        state = model.state_dict()
        self._parameters, self._written = parameters(model), written(model, image_1CHW)
        self._falls = {}
        for group in groups:
            kept = {other.name: torch.arange(other.units) >= (other is group) for other in groups}
            after = shrunk(family, state, take(state, groups, kept), groups, kept)
            with torch.device("meta"):
                smaller = after.build().eval()
            self._falls[group.name] = self._written - written(smaller, image_1CHW)
        self._units = {group.name: group.units for group in groups}

    @property
    def total(self) -> float:
        return NUMBER * (self._parameters.total + self._written)

    def take(self, group: Group) -> None:
        """One unit of ``group`` goes."""
        self._parameters.take(group)
        self._written -= self._falls[group.name]

    def parts(self, groups: Sequence[Group]) -> list[Part]:
        """The same as a function of how many units are left, of a model that nothing was taken from yet."""

        def held(part: Part) -> Part:
            return Part(part.groups, lambda units: NUMBER * part.value(units))

        def falling(name: str) -> Part:
            return Part((name,), lambda units: NUMBER * self._falls[name] * (units[name] - self._units[name]))

        fixed, falls = NUMBER * self._written, [falling(group.name) for group in groups]
        return [Part((), lambda _: fixed), *(held(part) for part in self._parameters.parts(groups)), *falls]


@torch.no_grad()
def written(model: nn.Module, image_1CHW: Tensor) -> int:
    """Numbers that a forward pass writes into new tensors: views and what is changed in place do not count."""
    with _Writes() as writes:
        model(image_1CHW)
    return writes.numbers


class _Writes(TorchDispatchMode):
    """Counts the numbers in all new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if all(part.alias_info is None for part in function._schema.returns):
            self.numbers += sum(part.numel() for part in tree_leaves(found) if isinstance(part, Tensor))
        return found
