"""The groups of units of any model, traced from the operations of one forward pass on the meta device.

Each position of each parameter is an atom (``labels.py``). Each operation ties the atoms that have to be removed together (``rules.py``),
and tied atoms form a class. Classes with the same numbers of positions in the same tensors are the units of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from workers.errors import ConfigError
from workers.models.structures import products, sums, views  # noqa: F401, importing them registers their rules
from workers.models.structures.classes import classes
from workers.models.structures.groups import Group, Kind, Size, Slice, home
from workers.models.structures.labels import FROZEN, Atoms, Factor, Labels, Ties
from workers.models.structures.rules import RULES, VIEWS, Call, Result, pointwise


@dataclass(frozen=True, eq=False)
class Entered:
    """The arguments of a call of a module, with tensors on the meta device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trace:
    """The result of tracing one forward pass."""

    groups: list[Group]
    entered: dict[str, Entered]  # the first call of each module that was called


def trace(model: nn.Module, image_1CHW: Tensor) -> Trace:
    """Returns the groups of a model in the order of definition. ``model`` and image are on the meta device.

    Units are not included if a norm takes a mean over them (removal would change the function), if no layer reads them, or if they are
    outputs of the model. Raises: ConfigError that names the module at which the forward pass failed.
    """
    follower = _Follower(model)
    try:
        with torch.no_grad(), follower.watching(), follower:
            output = model(image_1CHW)
    except Exception as error:  # a model may raise anything
        raise ConfigError(
            f"model.name: the forward pass of {type(model).__name__} on one image of {'x'.join(map(str, image_1CHW.shape[1:]))} "
            f"(channels x height x width) failed at module {follower.module or 'none'}: {' '.join(str(error).split())[:160]}; choose a "
            "pruner of weights, such as pruner=cap"
        ) from error
    for tensor in tree_flatten(output)[0]:
        if isinstance(tensor, Tensor):
            follower.ties.freeze(follower.labels(tensor))
    return Trace(_groups(model, follower), follower.entered)


@dataclass(frozen=True)
class _Dimension:
    """The dimension of a tensor whose positions are a range of atoms."""

    tensor: str
    dim: int
    first: int  # atom
    count: int
    running: bool = False


