"""What views, cuts and concatenations do to labels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor

from workers.models.structures.labels import FROZEN, Factor, whole
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
    one, other = call.given["dim0"] % rank, call.given["dim1"] % rank
    return moved(call.labels(call.first), {dim: dim for dim in range(rank)} | {one: other, other: one})


@rule("t", view=True)
def t(call: Call) -> Result:
    return moved(call.labels(call.first), {0: call.first.ndim - 1, 1: 0} if call.first.ndim == 2 else {0: 0})


@rule("unsqueeze", view=True)
def unsqueeze(call: Call) -> Result:
    added = call.given["dim"] % call.output.ndim
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
    dim, index = call.given["dim"] % call.first.ndim, int(call.given["index"])
    return selected(call, call.labels(call.first), dim, index)


@rule("unbind", view=True)
def unbind(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    return [selected(call, call.labels(call.first), dim, index) for index in range(call.first.shape[dim])]


@rule("slice", view=True)
def slice_(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    start, stop, step = slice(call.given["start"], call.given["end"], call.given["step"]).indices(call.first.shape[dim])
    return parts(call, dim, [(start, stop, step)])[0]


@rule("split", view=True)
def split(call: Call) -> Result:
    dim, size = call.given["dim"] % call.first.ndim, call.given["split_size"]
    length = call.first.shape[dim]
    return parts(call, dim, [(start, min(start + size, length), 1) for start in range(0, length, size)])


@rule("split_with_sizes", view=True)
def split_with_sizes(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    ends = np.cumsum([0, *call.given["split_sizes"]]).tolist()
    return parts(call, dim, [(start, stop, 1) for start, stop in pairwise(ends)])


@rule("roll")
def roll(call: Call) -> Result:
    shifts = call.given["shifts"] if isinstance(call.given["shifts"], list | tuple) else [call.given["shifts"]]
    found = call.labels(call.first)
    for dim, shift in zip(call.dims("dims", call.first.ndim), shifts, strict=False):
        found = tuple(Factor(f.dims, np.roll(f.atoms_, shift, f.dims.index(dim))) if dim in f.dims else f for f in found)
    return found


@rule("flip")
def flip(call: Call) -> Result:
    dims = call.dims("dims", call.first.ndim)
    axes = [tuple(factor.dims.index(dim) for dim in dims if dim in factor.dims) for factor in call.labels(call.first)]
    return tuple(Factor(factor.dims, np.flip(factor.atoms_, along)) for factor, along in zip(call.labels(call.first), axes, strict=True))


@rule("cat")
def cat(call: Call) -> Result:
    """Along a labelled dimension one tensor's atoms follow the other's; along all others they are tied."""
    tensors = [tensor for tensor in call.given["tensors"] if tensor.numel() or tensor.ndim > 1]
    dim = call.given["dim"] % call.output.ndim
    along = [whole(call.labels(tensor), dim) for tensor in tensors]
    dims = along[0].dims if along[0] is not None else (dim,)
    rest: list[tuple[Tensor, Factor]] = []
    alike = all(factor is not None and factor.dims == dims for factor in along)
    if not alike and any(
        factor is not None and factor.dims != (dim,) for factor in along
    ):  # such as heads of which one tensor knows nothing: units are not along this dimension
        for tensor, factor in zip(tensors, along, strict=True):
            left = None if factor is None else factor.without(dim, call.ties)
            if factor is not None and left is None:
                call.ties.freeze([factor])
            rest += [(tensor, left)] if left is not None else []
        along = [None for _ in tensors]
    rest += [(tensor, factor) for tensor in tensors for factor in call.labels(tensor) if dim not in factor.dims]
    for _, factor in rest if len(tensors) > 1 else ():
        for axis in factor.dims:
            for tensor in tensors:
                if whole(call.labels(tensor), axis) is None and tensor.shape[axis] > 1 and tensor.stride(axis) != 0:
                    call.ties.fix([factor], axis)
    found = call.ties.combine([factor for _, factor in rest])
    if all(factor is None for factor in along):
        return found
    axis = dims.index(dim)
    stays = [np.full(tensor.shape[dim], FROZEN, np.int64) for tensor in tensors]
    pieces = [piece if factor is None else factor.atoms_ for piece, factor in zip(stays, along, strict=True)]
    return call.ties.combine([*found, Factor(dims, np.concatenate(pieces, axis))])


@rule("stack")
def stack(call: Call) -> Result:
    dim = call.given["dim"] % call.output.ndim
    shape = [size for axis, size in enumerate(call.output.shape) if axis != dim]
    return moved(pointwise(call, call.given["tensors"], shape), {axis: axis + (axis >= dim) for axis in range(len(shape))})


@rule("repeat")
def repeat(call: Call) -> Result:
    shift = call.output.ndim - call.first.ndim
    times = list(call.given["repeats"])
    found = []
    for factor in call.labels(call.first):
        tiled = np.tile(factor.atoms_, [times[dim + shift] for dim in factor.dims])
        found.append(Factor(tuple(dim + shift for dim in factor.dims), tiled))
    return tuple(found)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixels(call: Call) -> Result:
    """(C r r, H, W) as (C, H r, W r) and back: a channel's r x r positions are one after the other."""
    found = []
    for factor in call.labels(call.first):
        channel = call.first.ndim - 3
        if factor.dims != (channel,):
            call.ties.freeze([factor])
        elif call.name == "pixel_unshuffle":
            found.append(Factor(factor.dims, np.repeat(factor.atoms_, call.output.shape[channel] // len(factor.atoms_))))
        else:
            of_CR = factor.atoms_.reshape(call.output.shape[channel], -1)
            call.ties.tie(of_CR, of_CR[:, :1])
            found.append(Factor(factor.dims, of_CR[:, 0]))
    return tuple(found)


@rule("im2col")
def im2col(call: Call) -> Result:
    return channels(call, lambda factor: Factor((1,), np.repeat(factor.atoms_, call.output.shape[1] // len(factor.atoms_))))


@rule("col2im")
def col2im(call: Call) -> Result:
    def channel(factor: Factor) -> Factor:
        of_CK = factor.atoms_.reshape(call.output.shape[1], -1)
        call.ties.tie(of_CK, of_CK[:, :1])
        return Factor((1,), of_CK[:, 0])

    return channels(call, channel)


@rule("unfold")
def unfold(call: Call) -> Result:
    return leaving(call, [call.given["dimension"] % call.first.ndim])
