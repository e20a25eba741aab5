"""Predicts the time of each task, for the plan and to start the longest tasks first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Hardware, Resources
from orchestrator.config import Experiment
from workers.collect.statistic import refit_flops
from workers.losses import Loss
from workers.models.base import Layer
from workers.models.profile import Depth, ModelProfile
from workers.precision import Precision
from workers.pruners.base import Pruner, WeightPruner
from workers.pruners.units import UnitPruner
from workers.training.settings import Training

BUILD_PASSES = 2  # a model's weights are initialised, then replaced
HALF_RATE = 1200  # weights in a block with half of the highest rate
SCORED_BYTES, SOLVED_BYTES = 10, 4.25  # stored for each weight: order, loss and score; new weight and mask


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, its position in the model, and the matrices of its statistic for one shard. These are zero without a statistic.

    Collecting takes ``working_bytes`` of memory beside the matrices.
    """

    layer: Layer
    depth: Depth
    blocks: int
    block_size: int
    working_bytes: int = 0
    by_gradients: bool = True
    shared: bool = False

    @property
    def vectors(self) -> float:
        """The input vectors of a sample: tokens of a Linear, output positions of a convolution."""
        return self.depth.flops / (2 * self.layer.weights)

    @property
    def entries(self) -> int:
        """The number of weights with their padding; rows that share a matrix have none."""
        return max(self.blocks * self.block_size, self.layer.weights)

    @property
    def statistic_bytes(self) -> int:
        """The size of the statistic in memory."""
        return 4 * self.blocks * self.block_size**2

    @property
    def pair_bytes(self) -> int:
        """The size of the sums over pairs of inputs in memory: a symmetric matrix and another one for each group."""
        return 8 * self.layer.groups * self.layer.columns**2

    @property
    def stored_pair_bytes(self) -> int:
        """The size of these sums in a file."""
        return 2 * self.layer.groups * self.layer.columns * (3 * self.layer.columns + 3)

    @property
    def stored_bytes(self) -> int:
        """The size of the statistic in a file: lower triangles, and the diagonals again."""
        return 2 * self.blocks * self.block_size * (self.block_size + 3)


