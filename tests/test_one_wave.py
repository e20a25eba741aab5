"""The script that compares the plan with a real wave: memory is as planned."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "one_wave.py"
ROW = re.compile(r"│ (load|collect|score|solve)\b.* │ +([0-9.]+) │$")


@pytest.mark.parametrize("pruner", ["cap", pytest.param("obc", marks=pytest.mark.slow)])
def test_no_step_of_a_wave_exceeds_the_planned_memory_by_more_than_a_tenth(pruner: str, tmp_path: Path) -> None:
    """Collects, scores and solves all layers of the default model in another process."""
    settings = [f"pruner={pruner}", "cluster=local", "cluster.threads=1", "data.calibration_batches=128", f"output={tmp_path}"]
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *settings],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert process.returncode == 0, process.stderr
    ratios = {row[1]: float(row[2]) for line in process.stdout.splitlines() if (row := ROW.search(line))}
    assert list(ratios) == ["load", "collect", "score", "solve"], process.stdout
    assert all(ratio <= 1.1 for ratio in ratios.values()), process.stdout
    assert ratios["collect"] >= 0.6, f"the plan asks for far too much memory:\n{process.stdout}"
