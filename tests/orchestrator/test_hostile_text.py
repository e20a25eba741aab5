"""Text that somebody else chose is only shown: by terminals, in model cards and in messages."""

import io
import json
import pickle
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from sweep_cases import report

from orchestrator.report.card import model_card
from orchestrator.status.state import State
from orchestrator.status.table import show_status
from workers.errors import LONGEST_MESSAGE, ConfigError, DamagedResult

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2028\r"


def test_a_message_is_one_line_without_control_characters_and_not_endless() -> None:
    error = ConfigError(f"model.name: got\n{ESCAPE}\tand\udcff é")
    assert str(error).isprintable() and "\\x1b]0;owned\\x07" in str(error) and "é" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    long = str(ConfigError("a" * 10**6 + "; the remedy"))
    assert len(long) == LONGEST_MESSAGE and long.endswith("; the remedy")
    damaged = pickle.loads(pickle.dumps(DamagedResult(Path("store"), ESCAPE)))
    assert str(damaged).isprintable() and damaged.directory == Path("store")


def test_a_terminal_shows_names_of_runs_and_does_not_obey_them(tmp_path: Path) -> None:
    now, text = time.time(), io.StringIO()
    (tmp_path / "run").mkdir()
    State(ESCAPE, ESCAPE, "failed", ESCAPE, 1, now, now, now, ESCAPE, 1, 2, 0.5, ESCAPE, None).write(tmp_path / "run")
    show_status(tmp_path, Console(file=text, width=200, force_terminal=False))
    shown = text.getvalue().replace(str(tmp_path), "")
    assert "owned" in shown and all(sign.isprintable() or sign == "\n" for sign in shown)


def test_a_model_card_has_the_header_of_its_library_whatever_the_report_says() -> None:
    hostile = "x\n---\nlicense: mit\n---\n<script>alert(1)</script> [a](javascript:alert(1))\n```\n# b"
    content = report(pruner=hostile, name=hostile, command=hostile, warnings=[hostile]) | {"pruner": hostile}
    card = model_card(content, "secateur", hostile, True, "os.system('a')\n```")
    head, body = card.removeprefix("---\n").split("---", 1)
    assert yaml.safe_load(head) == {"library_name": "secateur", "tags": ["pruned", "secateur"]}
    outside = "".join(part for index, part in enumerate(body.split("```")) if index % 2 == 0)
    assert body.count("```") == 4 and "<" not in outside and "[" not in outside.replace("\\[", "") and "\nlicense" not in card
    assert "build=..." in card and "os.system" not in card


@pytest.mark.parametrize("content", ["[", "[]", "3", json.dumps({"name": "a"}), json.dumps({"name": 3})])
def test_a_damaged_report_beside_a_model_is_one_line(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import convert
    from workers import export, formats
    from workers.errors import SecateurError
    from workers.models.torchvision import TorchvisionModel

    family = TorchvisionModel(name="resnet18", arguments={}, checkpoint=None, include=["*"], exclude=[])
    monkeypatch.setattr(formats, "write_folder", lambda model, to: "secateur")
    monkeypatch.setattr(export, "load_family", lambda model: family)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(SecateurError, match=r"report.json: expected the report of a run"):
        convert.convert("folder", tmp_path / "model.safetensors", tmp_path / "to")
