"""The registry of rules that say what each operation of torch does to labels. An operation without a rule freezes the labels.

Sources: the schemas of ATen's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from workers.models.structures.labels import Atoms, Factor, Labels, Ties, factor_of


class Call:
    """The call of an operation: its arguments by name, the labels of its tensors, and the ties that it adds to."""

    def __init__(
        self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any, labels: Callable[[Any], Labels], ties: Ties
    ):
        self.function, self.output, self.labels, self.ties = function, output, labels, ties
        self.name: str = function.overloadpacket.__name__
        self.arguments: dict[str, Any] = {}
        for index, argument in enumerate(function._schema.arguments):
            value = args[index] if index < len(args) and not argument.kwarg_only else kwargs.get(argument.name)
            if value is None and argument.name not in kwargs and index >= len(args) and argument.has_default_value():
                value = argument.default_value
            self.arguments[argument.name] = value
        self.groups: Atoms | None = None  # of a convolution whose groups are units: an atom for each group
        self.read: list[tuple[Tensor, int]] = []  # dimensions that are summed over

    @property
    def first(self) -> Tensor:
        return next(value for value in self.arguments.values() if isinstance(value, Tensor))

    @property
    def tensors(self) -> list[Tensor]:
        return [
            tensor
            for value in self.arguments.values()
            for tensor in (value if isinstance(value, list | tuple) else [value])
            if isinstance(tensor, Tensor)
        ]

    def dims(self, name: str, rank: int) -> list[int]:
        """Returns the dimensions in an argument, counted from the front; all of them if it is not given."""
        value = self.arguments.get(name)
        dims = range(rank) if value is None or value == [] else value if isinstance(value, list | tuple) else [value]
        return [dim % rank for dim in dims]

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
    """Returns the labels of a pointwise operation: tensors are broadcast, and a full-size tensor without a label freezes the others."""
    tensors = call.tensors if tensors is None else tensors
    shape = call.output.shape if shape is None else shape
    factors: list[Factor] = []
    for tensor in tensors:
        shift = len(shape) - tensor.ndim
        factors += [factor.moved({dim: dim + shift for dim in factor.dims}) for factor in call.labels(tensor)]
    for dim in {dim for factor in factors for dim in factor.dims}:
        for tensor in tensors:
            tensor_dim = dim - (len(shape) - tensor.ndim)
            is_full = tensor_dim >= 0 and tensor.shape[tensor_dim] > 1 and tensor.stride(tensor_dim) != 0
            if is_full and factor_of(call.labels(tensor), tensor_dim) is None:
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


# -------------------------------------------------------------------------------------------------------------- helpers of the rules


def moved(labels: Labels, to: dict[int, int]) -> Labels:
    return tuple(factor.moved(to) for factor in labels)


def leaving(call: Call, dims: Sequence[int]) -> Labels:
    """Returns the factors without any of ``dims``, and freezes the others."""
    labels = call.labels(call.first)
    frozen = [factor for factor in labels if set(dims) & set(factor.dims)]
    call.ties.freeze(frozen)
    return tuple(factor for factor in labels if factor not in frozen)


def channels(call: Call, change: Callable[[Factor], Factor]) -> Labels:
    """Returns the labels with the factor of channels changed. Factors of the batch are kept, all others are frozen."""
    factors = []
    for factor in call.labels(call.first):
        if factor.dims == (1,):
            factors.append(change(factor))
        elif factor.dims == (0,):
            factors.append(factor)
        else:
            call.ties.freeze([factor])
    return tuple(factors)


def mixed(call: Call, labels: Labels, dims: Sequence[int]) -> Labels:
    """Freezes factors over ``dims`` alone, whose positions are computed from each other, and ties positions along them in other factors."""
    call.ties.freeze(factor for factor in labels if set(factor.dims) <= set(dims))
    return tuple(factor.tied_along(dims, call.ties) for factor in labels)


def without(call: Call, labels: Labels) -> Labels:
    """Returns the labels after a reduction over the dimensions in the argument ``dim``."""
    rank = call.first.ndim
    dims = call.dims("dim", rank)
    keeps = bool(call.arguments.get("keepdim"))
    names = [dim for dim in range(rank) if dim not in dims]
    to = {dim: dim if keeps else names.index(dim) for dim in names}
    reduced = []
    for factor in labels:
        rest: Factor | None = factor
        for dim in dims:
            if rest is not None and dim in rest.dims:
                rest = rest.without(dim, call.ties)
        if rest is not None:
            reduced.append(rest.moved(to))
    return tuple(reduced)


def selected(call: Call, labels: Labels, dim: int, index: int) -> Labels:
    """Returns the labels of one position along ``dim``. A factor over ``dim`` alone is frozen."""
    factors = []
    for factor in labels:
        if factor.dims == (dim,):
            call.ties.freeze([factor])
            continue
        part = factor
        if dim in factor.dims:
            axis = factor.dims.index(dim)
            part = Factor(tuple(other for other in factor.dims if other != dim), factor.atoms_.take([index], axis).squeeze(axis))
        factors.append(part.moved({other: other - (other > dim) for other in part.dims}))
    return tuple(factors)


def parts(call: Call, dim: int, parts: Sequence[tuple[int, int, int]]) -> list[Labels]:
    """Returns the labels of the ranges (start, stop, step) of a dimension.

    If units are along it, equal parts lose the same units, since the code of a model selects parts by position; unequal parts are frozen.
    """
    labels = call.labels(call.first)
    size = call.first.shape[dim]
    factor = factor_of(labels, dim)
    if factor is not None and factor.dims == (dim,) and parts[0] != (0, size, 1):
        start, stop, step = parts[0]
        length = stop - start
        if step == 1 and length > 0 and size % length == 0 and start % length == 0:
            atoms_PL = factor.atoms_.reshape(-1, length)
            call.ties.tie(atoms_PL, atoms_PL[:1])
        elif step > 1 and size % step == 0:
            atoms_LP = factor.atoms_.reshape(-1, step)
            call.ties.tie(atoms_LP, atoms_LP[:, :1])
        else:
            call.ties.freeze([factor])
    labels_of_parts: list[Labels] = []
    for start, stop, step in parts:
        factors = []
        for factor in labels:
            if dim not in factor.dims:
                factors.append(factor)
                continue
            atoms_ = factor.atoms_.take(range(start, stop, step), factor.dims.index(dim))
            if stop - start > step:
                factors.append(Factor(factor.dims, atoms_))
            elif len(factor.dims) > 1:
                factors.append(Factor(tuple(d for d in factor.dims if d != dim), atoms_.squeeze(factor.dims.index(dim))))
            else:
                call.ties.freeze([factor])
        labels_of_parts.append(tuple(factors))
    return labels_of_parts
