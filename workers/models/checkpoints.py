"""Foreign checkpoints: brought under a model's names, and refused unless every tensor fits and is finite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from workers.checks import require
from workers.errors import ConfigError, SecateurError
from workers.models import bundled, checkpoint_files
from workers.models.checkpoint_files import Found

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
FOLDERS = (
    "it is a folder; make one file of it, DeepSpeed's with its zero_to_fp32.py, FSDP's with "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
)

TORCHVISION_NAMES = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)
TORCHVISION_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def check(checkpoint: str) -> None:
    """Raise ``ConfigError`` if the checkpoint cannot be there. Reads nothing."""
    if checkpoint.startswith(bundled.PREFIX):
        bundled.check(checkpoint)
        return
    path = Path(checkpoint).expanduser()
    folder = FOLDERS if path.is_dir() else ""
    expected = f"a file ending in {', '.join(SUFFIXES)} or bundled:NAME"
    require(path.name.endswith(SUFFIXES) or bool(folder), "model.checkpoint", expected, checkpoint)
    require(
        path.is_file(), "model.checkpoint", expected if folder else "an existing file", checkpoint, folder or f"looked at {path.absolute()}"
    )


def fingerprint(checkpoint: str | None) -> str:
    """Digest of the bytes behind a checkpoint; a family without one is not asked. Raises: ConfigError if it is not there."""
    from workers.files import digest

    assert checkpoint is not None
    check(checkpoint)
    return digest(bundled.locate(checkpoint) if checkpoint.startswith(bundled.PREFIX) else Path(checkpoint).expanduser())


def load(checkpoint: str, model: nn.Module, heads: set[str]) -> dict[str, Tensor]:
    """State dict of a checkpoint, fitting ``model`` exactly (names, shapes, types; in the model's order).

    ``model`` may live on the meta device: only its names and shapes are used. ``heads`` are its classifier modules.
    Raises: ConfigError naming the checkpoint and the tensors that do not fit, or are not finite.
    """
    from workers.export import aliases

    expected = cast(dict[str, Tensor], model.state_dict())
    found = _found(checkpoint, model, expected)
    _require_fit(checkpoint, found, expected, heads)
    for name, first in aliases(model).items():
        if not torch.equal(found.state[name], found.state[first]):
            raise ConfigError(f"model.checkpoint: {name} and {first} are one tensor of the model, and differ in {checkpoint}")
    state = {name: found.state[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()}
    require_finite(checkpoint, state)
    return state


def notes(checkpoint: str, model: nn.Module) -> list[str]:
    """What ``load`` leaves out of a checkpoint that fits, a sentence each."""
    return list(_found(checkpoint, model, cast(dict[str, Tensor], model.state_dict())).notes)


def require_finite(checkpoint: str, state: Mapping[str, Tensor]) -> None:
    """Raise ``ConfigError`` that counts the numbers that are not finite, by tensor; pruning, and all outputs, would be spoilt by one."""
    spoilt = []
    for name, tensor in state.items():
        nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nans or infinities:
            counts = [f"{count} {what}" for count, what in ((nans, "NaN"), (infinities, "infinite")) if count]
            spoilt.append(f"{name} ({' and '.join(counts)} of {tensor.numel()})")
    if spoilt:
        raise ConfigError(
            f"model.checkpoint: expected finite numbers in {checkpoint}, got {_listed(spoilt, ', ', '')}; no output of such a model is "
            "finite: take a checkpoint from before its training failed"
        )


def _found(checkpoint: str, model: nn.Module, expected: dict[str, Tensor]) -> Found:
    check(checkpoint)
    if checkpoint.startswith(bundled.PREFIX):
        content = bundled.load(checkpoint, expected)
    else:
        content = checkpoint_files.read(Path(checkpoint).expanduser())
    return checkpoint_files.find(content, expected, partial(_converted, model=model, expected=expected), checkpoint)


def _converted(state: dict[str, Tensor], model: nn.Module, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the original ViT and DINOv2 releases to timm's, and position embeddings to the model's grid, by timm's own conversion.

    Patches of another size are not resampled: that would be another model.
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
    """Tensors that the model has under several names, under all of them: files may hold one."""
    from workers.export import aliases

    found = dict(state)
    for name, first in aliases(model).items():
        for here, there in ((name, first), (first, name)):
            if there in state and here not in found:
                found[here] = state[there]
    return found


def _released_by_torchvision(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old names of DenseNet's and ViT's releases to those of today, without the auxiliary classifiers of GoogLeNet and Inception.

    Source: torchvision's ``densenet._load_state_dict``, ``MLPBlock._load_from_state_dict``, and builders of these models.
    """
    for old, new in TORCHVISION_NAMES:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(TORCHVISION_AUXILIARY)}


def _require_fit(checkpoint: str, found: Found, expected: dict[str, Tensor], heads: set[str]) -> None:
    state, missing, unexpected, differing = found.state, found.missing, found.unexpected, found.differing
    if not (missing or unexpected or differing):
        return
    shapes = [f"{name} is {tuple(state[name].shape)}, the model has {tuple(expected[name].shape)}" for name in differing]
    parts = [
        _listed(shapes, "; ", "tensors of other shapes: "),
        _listed(missing, ", ", "missing: "),
        _listed(unexpected, ", ", "unexpected: "),
    ]
    spread = bool(differing) and all(state[name].numel() == 0 for name in differing)
    remedy = _remedy_for_exported(checkpoint) or _head_remedy([*missing, *unexpected, *differing], state, heads)
    remedy = "its tensors are spread over ranks; gather them with DeepSpeed's zero_to_fp32.py" if spread else remedy
    raise ConfigError(f"model.checkpoint: {checkpoint} does not fit the model: {'; '.join(part for part in parts if part)}; {remedy}")


def is_exported(checkpoint: str) -> bool:
    """Whether a run wrote the file."""
    from workers.files import read_metadata

    path = Path(checkpoint).expanduser()
    try:
        return path.suffix == ".safetensors" and path.is_file() and "secateur" in read_metadata(path)
    except SecateurError:
        return False


def _remedy_for_exported(checkpoint: str) -> str:
    """Empty unless a run exported the file: then it says itself of which architecture it is."""
    remedy = f"a run exported it, and its architecture is its own: model=exported model.checkpoint={checkpoint}"
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
    return f"only the classifier differs: set ++model.arguments.num_classes={classes}, as many classes as the checkpoint has"
