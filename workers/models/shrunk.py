"""The family of a model of another family from which units were removed."""

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
    """The model that ``family`` builds with ``settings``, with smaller tensors.

    ``shapes`` are those of the smaller tensors, ``sizes`` the numbers that modules keep beside their tensors, and ``narrow`` the heads that
    are kept in narrow modules (see ``resize_``). Together they define the architecture.
    """

    checkpoint: str | None
    family: str
    settings: dict[str, Any]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    narrow: dict[str, list[int]] = field(default_factory=dict)

    @property
    def dense(self) -> ModelFamily:
        """The family of the model before anything was removed."""
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
    def has_loss(self) -> bool:
        return self.dense.has_loss

    @property
    def fixed_size(self) -> int | None:
        return self.dense.fixed_size

    @property
    def output(self) -> Output:
        return self.dense.output


def shrunk(
    family: ModelFamily, before: Mapping[str, Tensor], after: Mapping[str, Tensor], groups: Sequence[Group], kept: Mapping[str, Tensor]
) -> ShrunkModel:
    """Returns the family of a model built by ``family`` after its tensors changed from ``before`` to ``after``.

    ``kept`` says which units of ``groups`` are kept in ``after``.
    """
    import torch

    from workers.export import target_of
    from workers.models.structures.groups import Remainder, remainder

    family, rest = family.stored, Remainder()
    if any(group.sizes or group.narrow or group.running for group in groups):
        with torch.device("meta"):
            rest = remainder(family.build(), groups, kept)
    shapes = {name: list(after[name].shape) for name, tensor in before.items() if tensor.shape != after[name].shape} | rest.shapes
    if isinstance(family, ShrunkModel):
        return replace(family, shapes=family.shapes | shapes, sizes=family.sizes | rest.sizes, narrow=family.narrow | rest.narrow)
    return ShrunkModel(None, target_of(family), asdict(family) | {"checkpoint": None}, shapes, rest.sizes, rest.narrow)
