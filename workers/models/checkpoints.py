"""Foreign checkpoints: read without running foreign code, brought under a model's names, and refused unless every tensor fits."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from workers.checks import require
from workers.errors import ConfigError, SecateurError
from workers.models import bundled

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights first, as timm does
PREFIXES = ("module.", "_orig_mod.")  # left by data-parallel wrappers and torch.compile

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
    require(path.suffix in SUFFIXES, "model.checkpoint", f"a file ending in {', '.join(SUFFIXES)} or bundled:NAME", checkpoint)
    require(path.is_file(), "model.checkpoint", "an existing file", checkpoint, f"looked at {path.absolute()}")


def fingerprint(checkpoint: str | None) -> str:
    """Digest of the bytes behind a checkpoint; a family without one is not asked. Raises: ConfigError if it is not there."""
    from workers.files import digest

    assert checkpoint is not None
    check(checkpoint)
    return digest(bundled.locate(checkpoint) if checkpoint.startswith(bundled.PREFIX) else Path(checkpoint).expanduser())


def load(checkpoint: str, model: nn.Module, heads: set[str]) -> dict[str, Tensor]:
    """State dict of a checkpoint, fitting ``model`` exactly (names, shapes, types; in the model's order).

    ``model`` may live on the meta device: only its names and shapes are used. ``heads`` are its classifier modules.
    Raises: ConfigError naming the checkpoint and the tensors that do not fit.
    """
    check(checkpoint)
    expected = cast(dict[str, Tensor], model.state_dict())
    if checkpoint.startswith(bundled.PREFIX):
        state = bundled.load(checkpoint, expected)
    else:
        state = _without_prefix(_unwrap(_read(Path(checkpoint).expanduser()), checkpoint))
    state = _converted(state, model, expected)
    _require_fit(checkpoint, state, expected, heads, _remedy_for_exported(checkpoint))
    return {name: state[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()}


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from workers.export import load_state
        from workers.files import read_metadata, read_tensors

        try:
            return load_state(path)[0] if "secateur" in read_metadata(path) else read_tensors(path)
        except SecateurError as error:
            raise ConfigError(f"model.checkpoint: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"model.checkpoint: {path} is no torch file of tensors and plain values, and nothing else is read, since that could run code; "
            "where you trust it, load it yourself and save its state_dict as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ConfigError(f"model.checkpoint: {path} is not a readable torch file: {' '.join(str(error).split())[:160]}") from error


def _unwrap(content: Any, checkpoint: str) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return _unwrap(content[key], checkpoint)
    tensors = isinstance(content, dict) and content and all(isinstance(tensor, Tensor) for tensor in content.values())
    require(
        bool(tensors), "model.checkpoint", f"a dict of tensors, alone or under {', '.join(WRAPPERS)}", type(content).__name__, checkpoint
    )
    return content


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _converted(state: dict[str, Tensor], model: nn.Module, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the original ViT and DINOv2 releases to timm's, and position embeddings to the model's grid, by timm's own conversion.

    Patches of another size are not resampled: that would be another model.
    """
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    if type(model).__module__.startswith("torchvision."):
        return _released_by_torchvision(state, expected)
    patches = state.get("patch_embed.proj.weight")
    if not isinstance(model, VisionTransformer) or patches is None or patches.shape != expected["patch_embed.proj.weight"].shape:
        return state
    return checkpoint_filter_fn(dict(state), model, interpolation="bicubic", antialias=False)


def _released_by_torchvision(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old names of DenseNet's and ViT's releases to those of today, without the auxiliary classifiers of GoogLeNet and Inception.

    Source: torchvision's ``densenet._load_state_dict``, ``MLPBlock._load_from_state_dict``, and builders of these models.
    """
    for old, new in TORCHVISION_NAMES:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(TORCHVISION_AUXILIARY)}


def _require_fit(checkpoint: str, state: dict[str, Tensor], expected: dict[str, Tensor], heads: set[str], remedy: str) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    differing = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if not (missing or unexpected or differing):
        return
    shapes = [f"{name} is {tuple(state[name].shape)}, the model has {tuple(expected[name].shape)}" for name in differing]
    parts = [
        _listed(shapes, "; ", "tensors of other shapes: "),
        _listed(missing, ", ", "missing: "),
        _listed(unexpected, ", ", "unexpected: "),
    ]
    remedy = remedy or _head_remedy([*missing, *unexpected, *differing], state, heads)
    raise ConfigError(f"model.checkpoint: {checkpoint} does not fit the model: {'; '.join(part for part in parts if part)}; {remedy}")


def _remedy_for_exported(checkpoint: str) -> str:
    """Empty unless a run exported the file: then it says itself of which architecture it is."""
    from workers.files import read_metadata

    own = checkpoint.endswith(".safetensors") and "secateur" in read_metadata(Path(checkpoint).expanduser())
    return f"a run exported it, and its architecture is its own: model=exported model.checkpoint={checkpoint}" if own else ""


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
