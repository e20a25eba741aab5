"""What the pipeline asks of a family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn


class Output(Enum):
    """What a module yields for N images."""

    LOGITS = "logits"  # scores of D classes, (N, D)
    FEATURES = "features"  # a vector, (N, D): a model without a classifier
    BOXES = "boxes"  # offsets and class scores of A default boxes, (N, A, 4 + D)


@dataclass(frozen=True)
class Layer:
    """One prunable matrix.

    ``name`` is the module's dotted name (its weight is ``name + ".weight"``), ``rows`` its outputs, ``columns`` its inputs
    (a convolution is flattened to ``in_channels / groups * kh * kw``). ``kernel`` is ``kh * kw``, ``groups`` those of the convolution:
    rows of one group see the same inputs.
    """

    name: str
    rows: int
    columns: int
    kernel: int = 1
    groups: int = 1

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass
class ModelFamily(ABC):
    """A way to build a model and to name its prunable layers. Its fields are its settings: plain values only."""

    checkpoint: str | None  # where the weights come from; None: the dense model is trained here

    selects: ClassVar[tuple[str, ...]] = ()  # fields that choose what is pruned and leave the weights as they are

    @abstractmethod
    def check(self) -> None:
        """Raise ``ConfigError`` if this model cannot be built or its checkpoint cannot be read. Must be cheap: nothing is built."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The architecture, with whatever initial weights it draws; honours ``torch.device("meta")``. Never downloads."""

    @abstractmethod
    def layers(self, model: nn.Module) -> list[Layer]:
        """The prunable layers in forward (definition) order. Raises ``ConfigError`` if a pattern matches nothing."""

    @abstractmethod
    def pretrained_state(self) -> dict[str, Tensor] | None:
        """State dict of the checkpoint, fitting ``build()`` exactly, or None if the model is to be trained here.

        Raises ``ConfigError`` naming the tensor and both shapes when the checkpoint does not fit.
        """

    def pretrained_masks(self) -> dict[str, Tensor]:
        """Of the checkpoint's layers that are known to be pruned, by name: True where a weight survives."""
        return {}

    def pretrained_notes(self) -> list[str]:
        """What ``pretrained_state`` left out of the checkpoint, a sentence each for the report."""
        return []

    @abstractmethod
    def weights_fingerprint(self) -> str:
        """Digest of the checkpoint's bytes. Only called when there is a checkpoint."""

    @property
    def stored(self) -> ModelFamily:
        """The family as model files name it: its settings alone say how to build it."""
        return self

    @property
    def has_features(self) -> bool:
        """Whether the module has timm's ``forward_features`` and ``get_classifier``, which losses of features look at."""
        return False

    @property
    def fixed_size(self) -> int | None:
        """The side in pixels of the square images that the module is made for; None: it says itself which ones fit."""
        return None

    @property
    @abstractmethod
    def output(self) -> Output:
        """What the module yields."""
