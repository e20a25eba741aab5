"""Batches from Python: checked once, gathered into tensors, and is_classifier together with the module that they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from workers.errors import ConfigError
from workers.files import write_tensors

KINDS = "tensors of images, pairs of images and labels, or dictionaries with pixel_values and labels"
TRIED = 4  # samples of the pass that shows whether module, data and loss fit


@dataclass(frozen=True, eq=False)
class Samples:
    """Images (N, C, H, W), and labels whose first dimension is N, or None."""

    images_NCHW: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images_NCHW)

    @property
    def classes(self) -> int:
        """The number of classes if the labels are classes, else 0."""
        known = self.labels is not None and self.labels.ndim == 1 and not self.labels.is_floating_point()
        return int(self.labels.max()) + 1 if known and self.labels is not None else 0

    def save(self, folder: Path) -> Path:
        """Writes a file that the data set ``tensors`` reads; returns its path."""
        labels = {} if self.labels is None else {"labels": self.labels}
        return saved(folder, {"images": self.images_NCHW} | labels)


def saved(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes tensors into a file that is named after its content; returns its path."""
    temporary = folder / f"{uuid4().hex}.safetensors"
    path = folder / f"{write_tensors(temporary, {name: tensor.contiguous().clone() for name, tensor in tensors.items()})}.safetensors"
    temporary.replace(path)
    return path


def gathered(batches: Iterable[Any], where: str) -> Samples:
    """Returns all samples of an iterable of batches. Raises: ConfigError, which begins with ``where``, if they are none."""
    try:
        iterator = iter(batches)
    except TypeError as error:
        raise ConfigError(f"{where}: expected an iterable of {KINDS}, got {type(batches).__name__}") from error
    images: list[Tensor] = []
    labels: list[Tensor] = []
    room = psutil.virtual_memory().available // 3  # they are held twice while they are joined
    for number, batch in enumerate(iterator):
        pair = _pair(batch, f"{where}, batch {number}")
        images.append(pair.images_NCHW)
        if pair.labels is not None:
            labels.append(pair.labels)
        if images[0].shape[1:] != images[-1].shape[1:]:
            shapes = f"{tuple(images[0].shape[1:])}, as in batch 0, got {tuple(images[-1].shape[1:])}"
            raise ConfigError(f"{where}, batch {number}: expected images of {shapes}")
        room -= images[-1].nbytes
        if room < 0:
            raise ConfigError(
                f"{where}: expected samples that fit into memory, got more than {sum(map(len, images))} images; pass fewer, such as "
                "itertools.islice(loader, 64): a few thousand images are enough"
            )
    if not images:
        raise ConfigError(f"{where}: expected an iterable of {KINDS}, got none; a generator can be read only once")
    if labels and len(labels) < len(images):
        raise ConfigError(f"{where}: expected labels in all batches or in none, got them in {len(labels)} of {len(images)}")
    try:
        return Samples(torch.cat(images), torch.cat(labels) if labels else None)
    except RuntimeError as error:
        raise ConfigError(f"{where}: expected labels of one shape, got {_shapes(labels)}; pad them") from error


