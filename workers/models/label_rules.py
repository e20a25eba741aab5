"""What each operation of torch does to the labels of its tensors. What has no rule here stays whole: its labels are frozen, and its name is told.

Sources: the schemas of ATen's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.models.labels import FROZEN, Atoms, Factor, Labels, Ties, whole


class Call:
    """One operation: its arguments by name, the labels of its tensors, and where they are tied."""

    def __init__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any, labels: Callable[[Any], Labels], ties: Ties):
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
        return [tensor for value in self.given.values() for tensor in (value if isinstance(value, list | tuple) else [value]) if isinstance(tensor, Tensor)]

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


# ------------------------------------------------------------------------------------------------------------------ element by element


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


@rule("hardswish", "hardsigmoid", "hardtanh", "softplus", "mish", "leaky_relu", "elu", "celu", "selu", "relu6", "prelu", "log_sigmoid_forward")
def activation(call: Call) -> Result:
    return pointwise(call)


@rule("clone", "_to_copy", "contiguous", "lift_fresh", "dropout", "native_dropout", "zeros_like", "empty_like", "ones_like", "full_like", "rand_like")
def same(call: Call) -> Result:
    return call.labels(call.first)


@rule("alias", "detach", "view_as_real", "view_as_complex", "_conj", "_neg_view", view=True)
def same_view(call: Call) -> Result:
    return call.labels(call.first)


@rule("copy_", "copy")
def copy(call: Call) -> Result:
    return pointwise(call)


# ------------------------------------------------------------------------------------------------------------------ views


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", view=True)
def view(call: Call) -> Result:
    return call.ties.reshaped(call.labels(call.first), call.first.shape, call.output.shape)


@rule("permute", view=True)
def permute(call: Call) -> Result:
    order = call.dims("dims", call.first.ndim)
    return _moved(call.labels(call.first), {dim: index for index, dim in enumerate(order)})


@rule("transpose", view=True)
def transpose(call: Call) -> Result:
    rank = call.first.ndim
    one, other = call.given["dim0"] % rank, call.given["dim1"] % rank
    return _moved(call.labels(call.first), {dim: dim for dim in range(rank)} | {one: other, other: one})


@rule("t", view=True)
def t(call: Call) -> Result:
    return _moved(call.labels(call.first), {0: call.first.ndim - 1, 1: 0} if call.first.ndim == 2 else {0: 0})


@rule("unsqueeze", view=True)
def unsqueeze(call: Call) -> Result:
    added = call.given["dim"] % call.output.ndim
    return _moved(call.labels(call.first), {dim: dim + (dim >= added) for dim in range(call.first.ndim)})


@rule("squeeze", view=True)
def squeeze(call: Call) -> Result:
    return call.ties.reshaped(call.labels(call.first), call.first.shape, call.output.shape)


@rule("expand", view=True)
def expand(call: Call) -> Result:
    shift = call.output.ndim - call.first.ndim
    return _moved(call.labels(call.first), {dim: dim + shift for dim in range(call.first.ndim)})


@rule("select", view=True)
def select(call: Call) -> Result:
    dim, index = call.given["dim"] % call.first.ndim, int(call.given["index"])
    return _selected(call, call.labels(call.first), dim, index)


@rule("unbind", view=True)
def unbind(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    return [_selected(call, call.labels(call.first), dim, index) for index in range(call.first.shape[dim])]


@rule("slice", view=True)
def slice_(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    start, stop, step = slice(call.given["start"], call.given["end"], call.given["step"]).indices(call.first.shape[dim])
    return _parts(call, dim, [(start, stop, step)])[0]


@rule("split", view=True)
def split(call: Call) -> Result:
    dim, size = call.given["dim"] % call.first.ndim, call.given["split_size"]
    length = call.first.shape[dim]
    return _parts(call, dim, [(start, min(start + size, length), 1) for start in range(0, length, size)])


@rule("split_with_sizes", view=True)
def split_with_sizes(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    ends = np.cumsum([0, *call.given["split_sizes"]]).tolist()
    return _parts(call, dim, [(start, stop, 1) for start, stop in pairwise(ends)])


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
    return tuple(Factor(f.dims, np.flip(f.atoms_, [f.dims.index(dim) for dim in dims if dim in f.dims])) for f in call.labels(call.first))


@rule("cat")
def cat(call: Call) -> Result:
    """Along a labelled dimension one tensor's atoms follow the other's; along all others they are tied."""
    tensors = [tensor for tensor in call.given["tensors"] if tensor.numel() or tensor.ndim > 1]
    dim = call.given["dim"] % call.output.ndim
    others: list[Labels] = []
    along: list[Atoms] = []
    for tensor in tensors:
        labels = call.labels(tensor)
        factor = whole(labels, dim)
        if factor is not None and len(factor.dims) > 1:
            factor = _only(call, factor, dim)
        others.append(tuple(one for one in labels if dim not in one.dims))
        along.append(np.full(tensor.shape[dim], FROZEN, np.int64) if factor is None else factor.atoms_)
    joined = np.concatenate(along)
    if len(others) > 1:
        for labels, tensor in zip(others, tensors, strict=True):
            for factor in (factor for other in others for factor in other):
                for axis in factor.dims:
                    if whole(labels, axis) is None and tensor.shape[axis] > 1 and tensor.stride(axis) != 0:
                        call.ties.fix([factor], axis)
    rest = call.ties.combine([factor for labels in others for factor in labels])
    return (*rest, Factor((dim,), joined)) if joined.any() else rest


@rule("stack")
def stack(call: Call) -> Result:
    dim = call.given["dim"] % call.output.ndim
    shape = [size for axis, size in enumerate(call.output.shape) if axis != dim]
    return _moved(pointwise(call, call.given["tensors"], shape), {axis: axis + (axis >= dim) for axis in range(len(shape))})


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
    return _channels(call, lambda factor: Factor((1,), np.repeat(factor.atoms_, call.output.shape[1] // len(factor.atoms_))))


@rule("col2im")
def col2im(call: Call) -> Result:
    def channel(factor: Factor) -> Factor:
        of_CK = factor.atoms_.reshape(call.output.shape[1], -1)
        call.ties.tie(of_CK, of_CK[:, :1])
        return Factor((1,), of_CK[:, 0])

    return _channels(call, channel)


@rule("unfold")
def unfold(call: Call) -> Result:
    return _leaving(call, [call.given["dimension"] % call.first.ndim])


# ------------------------------------------------------------------------------------------------------------------ products


def contract(call: Call, left: tuple[Tensor, Sequence[int]], right: tuple[Tensor, Sequence[int]], summed: int) -> Labels:
    """Sum of products over the index ``summed``; tensors come with an index for each of their dimensions. Labels of the other indices.

    Positions of ``summed`` are read: tied on both sides. Where one side has more dimensions than the other, such as heads beside it, the
    others are what remains, so positions inside each are tied.
    """
    sides: list[list[Factor]] = []
    for tensor, indices in (left, right):
        sides.append([factor.moved({dim: indices[dim] for dim in factor.dims}) for factor in call.labels(tensor)])
        if summed in indices:
            call.read.append((tensor, list(indices).index(summed)))
    inner = [whole(tuple(side), summed) for side in sides]
    for one, other, (tensor, indices) in ((inner[0], inner[1], right), (inner[1], inner[0], left)):
        if one is not None and other is None and tensor.shape[list(indices).index(summed)] > 1:
            call.ties.fix([one], summed)
    if inner[0] is not None and inner[1] is not None:
        small, large = sorted((inner[0], inner[1]), key=lambda factor: len(factor.dims))
        if not set(small.dims) <= set(large.dims):
            shared = set(small.dims) & set(large.dims)
            small, large = small.only(shared, call.ties), large.only(shared, call.ties)
        call.ties.meet(large, small)
    left_over = [made for side in sides for factor in side if (made := factor.without(summed, call.ties) if summed in factor.dims else factor)]
    for tensor, indices in (left, right):
        for dim, index in enumerate(indices):
            labelled = [factor for factor in left_over if index in factor.dims]
            shared = index in left[1] and index in right[1] and index != summed
            if labelled and shared and tensor.shape[dim] > 1 and tensor.stride(dim) != 0 and whole(call.labels(tensor), dim) is None:
                call.ties.fix(labelled, index)
    return call.ties.combine(left_over)


@rule("mm")
def mm(call: Call) -> Result:
    return contract(call, (call.given["self"], [0, 9]), (call.given["mat2"], [9, 1]), 9)


@rule("mv")
def mv(call: Call) -> Result:
    return contract(call, (call.given["self"], [0, 9]), (call.given["vec"], [9]), 9)


@rule("bmm")
def bmm(call: Call) -> Result:
    return contract(call, (call.given["self"], [0, 1, 9]), (call.given["mat2"], [0, 9, 2]), 9)


@rule("addmm", "baddbmm")
def addmm(call: Call) -> Result:
    one, other = (call.given[name] for name in (("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")))
    first, second = ([0, 9], [9, 1]) if call.name == "addmm" else ([0, 1, 9], [0, 9, 2])
    return with_bias(call, contract(call, (one, first), (other, second), 9), call.given["self"])


@rule("linear")
def linear(call: Call) -> Result:
    inputs, rank = call.given["input"], call.output.ndim
    found = contract(call, (inputs, [*range(rank - 1), 99]), (call.given["weight"], [rank - 1, 99]), 99)
    return with_bias(call, found, call.given["bias"])


def with_bias(call: Call, labels: Labels, bias: Tensor | None, dim: int | None = None) -> Labels:
    """Added along the last dimension, or along ``dim``."""
    if bias is None:
        return labels
    shift = call.output.ndim - bias.ndim if dim is None else dim
    more = [factor.moved({axis: axis + shift for axis in factor.dims}) for factor in call.labels(bias)]
    return call.ties.combine([*labels, *more])


def attention(call: Call) -> Result:
    """softmax(q k^T + mask) v: heads are what the three share."""
    query, key, value = (call.given[name] for name in ("query", "key", "value"))
    rank = query.ndim
    batch = list(range(rank - 2))
    scores = contract(call, (query, [*batch, rank - 2, 90]), (key, [*batch, 91, 90]), 90)
    for factor in scores:
        if 91 in factor.dims:
            call.ties.freeze([factor])
    heads = [factor for factor in scores if not {91, rank - 2} & set(factor.dims)]
    values = [factor.only({*batch, rank - 1}, call.ties) for factor in call.labels(value)]
    found = call.ties.combine([*heads, *(factor for factor in values if rank - 2 not in factor.dims)])
    mask = call.given.get("attn_bias", call.given.get("attn_mask"))
    if isinstance(mask, Tensor):
        shift = rank - mask.ndim
        more = [factor.moved({dim: dim + shift for dim in factor.dims}) for factor in call.labels(mask)]
        for factor in more:
            rest = factor.only(batch, call.ties) if set(batch) & set(factor.dims) else factor
            if set(rest.dims) <= set(batch):
                found = call.ties.combine([*found, rest])
            else:
                call.ties.freeze([rest])
        for factor in found:
            own = [dim - shift for dim in factor.dims if dim in batch and dim >= shift]
            if any(mask.shape[dim] > 1 and mask.stride(dim) != 0 and whole(call.labels(mask), dim) is None for dim in own):
                call.ties.freeze([factor])
    return found


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(call: Call) -> Result:
    """Of one group, rows and columns as of a linear layer. Of as many as each has channels or more, groups go as they are; of fewer, the
    same channel of each."""
    inputs, weight, bias, groups = (call.given[name] for name in ("input", "weight", "bias", "groups"))
    outs, ins = (1, 0) if call.given["transposed"] else (0, 1)
    labels, kernel = call.labels(inputs), call.labels(weight)
    call.ties.freeze(factor for factor in labels if factor.dims != (1,) and 0 not in factor.dims)
    batch = tuple(factor.only([0], call.ties) for factor in labels if 0 in factor.dims)
    given = next((factor for factor in labels if factor.dims == (1,)), None)
    rows, columns = (next((factor for factor in kernel if factor.dims == (dim,)), None) for dim in (outs, ins))
    made = None
    if groups == 1:
        call.read += [(inputs, 1), (weight, ins)]
        _read(call, given, columns, inputs.shape[1])
        made = rows
    else:
        read, written = inputs.shape[1] // groups, call.output.shape[1] // groups
        call.read += [(weight, 1)] if read > 1 else []
        produced = Factor((1,), rows.atoms_) if rows is not None and not call.given["transposed"] else None
        if given is None or produced is None:
            call.ties.freeze(factor for factor in (given, rows, columns) if factor is not None)
        elif read == 1 or groups >= read:
            call.groups = call.ties.fresh(groups)
            call.ties.tie(given.atoms_.reshape(groups, read), call.groups[:, None])
            call.ties.tie(produced.atoms_.reshape(groups, written), call.groups[:, None])
            call.ties.freeze([columns] if columns is not None else [])
            made = produced
        else:
            if columns is None:
                call.ties.freeze([given])
            else:
                call.ties.tie(given.atoms_.reshape(groups, read), columns.atoms_[None, :])
            of_GR = produced.atoms_.reshape(groups, written)
            call.ties.tie(of_GR, of_GR[:1])
            made = produced
    found = () if made is None else (Factor((1,), made.atoms_),)
    if call.output.shape[1] == 1:
        found = ()
    return (*batch, *with_bias(call, found, bias, 1))


def _read(call: Call, given: Factor | None, columns: Factor | None, size: int) -> None:
    if given is not None and columns is not None:
        call.ties.tie(given.atoms_, columns.atoms_)
    elif size > 1:
        call.ties.freeze(factor for factor in (given, columns) if factor is not None)


# ------------------------------------------------------------------------------------------------------------------ norms and sums


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_native_batch_norm_legit_functional", "batch_norm")
def batch_norm(call: Call) -> Result:
    inputs, rank = call.first, call.first.ndim
    labels = call.labels(inputs)
    if call.given.get("training"):
        call.ties.freeze(factor for factor in labels if factor.dims != (1,))
    found = call.ties.combine(
        [*labels, *(Factor((1,), factor.atoms_) for tensor in call.tensors[1:] for factor in call.labels(tensor))]
    )
    for tensor in call.tensors[1:]:
        if tensor.numel() > 1 and rank > 1 and not call.labels(tensor):
            call.ties.freeze(factor for factor in found if 1 in factor.dims)
    return [found]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(call: Call) -> Result:
    inputs = call.first
    within = range(inputs.ndim - len(call.given["normalized_shape"]), inputs.ndim)
    found = _mixed(call, call.labels(inputs), list(within))
    for tensor in call.tensors[1:]:
        call.ties.freeze(call.labels(tensor))
    return [found]


@rule("native_group_norm", "group_norm")
def group_norm(call: Call) -> Result:
    call.freeze_all()
    return [()]


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "softmax", "sort", "logcumsumexp")
def softmax(call: Call) -> Result:
    found = _mixed(call, call.labels(call.first), call.dims("dim", call.first.ndim))
    return [found, found] if call.name == "sort" else found


@rule("mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "argmax", "argmin", "prod", "logsumexp", "median", "all", "any")
def reduced(call: Call) -> Result:
    """Over a dimension of its own, what is computed of all units stays as it is only if all stay."""
    found = _without(call, _mixed(call, call.labels(call.first), call.dims("dim", call.first.ndim)))
    return [found, found]


@rule("sum", "linalg_vector_norm", "norm")
def summed(call: Call) -> Result:
    """Over a dimension of its own, units are read: without one the sum is that with a zero."""
    return _without(call, call.labels(call.first))


@rule("glu")
def glu(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    half = call.first.shape[dim] // 2
    one, other = _parts(call, dim, [(0, half, 1), (half, 2 * half, 1)])
    return call.ties.combine([*one, *other])


# ------------------------------------------------------------------------------------------------------------------ space


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d", "adaptive_avg_pool2d",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d", "avg_pool1d", "avg_pool3d", "upsample_linear1d", "lp_pool2d",
)  # fmt: skip
def space(call: Call) -> Result:
    found = _leaving(call, range(call.first.ndim - 2 if "1d" not in call.name else call.first.ndim - 1, call.first.ndim))
    return [found, found]


@rule("grid_sampler_2d", "grid_sampler")
def sampled(call: Call) -> Result:
    call.ties.freeze(call.labels(call.given["grid"]))
    return _leaving(call, [2, 3])


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Result:
    rank, sizes = call.first.ndim, call.given["pad"]
    padded = [rank - 1 - index // 2 for index in range(len(sizes)) if sizes[index] != 0]
    return _leaving(call, padded)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "fft_rfft2", "fft_irfft2")
def fft(call: Call) -> Result:
    return _leaving(call, call.dims("dim", call.first.ndim))


@rule("index")
def index(call: Call) -> Result:
    """Positions chosen by other tensors, along dimensions that stay."""
    inputs, chosen = call.first, call.given["indices"]
    at = [dim for dim, tensor in enumerate(chosen) if tensor is not None]
    rank = max(chosen[dim].ndim for dim in at) if all(chosen[dim].dtype != torch.bool for dim in at) else None
    if rank is None or at != list(range(at[0], at[0] + len(at))):
        call.freeze_all()
        return ()
    shift = {dim: dim if dim < at[0] else dim - len(at) + rank for dim in range(inputs.ndim) if dim not in at}
    return _moved(_leaving(call, at), shift)


@rule("index_select")
def index_select(call: Call) -> Result:
    return _leaving(call, [call.given["dim"] % call.first.ndim])


@rule("embedding")
def embedding(call: Call) -> Result:
    call.ties.freeze(factor for factor in call.labels(call.given["weight"]) if 0 in factor.dims)
    return tuple(Factor((call.output.ndim - 1,), factor.atoms_) for factor in call.labels(call.given["weight"]) if factor.dims == (1,))


# ------------------------------------------------------------------------------------------------------------------ of their parts


def _moved(labels: Labels, to: dict[int, int]) -> Labels:
    return tuple(factor.moved(to) for factor in labels)


def _leaving(call: Call, dims: Sequence[int]) -> Labels:
    """Factors without any of ``dims``; others are frozen."""
    labels = call.labels(call.first)
    touched = [factor for factor in labels if set(dims) & set(factor.dims)]
    call.ties.freeze(touched)
    return tuple(factor for factor in labels if factor not in touched)


def _channels(call: Call, change: Callable[[Factor], Factor]) -> Labels:
    found = []
    for factor in call.labels(call.first):
        if factor.dims == (1,):
            found.append(change(factor))
        elif factor.dims == (0,):
            found.append(factor)
        else:
            call.ties.freeze([factor])
    return tuple(found)


def _mixed(call: Call, labels: Labels, dims: Sequence[int]) -> Labels:
    """All positions along ``dims`` are computed from each other: a factor over these alone stays whole, in others they are tied."""
    call.ties.freeze(factor for factor in labels if set(factor.dims) <= set(dims))
    return tuple(factor.tied_along(dims, call.ties) for factor in labels)


def _without(call: Call, labels: Labels) -> Labels:
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


def _only(call: Call, factor: Factor, dim: int) -> Factor:
    return factor.only([dim], call.ties)


def _selected(call: Call, labels: Labels, dim: int, index: int) -> Labels:
    found = []
    for factor in labels:
        if factor.dims == (dim,):
            call.ties.freeze([factor])
            continue
        taken = factor
        if dim in factor.dims:
            axis = factor.dims.index(dim)
            taken = Factor(tuple(other for other in factor.dims if other != dim), factor.atoms_.take(index, axis))
        found.append(taken.moved({other: other - (other > dim) for other in taken.dims}))
    return tuple(found)


def _parts(call: Call, dim: int, parts: Sequence[tuple[int, int, int]]) -> list[Labels]:
    """Ranges (start, stop, step) of a dimension. Where units are along it, equal parts lose the same ones, since a model tells them by
    their place; unequal ones stay."""
    labels = call.labels(call.first)
    size = call.first.shape[dim]
    factor = whole(labels, dim)
    if factor is not None and factor.dims == (dim,) and parts[0] != (0, size, 1):
        start, stop, step = parts[0]
        length = stop - start
        if step == 1 and 0 < length and size % length == 0 and start % length == 0:
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

