"""The operations of a forward pass that take time, by the sizes of their inputs and weights, which shrink as units are removed."""

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

WHOLE = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, Attention, nn.MultiheadAttention)  # timed as one, although some have children
NO_OPERATION = (nn.Identity, nn.Dropout)  # in eval mode
MOST_AXES = 2  # of a function
Size = TypeVar("Size")
Value = TypeVar("Value")
OF_MODULE = -1  # used instead of a dimension for the groups of a convolution


@dataclass(frozen=True, eq=False)
class Axis:
    """A width of an operation, counted in units, and the sizes that depend on it.

    ``positions`` and ``inputs`` map each size to the number of positions of one unit. A size is (tensor, dim) for weights and (number of
    the input, dim) for inputs. The units are those of one group, or of several groups whose channels are concatenated.
    """

    groups: tuple[str, ...]
    units: int
    positions: Mapping[tuple[str, int], int]
    inputs: Mapping[tuple[int, int], int]


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation that is timed as one: a weighted layer with the norm and activation after it, or a function called outside of modules.

    ``inputs`` are the shapes of its inputs. ``axes`` are the widths that shrink when units are removed, at most two: in and out.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]  # on the meta device, applied one after the other
    function: Any  # or an operator of torch, called with ``arguments``
    arguments: tuple[Any, ...]
    inputs: tuple[tuple[int, ...], ...]
    axes: tuple[Axis, ...]

    def at(self, units: Sequence[int]) -> Case:
        """Returns the operation with this number of units on each axis."""
        inputs = [list(shape) for shape in self.inputs]
        for axis, kept in zip(self.axes, units, strict=True):
            for (index, dim), positions in axis.inputs.items():
                inputs[index][dim] -= positions * (axis.units - kept)
        shapes = tuple(map(tuple, inputs))
        if self.function is not None:
            return Case(_Function(self.function, self.arguments), shapes)
        module = nn.Sequential(*(copy.deepcopy(module) for _, module in self.modules))
        tensors, numbers = self._shapes(units)
        resize_(module, self._inside(tensors), self._inside(numbers))
        return Case(module[0] if len(module) == 1 else module, shapes)  # attention may have several inputs, which a sequence does not take

    def _shapes(self, units: Sequence[int]) -> tuple[dict[str, list[int]], dict[str, int]]:
        """Returns the shapes of the tensors, and the numbers that the modules keep."""
        tensors = {f"{name}.{leaf}": tensor for name, module in self.modules for leaf, tensor in _tensors(module)}
        numbers = {f"{name}.groups": getattr(module, "groups", 1) for name, module in self.modules}
        shapes: dict[str, list[int]] = {}
        sizes: dict[str, int] = {}
        for axis, kept in zip(self.axes, units, strict=True):
            for (name, dim), positions in axis.positions.items():
                removed = positions * (axis.units - kept)
                if dim == OF_MODULE:
                    sizes[name] = sizes.get(name, numbers[name]) - removed
                else:
                    shapes.setdefault(name, list(tensors[name].shape))[dim] -= removed
        return shapes, sizes

    def _inside(self, named: Mapping[str, Value]) -> dict[str, Value]:
        """Returns the values under the names that they have in a sequence of the modules."""
        places = {name: index for index, (name, _) in enumerate(self.modules)}
        renamed = {}
        for key, value in named.items():
            owner = next(name for name in places if key.startswith(f"{name}."))
            renamed[f"{places[owner]}.{key.removeprefix(f'{owner}.')}"] = value
        return renamed


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@dataclass(frozen=True, eq=False)
class Case:
    """An operation with given sizes: a module on the meta device, and the shapes of its inputs."""

    module: nn.Module
    inputs: tuple[tuple[int, ...], ...]

    @cached_property
    def text(self) -> str:
        """Everything that the time depends on, as text. It is the same for equal operations of any model."""
        parts = self.module if isinstance(self.module, nn.Sequential) else [self.module]
        modules = "; ".join(" ".join(repr(part).split()) + _heads(part) for part in parts)
        return f"{' '.join('x'.join(map(str, shape)) for shape in self.inputs)}: {modules}"


