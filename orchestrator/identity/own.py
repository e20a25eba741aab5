"""Finds the source files and packages of the user's own classes and functions, which settings name.

Unlike the project's code (``sources``), the user's code may contain anything, so it is not followed name by name: the whole text of a file
counts, and that of every file that it imports, as far as these do not belong to an installed package. Of packages, the versions count.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

from orchestrator.identity.names import PACKAGES


@dataclass(frozen=True)
class OwnCode:
    """Files of the user by the dotted names of their modules, top-level names of packages, and what it takes from the project.

    These are dotted names, and the names of attributes, any of which may be a method of the project that it calls.
    """

    files: dict[str, Path]
    packages: frozenset[str]
    project: frozenset[str]
    attributes: frozenset[str]


def installed(name: str) -> list[str]:
    """Returns the installed packages that have a top-level module called ``name``."""
    folders = sorted({os.path.abspath(entry) for entry in sys.path if os.path.isdir(entry or ".")})
    return _packages(tuple((folder, os.stat(folder).st_mtime_ns) for folder in folders)).get(name, [])


@lru_cache(maxsize=1)
def _packages(folders: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    """Returns the installed packages by their top-level modules, while no package comes or goes: that changes the time of its folder.

    It reads the lists of files of all packages, which takes a fifth of a second. The classes of a model are looked up one by one.
    """
    return packages_distributions()


@cache
def own_code(module: str) -> OwnCode:
    """Returns the code of a module that is not part of the project, and of what it imports."""
    files: dict[str, Path] = {}
    packages, project, attributes = set(), set(), set()
    mine, waiting = module.split(".")[0], [module]
    while waiting:
        name = waiting.pop()
        top = name.split(".")[0]
        if top in PACKAGES:
            project.add(name)
        elif top in sys.stdlib_module_names:
            continue
        elif top != mine and installed(top):
            packages.add(top)
        else:
            for found, path in _files(name):
                if found not in files:
                    files[found] = path
                    tree = ast.parse(path.read_bytes() if path.suffix == ".py" else b"")  # compiled files cannot be read
                    waiting += _imports(found, path.name == "__init__.py", tree)
                    attributes |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return OwnCode(dict(sorted(files.items())), frozenset(packages), frozenset(project), frozenset(attributes))


def _files(name: str) -> Iterator[tuple[str, Path]]:
    """Yields the files that an import of ``name`` runs. The last part of the name may be no module but a name in one."""
    search: list[str] | None = None
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        dotted = ".".join(parts[:length])
        spec = PathFinder.find_spec(dotted, search)
        if spec is None:
            return
        if spec.origin is not None and Path(spec.origin).is_file():
            yield dotted, Path(spec.origin)
        search = list(spec.submodule_search_locations or [])


def _imports(module: str, is_package: bool, tree: ast.Module) -> Iterator[str]:
    """Yields the dotted names that a module imports, wherever it does so."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            place = ".".join([*above, *([node.module] if node.module else [])])
            yield from (place if alias.name == "*" else f"{place}.{alias.name}" for alias in node.names)
