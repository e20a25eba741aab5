"""Runs whose numbers are bad: they end right, or in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from own_cases import SmallNet
from torch import Tensor

from orchestrator import prune
from workers.errors import SecateurError

IMAGES, LABELS = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10


def with_one(value: float) -> Tensor:
    images = IMAGES.clone()
    images[3, 0, 0, 0] = value
    return images


def nothing(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss that is exactly 0 whatever the outputs are."""
    return 0 * outputs.sum()


BAD: dict[str, tuple[Tensor, dict[str, Any], str]] = {
    "NaN in an image": (with_one(torch.nan), {"pruner": "magnitude"}, "evaluate: expected finite outputs, got NaN or infinity for 1 of 16"),
    "images of 1e20": (1e20 * IMAGES, {"pruner": "wanda"}, "expected sums over the calibration data of at most 1e+34"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_end_a_run_in_one_line(case: str, tmp_path: Path) -> None:
    images, arguments, words = BAD[case]
    with pytest.raises(SecateurError) as refused:
        prune(SmallNet(), [(images, LABELS)], sparsity=0.5, output=tmp_path, settings=["compare=false"], **arguments)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("pruner", "target"), [("guided", {"sparsity": 0.5}), ("taylor", {"removed": 0.2})])
def test_a_loss_that_is_always_zero_is_a_warning(pruner: str, target: dict[str, float], tmp_path: Path) -> None:
    """Without gradients, weights are ranked by their size and units by their order, which is not what was asked for."""
    pruned = prune(SmallNet(), [(IMAGES, LABELS)], pruner=pruner, loss=nothing, output=tmp_path, **target)
    (warning,) = pruned.report.warnings
    assert ("the statistic of every layer is zero" if pruner == "guided" else "the saliency of every unit is zero") in warning
    assert all(torch.isfinite(tensor).all() for tensor in pruned.model.state_dict().values())
