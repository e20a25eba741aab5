"""The content of a model file, checked as it is read: a file may be damaged, or written by a stranger.

The spec is checked before a family is made of it, and each tensor before it is used: its place in the spec, its digest and its numbers.
Digests find damage. They are no signature: whoever changes a tensor on purpose can change its digest too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.checks import is_of_type, require_numbers, type_words
from workers.errors import ConfigError, SecateurError
from workers.files import read_metadata, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "secateur"  # of the spec in the header
FORMAT = "secateur/2"
WITHOUT_DIGESTS = "secateur/1"  # still read
LONGEST_SPEC = 2**23  # characters; that of a large model with the names of 20,000 classes has a tenth
DAMAGED = "copy or export it again"
NO_LIMITS = ("weight", "bias", "running_mean", "running_var")  # ends of names of tensors that are always finite

TYPES: dict[str, Any] = {"family": str, "settings": dict[str, Any], "layers": dict[str, dict[str, Any]], "tensors": dict[str, str]}


@dataclass(frozen=True)
class MaskedLayer:
    """The shape of a masked weight, and how many of its entries are kept."""

    shape: tuple[int, ...]
    kept: int


def spec_text(spec: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Returns the spec of a model file with the digests of its tensors and of itself, as JSON."""
    signed = {"format": FORMAT} | spec | {"tensors": {name: digest_of(tensor) for name, tensor in tensors.items()}}
    return json.dumps(signed | {"sha256": _digest_of_spec(signed)}, sort_keys=True)


