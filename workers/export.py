"""Model files: the weights of a pruned model and how to build it, in one safetensors file that loads anywhere.

A pruned layer ``name`` is stored as ``name.weight.mask`` (one bit per weight, row-major) and ``name.weight.values`` (its surviving weights
in the same order), so the file shrinks with sparsity; everything else is stored as it is, what a module has under several names once. The
header holds a JSON spec.
The pipeline keeps its models in the same format: what is evaluated is what is exported.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from workers.checks import is_of_type, type_words
from workers.errors import SecateurError
from workers.files import write_tensors
from workers.model_files import KEY, ModelFile, limits_of, read_spec, require_finite, spec_text
from workers.models import permitted
from workers.models.base import ModelFamily

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_NESTED = 16  # families in each other: a shrunk model of each run that went on from another
WIDENED = "workers.models.widened.WidenedModel"
LONGEST_REASON = 500  # characters


def save_model(path: Path, family: ModelFamily, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> str:
    """Write a model file; returns its digest.

    ``masks`` maps layer names to bool tensors of the weight's shape, True where a weight survives.
    Raises: SecateurError if a weight outside its mask is not exactly zero, or a number is NaN or infinite. Limits may be infinite.
    """
    import torch

    from kernels.masks import pack_bits

    family = family.stored
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = family.build()
    again, limits = aliases(model), limits_of(model)
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items() if again.get(name) not in state}
    for name, tensor in tensors.items():
        require_finite(str(path), name, tensor, name in limits)
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
    spec = {"family": target_of(family), "settings": asdict(family) | {"checkpoint": None}, "layers": layers}
    return write_tensors(path, tensors, {KEY: spec_text(spec, tensors)})


def aliases(model: nn.Module) -> dict[str, str]:
    """Of tensors that a module has under several names (layers that are used twice): the first name by each other one."""
    first: dict[int, str] = {}
    again = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) != name:
            again[name] = first[id(tensor)]
    return again


def load_family(path: Path | str) -> ModelFamily:
    """The family, with its settings, that a model file was written by. Raises: SecateurError."""
    return _family(path, read_spec(path))


def _family(path: Path | str, spec: Mapping[str, Any]) -> ModelFamily:
    with _naming(path, "its spec names no model family that can be built here"):
        _check_nesting(spec["family"], spec["settings"])
        return family_of(spec["family"], spec["settings"])


def _check_nesting(target: str, settings: Mapping[str, Any], within: tuple[str, ...] = ()) -> None:
    """Raises ``SecateurError`` if a family names weights, contains too many others, or is widened twice, which takes exponential time."""
    chain = (*within, target)
    if settings.get("checkpoint") is not None:
        raise SecateurError(f"expected settings without a checkpoint, got {settings['checkpoint']!r}")
    if len(chain) > MOST_NESTED or chain.count(WIDENED) > 1:
        raise SecateurError(f"expected at most {MOST_NESTED} families in each other, and one widened one")
    if isinstance(settings.get("family"), str) and isinstance(settings.get("settings"), dict):
        _check_nesting(settings["family"], settings["settings"], chain)


def family_of(target: str, settings: Mapping[str, Any]) -> ModelFamily:
    """A family by the name of its class. Raises: SecateurError if that is anything else: a model file is not to run any code it likes.

    Classes outside of ``workers.models`` have to be permitted (``workers.models.permitted``).
    """
    kind = _class_of_ours(target) if target.startswith(permitted.OURS) else permitted.find(target)
    if not isinstance(kind, type) or not issubclass(kind, ModelFamily):
        raise SecateurError(f"expected a model family, got {target}")
    if kind.__module__.startswith(permitted.OURS):
        hints = get_type_hints(kind)
        wrong = [name for name, value in settings.items() if name in hints and not is_of_type(value, hints[name])]
        if wrong:
            raise SecateurError(f"{kind.__name__}.{wrong[0]}: expected {type_words(hints[wrong[0]])}, got {str(settings[wrong[0]])[:80]!r}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise SecateurError(f"{kind.__name__}: expected its settings, got others: {error}") from error


def _class_of_ours(target: str) -> Any:
    """What a module of ``workers.models`` defines under a name; None if there is none. Nothing else is imported."""
    module, _, name = target.rpartition(".")
    if not (Path(__file__).parent / "models" / f"{module.removeprefix(permitted.OURS)}.py").is_file():
        return None
    return vars(importlib.import_module(module)).get(name)


@contextmanager
def _naming(path: Path | str, what: str) -> Iterator[None]:
    """Names the file in errors of any class: what a file asks for may fail anywhere."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SecateurError(f"{path}: {what}: {reason[:LONGEST_REASON]}") from error