@dataclass(frozen=True)
class CostModel:
    """Predicts seconds on one worker."""

    profile: ModelProfile
    hardware: Hardware
    pruner: Pruner
    threads: int
    gpu: bool
    precision: Precision  # of the passes that collect, compare and evaluate
    samples_per_gradient: int
    gradients_per_shard: int

    @property
    def flops(self) -> float:
        """The matrix-product rate of a worker in flop/s; ``hardware.matmul_gflops`` is per GPU or per CPU thread."""
        return 1e9 * self.hardware.matmul_gflops * self.threads

    def write(self, size: float) -> float:
        return size / (1e9 * self.hardware.disk_gbs)

    def read(self, size: float) -> float:
        return size / (1e9 * self.hardware.read_gbs)

    def memory(self, size: float) -> float:
        """Returns the time to touch new memory."""
        return size / (1e9 * self.hardware.memory_gbs)

    def load(self) -> float:
        """Returns the time to build a model and to fill it from its file, once for each worker and model."""
        model = self.profile.model_bytes
        return BUILD_PASSES * self.memory(model) + self.read(model)

    def network(self, samples: float, backward: bool = False) -> float:
        """Returns the time of a forward pass; a backward pass with gradients of all weights takes twice as long."""
        return self._network(samples * self.profile.forward_flops * (3 if backward else 1))

    def passes(self, samples: float) -> float:
        """Returns the time of a forward pass to compare or evaluate."""
        return self.network(samples) / self._speedup(self.precision)

    def _speedup(self, precision: Precision) -> float:
        return self.hardware.bf16_speedup if precision is Precision.BF16 else 1.0

    def _network(self, flops: float) -> float:
        return flops / (self.flops * self.hardware.model_efficiency)

    def backward_flops(self, layers: Sequence[PlannedLayer]) -> int:
        """Returns the flops of a backward pass of one sample that computes gradients of the weights of ``layers``.

        It ends at the earliest of ``layers``, and needs gradients of all activations after that. A product with a weight has one operand
        with a gradient, a product of activations has two.
        """
        first = min((planned.depth for planned in layers), key=lambda depth: depth.weighted_before)
        after = self.profile.weighted_flops - first.weighted_before - first.flops
        mixed = self.profile.mixed_flops - first.mixed_before
        return after + 2 * mixed + sum(planned.depth.flops for planned in layers)

    def collect(self, layers: Sequence[PlannedLayer]) -> float:
        """Returns the time of one cell of the grid: passes of one shard back to the earliest layer, sums of outer products, and writing."""
        samples = self.gradients_per_shard * self.samples_per_gradient
        flops = self.profile.forward_flops
        if layers[0].by_gradients:
            flops += self.backward_flops(layers)
        outer = sum(self.outer_flops(planned) for planned in layers) / (self.flops * self.hardware.collect_efficiency)
        used_bytes = sum(planned.statistic_bytes + planned.working_bytes for planned in layers)
        passes = self._network(samples * flops) / self._speedup(self.precision)
        return passes + outer + self.memory(used_bytes) + self.write(sum(planned.stored_bytes for planned in layers))

    def outer_flops(self, planned: PlannedLayer) -> float:
        """Returns ``N n B (B + 1)`` flops where symmetry is used, else ``2 N n B^2``, for N vectors in each of n matrices.

        Statistics with a backward pass are summed by the symmetric kernel of the CPU. Rows that share a matrix add all input vectors to it,
        other blocks a gradient for each batch.
        """
        vectors = self.gradients_per_shard * (self.samples_per_gradient * planned.vectors if planned.shared else 1)
        squares, symmetric = planned.blocks * planned.block_size**2, planned.by_gradients and not self.gpu
        return vectors * (squares + planned.blocks * planned.block_size if symmetric else 2.0 * squares)

    def score(self, planned: PlannedLayer, shards: int) -> float:
        """Returns the time to read and merge the shards, and to factor, invert and eliminate."""
        assert isinstance(self.pruner, WeightPruner)
        growth = self.growth(self.pruner.layout(planned.layer).block_size)
        computing = self._pruning(planned)[0] / (self.flops * self.hardware.score_efficiency * growth)
        return computing + self._on_statistic(planned, shards, SCORED_BYTES)

    def solve(self, planned: PlannedLayer, shards: int) -> float:
        """Returns the time to read and merge the shards, and to factor and re-fit."""
        growth = self.growth(planned.block_size) if planned.shared else 1.0
        computing = self._pruning(planned)[1] / (self.flops * self.hardware.solve_efficiency * growth)
        return computing + self._on_statistic(planned, shards, SOLVED_BYTES)

    def collect_pairs(self, layers: Sequence[PlannedLayer], samples: int) -> float:
        """Returns the time of passes of two models as far as the last of ``layers``, of sums of products, and of writing."""
        last = layers[-1].depth
        reached = (last.weighted_before + last.flops + last.mixed_before) / self.profile.forward_flops
        vectors = [samples * planned.vectors for planned in layers]
        squares = [planned.layer.groups * planned.layer.columns**2 for planned in layers]
        outer = sum((2 if self.gpu else 1) * n * square + 2 * n * square for n, square in zip(vectors, squares, strict=True))
        written = sum(planned.stored_pair_bytes for planned in layers)
        return 2 * reached * self.passes(samples) + outer / (self.flops * self.hardware.collect_efficiency) + self.write(written)

    def refit(self, planned: PlannedLayer, shards: int) -> float:
        """Returns the time to read and merge pairs of inputs, and to factor and fit."""
        layer = planned.layer
        assert isinstance(self.pruner, WeightPruner)
        flops = refit_flops(layer.rows, layer.columns, self.pruner.target.sparsity)
        computing = flops / (self.flops * self.hardware.solve_efficiency * self.growth(layer.columns))
        reading = self.read(shards * planned.stored_pair_bytes) + self.memory(planned.pair_bytes)
        return computing + reading + self.write(SOLVED_BYTES * layer.weights)

    def growth(self, block_size: int) -> float:
        """Returns how much faster a CPU computes in blocks of this size than in blocks of 64, for which the rates are given.

        On an AMD EPYC, the rate grows twelvefold from 64 to 2,048, to three quarters of that of matrix products. The formula is within a
        third of what was measured. Smaller blocks count as blocks of 64.
        """
        return 1.0 if self.gpu or block_size <= 64 else block_size / 64 * (64 + HALF_RATE) / (block_size + HALF_RATE)

    def _pruning(self, planned: PlannedLayer) -> tuple[float, float]:
        """Returns the flops of ``score`` and ``solve``."""
        return self.pruner.flops(planned.layer)

    def collect_units(self, pruner: UnitPruner, loss: Loss) -> float:
        """Returns the time of the passes over one shard; a backward pass has twice the flops of a forward pass.

        Raises: ConfigError for a loss that the pruner cannot use.
        """
        forward, backward = pruner.passes(loss, self.profile.outputs)
        return (forward + 2 * backward) * self.network(self.gradients_per_shard * self.samples_per_gradient)

    def _on_statistic(self, planned: PlannedLayer, shards: int, written_bytes: float) -> float:
        reading = self.read(shards * planned.stored_bytes) + self.memory(planned.statistic_bytes)
        return reading + self.write(written_bytes * planned.layer.weights)

    def training(self, recipe: Training, samples: int, has_teacher: bool) -> float:
        """Returns the wall time of a gang: passes of student and teacher, and a ring all-reduce of all gradients in each step."""
        compute = self.network(samples, backward=True) + (has_teacher + recipe.recompute) * self.network(samples)
        compute /= self._speedup(recipe.precision)
        exchanged_bytes = 2 * self.profile.model_bytes * (recipe.ranks - 1) / recipe.ranks
        steps = samples // recipe.batch_size
        return recipe.epochs * (compute / recipe.ranks + steps * exchanged_bytes / (1e9 * self.hardware.link_gbs))


def cost_model(experiment: Experiment, profile: ModelProfile, resources: Resources) -> CostModel:
    data, gpu = experiment.data, resources.device == "cuda"
    return CostModel(
        profile,
        experiment.cluster.hardware,
        experiment.pruner,
        1 if gpu else resources.threads,
        gpu,
        experiment.precision,
        data.calibration_batch_size,
        -(-data.calibration_batches // data.shards),
    )
