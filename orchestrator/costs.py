"""Predicted seconds of each piece of work: for the plan, and to start the longest tasks first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Hardware, Resources
from orchestrator.config import Experiment
from workers.models.base import Layer
from workers.models.profile import Depth, ModelProfile
from workers.pruners.base import Pruner
from workers.pruners.magnitude import Magnitude
from workers.pruners.obc import OBC
from workers.pruners.sparsegpt import SparseGPT
from workers.pruners.wanda import Wanda
from workers.pruners.woodfisher import WoodFisher
from workers.recovery import Precision, Recovery

INVERT, ELIMINATE, REFIT = 1.0, 1 / 3, 0.3  # flops over B^3 of a block; the last as measured at half sparsity, beside the other two
BUILD_PASSES = 2  # initial weights are drawn, then replaced
SCORED_BYTES, SOLVED_BYTES = 10, 4.25  # of a weight's files: order, loss and score; new weight and mask


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, where it stands in the model, and the blocks of its statistic."""

    layer: Layer
    depth: Depth
    blocks: int
    block_size: int

    @property
    def shared(self) -> bool:
        """Whether rows share a matrix (a layer Hessian), so that no gradient is needed."""
        return self.blocks * self.block_size < self.layer.weights

    @property
    def entries(self) -> int:
        """Weights, with the padding of the last block of each row."""
        return max(self.layer.weights, self.blocks * self.block_size)

    @property
    def statistic_bytes(self) -> int:
        """In memory."""
        return 4 * self.blocks * self.block_size**2

    @property
    def stored_bytes(self) -> int:
        """In a file: lower triangles, and diagonals once more."""
        return 4 * self.blocks * (self.block_size * (self.block_size + 1) // 2 + self.block_size)

    @property
    def chunk_bytes(self) -> int:
        """Gradients that wait to be multiplied."""
        from workers.calibrate import chunk_size

        return 0 if self.shared or not self.blocks else 4 * chunk_size(self.block_size) * self.entries


@dataclass(frozen=True)
class CostModel:
    """Predicted seconds on one worker."""

    profile: ModelProfile
    hardware: Hardware
    pruner: Pruner
    threads: int
    gpu: bool
    samples_per_gradient: int
    gradients_per_shard: int

    @property
    def flops(self) -> float:
        """Matrix-product rate of a worker, flop/s; ``hardware.matmul_gflops`` is per GPU or per CPU thread."""
        return 1e9 * self.hardware.matmul_gflops * self.threads

    def write(self, size: float) -> float:
        return size / (1e9 * self.hardware.disk_gbs)

    def read(self, size: float) -> float:
        return size / (1e9 * self.hardware.read_gbs)

    def memory(self, size: float) -> float:
        """Taking memory into use."""
        return size / (1e9 * self.hardware.memory_gbs)

    def load(self) -> float:
        """Build a model, and fill it from its file: each worker, once for each model."""
        model = self.profile.model_bytes
        return BUILD_PASSES * self.memory(model) + self.read(model)

    def network(self, samples: float, backward: bool = False) -> float:
        """Forward, and a backward that trains everything: twice that."""
        return self._network(samples * self.profile.forward_flops * (3 if backward else 1))

    def _network(self, flops: float) -> float:
        return flops / (self.flops * self.hardware.model_efficiency)

    def backward_flops(self, layers: Sequence[PlannedLayer]) -> int:
        """Of one sample, down to the earliest of ``layers``: gradients of the activations after it, and of the weights of ``layers``.

        A product with a weight has one operand that changes, a product of activations two.
        """
        first = min((planned.depth for planned in layers), key=lambda depth: depth.weighted_before)
        after = self.profile.weighted_flops - first.weighted_before - first.flops
        mixed = self.profile.mixed_flops - first.mixed_before
        return after + 2 * mixed + sum(planned.depth.flops for planned in layers)

    def collect(self, layers: Sequence[PlannedLayer]) -> float:
        """One cell of the grid: passes of one shard down to the earliest layer, sums of outer products, and writing."""
        samples = self.gradients_per_shard * self.samples_per_gradient
        flops = self.profile.forward_flops
        if not any(planned.shared for planned in layers):
            flops += self.backward_flops(layers)
        outer = sum(self._outer_flops(planned) for planned in layers) / (self.flops * self.hardware.collect_efficiency)
        used = sum(planned.statistic_bytes + planned.chunk_bytes for planned in layers)
        return self._network(samples * flops) + outer + self.memory(used) + self.write(sum(planned.stored_bytes for planned in layers))

    def _outer_flops(self, planned: PlannedLayer) -> float:
        """``N d (B + 1)`` where symmetry is used, else ``2 N d B``; of a layer Hessian, with all of its input vectors for N."""
        squares = planned.blocks * planned.block_size**2
        if planned.shared:
            vectors = planned.depth.flops / (2 * planned.layer.weights)
            return 2.0 * self.gradients_per_shard * self.samples_per_gradient * vectors * squares
        return self.gradients_per_shard * (2.0 * squares if self.gpu else squares + planned.blocks * planned.block_size)

    def score(self, planned: PlannedLayer, shards: int) -> float:
        """Read and merge the shards; factor, invert and eliminate."""
        return self._on_statistic(planned, shards, score_flops(self.pruner, planned), SCORED_BYTES)

    def solve(self, planned: PlannedLayer, shards: int) -> float:
        """Read and merge the shards; factor and re-fit."""
        return self._on_statistic(planned, shards, solve_flops(self.pruner, planned), SOLVED_BYTES)

    def _on_statistic(self, planned: PlannedLayer, shards: int, flops: float, written_bytes: float) -> float:
        computing = flops / (self.flops * self.hardware.obs_efficiency)
        reading = self.read(shards * planned.stored_bytes) + self.memory(planned.statistic_bytes)
        return computing + reading + self.write(written_bytes * planned.layer.weights)

    def training(self, recovery: Recovery, samples: int, taught: bool) -> float:
        """Wall seconds of a gang: passes of student and teacher, and in each step the exchange of all gradients (a ring, both ways)."""
        compute = self.network(samples, backward=True) + (self.network(samples) if taught else 0.0)
        if recovery.precision is Precision.BF16:
            compute /= self.hardware.bf16_speedup
        exchanged = 2 * self.profile.model_bytes * (recovery.ranks - 1) / recovery.ranks
        steps = samples // recovery.batch_size
        return recovery.epochs * (compute / recovery.ranks + steps * exchanged / (1e9 * self.hardware.link_gbs))


def score_flops(pruner: Pruner, planned: PlannedLayer) -> float:
    """What a method computes to score a layer, roughly for all but CAP; an unknown method is taken for one that eliminates."""
    rows, size, matrices = planned.layer.rows, planned.block_size, planned.blocks
    match pruner:
        case Magnitude() | Wanda():
            return 0.0
        case WoodFisher():
            return 2 / 3 * matrices * size**3
        case SparseGPT():
            return 4 / 3 * matrices * size**3
        case OBC():
            return (INVERT * matrices + ELIMINATE * rows) * size**3
    return (INVERT + ELIMINATE) * matrices * size**3


def solve_flops(pruner: Pruner, planned: PlannedLayer) -> float:
    """What a method computes to solve a layer, roughly."""
    rows, size, matrices = planned.layer.rows, planned.block_size, planned.blocks
    match pruner:
        case Magnitude() | Wanda():
            return 0.0
        case SparseGPT():
            return 4 / 3 * matrices * size**3 + 2.0 * rows * size**2
    return REFIT * (rows if planned.shared else matrices) * size**3


def cost_model(experiment: Experiment, profile: ModelProfile, resources: Resources) -> CostModel:
    data, gpu = experiment.data, resources.device == "cuda"
    return CostModel(
        profile,
        experiment.cluster.hardware,
        experiment.pruner,
        1 if gpu else resources.threads,
        gpu,
        data.calibration_batch_size,
        -(-data.calibration_batches // data.shards),
    )