def digest_of(tensor: Tensor) -> str:
    """Returns the SHA-256 of the type, the shape and the bytes of a tensor on the CPU."""
    import torch

    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest_of_spec(spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def read_spec(path: Path | str) -> dict[str, Any]:
    """Returns the spec of a model file. Raises: SecateurError if it is none of ours, or damaged."""
    text = read_metadata(Path(path)).get(KEY)
    if text is None:
        raise SecateurError(f"{path}: expected a model written by secateur, got a safetensors file without its spec")
    _require(len(text) <= LONGEST_SPEC, path, f"at most {LONGEST_SPEC} characters", len(text))
    try:
        spec = json.loads(text, object_pairs_hook=_without_duplicates)
        require_numbers(spec, "")
    except (ValueError, RecursionError, ConfigError) as error:
        raise SecateurError(f"{path}: its spec is damaged: {error}; {DAMAGED}") from error
    _require(isinstance(spec, dict), path, "a dict", spec)
    if spec.get("format") not in (FORMAT, WITHOUT_DIGESTS):
        raise SecateurError(f"{path}: expected format {FORMAT}, got {spec.get('format')!r}; load it with the version that wrote it")
    digest = spec.pop("sha256", None)
    if spec["format"] == FORMAT:
        _require(digest == _digest_of_spec(spec), path, "its own SHA-256", digest)
    for name, kind in TYPES.items():
        if name != "tensors" or spec["format"] == FORMAT:
            _require(is_of_type(spec.get(name), kind), path, f"{name} as {type_words(kind)}", spec.get(name))
    return spec


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key occurs twice")
    return entries


def _require(holds: bool, path: Path | str, expected: str, got: object) -> None:
    if not holds:
        raise SecateurError(f"{path}: its spec is damaged: expected {expected}, got {str(got)[:80]!r}; {DAMAGED}")


class ModelFile:
    """The spec and the tensors of a model file, whose names and shapes agree. Tensors are mapped, and read when they are asked for.

    Raises: SecateurError if they do not agree; so do the methods if a tensor is not what was written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.spec = Path(path), read_spec(path)
        self._tensors = read_tensors(self.path)
        self.layers = {name: self._masked_layer(name, entry) for name, entry in self.spec["layers"].items()}
        digests = self.spec.get("tensors", self._tensors)
        if self._tensors.keys() != digests.keys():
            names = sorted(self._tensors.keys() ^ digests.keys())
            raise self._damaged(f"spec and tensors differ in {', '.join(names[:3])}")
        self._require_room()

    def _masked_layer(self, name: str, entry: dict[str, Any]) -> MaskedLayer:
        """Returns what the spec says about a layer, which has to be true of the stored mask and values."""
        import torch

        if not (entry.keys() == {"shape", "kept", "of"} and is_of_type(entry["shape"], list[int]) and min(entry["shape"], default=0) >= 0):
            raise self._damaged(f"layers.{name} is no shape with its numbers of weights")
        mask, values = (self._tensors.get(f"{name}.weight.{part}") for part in ("mask", "values"))
        if mask is None or values is None or f"{name}.weight" in self._tensors:
            raise self._damaged(f"the layer {name} has no mask and values alone")
        weights, kept = math.prod(entry["shape"]), len(values) if values.dim() == 1 else -1
        bits = mask.dim() == 1 and mask.dtype == torch.uint8 and len(mask) == -(-weights // 8)
        if not bits or (entry["kept"], entry["of"]) != (kept, weights):
            raise self._damaged(f"the mask or the values of {name} have other sizes than its spec says")
        return MaskedLayer(tuple(entry["shape"]), kept)

    def _require_room(self) -> None:
        """Masked weights take less room in the file than in memory."""
        needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.shapes().values())
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise SecateurError(f"{self.path}: expected weights that fit into the {there:,} bytes of memory here, got {needed:,} bytes")

    def shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and type of each weight as the module has it, by name. Reads no tensor."""
        masked = {f"{name}.weight": (layer.shape, self._tensors[f"{name}.weight.values"].dtype) for name, layer in self.layers.items()}
        return masked | {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self._whole().items()}

    def weights(self, limits: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields weights as the module has them, one by one: beside the mapped file one masked layer is held.

        ``limits`` are the tensors that may be infinite. Without them, as long as the module is not known, the ends of names tell.
        """
        for name in self.layers:
            yield f"{name}.weight", self._masked_weight(name)
        for name in self._whole():
            yield name, self._checked(name, limits)

    def weight(self, layer: str) -> Tensor | None:
        """Returns the weight of a layer, zeros filled in; None if it is stored under another name."""
        name = f"{layer}.weight"
        if layer in self.layers:
            return self._masked_weight(layer)
        return self._checked(name) if name in self._tensors else None

    def mask(self, layer: str) -> Tensor:
        """Returns the mask of a masked layer: True where a weight is kept."""
        from kernels.masks import unpack_bits

        keep = unpack_bits(self._checked(f"{layer}.weight.mask"), self.layers[layer].shape)
        if int(keep.sum()) != self.layers[layer].kept:
            raise self._damaged(f"the mask of {layer} keeps {int(keep.sum())} weights and there are {self.layers[layer].kept}")
        return keep

    def _masked_weight(self, layer: str) -> Tensor:
        import torch

        values = self._checked(f"{layer}.weight.values", limits=())
        return torch.zeros(self.layers[layer].shape, dtype=values.dtype).masked_scatter_(self.mask(layer), values)

    def _whole(self) -> dict[str, Tensor]:
        """Returns the tensors that are stored as they are."""
        parts = {f"{name}.weight.{part}" for name in self.layers for part in ("mask", "values")}
        return {name: tensor for name, tensor in self._tensors.items() if name not in parts}

    def _checked(self, name: str, limits: Collection[str] | None = None) -> Tensor:
        """Returns a stored tensor. Raises: SecateurError if it is not what was written, or not finite."""
        tensor, digests = self._tensors[name], self.spec.get("tensors")
        if digests is not None and digests[name] != digest_of(tensor):
            raise self._damaged(f"the tensor {name} does not match its SHA-256")
        limit = name.rpartition(".")[2] not in NO_LIMITS if limits is None else name in limits
        require_finite(str(self.path), name, tensor, limit)
        return tensor

    def _damaged(self, reason: str) -> SecateurError:
        return SecateurError(f"{self.path}: its content is damaged: {reason}; {DAMAGED}")


def limits_of(model: nn.Module) -> set[str]:
    """Returns the names of tensors that may be infinite: buffers such as the bounds of a clamp or the mask of an attention.

    Statistics of normalisation, and weights that torchvision freezes as buffers, may not.
    """
    return {name for name, _ in model.named_buffers() if name.rpartition(".")[2] not in NO_LIMITS}


def require_finite(where: str, name: str, tensor: Tensor, limit: bool) -> None:
    """Raises ``SecateurError`` if a number is NaN or, unless the tensor is a ``limit``, infinite."""
    import torch

    if tensor.is_floating_point() and (torch.isnan(tensor).any() if limit else not torch.isfinite(tensor).all()):
        raise SecateurError(f"{where}: expected finite numbers, got NaN or infinity in {name}; use a model from before its training failed")
