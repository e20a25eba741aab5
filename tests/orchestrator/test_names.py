"""Names are followed from a verb to files and packages, in a small project."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from orchestrator.identity import names, sources
from orchestrator.identity.names import UnknownSource

SIMPLE = "f = limit = thing = Nothing = 1\n"
SMALL = {
    "workers/verbs.py": """
from typing import TYPE_CHECKING
from workers import plain
from workers.shapes import Base
if TYPE_CHECKING:
    from workers.tasks import Task
    from workers.unused import Nothing
LIMIT = plain.limit
def verb(task: "Task") -> "Nothing":
    import torch
    from workers.inner import helper
    return helper(LIMIT, task.parts.turn())
def other():
    from workers.other import thing
    return thing
""".replace('"Task"', "Task").replace('"Nothing"', "Nothing"),
    "workers/tasks.py": "from workers.shapes import Base\nclass Task:\n    parts: Base\n",
    "workers/shapes.py": """
from abc import ABC
import json
class Base(ABC):
    def turn(self):
        from workers.turned import f
        return f
    def unused(self):
        from workers.unused import f
        return f
""",
    "workers/square.py": """
from workers.shapes import Base
class Square(Base):
    def turn(self):
        from workers.squares import f
        return f
    def area(self):
        from workers.unused import f
        return f
""",
    "workers/network.py": """
from torch import nn
class Net(nn.Module):
    def forward(self):
        from workers.forward import f
        return f
def build():
    return Net()
""",
    **{f"workers/{name}.py": SIMPLE for name in ("plain", "turned", "squares", "forward", "unused", "other")},
    "workers/inner.py": "from workers.deeper import f\nhelper = f\n",
    "workers/deeper.py": "from workers.network import build\nf = build\n",
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with these files and one verb."""
    for path, text in SMALL.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    monkeypatch.setattr(names, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "VERBS", {"verb": ("workers.verbs.verb",)})
    monkeypatch.setattr(sources, "exempt", lambda: ("workers/errors.py",))
    monkeypatch.setattr(names, "module", cache(names.module.__wrapped__))
    monkeypatch.setattr(sources, "module", names.module)
    yield tmp_path


def small_files(*components: str) -> list[str]:
    return [Path(path).stem for path in sources.sources.__wrapped__("verb", components).files]


def test_imports_in_functions_and_in_methods_that_are_called_here_or_by_a_library_are_followed(small: Path) -> None:
    assert small_files() == ["deeper", "forward", "inner", "network", "plain", "shapes", "tasks", "turned", "verbs"]
    assert small_files("workers.square.Square") == sorted([*small_files(), "square", "squares"])
    assert sources.sources.__wrapped__("verb", ()).packages == ("torch",)


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("workers/inner.py", "workers.deeper", "workers.missing", "workers.missing"),
        ("workers/inner.py", "import f", "import g as f", r"workers/deeper\.py .*\bg\b"),
        ("workers/inner.py", "import f", "import *", "from workers.deeper import \\*"),
        ("workers/verbs.py", "def verb", "def word", r"workers/verbs\.py .*\bverb\b"),
        ("workers/verbs.py", "plain.limit", "plain.most", r"workers/plain\.py .*\bmost\b"),
    ],
)
def test_a_name_that_does_not_exist_is_an_error(small: Path, path: str, old: str, new: str, message: str) -> None:
    text = (small / path).read_text(encoding="utf-8")
    (small / path).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UnknownSource, match=message):
        small_files()


def test_a_component_or_an_exemption_that_does_not_exist_is_an_error(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownSource, match=r"no class workers\.square\.Circle"):
        small_files("workers.square.Circle")
    monkeypatch.undo()
    monkeypatch.setattr(sources, "CANNOT_MATTER", {"workers/missing.py": "It does not exist."})
    with pytest.raises(UnknownSource, match=r"workers/missing\.py"):
        sources.exempt.__wrapped__()


def test_an_import_that_nothing_uses_is_followed_with_the_functions_that_it_registers(small: Path) -> None:
    (small / "workers/table.py").write_text("RULES = {}\ndef rule(name):\n    return RULES.setdefault\n", encoding="utf-8")
    (small / "workers/rules.py").write_text(
        "from workers.table import rule\n@rule('view')\ndef view():\n    from workers.squares import f\n    return f\n", encoding="utf-8"
    )
    before = small_files()
    with (small / "workers/deeper.py").open("a", encoding="utf-8") as file:
        file.write("from workers import rules\n")
    names.module.cache_clear()
    assert small_files() == sorted([*before, "rules", "squares", "table"])
