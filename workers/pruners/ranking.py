"""The ranking of units by score."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.pruners.units import Ranking


def by_score(score_S: Tensor, notes: dict[str, float]) -> Ranking:
    """Returns the ranking by rising score. Units of equal score are removed in the order of the model."""
    return Ranking(torch.argsort(score_S, stable=True), score_S, notes)