def load_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Full state dict (zeros filled in) and the masks (True where a weight survives) of a model file."""
    file = ModelFile(path)
    return dict(file.weights()), {layer: file.mask(layer) for layer in file.layers}


def load_weight(path: Path | str, layer: str) -> Tensor:
    """The weight of one layer, zeros filled in. Only this part of the file is read, unless modules share the weight under other names."""
    weight = ModelFile(path).weight(layer)
    return load_pruned(path).get_parameter(f"{layer}.weight").detach() if weight is None else weight


def load_masks(path: Path | str) -> dict[str, Tensor]:
    """Of the pruned layers, by name: True where a weight survives."""
    file = ModelFile(path)
    return {layer: file.mask(layer) for layer in file.layers}


def load_model(path: Path | str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module in eval mode with its weights, and its masks. Raises: SecateurError."""
    return load_pruned(path), load_masks(path)


def load_pruned(path: Path | str, runtime: str | None = None, build: permitted.Builder | None = None) -> nn.Module:
    """The pruned model as an ordinary torch module in eval mode: ``model = load_pruned("model.safetensors")``.

    Weights are bit-equal to those that were evaluated. With ``runtime="sparse"``, layers skip their zeros where that is faster (see
    ``workers.sparse``). ``build`` is needed for a model of your own: the function that returns the dense architecture, called with the
    arguments in the file, or the class of its family. It is called twice, first with ``torch.device("meta")`` as the default.
    Raises: SecateurError if the file is damaged or not a model of ours, its tensors are not those of its architecture, or ``build`` is
    missing; ValueError for another runtime.
    """
    import torch

    from workers.models.bounded import weights_follow

    if runtime not in (None, "sparse"):
        raise ValueError(f'load_pruned: expected runtime=None or "sparse", got {runtime!r}')

    file = ModelFile(path)
    with torch.random.fork_rng(devices=[]), permitted.built_by(build), weights_follow():
        family = _family(path, file.spec)
        for device in ("meta", torch.get_default_device()):  # on the first, another architecture than that of the file takes no memory
            with torch.device(device), _naming(path, "its model cannot be built here"):
                model = family.build()
            _require_fit(file, model)
    own = model.state_dict()
    for name, tensor in file.weights(limits_of(model)):
        own[name].copy_(tensor)
    if runtime == "sparse":
        from workers.sparse import sparse_model

        return sparse_model(model)
    return model.eval()


def _require_fit(file: ModelFile, model: nn.Module) -> None:
    """Raises ``SecateurError`` unless the tensors of a file are those of a model, in names, shapes and types."""
    own, again, shapes = model.state_dict(), aliases(model), file.shapes()
    for name, (shape, dtype) in shapes.items():
        if name not in own or tuple(own[name].shape) != shape:
            raise SecateurError(f"{file.path}: its tensor {name} of shape {shape} is none of the architecture's")
        if own[name].dtype != dtype:
            raise SecateurError(f"{file.path}: its tensor {name} is {dtype}, and the architecture's is {own[name].dtype}")
    lacking = [name for name in own if name not in shapes and name not in again]
    if lacking:
        raise SecateurError(f"{file.path}: its tensors lack {', '.join(lacking[:5])}")


def target_of(family: ModelFamily) -> str:
    """The name that ``family_of`` knows a family by."""
    return f"{type(family).__module__}.{type(family).__qualname__}"