def _heads(module: nn.Module) -> str:
    """Returns the number of heads of attention, which its ``repr`` does not contain."""
    return f" heads={module.num_heads}" if isinstance(module, Attention | nn.MultiheadAttention) else ""


class _Function(nn.Module):
    """A module that calls an operator, with its inputs in the places of the original tensors."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.function, self.places = function, arguments

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs = iter(tensors)
        args, kwargs = torch.utils._pytree.tree_map(lambda part: next(inputs) if isinstance(part, _Place) else part, self.places)
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.function} {self.places}"


@dataclass(frozen=True)
class _Place:
    """The place of a tensor among the arguments."""

    def __repr__(self) -> str:
        return "."


def find_operations(family: ModelFamily, input_shape: tuple[int, int, int], batch_size: int, groups: Sequence[Group]) -> list[Operation]:
    """Returns all operations of a forward pass of ``batch_size`` images, in order. Needs no weights."""
    with torch.device("meta"):
        model, images_NCHW = family.build().eval(), torch.empty(batch_size, *input_shape)
    calls, positions = _trace(model, images_NCHW), _positions(groups)
    variable = _variable_inputs(model, images_NCHW, calls, groups)
    units = {group.name: group.units for group in groups}
    return [
        _operation(f"{index}:{call.name}", call, positions, inputs, units)
        for index, (call, inputs) in enumerate(zip(calls, variable, strict=True))
    ]


def _trace(model: nn.Module, images_NCHW: Tensor) -> list[_Call]:
    tracer = _Tracer(model)
    with torch.no_grad(), tracer.watching(), tracer:
        model(images_NCHW)
    return tracer.calls


def _variable_inputs(
    model: nn.Module, images_NCHW: Tensor, calls: Sequence[_Call], groups: Sequence[Group]
) -> list[dict[tuple[int, int], dict[str, int]]]:
    """Returns, for each operation, the sizes (number of the input, dim) that depend on units, with the positions of a unit by group.

    The model is traced with one unit less of each group in turn, so the result is right whatever lies between a layer and its readers.
    """
    shapes = {name: list(tensor.shape) for name, tensor in _tensors(model)}
    variable: list[dict[tuple[int, int], dict[str, int]]] = [{} for _ in calls]
    smaller = copy.deepcopy(model)
    for group in (group for group in groups if group.units > 1):
        dense_shapes = {part.tensor: shapes[part.tensor] for part in group.slices}
        narrower = copy.deepcopy(dense_shapes)
        for part in group.slices:
            narrower[part.tensor][part.dim] -= part.index_UK.shape[1]
        kept = {group.name: torch.arange(group.units) > 0}
        rest = remainder(model, [group], kept)
        resize_(smaller, narrower | rest.shapes, rest.sizes, rest.narrow)
        traced = _trace(smaller, images_NCHW)
        dense_sizes = {name: number_of(model, name) for name in rest.sizes}
        resize_(smaller, dense_shapes, dense_sizes, {name: [heads, heads] for name, (_, heads) in rest.narrow.items()})
        for before, after, sizes in zip(calls, traced, variable, strict=True):
            if before.arguments != after.arguments:
                continue  # the arguments contain sizes, so the operation can only be timed with the dense ones
            for index, (dense_shape, shape) in enumerate(zip(before.inputs, after.inputs, strict=True)):
                for dim in (dim for dim, size in enumerate(dense_shape) if shape[dim] != size):
                    sizes.setdefault((index, dim), {})[group.name] = dense_shape[dim] - shape[dim]
    return variable


@dataclass
class _Call:
    name: str
    modules: list[tuple[str, nn.Module]]
    function: Any
    arguments: tuple[Any, ...]
    inputs: tuple[tuple[int, ...], ...]


class _Tracer(TorchDispatchMode):
    """A mode that records the calls of modules without children (or ``WHOLE``), and of operators outside of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._model, self._inside = model, 0
        self._last: Any = None  # output of the last module

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
        if self._inside > 1 or isinstance(module, NO_OPERATION) or not inputs or not isinstance(inputs[0], Tensor):
            return
        follows = self._last is inputs[0] and self.calls and self.calls[-1].function is None
        if follows and not any(parameter.ndim > 1 for parameter in module.parameters()):
            self.calls[-1].modules.append((name, module))
        else:
            shapes = tuple(tuple(part.shape) for part in inputs if isinstance(part, Tensor))
            self.calls.append(_Call(name, [(name, module)], None, (), shapes))

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._inside -= 1
        if self._inside == 0 and not (isinstance(module, NO_OPERATION) and inputs[0] is not self._last):
            self._last = output

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self._inside and not _takes_no_time(function) and isinstance(result, Tensor):
            tensors: list[Tensor] = []

            def place(part: Any) -> Any:
                if not isinstance(part, Tensor):
                    return part
                tensors.append(part)
                return _Place()

            arguments = torch.utils._pytree.tree_map(place, (tuple(args), dict(kwargs or {})))
            if tensors:
                self.calls.append(_Call(str(function), [], function, arguments, tuple(tuple(tensor.shape) for tensor in tensors)))
        return result


