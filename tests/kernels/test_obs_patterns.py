"""Elimination with N:M and in tiles, and static losses, against literal float64 optimal brain surgeon and brute force."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import constrained_least_squares, gauss_jordan_inverse
from torch import Tensor

import kernels.obs as obs
from kernels.linalg import NotPositiveDefinite
from kernels.masks import prefix_mask
from kernels.obs import cpu, reference
from kernels.patterns import FREE, Pattern, parse

both = pytest.mark.parametrize("implementation", [pytest.param(cpu, id="cpu"), pytest.param(reference, id="reference")])
PATTERNS = [parse(text) for text in ("unstructured", "2:4", "1:4", "4:8", "3:4", "groups:2", "groups:4", "groups:8")]
patterns = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"tile{p.tile}-{p.removable}of{p.bucket}")


def _problem(blocks: int, size: int, samples: int, seed: int, dead: float = 0.0, pruned: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """``dead`` inputs have no gradient, ``pruned`` entries no weight and are not alive; a tenth of the others has weight zero and is."""
    generator = torch.Generator().manual_seed(seed)
    scale_nB = torch.randn(blocks, size, generator=generator).exp() * 1e-3 * (torch.rand(blocks, size, generator=generator) >= dead)
    gradients_nKB = torch.randn(blocks, samples, size, generator=generator) * scale_nB[:, None]
    alive_nB = torch.rand(blocks, size, generator=generator) >= pruned
    weights_nB = torch.randn(blocks, size, generator=generator) * 0.02 * alive_nB
    weights_nB *= torch.rand(blocks, size, generator=generator) >= 0.1
    return weights_nB, gradients_nKB.mT @ gradients_nKB / samples, alive_nB


def literal(weight: np.ndarray, matrix: np.ndarray, alive: np.ndarray, dampening: float, pattern: Pattern, dtype: type = np.float64):
    """Greedy elimination under a pattern with whole matrices: tiles removed in order, their losses, the weights after each."""
    size, tile = len(weight), pattern.tile
    kept = np.flatnonzero(alive)
    inverse, w = np.eye(size, dtype=dtype), np.where(alive, weight, 0).astype(dtype)
    inverse[np.ix_(kept, kept)] = gauss_jordan_inverse(matrix.astype(dtype)[np.ix_(kept, kept)] + dtype(dampening) * np.eye(len(kept)))
    there, order, losses, trace = alive.copy(), [], [], []
    while True:
        best, least = None, np.inf
        for g in range(size // tile):
            entries = np.flatnonzero(there[g * tile : (g + 1) * tile]) + g * tile
            bucket = there[g // pattern.bucket * pattern.bucket :][: pattern.bucket] if pattern.bucket else there
            if not len(entries) or (pattern.bucket and (~bucket).sum() >= pattern.removable):
                continue
            loss = w[entries] @ gauss_jordan_inverse(inverse[np.ix_(entries, entries)]) @ w[entries] / 2
            if loss < least:
                best, least, chosen = g, loss, entries
        if best is None:
            return order, losses, trace
        order.append(best)
        losses.append(least)
        step = inverse[:, chosen] @ gauss_jordan_inverse(inverse[np.ix_(chosen, chosen)])
        w = w - step @ w[chosen]
        inverse = inverse - step @ inverse[chosen]
        there[chosen] = False
        trace.append(np.where(there, w, 0))


@both
@patterns
@pytest.mark.parametrize(
    ("blocks", "size", "samples", "dead", "pruned"),
    [(30, 8, 5, 0, 0), (30, 16, 40, 0.2, 0.2), (12, 40, 20, 0.1, 0.3), (8, 72, 100, 0.1, 0.1), (2, 136, 90, 0.05, 0.5)],
)
def test_elimination_under_a_pattern_equals_literal_brain_surgery(implementation, pattern, blocks, size, samples, dead, pruned) -> None:
    """Same order, same losses, what cannot go last at +inf, and the same weights half way and at the end."""
    weights_nB, mean_nBB, alive_nB = _problem(blocks, size, samples, size, dead, pruned)
    if pruned:
        alive_nB[0], alive_nB[1, : size // 2] = False, False
    weights_nB *= alive_nB
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False, pattern)
    tiles = size // pattern.tile
    for block in range(blocks):
        inputs = weights_nB[block].numpy(), mean_nBB[block].numpy(), alive_nB[block].numpy()
        order, losses, trace = literal(*inputs, 1e-8, pattern)
        assert result.order_nB[block].tolist() == order + sorted(set(range(tiles)) - set(order))
        np.testing.assert_allclose(result.loss_nB[block, : len(order)].numpy(), losses, rtol=1e-5, atol=1e-20)
        assert (result.loss_nB[block, len(order) :] == torch.inf).all()
        part = slice(block, block + 1)
        for removed in {(len(order) + 1) // 2, len(order)} - {0}:
            keep_nB = ~prefix_mask(result.order_nB[part], torch.tensor([removed])).repeat_interleave(pattern.tile, dim=1)
            solved_nB = implementation.solve_on_mask(weights_nB[part], mean_nBB[part], keep_nB, alive_nB[part], 1e-8, False)
            truth = trace[removed - 1]
            np.testing.assert_allclose(solved_nB[0].numpy(), truth, rtol=1e-5, atol=1e-6 * (np.abs(truth).max() + 1e-30))


@both
@pytest.mark.parametrize("tile", [15, 32, 64])
def test_large_groups_equal_literal_brain_surgery(implementation, tile) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(2, 3 * tile, 4 * tile, tile, 0.1, 0.2)
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False, Pattern(tile=tile))
    for block in range(2):
        order, losses, _ = literal(weights_nB[block].numpy(), mean_nBB[block].numpy(), alive_nB[block].numpy(), 1e-8, Pattern(tile=tile))
        assert result.order_nB[block].tolist() == order
        np.testing.assert_allclose(result.loss_nB[block].numpy(), losses, rtol=1e-5)


@both
@patterns
def test_each_step_removes_the_tile_that_raises_the_quadratic_least(implementation, pattern) -> None:
    """Brute force: every allowed next removal is tried, with all other weights re-fitted by constrained least squares."""
    for seed in range(6):
        weights_nB, mean_nBB, _ = _problem(1, 8, 30, seed)
        alive_nB = torch.ones(1, 8, dtype=torch.bool)
        result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-7, False, pattern)
        matrix, w = mean_nBB[0].double().numpy() + 1e-7 * np.eye(8), weights_nB[0].double().numpy()

        def rise(removed: np.ndarray, matrix=matrix, w=w) -> float:
            delta = constrained_least_squares(w, matrix * 1e6, removed) - w
            return float(delta @ matrix @ delta / 2)

        removed, losses = np.zeros(8, dtype=bool), result.loss_nB[0]
        for step in range(int(losses.isfinite().sum())):
            rises = {}
            for g in range(8 // pattern.tile):
                trial = removed.copy()
                trial[g * pattern.tile : (g + 1) * pattern.tile] = True
                full = pattern.bucket and (trial.reshape(-1, pattern.bucket).sum(1) > pattern.removable).any()
                if not full and not removed[g * pattern.tile]:
                    rises[g] = rise(trial) - rise(removed)
            assert int(result.order_nB[0, step]) == min(rises, key=rises.__getitem__) or weights_nB[0, result.order_nB[0, step]] == 0
            assert float(losses[step]) == pytest.approx(min(rises.values()), rel=1e-4, abs=1e-12)
            removed[int(result.order_nB[0, step]) * pattern.tile :][: pattern.tile] = True


@both
@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "5:8"])
def test_every_bucket_keeps_as_many_entries_as_required_or_all_that_it_had(implementation, text) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(30, 48, 60, seed=3, pruned=0.3)
    pattern = parse(text)
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False, pattern)
    removed_nB = prefix_mask(result.order_nB, result.loss_nB.isfinite().sum(dim=1))
    stays_nb = (alive_nB & ~removed_nB).reshape(30, -1, pattern.bucket).sum(dim=2)
    had_nb = alive_nB.reshape(30, -1, pattern.bucket).sum(dim=2)
    assert torch.equal(stays_nb, had_nb.clamp(max=pattern.bucket - pattern.removable))
    assert not (removed_nB & ~alive_nB).any()


@both
def test_identity_fisher_is_magnitude_pruning_under_the_pattern(implementation) -> None:
    weights_nB = torch.randn(20, 48, generator=torch.Generator().manual_seed(0))
    identity_nBB, everything = torch.eye(48).repeat(20, 1, 1), torch.ones(20, 48, dtype=torch.bool)
    result = implementation.eliminate(weights_nB, identity_nBB, everything, 0.0, False, parse("2:4"))
    removed_nB = prefix_mask(result.order_nB, torch.full((20,), 24))
    smallest_nB2 = weights_nB.abs().reshape(20, 12, 4).argsort(dim=2)[:, :, :2]
    assert torch.equal(removed_nB.reshape(20, 12, 4).nonzero()[:, 2].reshape(20, 12, 2), smallest_nB2.sort(dim=2).values)
    result = implementation.eliminate(weights_nB, identity_nBB, everything, 0.0, False, parse("groups:4"))
    norms_nG = weights_nB.double().reshape(20, 12, 4).square().sum(dim=2)
    assert torch.equal(result.order_nB.long(), norms_nG.argsort(dim=1))
    np.testing.assert_allclose(result.loss_nB.numpy(), norms_nG.sort(dim=1).values.numpy() / 2, rtol=1e-6)


@both
@patterns
def test_the_losses_add_up_to_the_rise_of_the_quadratic(implementation, pattern) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(10, 32, 50, seed=8, pruned=0.1)
    result = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-7, False, pattern)
    counts_n = result.loss_nB.isfinite().sum(dim=1) * 2 // 3
    keep_nB = ~prefix_mask(result.order_nB, counts_n).repeat_interleave(pattern.tile, dim=1)
    w_nB = weights_nB.double()
    delta_nB = implementation.solve_on_mask(w_nB, mean_nBB, keep_nB, alive_nB, 1e-7, False) - w_nB
    rise_n = torch.einsum("nb,nbc,nc->n", delta_nB, mean_nBB.double() + 1e-7 * torch.eye(32), delta_nB) / 2
    total_n = torch.stack([loss_B[:count].double().sum() for loss_B, count in zip(result.loss_nB, counts_n, strict=True)])
    np.testing.assert_allclose(total_n.numpy(), rise_n.numpy(), rtol=1e-5)


@both
@patterns
@pytest.mark.parametrize("size", [8, 24, 136])
def test_static_losses_are_those_of_removing_each_tile_alone(implementation, pattern, size) -> None:
    blocks = 2 if size > 100 else 8
    weights_nB, mean_nBB, alive_nB = _problem(blocks, size, size * 2, seed=size, dead=0.1, pruned=0.2)
    losses_nG, _ = implementation.static_losses(weights_nB, mean_nBB, alive_nB, 1e-8, False, pattern)
    first = implementation.eliminate(weights_nB, mean_nBB, alive_nB, 1e-8, False, pattern)
    assert losses_nG.dtype == torch.float32
    least_n, at_n = losses_nG.min(dim=1)
    assert torch.equal(at_n, first.order_nB[:, 0].long())
    np.testing.assert_allclose(least_n.numpy(), first.loss_nB[:, 0].numpy(), rtol=1e-6)
    for block in range(blocks):
        alive, w = alive_nB[block].numpy(), weights_nB[block].double().numpy()
        kept = np.flatnonzero(alive)
        inverse = np.linalg.inv(mean_nBB[block].double().numpy()[np.ix_(kept, kept)] + 1e-8 * np.eye(len(kept)))
        for g in range(size // pattern.tile):
            at = np.flatnonzero(kept // pattern.tile == g)
            bucket = alive[g // pattern.bucket * pattern.bucket :][: pattern.bucket] if pattern.bucket else alive
            held = pattern.bucket and (~bucket).sum() >= pattern.removable
            truth = np.inf if held or not len(at) else w[kept[at]] @ np.linalg.solve(inverse[np.ix_(at, at)], w[kept[at]]) / 2
            assert float(losses_nG[block, g]) == pytest.approx(truth, rel=1e-5, abs=1e-30)


@both
@patterns
def test_a_shared_matrix_is_that_matrix_repeated_also_for_rows_with_gaps(implementation, pattern) -> None:
    """Rows 0 to 7 have all entries that any row has, the others miss some more; two entries are missing everywhere."""
    weights_nB, mean_nBB, alive_nB = _problem(12, 24, 30, seed=3)
    alive_nB[8:] = torch.rand(4, 24, generator=torch.Generator().manual_seed(1)) > 0.3
    alive_nB[:, [5, 16]] = False
    one_1BB, many_nBB = mean_nBB[:1], mean_nBB[:1].repeat(12, 1, 1)
    one = implementation.eliminate(weights_nB, one_1BB, alive_nB, 1e-3, True, pattern)
    many = implementation.eliminate(weights_nB, many_nBB, alive_nB, 1e-3, True, pattern)
    assert torch.equal(one.order_nB, many.order_nB)
    assert torch.equal(one.loss_nB, many.loss_nB)
    static = [implementation.static_losses(weights_nB, mean, alive_nB, 1e-3, True, pattern)[0] for mean in (one_1BB, many_nBB)]
    assert torch.equal(*static)


@both
def test_a_shared_matrix_gets_one_raised_dampening_and_is_refused_for_every_row(implementation) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(5, 8, 20, seed=2)
    indefinite_1BB = -3e-6 * torch.eye(8)[None]
    result = implementation.eliminate(weights_nB, indefinite_1BB, alive_nB, 1e-8, False)
    np.testing.assert_allclose(result.dampening_n.numpy(), [1e-5] * 5)
    mean_nBB[0, 2, 2] = torch.nan
    for attempt in (implementation.eliminate, implementation.static_losses):
        with pytest.raises(NotPositiveDefinite) as caught:
            attempt(weights_nB, mean_nBB[:1], alive_nB, 1e-8, False)
        assert caught.value.blocks == 5


@both
@patterns
def test_values_of_entries_that_are_not_alive_are_not_read_under_a_pattern(implementation, pattern) -> None:
    weights_nB, mean_nBB, alive_nB = _problem(8, 24, 20, seed=2, pruned=0.4)
    dirty_nB = torch.where(alive_nB, weights_nB, torch.nan)
    dirty_nBB = torch.where(alive_nB[:, :, None] & alive_nB[:, None, :], mean_nBB, torch.nan)
    clean, dirty = (
        implementation.eliminate(w, m, alive_nB, 1e-4, True, pattern) for w, m in ((weights_nB, mean_nBB), (dirty_nB, dirty_nBB))
    )
    assert torch.equal(clean.order_nB, dirty.order_nB)
    assert torch.equal(clean.loss_nB, dirty.loss_nB)
    clean_nG, _ = implementation.static_losses(weights_nB, mean_nBB, alive_nB, 1e-4, True, pattern)
    assert torch.equal(clean_nG, implementation.static_losses(dirty_nB, dirty_nBB, alive_nB, 1e-4, True, pattern)[0])


@both
@pytest.mark.parametrize("dampening", [1e-6, 1e-8, 1e-10])
def test_groups_keep_to_the_order_of_80_bit_arithmetic_when_the_fisher_is_nearly_singular(implementation, dampening) -> None:
    """Half as many gradients as weights and neighbours that are almost copies: the pieces of ``A`` must come down by many digits."""
    generator = torch.Generator().manual_seed(0)
    half_nKB = torch.randn(6, 16, 32, generator=generator, dtype=torch.float64)
    gradients_nKB = half_nKB.repeat_interleave(2, dim=2) + 1e-4 * torch.randn(6, 16, 64, generator=generator, dtype=torch.float64)
    mean_nBB = gradients_nKB.mT @ gradients_nKB / 16
    weights_nB = torch.randn(6, 64, generator=generator, dtype=torch.float64)
    everything = torch.ones(6, 64, dtype=torch.bool)
    result = implementation.eliminate(weights_nB, mean_nBB, everything, dampening, False, parse("groups:4"))
    for block in range(6):
        inputs = weights_nB[block].numpy(), mean_nBB[block].numpy(), everything[block].numpy()
        order, losses, _ = literal(*inputs, dampening, parse("groups:4"), np.longdouble)
        assert result.order_nB[block].tolist() == order
        np.testing.assert_allclose(result.loss_nB[block].numpy(), np.array(losses, dtype=np.float64), rtol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the peak memory of Linux")
@pytest.mark.parametrize("shared", [True, False])
def test_the_memory_that_is_used_is_the_memory_that_is_predicted(shared: bool) -> None:
    """In a fresh process on one thread, with the code compiled and the arguments made before the peak is reset."""
    script = f"""
