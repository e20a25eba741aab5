"""Elimination and solve against literal float64 optimal brain surgeon, and what must not change their results."""

import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from reference import constrained_least_squares, literal_obs
from torch import Tensor

import kernels.obs as obs
from kernels.linalg import RAISES, NotPositiveDefinite
from kernels.masks import prefix_mask
from kernels.obs import cpu, reference
from kernels.second_moment import add_outer_, cut_blocks, existing_nB, mirror_, zeros

IMPLEMENTATIONS = [pytest.param(cpu, id="cpu"), pytest.param(reference, id="reference")]
both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def _problem(blocks: int, size: int, samples: int, seed: int, dead: float = 0.0, pruned: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, Fisher and alive entries; ``dead`` inputs have no gradient, ``pruned`` entries neither weight nor gradient."""
    generator = torch.Generator().manual_seed(seed)
    scale_nB = torch.randn(blocks, size, generator=generator).exp() * 1e-3
    alive_nB = torch.rand(blocks, size, generator=generator) >= pruned
    seen_nB = torch.rand(blocks, size, generator=generator) >= dead
    gradients_KnB = torch.randn(samples, blocks, size, generator=generator) * scale_nB * alive_nB * seen_nB
    moment = zeros(blocks, size)
    add_outer_(moment.sum_nBB, gradients_KnB)
    mirror_(moment.sum_nBB)
    weights_nB = torch.randn(blocks, size, generator=generator) * 0.02 * alive_nB
    return weights_nB, moment.sum_nBB / samples, alive_nB


def _check_against_literal(implementation, weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, rtol: float) -> None:
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, dampening, False)
    assert (result.dampening_n == dampening).all()
    for block in range(len(weights_nB)):
        alive = alive_nB[block].numpy()
        w, matrix = weights_nB[block].numpy(), mean_nBB[min(block, len(mean_nBB) - 1)].double().numpy()
        order, losses, trace = literal_obs(w, matrix, alive, dampening)
        order += np.flatnonzero(~alive).tolist()
        assert result.order_nB[block].tolist() == order
        np.testing.assert_allclose(result.loss_nB[block, : alive.sum()].numpy(), losses, rtol=rtol, atol=1e-37)
        assert (result.loss_nB[block, alive.sum() :] == torch.inf).all()
        for removed in {0, alive.sum() // 2, alive.sum()}:
            keep_nB = ~prefix_mask(result.order_nB[block : block + 1], torch.tensor([removed]))
            part = slice(block, block + 1) if len(mean_nBB) > 1 else slice(0, 1)
            solved_nB = implementation.solve_on_mask(
                weights_nB[block : block + 1], mean_nBB[part], keep_nB, alive_nB[block : block + 1], dampening, False
            )
            truth = trace[removed - 1] if removed else w * alive
            np.testing.assert_allclose(solved_nB[0].numpy(), truth, rtol=1e-5, atol=1e-6 * (np.abs(truth).max() + 1e-30))
            assert (solved_nB[~keep_nB] == 0).all()


@both
@pytest.mark.parametrize(
    ("blocks", "size", "samples", "dead", "pruned"),
    [
        (20, 1, 5, 0, 0),
        (30, 2, 1, 0, 0.3),
        (60, 7, 20, 0.2, 0.2),
        (60, 16, 8, 0, 0),
        (60, 17, 8, 0.2, 0.3),
        (40, 33, 60, 0.3, 0),
        (20, 64, 32, 0.1, 0.1),
        (6, 100, 150, 0.1, 0.5),
        (3, 192, 96, 0.05, 0.1),
    ],
)
def test_elimination_and_solve_equal_literal_brain_surgery(implementation, blocks, size, samples, dead, pruned) -> None:
    """Hundreds of blocks, most of them with fewer gradients than weights: same order, same losses, same weights after any prefix."""
    weights_nB, mean_nBB, alive_nB = _problem(blocks, size, samples, seed=size, dead=dead, pruned=pruned)
    _check_against_literal(implementation, weights_nB, mean_nBB, alive_nB, 1e-8, rtol=1e-5)


@both
def test_zero_weights_are_removed_first_in_the_order_of_the_block_without_loss(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(20, 24, 30, seed=0)
    weights_nB[:, [3, 17, 5]] = 0.0
    weights_nB[0] = 0.0
    _check_against_literal(implementation, weights_nB, mean_nBB, alive_nB, 1e-8, rtol=1e-5)
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False)
    assert (result.order_nB[1:, :3] == torch.tensor([3, 5, 17])).all()
    assert result.order_nB[0].tolist() == list(range(24))
    assert (result.loss_nB[:, :3] == 0).all()


@both
def test_padding_and_blocks_without_anything_alive_come_last(implementation) -> None:
    weight_RC = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    weights_nB, alive_nB = cut_blocks(weight_RC, 4), existing_nB(6, 10, 4)
    alive_nB[4] = False
    _, mean_nBB, _ = _problem(18, 4, 3, seed=1)
    mean_nBB *= alive_nB[:, :, None] & alive_nB[:, None, :]
    _check_against_literal(implementation, weights_nB, mean_nBB, alive_nB, 1e-8, rtol=1e-5)


@both
def test_one_matrix_shared_by_all_rows_is_that_matrix_repeated(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(12, 20, 30, seed=3, pruned=0.0)
    alive_nB = torch.rand(12, 20, generator=torch.Generator().manual_seed(1)) > 0.2
    shared_1BB = mean_nBB[:1]
    _check_against_literal(implementation, weights_nB, shared_1BB, alive_nB, 1e-8, rtol=1e-5)
    for relative in (False, True):
        one = implementation.eliminate(weights_nB, shared_1BB, alive_nB, 1e-3, relative)
        many = implementation.eliminate(weights_nB, shared_1BB.repeat(12, 1, 1), alive_nB, 1e-3, relative)
        assert torch.equal(one.order_nB, many.order_nB)
        assert torch.equal(one.loss_nB, many.loss_nB)
        assert torch.allclose(one.dampening_n, many.dampening_n, rtol=1e-12)


@pytest.mark.parametrize("relative", [1e-4, 1e-6, 1e-8])
def test_order_is_that_of_80_bit_arithmetic_when_the_dampening_is_tiny(relative: float) -> None:
    """Half as many gradients as weights, taken in float64: at 1e-8 even the literal float64 loop gives another order in most blocks."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        gradients = rng.standard_normal((32, 64)) * np.exp(rng.standard_normal(64)) * 1e-3
        matrix = gradients.T @ gradients / 32
        dampening = relative * np.trace(matrix) / 64
        weight = rng.standard_normal(64) * 0.02
        order, losses, _ = literal_obs(weight, matrix, np.ones(64, dtype=bool), dampening, np.longdouble)
        result = cpu.eliminate(
            torch.from_numpy(weight)[None], torch.from_numpy(matrix)[None], torch.ones(1, 64, dtype=torch.bool), dampening, False
        )
        assert result.order_nB[0].tolist() == order
        np.testing.assert_allclose(result.loss_nB[0].numpy(), losses, rtol=1e-3)


@both
def test_group_solve_is_constrained_least_squares_for_any_mask(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(40, 15, 40, seed=5, pruned=0.2)
    keep_nB = torch.rand(40, 15, generator=torch.Generator().manual_seed(2)) > 0.5
    solved_nB = implementation.solve_on_mask(weights_nB.double(), mean_nBB, keep_nB, alive_nB, 1e-7, False)
    for block in range(40):
        alive = alive_nB[block].numpy()
        matrix = (mean_nBB[block].double().numpy() + 1e-7 * np.eye(15))[np.ix_(alive, alive)] * 1e6
        truth = constrained_least_squares(weights_nB[block].double().numpy()[alive], matrix, ~keep_nB[block].numpy()[alive])
        np.testing.assert_allclose(solved_nB[block].numpy()[alive], truth, rtol=1e-8, atol=1e-9)
        assert (solved_nB[block].numpy()[~alive] == 0).all()


@both
def test_the_losses_of_a_prefix_add_up_to_the_rise_of_the_quadratic(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(10, 30, 50, seed=8)
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-7, False)
    keep_nB = ~prefix_mask(result.order_nB, torch.full((10,), 18))
    delta_nB = implementation.solve_on_mask(weights_nB.double(), mean_nBB, keep_nB, alive_nB, 1e-7, False) - weights_nB.double()
    rise_n = torch.einsum("nb,nbc,nc->n", delta_nB, mean_nBB.double() + 1e-7 * torch.eye(30), delta_nB) / 2
    np.testing.assert_allclose(result.loss_nB[:, :18].double().sum(1).numpy(), rise_n.numpy(), rtol=1e-5)


@both
def test_identity_fisher_is_magnitude_pruning(implementation) -> None:
    weights_nB = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(20, 50, dtype=torch.bool)
    result = implementation.eliminate(weights_nB, torch.eye(50).repeat(20, 1, 1), everything, 0.0, False)
    assert torch.equal(result.order_nB.long(), weights_nB.abs().argsort(dim=1))
    np.testing.assert_allclose(result.loss_nB.numpy(), (weights_nB.abs().sort(dim=1).values ** 2 / 2).numpy(), rtol=1e-6)
    keep_nB = torch.rand(20, 50, generator=torch.Generator().manual_seed(1)) > 0.5
    solved_nB = implementation.solve_on_mask(weights_nB, torch.eye(50).repeat(20, 1, 1), keep_nB, everything, 0.0, False)
    assert torch.equal(solved_nB, weights_nB * keep_nB)


@both
def test_scaling_the_loss_scales_losses_and_nothing_else(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(10, 40, 60, seed=4, pruned=0.1)
    one = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-4, True)
    scaled = implementation.eliminate(weights_nB, mean_nBB * 2**20, alive_nB, 1e-4, True)
    assert torch.equal(one.order_nB, scaled.order_nB)
    np.testing.assert_allclose(scaled.loss_nB.numpy(), one.loss_nB.numpy() * 2**20, rtol=1e-6)


@both
def test_permuting_the_entries_permutes_the_order(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(10, 40, 60, seed=6, pruned=0.1)
    permutation = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False)
    other = implementation.eliminate(
        weights_nB[:, permutation], mean_nBB[:, permutation][:, :, permutation], alive_nB[:, permutation], 1e-8, False
    )
    finite_nB = one.loss_nB.isfinite()
    assert torch.equal(permutation[other.order_nB.long()][finite_nB], one.order_nB.long()[finite_nB])
    np.testing.assert_allclose(other.loss_nB.numpy(), one.loss_nB.numpy(), rtol=1e-5)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_bytes_are_the_same_for_one_and_two_threads() -> None:
    weights_nB, mean_nBB, alive_nB = _problem(150, 70, 40, seed=7, dead=0.1, pruned=0.1)
    keep_nB = torch.rand(150, 70, generator=torch.Generator().manual_seed(0)) > 0.4
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        done = obs.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False)
        solved_nB = obs.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-8, False)
        results.append((done.order_nB, done.loss_nB, done.dampening_n, solved_nB))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_the_number_of_torch_threads_does_not_change() -> None:
    """In a fresh process: numba's first parallel run sets the thread count of OpenMP, which is torch's."""
    script = (
        "import torch; torch.set_num_threads(1); from kernels import obs; everything = torch.ones(2, 3, dtype=torch.bool)\n"
        "obs.eliminate(torch.ones(2, 3), torch.eye(3).repeat(2, 1, 1), everything, 0.1, False); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@both
def test_a_blocks_result_does_not_depend_on_the_blocks_beside_it(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(9, 30, 20, seed=9)
    together = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False)
    alone = implementation.eliminate(weights_nB[4:5], mean_nBB[4:5], alive_nB[4:5], 1e-8, False)
    assert torch.equal(alone.order_nB[0], together.order_nB[4])
    assert torch.equal(alone.loss_nB[0], together.loss_nB[4])


@both
def test_blocks_that_need_more_dampening_get_it_and_report_it(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(6, 10, 20, seed=2)
    mean_nBB[2] -= 3e-6 * torch.eye(10) + mean_nBB[2]  # all eigenvalues are -3e-6
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False)
    np.testing.assert_allclose(result.dampening_n.numpy(), [1e-8, 1e-8, 1e-5, 1e-8, 1e-8, 1e-8])
    order, losses, _ = literal_obs(weights_nB[2].numpy(), mean_nBB[2].numpy(), alive_nB[2].numpy(), 1e-5)
    assert result.order_nB[2].tolist() == order
    np.testing.assert_allclose(result.loss_nB[2].numpy(), losses, rtol=1e-5)
    keep_nB = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) > 0.5
    solved_nB = implementation.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-8, False)
    np.testing.assert_allclose(solved_nB[2].numpy(), (weights_nB[2] * keep_nB[2]).numpy(), rtol=1e-6)


