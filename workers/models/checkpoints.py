"""Loading of checkpoints under a model's names. A checkpoint is refused unless every tensor fits and is finite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from workers.checks import absolute_path, require
from workers.errors import ConfigError, SecateurError
from workers.model_files import limits_of
from workers.models import bundled, checkpoint_files
from workers.models.checkpoint_files import Fit

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
FOLDERS = (
    "this is a folder; convert it to one file, with zero_to_fp32.py for DeepSpeed or with "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save for FSDP"
)

TORCHVISION_NAMES = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)
TORCHVISION_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def check(checkpoint: str) -> None:
    """Raises ``ConfigError`` if there is no such checkpoint. Does not read the file."""
    if checkpoint.startswith(bundled.PREFIX):
        bundled.check(checkpoint)
        return
    path = Path(checkpoint).expanduser()
    folder = FOLDERS if path.is_dir() else ""
    expected = f"a file ending in {', '.join(SUFFIXES)} or bundled:NAME"
    require(path.name.endswith(SUFFIXES) or bool(folder), "model.checkpoint", expected, checkpoint)
    remedy = folder or absolute_path(checkpoint, path)
    require(path.is_file(), "model.checkpoint", expected if folder else "an existing file", checkpoint, remedy)


def fingerprint(checkpoint: str | None) -> str:
    """Returns a digest of the bytes of a checkpoint, which must not be None. Raises: ConfigError if it does not exist."""
    from workers.files import digest

    assert checkpoint is not None
    check(checkpoint)
    return digest(bundled.locate(checkpoint) if checkpoint.startswith(bundled.PREFIX) else Path(checkpoint).expanduser())


def load(checkpoint: str, model: nn.Module, heads: set[str]) -> dict[str, Tensor]:
    """Returns the state dict of a checkpoint, which fits ``model`` exactly (names, shapes, types, in the model's order).

    ``model`` may be on the meta device: only its names and shapes are used. ``heads`` are its classifier modules.
    Raises: ConfigError that names the checkpoint and the tensors that do not fit or are not finite.
    """
    from workers.export import aliases

    expected = cast(dict[str, Tensor], model.state_dict())
    fit = _fit(checkpoint, model, expected)
    _require_fit(checkpoint, fit, expected, heads)
    for name, first in aliases(model).items():
        if not torch.equal(fit.state[name], fit.state[first]):
            raise ConfigError(
                f"model.checkpoint: expected equal values for {name} and {first}, which are one tensor of the model, got different ones in "
                f"{checkpoint}"
            )
    state = {name: fit.state[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()}
    require_finite(checkpoint, state, model)
    return state


def notes(checkpoint: str, model: nn.Module) -> list[str]:
    """Returns sentences about what ``load`` does not take from a checkpoint that fits."""
    return list(_fit(checkpoint, model, cast(dict[str, Tensor], model.state_dict())).notes)


def require_finite(checkpoint: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises ``ConfigError`` if a number is not finite, with counts for each tensor. One such number would spoil all outputs.

    Limits of ``model`` may be infinite.
    """
    counts, limits = [], limits_of(model)
    for name, tensor in state.items():
        nans, infinities = int(tensor.isnan().sum()), 0 if name in limits else int(tensor.isinf().sum())
        if nans or infinities:
            kinds = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinities, "infinite")) if count]
            counts.append(f"{name} ({' and '.join(kinds)} of {tensor.numel()})")
    if counts:
        raise ConfigError(
            f"model.checkpoint: expected finite numbers in {checkpoint}, got {_listed(counts, ', ', '')}; use a checkpoint from before the "
            "training failed"
        )


def _fit(checkpoint: str, model: nn.Module, expected: dict[str, Tensor]) -> Fit:
    check(checkpoint)
    if checkpoint.startswith(bundled.PREFIX):
        content = bundled.load(checkpoint, expected)
    else:
        content = checkpoint_files.read(Path(checkpoint).expanduser())
    return checkpoint_files.find(content, expected, partial(_converted, model=model, expected=expected), checkpoint)


def _converted(state: dict[str, Tensor], model: nn.Module, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts names of the original ViT and DINOv2 releases to timm's and resizes position embeddings, by timm's own function.

    Patch embeddings of another size are not resampled, since that would be another model.
    """
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    state = _shared(state, model)
    if type(model).__module__.startswith("torchvision."):
        return _released_by_torchvision(state, expected)
    patches = state.get("patch_embed.proj.weight")
    if not isinstance(model, VisionTransformer) or patches is None or patches.shape != expected["patch_embed.proj.weight"].shape:
        return state
    return checkpoint_filter_fn(dict(state), model, interpolation="bicubic", antialias=False)


def _shared(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns the state with tensors that the model has under several names under all of these, since files may contain only one."""
    from workers.export import aliases

    shared = dict(state)
    for name, first in aliases(model).items():
        for alias, source in ((name, first), (first, name)):
            if source in state and alias not in shared:
                shared[alias] = state[source]
    return shared


def _released_by_torchvision(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts old names of DenseNet and ViT to current ones, and removes the auxiliary classifiers of GoogLeNet and Inception.

    Source: torchvision's ``densenet._load_state_dict``, ``MLPBlock._load_from_state_dict``, and the builders of these models.
    """
    for old, new in TORCHVISION_NAMES:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(TORCHVISION_AUXILIARY)}


def _require_fit(checkpoint: str, fit: Fit, expected: dict[str, Tensor], heads: set[str]) -> None:
    state, missing, unexpected, differing = fit.state, fit.missing, fit.unexpected, fit.differing
    if not (missing or unexpected or differing):
        return
    shapes = [f"{name} is {tuple(state[name].shape)} and the model has {tuple(expected[name].shape)}" for name in differing]
    parts = [
        _listed(shapes, ", ", "tensors of other shapes: "),
        _listed(missing, ", ", "missing: "),
        _listed(unexpected, ", ", "unexpected: "),
    ]
    spread = bool(differing) and all(state[name].numel() == 0 for name in differing)
    remedy = _remedy_for_exported(checkpoint) or _head_remedy([*missing, *unexpected, *differing], state, heads)
    remedy = "its tensors are partitioned over ranks, gather them with DeepSpeed's zero_to_fp32.py" if spread else remedy
    raise ConfigError(f"model.checkpoint: {checkpoint} does not fit the model: {'; '.join(part for part in parts if part)}; {remedy}")


def is_exported(checkpoint: str) -> bool:
    """Returns whether the file was exported by a run."""
    from workers.files import read_metadata

    path = Path(checkpoint).expanduser()
    try:
        return path.suffix == ".safetensors" and path.is_file() and "secateur" in read_metadata(path)
    except SecateurError:
        return False


def _remedy_for_exported(checkpoint: str) -> str:
    """Returns the remedy for a file that a run exported, which contains its own architecture; empty for any other file."""
    remedy = f"this file was exported by a run, load it with model=exported model.checkpoint={checkpoint}"
    return remedy if is_exported(checkpoint) else ""


def _listed(entries: list[str], between: str, title: str) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
    return title + between.join(entries[:3]) + more


def _head_remedy(wrong: list[str], state: dict[str, Tensor], heads: set[str]) -> str:
    if not all(any(name.startswith(f"{head}.") for head in heads) for name in wrong):
        return "check model.name and model.arguments"
    classes = next((len(state[name]) for name in wrong if name in state), 0)
    return f"only the classifier differs: set ++model.arguments.num_classes={classes}, the number of classes of the checkpoint"
