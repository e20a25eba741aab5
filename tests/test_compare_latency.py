"""The script that holds accuracy against measured time: who is on the front, and real models on a line each."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_end_to_end import directory, run

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from compare_latency import front  # noqa: E402


def test_on_the_front_is_what_nothing_else_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (1.0, 0.4)]
    assert front(points) == [True, True, False, False]


@pytest.mark.slow
def test_models_of_runs_are_timed_and_told_with_their_accuracy(tmp_path: Path) -> None:
    run(tmp_path, "pruner=taylor", "pruner.target.removed=0.5")
    command = [sys.executable, str(ROOT / "scripts" / "compare_latency.py"), str(directory(tmp_path)), "--shape", "1", "16", "16"]
    shown = subprocess.run([*command, "--page", str(tmp_path / "page.html")], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("| UnitTaylor by macs, ranking | 50% |")]
    assert float(line.split("|")[4]) > 0 and (tmp_path / "page.html").exists()