@both
@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_hopeless_matrices_are_refused_and_counted(implementation, bad: float) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(5, 8, 20, seed=2)
    mean_nBB[1, 3, 3] = mean_nBB[4, 0, 0] = bad
    for attempt in (
        lambda: implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False),
        lambda: implementation.solve_on_mask(weights_nB, mean_nBB, alive_nB, alive_nB, 1e-8, False),
    ):
        with pytest.raises(NotPositiveDefinite) as caught:
            attempt()
        assert caught.value.blocks == 2
        assert caught.value.dampening == pytest.approx(1e-8 * 10**RAISES)
        assert not caught.value.smallest_pivot > 0


@both
def test_values_of_entries_that_are_not_alive_are_never_read(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(8, 12, 20, seed=2, pruned=0.3)
    keep_nB = torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    dirty_nB = torch.where(alive_nB, weights_nB, torch.nan)
    dirty_nBB = torch.where(alive_nB[:, :, None] & alive_nB[:, None, :], mean_nBB, torch.nan)
    clean, dirty = (implementation.eliminate(w, mean, alive_nB, 1e-4, True) for w, mean in ((weights_nB, mean_nBB), (dirty_nB, dirty_nBB)))
    assert torch.equal(clean.order_nB, dirty.order_nB)
    assert torch.equal(clean.loss_nB, dirty.loss_nB)
    clean_nB = implementation.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-4, True)
    assert torch.equal(clean_nB, implementation.solve_on_mask(dirty_nB, dirty_nBB, keep_nB, alive_nB, 1e-4, True))


