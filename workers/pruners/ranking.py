"""From scores of units to the order in which they go."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.pruners.units import Ranking


def by_score(score_S: Tensor, notes: dict[str, float]) -> Ranking:
    """The smallest first; among equal ones those that come first in the model."""
    return Ranking(torch.argsort(score_S, stable=True), score_S, notes)
