"""The interface of a family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn


class Output(Enum):
    """The output of a module for N images."""

    LOGITS = "logits"  # scores of D classes, (N, D)
    FEATURES = "features"  # a vector, (N, D): a model without a classifier
    BOXES = "boxes"  # offsets and class scores of A default boxes, (N, A, 4 + D)


@dataclass(frozen=True)
class Layer:
    """One prunable matrix.

    ``name`` is the module's dotted name (its weight is ``name + ".weight"``), ``rows`` the number of outputs and ``columns`` that of inputs
    (a convolution is flattened to ``in_channels / groups * kh * kw``). ``kernel`` is ``kh * kw``. ``groups`` are those of the convolution:
    rows of one group read the same inputs.
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
    """A way to build a model and to name its prunable layers. Its fields are its settings, and hold plain values only."""

    checkpoint: str | None  # the source of the weights; None: the dense model is trained in the run

    selects: ClassVar[tuple[str, ...]] = ()  # fields that choose what is pruned and do not change the weights

    @abstractmethod
    def check(self) -> None:
        """Raises ``ConfigError`` if this model cannot be built or its checkpoint cannot be read. Must be fast: nothing is built."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns the architecture with its own initial weights. Supports ``torch.device("meta")``; must not download anything."""

    @abstractmethod
    def layers(self, model: nn.Module) -> list[Layer]:
        """Returns the prunable layers in the order of definition. Raises ``ConfigError`` if a pattern matches nothing."""

    @abstractmethod
    def pretrained_state(self) -> dict[str, Tensor] | None:
        """Returns the state dict of the checkpoint, which fits ``build()`` exactly; None if the model is to be trained.

        Raises ``ConfigError`` that names the tensor and both shapes if the checkpoint does not fit.
        """

    def pretrained_masks(self) -> dict[str, Tensor]:
        """Returns the masks of the checkpoint's layers that are known to be pruned, by name: True where a weight is kept."""
        return {}

    def pretrained_notes(self) -> list[str]:
        """Returns sentences for the report about what ``pretrained_state`` did not take from the checkpoint."""
        return []

    @abstractmethod
    def weights_fingerprint(self) -> str:
        """Returns a digest of the checkpoint's bytes. Only called if there is a checkpoint."""

    @property
    def stored(self) -> ModelFamily:
        """The family that model files name, which can be built from its settings alone."""
        return self

    @property
    def has_features(self) -> bool:
        """Whether the module has timm's ``forward_features`` and ``get_classifier``, which losses of features need."""
        return False

    @property
    def has_loss(self) -> bool:
        """Whether the module has a ``label_loss`` of its own, so that labels need not be classes."""
        return self.output is Output.BOXES

    @property
    def fixed_size(self) -> int | None:
        """The side in pixels of the square images that the module requires; None if the module accepts several sizes."""
        return None

    @property
    @abstractmethod
    def output(self) -> Output:
        """The kind of output of the module."""
