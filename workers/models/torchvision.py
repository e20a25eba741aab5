"""Any torchvision classifier, pruned at the level of its Linear and Conv2d layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import require
from workers.models import library
from workers.models.base import Layer, ModelFamily, Output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.structure import Group

RESERVED = ("weights", "progress", "pretrained", "aux_logits")
AUXILIARY = {"googlenet", "inception_v3"}  # have classifiers on the way that only torchvision's own training uses


@dataclass
class TorchvisionModel(ModelFamily):
    """A classifier of ``torchvision.models`` by name, with the keyword arguments of its builder.

    **Which layers are prunable.** As in ``TimmModel``; stem and head are the first convolution and the last ``Linear`` or ``Conv2d``. The
    attention of ``vit_*`` stays dense: ``nn.MultiheadAttention`` holds its weights as raw parameters and hands them to a fused kernel.
    timm's ViTs have them in ``Linear`` layers.

    **Differs from torchvision.** GoogLeNet and Inception are built without their auxiliary classifiers, whose tensors in a checkpoint are
    ignored. Their released weights also want ``transform_input: true``, which torchvision sets by itself when it downloads them.
    """

    name: str
    arguments: dict[str, Any]
    checkpoint: str | None  # .safetensors, .pt, .pth, .bin; None: train from the initial weights
    include: list[str]
    exclude: list[str]
    stem_and_head: bool = field(default=False)

    selects: ClassVar[tuple[str, ...]] = ("include", "exclude", "stem_and_head")

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, RESERVED)
        classes = self.arguments.get("num_classes", 1)
        require(classes >= 1, "model.arguments.num_classes", "at least 1, since torchvision has no models without a classifier", classes)

    def check(self) -> None:
        from workers.models import checkpoints

        self._require_known()
        if self.checkpoint is not None:
            checkpoints.check(self.checkpoint)

    def build(self) -> nn.Module:
        """The architecture with initial weights drawn from torch's global generator. Raises: ConfigError for arguments it does not take."""
        import torch
        from torchvision import models

        self._require_known()
        arguments = ({"aux_logits": False, "init_weights": True} if self.name in AUXILIARY else {}) | self.arguments
        device = torch.get_default_device()
        with torch.device("cpu" if self.name.startswith("regnet") else device):  # RegNets compute their widths with tensors
            model = library.created(self.name, self.arguments, lambda: models.get_model(self.name, weights=None, **arguments))
        return model.to(device)

    def layers(self, model: nn.Module) -> list[Layer]:
        every = _matrices(model)
        ends = {next(iter(every)), *_heads(model)}
        return library.chosen(every, set() if self.stem_and_head else ends, self.include, self.exclude, self.name)

    def groups(self, model: nn.Module, input_shape: tuple[int, int, int]) -> list[Group]:
        """Hidden neurons of transformers as written down here; of all others as traced. The classifier's outputs stay."""
        import torch
        from torchvision.models import SwinTransformer, VisionTransformer

        if isinstance(model, VisionTransformer | SwinTransformer):
            from workers.models.structures_mlp import mlp_groups

            return mlp_groups(model)
        from workers.models.structures_traced import traced_groups

        device = next(model.parameters()).device
        return traced_groups(model, torch.zeros(1, *input_shape, device=device), _heads(model))

    def pretrained_state(self) -> dict[str, Tensor] | None:
        """The checkpoint's tensors under the names and in the types of ``build()``. Raises: ConfigError if one does not fit."""
        return library.pretrained_state(self, _heads)

    def weights_fingerprint(self) -> str:
        from workers.models import checkpoints

        return checkpoints.fingerprint(self.checkpoint)

    @property
    def output(self) -> Output:
        return Output.LOGITS

    def _require_known(self) -> None:
        """Raise ``ConfigError``, with suggestions, if torchvision has no classifier of this name."""
        import torchvision
        from torchvision import models

        known = models.list_models(module=models)
        if self.name not in known:
            listing = "torchvision.models.list_models(module=torchvision.models)"
            raise library.unknown(self.name, f"torchvision {torchvision.__version__}", known, listing)


def _matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Without the output projections of ``nn.MultiheadAttention``, which are never called as modules."""
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    every = library.matrices(model)
    return {name: module for name, module in every.items() if not isinstance(module, NonDynamicallyQuantizableLinear)}


def _heads(model: nn.Module) -> set[str]:
    """The layer that yields class scores: in all of torchvision's classifiers the one defined last."""
    return {list(_matrices(model))[-1]}
