"""Predicts the memory of a worker, so that the grid is cut to fit and no run starts that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Resources
from orchestrator.config import Experiment
from orchestrator.planning.costs import PlannedLayer
from workers.collect.base import PATCH_BYTES, chunk_bytes
from workers.collect.statistic import SLICE_BYTES
from workers.errors import ConfigError
from workers.models.profile import ModelProfile
from workers.precision import Precision
from workers.training.settings import Distill, Optimizer, Training

PROCESS_BYTES = {"cpu": 700_000_000, "cuda": 1_000_000_000}  # Python, torch and compiled kernels; the context of CUDA
ROW_BYTES = 6  # of a weight that is left, in the sparse runtime: its value and its column
PASSING_ACTIVATIONS = 3  # of the largest size, beside those that are kept for the backward pass
GRADIENTS = 2  # gradients of the last batch are kept until the next ones are complete
SCORING, ORDERING, SOLVING = 20, 60, 40  # bytes per weight: while slices are eliminated, after that, and to re-fit
MASKS = 3  # bytes per weight, to join


@dataclass(frozen=True)
class Footprint:
    """Predicts bytes on one worker, including the process itself."""

    profile: ModelProfile
    device: str
    threads: int
    batch: int  # samples in a calibration batch
    pass_batch: int  # samples in a forward pass alone, where batches need not be kept apart
    models: int  # models that a worker may hold while it collects, scores or solves

    @property
    def held(self) -> int:
        return PROCESS_BYTES[self.device] + self.models * self.profile.model_bytes

    def collect(self, layers: Sequence[PlannedLayer]) -> int:
        """Returns the bytes of statistics and chunks, and of the peak beside them: activations and gradients or, on a GPU, copies of the
        largest statistic."""
        statistics = sum(planned.statistic_bytes for planned in layers)
        passing = PASSING_ACTIVATIONS * self.profile.largest_bytes * self.batch
        if not layers[0].by_gradients:
            return self.held + statistics + max(planned.working_bytes for planned in layers) + passing
        statistics += sum(planned.working_bytes for planned in layers)
        if layers[0].shared:
            return self.held + statistics + passing + self._derivatives(layers)
        first, last = layers[0].depth, layers[-1].depth
        inputs = sum(planned.depth.input_bytes for planned in layers)
        gradients = 4 * sum(planned.layer.weights for planned in layers)
        at_the_loss = self.batch * (first.kept_bytes + inputs) + (GRADIENTS - 1) * gradients
        at_the_end = self.batch * (first.kept_bytes - last.kept_bytes + inputs) + GRADIENTS * gradients
        finishing = 3 * max(planned.statistic_bytes for planned in layers) if self.device == "cuda" else 0
        return self.held + statistics + max(finishing, passing + max(at_the_loss, at_the_end))

    def _derivatives(self, layers: Sequence[PlannedLayer]) -> int:
        """Returns the bytes of activations back to the earliest layer, of the derivatives of all outputs, and of unfolded inputs."""
        outputs = sum(4 * planned.layer.rows * planned.vectors for planned in layers)
        inputs = sum(planned.depth.input_bytes for planned in layers)
        unfolded = 2 * PATCH_BYTES if any(planned.layer.kernel > 1 for planned in layers) else 0
        return int(self.batch * (layers[0].depth.kept_bytes + inputs + outputs)) + unfolded

    def collect_pairs(self, layers: Sequence[PlannedLayer]) -> int:
        """Returns the bytes of sums over pairs of inputs, of the inputs of a batch in two models, and of unfolded ones."""
        sums = sum(planned.pair_bytes + chunk_bytes(planned.layer.groups, planned.layer.columns, shared=True) for planned in layers)
        inputs = 2 * self.pass_batch * sum(planned.depth.input_bytes for planned in layers)
        unfolded = 3 * PATCH_BYTES if any(planned.layer.kernel > 1 for planned in layers) else 0
        passing = PASSING_ACTIVATIONS * self.profile.largest_bytes * self.pass_batch
        return self.held + self.profile.model_bytes + sums + inputs + unfolded + passing

    def refit(self, planned: PlannedLayer) -> int:
        """Returns the bytes of merged sums, of double copies of the matrices of a group, and of fitting."""
        layer = planned.layer
        rows = 8 * 3 * layer.columns**2 // 2 * (self.threads + 1)
        return self.held + planned.pair_bytes + 16 * layer.columns**2 + rows + (SOLVING + 16) * layer.weights

    def score(self, planned: PlannedLayer) -> int:
        """Returns the peak of two steps: slices of the statistic, and then order, losses and scores while they are sorted."""
        return self.held + max(self._slices(planned) + SCORING * planned.entries, ORDERING * planned.entries)

    def solve(self, planned: PlannedLayer) -> int:
        """Returns the bytes of slices of the statistic, and of re-fitting."""
        return self.held + self._slices(planned) + SOLVING * planned.entries

    def _slices(self, planned: PlannedLayer) -> int:
        """Returns the peak bytes while the statistic is processed in slices."""
        part = min(planned.statistic_bytes, SLICE_BYTES)
        rows = 8 * 3 * planned.block_size**2 // 2 * (self.threads + planned.shared)  # float64, for each thread and shared
        return part // 2 + part * (2 if planned.statistic_bytes > part else 1) + rows

    def collect_units(self, sum_bytes: int, reads_data: bool) -> int:
        """Returns the bytes of sums and copies, and of a forward and a backward pass with gradients of all weights."""
        passing = self.profile.activation_bytes + PASSING_ACTIVATIONS * self.profile.largest_bytes
        return self.held + sum_bytes + (self.profile.model_bytes + self.batch * passing if reads_data else 0)

    def join(self, sparsity: float) -> int:
        """Returns the bytes of the whole model if it was pruned before (else its file is mapped), the remaining weights and masks."""
        model = self.profile.model_bytes if self.models > 1 else 0
        return self.held + model + int((4 * (1 - sparsity) + MASKS) * self.profile.prunable_weights)

    def evaluate(self, batch: int, samples: int, models: int, sparsity: float | None = None) -> int:
        """Returns the bytes of forward passes, and of the outputs of all samples; with a ``sparsity``, also of the sparse runtime."""
        held = PROCESS_BYTES[self.device] + models * self.profile.model_bytes
        if sparsity is not None and self.device == "cpu":
            held += int(ROW_BYTES * (1 - sparsity) * self.profile.prunable_weights)
        return held + PASSING_ACTIVATIONS * self.profile.largest_bytes * batch + 8 * samples * self.profile.outputs

    def train(self, recipe: Training) -> int:
        """Returns the bytes of one rank of a gang: weights, gradients and optimizer as ZeRO shards them, the teacher, and activations."""
        weights, stage, ranks = self.profile.model_bytes, recipe.zero_stage, recipe.ranks
        moments = 2 if recipe.optimizer is Optimizer.ADAMW else 1
        held = weights / (ranks if stage >= 3 else 1) + weights / (ranks if stage >= 2 else 1)
        held += moments * weights / (ranks if stage >= 1 else 1)
        held += 0 if recipe.distill is Distill.NONE else weights
        kept = (self.profile.recomputed_bytes if recipe.recompute else None) or self.profile.activation_bytes
        half = 0.5 if recipe.precision is Precision.BF16 else 1.0
        passing = PASSING_ACTIVATIONS * self.profile.largest_bytes
        return PROCESS_BYTES[self.device] + int(held + (half * kept + passing) * recipe.batch_size / ranks)


def footprint(experiment: Experiment, profile: ModelProfile, resources: Resources) -> Footprint:
    """Returns the footprint of a round. With several steps, a worker also keeps the model of the step before."""
    models = 2 if experiment.steps > 1 else 1
    data = experiment.data
    pass_batch = max(data.calibration_batch_size, data.eval_batch_size)
    return Footprint(profile, resources.device, resources.threads, data.calibration_batch_size, pass_batch, models)


def check_memory(memory_bytes: int, needs: Sequence[tuple[str, int, str]]) -> None:
    """Checks that each of ``needs`` (work, bytes, remedy) fits.

    Raises: ConfigError for the first that does not.
    """
    for work, needed, remedy in needs:
        if needed > memory_bytes:
            raise ConfigError(f"cluster.memory_gb: {work} needs {needed / 1e9:.1f} GB, a worker has {memory_bytes / 1e9:.1f} GB; {remedy}")