def check_module(model: nn.Module) -> None:
    """Raises ``ConfigError`` for modules whose weights are not there yet or are not float32."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ConfigError(f"model: expected weights, got a lazy module that has none yet ({name}); run a batch through the model first")
        if parameter.is_meta:
            raise ConfigError(f"model: expected weights, got a tensor on the meta device ({name}); load a checkpoint first")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ConfigError(f"model: expected float32 weights, got {parameter.dtype} ({name}); call model.float() first")


def is_classifier(model: nn.Module, samples: Samples, loss: str | Callable[[Any, Any], Any] | None) -> bool:
    """Returns whether the outputs of a module are scores of classes. Raises: ConfigError if module, samples and loss do not fit."""
    images = samples.images_NCHW[:TRIED]
    shape = f"{tuple(images.shape)}"
    try:
        outputs = model(images)
    except Exception as error:  # the module is any code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"model: its forward pass failed on images of {shape}: {reason}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or len(outputs) != len(images):
        got = f"a tensor of {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(f"model: expected a tensor (N, ...) for images of {shape}, or an output with logits, got {got}; wrap the model")
    scores = outputs.ndim == 2
    if callable(loss):
        _check_loss(loss, outputs, samples)
        assert samples.labels is not None
        return scores and 0 < samples.classes <= outputs.shape[1] and int(samples.labels.min()) >= -1
    if loss == "features" or (loss is None and samples.labels is None):
        return False
    if not scores:
        raise ConfigError(f"model: expected scores of classes (N, D), got outputs of {tuple(outputs.shape)}; pass loss=a function of yours")
    if loss == "sampled":
        return True
    if samples.labels is None:
        raise ConfigError("loss: expected labels in the batches, got none; loss='sampled' and loss='features' need none")
    if not 0 < samples.classes <= outputs.shape[1] or int(samples.labels.min()) < -1:
        got = f"{samples.labels.dtype} of {tuple(samples.labels.shape)}"
        got += f", from {samples.labels.min()} to {samples.labels.max()}" if samples.classes else ""
        expected = f"labels (N,) from 0 to {outputs.shape[1] - 1}, or -1 where an image has none"
        raise ConfigError(f"batches: expected {expected}, got {got}; pass loss=a function of yours")
    return True


def called(model: nn.Module, layers: Iterable[str], samples: Samples) -> list[str]:
    """Returns those of ``layers`` that a forward pass calls as modules, in order."""
    names: list[str] = []
    handles = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: names.append(name)) for name in layers]
    with torch.no_grad():
        model(samples.images_NCHW[:1])
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(names))


def require_called(order: Sequence[str], layers: Iterable[str]) -> None:
    """Raises ``ConfigError`` unless all of ``layers`` are in ``order``, which ``called`` returned."""
    idle = [name for name in layers if name not in order]
    if idle:
        some = ", ".join(idle[:5])
        remedy = f"exclude them with settings=[\"model.exclude=['{idle[0]}']\"]"
        raise ConfigError(f"model: expected layers that a forward pass calls as modules, got {some}, which it does not; {remedy}")


def _check_loss(loss: Callable[[Any, Any], Any], outputs: Tensor, samples: Samples) -> None:
    if samples.labels is None:
        raise ConfigError("loss: a function of outputs and labels needs labels, but the batches have none")
    try:
        value = loss(outputs, samples.labels[:TRIED])
    except Exception as error:  # any code of the user
        raise ConfigError(f"loss: the function failed: {' '.join(f'{type(error).__name__}: {error}'.split())}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        got = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if isinstance(value, Tensor) and not value.ndim:
            got = "one without a gradient"
        raise ConfigError(f"loss: expected one number that depends on the outputs (a tensor without dimensions), got {got}; take its mean")


def _pair(batch: Any, where: str) -> Samples:
    """Returns the images and labels of a batch, or of a single sample."""
    if isinstance(batch, Mapping):
        if "pixel_values" not in batch:
            remedy = "pass pairs, such as ((batch['image'], batch['label']) for batch in loader)"
            raise ConfigError(f"{where}: expected {KINDS}, got a dictionary with {', '.join(map(str, batch))}; {remedy}")
        images, labels = batch["pixel_values"], next((batch[name] for name in ("labels", "label") if name in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) in (1, 2):
        images, labels = batch[0], batch[1] if len(batch) == 2 else None
    else:
        images, labels = batch, None
    if not isinstance(images, Tensor):
        raise ConfigError(f"{where}: expected {KINDS}, got {_described(batch)}")
    if images.ndim == 3:
        images, labels = images[None], None if labels is None else torch.as_tensor(labels)[None]
    if images.ndim != 4 or not len(images):
        raise ConfigError(f"{where}: expected images (N, C, H, W), got a tensor of {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ConfigError(f"{where}: expected floats, scaled and normalised as the model expects them, got {images.dtype}")
    if labels is None:
        return Samples(images.detach().float().cpu(), None)
    labels = _labels(labels, len(images), where)
    return Samples(images.detach().float().cpu(), labels)


def _labels(labels: Any, count: int, where: str) -> Tensor:
    try:
        labels = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: expected labels as a tensor, got {type(labels).__name__} ({error})") from error
    if not labels.ndim or len(labels) != count:
        raise ConfigError(f"{where}: expected {count} labels, one for each image, got a tensor of {tuple(labels.shape)}")
    return labels if labels.is_floating_point() else labels.long()


def _described(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(type(part).__name__ for part in batch)}"
    return type(batch).__name__


def _shapes(tensors: list[Tensor]) -> str:
    return " and ".join(str(shape) for shape in list(dict.fromkeys(tuple(tensor.shape[1:]) for tensor in tensors))[:3])
