"""What a forward pass spends its time on: operations by the sizes of what they work on, some of which fall as units are taken out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from workers.models.resize import number_of, resize_
from workers.models.structures.groups import Group, remainder

if TYPE_CHECKING:
    from workers.models.base import ModelFamily

WHOLE = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, Attention, nn.MultiheadAttention)  # timed as one although some have children
NOTHING = (nn.Identity, nn.Dropout)  # in eval mode
MOST_AXES = 2  # of a function
Size = TypeVar("Size")
Value = TypeVar("Value")
OF_MODULE = -1  # in the place of a dimension: the groups of a convolution


@dataclass(frozen=True, eq=False)
class Axis:
    """A width of an operation, in units: how many there are, and the sizes that go with them, so many positions each.

    Sizes are (tensor, dim) of its weights and (number of an input, dim) of what goes in. Its units are those of one group, or of several
    that lie side by side (concatenated channels).
    """

    groups: tuple[str, ...]
    units: int
    positions: Mapping[tuple[str, int], int]
    inputs: Mapping[tuple[int, int], int]


@dataclass(frozen=True, eq=False)
class Operation:
    """What is timed as one: a weighted layer with the norm and activation that follow it, or a function that no module carries out.

    ``inputs`` are the shapes of what goes in. ``axes`` are the widths that units can be taken from, at most two: in and out.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]  # on the meta device, applied one after the other
    function: Any  # or: an operator of torch, with what it was called with, in ``arguments``
    arguments: tuple[Any, ...]
    inputs: tuple[tuple[int, ...], ...]
    axes: tuple[Axis, ...]

    def at(self, units: Sequence[int]) -> Case:
        """The operation with so many units left on each axis."""
        inputs = [list(shape) for shape in self.inputs]
        for axis, left in zip(self.axes, units, strict=True):
            for (index, dim), positions in axis.inputs.items():
                inputs[index][dim] -= positions * (axis.units - left)
        shapes = tuple(map(tuple, inputs))
        if self.function is not None:
            return Case(_Function(self.function, self.arguments), shapes)
        module = nn.Sequential(*(copy.deepcopy(module) for _, module in self.modules))
        tensors, numbers = self._shapes(units)
        resize_(module, self._inside(tensors), self._inside(numbers))
        return Case(module[0] if len(module) == 1 else module, shapes)  # attention may take several inputs, which a sequence cannot

    def _shapes(self, units: Sequence[int]) -> tuple[dict[str, list[int]], dict[str, int]]:
        """Of its tensors, and the numbers that its modules keep."""
        tensors = {f"{name}.{leaf}": tensor for name, module in self.modules for leaf, tensor in _tensors(module)}
        numbers = {f"{name}.groups": getattr(module, "groups", 1) for name, module in self.modules}
        shapes: dict[str, list[int]] = {}
        sizes: dict[str, int] = {}
        for axis, left in zip(self.axes, units, strict=True):
            for (name, dim), positions in axis.positions.items():
                gone = positions * (axis.units - left)
                if dim == OF_MODULE:
                    sizes[name] = sizes.get(name, numbers[name]) - gone
                else:
                    shapes.setdefault(name, list(tensors[name].shape))[dim] -= gone
        return shapes, sizes

    def _inside(self, named: Mapping[str, Value]) -> dict[str, Value]:
        """Under the names that they have in a sequence of the modules."""
        places = {name: index for index, (name, _) in enumerate(self.modules)}
        found = {}
        for key, value in named.items():
            owner = next(name for name in places if key.startswith(f"{name}."))
            found[f"{places[owner]}.{key.removeprefix(f'{owner}.')}"] = value
        return found


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@dataclass(frozen=True, eq=False)
class Case:
    """An operation at given sizes, on the meta device: a module and the shapes of what goes in."""

    module: nn.Module
    inputs: tuple[tuple[int, ...], ...]

    @cached_property
    def text(self) -> str:
        """All that its time depends on: equal for equal operations, of whichever model."""
        parts = self.module if isinstance(self.module, nn.Sequential) else [self.module]
        shown = "; ".join(" ".join(repr(part).split()) + _hidden(part) for part in parts)
        return f"{' '.join('x'.join(map(str, shape)) for shape in self.inputs)}: {shown}"


