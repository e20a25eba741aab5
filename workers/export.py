"""Model files: the weights of a pruned model and how to build it, in one safetensors file that loads anywhere.

A pruned layer ``name`` is stored as ``name.weight.mask`` (one bit per weight, row-major) and ``name.weight.values`` (its surviving weights
in the same order), so the file shrinks with sparsity; everything else is stored as it is, what a module has under several names once. The
header holds a JSON spec.
The pipeline keeps its models in the same format: what is evaluated is what is exported.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.errors import SecateurError
from workers.files import TensorFile, read_metadata, read_tensors, write_tensors
from workers.models import permitted
from workers.models.base import ModelFamily

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = "secateur/1"


def save_model(path: Path, family: ModelFamily, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> str:
    """Write a model file; returns its digest.

    ``masks`` maps layer names to bool tensors of the weight's shape, True where a weight survives.
    Raises: SecateurError if a weight outside its mask is not exactly zero.
    """
    import torch

    from kernels.masks import pack_bits

    family = family.stored
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        again = aliases(family.build())
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items() if again.get(name) not in state}
    layers: dict[str, dict[str, Any]] = {}
    for layer, mask in masks.items():
        weight = tensors.pop(f"{layer}.weight")
        keep = mask.cpu().reshape(weight.shape)
        if torch.count_nonzero(weight[~keep]):
            raise SecateurError(
                f"{layer}: {int(torch.count_nonzero(weight[~keep]))} pruned weights are not zero; refusing to store the model"
            )
        tensors[f"{layer}.weight.mask"] = pack_bits(keep)
        tensors[f"{layer}.weight.values"] = weight[keep]
        layers[layer] = {"shape": list(weight.shape), "kept": int(keep.sum()), "of": weight.numel()}
    spec = {"format": FORMAT, "family": target_of(family), "settings": asdict(family) | {"checkpoint": None}, "layers": layers}
    return write_tensors(path, tensors, {"secateur": json.dumps(spec, sort_keys=True)})


def aliases(model: nn.Module) -> dict[str, str]:
    """Of tensors that a module has under several names (layers that are used twice): the first name by each other one."""
    first: dict[int, str] = {}
    again = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) != name:
            again[name] = first[id(tensor)]
    return again


def read_spec(path: Path | str) -> dict[str, Any]:
    """The JSON spec of a model file. Raises: SecateurError if it is none of ours."""
    header = read_metadata(Path(path)).get("secateur")
    if header is None:
        raise SecateurError(f"{path}: expected a model written by secateur, got a safetensors file without its spec")
    try:
        spec = json.loads(header)
    except ValueError as error:
        raise SecateurError(f"{path}: its spec is damaged: {error}") from error
    if spec.get("format") != FORMAT:
        raise SecateurError(f"{path}: expected format {FORMAT}, got {spec.get('format')}; load it with the version that wrote it")
    return spec


def load_family(path: Path | str) -> ModelFamily:
    """The family, with its settings, that a model file was written by. Raises: SecateurError."""
    spec = read_spec(path)
    try:
        return family_of(spec["family"], spec["settings"])
    except (SecateurError, ImportError, AttributeError, KeyError, TypeError) as error:
        raise SecateurError(f"{path}: its spec names no model family that can be built here: {error}") from error


def family_of(target: str, settings: Mapping[str, Any]) -> ModelFamily:
    """A family by the name of its class. Raises: SecateurError if that is anything else: a model file is not to run any code it likes.

    Classes outside of ``workers.models`` have to be permitted (``workers.models.permitted``).
    """
    module, _, name = target.rpartition(".")
    kind = getattr(importlib.import_module(module), name) if target.startswith(permitted.OURS) else permitted.find(target)
    if not isinstance(kind, type) or not issubclass(kind, ModelFamily):
        raise SecateurError(f"expected a model family, got {target}")
    return kind(**settings)


def load_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Full state dict (zeros filled in) and the masks (True where a weight survives) of a model file."""
    return dict(_weights(Path(path))), load_masks(path)


def load_weight(path: Path | str, layer: str) -> Tensor:
    """The weight of one layer, zeros filled in. Only this part of the file is read, unless modules share the weight under other names."""
    import torch

    from kernels.masks import unpack_bits

    file, name, entry = TensorFile(Path(path)), f"{layer}.weight", read_spec(path)["layers"].get(layer)
    if entry is not None:
        values, keep = file.whole(f"{name}.values"), unpack_bits(file.whole(f"{name}.mask"), tuple(entry["shape"]))
        return torch.zeros(keep.shape, dtype=values.dtype).masked_scatter_(keep, values)
    return file.whole(name) if name in file.names() else load_pruned(path).get_parameter(name).detach()


def load_masks(path: Path | str) -> dict[str, Tensor]:
    """Of the pruned layers, by name: True where a weight survives."""
    from kernels.masks import unpack_bits

    tensors = read_tensors(Path(path))
    return {
        layer: unpack_bits(tensors[f"{layer}.weight.mask"], tuple(entry["shape"])) for layer, entry in read_spec(path)["layers"].items()
    }


def load_model(path: Path | str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module in eval mode with its weights, and its masks. Raises: SecateurError."""
    return load_pruned(path), load_masks(path)


def load_pruned(path: Path | str, runtime: str | None = None, build: permitted.Builder | None = None) -> nn.Module:
    """The pruned model as an ordinary torch module in eval mode: ``model = load_pruned("model.safetensors")``.

    Weights are bit-equal to those that were evaluated. With ``runtime="sparse"``, layers skip their zeros where that is faster (see
    ``workers.sparse``). ``build`` is needed for a model of your own: the function that returns the dense architecture, called with the
    arguments in the file, or the class of its family.
    Raises: SecateurError if the file is not a model of ours, its tensors are not those of its architecture, or ``build`` is missing;
    ValueError for another runtime.
    """
    import torch

    if runtime not in (None, "sparse"):
        raise ValueError(f'load_pruned: expected runtime=None or "sparse", got {runtime!r}')

    with torch.random.fork_rng(devices=[]), permitted.built_by(build):
        model = load_family(path).build()
    again, own = aliases(model), model.state_dict()
    for name, tensor in _weights(Path(path)):
        if name not in own or own[name].shape != tensor.shape:
            raise SecateurError(f"{path}: its tensor {name} of shape {tuple(tensor.shape)} is none of the architecture's")
        own.pop(name).copy_(tensor)
    lacking = [name for name in own if name not in again]
    if lacking:
        raise SecateurError(f"{path}: its tensors lack {', '.join(lacking)}")
    if runtime == "sparse":
        from workers.sparse import sparse_model

        return sparse_model(model)
    return model.eval()


def _weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Weights as the module has them, one by one: beside the mapped file one pruned layer is held."""
    import torch

    from kernels.masks import unpack_bits

    tensors = read_tensors(path)
    for layer, entry in read_spec(path)["layers"].items():
        shape, values = tuple(entry["shape"]), tensors.pop(f"{layer}.weight.values")
        keep = unpack_bits(tensors.pop(f"{layer}.weight.mask"), shape)
        yield f"{layer}.weight", torch.zeros(shape, dtype=values.dtype).masked_scatter_(keep, values)
    yield from tensors.items()


def target_of(family: ModelFamily) -> str:
    """The name that ``family_of`` knows a family by."""
    return f"{type(family).__module__}.{type(family).__qualname__}"