class _Follower(TorchDispatchMode):
    """A mode that ties the atoms of tensors at each operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ties = Ties()
        self.entered: dict[str, Entered] = {}
        self.dimensions: list[_Dimension] = []
        self.read: set[int] = set()  # first atoms of dimensions that are summed over
        self.added: list[Atoms] = []  # atoms of residual streams
        self.attended: list[Atoms] = []
        self.module = ""  # the last module that was called
        self._model = model
        self._labels: dict[int, Labels] = {}
        self._whose: dict[int, str] = {}  # parameters, and views of them
        self._constant: set[int] = set()  # tensors that do not depend on the image
        self._before: dict[int, int] = {}  # operations that a tensor depends on, one bit each
        self._alive: list[Any] = []
        self._operations = 0
        self._name_parameters()

    def _name_parameters(self) -> None:
        tensors: list[tuple[str, Tensor, bool]] = [(*item, False) for item in self._model.named_parameters(remove_duplicate=False)]
        tensors += [(*item, True) for item in self._model.named_buffers(remove_duplicate=False)]
        for name, tensor, running in tensors:
            if id(tensor) in self._labels:  # a tensor with two names is frozen
                self.ties.freeze(self._labels[id(tensor)])
                continue
            factors = []
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    atoms_ = self.ties.fresh(size)
                    factors.append(Factor((dim,), atoms_))
                    self.dimensions.append(_Dimension(name, dim, int(atoms_[0]), size, running))
            self._labels[id(tensor)] = tuple(factors)
            self._whose[id(tensor)] = name
            self._constant.add(id(tensor))
            self._alive.append(tensor)

    def labels(self, tensor: Any) -> Labels:
        return self._labels.get(id(tensor), ())

    @contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [module.register_forward_pre_hook(self._entering(name), with_kwargs=True) for name, module in self._model.named_modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.module = name
            self.entered.setdefault(name, Entered(*tree_map(lambda value: value, (args, kwargs))))  # a copy, since lists may grow later

        return enter

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        outputs = [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
        if not inputs or not outputs:
            self._alive += outputs
            return output
        call = Call(function, args, kwargs, outputs[0], self.labels, self.ties)
        self._follow(call, inputs, outputs)
        return output

    def _follow(self, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = call.name.rstrip("_") if call.name.endswith("_") and not call.name.startswith("__") else call.name
        per_output = self._labels_of_outputs(name, call, inputs)
        constant = all(id(tensor) in self._constant for tensor in inputs)
        if name == "add" and len(inputs) == 2:
            self._note_streams(inputs, per_output[0] if per_output else ())
        self._operations += 1
        before = 1 << self._operations
        for tensor in inputs:
            before |= self._before.get(id(tensor), 0)
        for index, tensor in enumerate(outputs):
            self._alive.append(tensor)
            labels = per_output[index] if index < len(per_output) else ()
            self._labels[id(tensor)] = self.ties.free(labels)
            self._before[id(tensor)] = before | self._before.get(id(tensor), 0)
            if constant:
                self._constant.add(id(tensor))
            else:
                self._constant.discard(id(tensor))
            if name in VIEWS and id(inputs[0]) in self._whose:
                self._whose[id(tensor)] = self._whose[id(inputs[0])]
        self._note_reads(call)
        if call.groups is not None:
            self._note_groups(call)

    def _labels_of_outputs(self, name: str, call: Call, inputs: list[Tensor]) -> list[Labels]:
        """Returns the labels of the first outputs of an operation."""
        if not any(self.labels(tensor) for tensor in inputs):
            return []
        between_activations = name in ("bmm", "baddbmm") and not any(id(tensor) in self._constant for tensor in inputs)
        labels = products.attention(call) if "scaled_dot_product" in name else self._ruled(name, call)
        if between_activations or "scaled_dot_product" in name:
            self.attended += [factor.atoms_ for factor in labels if isinstance(factor, Factor) and factor.dims[0] <= 1]
        return labels if isinstance(labels, list) else [labels]

    def _ruled(self, name: str, call: Call) -> Result:
        if name in RULES:
            return RULES[name](call)
        if torch.Tag.pointwise in call.function.tags or name in ("where", "masked_fill", "lerp", "addcmul", "fill"):
            return pointwise(call)
        call.freeze_all()
        return ()

    def _note_streams(self, inputs: list[Tensor], labels: Any) -> None:
        """Records a residual stream: a sum of two tensors of which one was computed from the other."""
        left, right = inputs
        if id(left) in self._constant or id(right) in self._constant:
            return
        first, second = self._before.get(id(left), 0), self._before.get(id(right), 0)
        if first and second and (first & second in (first, second)):
            self.added += [factor.atoms_ for factor in labels]

    def _note_reads(self, call: Call) -> None:
        others = [tensor for tensor, _ in call.read]
        for tensor, dim in call.read:
            beside = [other for other in others if other is not tensor]
            if id(tensor) in self._whose or (id(tensor) in self._constant and any(id(other) not in self._constant for other in beside)):
                for factor in self.labels(tensor):
                    if dim in factor.dims:
                        self.read.update(np.unique(factor.atoms_).tolist())

    def _note_groups(self, call: Call) -> None:
        assert call.groups is not None
        name = self._whose.get(id(call.arguments["weight"]))
        if name is None:
            self.ties.freeze([Factor((0,), call.groups)])
        else:
            module = name.rpartition(".")[0]
            self.dimensions.append(_Dimension(f"{module}.groups", -1, int(call.groups[0]), len(call.groups)))


def _groups(model: nn.Module, follower: _Follower) -> list[Group]:
    """Returns groups of classes with the same slices."""
    class_ = classes(follower.ties)
    frozen = class_[FROZEN]
    positions_of: dict[int, dict[tuple[int, bool], list[int]]] = {}
    for index, dimension in enumerate(follower.dimensions):
        first = dimension.first
        for position, number in enumerate(class_[first : first + dimension.count].tolist()):
            if number != frozen:
                positions_of.setdefault(number, {}).setdefault((index, first + position in follower.read), []).append(position)
    by_signature: dict[tuple, list[dict[tuple[int, bool], list[int]]]] = {}
    for parts in positions_of.values():
        signature = tuple(sorted((index, read, len(positions)) for (index, read), positions in parts.items()))
        by_signature.setdefault(signature, []).append(parts)
    kinds = ((Kind.STREAM, follower.added), (Kind.HEAD, follower.attended))
    marked = {kind: {int(number) for atoms_ in recorded for number in np.unique(class_[atoms_])} for kind, recorded in kinds}
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    groups: list[Group] = []
    for units in by_signature.values():
        number = int(class_[follower.dimensions[next(iter(units[0]))[0]].first + next(iter(units[0].values()))[0]])
        marks = {kind for kind, numbers in marked.items() if number in numbers}
        group = _group(model, follower.dimensions, units, marks, order)
        if group is not None:
            groups.append(group)
    return _named(sorted(groups, key=lambda group: order[group.name]))


def _group(
    model: nn.Module,
    dimensions: list[_Dimension],
    units: list[dict[tuple[int, bool], list[int]]],
    marks: set[Kind],
    order: Mapping[str, int],
) -> Group | None:
    """Returns a group; None if no layer produces it, nothing reads it, or it has one unit."""
    produced, consumed, running, sizes = [], [], [], []
    roots: dict[str, nn.Module] = {}
    for index, read in units[0]:
        dimension = dimensions[index]
        index_UK = torch.tensor([parts[index, read] for parts in units], device="cpu")
        part = Slice(dimension.tensor, dimension.dim, index_UK)
        owner = dimension.tensor.rpartition(".")[0]
        if dimension.dim < 0:
            sizes.append(Size(dimension.tensor, index_UK.shape[1]))
        elif dimension.running:
            running.append(part)
        elif read:
            consumed.append(part)
        else:
            produced.append(part)
            if (
                dimension.tensor.endswith(".weight")
                and dimension.dim == 0
                and isinstance(model.get_submodule(owner), nn.Linear | nn.Conv2d)
            ):
                roots[owner] = model.get_submodule(owner)
    if len(units) < 2 or not consumed or not roots:
        return None
    root = min(roots, key=lambda name: order[name])
    usual = Kind.NEURON if isinstance(roots[root], nn.Linear) else Kind.CHANNEL
    heads = Kind.HEAD in marks and any(part.index_UK.shape[1] > 1 for part in produced)
    kind = Kind.STREAM if Kind.STREAM in marks else Kind.HEAD if heads else usual
    return Group(root, kind, tuple(produced), tuple(consumed), tuple(running), tuple(sizes))


def _named(groups: list[Group]) -> list[Group]:
    """Returns the groups with their final names.

    Heads and neurons are named after the module that holds all of their tensors, if they are the only ones in it. All others are named
    after the first layer that produces them, with a number if there are several.
    """
    homes = [home(group) for group in groups]
    times: dict[str, int] = {}
    named = []
    for group, module in zip(groups, homes, strict=True):
        alone = group.kind in (Kind.HEAD, Kind.NEURON) and module and homes.count(module) == 1
        name = module if alone else group.name
        times[name] = times.get(name, 0) + 1
        named.append(replace(group, name=name if times[name] == 1 else f"{name}:{times[name]}"))
    return named