def _hidden(module: nn.Module) -> str:
    return f" heads={module.num_heads}" if isinstance(module, Attention | nn.MultiheadAttention) else ""


class _Function(nn.Module):
    """Calls an operator with tensors in the places where it had them."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.function, self.places = function, arguments

    def forward(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        args, kwargs = torch.utils._pytree.tree_map(lambda part: next(given) if isinstance(part, _Place) else part, self.places)
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.function} {self.places}"


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes."""

    def __repr__(self) -> str:
        return "."


def find_operations(family: ModelFamily, input_shape: tuple[int, int, int], batch_size: int, groups: Sequence[Group]) -> list[Operation]:
    """All operations of a forward pass of ``batch_size`` images, in order. Needs no weights."""
    with torch.device("meta"):
        model, images_NCHW = family.build().eval(), torch.empty(batch_size, *input_shape)
    found, positions = _trace(model, images_NCHW), _positions(groups)
    falling = _falling_inputs(model, images_NCHW, found, groups)
    units = {group.name: group.units for group in groups}
    return [
        _operation(f"{index}:{of.name}", of, positions, inputs, units)
        for index, (of, inputs) in enumerate(zip(found, falling, strict=True))
    ]


def _trace(model: nn.Module, images_NCHW: Tensor) -> list[_Found]:
    tracer = _Tracer(model)
    with torch.no_grad(), tracer.watching(), tracer:
        model(images_NCHW)
    return tracer.found


def _falling_inputs(
    model: nn.Module, images_NCHW: Tensor, found: Sequence[_Found], groups: Sequence[Group]
) -> list[dict[tuple[int, int], dict[str, int]]]:
    """For each operation, by size (number of an input, dim) of what goes in: positions of a unit, by group.

    Seen by tracing the model with a unit less of each group in turn, so it holds whatever lies between a layer and what reads it.
    """
    shapes = {name: list(tensor.shape) for name, tensor in _tensors(model)}
    falling: list[dict[tuple[int, int], dict[str, int]]] = [{} for _ in found]
    less = copy.deepcopy(model)
    for group in (group for group in groups if group.units > 1):
        whole = {part.tensor: shapes[part.tensor] for part in group.slices}
        narrower = copy.deepcopy(whole)
        for part in group.slices:
            narrower[part.tensor][part.dim] -= part.index_UK.shape[1]
        kept = {group.name: torch.arange(group.units) > 0}
        rest = remainder(model, [group], kept)
        resize_(less, narrower | rest.shapes, rest.sizes, rest.narrow)
        traced = _trace(less, images_NCHW)
        dense = {name: number_of(model, name) for name in rest.sizes}
        resize_(less, whole, dense, {name: [of, of] for name, (_, of) in rest.narrow.items()})
        for before, after, sizes in zip(found, traced, falling, strict=True):
            if before.arguments != after.arguments:
                continue  # sizes are among them, so it can only be timed as it is
            for index, (full, left) in enumerate(zip(before.inputs, after.inputs, strict=True)):
                for dim in (dim for dim, size in enumerate(full) if left[dim] != size):
                    sizes.setdefault((index, dim), {})[group.name] = full[dim] - left[dim]
    return falling


@dataclass
class _Found:
    name: str
    modules: list[tuple[str, nn.Module]]
    function: Any
    arguments: tuple[Any, ...]
    inputs: tuple[tuple[int, ...], ...]


