"""The model family of all torchvision classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.checks import require
from workers.models import hub, library
from workers.models.base import Output

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


RESERVED = ("weights", "progress", "pretrained", "aux_logits")
AUXILIARY = {"googlenet", "inception_v3"}  # have auxiliary classifiers, which only torchvision's own training uses


@dataclass
class TorchvisionModel(library.LibraryModel):
    """A classifier of ``torchvision.models`` by name, with the keyword arguments of its builder.

    **Prunable layers.** As in ``TimmModel``; the stem is the first convolution and the head the last ``Linear`` or ``Conv2d``. The
    attention of ``vit_*`` remains dense, since ``nn.MultiheadAttention`` holds its weights as raw parameters and passes them to a fused
    kernel. timm's ViTs have ``Linear`` layers instead.

    **Differs from torchvision.** GoogLeNet and Inception are built without auxiliary classifiers, whose tensors in checkpoints are ignored.
    Their released weights need ``transform_input: true``, which torchvision sets when it downloads them.
    """

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, RESERVED)
        classes = self.arguments.get("num_classes", 1)
        require(classes >= 1, "model.arguments.num_classes", "at least 1, since torchvision has no models without a classifier", classes)

    def build(self) -> nn.Module:
        """Returns the architecture with weights drawn from torch's global generator. Raises: ConfigError for invalid arguments."""
        import torch
        from torchvision import models

        self.require_known()
        arguments = ({"aux_logits": False, "init_weights": True} if self.name in AUXILIARY else {}) | self.arguments
        device = torch.get_default_device()
        with torch.device("cpu" if self.name.startswith("regnet") else device):  # RegNets compute their widths from values of tensors
            model = library.built(self.name, self.arguments, lambda: models.get_model(self.name, weights=None, **arguments))
        return model if device.type == "cpu" else model.to(device)

    def released_file(self) -> Path:
        from torchvision import models

        return hub.download(models.get_model_weights(self.name)["DEFAULT"].url)

    def heads(self, model: nn.Module) -> set[str]:
        """Returns the layer that produces class scores, which is defined last in all classifiers of torchvision."""
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
