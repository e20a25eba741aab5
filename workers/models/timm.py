"""Any timm architecture, pruned at the level of its Linear and Conv2d layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, cast

from workers.checks import require
from workers.errors import ConfigError
from workers.models.base import Layer, ModelFamily

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.structure import Group

RESERVED = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "scriptable",
    "exportable",
)


@dataclass
class TimmModel(ModelFamily):
    """A timm model by name, with the keyword arguments of ``timm.create_model``.

    **Which layers are prunable.** Candidates are all ``Linear`` and ``Conv2d`` layers except the stem (the first convolution or patch
    embedding) and the classifier heads, which stay dense as in the CAP paper unless ``stem_and_head`` is true. Of these, the ones that
    match a pattern of ``include`` and none of ``exclude`` are pruned. Patterns are shell globs on dotted module names (``*`` also spans
    dots). Norms, embeddings, layer scales and biases are never pruned.
    """

    name: str
    arguments: dict[str, Any]
    checkpoint: str | None  # .safetensors, .pt, .pth, .bin, bundled:NAME; None: train from the initial weights
    include: list[str]
    exclude: list[str]
    stem_and_head: bool = field(default=False)

    selects: ClassVar[tuple[str, ...]] = ("include", "exclude", "stem_and_head")

    def __post_init__(self) -> None:
        require(
            bool(self.include), "model.include", "at least one pattern of layer names", self.include, 'include: ["*"] takes every layer'
        )
        for argument in RESERVED:
            require(
                argument not in self.arguments,
                f"model.arguments.{argument}",
                "an argument that shapes the architecture",
                self.arguments.get(argument),
                "weights are given by model.checkpoint; nothing is downloaded",
            )

    def check(self) -> None:
        from workers.models import checkpoints

        self._pretrained_cfg()
        if self.checkpoint is not None:
            checkpoints.check(self.checkpoint)

    def build(self) -> nn.Module:
        """The architecture with initial weights drawn from torch's global generator. Raises: ConfigError for arguments it does not take."""
        import timm

        self._pretrained_cfg()
        try:
            return timm.create_model(self.name, pretrained=False, **self.arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, ZeroDivisionError, AttributeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"model.arguments: {self.name} cannot be built with {self.arguments}: {reason}") from error

    def layers(self, model: nn.Module) -> list[Layer]:
        from torch import nn

        every = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        kept_dense = set() if self.stem_and_head else {name for name in every if _is_under(name, _ends(model))}
        candidates = [name for name in every if name not in kept_dense]
        self._check_patterns("include", self.include, candidates, list(every))
        self._check_patterns("exclude", self.exclude, list(every), list(every))
        chosen = [name for name in candidates if _matches(name, self.include) and not _matches(name, self.exclude)]
        require(bool(chosen), "model.exclude", "patterns that leave a layer to prune", self.exclude)
        return [_layer(name, every[name]) for name in chosen]

    def groups(self, model: nn.Module, input_shape: tuple[int, int, int]) -> list[Group]:
        """Of VisionTransformers as written down here, of all others as traced. The classifier's outputs stay."""
        import torch
        from timm.models.vision_transformer import VisionTransformer

        if isinstance(model, VisionTransformer):
            from workers.models.structures_vit import vit_groups

            return vit_groups(model)
        from workers.models.structures_traced import traced_groups

        device = next(model.parameters()).device
        return traced_groups(model, torch.zeros(1, *input_shape, device=device), _heads(model))

    def pretrained_state(self) -> dict[str, Tensor] | None:
        """The checkpoint's tensors under the names and in the types of ``build()``. Position embeddings are resized bicubically without
        antialias where the image size differs. Raises: ConfigError if anything else does not fit."""
        import torch

        from workers.models import checkpoints

        if self.checkpoint is None:
            return None
        with torch.device("meta"):
            model = self.build()
        return checkpoints.load(self.checkpoint, model, _heads(model))

    def weights_fingerprint(self) -> str:
        from workers.models import checkpoints

        assert self.checkpoint is not None
        return checkpoints.fingerprint(self.checkpoint)

    @property
    def is_classifier(self) -> bool:
        classes = self.arguments.get("num_classes")
        return (self._pretrained_cfg()["num_classes"] if classes is None else classes) > 0

    def _pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the architecture. Raises: ConfigError, with suggestions, if there is none of this name."""
        import timm

        architecture, _, tag = self.name.partition(".")
        if not timm.is_model(architecture):
            near = get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them all"
            raise ConfigError(f"model.name: expected an architecture of timm {timm.__version__}, got {self.name!r}; {hint}")
        tags = timm.list_pretrained(f"{architecture}.*")
        if tag and self.name not in tags:
            hint = f"known are {', '.join(tags)}" if tags else "this architecture has no tags"
            raise ConfigError(
                f"model.name: {architecture} has no tag {tag!r}; {hint}; {architecture} alone will do, since nothing is downloaded"
            )
        settings = timm.get_pretrained_cfg(self.name)
        return {"num_classes": 1000} if settings is None else settings.to_dict()

    def _check_patterns(self, setting: str, patterns: list[str], names: list[str], every: list[str]) -> None:
        for pattern in patterns:
            if _matches_any(pattern, names):
                continue
            if _matches_any(pattern, every):
                raise ConfigError(
                    f"model.{setting}: {pattern!r} matches only layers that stay dense (stem and classifier head) in {self.name}; "
                    "set model.stem_and_head=true to prune these too"
                )
            near = get_close_matches(pattern.replace("*", ""), every, n=3, cutoff=0.3) or every[:3]
            raise ConfigError(
                f"model.{setting}: {pattern!r} matches none of the {len(every)} Linear and Conv2d layers of {self.name}; "
                f"layers are named like {', '.join(near)}"
            )


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _matches_any(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _is_under(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _ends(model: nn.Module) -> set[str]:
    """Names of the modules at which data enters and class scores leave: what timm records of the architecture."""
    return {"patch_embed", *_recorded(model, "first_conv"), *_heads(model)}


def _heads(model: nn.Module) -> set[str]:
    """Names of the classifier heads; empty for a headless model."""
    classifier = cast(Any, model).get_classifier()
    modules = classifier if isinstance(classifier, tuple | list) else (classifier,)
    used = {name for name, module in model.named_modules() if any(module is head for head in modules)}
    return used | _recorded(model, "classifier")


def _recorded(model: nn.Module, entry: str) -> set[str]:
    names = cast(Any, model).pretrained_cfg.get(entry) or ()
    return {names} if isinstance(names, str) else set(names)


def _layer(name: str, module: nn.Module) -> Layer:
    """Rows are outputs; a convolution is flattened to ``in_channels / groups * kh * kw`` columns.

    Raises: ConfigError for layers that standardise their weights when they are used, since a zero does not stay zero there.
    """
    from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame

    if isinstance(module, StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame):
        raise ConfigError(
            f"model.include: {name} is a {type(module).__name__}, which standardises its weights in every forward pass, so pruned weights "
            "would not stay zero; leave such layers out with model.exclude or choose another architecture"
        )
    weight = cast("Tensor", module.weight)
    return Layer(name, weight.shape[0], weight[0].numel(), weight[0, 0].numel(), getattr(module, "groups", 1))