class _Tracer(TorchDispatchMode):
    """Notes modules that do their work themselves, and what is computed outside of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: list[_Found] = []
        self._model, self._inside = model, 0
        self._last: Any = None  # what the last module gave

    @contextmanager
    def watching(self) -> Iterator[None]:
        hooks: list[Any] = []
        for name, child in self._model.named_children():
            self._watch(name, child, hooks)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, name: str, module: nn.Module, hooks: list[Any]) -> None:
        children = list(module.named_children())
        if isinstance(module, WHOLE) or not children:
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: self._enter(name, module, inputs)))
            hooks.append(module.register_forward_hook(lambda _, inputs, output: self._leave(module, inputs, output)))
            return
        for leaf, child in children:
            self._watch(f"{name}.{leaf}", child, hooks)

    def _enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._inside += 1
        if self._inside > 1 or isinstance(module, NOTHING) or not inputs or not isinstance(inputs[0], Tensor):
            return
        follows = self._last is inputs[0] and self.found and self.found[-1].function is None
        if follows and not any(parameter.ndim > 1 for parameter in module.parameters()):
            self.found[-1].modules.append((name, module))
        else:
            shapes = tuple(tuple(part.shape) for part in inputs if isinstance(part, Tensor))
            self.found.append(_Found(name, [(name, module)], None, (), shapes))

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._inside -= 1
        if self._inside == 0 and not (isinstance(module, NOTHING) and inputs[0] is not self._last):
            self._last = output

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self._inside and not _costs_nothing(function) and isinstance(result, Tensor):
            tensors: list[Tensor] = []

            def place(part: Any) -> Any:
                if not isinstance(part, Tensor):
                    return part
                tensors.append(part)
                return _Place()

            arguments = torch.utils._pytree.tree_map(place, (tuple(args), dict(kwargs or {})))
            if tensors:
                self.found.append(_Found(str(function), [], function, arguments, tuple(tuple(tensor.shape) for tensor in tensors)))
        return result


def _costs_nothing(function: Any) -> bool:
    """Views, and what only looks at a tensor."""
    returns, arguments = function._schema.returns, function._schema.arguments
    writes = any(argument.alias_info is not None and argument.alias_info.is_write for argument in arguments)
    aliases = any(part.alias_info is not None for part in returns)
    return (aliases and not writes) or function._schema.name in ("aten::empty", "aten::detach")


def _positions(groups: Sequence[Group]) -> dict[tuple[str, int], dict[str, int]]:
    """By size (tensor, dim): positions of a unit, by group."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    for group in groups:
        for part in group.slices:
            of = found.setdefault((part.tensor, part.dim), {})
            of[group.name] = of.get(group.name, 0) + part.index_UK.shape[1]
        for size in group.sizes:
            found.setdefault((size.name, OF_MODULE), {})[group.name] = size.of_unit
    return found


def _operation(
    name: str,
    found: _Found,
    positions: Mapping[tuple[str, int], Mapping[str, int]],
    falling: Mapping[tuple[int, int], Mapping[str, int]],
    units: Mapping[str, int],
) -> Operation:
    weights = {
        (f"{module_name}.{leaf}", dim): positions.get((f"{module_name}.{leaf}", dim), {})
        for module_name, module in found.modules
        for leaf, tensor in _tensors(module)
        for dim in range(tensor.ndim)
    }
    weights |= {(f"{name}.groups", OF_MODULE): of for name, _ in found.modules if (of := positions.get((f"{name}.groups", OF_MODULE)))}
    of_weights, of_inputs = _by_groups(weights), _by_groups(falling)
    axes = tuple(
        Axis(names, sum(units[name] for name in names), of_weights.get(names, {}), of_inputs.get(names, {}))
        for names in dict.fromkeys((*of_weights, *of_inputs))
    )
    if found.function is not None and len(axes) > MOST_AXES:  # much is put together here: it stays as it is
        axes = ()
    return Operation(name, tuple(found.modules), found.function, found.arguments, found.inputs, axes)


def _by_groups(sizes: Mapping[Size, Mapping[str, int]]) -> dict[tuple[str, ...], dict[Size, int]]:
    """Sizes whose units are those of the same groups, where all of these have as many positions each."""
    found: dict[tuple[str, ...], dict[Size, int]] = {}
    for size, of in sizes.items():
        if of and len(set(of.values())) == 1:
            found.setdefault(tuple(sorted(of)), {})[size] = next(iter(of.values()))
    return found