def test_inputs_are_not_changed_and_layouts_do_not_matter() -> None:
    weights_nB, mean_nBB, alive_nB = _problem(5, 12, 20, seed=2)
    copies = weights_nB.clone(), mean_nBB.clone(), alive_nB.clone()
    one = obs.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False)
    assert all(torch.equal(a, b) for a, b in zip((weights_nB, mean_nBB, alive_nB), copies, strict=True))
    other = obs.eliminate(weights_nB.mT.contiguous().mT, mean_nBB.mT, alive_nB.mT.contiguous().mT, 1e-8, False)
    assert torch.equal(one.order_nB, other.order_nB)


def test_reference_in_small_chunks_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(7, 12, 20, seed=2)
    keep_nB = torch.rand(7, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = reference.eliminate(weights_nB, mean_nBB, alive_nB, 1e-4, True)
    solved_nB = reference.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-4, True)
    monkeypatch.setattr(reference, "SCRATCH_BYTES", 2 * 8 * 12 * 12)
    parts = reference.eliminate(weights_nB, mean_nBB, alive_nB, 1e-4, True)
    assert torch.equal(whole.order_nB, parts.order_nB)
    assert torch.equal(whole.dampening_n, parts.dampening_n)
    assert torch.equal(solved_nB, reference.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-4, True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_give_the_order_of_the_cpu() -> None:
    weights_nB, mean_nBB, alive_nB = _problem(30, 64, 40, seed=2, dead=0.1, pruned=0.1)
    keep_nB = torch.rand(30, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    here = obs.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False)
    there = obs.eliminate(weights_nB.cuda(), mean_nBB.cuda(), alive_nB.cuda(), 1e-8, False)
    assert torch.equal(here.order_nB, there.order_nB.cpu())
    torch.testing.assert_close(here.loss_nB, there.loss_nB.cpu(), rtol=1e-5, atol=0)
    solved_nB = obs.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-8, False)
    on_device_nB = obs.solve_on_mask(weights_nB.cuda(), mean_nBB.cuda(), keep_nB.cuda(), alive_nB.cuda(), 1e-8, False)
    torch.testing.assert_close(solved_nB, on_device_nB.cpu(), rtol=1e-5, atol=1e-8)


