"""Every pruner against the formula of its paper, and all of them against the contract of a pruner."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from reference import literal_obs

from kernels.patterns import FREE
from kernels.second_moment import SecondMoment
from kernels.sweep import inverse_factor, sweep
from workers.collect.block_fisher import GradientSum
from workers.collect.guided_hessian import GuidedSum
from workers.collect.outer_sum import OuterSum
from workers.collect.statistic import BlockFisher, GuidedHessian
from workers.errors import ConfigError
from workers.losses import Loss
from workers.models.base import Layer
from workers.pruners.base import Scope, Sensitivity, Target, Unfit, WeightPruner
from workers.pruners.cap import CAP, Score
from workers.pruners.guided import Guided
from workers.pruners.magnitude import Magnitude
from workers.pruners.obc import OBC
from workers.pruners.sparsegpt import SparseGPT
from workers.pruners.static import quantiles
from workers.pruners.wanda import Wanda
from workers.pruners.woodfisher import WoodFisher

LINEAR = Layer("linear", 6, 24)
CONV = Layer("conv", 6, 72, kernel=9)
GROUPED = Layer("grouped", 6, 36, kernel=9, groups=3)
DAMPENING = 1e-3


def pruners(pattern: str, sparsity: float, scope: Scope = Scope.UNIFORM) -> list[WeightPruner]:
    target = Target(sparsity, scope, {}, pattern)
    for_all_patterns = [
        Magnitude(target),
        CAP(target, 8, DAMPENING, True, Score.HULL),
        WoodFisher(target, 8, DAMPENING, True),
        OBC(target, DAMPENING, True, Score.MARGINAL),
        Guided(target, 2, DAMPENING, True, Score.HULL, 2048),
        Guided(target, 2, DAMPENING, True, Score.HULL, 16),
    ]
    if pattern.startswith("groups"):
        return for_all_patterns
    return [*for_all_patterns, Wanda(target), SparseGPT(target, DAMPENING, True, 8)]


def a_problem(pruner: WeightPruner, layer: Layer, seed: int = 0, zeros: float = 0.0) -> tuple[torch.Tensor, SecondMoment | None]:
    """Random weights, some of them zero, and correlated second moments of the shape the pruner asks for."""
    generator = torch.Generator().manual_seed(seed)
    weight_RC = torch.randn(layer.rows, layer.columns, generator=generator)
    weight_RC[torch.rand(weight_RC.shape, generator=generator) < zeros] = 0
    if pruner.statistic is None:
        return weight_RC, None
    blocks, size = pruner.statistic.shape(layer)
    factor = torch.randn(blocks, size, 2 * size, generator=generator) @ torch.diag(torch.rand(2 * size, generator=generator))
    rows_R = torch.rand(layer.rows, generator=generator).double() if isinstance(pruner, Guided) else None
    return weight_RC, SecondMoment(factor @ factor.mT, 2 * size, rows_R)


def pruned(pruner: WeightPruner, layer: Layer, weight_RC: torch.Tensor, moments: SecondMoment | None, units: int) -> tuple:
    """The score and solve steps of a worker."""
    from kernels import masks, select

    sensitivity: Sensitivity = pruner.score(weight_RC, layer, moments)
    counts_n = select.select_smallest(sensitivity.score_nG, units).sum(1)
    keep_RC = ~pruner.layout(layer).join_tiles(masks.prefix_mask(sensitivity.order_nG, counts_n)) & (weight_RC != 0)
    return sensitivity, pruner.solve(weight_RC, layer, moments, keep_RC)


@pytest.mark.parametrize("layer", [LINEAR, CONV, GROUPED], ids=lambda layer: layer.name)
@pytest.mark.parametrize("number", range(8))
def test_exactly_as_many_weights_are_masked_as_requested_and_zeros_remain_zero(layer: Layer, number: int) -> None:
    pruner = pruners("unstructured", 0.5)[number]
    weight_RC, moments = a_problem(pruner, layer, zeros=0.2)
    zeros = int((weight_RC == 0).sum())
    _, solution = pruned(pruner, layer, weight_RC, moments, layer.weights // 2 - zeros)
    assert int((solution.weight_RC == 0).sum()) == layer.weights // 2
    assert torch.equal(solution.weight_RC != 0, solution.keep_RC)
    assert not solution.keep_RC[weight_RC == 0].any()


@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=lambda layer: layer.name)
@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize(("pattern", "keeps", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_every_bucket_along_the_input_channels_keeps_n_of_m(layer: Layer, number: int, pattern: str, keeps: int, of: int) -> None:
    pruner = pruners(pattern, 1 - keeps / of)[number]
    weight_RC, moments = a_problem(pruner, layer)
    removable = int(torch.isfinite(pruner.score(weight_RC, layer, moments).score_nG).sum())
    assert removable == layer.weights * (of - keeps) // of
    _, solution = pruned(pruner, layer, weight_RC, moments, removable)
    by_position = (solution.weight_RC != 0).reshape(layer.rows, -1, layer.kernel).transpose(1, 2)
    assert (by_position.reshape(-1, of).sum(1) == keeps).all()


@pytest.mark.parametrize("number", range(8))
def test_buckets_with_zeros_lose_only_the_rest(number: int) -> None:
    pruner = pruners("2:4", 0.5)[number]
    weight_RC, moments = a_problem(pruner, LINEAR, zeros=0.3)
    removable = int(torch.isfinite(pruner.score(weight_RC, LINEAR, moments).score_nG).sum())
    _, solution = pruned(pruner, LINEAR, weight_RC, moments, removable)
    alive_before = (weight_RC != 0).reshape(-1, 4).sum(1)
    assert torch.equal((solution.weight_RC != 0).reshape(-1, 4).sum(1), alive_before.clamp(max=2))


@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=lambda layer: layer.name)
@pytest.mark.parametrize("number", range(6))
def test_tiles_are_masked_as_a_whole(layer: Layer, number: int) -> None:
    pruner = pruners("groups:4", 0.5)[number]
    weight_RC, moments = a_problem(pruner, layer)
    _, solution = pruned(pruner, layer, weight_RC, moments, layer.weights // 8)
    by_position = (solution.weight_RC != 0).reshape(layer.rows, -1, layer.kernel).transpose(1, 2)
    counts = by_position.reshape(-1, 4).sum(1)
    assert set(counts.tolist()) == {0, 4} and int((counts == 0).sum()) == layer.weights // 8


def test_wanda_masks_the_smallest_products_of_each_row() -> None:
    pruner = Wanda(Target(0.5, Scope.UNIFORM))
    weight_RC, moments = a_problem(pruner, LINEAR, seed=1)
    _, solution = pruned(pruner, LINEAR, weight_RC, moments, LINEAR.weights // 2)
    product_RC = weight_RC.abs().double().numpy() * np.sqrt(np.diag(moments.sum_nBB[0].double().numpy()))
    for row, product_C in enumerate(product_RC):
        expected = np.sort(np.argsort(product_C)[:12])
        assert np.array_equal(np.flatnonzero(solution.weight_RC[row].numpy() == 0), expected)
    assert torch.equal(solution.weight_RC[solution.keep_RC], weight_RC[solution.keep_RC])


def test_woodfisher_ranks_by_the_loss_of_single_removals() -> None:
    pruner = pruners("unstructured", 0.5, Scope.GLOBAL)[2]
    weight_RC, moments = a_problem(pruner, LINEAR, seed=2)
    sensitivity, _ = pruned(pruner, LINEAR, weight_RC, moments, 10)
    mean = moments.sum_nBB.double().numpy() / moments.count
    absolute = DAMPENING * mean.diagonal(axis1=1, axis2=2).mean()
    inverse = np.linalg.inv(mean + absolute * np.eye(8))
    expected = weight_RC.double().numpy().reshape(-1, 8) ** 2 / (2 * inverse.diagonal(axis1=1, axis2=2))
    assert np.allclose(sensitivity.loss_nG.numpy().reshape(-1), expected.reshape(-1), rtol=1e-5)


@pytest.mark.parametrize("layer", [LINEAR, CONV, GROUPED], ids=lambda layer: layer.name)
def test_obc_removes_from_each_row_in_the_order_of_the_literal_loop(layer: Layer) -> None:
    pruner = OBC(Target(0.5, Scope.UNIFORM), DAMPENING, False, Score.MARGINAL)
    weight_RC, moments = a_problem(pruner, layer, seed=3, zeros=0.1)
    sensitivity, solution = pruned(pruner, layer, weight_RC, moments, layer.weights // 3)
    for row in range(layer.rows):
        group = row * layer.groups // layer.rows
        mean = moments.sum_nBB[group].double().numpy() / moments.count
        order, losses, trace = literal_obs(weight_RC[row].numpy(), mean, weight_RC[row].numpy() != 0, DAMPENING)
        assert sensitivity.order_nG[row, : len(order)].tolist() == order
        assert np.allclose(sensitivity.score_nG[row, : len(order)], losses, rtol=1e-4)
        masked = int((solution.weight_RC[row] == 0).sum()) - int((weight_RC[row] == 0).sum())
        assert np.allclose(solution.weight_RC[row].numpy(), trace[masked - 1] if masked else weight_RC[row].numpy(), atol=1e-5)


def test_the_sweep_equals_removing_column_after_column_with_explicit_inverses() -> None:
    """Literal SparseGPT: at column j only columns from j on move, by the inverse of H restricted to them."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(40, 24)) @ np.diag(rng.uniform(0.2, 2, 24))
    hessian, weight, keep = vectors.T @ vectors / 40, rng.normal(size=(6, 24)), rng.random((6, 24)) > 0.5
    got, kept = sweep(
        torch.tensor(weight),
        inverse_factor(torch.tensor(hessian), DAMPENING)[0],
        torch.tensor(keep),
        8,
        pruners("unstructured", 0.5)[0].pattern,
    )
    dampened, w, mask = hessian + DAMPENING * np.eye(24), weight.copy(), np.ones((6, 24), bool)
    for start in range(0, 24, 8):
        inverses = [np.linalg.inv(dampened[j:, j:]) for j in range(start, start + 8)]
        cost = np.stack([w[:, start + k] ** 2 / inverse[0, 0] for k, inverse in enumerate(inverses)], axis=1)
        for flat in np.argsort(cost, axis=None)[: int((~keep[:, start : start + 8]).sum())]:
            mask[flat // 8, start + flat % 8] = False
        for k, inverse in enumerate(inverses):
            j = start + k
            ratio = np.where(mask[:, j], 0, w[:, j]) / inverse[0, 0]
            w[:, j:] -= ratio[:, None] * inverse[0]
    assert np.array_equal(kept.numpy(), mask)
    assert np.allclose(got.numpy(), np.where(mask, w, 0), atol=1e-9)


def test_ranks_within_rows_mask_equal_shares_and_count_zeros() -> None:
    cost_GS = torch.tensor([[3.0, 1.0, 2.0, 4.0], [torch.inf, 9.0, 7.0, 8.0]])
    expected = torch.tensor([[0.75, 0.25, 0.5, 1.0], [torch.inf, 1.0, 0.5, 0.75]])
    assert torch.equal(quantiles(cost_GS), expected)


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.6), ("4:2", 0.5), ("groups:1", 0.5), ("two of four", 0.5)])
def test_a_pattern_that_cannot_be_is_refused(pattern: str, sparsity: float) -> None:
    with pytest.raises(ConfigError, match=r"pruner\.target\.(pattern|sparsity): expected"):
        Target(sparsity, Scope.GLOBAL, {}, pattern)


