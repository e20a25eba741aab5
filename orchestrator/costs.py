"""Predicted seconds and bytes of each piece of work: for the plan, and to start the longest tasks first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Hardware, Resources
from orchestrator.config import Experiment
from workers.models.base import Layer
from workers.models.profile import ModelProfile
from workers.recovery import Recovery

SLICE_BYTES = 256 * 2**20  # of a statistic, factored at a time (workers/pruners/obs.py)
INVERT, ELIMINATE, SOLVE = 2.0, 2 / 3, 1.0  # flops over d B^2, d being the weights and B the block size


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, the matrices of its statistic (one shard), and what collecting takes beside them: all zero without a statistic."""

    layer: Layer
    blocks: int
    block_size: int
    working_bytes: int = 0

    @property
    def entries(self) -> int:
        """Weights with their padding; rows that share a matrix have none."""
        return max(self.blocks * self.block_size, self.layer.weights)

    @property
    def statistic_bytes(self) -> int:
        """In memory."""
        return 4 * self.blocks * self.block_size**2

    @property
    def stored_bytes(self) -> int:
        """In a file: lower triangles, and diagonals once more."""
        return 2 * self.blocks * self.block_size * (self.block_size + 3)

    @property
    def collect_bytes(self) -> int:
        return self.statistic_bytes + self.working_bytes

    @property
    def score_bytes(self) -> int:
        """A slice of the statistic, packed and whole; order, losses and scores with a copy of each; two copies of the weights."""
        return 2 * min(self.statistic_bytes, SLICE_BYTES) + (2 * 10 + 2 * 4) * self.entries


@dataclass(frozen=True)
class CostModel:
    """Predicted seconds on one worker."""

    profile: ModelProfile
    hardware: Hardware
    threads: int
    samples_per_gradient: int
    gradients_per_shard: int

    @property
    def flops(self) -> float:
        """Matrix-product rate of a worker, flop/s; ``hardware.matmul_gflops`` is per GPU or per CPU thread."""
        return 1e9 * self.hardware.matmul_gflops * self.threads

    def disk(self, size: float) -> float:
        return size / (1e9 * self.hardware.disk_gbs)

    def network(self, samples: float, backward: bool) -> float:
        """Forward, and a backward of twice that."""
        return samples * self.profile.forward_flops * (3 if backward else 1) / (self.flops * self.hardware.model_efficiency)

    def gradients(self) -> float:
        """All gradients of one shard."""
        return self.network(self.gradients_per_shard * self.samples_per_gradient, backward=True)

    def collect(self, layers: Sequence[PlannedLayer]) -> float:
        """One cell of the grid: gradients once, ``2 N d B`` flops of outer products, and writing the statistics."""
        outer = sum(2.0 * self.gradients_per_shard * planned.blocks * planned.block_size**2 for planned in layers)
        written = sum(planned.stored_bytes for planned in layers)
        return self.gradients() + outer / (self.flops * self.hardware.collect_efficiency) + self.disk(written)

    def score(self, planned: PlannedLayer, shards: int) -> float:
        """Merge the shards; ``2 d B^2`` flops of factor and inverse and ``2/3 d B^2`` of elimination."""
        return self._obs(planned, INVERT, ELIMINATE) + self.disk(shards * planned.stored_bytes)

    def solve(self, planned: PlannedLayer, shards: int) -> float:
        """Merge the shards; about ``d B^2`` flops."""
        return self._obs(planned, 0, SOLVE) + self.disk(shards * planned.stored_bytes)

    def _obs(self, planned: PlannedLayer, per_matrix: float, per_weight: float) -> float:
        """``per_matrix * B^3`` flops for each matrix and ``per_weight * B^2`` for each weight; methods that eliminate nothing take less."""
        flops = per_matrix * planned.blocks * planned.block_size**3 + per_weight * planned.entries * planned.block_size**2
        return flops / (self.flops * self.hardware.obs_efficiency)

    def training(self, recovery: Recovery, samples: int, teacher: bool) -> float:
        """Wall seconds of a gang."""
        one_pass = self.network(samples, backward=True) + (self.network(samples, backward=False) if teacher else 0.0)
        return recovery.epochs * one_pass / recovery.ranks


def cost_model(experiment: Experiment, profile: ModelProfile, resources: Resources) -> CostModel:
    data = experiment.data
    gradients = -(-data.calibration_batches // data.shards)
    threads = resources.threads if resources.device == "cpu" else 1
    return CostModel(profile, experiment.cluster.hardware, threads, data.calibration_batch_size, gradients)
