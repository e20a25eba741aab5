"""A model of another family with structures taken out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workers.models.base import Layer, ModelFamily, Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from workers.models.structures.groups import Group


@dataclass
class ShrunkModel(ModelFamily):
    """What ``family`` with its ``settings`` builds, with some tensors of other ``shapes``, numbers that modules keep beside their tensors
    (``sizes``) and heads that are left in ``narrow`` modules (see ``resize_``): all that there is to say of the architecture."""

    checkpoint: str | None
    family: str
    settings: dict[str, Any]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    narrow: dict[str, list[int]] = field(default_factory=dict)

    @property
    def dense(self) -> ModelFamily:
        """The family before anything was taken out."""
        from workers.export import family_of

        return family_of(self.family, self.settings)

    def check(self) -> None:
        self.dense.check()

    def build(self) -> nn.Module:
        from workers.models.resize import resize_

        model = self.dense.build()
        resize_(model, self.shapes, self.sizes, self.narrow)
        return model

    def layers(self, model: nn.Module) -> list[Layer]:
        return self.dense.layers(model)

    def pretrained_state(self) -> dict[str, Tensor] | None:
        return None

    def weights_fingerprint(self) -> str:
        raise NotImplementedError("a shrunk model is never imported")

    @property
    def has_features(self) -> bool:
        return self.dense.has_features

    @property
    def fixed_size(self) -> int | None:
        return self.dense.fixed_size

    @property
    def output(self) -> Output:
        return self.dense.output


def shrunk(
    family: ModelFamily, before: Mapping[str, Tensor], after: Mapping[str, Tensor], groups: Sequence[Group], kept: Mapping[str, Tensor]
) -> ShrunkModel:
    """The family of a model built by ``family``, once its tensors are those of ``after`` instead of ``before``, which is when units of
    ``groups`` are left as ``kept`` says."""
    import torch

    from workers.export import target_of
    from workers.models.structures.groups import Remainder, remainder

    family, left = family.stored, Remainder()
    if any(group.sizes or group.narrow or group.running for group in groups):
        with torch.device("meta"):
            left = remainder(family.build(), groups, kept)
    shapes = {name: list(after[name].shape) for name, tensor in before.items() if tensor.shape != after[name].shape} | left.shapes
    if isinstance(family, ShrunkModel):
        return replace(family, shapes=family.shapes | shapes, sizes=family.sizes | left.sizes, narrow=family.narrow | left.narrow)
    return ShrunkModel(None, target_of(family), asdict(family) | {"checkpoint": None}, shapes, left.sizes, left.narrow)
