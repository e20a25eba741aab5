"""What the plan predicts, held against a real wave by the script that people do it with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "one_wave.py"
ROW = re.compile(r"│ (load|collect|score|solve)\b.* │ +([0-9.]+) │$")


@pytest.mark.parametrize("pruner", ["cap", pytest.param("obc", marks=pytest.mark.slow)])
def test_no_step_of_a_wave_takes_more_than_a_tenth_above_the_planned_memory(pruner: str, tmp_path: Path) -> None:
    """Collecting, scoring and solving all layers of the default model in a process of its own."""
    settings = [f"pruner={pruner}", "cluster=local", "cluster.threads=1", "data.calibration_batches=128", f"output={tmp_path}"]
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *settings],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert found.returncode == 0, found.stderr
    ratios = {row[1]: float(row[2]) for line in found.stdout.splitlines() if (row := ROW.search(line))}
    assert list(ratios) == ["load", "collect", "score", "solve"], found.stdout
    assert all(ratio <= 1.1 for ratio in ratios.values()), found.stdout
    assert ratios["collect"] >= 0.6, f"the plan is far too careful:\n{found.stdout}"
