"""Any timm architecture, pruned at the level of its Linear and Conv2d layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from workers.errors import ConfigError
from workers.models import library
from workers.models.base import Output

if TYPE_CHECKING:
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

    **Which layers are prunable.** Candidates are all ``Linear`` and ``Conv2d`` layers except the stem (the first convolution or patch
    embedding) and the classifier heads, which stay dense as in the CAP paper unless ``stem_and_head`` is true. Of these, the ones that
    match a pattern of ``include`` and none of ``exclude`` are pruned. Patterns are shell globs on dotted module names (``*`` also spans
    dots). Norms, embeddings, layer scales and biases are never pruned.

    **Differs from timm.** Convolutions that standardise their weights in every pass (BiT, NFNets, hybrid ViTs) are plain ones here, with
    the weights that they would use: the same outputs, and a zero stays zero.
    """

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, RESERVED)

    def build(self) -> nn.Module:
        """The architecture with initial weights drawn from torch's global generator. Raises: ConfigError for arguments it does not take."""
        from workers.models.standardised import folded_

        return folded_(self._created())

    def _created(self) -> nn.Module:
        import timm

        self.require_known()
        return library.created(self.name, self.arguments, lambda: timm.create_model(self.name, pretrained=False, **self.arguments))

    def released(self) -> nn.Module:
        """As timm has it; as it is here where the checkpoint is a model file of our own."""
        from workers.models import checkpoints

        ours = self.checkpoint is not None and checkpoints.is_exported(self.checkpoint)
        return self.build() if ours else self._created()

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
            f"model: {folded} convolutions of {self.name} standardise their weights in every pass; here they are plain ones with the "
            "weights that this gives: the same outputs, and zeros stay"
        )
        return super().pretrained_notes() + ([note] if folded else [])

    def heads(self, model: nn.Module) -> set[str]:
        """The classifier heads; none of a headless model."""
        classifier = cast(Any, model).get_classifier()
        modules = classifier if isinstance(classifier, tuple | list) else (classifier,)
        used = {name for name, module in model.named_modules() if any(module is head for head in modules)}
        return used | _recorded(model, "classifier")

    def ends(self, model: nn.Module) -> set[str]:
        """As timm records them of the architecture."""
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
        """timm's description of the architecture. Raises: ConfigError, with suggestions, if there is none of this name."""
        import timm

        architecture, _, tag = self.name.partition(".")
        if not timm.is_model(architecture):
            raise library.unknown(architecture, f"timm {timm.__version__}", timm.list_models(), "timm.list_models()")
        tags = timm.list_pretrained(f"{architecture}.*")
        if tag and self.name not in tags:
            hint = f"known are {', '.join(tags)}" if tags else "this architecture has no tags"
            raise ConfigError(
                f"model.name: {architecture} has no tag {tag!r}; {hint}; {architecture} alone will do, since nothing is downloaded"
            )
        settings = timm.get_pretrained_cfg(self.name)
        return {"num_classes": 1000} if settings is None else settings.to_dict()


def _recorded(model: nn.Module, entry: str) -> set[str]:
    names = cast(Any, model).pretrained_cfg.get(entry) or ()
    return {names} if isinstance(names, str) else set(names)
