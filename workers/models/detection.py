"""The model family of torchvision's single-shot detectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workers.checks import require
from workers.models import library
from workers.models.base import Output

if TYPE_CHECKING:
    from torch import nn

NAMES = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large")
ARGUMENTS = ("num_classes", "score_thresh", "nms_thresh", "detections_per_img", "topk_candidates", "iou_thresh", "positive_fraction")


@dataclass
class DetectionModel(library.LibraryModel):
    """SSD or SSDlite of ``torchvision.models.detection`` by name, with the keyword arguments of its builder.

    The backbone, the extra layers and the depthwise layers of the heads can be pruned; the layers that produce the outputs are not.
    ``num_classes`` includes the background, as in torchvision. The ``label_loss`` of the built ``Detector`` is torchvision's own.
    """

    image_size: int = field(kw_only=True)  # pixels, side of the square images; the default boxes depend on it

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, ())
        for argument, value in self.arguments.items():  # the builders accept and ignore unknown arguments
            require(argument in ARGUMENTS, f"model.arguments.{argument}", f"one of {', '.join(ARGUMENTS)}", value)
        require(self.image_size >= 32, "model.image_size", "at least 32 pixels", self.image_size)
        classes = self.arguments.get("num_classes", 91)
        require(classes >= 2, "model.arguments.num_classes", "at least 2, since the background is a class", classes)

    def build(self) -> nn.Module:
        """Returns a ``Detector`` with weights drawn from torch's global generator. Raises: ConfigError for invalid arguments."""
        from torchvision import models

        from workers.models.detector import Detector

        self.require_known()
        untrained: dict[str, Any] = {"weights": None, "weights_backbone": None}

        def create() -> nn.Module:
            return Detector(models.get_model(self.name, **untrained, **self.arguments), self.image_size)

        return library.built(self.name, self.arguments, create)

    def heads(self, model: nn.Module) -> set[str]:
        """Returns the layers that produce offsets and class scores: the last one in each branch of the heads."""
        last: dict[str, str] = {}
        for name in self.matrices(model):
            if name.startswith("head."):
                last[".".join(name.split(".")[:4])] = name  # head.classification_head.module_list.3
        return set(last.values())

    @property
    def has_features(self) -> bool:
        return True

    @property
    def fixed_size(self) -> int:
        return self.image_size

    @property
    def output(self) -> Output:
        return Output.BOXES

    def require_known(self) -> None:
        import torchvision

        if self.name not in NAMES:
            raise library.unknown(self.name, f"torchvision {torchvision.__version__} for single-shot detection", NAMES, " and ".join(NAMES))
