"""The arrows of the architecture: orchestrator -> workers -> kernels -> torch, no circle of imports, and one door for each dependency."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "workers", "orchestrator")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BELOW = {"kernels": {"workers", "orchestrator"}, "workers": {"orchestrator"}, "orchestrator": set()}


def doors() -> dict[str, tuple[str, ...]]:
    """The table of CONTRIBUTING.md: for each dependency, the files and folders that may import it."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if re.match(r"\|\s*dependency\s*\|", line, re.IGNORECASE))
    allowed: dict[str, tuple[str, ...]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        packages, places = (cell.strip() for cell in line.strip("|").split("|"))
        for package in packages.split(","):
            allowed[package.strip(" `")] = tuple(place.strip(" `") for place in places.split(","))
    return allowed


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top, in functions and for the type checker."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def edges() -> dict[str, set[str]]:
    """The files that each file imports."""
    known = modules()
    return {
        name: {target for dotted in imported(path) if (target := dotted if dotted in known else dotted.rpartition(".")[0]) in known}
        - {name}
        for name, path in known.items()
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_use_the_doors(path: Path) -> None:
    place, used = str(path.relative_to(ROOT)), {dotted.split(".")[0] for dotted in imported(path)}
    assert not used & BELOW[place.split("/")[0]], "an arrow points up"
    for package, allowed in doors().items():
        assert package not in used or place.startswith(allowed), f"{package} may only be imported in {', '.join(allowed)}"


def test_every_door_is_used_and_exists() -> None:
    for package, allowed in doors().items():
        for place in allowed:
            files = [path for path in SOURCES if str(path.relative_to(ROOT)).startswith(place)]
            assert any(package in {dotted.split(".")[0] for dotted in imported(path)} for path in files), (
                f"{place} does not import {package}"
            )


def test_no_file_imports_in_a_circle_not_even_in_functions_or_for_types() -> None:
    try:
        order = list(TopologicalSorter(edges()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}")
    assert set(order) == set(modules())
    assert order.index("workers.messages") < order.index("workers.worker") < order.index("orchestrator.pipeline")


def tree() -> str:
    """The layout of the code as CONTRIBUTING.md draws it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split("## How the code is organised", 1)[1].split("```text", 1)[1].split("```", 1)[0]


def test_everything_that_the_tree_in_contributing_names_exists() -> None:
    names = {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*") if "__pycache__" not in path.parts
    }
    known = {name.rpartition("/")[2] for name in names} | {"conf", "scripts", "tests", "docker", "docs", *PACKAGES}
    drawn = re.findall(r"\b([\w/]+\.py|[\w]+(?=/(?:\s|,|:|$)))", tree())
    assert drawn and not [name for name in drawn if name.rpartition("/")[2] not in known]


@pytest.mark.parametrize("package", ["orchestrator", "workers"])
def test_the_tree_in_contributing_names_every_folder_and_every_file_of_the_driver_and_of_the_workers(package: str) -> None:
    words = set(re.findall(r"[\w]+", tree()))
    children = [
        path for path in (ROOT / package).iterdir() if path.stem != "__init__" and path.suffix in ("", ".py") and path.name != "__pycache__"
    ]
    assert not sorted(path.name for path in children if path.stem not in words)
