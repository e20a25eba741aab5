"""Times the operations of a model at all widths: measures few sizes, and equal layers share them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.allocation.widths import evenly_spaced
from workers.files import whole
from workers.models.structure_costs import Part
from workers.records import OperationTime, Record

if TYPE_CHECKING:
    from workers.models.operations import Operation
    from workers.models.structures.groups import Group

FLAT = 0.02  # times that differ by a smaller fraction are one plateau of a staircase,
NEGLIGIBLE = 2e-4  # as are times that differ by a smaller fraction of the whole model's time
TABLE = "latency.parquet"
Cell = tuple[int, ...]  # for each axis, the position of one of its levels


@dataclass(frozen=True)
class OperationTable:
    """Milliseconds of one operation at all combinations of the ``levels`` (rising numbers of units) of its axes.

    A size that was not measured is on a plateau, and has the time of the plateau's last size, the one with the most units.
    """

    operation: Operation
    levels: tuple[tuple[int, ...], ...]
    ms: Mapping[Cell, float]

    def at(self, units: Mapping[str, int]) -> float:
        """Returns the time for ``units`` of each group: that of the next level at or above, and 0 if an axis has no units."""
        counts = [sum(units[name] for name in axis.groups) for axis in self.operation.axes]
        if 0 in counts:
            return 0.0
        return self.ms[tuple(bisect_left(levels, count) for levels, count in zip(self.levels, counts, strict=True))]

    @property
    def dense_ms(self) -> float:
        """The time with all units."""
        return self.ms[tuple(len(levels) - 1 for levels in self.levels)]

    @property
    def units(self) -> dict[str, int]:
        """The units of each group; groups that share an axis have equal parts of it."""
        return {name: axis.units // len(axis.groups) for axis in self.operation.axes for name in axis.groups}

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for axis in self.operation.axes for name in axis.groups))


@dataclass(frozen=True)
class LatencyTable:
    """All operations of a model in the order of its forward pass. ``model_ms`` is the time of the whole model, end to end.

    ``measured`` holds each measured size once; the tables of all operations have ``all_sizes`` sizes together.
    """

    operations: tuple[OperationTable, ...]
    model_ms: float
    measured: tuple[Record[OperationTime], ...]
    all_sizes: int

    @property
    def total_ms(self) -> float:
        """The time of all operations at their full widths."""
        return sum(table.dense_ms for table in self.operations)

    @property
    def scale(self) -> float:
        """The time of the model divided by that of its operations. Python between modules raises it, fused operations lower it."""
        return self.model_ms / self.total_ms

    def parts(self) -> list[Part]:
        """Returns the milliseconds of the model as functions of the units of its groups; they sum to ``model_ms`` at full widths."""
        return [Part(table.groups, lambda units, table=table: self.scale * table.at(units)) for table in self.operations]  # type: ignore[misc]

    def summary(self) -> dict[str, float]:
        """Returns how the table was measured, for the report."""
        return {"scale": self.scale, "measured_sizes": len(self.measured), "table_sizes": self.all_sizes}

    def levels(self, group: Group) -> Sequence[int]:
        """Returns the numbers of units at which an operation on this group alone was timed."""
        timed = (
            levels
            for table in self.operations
            for axis, levels in zip(table.operation.axes, table.levels, strict=True)
            if axis.groups == (group.name,)
        )
        return next(timed, tuple(range(1, group.units + 1)))

    def write(self, path: Path) -> None:
        """Writes the table as parquet, with a row for each measured size of an operation."""
        import pyarrow
        import pyarrow.parquet

        names = ("operation", "ms", "spread", "repeats", "device", "torch", "threads", "host")
        columns: dict[str, list[Any]] = {name: [getattr(record.numbers, name) for record in self.measured] for name in names}
        columns["measured_at"] = [record.started for record in self.measured]
        with whole(path) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)


def fill(shape: Sequence[int], ms_at: Mapping[Cell, float], flat_ms: float) -> tuple[dict[Cell, float], list[Cell]]:
    """Returns the times of all cells of a table of ``shape``, and the cells to measure first; the times are complete once there are none.

    A rectangle is a plateau if its largest corner takes at most 2 % (or ``flat_ms``) longer than its smallest; other rectangles are halved
    along their longest side. A plateau of any length therefore takes two measurements.
    """
    filled: dict[Cell, float] = {}
    missing: dict[Cell, None] = {}
    open_rectangles = [(tuple(0 for _ in shape), tuple(size - 1 for size in shape))]
    while open_rectangles:
        low, high = open_rectangles.pop()
        unknown = [cell for cell in (low, high) if cell not in ms_at]
        if unknown:
            missing |= dict.fromkeys(unknown)
        elif low == high or ms_at[high] - ms_at[low] <= max(FLAT * ms_at[high], flat_ms):
            plateau_ms = max(ms_at[low], ms_at[high])
            filled |= {cell: ms_at.get(cell, plateau_ms) for cell in _cells(low, high)}
        else:
            open_rectangles += _halves(low, high)
    return filled, list(missing)


def _cells(low: Cell, high: Cell) -> Iterator[Cell]:
    return product(*(range(first, last + 1) for first, last in zip(low, high, strict=True)))


def _halves(low: Cell, high: Cell) -> list[tuple[Cell, Cell]]:
    side = max(range(len(low)), key=lambda axis: high[axis] - low[axis])
    middle = (low[side] + high[side]) // 2

    def moved(corner: Cell, to: int) -> Cell:
        return (*corner[:side], to, *corner[side + 1 :])

    return [(low, moved(high, middle)), (moved(low, middle + 1), high)]


def build_table(
    operations: Sequence[Operation],
    widths: int,
    model_ms: float,
    time_cells: Callable[[list[tuple[int, Cell]]], list[Record[OperationTime]]],
) -> LatencyTable:
    """Builds the table of ``operations`` at up to ``widths`` levels of each axis.

    ``time_cells`` gets pairs of an operation's number and the units on its axes, and returns a record for each. Operations that are equal
    at their full widths and lose the same with each unit share their measurements.
    """
    same = _first_alike(operations)
    levels = {number: tuple(evenly_spaced(axis.units, widths) for axis in operations[number].axes) for number in same}
    ms_at: dict[int, dict[Cell, float]] = {number: {} for number in levels}
    filled: dict[int, dict[Cell, float]] = {}
    measured: dict[str, Record[OperationTime]] = {}
    while len(filled) < len(levels):
        to_measure: list[tuple[int, Cell]] = []
        for number in levels.keys() - filled.keys():
            cells, missing = fill([len(axis_levels) for axis_levels in levels[number]], ms_at[number], NEGLIGIBLE * model_ms)
            to_measure += [(number, cell) for cell in missing]
            if not missing:
                filled[number] = cells
        to_measure.sort()
        cases = [
            (number, tuple(axis_levels[position] for axis_levels, position in zip(levels[number], cell, strict=True)))
            for number, cell in to_measure
        ]
        for (number, cell), record in zip(to_measure, time_cells(cases) if cases else [], strict=True):
            ms_at[number][cell] = record.numbers.ms
            measured[record.fingerprint] = record
    tables = tuple(OperationTable(operations[number], levels[first], filled[first]) for number, first in enumerate(same))
    return LatencyTable(
        tables, model_ms, tuple(measured.values()), sum(prod(len(axis_levels) for axis_levels in levels[number]) for number in same)
    )


def sizes(operations: Sequence[Operation], widths: int) -> int:
    """Returns how many sizes are measured at most."""
    distinct = set(_first_alike(operations))
    return sum(prod(len(evenly_spaced(axis.units, widths)) for axis in operations[number].axes) for number in distinct)


def _first_alike(operations: Sequence[Operation]) -> list[int]:
    """Returns, for each operation, the number of the first operation that is like it."""
    alike: dict[object, int] = {}
    return [alike.setdefault(_kind(operation), number) for number, operation in enumerate(operations)]


def _kind(operation: Operation) -> object:
    """Returns a key that is equal for operations that take equally long at all widths."""
    names = [name for name, _ in operation.modules]

    def place(tensor: str) -> tuple[int, str]:
        index = next(index for index, name in enumerate(names) if tensor.startswith(f"{name}."))
        return index, tensor.removeprefix(names[index])

    axes = [
        (
            axis.units,
            len(axis.groups),
            tuple(sorted((*place(tensor), dim, positions) for (tensor, dim), positions in axis.positions.items())),
            tuple(sorted(axis.inputs.items())),
        )
        for axis in operation.axes
    ]
    return operation.at([axis.units for axis in operation.axes]).text, tuple(axes)
