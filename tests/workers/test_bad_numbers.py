"""Statistics that are singular, zero or too large: pruners end right, or in a line that names the layer."""

import copy
from pathlib import Path

import pytest
import torch
from test_pruners import CONV, LINEAR, a_problem, pruned, pruners
from torch import Tensor, nn

from kernels.patterns import FREE
from kernels.second_moment import SecondMoment
from workers import evaluation
from workers.collect.base import Collected
from workers.collect.moments import finish_moment
from workers.collect.paired_inputs import paired_inputs
from workers.collect.statistic import BlockFisher, GuidedHessian, LayerHessian
from workers.data.base import Batch
from workers.errors import SecateurError
from workers.losses import Loss
from workers.models.base import Layer
from workers.precision import Precision, in_precision
from workers.pruners.guided import Guided
from workers.pruners.refit import Order, Refit, refit_layer
from workers.records import Destination, PairedInputs, PartialMoment

PRUNERS = {f"{type(pruner).__name__} {number}": number for number, pruner in enumerate(pruners("unstructured", 0.5))}


def moments_of(rank: int, like: SecondMoment) -> SecondMoment:
    """Of so few vectors that the matrices are singular, or of vectors that are all zero."""
    blocks, size, _ = like.sum_nBB.shape
    factor = torch.randn(blocks, size, rank, generator=torch.Generator().manual_seed(1))
    rows_R = None if like.rows_R is None else like.rows_R * bool(rank)
    return SecondMoment(factor @ factor.mT, 40, rows_R)


@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=lambda layer: layer.name)
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("rank", [0, 1], ids=["all inputs are zero", "all inputs are equal"])
def test_a_singular_statistic_gives_finite_weights_and_the_asked_sparsity(rank: int, name: str, layer: Layer) -> None:
    """One image for everything, black images, or a layer that nothing reaches."""
    pruner = pruners("unstructured", 0.5)[PRUNERS[name]]
    weight_RC, moments = a_problem(pruner, layer)
    moments = None if moments is None else moments_of(rank, moments)
    sensitivity, solution = pruned(pruner, layer, weight_RC, moments, layer.weights // 2)
    assert torch.isfinite(solution.weight_RC).all() and int((~solution.keep_RC).sum()) == layer.weights // 2
    assert not solution.weight_RC[~solution.keep_RC].any()
    if rank == 0 and moments is not None:
        assert torch.equal(solution.weight_RC, weight_RC * solution.keep_RC), "what multiplies zeros needs no fit"
        assert ("vanishing" in sensitivity.notes) == (type(pruner).__name__ not in ("Wanda", "SparseGPT"))


@pytest.mark.parametrize("name", PRUNERS)
def test_a_layer_of_zeros_has_nothing_to_remove_and_stays_zero(name: str) -> None:
    pruner = pruners("unstructured", 0.5)[PRUNERS[name]]
    weight_RC, moments = a_problem(pruner, LINEAR)
    sensitivity, solution = pruned(pruner, LINEAR, torch.zeros_like(weight_RC), moments, 0)
    assert torch.isinf(sensitivity.score_nG).all() and not solution.weight_RC.any() and not solution.keep_RC.any()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_refit_to_inputs_that_are_all_equal_is_finite(rank: int) -> None:
    like = SecondMoment(torch.zeros(1, LINEAR.columns, LINEAR.columns), 1)
    sums = moments_of(rank, like)
    pairs = SecondMoment(sums.sum_nBB, sums.count, cross_sum_nBB=0.9 * sums.sum_nBB)
    keep_RC, weight_RC = torch.rand(6, 24) > 0.5, torch.randn(6, 24)
    fitted_RC = refit_layer(weight_RC, LINEAR, pairs, keep_RC, Refit(Order.SEQUENTIAL, 0.5, 0.01, 64, 2))
    assert torch.isfinite(fitted_RC).all() and not fitted_RC[~keep_RC].any()


# --- sums that float32 does not hold


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.second(self.first(images_NCHW.flatten(1)))


LAYERS = [Layer("first", 6, 8), Layer("second", 3, 6)]


def batches(scale: float) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [Batch(scale * torch.randn(4, 2, 2, 2, generator=draw), torch.arange(4) % 3) for _ in range(2)]


def stored(collected: Collected, folder: Path, layer: str) -> PartialMoment:
    return finish_moment(Destination(layer, folder / layer), PartialMoment, 0, layer, collected, 0.0).numbers


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("statistic", [BlockFisher(4, FREE), LayerHessian(FREE), GuidedHessian(1, FREE)], ids=lambda s: type(s).__name__)
def test_sums_that_overflow_name_the_layer_and_are_not_stored(
    statistic: BlockFisher | LayerHessian | GuidedHessian, precision: Precision, tmp_path: Path
) -> None:
    """Inputs of 1e20 have outer products of 1e40, which are infinite in float32 though every batch is finite."""
    torch.manual_seed(0)
    model = Net()

    def collected(scale: float) -> Collected:
        return statistic.collect(in_precision(copy.deepcopy(model), precision), LAYERS, iter(batches(scale)), Loss.LABELS, 0)

    with pytest.raises(
        SecateurError, match=r"first: expected sums .* of at most 1e\+34.* got larger ones; normalise the images"
    ) as refused:
        stored(collected(1e20), tmp_path / "huge", "first")
    assert "\n" not in str(refused.value) and not list(tmp_path.rglob("*.*"))
    assert stored(collected(1e3), tmp_path / "large", "first").count > 0


def test_sums_of_pairs_that_overflow_name_the_layer(tmp_path: Path) -> None:
    collected = paired_inputs(Net(), Net(), LAYERS, iter(batches(1e20)), Loss.LABELS, 64)
    with pytest.raises(SecateurError, match="first: expected sums"):
        finish_moment(Destination("first", tmp_path / "first"), PairedInputs, 0, "first", collected, 0.0)


def test_weights_that_are_counted_by_a_sum_of_zero_are_told_apart() -> None:
    """A statistic of zero says nothing: the pruner notes it, and the largest weights stay."""
    pruner = next(each for each in pruners("unstructured", 0.5) if isinstance(each, Guided))
    weight_RC, moments = a_problem(pruner, LINEAR)
    assert moments is not None and "vanishing" not in pruner.score(weight_RC, LINEAR, moments).notes
    zero = SecondMoment(torch.zeros_like(moments.sum_nBB), 40, torch.zeros_like(moments.rows_R))
    assert pruner.score(weight_RC, LINEAR, zero).notes["vanishing"] == 1.0


# --- outputs


def test_outputs_that_are_not_finite_are_counted_by_images() -> None:
    outputs_ND = torch.zeros(5, 3)
    evaluation.require_finite(outputs_ND, "test")
    outputs_ND[1, 2], outputs_ND[3, :] = torch.nan, torch.inf
    with pytest.raises(SecateurError, match=r"evaluate: expected finite outputs, got NaN or infinity for 2 of 5 test images; check"):
        evaluation.require_finite(outputs_ND, "test")
