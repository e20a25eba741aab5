"""Finds the source files and packages that the results of a verb come from, by reading the code.

The search starts at the function that carries out a verb, and follows every name to its definition, through imports at the top of files and
inside functions, and so on. The parameters of that first function have their annotated types, as have the fields of classes; no other
annotation counts. A method of a class counts if something that counts calls a method of that name; if the class derives from a class of a
library, all of its methods count, since the library calls them.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.identity.names import PACKAGES, ROOT, Module, UnknownSource, Uses, module, uses_of
from orchestrator.identity.own import installed, own_code
from workers.models.permitted import imported, permitted

WORKER = "workers.worker.Worker"
MESSAGES = "workers/messages.py"

# The functions that carry out each verb. Of a class, only the method counts, with the methods that it calls on ``self``.
VERBS = {
    "import": (f"{WORKER}.import_model",),
    "evaluate": (f"{WORKER}.evaluate",),
    "assess": (f"{WORKER}.assess",),
    "compare": (f"{WORKER}.compare",),
    "collect": (f"{WORKER}.collect",),
    "score": (f"{WORKER}.score",),
    "allocate": ("orchestrator.pipeline.allocate_layers",),
    "fit": ("orchestrator.sparse_budget.fit_to_budget", f"{WORKER}.predict"),
    "solve": (f"{WORKER}.solve",),
    "collect_pairs": (f"{WORKER}.collect_pairs",),
    "refit": (f"{WORKER}.refit",),
    "join": (f"{WORKER}.join",),
    "collect_units": (f"{WORKER}.collect_units",),
    "rank": (f"{WORKER}.rank",),
    "choose": ("orchestrator.shrinking.choose_units",),
    "shrink": (f"{WORKER}.shrink",),
    "time_operation": (f"{WORKER}.time_operation",),
    "time_model": (f"{WORKER}.time_model",),
    "compare_time": (f"{WORKER}.compare_time",),
    "time_layers": (f"{WORKER}.time_layers",),
    "time_sparse": (f"{WORKER}.time_sparse",),
    "quantise": (f"{WORKER}.quantise",),
    "train": ("workers.training.loop.train",),
}
# Files and folders that verbs use and that cannot change results, with the reasons. The search does not look behind them.
CANNOT_MATTER = {
    MESSAGES: "It computes nothing. The search follows the fields of tasks, all of which are in the names of results.",
    "workers/records.py": "It describes how results are stored. Their content is computed elsewhere.",
    "workers/checks.py": "It refuses settings and returns nothing.",
    "workers/errors.py": "It defines exceptions.",
    "workers/models/permitted.py": "It finds the code of the user, which counts itself.",
    "workers/memory.py": "It measures how much memory a worker holds, not what is in it.",
    "orchestrator/run.py": "It looks up stored results and has the others computed.",
    "orchestrator/claims.py": "It says which driver computes a result.",
    "orchestrator/cleaning.py": "It deletes results.",
    "orchestrator/store.py": "It names results. A result with another name is another result.",
    "orchestrator/identity/names.py": "It contributes to the names of results, as the store does.",
    "orchestrator/identity/sources.py": "It contributes to the names of results, as the store does.",
    "orchestrator/stages.py": "It names stages.",
    "orchestrator/config.py": "It reads settings, which are in the names of results.",
    "orchestrator/progress.py": "It shows progress.",
    "orchestrator/status/": "It says what is running.",
    "orchestrator/tracking/": "It sends numbers to trackers.",
    "orchestrator/report/": "It shows results.",
    "orchestrator/quantities.py": "It formats numbers for people.",
    "orchestrator/planning/": "It predicts time and memory. Which layers are collected together changes no byte of a result.",
    "orchestrator/cluster/": "It decides where tasks run. Device and threads are left to the user (docs/how-to/sweeps.md).",
}
# Packages whose version does not count, with the reasons.
NO_VERSION = {
    "safetensors": "It stores bytes unchanged, and their digests are checked.",
    "psutil": "It measures memory.",
    "sklearn": "It contains the images of digits, whose content is in the fingerprint of the data.",
    "onnx": "It reads checkpoints, whose content is in the fingerprint of the weights.",
    "onnxruntime": "Its version is in the names of the results that are timed with it.",
    "ortools": "It finds the optimum, whatever its version.",
}
DISTRIBUTIONS = {"PIL": "pillow"}  # modules whose package has another name
# Classes of Python that do not call the methods of derived classes, unlike a torch module.
INERT = {"ABC", "Enum", "IntEnum", "NamedTuple", "Protocol", "Exception", "RuntimeError", "ValueError", "ArithmeticError"}


@dataclass(frozen=True)
class Sources:
    """Paths of files relative to the root, top-level names of packages, and the modules of the user's own files with their paths."""

    files: tuple[str, ...]
    packages: tuple[str, ...]
    own: tuple[tuple[str, Path], ...] = ()


