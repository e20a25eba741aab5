"""The grid of layers and shards of the calibration data: a result for each cell, whose layers are computed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from orchestrator.planning.costs import PlannedLayer
from orchestrator.run import Run
from workers.models.base import Layer
from workers.records import Destination, PartialMoment, Record
from workers.worker import Worker

Kind = TypeVar("Kind", bound=PartialMoment)
Portion = Sequence[PlannedLayer]


class MakeTask(Protocol):
    """Makes the task of some layers and a shard, whose results go to ``to``."""

    def __call__(self, layers: tuple[Layer, ...], shard: int, to: tuple[Destination, ...]) -> Any: ...


def compute_cells(
    run: Run,
    stage: str,
    verb: Callable[[Worker, Any], list[Record[Kind]]],
    layers: Sequence[PlannedLayer],
    destination: Callable[[Layer, int], Destination],
    cut: Callable[[list[PlannedLayer]], Sequence[Portion]],
    make_task: MakeTask,
    cost: Callable[[Portion], float] = len,
) -> dict[str, list[Record[Kind]]]:
    """Results of a verb, a list over shards for each layer. Only cells that are not stored are computed, the longest tasks first.

    ``destination`` says where the result of a layer and a shard goes, ``cut`` cuts layers into portions for one task each.
    """
    shards = run.experiment.data.shards
    grid = {(planned.layer.name, shard): destination(planned.layer, shard) for planned in layers for shard in range(shards)}

    def make_tasks(wanted: Sequence[Destination]) -> list[Any]:
        fingerprints, tasks = {to.fingerprint for to in wanted}, []
        for shard in range(shards):
            missing = [planned for planned in layers if grid[planned.layer.name, shard].fingerprint in fingerprints]
            for portion in cut(missing):
                names = tuple(planned.layer for planned in portion)
                to = tuple(grid[layer.name, shard] for layer in names)
                tasks.append((cost(portion), make_task(names, shard, to)))
        tasks.sort(key=lambda task: -task[0])
        return [task for _, task in tasks]

    cells = dict(zip(grid, run.results(stage, verb, list(grid.values()), make_tasks), strict=True))
    return {planned.layer.name: [cells[planned.layer.name, shard] for shard in range(shards)] for planned in layers}
