"""Cutting the grid, and the scheduling the plan and the cluster share."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.patterns import FREE
from orchestrator import launch
from orchestrator.composing import experiment_of
from orchestrator.launch import missing, plan_experiment
from orchestrator.planning.costs import CostModel, PlannedLayer
from orchestrator.planning.footprint import Footprint
from orchestrator.planning.grid import best_cut, makespan, portions, runs, schedule
from workers.collect.statistic import BlockFisher, LayerHessian
from workers.errors import ConfigError
from workers.models.base import Layer
from workers.models.profile import Depth, ModelProfile
from workers.precision import Precision


def chain(sizes: list[int], block_size: int = 16) -> list[PlannedLayer]:
    """Layers of ``sizes`` rows, each a block wide, one after another."""
    layers, before = [], 0
    for index, rows in enumerate(sizes):
        after = sum(sizes[index:])
        depth = Depth(100 * rows, before, 7 * index, 40 * after, 10 * rows)
        layers.append(PlannedLayer(Layer(f"l{index}", rows, block_size), depth, rows, block_size))
        before += 100 * rows
    return layers


def profile_of(layers: list[PlannedLayer]) -> ModelProfile:
    weighted = sum(planned.depth.flops for planned in layers)
    weights = sum(planned.layer.weights for planned in layers)
    return ModelProfile(
        tuple(p.layer for p in layers), tuple(p.depth for p in layers), weights, 10, weighted, 7 * len(layers), 1000, 400, 100
    )


def models_of(layers: list[PlannedLayer], gradients: int = 100) -> tuple[CostModel, Footprint]:
    profile = profile_of(layers)
    rates = SimpleNamespace(
        matmul_gflops=1, model_efficiency=1, collect_efficiency=1, score_efficiency=1, solve_efficiency=1, disk_gbs=1, memory_gbs=1
    )
    costs = CostModel(profile, cast(Any, rates), cast(Any, None), 1, False, Precision.FP32, 4, gradients)
    return costs, Footprint(profile, "cpu", 1, 4, 4, 1)


@dataclass
class Sums:
    """Cost of a run: a part that grows with its length, and a part that grows with the distance to the end, like a backward pass."""

    values: list[float]

    def __call__(self, start: int, stop: int) -> float:
        return sum(self.values[start:stop]) + 0.3 * sum(self.values[start:])


def cuts(length: int, count: int) -> list[list[tuple[int, int]]]:
    all_cuts = []
    for size in range(1, min(count, length) + 1):
        for inner in itertools.combinations(range(1, length), size - 1):
            all_cuts.append(list(itertools.pairwise([0, *inner, length])))
    return all_cuts


@given(values=st.lists(st.floats(0.1, 10), min_size=1, max_size=8), count=st.integers(1, 8))
def test_no_contiguous_cut_has_a_cheaper_worst_run(values: list[float], count: int) -> None:
    cost = Sums(values)
    best = min(max(cost(*run) for run in cut) for cut in cuts(len(values), count))
    cut = best_cut(len(values), cost, count)
    assert len(cut) <= count and [run[0] for run in cut] == [0, *[run[1] for run in cut[:-1]]] and cut[-1][1] == len(values)
    assert max(cost(*run) for run in cut) <= best * (1 + 1e-5)


@given(values=st.lists(st.floats(0.1, 10), min_size=1, max_size=8), limit=st.floats(0.1, 40))
def test_no_cut_within_the_limit_has_fewer_runs(values: list[float], limit: float) -> None:
    cost = Sums(values)
    fitting = [cut for cut in cuts(len(values), len(values)) if all(cost(*run) <= limit or run[1] - run[0] == 1 for run in cut)]
    assert len(runs(len(values), cost, limit)) == min(len(cut) for cut in fitting)


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=20), workers=st.integers(1, 8), shards=st.integers(1, 3), spare=st.floats(1, 4)
)
def test_portions_are_runs_of_neighbours_that_fit_the_memory(sizes: list[int], workers: int, shards: int, spare: float) -> None:
    layers = chain(sizes)
    costs, footprint = models_of(layers)
    needed = max(max(footprint.collect([p]), footprint.score(p), footprint.solve(p)) for p in layers) - footprint.held
    memory = footprint.held + int(spare * needed)
    cut = portions(layers, costs, footprint, memory, workers, shards)
    assert [planned for portion in cut for planned in portion] == layers
    assert all(footprint.collect(portion) <= memory for portion in cut)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=7), workers=st.integers(1, 4))
def test_one_shard_on_free_memory_takes_hardly_longer_than_the_best_of_all_cuts(sizes: list[int], workers: int) -> None:
    """Few numbers of portions are tried, and the longest portion is minimised instead of the wall time: this may cost 15 %."""
    layers = chain(sizes)
    costs, footprint = models_of(layers, gradients=1000)
    planned_seconds = makespan([costs.collect(portion) for portion in portions(layers, costs, footprint, 10**12, workers, 1)], workers)
    best = min(makespan([costs.collect(layers[a:b]) for a, b in cut], workers) for cut in cuts(len(layers), len(layers)))
    assert best <= planned_seconds * (1 + 1e-9) and planned_seconds <= 1.15 * best


def test_a_late_portion_costs_less_and_a_larger_portion_is_never_cheaper() -> None:
    layers = chain([10] * 6)
    costs, footprint = models_of(layers)
    assert costs.collect(layers[4:]) < costs.collect(layers[:2])
    assert footprint.collect(layers[4:]) < footprint.collect(layers[:2])
    for start, stop in itertools.combinations(range(7), 2):
        assert costs.collect(layers[start:stop]) <= costs.collect(layers)
        assert footprint.collect(layers[start:stop]) <= footprint.collect(layers)


def test_a_layer_that_cannot_fit_is_refused_with_its_name_and_a_remedy() -> None:
    layers = chain([1, 50_000])
    costs, footprint = models_of(layers)
    with pytest.raises(ConfigError, match=r"l1: .* GB.*lower pruner.block_size"):
        portions(layers, costs, footprint, footprint.held + 10_000_000, 1, 1)


def goes_back(planned: list[PlannedLayer], costs: CostModel, footprint: Footprint) -> tuple[bool, bool]:
    """Whether seconds and bytes of collecting depend on how far a layer is from the loss, and on what is kept for a backward pass."""
    earlier = [replace(layer, depth=replace(layer.depth, weighted_before=layer.depth.weighted_before - 50)) for layer in planned]
    heavier = [replace(layer, depth=replace(layer.depth, kept_bytes=layer.depth.kept_bytes + 5000)) for layer in planned]
    return costs.collect(earlier) != costs.collect(planned), footprint.collect(heavier) != footprint.collect(planned)


def test_layers_that_share_a_hessian_need_no_backward_pass() -> None:
    layers = chain([64] * 3)
    costs, footprint = models_of(layers)
    hessians = [replace(planned, blocks=1, by_gradients=False) for planned in layers]
    assert goes_back(layers[1:], costs, footprint) == (True, True)
    assert goes_back(hessians[1:], costs, footprint) == (False, False)
    assert costs.collect(hessians) < costs.collect(layers) and footprint.collect(hessians) < footprint.collect(layers)


@given(seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=6), workers=st.integers(1, 3))
def test_longest_first_is_within_four_thirds_of_the_best_schedule(seconds: list[float], workers: int) -> None:
    """Graham 1969: longest processing time first is at most (4/3 - 1/3m) of the optimum, found here by trying all."""
    best = min(
        max(sum(s for s, w in zip(seconds, choice, strict=True) if w == worker) for worker in range(workers))
        for choice in itertools.product(range(workers), repeat=len(seconds))
    )
    assert best <= makespan(seconds, workers) * (1 + 1e-9) and makespan(seconds, workers) <= best * (4 / 3 - 1 / (3 * workers)) * (1 + 1e-9)


@given(seconds=st.lists(st.floats(0.1, 10), max_size=20), workers=st.integers(1, 5))
def test_a_worker_does_one_task_at_a_time_and_each_task_is_done_once(seconds: list[float], workers: int) -> None:
    spans = schedule(seconds, workers)
    assert sorted(span.task for span in spans) == list(range(len(seconds)))
    assert all(span.end - span.start == pytest.approx(seconds[span.task]) for span in spans)
    for worker in range(workers):
        mine = sorted((span.start, span.end) for span in spans if span.worker == worker)
        assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(mine))


@pytest.mark.parametrize(("free", "warnings"), [(10, 0), (9, 1)])
def test_a_disk_that_is_too_small_for_the_store_is_reported_before_work_starts(
    free: int, warnings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * 10**9))
    launch.warn_of_full_disk(cast(Any, SimpleNamespace(store_bytes=10 * 10**9)), tmp_path, cast(Any, SimpleNamespace(warn=warned.append)))
    assert len(warned) == warnings and all("9 GB" in line and "10 GB" in line for line in warned)


def test_a_depthwise_layer_with_a_hessian_per_row_needs_no_backward_pass_either() -> None:
    """It has as many matrices as a block Fisher: one for each row. The statistic tells the two apart."""
    model, layer = chain([64] * 2), Layer("conv_dw", 64, 9, kernel=9, groups=64)
    hessian, fisher = LayerHessian(FREE), BlockFisher(16, FREE)
    assert hessian.shape(layer) == fisher.shape(layer) == (64, 9)
    costs, footprint = models_of(model)
    for statistic, backward in ((fisher, True), (hessian, False)):
        planned = PlannedLayer(layer, model[1].depth, *statistic.shape(layer), 0, statistic.by_gradients, statistic.shared)
        assert goes_back([planned], costs, footprint) == (backward, backward)


def test_a_hessian_sums_every_position_of_an_image_and_a_block_fisher_one_gradient_for_all() -> None:
    """With four times as many positions a layer multiplies four times as much."""
    model = chain([64])
    costs, _ = models_of(model)
    coarse, fine = (replace(model[0], depth=replace(model[0].depth, flops=flops)) for flops in (6400, 4 * 6400))
    assert costs.outer_flops(fine) == costs.outer_flops(coarse)
    for by_gradients in (False, True):  # the layer Hessian, and the guided one
        hessians = [replace(planned, by_gradients=by_gradients, shared=True) for planned in (coarse, fine)]
        assert costs.outer_flops(hessians[1]) == pytest.approx(4 * costs.outer_flops(hessians[0]))


def test_evaluation_and_comparison_are_planned_in_the_parts_that_run() -> None:
    """Whatever the number of shards. A comparison is cut between batches, so it has at most as many parts as batches."""
    settings = ["data.shards=1", "data.calibration_batches=3", "data.calibration_batch_size=1000"]
    experiment = experiment_of(["cluster=local", *settings])
    stages = launch.plan_experiment(experiment).stages
    assert stages["compare"].tasks == experiment.data.comparison_parts == 3
    headless = experiment_of(["+experiment=dino_vitg_50pct"])
    parts = headless.data.evaluation_parts("test") + headless.data.evaluation_parts("bank")
    assert launch.plan_experiment(headless).stages["evaluate dense"].tasks == parts == 98 + 196


def test_without_a_comparison_its_stage_is_not_planned():
    """One stage less, and all others are unchanged."""
    compared, not_compared = (
        launch.plan_experiment(experiment_of([f"compare={value}", "cluster=local"])).stages for value in ("true", "false")
    )
    assert set(compared) - set(not_compared) == {"compare"}
    assert all(compared[stage] == estimate for stage, estimate in not_compared.items())


def test_a_target_that_the_floors_keep_out_of_reach_is_said_before_the_run() -> None:
    """Heads and neurons hold less than 99 % of the multiply-adds of a ViT; half of them are within reach."""
    (sentence,) = plan_experiment(experiment_of(["pruner=sosp_h", "pruner.target.removed=0.99"])).out_of_reach
    assert "pruner.target.removed" in sentence and "99.0 %" in sentence
    assert plan_experiment(experiment_of(["pruner=sosp_h", "pruner.target.removed=0.5"])).out_of_reach == ()
    assert plan_experiment(experiment_of(["pruner=halp", "pruner.target.removed=0.99"])).out_of_reach == (), "only a clock can say"


def test_a_plan_says_what_a_run_would_refuse(tmp_path: Path) -> None:
    asked = ["model.checkpoint=/nowhere/vit.pth", "data=imagefolder", f"data.root={tmp_path}"]
    asked += ["data.expected_train=100", "data.expected_test=100", "data.expected_classes=10"]
    checkpoint, folder = missing(experiment_of(asked))
    assert "/nowhere/vit.pth" in checkpoint and str(tmp_path) in folder
    assert missing(experiment_of([])) == []


def test_the_plan_of_whole_rows_counts_the_operations_that_a_row_takes() -> None:
    """Elimination of C^3 / 3, and a factor of the kept weights with their products with the masked ones, by hand for one layer."""
    layer = Layer("l", 10, 1000)
    guided = experiment_of(["pruner=guided", "pruner.block_size=500", "pruner.target.sparsity=0.75", "pruner.row_sets=2"]).pruner
    score, solve = guided.flops(layer)
    assert score == pytest.approx(2 * 2 * 500**3 + 10 * 2 * 500**3 / 3)
    assert solve == pytest.approx(10 * (250**3 / 3 + 2 * 250 * 750))


def test_wide_blocks_are_planned_at_a_higher_rate_on_a_cpu() -> None:
    costs, _ = models_of(chain([64]))
    rates = [costs.growth(size) for size in (16, 64, 128, 384, 1536)]
    assert rates[:2] == [1, 1] and rates == sorted(rates) and rates[-1] == pytest.approx(11.1, rel=0.01)
    assert replace(costs, gpu=True).growth(1536) == 1


def test_a_sequential_refit_that_does_not_fit_is_refused_with_a_remedy() -> None:
    settings = ["pruner=guided", "cluster=local", "data.eval_batch_size=1000", "recovery=none"]
    needs = plan_experiment(experiment_of(settings)).stage_bytes
    others = ("evaluating", "collecting", "scoring", "solving", "re-fitting")
    assert needs["collecting pairs of inputs"] > max(needs[work] for work in others)
    little = f"cluster.memory_gb={(needs['collecting pairs of inputs'] - 1000) / 1e9:.6f}"
    with pytest.raises(ConfigError, match=r"collecting pairs of inputs.*data\.eval_batch_size.*pruner\.refit\.order=parallel"):
        plan_experiment(experiment_of([*settings, little]))
    parallel = plan_experiment(experiment_of([*settings, little, "pruner.refit.order=parallel"]))
    assert "collecting pairs of inputs" not in parallel.stage_bytes


def test_evaluating_holds_the_weights_that_are_left_in_the_sparse_runtime() -> None:
    """Six bytes each; nothing where no weight is masked."""
    settings = ["pruner=cap", "cluster=local", "recovery=none", "compare=false"]

    def evaluating(*more: str) -> int:
        return plan_experiment(experiment_of([*settings, *more])).stage_bytes["evaluating"]

    weights = plan_experiment(experiment_of(settings)).profile.prunable_weights
    half, tenth = evaluating("pruner.target.sparsity=0.5"), evaluating("pruner.target.sparsity=0.9")
    assert half - tenth == pytest.approx(6 * 0.4 * weights, abs=2)
    assert tenth - evaluating("pruner=sosp_h") == pytest.approx(6 * 0.1 * weights, abs=2)


def test_passes_in_bfloat16_are_planned_at_their_rate() -> None:
    """The passes of a collection, a comparison and an evaluation are eight times as fast, and nothing else changes."""
    rates = ["cluster=local", "cluster.threads=1", "cluster.hardware.bf16_speedup=8", "model.checkpoint=x", "pruner=obc"]
    exact, rounded = (plan_experiment(experiment_of([*rates, f"precision={precision}"])) for precision in ("fp32", "bf16"))
    for stage in ("evaluate dense", "compare", "evaluate one-shot"):
        assert rounded.stages[stage].seconds == pytest.approx(exact.stages[stage].seconds / 8)
    assert rounded.stages["collect"].seconds < exact.stages["collect"].seconds
    for stage in ("score", "solve", "recover"):
        assert rounded.stages[stage].seconds == exact.stages[stage].seconds


def test_activations_that_are_computed_again_take_a_third_more_time_and_less_memory() -> None:
    alone = ["cluster=local", "cluster.threads=1", "recovery.ranks=1", "recovery.distill=none", "recovery.distill_weight=0"]
    kept, again = (plan_experiment(experiment_of([*alone, f"recovery.recompute={value}"])) for value in ("false", "true"))
    start = experiment_of(alone).cluster.hardware.gang_seconds
    assert again.stages["recover"].seconds - start == pytest.approx(4 / 3 * (kept.stages["recover"].seconds - start))
    profile, recipe = kept.profile, experiment_of(alone).recovery
    assert recipe is not None and profile.recomputed_bytes is not None
    bytes_of = Footprint(profile, "cpu", 1, 1, 1, 1)
    saved = bytes_of.train(recipe) - bytes_of.train(replace(recipe, recompute=True))
    assert saved == pytest.approx(recipe.batch_size * (profile.activation_bytes - profile.recomputed_bytes), abs=1)


def test_a_model_without_blocks_cannot_compute_them_again() -> None:
    with pytest.raises(ConfigError, match=r"recovery\.recompute: expected false, since the model has no repeated blocks .* got True"):
        plan_experiment(experiment_of(["+experiment=fashion_resnet", "recovery.recompute=true"]))
