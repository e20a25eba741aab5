"""What norms, sums over positions, and operations on the places of an image do to labels."""

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
    if call.given.get("training"):
        call.ties.freeze(factor for factor in labels if factor.dims != (1,))
    found = call.ties.combine([*labels, *(Factor((1,), factor.atoms_) for tensor in call.tensors[1:] for factor in call.labels(tensor))])
    for tensor in call.tensors[1:]:
        if tensor.numel() > 1 and rank > 1 and not call.labels(tensor):
            call.ties.freeze(factor for factor in found if 1 in factor.dims)
    return [found]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(call: Call) -> Result:
    inputs = call.first
    within = range(inputs.ndim - len(call.given["normalized_shape"]), inputs.ndim)
    found = mixed(call, call.labels(inputs), list(within))
    for tensor in call.tensors[1:]:
        call.ties.freeze(call.labels(tensor))
    return [found]


@rule("native_group_norm", "group_norm")
def group_norm(call: Call) -> Result:
    call.freeze_all()
    return [()]


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "softmax", "sort", "logcumsumexp")
def softmax(call: Call) -> Result:
    found = mixed(call, call.labels(call.first), call.dims("dim", call.first.ndim))
    return [found, found] if call.name == "sort" else found


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
    """Over a dimension of its own, what is computed of all units stays as it is only if all stay."""
    found = without(call, mixed(call, call.labels(call.first), call.dims("dim", call.first.ndim)))
    return [found, found]


@rule("sum", "linalg_vector_norm", "norm")
def summed(call: Call) -> Result:
    """Over a dimension of its own, units are read: without one the sum is that with a zero."""
    return without(call, call.labels(call.first))


@rule("glu")
def glu(call: Call) -> Result:
    dim = call.given["dim"] % call.first.ndim
    half = call.first.shape[dim] // 2
    one, other = parts(call, dim, [(0, half, 1), (half, 2 * half, 1)])
    return call.ties.combine([*one, *other])


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d", "adaptive_avg_pool2d",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d", "avg_pool1d", "avg_pool3d", "upsample_linear1d", "lp_pool2d",
)  # fmt: skip
def space(call: Call) -> Result:
    found = leaving(call, range(call.first.ndim - 2 if "1d" not in call.name else call.first.ndim - 1, call.first.ndim))
    return [found, found]


@rule("grid_sampler_2d", "grid_sampler")
def sampled(call: Call) -> Result:
    call.ties.freeze(call.labels(call.given["grid"]))
    return leaving(call, [2, 3])


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Result:
    rank, sizes = call.first.ndim, call.given["pad"]
    padded = [rank - 1 - index // 2 for index in range(len(sizes)) if sizes[index] != 0]
    return leaving(call, padded)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "fft_rfft2", "fft_irfft2")
def fft(call: Call) -> Result:
    return leaving(call, call.dims("dim", call.first.ndim))


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
    return moved(leaving(call, at), shift)


@rule("index_select")
def index_select(call: Call) -> Result:
    return leaving(call, [call.given["dim"] % call.first.ndim])


@rule("embedding")
def embedding(call: Call) -> Result:
    call.ties.freeze(factor for factor in call.labels(call.given["weight"]) if 0 in factor.dims)
    return tuple(Factor((call.output.ndim - 1,), factor.atoms_) for factor in call.labels(call.given["weight"]) if factor.dims == (1,))
