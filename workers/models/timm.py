"""The model family of all timm architectures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from workers.errors import ConfigError
from workers.models import hub, library
from workers.models.base import Output

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

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
class TimmModel(library.LibraryModel):
    """A timm model by name, with the keyword arguments of ``timm.create_model``.

    **Prunable layers.** Candidates are all ``Linear`` and ``Conv2d`` layers except the stem (the first convolution or patch embedding) and
    the classifier heads, which remain dense as in the CAP paper unless ``stem_and_head`` is true. Those that match a pattern of ``include``
    and none of ``exclude`` are pruned. Patterns are shell globs on dotted module names (``*`` also spans dots). Norms, embeddings, layer
    scales and biases are never pruned.

    **Differs from timm.** Convolutions that standardise their weights in every pass (BiT, NFNets, hybrid ViTs) are ordinary ones here, with
    the standardised weights: the outputs are the same, and a masked weight is zero in the product.
    """

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, RESERVED)

    def build(self) -> nn.Module:
        """Returns the architecture with weights drawn from torch's global generator. Raises: ConfigError for invalid arguments."""
        from workers.models.standardised import folded_

        return folded_(self._created())

    def _created(self) -> nn.Module:
        import timm

        self.require_known()
        return library.built(self.name, self.arguments, lambda: timm.create_model(self.name, pretrained=False, **self.arguments))

    def released(self) -> nn.Module:
        """Returns timm's own architecture, or that of ``build()`` if the checkpoint was exported by a run."""
        from workers.models import checkpoints

        exported = self.source is not None and checkpoints.is_exported(self.source)
        return self.build() if exported else self._created()

    def pretrained_state(self) -> dict[str, Tensor] | None:
        import torch

        from workers.models.standardised import folded_state

        state = super().pretrained_state()
        if state is None:
            return None
        with torch.device("meta"):
            model = self.released()
        return folded_state(model, state)

    def pretrained_notes(self) -> list[str]:
        import torch

        from workers.models.standardised import standardised

        with torch.device("meta"):
            folded = len(standardised(self.released()))
        note = (
            f"model: {folded} convolutions of {self.name} standardise their weights in every pass; they are replaced by ordinary ones with "
            "the standardised weights, which have the same outputs"
        )
        return super().pretrained_notes() + ([note] if folded else [])

    def released_file(self) -> Path:
        import timm

        settings = timm.get_pretrained_cfg(self.name)
        if settings is not None and settings.hf_hub_id:
            file = settings.hf_hub_filename
            return hub.weights(settings.hf_hub_id, (file,) if file else hub.WEIGHTS)
        return hub.download(settings.url) if settings is not None and settings.url else super().released_file()

    def heads(self, model: nn.Module) -> set[str]:
        """Returns the classifier heads; empty for a model without a classifier."""
        classifier = cast(Any, model).get_classifier()
        modules = classifier if isinstance(classifier, tuple | list) else (classifier,)
        names = {name for name, module in model.named_modules() if any(module is head for head in modules)}
        return names | _recorded(model, "classifier")

    def ends(self, model: nn.Module) -> set[str]:
        """Returns the stem and the heads as timm records them for the architecture."""
        return {"patch_embed", *_recorded(model, "first_conv"), *self.heads(model)}

    @property
    def has_features(self) -> bool:
        return True

    @property
    def output(self) -> Output:
        classes = self.arguments.get("num_classes")
        classes = self._pretrained_cfg()["num_classes"] if classes is None else classes
        return Output.LOGITS if classes > 0 else Output.FEATURES

    def require_known(self) -> None:
        self._pretrained_cfg()

    def _pretrained_cfg(self) -> dict[str, Any]:
        """Returns timm's description of the architecture. Raises: ConfigError, with suggestions, if there is none of this name."""
        import timm

        architecture, _, tag = self.name.partition(".")
        if not timm.is_model(architecture):
            raise library.unknown(architecture, f"timm {timm.__version__}", timm.list_models(), "timm.list_models()")
        tags = timm.list_pretrained(f"{architecture}.*")
        if tag and self.name not in tags:
            known = f"the known tags are {', '.join(tags)}" if tags else "it has no tags"
            raise ConfigError(
                f"model.name: {architecture} has no tag {tag!r}, {known}; set model.name={architecture}, since a tag only names weights, "
                "which model.checkpoint=pretrained takes"
            )
        settings = timm.get_pretrained_cfg(self.name)
        return {"num_classes": 1000} if settings is None else settings.to_dict()


def _recorded(model: nn.Module, entry: str) -> set[str]:
    names = cast(Any, model).pretrained_cfg.get(entry) or ()
    return {names} if isinstance(names, str) else set(names)
