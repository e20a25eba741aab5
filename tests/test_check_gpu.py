"""The checks of scripts/check_gpu.py on a simulated GPU: that they run, and that they find what is different."""

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from simulated_gpu import simulated_gpu

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import check_gpu

SIMULATED = {name: work for name, work in check_gpu.CHECKS.items() if name in ("elimination", "masks")}


@pytest.mark.slow
def test_all_checks_run_and_the_file_says_what_they_found(tmp_path: Path) -> None:
    with simulated_gpu(), mock.patch.object(check_gpu, "CHECKS", SIMULATED):
        check_gpu.check(tmp_path / "check.json", quick=True)
    found = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    errors = {name: result["error"] for name, result in found["checks"].items() if "error" in result}
    assert not errors, "\n".join(errors.values())
    assert all(entry["equal_order"] == 1.0 for entry in found["checks"]["elimination"]["eliminate"].values())
    assert all(entry["equal_masks"] > 0.99 for entry in found["checks"]["masks"].values() if isinstance(entry, dict))
    assert found["gpu"] == "simulated" and found["torch"] == torch.__version__


def test_the_error_of_one_check_does_not_end_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(quick: bool) -> dict[str, float]:
        raise RuntimeError("no such kernel")

    with simulated_gpu(), mock.patch.object(check_gpu, "CHECKS", {"broken": broken, "limits": check_gpu.limits}):
        found = check_gpu.check(tmp_path / "check.json", quick=True)
    assert "no such kernel" in found["checks"]["broken"]["error"] and "copy_gbs" in found["checks"]["limits"]
    assert "broken: failed" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["check_gpu.py"])
    with pytest.raises(SystemExit, match="expected a GPU"):
        check_gpu.main()
