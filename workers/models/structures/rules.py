"""What each operation of torch does to the labels of its tensors. What has no rule stays whole:
its labels are frozen.

Sources: the schemas of ATen's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from workers.models.structures.labels import Atoms, Factor, Labels, Ties, whole


class Call:
    """One operation: its arguments by name, the labels of its tensors, and where they are tied."""

    def __init__(
        self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any, labels: Callable[[Any], Labels], ties: Ties
    ):
        self.function, self.output, self.labels, self.ties = function, output, labels, ties
        self.name: str = function.overloadpacket.__name__
        self.given: dict[str, Any] = {}
        for index, argument in enumerate(function._schema.arguments):
            value = args[index] if index < len(args) and not argument.kwarg_only else kwargs.get(argument.name)
            if value is None and argument.name not in kwargs and index >= len(args) and argument.has_default_value():
                value = argument.default_value
            self.given[argument.name] = value
        self.groups: Atoms | None = None  # of a convolution: an atom for each of its groups that go one by one
        self.read: list[tuple[Tensor, int]] = []  # dimensions that are summed over

    @property
    def first(self) -> Tensor:
        return next(value for value in self.given.values() if isinstance(value, Tensor))

    @property
    def tensors(self) -> list[Tensor]:
        return [
            tensor
            for value in self.given.values()
            for tensor in (value if isinstance(value, list | tuple) else [value])
            if isinstance(tensor, Tensor)
        ]

    def dims(self, name: str, rank: int) -> list[int]:
        """A dimension or several, counted from the front; all of them if none is given."""
        value = self.given.get(name)
        listed = range(rank) if value is None or value == [] else value if isinstance(value, list | tuple) else [value]
        return [dim % rank for dim in listed]

    def freeze_all(self) -> None:
        for tensor in self.tensors:
            self.ties.freeze(self.labels(tensor))


Result = Labels | list[Labels]
Rule = Callable[[Call], Result]
RULES: dict[str, Rule] = {}
VIEWS: set[str] = set()  # a parameter seen through these is still the parameter


def rule(*names: str, view: bool = False) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        VIEWS.update(names if view else ())
        return function

    return add


def pointwise(call: Call, tensors: Sequence[Tensor] | None = None, shape: Sequence[int] | None = None) -> Labels:
    """Broadcast together, whatever is computed. A tensor of full size without a label of its own cannot follow one that has."""
    tensors = call.tensors if tensors is None else tensors
    shape = call.output.shape if shape is None else shape
    factors: list[Factor] = []
    for tensor in tensors:
        shift = len(shape) - tensor.ndim
        factors += [factor.moved({dim: dim + shift for dim in factor.dims}) for factor in call.labels(tensor)]
    for dim in {dim for factor in factors for dim in factor.dims}:
        for tensor in tensors:
            own = dim - (len(shape) - tensor.ndim)
            if own >= 0 and tensor.shape[own] > 1 and tensor.stride(own) != 0 and whole(call.labels(tensor), own) is None:
                call.ties.fix([factor for factor in factors if dim in factor.dims], dim)
    return call.ties.combine(factors)


@rule(
    "hardswish", "hardsigmoid", "hardtanh", "softplus", "mish", "leaky_relu", "elu", "celu", "selu", "relu6", "prelu", "log_sigmoid_forward"
)
def activation(call: Call) -> Result:
    return pointwise(call)


@rule(
    "clone",
    "_to_copy",
    "contiguous",
    "lift_fresh",
    "dropout",
    "native_dropout",
    "zeros_like",
    "empty_like",
    "ones_like",
    "full_like",
    "rand_like",
)
def same(call: Call) -> Result:
    return call.labels(call.first)


@rule("alias", "detach", "view_as_real", "view_as_complex", "_conj", "_neg_view", view=True)
def same_view(call: Call) -> Result:
    return call.labels(call.first)


@rule("copy_", "copy")
def copy(call: Call) -> Result:
    return pointwise(call)


# ------------------------------------------------------------------------------------------------------------------ of their parts


def moved(labels: Labels, to: dict[int, int]) -> Labels:
    return tuple(factor.moved(to) for factor in labels)


def leaving(call: Call, dims: Sequence[int]) -> Labels:
    """Factors without any of ``dims``; others are frozen."""
    labels = call.labels(call.first)
    touched = [factor for factor in labels if set(dims) & set(factor.dims)]
    call.ties.freeze(touched)
    return tuple(factor for factor in labels if factor not in touched)


def channels(call: Call, change: Callable[[Factor], Factor]) -> Labels:
    found = []
    for factor in call.labels(call.first):
        if factor.dims == (1,):
            found.append(change(factor))
        elif factor.dims == (0,):
            found.append(factor)
        else:
            call.ties.freeze([factor])
    return tuple(found)


def mixed(call: Call, labels: Labels, dims: Sequence[int]) -> Labels:
    """All positions along ``dims`` are computed from each other: a factor over these alone stays whole, in others they are tied."""
    call.ties.freeze(factor for factor in labels if set(factor.dims) <= set(dims))
    return tuple(factor.tied_along(dims, call.ties) for factor in labels)


def without(call: Call, labels: Labels) -> Labels:
    rank = call.first.ndim
    dims = call.dims("dim", rank)
    keeps = bool(call.given.get("keepdim"))
    names = [dim for dim in range(rank) if dim not in dims]
    to = {dim: dim if keeps else names.index(dim) for dim in names}
    found = []
    for factor in labels:
        left: Factor | None = factor
        for dim in dims:
            if left is not None and dim in left.dims:
                left = left.without(dim, call.ties)
        if left is not None:
            found.append(left.moved(to))
    return tuple(found)


def selected(call: Call, labels: Labels, dim: int, index: int) -> Labels:
    found = []
    for factor in labels:
        if factor.dims == (dim,):
            call.ties.freeze([factor])
            continue
        taken = factor
        if dim in factor.dims:
            axis = factor.dims.index(dim)
            taken = Factor(tuple(other for other in factor.dims if other != dim), factor.atoms_.take([index], axis).squeeze(axis))
        found.append(taken.moved({other: other - (other > dim) for other in taken.dims}))
    return tuple(found)


def parts(call: Call, dim: int, parts: Sequence[tuple[int, int, int]]) -> list[Labels]:
    """Ranges (start, stop, step) of a dimension. Where units are along it, equal parts lose the same ones, since a model tells them by
    their place; unequal ones stay."""
    labels = call.labels(call.first)
    size = call.first.shape[dim]
    factor = whole(labels, dim)
    if factor is not None and factor.dims == (dim,) and parts[0] != (0, size, 1):
        start, stop, step = parts[0]
        length = stop - start
        if step == 1 and length > 0 and size % length == 0 and start % length == 0:
            of_PL = factor.atoms_.reshape(-1, length)
            call.ties.tie(of_PL, of_PL[:1])
        elif step > 1 and size % step == 0:
            of_LP = factor.atoms_.reshape(-1, step)
            call.ties.tie(of_LP, of_LP[:, :1])
        else:
            call.ties.freeze([factor])
    found: list[Labels] = []
    for start, stop, step in parts:
        taken = []
        for one in labels:
            if dim not in one.dims:
                taken.append(one)
                continue
            atoms_ = one.atoms_.take(range(start, stop, step), one.dims.index(dim))
            if stop - start > step:
                taken.append(Factor(one.dims, atoms_))
            elif len(one.dims) > 1:
                taken.append(Factor(tuple(d for d in one.dims if d != dim), atoms_.squeeze(one.dims.index(dim))))
            else:
                call.ties.freeze([one])
        found.append(tuple(taken))
    return found
