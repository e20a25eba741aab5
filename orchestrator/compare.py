"""Compares finished runs: prints a table of them and writes a page.

python -m orchestrator.compare runs/*/                                    a row for each experiment, target and pruner
python -m orchestrator.compare runs/*/ --grid                             one-shot accuracy: a row for each pruner, a column for each target
python -m orchestrator.compare runs/*/ --by pruner.block_size pruner.dampening     a row for each value of these settings
python -m orchestrator.compare runs/sweeps/DATE/                          the points of a sweep, whose page is written again

A target is a sparsity ("75%"), a fraction of a cost that is removed with units ("50% of macs"), or both for rounds that do both.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from orchestrator.sweep.records import is_sweep
from workers.errors import SecateurError


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m orchestrator.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("reports", nargs="+", type=Path, help="directories of runs or of sweeps, or files report.json")
    options.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write the page; by default that of the sweep, or the one that the directories of all runs share",
    )
    table = options.add_mutually_exclusive_group()
    table.add_argument("--grid", action="store_true", help="one-shot accuracy: a row for each pruner, a column for each target")
    table.add_argument("--by", nargs="+", metavar="KEY", help="one-shot only: a row for each value of these settings")
    return options


def compare(places: list[Path], output: Path | None = None, grid: bool = False, by: list[str] | None = None) -> tuple[str, Path, list[str]]:
    """Returns the table, the path of the page, and a line for each place that has no report. Raises: SecateurError."""
    from orchestrator.sweep import tables
    from orchestrator.sweep.gather import compared_reports
    from orchestrator.sweep.page import write_page

    compared, skipped = compared_reports(places)
    reports = [run.report for run in sorted(compared.runs, key=lambda run: str(run.file))]
    text = tables.table_by_settings(reports, by) if by else tables.grid(reports) if grid else tables.table(reports)
    folder = output or _shared(places, [run.file for run in compared.runs])
    try:
        return text, write_page(compared, folder), skipped
    except OSError as error:
        raise SecateurError(f"--output: expected a folder that can be written, got {str(folder)!r} ({error.strerror})") from error


def _shared(places: list[Path], files: list[Path]) -> Path:
    """The directory of a sweep that is looked at alone, else the folder that the directories of all reports share."""
    alone = len(places) == 1 and is_sweep(places[0])
    folders = [file.resolve().parent.parent for file in files] or [place.resolve() for place in places]
    return places[0] if alone else Path(os.path.commonpath(folders))


def main() -> None:
    options = parser().parse_args()
    try:
        text, page, skipped = compare(options.reports, options.output, options.grid, options.by)
    except SecateurError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    print(f"page: {page}", file=sys.stderr)


if __name__ == "__main__":
    main()
