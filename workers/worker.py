"""A worker: one accelerator, the verbs it does, and where their results go. It keeps nothing that a file does not hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from kernels import masks, select
from kernels.scores import loss_curve
from workers import evaluation, int8, sparse_times, timing
from workers.collect import moments
from workers.collect.paired_inputs import first, paired_inputs
from workers.data.base import Batch
from workers.errors import SecateurError
from workers.export import load_family, load_state, save_model
from workers.files import finish, read_result, write_tensors
from workers.kept_models import KeptModels
from workers.memory import keep_freed_memory, watched
from workers.messages import (
    AssessTask,
    CollectPairsTask,
    CollectTask,
    CollectUnitsTask,
    CompareTask,
    CompareTimeTask,
    CountTask,
    EvaluateTask,
    ImportTask,
    JoinTask,
    PredictTask,
    QuantiseTask,
    RankTask,
    RefitTask,
    ScoreTask,
    ShrinkTask,
    SolveTask,
    TimeLayersTask,
    TimeModelTask,
    TimeOperationTask,
    TimeSparseTask,
)
from workers.models.operations import Operation, find_operations
from workers.models.permitted import Builder, permit
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import take
from workers.numbers import derived_seed
from workers.precision import in_precision
from workers.pruners.refit import refit_layer
from workers.pruners.units import UnitSums
from workers.records import (
    MODEL,
    ImportedModel,
    Int8Model,
    JoinedModel,
    LayerScores,
    LayerSolution,
    LayerTimes,
    Machine,
    MeasuredIncrease,
    Metrics,
    ModelComparison,
    ModelTime,
    OperationTime,
    Outputs,
    PairedInputs,
    PartialMoment,
    PartialSums,
    Record,
    RefittedLayer,
    SmallerModel,
    SparseComparison,
    UnitRanking,
)
from workers.sparse import choices

NONE: Mapping[str, Builder | None] = {}


class Worker:
    """Does verbs. Verbs are idempotent: doing a task twice leaves equal bytes."""

    def __init__(self, device: str, threads: int, builders: Mapping[str, Builder | None] = NONE) -> None:
        permit(builders)
        torch.set_num_threads(threads)
        keep_freed_memory()
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.device = torch.device(device)
        self.kept = KeptModels(self.device)
        self._operations: tuple[str, list[Operation]] = ("", [])  # of the model that was timed last

    def describe(self) -> Machine:
        """What this worker runs on, for the report."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return Machine(device=name, torch=torch.__version__, threads=str(torch.get_num_threads()), host=os.uname().nodename)

    @watched
    def import_model(self, task: ImportTask) -> Record[ImportedModel]:
        """Store a checkpoint, or seeded initial weights, as a model file."""
        started = time.monotonic()
        state, keeps = (None, {}) if task.fresh else (task.family.pretrained_state(), task.family.pretrained_masks())
        notes = task.family.pretrained_notes()
        if state is None:
            torch.manual_seed(task.seed)
            state = task.family.build().state_dict()
        written = save_model(task.to.directory / MODEL, task.family, state, keeps)
        return finish(task.to, ImportedModel(notes), started, written)

    @watched
    def collect(self, task: CollectTask) -> list[Record[PartialMoment]]:
        """Partial statistics of some layers over one shard."""
        started = time.monotonic()
        seed = derived_seed(task.seed, "collect", task.shard)
        batches = task.data.calibration(task.shard, task.data.shards)
        model = self.kept.model(task.model, task.precision)
        collected = task.statistic.collect(model, list(task.layers), batches, task.loss, seed)
        return [moments.finish_moment(to, PartialMoment, task.shard, layer.name, collected, started) for layer, to in task.results]

    @watched
    def score(self, task: ScoreTask) -> Record[LayerScores]:
        """What each weight of a layer is worth."""
        started = time.monotonic()
        weight_RC, layer = self.kept.weight(task.model, task.layer), task.layer
        sensitivity = task.pruner.score(weight_RC, layer, moments.stored(task.partials, self.device))
        tensors = {"order_nG": sensitivity.order_nG, "loss_nG": sensitivity.loss_nG, "score_nG": sensitivity.score_nG}
        written = write_tensors(task.to.directory / LayerScores.file, tensors)
        tiles = layer.weights // task.pruner.pattern.tile
        numbers = LayerScores(
            layer=layer.name,
            zeros=masks.zeros(weight_RC),
            tiles=tiles,
            removable=int(torch.isfinite(sensitivity.score_nG).sum()),
            curve=loss_curve(sensitivity.loss_nG, tiles),
            notes=sensitivity.notes,
        )
        return finish(task.to, numbers, started, written)

    def count(self, task: CountTask) -> Tensor:
        """Histogram of a layer's scores, for the exact selection of a global threshold."""
        score_nG = read_result(task.scores)["score_nG"]
        return select.high_histogram(score_nG) if task.high_bin is None else select.low_histogram(score_nG, task.high_bin)

    def predict(self, task: PredictTask) -> Tensor:
        """Losses (float64) of removing the cheapest tiles of a layer. A method that predicts no loss is taken by its scores."""
        tensors = read_result(task.scores)
        score_n, loss_n = tensors["score_nG"].flatten(), tensors["loss_nG"].flatten()
        order = score_n.sort(stable=True).indices
        costs = (score_n if loss_n.isnan().any() else loss_n)[order].double()
        return torch.cat([costs.new_zeros(1), costs.cumsum(0)])[torch.tensor(task.counts)]

    @watched
    def solve(self, task: SolveTask) -> Record[LayerSolution]:
        """Mask and re-fitted weights of a layer."""
        started = time.monotonic()
        weight_RC, layer = self.kept.weight(task.model, task.layer), task.layer
        scores = {name: tensor.to(self.device) for name, tensor in read_result(task.scores).items()}
        keep_RC, counts_n = task.pruner.mask(layer, weight_RC, scores, task.tiles)
        solution = task.pruner.solve(weight_RC, layer, moments.stored(task.partials, self.device), keep_RC)
        if not torch.isfinite(solution.weight_RC).all():
            raise SecateurError(f"{layer.name}: the re-fitted weights are not finite; raise pruner.dampening")
        steps = torch.arange(scores["loss_nG"].shape[1], device=self.device)
        predicted = scores["loss_nG"].double()[steps < counts_n[:, None]].sum()
        tensors = {"weight_RC": solution.weight_RC, "keep": masks.pack_bits(solution.keep_RC)}
        written = write_tensors(task.to.directory / LayerSolution.file, tensors)
        numbers = LayerSolution(layer.name, int((~solution.keep_RC).sum()), float(predicted) if torch.isfinite(predicted) else None)
        return finish(task.to, numbers, started, written)

    @watched
    def collect_pairs(self, task: CollectPairsTask) -> list[Record[PairedInputs]]:
        """Inputs of some layers, in a model and in the same model with layers solved, over one shard."""
        started = time.monotonic()
        batches = first(task.samples, task.data.calibration(task.shard, task.data.shards))
        dense = self.kept.model(task.model, task.precision)
        pruned = self.kept.with_solutions(task.model, task.solutions, task.precision)
        collected = paired_inputs(dense, pruned, list(task.layers), batches, task.loss, task.data.eval_batch_size)
        return [moments.finish_moment(to, PairedInputs, task.shard, layer.name, collected, started) for layer, to in task.results]

    @watched
    def refit(self, task: RefitTask) -> Record[RefittedLayer]:
        """The kept weights of a layer, fitted to paired inputs."""
        started, numbers = time.monotonic(), task.solution.numbers
        keep_RC = masks.unpack_bits(read_result(task.solution)["keep"], (task.layer.rows, task.layer.columns)).to(self.device)
        pairs = moments.stored(task.pairs, self.device)
        weight_RC = refit_layer(self.kept.weight(task.model, task.layer), task.layer, pairs, keep_RC, task.pruner.refit)
        if not torch.isfinite(weight_RC).all():
            raise SecateurError(f"{task.layer.name}: the re-fitted weights are not finite; raise pruner.refit.dampening")
        tensors = {"weight_RC": weight_RC, "keep": masks.pack_bits(keep_RC)}
        written = write_tensors(task.to.directory / RefittedLayer.file, tensors)
        return finish(task.to, RefittedLayer(numbers.layer, numbers.zeros, numbers.predicted_loss), started, written)

    @watched
    def collect_units(self, task: CollectUnitsTask) -> Record[PartialSums]:
        """Sums of all units over one shard."""
        started = time.monotonic()
        groups = find_groups(load_family(task.model), task.data.input_shape, task.pruner.streams)

        def batches() -> Iterator[Batch]:
            return task.data.calibration(task.shard, task.shards)

        seed = derived_seed(task.seed, "measure", task.shard)
        part = task.pruner.collect(self.kept.model(task.model), groups, batches, task.loss, seed)
        written = write_tensors(task.to.directory / PartialSums.file, part.sums)
        return finish(task.to, PartialSums(task.shard, part.samples, part.batches, part.skipped), started, written)

    @watched
    def rank(self, task: RankTask) -> Record[UnitRanking]:
        """The order in which units go."""
        started = time.monotonic()
        parts = [
            UnitSums(read_result(record), record.numbers.samples, record.numbers.batches, record.numbers.skipped) for record in task.sums
        ]
        ranking = task.pruner.rank(find_groups(load_family(task.model), task.input_shape, task.pruner.streams), reduce(add, parts))
        written = write_tensors(task.to.directory / UnitRanking.file, {"order_S": ranking.order_S, "score_S": ranking.score_S})
        return finish(task.to, UnitRanking(len(ranking.order_S), ranking.notes), started, written)

    @watched
    def shrink(self, task: ShrinkTask) -> Record[SmallerModel]:
        """The smaller model; what was masked in it stays so."""
        started = time.monotonic()
        kept = {name: stays.bool() for name, stays in read_result(task.chosen).items()}
        family, (state, keeps) = load_family(task.model), load_state(task.model)
        groups = find_groups(family, task.input_shape, task.pruner.streams)
        smaller = take(state, groups, kept)
        weights = take({f"{name}.weight": keep for name, keep in keeps.items()}, groups, kept)
        masked = {name: weights[f"{name}.weight"] for name in keeps}
        written = save_model(task.to.directory / MODEL, shrunk(family, state, smaller, groups, kept), smaller, masked)
        return finish(task.to, SmallerModel(), started, written)

    def time_operation(self, task: TimeOperationTask) -> Record[OperationTime]:
        """How long an operation takes at some sizes. Memory is not watched, since watching takes time."""
        started, operation = time.monotonic(), self._operation(task)
        case = operation.at(task.units)
        measured = timing.time_operation(case.module, case.inputs, task.latency, self.device)
        return finish(task.to, OperationTime(**vars(measured), **vars(self.describe()), operation=case.text), started)

    def time_model(self, task: TimeModelTask) -> Record[ModelTime]:
        """How long a forward pass takes."""
        started = time.monotonic()
        model = timing.realised(task.family.build(), self.device)
        images_NCHW = torch.randn(task.latency.batch_size, *task.input_shape, device=self.device)
        measured = timing.time_model(model, images_NCHW, task.latency)
        return finish(task.to, ModelTime(**vars(measured), **vars(self.describe())), started)

    def compare_time(self, task: CompareTimeTask) -> Record[ModelComparison]:
        """How long a forward pass takes against that of another model."""
        started = time.monotonic()
        model, beside = (timing.realised(family.build(), self.device) for family in (task.family, task.beside))
        images_NCHW = torch.randn(task.latency.batch_size, *task.input_shape, device=self.device)
        (measured,) = timing.time_in_turn([model], beside, images_NCHW, task.latency)
        return finish(task.to, ModelComparison(**vars(measured), **vars(self.describe())), started)

    def time_layers(self, task: TimeLayersTask) -> Record[LayerTimes]:
        """How long layers take at some sparsities."""
        started = time.monotonic()
        ms, measured = sparse_times.layer_times(task, self.device)
        return finish(task.to, LayerTimes(**vars(self.describe()), ms=ms, measured=measured), started)

    def time_sparse(self, task: TimeSparseTask) -> Record[SparseComparison]:
        """How long a forward pass takes in the sparse runtime against that of the dense model."""
        started = time.monotonic()
        measured = sparse_times.model_time(task, self.device)
        return finish(task.to, SparseComparison(**vars(measured), **vars(self.describe())), started)

    def _operation(self, task: TimeOperationTask) -> Operation:
        key = repr((task.family, task.input_shape, task.streams, task.latency.batch_size))
        if self._operations[0] != key:
            groups = find_groups(task.family, task.input_shape, task.streams)
            self._operations = key, find_operations(task.family, task.input_shape, task.latency.batch_size, groups)
        return self._operations[1][task.operation]

    @watched
    def join(self, task: JoinTask) -> Record[JoinedModel]:
        """The model with its solved layers in place."""
        started = time.monotonic()
        state, keeps = load_state(task.model)
        for record in task.solutions:
            solution, name = read_result(record), record.numbers.layer
            shape = state[f"{name}.weight"].shape
            state[f"{name}.weight"] = solution["weight_RC"].reshape(shape).to(state[f"{name}.weight"].dtype)
            keeps[name] = masks.unpack_bits(solution["keep"], tuple(shape))
        written = save_model(task.to.directory / MODEL, load_family(task.model), state, keeps)
        return finish(task.to, JoinedModel(), started, written)

    @watched
    def quantise(self, task: QuantiseTask) -> Record[Int8Model]:
        """The model in 8 bits."""
        return int8.quantise(task)

    @watched
    def evaluate(self, task: EvaluateTask) -> Record[Outputs]:
        """Outputs of a model on a shard of a split."""
        started = time.monotonic()
        model = self.kept.model(task.model)
        batches = task.data.evaluation(task.split, task.shard, task.shards)
        dense = None if task.dense is None else self.kept.model(task.dense)
        timed = evaluation.timed_models(model, dense, self.device) if task.timed else {}
        found = evaluation.outputs(in_precision(model, task.precision), batches, self.device, timed)
        evaluation.require_finite(found.outputs, task.split)
        written = write_tensors(task.to.directory / Outputs.file, {"outputs": found.outputs, "labels": found.labels})
        sparse_layers = sum(layer.runtime == "sparse" for each in timed.values() for layer in choices(each))
        return finish(task.to, Outputs(len(found.labels), found.speeds, sparse_layers, vars(found.pace)), started, written)

    @watched
    def compare(self, task: CompareTask) -> Record[MeasuredIncrease]:
        """How much the calibration loss of a shard really rose."""
        started = time.monotonic()
        before, after = (self.kept.model(file, task.precision) for file in (task.before, task.after))
        total, samples = evaluation.total_loss_increase(
            before, after, task.data.calibration(task.shard, task.shards), task.loss, self.device
        )
        return finish(task.to, MeasuredIncrease(total, samples), started)

    @watched
    def assess(self, task: AssessTask) -> Record[Metrics]:
        """Metrics of a model from its outputs."""
        started = time.monotonic()
        outputs, labels = self._outputs(task.outputs["test"])
        metrics = evaluation.of_outputs(task.output, outputs, labels, self._outputs(task.dense_outputs["test"])[0])
        if "bank" in task.outputs:
            metrics |= evaluation.neighbour_accuracy(outputs, labels, *self._outputs(task.outputs["bank"]))
        timed = next(record.numbers for record in task.outputs["test"] if record.numbers.speeds)
        metrics |= evaluation.with_loading([evaluation.Pace(**record.numbers.pace) for record in task.outputs["test"]])
        metrics |= timed.speeds | {"sparse_layers": float(timed.sparse_layers), "test_samples": float(len(labels))}
        seconds = sum(record.seconds for records in task.outputs.values() for record in records)
        return finish(task.to, Metrics(metrics, seconds), started)

    def _outputs(self, records: Sequence[Record[Outputs]]) -> tuple[Tensor, Tensor]:
        parts = [read_result(record) for record in records]
        return torch.cat([part["outputs"] for part in parts]), torch.cat([part["labels"] for part in parts])