import torch
from kernels import obs
from kernels.obs.cpu import scratch_bytes
torch.set_num_threads(1)
def status(key):
    return [1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)][0]
def run(size):
    everything = torch.ones(2, size, dtype=torch.bool)
    mean = torch.eye(size).repeat({1 if shared else 2}, 1, 1)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    obs.eliminate(torch.ones(2, size), mean, everything, 0.1, False)
    return status("VmHWM") - before
run(8)
print(run(1024) / scratch_bytes(1024, 1, {shared}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0.85 < float(done.stdout) < 1.1


def test_blocks_that_cut_tiles_or_buckets_are_refused() -> None:
    weights_nB, mean_nBB, alive_nB = _problem(2, 10, 20, seed=0)
    for pattern in (parse("2:4"), parse("groups:4")):
        for attempt in (obs.eliminate, obs.static_losses):
            with pytest.raises(ValueError, match="multiple of 4"):
                attempt(weights_nB, mean_nBB, alive_nB, 1e-8, False, pattern)
    for wrong in ({"tile": 0}, {"bucket": 4, "removable": 5}, {"tile": 2, "bucket": 4, "removable": 1}):
        with pytest.raises(ValueError, match="tiles of 1 or more"):
            Pattern(**wrong)
    assert parse("unstructured") == FREE
