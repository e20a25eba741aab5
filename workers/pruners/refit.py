"""How the weights that a mask keeps are fitted: each layer for itself, or one layer after another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from workers.checks import require
from workers.models.base import Layer

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


class Order(Enum):
    """The order in which layers are fitted."""

    PARALLEL = "parallel"  # all at once, by the pruner's own statistic of the dense model
    SEQUENTIAL = "sequential"  # then once more in the order of the forward pass, on the inputs that the pruned layers before give


@dataclass
class Refit:
    """How the kept weights are fitted. All but ``order`` counts for a sequential order alone.

    With inputs x of the pruned and y of the dense model, the weights w' of a row minimise

        sum_t (w' x_t - w (a y_t + (1 - a) x_t))^2 / N + lambda |w' - w|^2          w' = 0 outside of the mask

    where ``a`` is ``dense_share`` and lambda is ``dampening`` times the mean of ``x^2``. With a > 0, a layer makes up for errors of the
    layers before it. With a = 1, it does so as far as the calibration data allow, which fits their noise as well.
    ``samples`` of the calibration data are used. ``stages`` is the largest number of parts of the model that are fitted one after another;
    layers of a part are fitted at once.
    Source: Frantar & Alistarh 2022 (OBC), section 4 (sequential); Li et al. 2025 (GPTAQ, arXiv 2504.02692) for outputs of the dense model.
    """

    order: Order = Order.PARALLEL
    dense_share: float = 0.5
    dampening: float = 0.01
    samples: int = 2048
    stages: int = 16

    def __post_init__(self) -> None:
        require(0 <= self.dense_share <= 1, "pruner.refit.dense_share", "a fraction from 0 to 1", self.dense_share)
        require(self.dampening > 0, "pruner.refit.dampening", "a positive number", self.dampening, "common values are 1e-3 to 1e-1")
        require(self.samples >= 1, "pruner.refit.samples", "at least 1", self.samples, "thousands are usual")
        require(self.stages >= 1, "pruner.refit.stages", "at least 1", self.stages)

    @property
    def is_sequential(self) -> bool:
        return self.order is Order.SEQUENTIAL


def refit_layer(weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor, refit: Refit) -> Tensor:
    """Returns the weights of a layer, fitted to paired inputs (see ``Refit``). ``weight_RC`` are those of the dense model.

    Raises: SecateurError that names the layer if no input was finite, or the moments cannot be factored.
    """
    import torch

    from kernels.patterns import FREE
    from workers.pruners import obs
    from workers.pruners.layout import Layout

    curvature = obs.layer_hessian(Layout(layer, layer.columns, FREE), moments, refit.dampening, relative=True)
    slopes = []
    for index, rows_SC in enumerate(weight_RC.double().chunk(layer.groups)):
        part = slice(index, index + 1)
        difference_CC = curvature.moments.cross_nBB(part)[0].double() - curvature.moments.mean_nBB(part)[0].double()
        slopes.append(refit.dense_share * (rows_SC @ difference_CC))
    return obs.solve_layer(weight_RC, curvature, keep_RC, torch.cat(slopes))
