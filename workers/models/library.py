"""The common part of families whose architectures a library builds by name: settings, checkpoints, and the choice of layers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, cast

from workers.checks import Phrase, require
from workers.errors import ConfigError
from workers.models import hub
from workers.models.base import Layer, ModelFamily

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

LARGEST_ARGUMENT = 2**22  # libraries make lists of as many layers or names of classes, before anything else can stop them
SHOWN = 200  # characters of arguments in messages


class PatternModel(ModelFamily):
    """An architecture whose layers are chosen by patterns of names, and whose weights are a checkpoint. Subclasses declare the fields."""

    checkpoint: str | None  # .safetensors, .pt, .pth, .bin, bundled:NAME, hf-hub:NAME; None: train from the initial weights
    include: list[str]
    exclude: list[str]
    stem_and_head: bool

    @property
    def source(self) -> str | None:
        """The checkpoint as a file, or bundled:NAME. Raises: ConfigError if it has to be fetched and cannot be."""
        if self.checkpoint is None or not self.checkpoint.startswith(hub.PREFIX):
            return self.checkpoint
        return str(hub.weights(self.checkpoint.removeprefix(hub.PREFIX)))

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The name of the architecture in messages."""

    @abstractmethod
    def heads(self, model: nn.Module) -> set[str]:
        """Returns the names of the modules that produce the model's outputs."""

    def check(self) -> None:
        from workers.models import checkpoints

        if self.source is not None:
            checkpoints.check(self.source)

    def matrices(self, model: nn.Module) -> dict[str, nn.Module]:
        """Returns the layers that can be pruned at all, by name, in the order of definition."""
        return matrices(model)

    def ends(self, model: nn.Module) -> set[str]:
        """Returns the names of the stem and the heads, which remain dense unless ``stem_and_head`` is set."""
        return {*list(self.matrices(model))[:1], *self.heads(model)}

    def layers(self, model: nn.Module) -> list[Layer]:
        dense = set() if self.stem_and_head else self.ends(model)
        return chosen(self.matrices(model), dense, self.include, self.exclude, self.architecture)

    def released(self) -> nn.Module:
        """Returns the architecture with the tensors of released checkpoints."""
        return self.build()

    def pretrained_state(self) -> dict[str, Tensor] | None:
        """Returns the checkpoint's tensors under the names and in the types of ``build()``.

        Position embeddings for another image size are resized bicubically without antialias. Raises: ConfigError if anything else does not
        fit.
        """
        import torch

        from workers.models import checkpoints

        if self.source is None:
            return None
        with torch.device("meta"):
            model = self.released()
        return checkpoints.load(self.source, model, self.heads(model))

    def pretrained_notes(self) -> list[str]:
        import torch

        from workers.models import checkpoints

        if self.source is None:
            return []
        with torch.device("meta"):
            model = self.released()
        return checkpoints.notes(self.source, model)

    def weights_fingerprint(self) -> str:
        from workers.models import checkpoints

        return checkpoints.fingerprint(self.source)


@dataclass
class LibraryModel(PatternModel):
    """An architecture by its name in a library, the keyword arguments of its builder, and patterns of layers."""

    name: str
    arguments: dict[str, Any]
    checkpoint: str | None
    include: list[str]
    exclude: list[str]
    stem_and_head: bool = field(default=False)

    selects: ClassVar[tuple[str, ...]] = ("include", "exclude", "stem_and_head")

    @property
    def architecture(self) -> str:
        return self.name

    @abstractmethod
    def require_known(self) -> None:
        """Raises ``ConfigError``, with suggestions, if the library has no architecture of this name."""

    def released_file(self) -> Path:
        """Returns the weights that the library has released for the architecture. Raises: ConfigError if there are none, or no network."""
        raise ConfigError(f"model.checkpoint: there are no released weights of {self.name} that could be fetched")

    @property
    def source(self) -> str | None:
        return str(self.released_file()) if self.checkpoint == hub.PRETRAINED else super().source

    def check(self) -> None:
        self.require_known()
        super().check()


def check_settings(include: list[str], arguments: Mapping[str, Any], reserved: Collection[str]) -> None:
    """Raises ``ConfigError`` if no layer is included, if an argument is one of the ``reserved``, or if a number is beyond any use."""
    require(bool(include), "model.include", "at least one pattern of layer names", include, 'include: ["*"] selects every layer')
    for argument in reserved:
        require(
            argument not in arguments,
            f"model.arguments.{argument}",
            "an argument that shapes the architecture",
            arguments.get(argument),
            "set model.checkpoint for the weights: a file, or pretrained for those that the library has released",
        )
    _check_numbers(arguments, "model.arguments")


