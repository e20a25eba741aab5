"""The rules of norms, of reductions, and of operations on the positions of an image."""

from __future__ import annotations

import torch

from workers.models.structures.labels import Factor
from workers.models.structures.rules import Call, Result, leaving, mixed, moved, parts, rule, without


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_native_batch_norm_legit_functional",
    "batch_norm",
)
def batch_norm(call: Call) -> Result:
    inputs, rank = call.first, call.first.ndim
    labels = call.labels(inputs)
    if call.arguments.get("training"):
        call.ties.freeze(factor for factor in labels if factor.dims != (1,))
    output = call.ties.combine([*labels, *(Factor((1,), factor.atoms_) for tensor in call.tensors[1:] for factor in call.labels(tensor))])
    for tensor in call.tensors[1:]:
        if tensor.numel() > 1 and rank > 1 and not call.labels(tensor):
            call.ties.freeze(factor for factor in output if 1 in factor.dims)
    return [output]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(call: Call) -> Result:
    inputs = call.first
    within = range(inputs.ndim - len(call.arguments["normalized_shape"]), inputs.ndim)
    output = mixed(call, call.labels(inputs), list(within))
    for tensor in call.tensors[1:]:
        call.ties.freeze(call.labels(tensor))
    return [output]


@rule("native_group_norm", "group_norm")
def group_norm(call: Call) -> Result:
    call.freeze_all()
    return [()]


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "softmax", "sort", "logcumsumexp")
def softmax(call: Call) -> Result:
    output = mixed(call, call.labels(call.first), call.dims("dim", call.first.ndim))
    return [output, output] if call.name == "sort" else output


@rule(
    "mean",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "var_mean",
    "std",
    "std_mean",
    "argmax",
    "argmin",
    "prod",
    "logsumexp",
    "median",
    "all",
    "any",
)
def reduced(call: Call) -> Result:
    """A result over the dimension of the units does not change only if all units are kept, so they are frozen."""
    output = without(call, mixed(call, call.labels(call.first), call.dims("dim", call.first.ndim)))
    return [output, output]


@rule("sum", "linalg_vector_norm", "norm")
def summed(call: Call) -> Result:
    """A sum over the dimension of the units reads them: without a unit it is the same as with zeros."""
    return without(call, call.labels(call.first))


@rule("glu")
def glu(call: Call) -> Result:
    dim = call.arguments["dim"] % call.first.ndim
    half = call.first.shape[dim] // 2
    first, second = parts(call, dim, [(0, half, 1), (half, 2 * half, 1)])
    return call.ties.combine([*first, *second])


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d", "adaptive_avg_pool2d",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d", "avg_pool1d", "avg_pool3d", "upsample_linear1d", "lp_pool2d",
)  # fmt: skip
def space(call: Call) -> Result:
    output = leaving(call, range(call.first.ndim - 2 if "1d" not in call.name else call.first.ndim - 1, call.first.ndim))
    return [output, output]


@rule("grid_sampler_2d", "grid_sampler")
def sampled(call: Call) -> Result:
    call.ties.freeze(call.labels(call.arguments["grid"]))
    return leaving(call, [2, 3])


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Result:
    rank, sizes = call.first.ndim, call.arguments["pad"]
    padded = [rank - 1 - index // 2 for index in range(len(sizes)) if sizes[index] != 0]
    return leaving(call, padded)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "fft_rfft2", "fft_irfft2")
def fft(call: Call) -> Result:
    return leaving(call, call.dims("dim", call.first.ndim))


@rule("index")
def index(call: Call) -> Result:
    """Positions are selected by other tensors. The indexed dimensions are frozen."""
    inputs, indices = call.first, call.arguments["indices"]
    dims = [dim for dim, tensor in enumerate(indices) if tensor is not None]
    rank = max(indices[dim].ndim for dim in dims) if all(indices[dim].dtype != torch.bool for dim in dims) else None
    if rank is None or dims != list(range(dims[0], dims[0] + len(dims))):
        call.freeze_all()
        return ()
    shift = {dim: dim if dim < dims[0] else dim - len(dims) + rank for dim in range(inputs.ndim) if dim not in dims}
    return moved(leaving(call, dims), shift)


@rule("index_select")
def index_select(call: Call) -> Result:
    return leaving(call, [call.arguments["dim"] % call.first.ndim])


@rule("embedding")
def embedding(call: Call) -> Result:
    call.ties.freeze(factor for factor in call.labels(call.arguments["weight"]) if 0 in factor.dims)
    return tuple(Factor((call.output.ndim - 1,), factor.atoms_) for factor in call.labels(call.arguments["weight"]) if factor.dims == (1,))
