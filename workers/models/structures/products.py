"""The rules of products and convolutions. Positions that are summed over are read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workers.models.structures.labels import Factor, Labels, factor_of
from workers.models.structures.rules import Call, Result, rule


def contract(call: Call, left: tuple[Tensor, Sequence[int]], right: tuple[Tensor, Sequence[int]], summed: int) -> Labels:
    """Returns the labels of a sum of products over the index ``summed``. Each tensor is given with an index for each of its dimensions.

    Positions of ``summed`` are read, and are tied on both sides. If one side has more dimensions than the other, such as heads, the
    positions within each of the additional ones are tied.
    """
    sides: list[list[Factor]] = []
    for tensor, indices in (left, right):
        sides.append([factor.moved({dim: indices[dim] for dim in factor.dims}) for factor in call.labels(tensor)])
        if summed in indices:
            call.read.append((tensor, list(indices).index(summed)))
    inner = [factor_of(tuple(side), summed) for side in sides]
    for factor, opposite, (tensor, indices) in ((inner[0], inner[1], right), (inner[1], inner[0], left)):
        if factor is not None and opposite is None and tensor.shape[list(indices).index(summed)] > 1:
            call.ties.fix([factor], summed)
    if inner[0] is not None and inner[1] is not None:
        small, large = sorted((inner[0], inner[1]), key=lambda factor: len(factor.dims))
        if not set(small.dims) <= set(large.dims):
            shared = set(small.dims) & set(large.dims)
            small, large = small.only(shared, call.ties), large.only(shared, call.ties)
        call.ties.meet(large, small)
    kept = [rest for side in sides for factor in side if (rest := factor.without(summed, call.ties) if summed in factor.dims else factor)]
    for tensor, indices in (left, right):
        for dim, index in enumerate(indices):
            labelled = [factor for factor in kept if index in factor.dims]
            both = index in left[1] and index in right[1] and index != summed
            if labelled and both and tensor.shape[dim] > 1 and tensor.stride(dim) != 0 and factor_of(call.labels(tensor), dim) is None:
                call.ties.fix(labelled, index)
    return call.ties.combine(kept)


@rule("mm")
def mm(call: Call) -> Result:
    return contract(call, (call.arguments["self"], [0, 9]), (call.arguments["mat2"], [9, 1]), 9)


@rule("mv")
def mv(call: Call) -> Result:
    return contract(call, (call.arguments["self"], [0, 9]), (call.arguments["vec"], [9]), 9)


@rule("bmm")
def bmm(call: Call) -> Result:
    return contract(call, (call.arguments["self"], [0, 1, 9]), (call.arguments["mat2"], [0, 9, 2]), 9)


@rule("addmm", "baddbmm")
def addmm(call: Call) -> Result:
    left, right = (call.arguments[name] for name in (("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")))
    first, second = ([0, 9], [9, 1]) if call.name == "addmm" else ([0, 1, 9], [0, 9, 2])
    return with_bias(call, contract(call, (left, first), (right, second), 9), call.arguments["self"])


@rule("linear")
def linear(call: Call) -> Result:
    inputs, rank = call.arguments["input"], call.output.ndim
    labels = contract(call, (inputs, [*range(rank - 1), 99]), (call.arguments["weight"], [rank - 1, 99]), 99)
    return with_bias(call, labels, call.arguments["bias"])


def with_bias(call: Call, labels: Labels, bias: Tensor | None, dim: int | None = None) -> Labels:
    """Returns the labels after a bias is added along the last dimension, or along ``dim``."""
    if bias is None:
        return labels
    shift = call.output.ndim - bias.ndim if dim is None else dim
    more = [factor.moved({axis: axis + shift for axis in factor.dims}) for factor in call.labels(bias)]
    return call.ties.combine([*labels, *more])


def attention(call: Call) -> Result:
    """Returns the labels of softmax(q k^T + mask) v. Heads are the dimension that all three inputs share."""
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    rank = query.ndim
    batch = list(range(rank - 2))
    scores = contract(call, (query, [*batch, rank - 2, 90]), (key, [*batch, 91, 90]), 90)
    for factor in scores:
        if 91 in factor.dims:
            call.ties.freeze([factor])
    heads = [factor for factor in scores if not {91, rank - 2} & set(factor.dims)]
    values = [factor.only({*batch, rank - 1}, call.ties) for factor in call.labels(value)]
    labels = call.ties.combine([*heads, *(factor for factor in values if rank - 2 not in factor.dims)])
    mask = call.arguments.get("attn_bias", call.arguments.get("attn_mask"))
    if isinstance(mask, Tensor):
        shift = rank - mask.ndim
        more = [factor.moved({dim: dim + shift for dim in factor.dims}) for factor in call.labels(mask)]
        for factor in more:
            rest = factor.only(batch, call.ties) if set(batch) & set(factor.dims) else factor
            if set(rest.dims) <= set(batch):
                labels = call.ties.combine([*labels, rest])
            else:
                call.ties.freeze([rest])
        for factor in labels:
            mask_dims = [dim - shift for dim in factor.dims if dim in batch and dim >= shift]
            if any(mask.shape[dim] > 1 and mask.stride(dim) != 0 and factor_of(call.labels(mask), dim) is None for dim in mask_dims):
                call.ties.freeze([factor])
    return labels


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(call: Call) -> Result:
    """Returns the labels of a convolution.

    With one group, rows and columns are those of a linear layer. With at least as many groups as channels in each, whole groups are units;
    with fewer, a unit is the same channel of each group.
    """
    inputs, weight, bias, groups = (call.arguments[name] for name in ("input", "weight", "bias", "groups"))
    outs, ins = (1, 0) if call.arguments["transposed"] else (0, 1)
    labels, kernel = call.labels(inputs), call.labels(weight)
    call.ties.freeze(factor for factor in labels if factor.dims != (1,) and 0 not in factor.dims)
    batch = tuple(factor.only([0], call.ties) for factor in labels if 0 in factor.dims)
    channels = next((factor for factor in labels if factor.dims == (1,)), None)
    rows, columns = (next((factor for factor in kernel if factor.dims == (dim,)), None) for dim in (outs, ins))
    output = None
    if groups == 1:
        call.read += [(inputs, 1), (weight, ins)]
        _read(call, channels, columns, inputs.shape[1])
        output = rows
    else:
        read, written = inputs.shape[1] // groups, call.output.shape[1] // groups
        call.read += [(weight, 1)] if read > 1 else []
        produced = Factor((1,), rows.atoms_) if rows is not None and not call.arguments["transposed"] else None
        if channels is None or produced is None:
            call.ties.freeze(factor for factor in (channels, rows, columns) if factor is not None)
        elif read == 1 or groups >= read:
            call.groups = call.ties.fresh(groups)
            call.ties.tie(channels.atoms_.reshape(groups, read), call.groups[:, None])
            call.ties.tie(produced.atoms_.reshape(groups, written), call.groups[:, None])
            call.ties.freeze([columns] if columns is not None else [])
            output = produced
        else:
            if columns is None:
                call.ties.freeze([channels])
            else:
                call.ties.tie(channels.atoms_.reshape(groups, read), columns.atoms_[None, :])
            atoms_GR = produced.atoms_.reshape(groups, written)
            call.ties.tie(atoms_GR, atoms_GR[:1])
            output = produced
    made = () if output is None or call.output.shape[1] == 1 else (Factor((1,), output.atoms_),)
    return (*batch, *with_bias(call, made, bias, 1))


def _read(call: Call, channels: Factor | None, columns: Factor | None, size: int) -> None:
    if channels is not None and columns is not None:
        call.ties.tie(channels.atoms_, columns.atoms_)
    elif size > 1:
        call.ties.freeze(factor for factor in (channels, columns) if factor is not None)
