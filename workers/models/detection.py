"""torchvision's single-shot detectors, pruned at the level of their convolutions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import require
from workers.models import library
from workers.models.base import Layer, ModelFamily, Output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.structure import Group

NAMES = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large")
ARGUMENTS = ("num_classes", "score_thresh", "nms_thresh", "detections_per_img", "topk_candidates", "iou_thresh", "positive_fraction")


@dataclass
class DetectionModel(ModelFamily):
    """SSD or SSDlite of ``torchvision.models.detection`` by name, with the keyword arguments of its builder.

    Backbone, extra layers and the depthwise layers of heads can be pruned; what leaves the heads stays. ``num_classes`` counts the
    background, as in torchvision. ``label_loss`` of the built ``Detector`` is torchvision's own.
    """

    name: str
    arguments: dict[str, Any]
    image_size: int  # pixels, of square images; default boxes follow from it
    checkpoint: str | None  # .safetensors, .pt, .pth, .bin; null: train from the initial weights
    include: list[str]
    exclude: list[str]
    stem_and_head: bool = field(default=False)

    selects: ClassVar[tuple[str, ...]] = ("include", "exclude", "stem_and_head")

    def __post_init__(self) -> None:
        library.check_settings(self.include, self.arguments, ())
        for argument, value in self.arguments.items():  # the builders take any, and leave aside what they do not know
            require(argument in ARGUMENTS, f"model.arguments.{argument}", f"one of {', '.join(ARGUMENTS)}", value)
        require(self.image_size >= 32, "model.image_size", "at least 32 pixels", self.image_size)
        classes = self.arguments.get("num_classes", 91)
        require(classes >= 2, "model.arguments.num_classes", "at least 2: the background and a class", classes)

    def check(self) -> None:
        from workers.models import checkpoints

        self._require_known()
        if self.checkpoint is not None:
            checkpoints.check(self.checkpoint)

    def build(self) -> nn.Module:
        """A ``Detector`` with initial weights drawn from torch's global generator. Raises: ConfigError for values it does not take."""
        from torchvision import models

        from workers.models.detector import Detector

        self._require_known()
        nothing: dict[str, Any] = {"weights": None, "weights_backbone": None}

        def create() -> nn.Module:
            return Detector(models.get_model(self.name, **nothing, **self.arguments), self.image_size)

        return library.created(self.name, self.arguments, create)

    def layers(self, model: nn.Module) -> list[Layer]:
        every = library.matrices(model)
        ends = {next(iter(every)), *_outputs(model)}
        return library.chosen(every, set() if self.stem_and_head else ends, self.include, self.exclude, self.name)

    def groups(self, model: nn.Module, input_shape: tuple[int, int, int]) -> list[Group]:
        import torch

        from workers.models.structures_traced import traced_groups

        device = next(model.parameters()).device
        return traced_groups(model, torch.zeros(1, *input_shape, device=device), _outputs(model))

    def pretrained_state(self) -> dict[str, Tensor] | None:
        """The checkpoint's tensors under the names and in the types of ``build()``. Raises: ConfigError if one does not fit."""
        return library.pretrained_state(self, _outputs)

    def weights_fingerprint(self) -> str:
        from workers.models import checkpoints

        return checkpoints.fingerprint(self.checkpoint)

    @property
    def has_features(self) -> bool:
        return True

    @property
    def fixed_size(self) -> int:
        return self.image_size

    @property
    def output(self) -> Output:
        return Output.BOXES

    def _require_known(self) -> None:
        import torchvision

        if self.name not in NAMES:
            raise library.unknown(self.name, f"torchvision {torchvision.__version__} for single-shot detection", NAMES, " and ".join(NAMES))


def _outputs(model: nn.Module) -> set[str]:
    """The layers that yield offsets and class scores: in each branch of the heads, the last ones to be applied."""
    last: dict[str, str] = {}
    for name in library.matrices(model):
        if name.startswith("head."):
            last[".".join(name.split(".")[:4])] = name  # head.classification_head.module_list.3
    return set(last.values())