def _check_numbers(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_numbers(entry, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_numbers(entry, f"{where}[{index}]")
    elif isinstance(value, int):
        require(abs(value) <= LARGEST_ARGUMENT, where, f"a whole number of at most {LARGEST_ARGUMENT:,}", value)


def unknown(name: str, library: str, known: Collection[str], listing: str) -> ConfigError:
    """Returns the error for an unknown architecture, with similar names."""
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"{listing} lists all names"
    return ConfigError(f"model.name: expected an architecture of {library}, got {name!r}; {hint}")


def created(name: str, arguments: Mapping[str, Any], create: Callable[[], nn.Module]) -> nn.Module:
    """Returns the result of ``create``. Raises: ConfigError if it does not accept the arguments."""
    try:
        return create()
    except ConfigError:
        raise
    except Exception as error:  # of any class: an argument that is not expected may fail anywhere
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"model.arguments: {name} cannot be built with {str(dict(arguments))[:SHOWN]}: {reason}") from error


def built(name: str, arguments: Mapping[str, Any], create: Callable[[], nn.Module]) -> nn.Module:
    """Returns the module that a library creates, within the limits of ``workers.models.bounded``. Raises: ConfigError."""
    from workers.models.bounded import bounded

    key = f"{create.__module__} {name} {dict(arguments)!r}"
    return created(name, arguments, lambda: bounded(create, key))


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the Linear and Conv2d layers by name, in the order of definition.

    The output projections of ``nn.MultiheadAttention`` are no such layers, since they are never called as modules.
    """
    from torch import nn
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    return {name: module for name, module in modules.items() if not isinstance(module, NonDynamicallyQuantizableLinear)}


def chosen(
    modules: Mapping[str, nn.Module], dense: Collection[str], include: list[str], exclude: list[str], architecture: str
) -> list[Layer]:
    """Returns the layers of ``modules`` that match a pattern of ``include`` and none of ``exclude``.

    Layers under a module of ``dense``, and layers without any remaining unit, are left out. Patterns are shell globs on dotted module names
    (``*`` also spans dots).
    Raises: ConfigError if a pattern matches nothing, or if no layer remains.
    """
    require(bool(modules), "model", "a module with Linear or Conv2d layers", Phrase(f"none in {architecture}"))
    candidates = [name for name in modules if not _is_under(name, dense)]
    _check_patterns("include", include, candidates, list(modules), architecture)
    _check_patterns("exclude", exclude, list(modules), list(modules), architecture)
    names = [name for name in candidates if _matches(name, include) and not _matches(name, exclude)]
    require(bool(names), "model.exclude", "patterns that leave at least one layer to prune", exclude)
    owners: dict[int, str] = {}
    for name in names:
        first = owners.setdefault(id(modules[name].weight), name)
        remedy = f"exclude one of them, model.exclude=['{name}']"
        require(first == name, "model", "layers with weights of their own", Phrase(f"one weight of both {first} and {name}"), remedy)
    return [layer for name in names if (layer := _layer(name, modules[name])).weights]


def _check_patterns(setting: str, patterns: list[str], candidates: list[str], names: list[str], architecture: str) -> None:
    for pattern in patterns:
        if _matches_any(pattern, candidates):
            continue
        if _matches_any(pattern, names):
            raise ConfigError(
                f"model.{setting}: {pattern!r} matches only the stem or the classifier of {architecture}, which remain dense; "
                "set model.stem_and_head=true to prune them too"
            )
        near = get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.3) or names[:3]
        raise ConfigError(
            f"model.{setting}: {pattern!r} matches none of the {len(names)} Linear and Conv2d layers of {architecture}; "
            f"similar names are {', '.join(near)}"
        )


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _matches_any(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _is_under(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _layer(name: str, module: nn.Module) -> Layer:
    """Returns the layer of a module. A convolution is flattened to ``in_channels / groups * kh * kw`` columns."""
    shape = cast("Tensor", module.weight).shape
    return Layer(name, shape[0], math.prod(shape[1:]), math.prod(shape[2:]), getattr(module, "groups", 1))
