"""The family of a model of another family with some groups made wider, so that a narrow group is no bottleneck for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import require
from workers.errors import ConfigError
from workers.models.base import Layer, ModelFamily, Output

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_IMAGE = 2**24  # a forward pass of it takes a few gigabytes


@dataclass
class WidenedModel(ModelFamily):
    """The model that ``family`` builds with ``settings``, with the groups that match a pattern (see ``mode=structure``) made wider.

    The first matching pattern decides the factor of a group; other groups do not change. The initial weights of a larger tensor are drawn
    with replacement from its original ones, so they have the same distribution. A widened model has no checkpoint and must be trained.
    """

    checkpoint: str | None
    family: str  # class of the family, such as workers.models.timm.TimmModel
    settings: dict[str, Any]  # of that family
    widths: dict[str, float]  # factor for the number of units, by pattern of group names
    input_shape: list[int]  # channels, height and width of the images, to find the groups

    selects: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        require(self.checkpoint is None, "model.checkpoint", "null, since a widened model is trained in the run", self.checkpoint)
        require(bool(self.widths), "model.widths", "at least one pattern of groups and its factor", self.widths, '"blocks.5.*": 2.0')
        for pattern, factor in self.widths.items():
            require(factor >= 1.0, f"model.widths[{pattern}]", "a factor of at least 1", factor)
        sides = len(self.input_shape) == 3 and min(self.input_shape) >= 1 and math.prod(self.input_shape) <= LARGEST_IMAGE
        require(sides, "model.input_shape", f"channels, height and width of an image of at most {LARGEST_IMAGE} numbers", self.input_shape)

    @property
    def narrow(self) -> ModelFamily:
        """The original family."""
        from workers.export import family_of

        return family_of(self.family, {"checkpoint": None} | self.settings)

    def check(self) -> None:
        self.narrow.check()

    def build(self) -> nn.Module:
        from workers.models.resize import resize_

        model = self.narrow.build()
        before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        shapes, sizes, narrow = self._wider(model, before)
        resize_(model, shapes, sizes, narrow)
        state = model.state_dict()
        for name in shapes:
            state[name].copy_(_drawn(before[name], state[name].shape))
        return model

    def layers(self, model: nn.Module) -> list[Layer]:
        return self.narrow.layers(model)

    def pretrained_state(self) -> dict[str, Tensor] | None:
        return None

    def weights_fingerprint(self) -> str:
        raise NotImplementedError("a widened model has no checkpoint")

    @property
    def has_features(self) -> bool:
        return self.narrow.has_features

    @property
    def has_loss(self) -> bool:
        return self.narrow.has_loss

    @property
    def fixed_size(self) -> int | None:
        return self.narrow.fixed_size

    @property
    def output(self) -> Output:
        return self.narrow.output

    def _wider(self, model: nn.Module, before: dict[str, Tensor]) -> tuple[dict[str, Sequence[int]], dict[str, int], dict[str, list[int]]]:
        """Returns the new shapes of larger tensors, and the sizes and narrow modules for ``resize_``.

        Raises: ConfigError if a pattern matches no group.
        """
        from workers.models.resize import number_of
        from workers.models.structures.find import find_groups

        channels, height, width = self.input_shape
        groups = find_groups(self.narrow, (channels, height, width), streams=True)
        for pattern in self.widths:
            if not any(fnmatchcase(group.name, pattern) for group in groups):
                names = ", ".join(group.name for group in groups[:3])
                raise ConfigError(f"model.widths: {pattern!r} matches none of the {len(groups)} groups ({names}, …)")
        shapes: dict[str, list[int]] = {}
        sizes: dict[str, int] = {}
        narrow: dict[str, list[int]] = {}
        for group in groups:
            factor = next((factor for pattern, factor in self.widths.items() if fnmatchcase(group.name, pattern)), 1.0)
            more = round(factor * group.units) - group.units
            for part in group.slices if more else ():
                shape = shapes.setdefault(part.tensor, list(before[part.tensor].shape))
                shape[part.dim] += more * part.index_UK.shape[1]
            for size in group.sizes if more else ():
                sizes[size.name] = sizes.get(size.name, number_of(model, size.name)) + more * size.of_unit
            narrow |= {name: [group.units + more, group.units] for name in group.narrow if more}
        return {name: tuple(shape) for name, shape in shapes.items()}, sizes, narrow


def _drawn(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns a tensor of entries of ``values``, drawn with torch's global generator."""
    import torch

    if values.is_meta:
        return torch.empty(tuple(shape), device="meta")
    flat = values.reshape(-1)
    return flat[torch.randint(len(flat), tuple(shape))]