def test_all_layers_that_the_pattern_does_not_divide_are_named() -> None:
    layers = [LINEAR, Layer("depthwise", 8, 9, 9, 8), Layer("wide", 8, 6 * 9, 9)]
    with pytest.raises(ConfigError, match=r"pruner\.target\.pattern: .*depthwise has 1, wide has 6.*unfit=dense.*model\.exclude"):
        Magnitude(Target(0.5, Scope.GLOBAL, {}, "2:4")).check(layers)


def test_layers_that_the_pattern_does_not_divide_can_be_kept_dense() -> None:
    layers = [LINEAR, Layer("depthwise", 8, 9, 9, 8)]
    pruner = Magnitude(Target(0.5, Scope.GLOBAL, {}, "2:4", Unfit.DENSE))
    pruner.check(layers)
    assert pruner.fitting(layers) == [LINEAR] and pruner.unfit(layers) == layers[1:]
    with pytest.raises(ConfigError, match=r"pruner\.target\.pattern: .*depthwise has 1"):
        pruner.check(layers[1:])


def test_the_factor_of_the_sweep_is_that_of_the_inverse_and_raised_dampening_is_reported() -> None:
    vectors = torch.randn(9, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    upper_CC, used = inverse_factor(vectors @ vectors.T, DAMPENING)
    expected = torch.linalg.inv(vectors @ vectors.T + DAMPENING * torch.eye(9, dtype=torch.float64))
    assert used == DAMPENING and torch.equal(upper_CC, upper_CC.triu())
    torch.testing.assert_close(upper_CC.T @ upper_CC, expected)
    pruner = SparseGPT(Target(0.5, Scope.UNIFORM), 1e-12, False, 8)
    indefinite_1CC = torch.eye(24)[None].clone()
    indefinite_1CC[0, 0, 0] = -1e-9  # as rounding leaves it; needs 1e-8
    notes = pruner.score(torch.randn(6, 24), LINEAR, SecondMoment(indefinite_1CC, 1)).notes
    assert notes == {"dampening": 1e-12, "blocks_with_raised_dampening": 1.0}


def test_woodfisher_tells_of_raised_dampening_too() -> None:
    pruner = WoodFisher(Target(0.5, Scope.GLOBAL), 8, 1e-12, False)
    moments = SecondMoment(torch.eye(8).repeat(18, 1, 1), 1)
    moments.sum_nBB[5, 2, 2] = -1e-9
    notes = pruner.score(torch.randn(6, 24), LINEAR, moments).notes
    assert notes == {"dampening": 1e-12, "blocks_with_raised_dampening": 1.0}


def test_statistics_of_linear_layers_are_shared_by_all_patterns_and_those_of_convolutions_are_not() -> None:
    free, two_of_four = (pruners(pattern, 0.5)[1].statistic for pattern in ("unstructured", "2:4"))
    assert free.identity(LINEAR, Loss.LABELS, 0) == two_of_four.identity(LINEAR, Loss.LABELS, 0)
    assert free.identity(CONV, Loss.LABELS, 0) != two_of_four.identity(CONV, Loss.LABELS, 0)


@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_the_plan_counts_the_memory_that_collecting_a_fisher_takes(block_size: int) -> None:
    layer = Layer("wide", 3, 300)
    statistic = BlockFisher(block_size, FREE)
    held = GradientSum(layer, block_size, torch.device("cpu")).total
    assert held.chunk_KnB.nbytes == statistic.working_bytes(layer)
    assert held.sum_nBB.nbytes == 4 * statistic.shape(layer)[0] * block_size**2


@pytest.mark.parametrize("layer", [LINEAR, CONV, GROUPED], ids=lambda layer: layer.name)
def test_the_plan_counts_the_memory_that_collecting_a_guided_hessian_takes(layer: Layer) -> None:
    statistic = GuidedHessian(2, FREE)
    held = GuidedSum(layer, statistic.sets(layer), torch.device("cpu")).total
    assert held.chunk_KnB.nbytes == statistic.working_bytes(layer)
    assert held.sum_nBB.shape == (*statistic.shape(layer), layer.columns)


def test_vectors_that_come_one_by_one_or_at_once_leave_the_same_bytes_of_the_sum() -> None:
    vectors_KnB = torch.randn(150, 3, 8, generator=torch.Generator().manual_seed(0))
    alone, at_once = OuterSum(3, 8, torch.device("cpu")), OuterSum(3, 8, torch.device("cpu"))
    for vector_nB in vectors_KnB:
        alone.add(vector_nB[None])
    at_once.add(vectors_KnB)
    lower = [total.result_nBB().tril() for total in (alone, at_once)]
    assert torch.equal(*lower)
    torch.testing.assert_close(lower[0], torch.einsum("knb,knc->nbc", vectors_KnB, vectors_KnB).tril(), rtol=1e-4, atol=1e-4)
