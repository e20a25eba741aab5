"""What the operations of a model take at all widths, measured where the model is to run: few sizes, shared by equal layers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.allocation.widths import evenly_spaced
from workers.models.structure_costs import Part
from workers.records import Record

if TYPE_CHECKING:
    from workers.models.operations import Operation
    from workers.models.structures.groups import Group

FLAT = 0.02  # times that differ by less, as a fraction, are one plateau of a staircase
NEGLIGIBLE = 2e-4  # ... or by less than this of the whole model's time
TABLE = "latency.parquet"
Cell = tuple[int, ...]  # a position on the levels of each axis


@dataclass(frozen=True)
class OperationTable:
    """Milliseconds of one operation of a model, at all combinations of the ``levels`` (rising numbers of units) of its axes.

    What was not measured lies on a plateau that was: it has the time of the plateau's far end, where most units are.
    """

    operation: Operation
    levels: tuple[tuple[int, ...], ...]
    ms: Mapping[Cell, float]

    def at(self, units: Mapping[str, int]) -> float:
        """With so many units left, by group: the time at the next level at or above; nothing if no unit is left of an axis."""
        left = [sum(units[name] for name in axis.groups) for axis in self.operation.axes]
        if 0 in left:
            return 0.0
        return self.ms[tuple(bisect_left(levels, count) for levels, count in zip(self.levels, left, strict=True))]

    @property
    def dense_ms(self) -> float:
        """With all units."""
        return self.ms[tuple(len(levels) - 1 for levels in self.levels)]

    @property
    def units(self) -> dict[str, int]:
        """Of its groups; of several on one axis, each as if it were the only one."""
        return {name: axis.units // len(axis.groups) for axis in self.operation.axes for name in axis.groups}

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for axis in self.operation.axes for name in axis.groups))


@dataclass(frozen=True)
class LatencyTable:
    """All operations of a model in the order of its forward pass. ``model_ms`` is what the whole model took, measured end to end."""

    operations: tuple[OperationTable, ...]
    model_ms: float
    measured: tuple[Record, ...]  # by operation and sizes, each once
    asked: int  # sizes that all operations have together

    @property
    def total_ms(self) -> float:
        """Of all operations at their full widths."""
        return sum(table.dense_ms for table in self.operations)

    @property
    def scale(self) -> float:
        """What the model takes over what its operations take: Python between modules, and what a runtime does for several at once."""
        return self.model_ms / self.total_ms

    def parts(self) -> list[Part]:
        """Milliseconds of the model as functions of the units that are left; they sum to ``model_ms`` at its full widths."""
        return [Part(table.groups, lambda units, table=table: self.scale * table.at(units)) for table in self.operations]  # type: ignore[misc]

    def summary(self) -> dict[str, float]:
        """How it was come by, for the report."""
        return {"scale": self.scale, "measured_sizes": len(self.measured), "table_sizes": self.asked}

    def levels(self, group: Group) -> Sequence[int]:
        """Numbers of units of a group at which an operation that works on it alone was timed."""
        found = (
            of
            for table in self.operations
            for axis, of in zip(table.operation.axes, table.levels, strict=True)
            if axis.groups == (group.name,)
        )
        return next(found, tuple(range(1, group.units + 1)))

    def write(self, path: Path) -> None:
        """As parquet: one line for each measured size of an operation."""
        import pyarrow
        import pyarrow.parquet

        names = ("operation", "ms", "spread", "repeats", "device", "torch", "threads", "host")
        columns: dict[str, list[Any]] = {name: [record.numbers[name] for record in self.measured] for name in names}
        columns["measured_at"] = [record.started for record in self.measured]
        pyarrow.parquet.write_table(pyarrow.table(columns), path)


def fill(shape: Sequence[int], ms_at: Mapping[Cell, float], flat_ms: float) -> tuple[dict[Cell, float], list[Cell]]:
    """Times at all cells of a table of ``shape``, and those cells that have to be measured before that can be told.

    A rectangle whose largest corner takes at most 2 % (or ``flat_ms``) longer than its smallest is a plateau; others are halved along
    their longest side. So plateaus cost two measurements each, however long they are.
    """
    found: dict[Cell, float] = {}
    missing: dict[Cell, None] = {}
    open_rectangles = [(tuple(0 for _ in shape), tuple(size - 1 for size in shape))]
    while open_rectangles:
        low, high = open_rectangles.pop()
        unknown = [cell for cell in (low, high) if cell not in ms_at]
        if unknown:
            missing |= dict.fromkeys(unknown)
        elif low == high or ms_at[high] - ms_at[low] <= max(FLAT * ms_at[high], flat_ms):
            plateau_ms = max(ms_at[low], ms_at[high])
            found |= {cell: ms_at.get(cell, plateau_ms) for cell in _cells(low, high)}
        else:
            open_rectangles += _halves(low, high)
    return found, list(missing)


def _cells(low: Cell, high: Cell) -> Iterator[Cell]:
    return product(*(range(first, last + 1) for first, last in zip(low, high, strict=True)))


def _halves(low: Cell, high: Cell) -> list[tuple[Cell, Cell]]:
    side = max(range(len(low)), key=lambda axis: high[axis] - low[axis])
    middle = (low[side] + high[side]) // 2

    def moved(corner: Cell, to: int) -> Cell:
        return (*corner[:side], to, *corner[side + 1 :])

    return [(low, moved(high, middle)), (moved(low, middle + 1), high)]


def build_table(
    operations: Sequence[Operation], widths: int, model_ms: float, time_cells: Callable[[list[tuple[int, Cell]]], list[Record]]
) -> LatencyTable:
    """Measure what has to be known of ``operations``. ``measure`` gets (number of an operation, units on its axes) and returns records.

    Operations that are equal at their full widths, and lose the same with each unit, share what is measured.
    """
    same = _first_alike(operations)
    levels = {number: tuple(evenly_spaced(axis.units, widths) for axis in operations[number].axes) for number in same}
    ms_at: dict[int, dict[Cell, float]] = {number: {} for number in levels}
    filled: dict[int, dict[Cell, float]] = {}
    measured: dict[str, Record] = {}
    while len(filled) < len(levels):
        wanted: list[tuple[int, Cell]] = []
        for number in levels.keys() - filled.keys():
            cells, missing = fill([len(of) for of in levels[number]], ms_at[number], NEGLIGIBLE * model_ms)
            wanted += [(number, cell) for cell in missing]
            if not missing:
                filled[number] = cells
        wanted.sort()
        asked = [(number, tuple(of[at] for of, at in zip(levels[number], cell, strict=True))) for number, cell in wanted]
        for (number, cell), record in zip(wanted, time_cells(asked) if asked else [], strict=True):
            ms_at[number][cell] = record.numbers["ms"]
            measured[record.fingerprint] = record
    tables = tuple(OperationTable(operations[number], levels[first], filled[first]) for number, first in enumerate(same))
    return LatencyTable(tables, model_ms, tuple(measured.values()), sum(prod(len(of) for of in levels[number]) for number in same))


def sizes(operations: Sequence[Operation], widths: int) -> int:
    """How many sizes are measured at most."""
    first = set(_first_alike(operations))
    return sum(prod(len(evenly_spaced(axis.units, widths)) for axis in operations[number].axes) for number in first)


def _first_alike(operations: Sequence[Operation]) -> list[int]:
    """For each operation, the number of the first that is like it."""
    alike: dict[object, int] = {}
    return [alike.setdefault(_kind(operation), number) for number, operation in enumerate(operations)]


def _kind(operation: Operation) -> object:
    """Equal for operations that take equally long whatever is left of them."""
    names = [name for name, _ in operation.modules]

    def place(tensor: str) -> tuple[int, str]:
        index = next(index for index, name in enumerate(names) if tensor.startswith(f"{name}."))
        return index, tensor.removeprefix(names[index])

    axes = [
        (
            axis.units,
            len(axis.groups),
            tuple(sorted((*place(tensor), dim, each) for (tensor, dim), each in axis.positions.items())),
            tuple(sorted(axis.inputs.items())),
        )
        for axis in operation.axes
    ]
    return operation.at([axis.units for axis in operation.axes]).text, tuple(axes)
