"""The source files and packages that a verb's results come from, found in the code itself, so that nobody keeps a list.

From the function that carries a verb out every name is followed to where it is defined, through imports at the top of files and inside
functions, and on from there. What comes into that function has the types of its parameters, and what a class holds those of its fields; no
other annotation is a use. Of a class those methods count that something else that counts calls by their name; all of them if it derives
from a class of a library, which calls them itself.
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
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from orchestrator.identity.names import PACKAGES, ROOT, Module, UnknownSource, Uses, module, uses_of

WORKER = "workers.worker.Worker"
MESSAGES = "workers/messages.py"

# What carries out each verb. Of a class, the method counts and no other but those that it calls on itself.
VERBS = {
    "import": (f"{WORKER}.import_model",),
    "evaluate": (f"{WORKER}.evaluate",),
    "assess": (f"{WORKER}.assess",),
    "compare": (f"{WORKER}.compare",),
    "collect": (f"{WORKER}.collect",),
    "score": (f"{WORKER}.score",),
    "allocate": ("orchestrator.pipeline.allocate_layers",),
    "solve": (f"{WORKER}.solve",),
    "join": (f"{WORKER}.join",),
    "collect_units": (f"{WORKER}.collect_units",),
    "rank": (f"{WORKER}.rank",),
    "choose": ("orchestrator.shrinking.choose_units",),
    "shrink": (f"{WORKER}.shrink",),
    "time_operation": (f"{WORKER}.time_operation",),
    "time_model": (f"{WORKER}.time_model",),
    "compare_time": (f"{WORKER}.compare_time",),
    "quantise": (f"{WORKER}.quantise",),
    "train": ("workers.training.loop.train",),
}
# Files and folders that take part in carrying out verbs and cannot change what they yield. Nothing is looked for behind them.
CANNOT_MATTER = {
    MESSAGES: "computes nothing; looked into for what a task holds, all of which is in its result's name",
    "workers/records.py": "how a result is kept; what it tells is computed elsewhere",
    "workers/checks.py": "refuses settings, and hands nothing on",
    "workers/errors.py": "words",
    "workers/memory.py": "how much memory a worker holds, not what is in it",
    "orchestrator/run.py": "looks up what is there and has the rest computed",
    "orchestrator/store.py": "what a result is called: another name is another result",
    "orchestrator/identity/names.py": "likewise",
    "orchestrator/identity/sources.py": "likewise",
    "orchestrator/stages.py": "what stages are called",
    "orchestrator/config.py": "typed settings, which are in a result's name",
    "orchestrator/progress.py": "what people see",
    "orchestrator/track.py": "what people see",
    "orchestrator/report/": "what people see",
    "orchestrator/quantities.py": "numbers as people read them",
    "orchestrator/planning/": "what a run will take; which layers are collected together, which changes no byte",
    "orchestrator/cluster/": "where tasks run; device and threads are left to the user (docs/how-to/sweeps.md)",
}
# Packages whose version is no part of a result's identity.
NO_VERSION = {
    "safetensors": "keeps bytes as they are, and their digests are checked",
    "psutil": "looks at memory",
    "sklearn": "has the images of digits, whose content is in the data's fingerprint",
    "onnx": "reads checkpoints of packages, whose content is in their fingerprint",
    "onnxruntime": "is in the identity of what is timed with it",
    "ortools": "finds the optimum, whichever it is",
}
DISTRIBUTIONS = {"PIL": "pillow"}  # where a module is called otherwise than its package
# Classes of Python that do not call methods of those who derive from them, unlike a torch module.
INERT = {"ABC", "Enum", "IntEnum", "NamedTuple", "Protocol", "Exception", "RuntimeError", "ValueError", "ArithmeticError"}


@dataclass(frozen=True)
class Sources:
    """Paths of files below the root, and top-level names of packages."""

    files: tuple[str, ...]
    packages: tuple[str, ...]


@cache
def code_version(verb: str, components: tuple[str, ...] = ()) -> str:
    """Changes with the text of every file that the results of ``verb`` come from, and with the version of every package."""
    found, total = sources(verb, components), hashlib.sha256()
    for path in found.files:
        total.update(f"{path} {_digest(path)}\n".encode())
    for package in found.packages:
        total.update(f"{package} {package_version(package)}\n".encode())
    return total.hexdigest()[:16]


@cache
def sources(verb: str, components: tuple[str, ...] = ()) -> Sources:
    """Of a verb as it works with ``components``, dotted names of classes that settings chose: those count whose interface the verb knows.

    Raises: UnknownSource if anything that is named here or in an import is not there.
    """
    search, collects = Search(), gc.isenabled()
    gc.disable()  # syntax trees stay, and looking through them for what can go would take as long as all else
    try:
        for entry in VERBS[verb]:
            search.enter(entry)
        waiting = {name: set(ancestors(name)) for name in components}
        while known := [name for name, above in waiting.items() if above & search.classes]:
            for name in sorted(known):
                search.reach(name)
                del waiting[name]
    finally:
        if collects:
            gc.enable()
    return Sources(tuple(sorted(search.files)), tuple(sorted(search.packages - NO_VERSION.keys())))


def classes_of(component: Any) -> Iterator[str]:
    """Dotted names of a component's class, and of those that its settings name (the family of a shrunk model)."""
    yield f"{type(component).__module__}.{type(component).__qualname__}"
    yield from _named(vars(component))


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, str) and re.fullmatch(r"workers(\.\w+)+\.[A-Z]\w*", value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _named(entry)


@cache
def package_version(name: str) -> str:
    """Of the package that has a module of that name, which is not imported; "" where there is none."""
    try:
        return version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        packages = packages_distributions().get(name, [])
        return version(packages[0]) if packages else ""


@cache
def _digest(path: str) -> str:
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


@cache
def exempt() -> tuple[str, ...]:
    """The paths that cannot matter. Raises: UnknownSource if one is not there."""
    for path in CANNOT_MATTER:
        if not (ROOT / path).exists():
            raise UnknownSource(f"CANNOT_MATTER names {path}, and there is none")
    return tuple(CANNOT_MATTER)


class Search:
    """What has been reached so far: files, packages, and dotted names of classes."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.packages: set[str] = set()
        self.classes: set[str] = set()
        self._modules: set[str] = set()
        self._done: set[tuple[str, ...]] = set()
        self._called: set[str] = set()  # names of attributes
        self._waiting: dict[str, list[tuple[Module, str]]] = {}  # by a method's name: classes that have it, until something calls it

    def enter(self, entry: str) -> None:
        """Begin at a function, or a method, with the types of its parameters."""
        self.reach(entry)
        place, _, name = entry.rpartition(".")
        at = module(place)
        if at is None:  # of a class
            place, _, kind = place.rpartition(".")
            at = module(place)
            assert at is not None
            node = (at.definitions[kind].methods or {})[name]
        else:
            node = at.definitions[name].nodes[0]
        assert isinstance(node, ast.FunctionDef)
        for argument in node.args.args:
            if argument.annotation is not None:
                self._follow(at, uses_of(argument.annotation), types=True)

    def reach(self, dotted: str) -> None:
        """Follow a dotted name: of a module, of something in it, or of a method. Raises: UnknownSource."""
        parts = dotted.split(".")
        if parts[0] not in PACKAGES:
            self.packages |= {parts[0]} - sys.stdlib_module_names
            return
        found = [(at, parts[n:]) for n in range(len(parts), 0, -1) if (at := module(".".join(parts[:n]))) is not None]
        if not found:
            raise UnknownSource(f"there is no {dotted}")
        at, rest = found[0]
        if at.path.startswith(exempt()) and at.path != MESSAGES:
            return
        self._import(at)
        if not rest:
            for name in at.definitions:
                self._define(at, name, None)
        elif rest[0] in at.definitions:
            method = rest[1] if len(rest) > 1 and rest[1] in (at.definitions[rest[0]].methods or {}) else None
            self._define(at, rest[0], method)
        elif rest[0] in at.imports:
            self.reach(".".join([at.imports[rest[0]], *rest[1:]]))
        elif not rest[0].startswith("__"):
            raise UnknownSource(f"{at.path or at.name}: there is no {rest[0]} in it, which {dotted} asks for")

    def _import(self, at: Module) -> None:
        """A file counts, and so do those of the packages that it is in, which run before it."""
        parts = at.name.split(".")
        for length in range(1, len(parts) + 1):
            each = module(".".join(parts[:length]))
            if each is not None and each.name not in self._modules:
                self._modules.add(each.name)
                if each.path and each.path != MESSAGES:
                    self.files.add(each.path)
                for uses in each.always.uses:
                    self._follow(each, uses)

    def _define(self, at: Module, name: str, method: str | None) -> None:
        """Something that a module defines; of a class, with ``method``, that one and what it calls on itself."""
        key, definition = (at.name, name, method or ""), at.definitions[name]
        if key in self._done:
            return
        self._done.add(key)
        if definition.methods is None:
            for uses in definition.uses:
                self._follow(at, uses)
            return
        self.classes.add(f"{at.name}.{name}")
        for uses in definition.uses:
            self._follow(at, uses, types=True)
        for own in definition.methods:
            if own == method or (own.startswith("__") and own.endswith("__")):
                self._call(at, name, own, alone=method is not None)
            elif method is None and (own in self._called or _called_from_outside(at, name)):
                self._call(at, name, own, alone=False)
            elif method is None:
                self._waiting.setdefault(own, []).append((at, name))

    def _call(self, at: Module, name: str, method: str, alone: bool) -> None:
        if (at.name, name, method, "called") in self._done:
            return
        self._done.add((at.name, name, method, "called"))
        own = at.definitions[name].method_uses
        self._follow(at, own[method])
        for chain in own[method].chains if alone else ():
            if chain[0] == "self" and len(chain) > 1 and chain[1] in own:
                self._call(at, name, chain[1], alone)

    def _follow(self, at: Module, uses: Uses, types: bool = False) -> None:
        for called in uses.attributes - self._called:
            self._called.add(called)
            for owner, name in self._waiting.pop(called, []):
                self._call(owner, name, called, alone=False)
        known = at.imports | uses.imports | (at.types if types else {})
        for chain in uses.chains:
            if chain[0] in uses.imports or chain[0] not in at.definitions:
                if chain[0] in known:
                    self.reach(".".join([known[chain[0]], *chain[1:]]))
            else:
                self.reach(".".join([at.name, *chain]))


def ancestors(dotted: str) -> Iterator[str]:
    """Dotted names of a class and of those of the project that it derives from. Raises: UnknownSource if there is no such class."""
    place, _, name = dotted.rpartition(".")
    at = module(place)
    if at is None or name not in at.definitions:
        raise UnknownSource(f"there is no class {dotted}")
    yield dotted
    for chain in at.definitions[name].bases:
        base = at.resolved(chain)
        if base is not None and base.split(".")[0] in PACKAGES:
            yield from ancestors(base)


def _called_from_outside(at: Module, name: str) -> bool:
    """Whether a class derives, over others if need be, from one of a library that calls its methods."""
    for dotted in ancestors(f"{at.name}.{name}"):
        place, _, kind = dotted.rpartition(".")
        owner = module(place)
        assert owner is not None
        for chain in owner.definitions[kind].bases:
            base = owner.resolved(chain)
            if chain[-1] not in INERT and (base is None or base.split(".")[0] not in PACKAGES):
                return True
    return False
