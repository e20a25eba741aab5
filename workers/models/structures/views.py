"""The rules of views, slices and concatenations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor

from workers.models.structures.labels import FROZEN, Factor, factor_of
from workers.models.structures.rules import Call, Result, channels, leaving, moved, parts, pointwise, rule, selected


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", view=True)
def view(call: Call) -> Result:
    return call.ties.reshaped(call.labels(call.first), call.first.shape, call.output.shape)


@rule("permute", view=True)
def permute(call: Call) -> Result:
    order = call.dims("dims", call.first.ndim)
    return moved(call.labels(call.first), {dim: index for index, dim in enumerate(order)})


@rule("transpose", view=True)
def transpose(call: Call) -> Result:
    rank = call.first.ndim
    first, second = call.arguments["dim0"] % rank, call.arguments["dim1"] % rank
    return moved(call.labels(call.first), {dim: dim for dim in range(rank)} | {first: second, second: first})


@rule("t", view=True)
def t(call: Call) -> Result:
    return moved(call.labels(call.first), {0: call.first.ndim - 1, 1: 0} if call.first.ndim == 2 else {0: 0})


@rule("unsqueeze", view=True)
def unsqueeze(call: Call) -> Result:
    added = call.arguments["dim"] % call.output.ndim
    return moved(call.labels(call.first), {dim: dim + (dim >= added) for dim in range(call.first.ndim)})


@rule("squeeze", view=True)
def squeeze(call: Call) -> Result:
    return call.ties.reshaped(call.labels(call.first), call.first.shape, call.output.shape)


@rule("expand", view=True)
def expand(call: Call) -> Result:
    shift = call.output.ndim - call.first.ndim
    return moved(call.labels(call.first), {dim: dim + shift for dim in range(call.first.ndim)})


@rule("select", view=True)
def select(call: Call) -> Result:
    dim, index = call.arguments["dim"] % call.first.ndim, int(call.arguments["index"])
    return selected(call, call.labels(call.first), dim, index)


@rule("unbind", view=True)
def unbind(call: Call) -> Result:
    dim = call.arguments["dim"] % call.first.ndim
    return [selected(call, call.labels(call.first), dim, index) for index in range(call.first.shape[dim])]


@rule("slice", view=True)
def slice_(call: Call) -> Result:
    dim = call.arguments["dim"] % call.first.ndim
    start, stop, step = slice(call.arguments["start"], call.arguments["end"], call.arguments["step"]).indices(call.first.shape[dim])
    return parts(call, dim, [(start, stop, step)])[0]


@rule("split", view=True)
def split(call: Call) -> Result:
    dim, size = call.arguments["dim"] % call.first.ndim, call.arguments["split_size"]
    length = call.first.shape[dim]
    return parts(call, dim, [(start, min(start + size, length), 1) for start in range(0, length, size)])


@rule("split_with_sizes", view=True)
def split_with_sizes(call: Call) -> Result:
    dim = call.arguments["dim"] % call.first.ndim
    ends = np.cumsum([0, *call.arguments["split_sizes"]]).tolist()
    return parts(call, dim, [(start, stop, 1) for start, stop in pairwise(ends)])


@rule("roll")
def roll(call: Call) -> Result:
    shifts = call.arguments["shifts"] if isinstance(call.arguments["shifts"], list | tuple) else [call.arguments["shifts"]]
    labels = call.labels(call.first)
    for dim, shift in zip(call.dims("dims", call.first.ndim), shifts, strict=False):
        labels = tuple(Factor(f.dims, np.roll(f.atoms_, shift, f.dims.index(dim))) if dim in f.dims else f for f in labels)
    return labels


@rule("flip")
def flip(call: Call) -> Result:
    dims = call.dims("dims", call.first.ndim)
    axes = [tuple(factor.dims.index(dim) for dim in dims if dim in factor.dims) for factor in call.labels(call.first)]
    return tuple(Factor(factor.dims, np.flip(factor.atoms_, along)) for factor, along in zip(call.labels(call.first), axes, strict=True))


@rule("cat")
def cat(call: Call) -> Result:
    """Concatenates the atoms along the dimension of the concatenation, and ties them along all others."""
    tensors = [tensor for tensor in call.arguments["tensors"] if tensor.numel() or tensor.ndim > 1]
    dim = call.arguments["dim"] % call.output.ndim
    along = [factor_of(call.labels(tensor), dim) for tensor in tensors]
    dims = along[0].dims if along[0] is not None else (dim,)
    rest: list[tuple[Tensor, Factor]] = []
    same_dims = all(factor is not None and factor.dims == dims for factor in along)
    if not same_dims and any(factor is not None and factor.dims != (dim,) for factor in along):
        # Such as heads, if one of the tensors has none: units are not along this dimension.
        for tensor, factor in zip(tensors, along, strict=True):
            remaining = None if factor is None else factor.without(dim, call.ties)
            if factor is not None and remaining is None:
                call.ties.freeze([factor])
            rest += [(tensor, remaining)] if remaining is not None else []
        along = [None for _ in tensors]
    rest += [(tensor, factor) for tensor in tensors for factor in call.labels(tensor) if dim not in factor.dims]
    for _, factor in rest if len(tensors) > 1 else ():
        for axis in factor.dims:
            for tensor in tensors:
                if factor_of(call.labels(tensor), axis) is None and tensor.shape[axis] > 1 and tensor.stride(axis) != 0:
                    call.ties.fix([factor], axis)
    labels = call.ties.combine([factor for _, factor in rest])
    if all(factor is None for factor in along):
        return labels
    axis = dims.index(dim)
    frozen = [np.full(tensor.shape[dim], FROZEN, np.int64) for tensor in tensors]
    pieces = [piece if factor is None else factor.atoms_ for piece, factor in zip(frozen, along, strict=True)]
    return call.ties.combine([*labels, Factor(dims, np.concatenate(pieces, axis))])


@rule("stack")
def stack(call: Call) -> Result:
    dim = call.arguments["dim"] % call.output.ndim
    shape = [size for axis, size in enumerate(call.output.shape) if axis != dim]
    return moved(pointwise(call, call.arguments["tensors"], shape), {axis: axis + (axis >= dim) for axis in range(len(shape))})


@rule("repeat")
def repeat(call: Call) -> Result:
    shift = call.output.ndim - call.first.ndim
    times = list(call.arguments["repeats"])
    factors = []
    for factor in call.labels(call.first):
        repeated = np.tile(factor.atoms_, [times[dim + shift] for dim in factor.dims])
        factors.append(Factor(tuple(dim + shift for dim in factor.dims), repeated))
    return tuple(factors)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixels(call: Call) -> Result:
    """(C r r, H, W) as (C, H r, W r) and back: the r x r positions of a channel are consecutive."""
    factors = []
    for factor in call.labels(call.first):
        channel = call.first.ndim - 3
        if factor.dims != (channel,):
            call.ties.freeze([factor])
        elif call.name == "pixel_unshuffle":
            factors.append(Factor(factor.dims, np.repeat(factor.atoms_, call.output.shape[channel] // len(factor.atoms_))))
        else:
            atoms_CR = factor.atoms_.reshape(call.output.shape[channel], -1)
            call.ties.tie(atoms_CR, atoms_CR[:, :1])
            factors.append(Factor(factor.dims, atoms_CR[:, 0]))
    return tuple(factors)


@rule("im2col")
def im2col(call: Call) -> Result:
    return channels(call, lambda factor: Factor((1,), np.repeat(factor.atoms_, call.output.shape[1] // len(factor.atoms_))))


@rule("col2im")
def col2im(call: Call) -> Result:
    def channel(factor: Factor) -> Factor:
        atoms_CK = factor.atoms_.reshape(call.output.shape[1], -1)
        call.ties.tie(atoms_CK, atoms_CK[:, :1])
        return Factor((1,), atoms_CK[:, 0])

    return channels(call, channel)


@rule("unfold")
def unfold(call: Call) -> Result:
    return leaving(call, [call.arguments["dimension"] % call.first.ndim])
