"""Any torchvision classifier, pruned at the level of its Linear and Conv2d layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.checks import require
from workers.models import library
from workers.models.base import Output

if TYPE_CHECKING:
    from torch import nn


RESERVED = ("weights", "progress", "pretrained", "aux_logits")
AUXILIARY = {"googlenet", "inception_v3"}  # have classifiers on the way that only torchvision's own training uses


@dataclass
class TorchvisionModel(library.LibraryModel):
    """A classifier of ``torchvision.models`` by name, with the keyword arguments of its builder.

    **Which layers are prunable.** As in ``TimmModel``; stem and head are the first convolution and the last ``Linear`` or ``Conv2d``. The
    attention of ``vit_*`` stays dense: ``nn.MultiheadAttention`` holds its weights as raw parameters and hands them to a fused kernel.
    timm's ViTs have them in ``Linear`` layers.

    **Differs from torchvision.** GoogLeNet and Inception are built without their auxiliary classifiers, whose tensors in a checkpoint are
    ignored. Their released weights also want ``transform_input: true``, which torchvision sets by itself when it downloads them.
    """

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, RESERVED)
        classes = self.arguments.get("num_classes", 1)
        require(classes >= 1, "model.arguments.num_classes", "at least 1, since torchvision has no models without a classifier", classes)

    def build(self) -> nn.Module:
        """The architecture with initial weights drawn from torch's global generator. Raises: ConfigError for arguments it does not take."""
        import torch
        from torchvision import models

        self.require_known()
        arguments = ({"aux_logits": False, "init_weights": True} if self.name in AUXILIARY else {}) | self.arguments
        device = torch.get_default_device()
        with torch.device("cpu" if self.name.startswith("regnet") else device):  # RegNets compute their widths with tensors
            model = library.created(self.name, self.arguments, lambda: models.get_model(self.name, weights=None, **arguments))
        return model if device.type == "cpu" else model.to(device)

    def matrices(self, model: nn.Module) -> dict[str, nn.Module]:
        """Without the output projections of ``nn.MultiheadAttention``, which are never called as modules."""
        from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

        every = super().matrices(model)
        return {name: module for name, module in every.items() if not isinstance(module, NonDynamicallyQuantizableLinear)}

    def heads(self, model: nn.Module) -> set[str]:
        """The layer that yields class scores: in all of torchvision's classifiers the one defined last."""
        return {list(self.matrices(model))[-1]}

    @property
    def output(self) -> Output:
        return Output.LOGITS

    def require_known(self) -> None:
        import torchvision
        from torchvision import models

        known = models.list_models(module=models)
        if self.name not in known:
            listing = "torchvision.models.list_models(module=torchvision.models)"
            raise library.unknown(self.name, f"torchvision {torchvision.__version__}", known, listing)
