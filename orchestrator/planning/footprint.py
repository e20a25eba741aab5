"""Predicted bytes that a worker holds: nothing is cut, and no run starts, that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Resources
from orchestrator.config import Experiment
from orchestrator.planning.costs import PlannedLayer
from workers.collect.statistic import SLICE_BYTES
from workers.errors import ConfigError
from workers.models.profile import ModelProfile
from workers.training.settings import Distill, Optimizer, Precision, Training

PROCESS_BYTES = {"cpu": 700_000_000, "cuda": 1_000_000_000}  # Python, torch, compiled kernels; or what CUDA keeps for itself
COMING_AND_GOING = 3  # largest activations beside those that are kept
GRADIENTS = 2  # those of the last batch are there until the next ones are complete
SCORING, ORDERING, SOLVING = 20, 60, 40  # bytes per weight: while slices are eliminated, after that, and to re-fit
MASKS = 3  # bytes per weight, to join


@dataclass(frozen=True)
class Footprint:
    """Bytes on one worker, the process itself included."""

    profile: ModelProfile
    device: str
    threads: int
    batch: int  # samples of a calibration batch
    models: int  # that a worker may hold while it collects, scores or solves

    @property
    def held(self) -> int:
        return PROCESS_BYTES[self.device] + self.models * self.profile.model_bytes

    def collect(self, layers: Sequence[PlannedLayer]) -> int:
        """Statistics and chunks; activations and gradients at their worst; on a GPU, whole copies of the largest while it is finished."""
        statistics = sum(planned.statistic_bytes for planned in layers)
        passing = COMING_AND_GOING * self.profile.largest_bytes * self.batch
        if not layers[0].by_gradients:
            return self.held + statistics + max(planned.working_bytes for planned in layers) + passing
        statistics += sum(planned.working_bytes for planned in layers)
        first, last = layers[0].depth, layers[-1].depth
        inputs = sum(planned.depth.input_bytes for planned in layers)
        gradients = 4 * sum(planned.layer.weights for planned in layers)
        at_the_loss = self.batch * (first.kept_bytes + inputs) + (GRADIENTS - 1) * gradients
        at_the_end = self.batch * (first.kept_bytes - last.kept_bytes + inputs) + GRADIENTS * gradients
        finishing = 3 * max(planned.statistic_bytes for planned in layers) if self.device == "cuda" else 0
        return self.held + statistics + max(finishing, passing + max(at_the_loss, at_the_end))

    def score(self, planned: PlannedLayer) -> int:
        """Slices of the statistic while the last is still there; then order, losses and scores while they are sorted."""
        return self.held + max(self._slices(planned) + SCORING * planned.entries, ORDERING * planned.entries)

    def solve(self, planned: PlannedLayer) -> int:
        return self.held + self._slices(planned) + SOLVING * planned.entries

    def _slices(self, planned: PlannedLayer) -> int:
        part = min(planned.statistic_bytes, SLICE_BYTES)
        lines = 8 * 3 * planned.block_size**2 // 2 * (self.threads + (not planned.by_gradients))  # float64, of each thread, and shared
        return part // 2 + part * (2 if planned.statistic_bytes > part else 1) + lines

    def collect_units(self, sum_bytes: int, reads_data: bool) -> int:
        """Sums and copies, and a pass forward and backward with gradients of all weights."""
        passing = self.profile.activation_bytes + COMING_AND_GOING * self.profile.largest_bytes
        return self.held + sum_bytes + (self.profile.model_bytes + self.batch * passing if reads_data else 0)

    def join(self, sparsity: float) -> int:
        """The whole model if it was pruned before (else its file is mapped), the weights that are left, and masks."""
        again = self.profile.model_bytes if self.models > 1 else 0
        return self.held + again + int((4 * (1 - sparsity) + MASKS) * self.profile.prunable_weights)

    def evaluate(self, batch: int, samples: int, models: int) -> int:
        """Passes forward; outputs of all samples are gathered."""
        held = PROCESS_BYTES[self.device] + models * self.profile.model_bytes
        return held + COMING_AND_GOING * self.profile.largest_bytes * batch + 8 * samples * self.profile.outputs

    def train(self, recovery: Training) -> int:
        """One rank of a gang: weights, gradients and optimizer as ZeRO shares them, the teacher, and activations of its part of a batch."""
        weights, stage, ranks = self.profile.model_bytes, recovery.zero_stage, recovery.ranks
        moments = 2 if recovery.optimizer is Optimizer.ADAMW else 1
        held = weights / (ranks if stage >= 3 else 1) + weights / (ranks if stage >= 2 else 1)
        held += moments * weights / (ranks if stage >= 1 else 1)
        held += 0 if recovery.distill is Distill.NONE else weights
        kept = self.profile.activation_bytes * (0.5 if recovery.precision is Precision.BF16 else 1.0)
        passing = COMING_AND_GOING * self.profile.largest_bytes
        return PROCESS_BYTES[self.device] + int(held + (kept + passing) * recovery.batch_size / ranks)


def footprint(experiment: Experiment, profile: ModelProfile, resources: Resources) -> Footprint:
    """A worker keeps the last two models: where there are several steps, the one before this."""
    models = 2 if experiment.steps > 1 else 1
    return Footprint(profile, resources.device, resources.threads, experiment.data.calibration_batch_size, models)


def check_memory(memory_bytes: int, needs: Sequence[tuple[str, int, str]]) -> None:
    """Raises: ConfigError for the first of ``needs`` (what, bytes, remedy) that a worker has no room for."""
    for what, needed, remedy in needs:
        if needed > memory_bytes:
            raise ConfigError(
                f"cluster.memory_gb: {what} needs {needed / 1e9:.1f} GB on a worker that has {memory_bytes / 1e9:.1f} GB; {remedy}"
            )