@cache
def code_version(verb: str, components: tuple[str, ...] = ()) -> str:
    """Returns a digest of the text of every file, and the version of every package, that the results of ``verb`` come from."""
    origin, total = sources(verb, components), hashlib.sha256()
    for path in origin.files:
        total.update(f"{path} {_digest(ROOT / path)}\n".encode())
    for module_name, place in origin.own:
        total.update(f"{module_name} {_digest(place)}\n".encode())
    for package in origin.packages:
        total.update(f"{package} {package_version(package)}\n".encode())
    return total.hexdigest()[:16]


@cache
def sources(verb: str, components: tuple[str, ...] = ()) -> Sources:
    """Returns the sources of a verb. ``components`` are dotted names of the classes that settings chose; those count whose base class is a
    source of the verb. Functions of the user count for every verb.

    Raises: UnknownSource if a name in this module or in an import does not exist.
    """
    search, collects = Search(), gc.isenabled()
    gc.disable()  # syntax trees are kept, and collecting garbage among them would take as long as everything else
    try:
        for entry in VERBS[verb]:
            search.enter(entry)
        waiting = {name: set(ancestors(name)) for name in components}
        while known := [name for name, above in waiting.items() if above & search.classes or not above]:
            for name in sorted(known):
                search.reach(name) if name.split(".")[0] in PACKAGES else search.reach_own(name)
                del waiting[name]
    finally:
        if collects:
            gc.enable()
    return Sources(tuple(sorted(search.files)), tuple(sorted(search.packages - NO_VERSION.keys())), tuple(sorted(search.own.items())))


def classes_of(component: Any) -> Iterator[str]:
    """Yields the dotted names of a component's class, and of what its settings name: families of models, functions of the user."""
    yield f"{type(component).__module__}.{type(component).__qualname__}"
    yield from _named(vars(component))


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, str) and (re.fullmatch(r"workers(\.\w+)+\.[A-Z]\w*", value) or permitted().get(value, value) is None):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _named(entry)


@cache
def package_version(name: str) -> str:
    """Returns the version of the package that has a module called ``name``, or "" if there is none. Does not import it."""
    try:
        return version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        packages = installed(name)
        return version(packages[0]) if packages else ""


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def exempt() -> tuple[str, ...]:
    """Returns the paths that cannot matter. Raises: UnknownSource if one does not exist."""
    for path in CANNOT_MATTER:
        if not (ROOT / path).exists():
            raise UnknownSource(f"CANNOT_MATTER names {path}, which does not exist")
    return tuple(CANNOT_MATTER)


