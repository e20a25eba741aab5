"""The family of the user's own models, which a function of the user builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import require
from workers.models import library, permitted
from workers.models.base import Output

if TYPE_CHECKING:
    from torch import nn


@dataclass
class OwnModel(library.PatternModel):
    """The module that a function returns, with the function's keyword arguments.

    **Prunable layers.** As in ``TimmModel``. Stem and heads are ``stem_and_heads``; if that is empty, the first layer in the order of
    definition and, with a classifier, the last one or what the module's ``get_classifier`` returns.
    """

    target: str  # dotted name of the function (or class) that returns the module
    arguments: dict[str, Any]
    checkpoint: str | None
    include: list[str]
    exclude: list[str]
    stem_and_head: bool
    classifier: bool  # whether outputs are scores of classes; false: features
    stem_and_heads: list[str]

    selects: ClassVar[tuple[str, ...]] = ("include", "exclude", "stem_and_head")

    def __post_init__(self) -> None:
        library.check_settings(self.include, {}, ())

    @property
    def architecture(self) -> str:
        return self.target

    def check(self) -> None:
        permitted.find(self.target)
        super().check()

    def build(self) -> nn.Module:
        """Returns the module on torch's default device. Raises: ConfigError if the function refuses its arguments or returns no module."""
        import torch
        from torch import nn

        build = permitted.find(self.target)
        model = library.created(self.target, self.arguments, lambda: build(**self.arguments))
        require(isinstance(model, nn.Module), "model.target", "a function that returns a torch module", type(model).__name__)
        return model.to(torch.get_default_device())

    def ends(self, model: nn.Module) -> set[str]:
        names = {name for name, _ in model.named_modules()}
        for name in self.stem_and_heads:
            require(name in names, "model.stem_and_heads", f"names of modules of {self.target}", name)
        return set(self.stem_and_heads) or super().ends(model)

    def heads(self, model: nn.Module) -> set[str]:
        if not self.classifier:
            return set()
        classifier = getattr(model, "get_classifier", None)
        if classifier is None:
            return {*list(self.matrices(model))[-1:]}
        return {name for name, module in model.named_modules() if module is classifier()}

    @property
    def has_features(self) -> bool:
        return self._has("forward_features") and self._has("get_classifier")

    @property
    def has_loss(self) -> bool:
        return self._has("label_loss")

    def _has(self, method: str) -> bool:
        import torch

        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return hasattr(self.build(), method)

    @property
    def output(self) -> Output:
        return Output.LOGITS if self.classifier else Output.FEATURES
