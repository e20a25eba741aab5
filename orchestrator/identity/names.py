"""Resolves the names in the project's source files: definitions, imports and uses. Reads them with ``ast`` and imports nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("kernels", "workers", "orchestrator")
Chain = tuple[str, ...]  # a dotted name, in parts


class UnknownSource(Exception):
    """A name that the project does not define, or an import that does not name what it imports."""


@dataclass
class Uses:
    """What a piece of code refers to: dotted names as written, names of attributes, and the names that its own imports define."""

    chains: set[Chain] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    imports: dict[str, str] = field(default_factory=dict)


@dataclass
class Definition:
    """A function, class or value at the top level of a module. ``nodes`` do not contain the methods of a class."""

    nodes: list[ast.AST]
    methods: dict[str, ast.AST] | None = None  # None unless this is a class
    bases: tuple[Chain, ...] = ()

    @cached_property
    def uses(self) -> list[Uses]:
        return [uses_of(node) for node in self.nodes]

    @cached_property
    def method_uses(self) -> dict[str, Uses]:
        return {name: uses_of(node) for name, node in (self.methods or {}).items()}


@dataclass
class Module:
    """The names of a source file. ``always`` runs when it is imported. ``path`` is relative to the root, "" for a folder without a file."""

    name: str
    path: str
    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # dotted names by local name
    types: dict[str, str] = field(default_factory=dict)  # the same for imports under TYPE_CHECKING
    always: Definition = field(default_factory=lambda: Definition([]))

    def add(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Import() | ast.ImportFrom():
                self.imports |= imported(statement)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for inner in statement.body:
                    self.types |= imported(inner) if isinstance(inner, ast.Import | ast.ImportFrom) else {}
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                pass
            case ast.FunctionDef():
                self.definitions[statement.name] = Definition([statement])
                if any(self._is_registered_by(decorator) for decorator in statement.decorator_list):
                    self.always.nodes.append(statement)
            case ast.ClassDef():
                self.definitions[statement.name] = _class(statement)
            case ast.Assign() | ast.AnnAssign() if names := list(_assigned(statement)):
                for name in names:
                    self.definitions.setdefault(name, Definition([])).nodes.append(statement)
            case _:  # runs on import, and each name that it defines refers to the whole statement
                self.always.nodes.append(statement)
                for node in ast.walk(statement):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        self.imports |= imported(node)
                    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                        self.definitions[node.name] = Definition([statement])
                    elif isinstance(node, ast.Assign | ast.AnnAssign):
                        self.definitions |= {name: Definition([statement]) for name in _assigned(node)}

    def _is_registered_by(self, decorator: ast.expr) -> bool:
        """Returns whether a decorator is a call of a function of the project, which may put the decorated function into a table."""
        if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Name):
            return False
        name = decorator.func.id
        return name in self.definitions or self.imports.get(name, "").split(".")[0] in PACKAGES

    def add_idle_imports(self, tree: ast.Module) -> None:
        """Adds imports that nothing in the file uses: they are there for their effects, so they count whenever the file is imported."""
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        idle = [name for name, dotted in self.imports.items() if name not in used and dotted.split(".")[0] in PACKAGES]
        self.always.nodes += [ast.Name(name) for name in idle]

    def resolved(self, chain: Chain) -> str | None:
        """Returns the dotted name that a name in this module refers to, or None if its top level neither defines nor imports it."""
        if chain[0] in self.definitions:
            return ".".join([self.name, *chain])
        return ".".join([self.imports[chain[0]], *chain[1:]]) if chain[0] in self.imports else None


@cache
def module(name: str) -> Module | None:
    """Returns the module called ``name``, or None if the project has none."""
    base = ROOT / name.replace(".", "/")
    if name.split(".")[0] not in PACKAGES:
        return None
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            source = Module(name, path.relative_to(ROOT).as_posix())
            tree = ast.parse(path.read_bytes())
            for statement in tree.body:
                source.add(statement)
            source.add_idle_imports(tree)
            return source
    return Module(name, "") if base.is_dir() else None


def imported(statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Returns the dotted names that an import defines, by local name.

    Raises: UnknownSource for relative imports and ``import *``.
    """
    if isinstance(statement, ast.Import):
        tops = {alias.name.split(".")[0]: alias.name.split(".")[0] for alias in statement.names if not alias.asname}
        return tops | {alias.asname: alias.name for alias in statement.names if alias.asname}
    if statement.level or any(alias.name == "*" for alias in statement.names):
        raise UnknownSource(f"expected an absolute import of names, got {ast.unparse(statement)}")
    return {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}


def uses_of(node: ast.AST) -> Uses:
    """Returns what a piece of code refers to. Annotations in functions do not count."""
    uses = Uses()
    waiting: list[ast.AST] = [node]
    while waiting:
        current = waiting.pop()
        match current:
            case ast.Import() | ast.ImportFrom():
                uses.imports |= imported(current)
            case ast.Name():
                uses.chains.add((current.id,))
            case ast.Attribute():
                chain, inner = [current.attr], current.value
                while isinstance(inner, ast.Attribute):
                    chain, inner = [inner.attr, *chain], inner.value
                uses.attributes |= set(chain)
                if isinstance(inner, ast.Name):
                    uses.chains.add((inner.id, *chain))
                else:
                    waiting.append(inner)
            case ast.FunctionDef():
                waiting += [
                    *current.decorator_list,
                    *current.args.defaults,
                    *(default for default in current.args.kw_defaults if default),
                    *current.body,
                ]
            case ast.AnnAssign() if current is not node:
                waiting += [current.target, *([current.value] if current.value else [])]
            case _:
                if isinstance(current, ast.Call) and isinstance(current.func, ast.Name) and current.func.id == "getattr":
                    uses.attributes |= {
                        value.value for value in current.args if isinstance(value, ast.Constant) and isinstance(value.value, str)
                    }
                waiting += ast.iter_child_nodes(current)
    return uses


def _class(statement: ast.ClassDef) -> Definition:
    methods: dict[str, ast.AST] = {inner.name: inner for inner in statement.body if isinstance(inner, ast.FunctionDef)}
    rest: list[ast.AST] = [inner for inner in statement.body if not isinstance(inner, ast.FunctionDef)]
    fixed = [*statement.decorator_list, *statement.bases, *(keyword.value for keyword in statement.keywords)]
    return Definition([*fixed, *rest], methods, tuple(chain for base in statement.bases for chain in uses_of(base).chains))


def _assigned(statement: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
        for inner in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(inner, ast.Name):
                yield inner.id