def _takes_no_time(function: Any) -> bool:
    """Returns whether an operator makes a view, or does not compute anything."""
    returns, arguments = function._schema.returns, function._schema.arguments
    writes = any(argument.alias_info is not None and argument.alias_info.is_write for argument in arguments)
    aliases = any(part.alias_info is not None for part in returns)
    return (aliases and not writes) or function._schema.name in ("aten::empty", "aten::detach")


def _positions(groups: Sequence[Group]) -> dict[tuple[str, int], dict[str, int]]:
    """Returns, for each size (tensor, dim), the positions of a unit by group."""
    positions: dict[tuple[str, int], dict[str, int]] = {}
    for group in groups:
        for part in group.slices:
            by_group = positions.setdefault((part.tensor, part.dim), {})
            by_group[group.name] = by_group.get(group.name, 0) + part.index_UK.shape[1]
        for size in group.sizes:
            positions.setdefault((size.name, OF_MODULE), {})[group.name] = size.of_unit
    return positions


def _operation(
    name: str,
    call: _Call,
    positions: Mapping[tuple[str, int], Mapping[str, int]],
    variable: Mapping[tuple[int, int], Mapping[str, int]],
    units: Mapping[str, int],
) -> Operation:
    weights = {
        (f"{module_name}.{leaf}", dim): positions.get((f"{module_name}.{leaf}", dim), {})
        for module_name, module in call.modules
        for leaf, tensor in _tensors(module)
        for dim in range(tensor.ndim)
    }
    convolutions = [(f"{module_name}.groups", OF_MODULE) for module_name, _ in call.modules]
    weights |= {size: positions[size] for size in convolutions if positions.get(size)}
    weights_by_groups, inputs_by_groups = _by_groups(weights), _by_groups(variable)
    axes = tuple(
        Axis(names, sum(units[name] for name in names), weights_by_groups.get(names, {}), inputs_by_groups.get(names, {}))
        for names in dict.fromkeys((*weights_by_groups, *inputs_by_groups))
    )
    if call.function is not None and len(axes) > MOST_AXES:  # a function of many groups is timed with its dense sizes
        axes = ()
    return Operation(name, tuple(call.modules), call.function, call.arguments, call.inputs, axes)


def _by_groups(sizes: Mapping[Size, Mapping[str, int]]) -> dict[tuple[str, ...], dict[Size, int]]:
    """Returns the sizes by the groups of their units, as far as a unit has the same number of positions in all of these groups."""
    by_groups: dict[tuple[str, ...], dict[Size, int]] = {}
    for size, positions in sizes.items():
        if positions and len(set(positions.values())) == 1:
            by_groups.setdefault(tuple(sorted(positions)), {})[size] = next(iter(positions.values()))
    return by_groups