@both
def test_a_slope_moves_the_solution_to_the_minimum_of_the_sloped_quadratic(implementation) -> None:
    """Closed form by ``numpy.linalg.solve``; a slope of zero is no slope."""
    weights_nB, mean_nBB, alive_nB = _problem(20, 17, 40, seed=5, pruned=0.2)
    generator = torch.Generator().manual_seed(2)
    keep_nB = torch.rand(20, 17, generator=generator) > 0.5
    slope_nB = torch.randn(20, 17, generator=generator) * 1e-8
    solved_nB = implementation.solve_on_mask(weights_nB.double(), mean_nBB, keep_nB, alive_nB, 1e-7, False, slope_nB)
    for block in range(20):
        kept, alive = (keep_nB & alive_nB)[block].numpy(), alive_nB[block].numpy()
        removed = alive & ~kept
        matrix, w = mean_nBB[block].double().numpy(), weights_nB[block].double().numpy()
        right = matrix[np.ix_(kept, removed)] @ w[removed] + slope_nB[block].double().numpy()[kept]
        truth = w[kept] + np.linalg.solve(matrix[np.ix_(kept, kept)] + 1e-7 * np.eye(kept.sum()), right)
        np.testing.assert_allclose(solved_nB[block].numpy()[kept], truth, rtol=1e-7, atol=1e-9)
        assert (solved_nB[block].numpy()[~kept] == 0).all()
    plain_nB = implementation.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-7, False)
    level_nB = implementation.solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, 1e-7, False, torch.zeros(20, 17))
    assert torch.equal(plain_nB, level_nB)