class Search:
    """The files, packages, and dotted names of classes that the search has reached so far."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.packages: set[str] = set()
        self.own: dict[str, Path] = {}
        self.classes: set[str] = set()
        self._modules: set[str] = set()
        self._done: set[tuple[str, ...]] = set()
        self._called: set[str] = set()  # names of attributes that were called
        self._waiting: dict[str, list[tuple[Module, str]]] = {}  # by the name of a method, the classes that have it and wait for a call

    def enter(self, entry: str) -> None:
        """Starts at a function or a method, with the types of its parameters."""
        self.reach(entry)
        place, _, name = entry.rpartition(".")
        source = module(place)
        if source is None:  # a method of a class
            place, _, kind = place.rpartition(".")
            source = module(place)
            assert source is not None
            node = (source.definitions[kind].methods or {})[name]
        else:
            node = source.definitions[name].nodes[0]
        assert isinstance(node, ast.FunctionDef)
        for argument in node.args.args:
            if argument.annotation is not None:
                self._follow(source, uses_of(argument.annotation), types=True)

    def reach(self, dotted: str) -> None:
        """Follows the dotted name of a module, of a definition in it, or of a method. Raises: UnknownSource if it does not exist."""
        parts = dotted.split(".")
        if parts[0] not in PACKAGES:
            self.packages |= {parts[0]} - sys.stdlib_module_names
            return
        modules = [(source, parts[n:]) for n in range(len(parts), 0, -1) if (source := module(".".join(parts[:n]))) is not None]
        if not modules:
            raise UnknownSource(f"there is no {dotted}")
        source, rest = modules[0]
        if source.path.startswith(exempt()) and source.path != MESSAGES:
            return
        self._import(source)
        if not rest:
            for name in source.definitions:
                self._define(source, name, None)
        elif rest[0] in source.definitions:
            method = rest[1] if len(rest) > 1 and rest[1] in (source.definitions[rest[0]].methods or {}) else None
            self._define(source, rest[0], method)
        elif rest[0] in source.imports:
            self.reach(".".join([source.imports[rest[0]], *rest[1:]]))
        elif not rest[0].startswith("__"):
            raise UnknownSource(f"{source.path or source.name} does not define {rest[0]}, which {dotted} refers to")

    def reach_own(self, dotted: str) -> None:
        """Adds the code of the user's own class or function, and all that it takes from the project."""
        code = own_code(dotted.rpartition(".")[0])
        self.own |= code.files
        self.packages |= code.packages
        for name in sorted(code.project):
            self.reach(name)
        self._follow(Module("", ""), Uses(attributes=set(code.attributes)))

    def _import(self, source: Module) -> None:
        """Adds a file, and those of the packages that it is in, which run before it."""
        parts = source.name.split(".")
        for length in range(1, len(parts) + 1):
            package = module(".".join(parts[:length]))
            if package is not None and package.name not in self._modules:
                self._modules.add(package.name)
                if package.path and package.path != MESSAGES:
                    self.files.add(package.path)
                for uses in package.always.uses:
                    self._follow(package, uses)

    def _define(self, source: Module, name: str, method: str | None) -> None:
        """Follows a definition of a module. Of a class with ``method``, only this method counts, with those that it calls on ``self``."""
        key, definition = (source.name, name, method or ""), source.definitions[name]
        if key in self._done:
            return
        self._done.add(key)
        if definition.methods is None:
            for uses in definition.uses:
                self._follow(source, uses)
            return
        self.classes.add(f"{source.name}.{name}")
        for uses in definition.uses:
            self._follow(source, uses, types=True)
        for candidate in definition.methods:
            if candidate == method or (candidate.startswith("__") and candidate.endswith("__")):
                self._call(source, name, candidate, alone=method is not None)
            elif method is None and (candidate in self._called or _called_from_outside(source, name)):
                self._call(source, name, candidate, alone=False)
            elif method is None:
                self._waiting.setdefault(candidate, []).append((source, name))

    def _call(self, source: Module, name: str, method: str, alone: bool) -> None:
        if (source.name, name, method, "called") in self._done:
            return
        self._done.add((source.name, name, method, "called"))
        methods = source.definitions[name].method_uses
        self._follow(source, methods[method])
        for chain in methods[method].chains if alone else ():
            if chain[0] == "self" and len(chain) > 1 and chain[1] in methods:
                self._call(source, name, chain[1], alone)

    def _follow(self, source: Module, uses: Uses, types: bool = False) -> None:
        for called in uses.attributes - self._called:
            self._called.add(called)
            for owner, name in self._waiting.pop(called, []):
                self._call(owner, name, called, alone=False)
        known = source.imports | uses.imports | (source.types if types else {})
        for chain in uses.chains:
            if chain[0] in uses.imports or chain[0] not in source.definitions:
                if chain[0] in known:
                    self.reach(".".join([known[chain[0]], *chain[1:]]))
            else:
                self.reach(".".join([source.name, *chain]))


def ancestors(dotted: str) -> Iterator[str]:
    """Yields the dotted names of a class and of its base classes in the project: none of a function of the user.

    Raises: UnknownSource if there is no such class.
    """
    place, _, name = dotted.rpartition(".")
    if place.split(".")[0] not in PACKAGES:
        chain = getattr(imported("settings", dotted), "__mro__", ())
        yield from (f"{kind.__module__}.{kind.__qualname__}" for kind in chain if kind.__module__.split(".")[0] in PACKAGES)
        return
    source = module(place)
    if source is None or name not in source.definitions:
        raise UnknownSource(f"there is no class {dotted}")
    yield dotted
    for chain in source.definitions[name].bases:
        base = source.resolved(chain)
        if base is not None and base.split(".")[0] in PACKAGES:
            yield from ancestors(base)


def _called_from_outside(source: Module, name: str) -> bool:
    """Returns whether a class derives, directly or not, from a class of a library, which calls its methods."""
    for dotted in ancestors(f"{source.name}.{name}"):
        place, _, kind = dotted.rpartition(".")
        owner = module(place)
        assert owner is not None
        for chain in owner.definitions[kind].bases:
            base = owner.resolved(chain)
            if chain[-1] not in INERT and (base is None or base.split(".")[0] not in PACKAGES):
                return True
    return False
