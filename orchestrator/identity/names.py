"""What the names in the project's source files stand for: definitions, imports and uses, read with ``ast``; nothing is imported."""

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
    """A name that nothing in the project is called, or an import that does not say what it imports."""


@dataclass
class Uses:
    """What a piece of code refers to: dotted names as they stand, names of attributes, and what its own imports give names to."""

    chains: set[Chain] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    imports: dict[str, str] = field(default_factory=dict)


@dataclass
class Definition:
    """A function, class or value at the top of a module. Methods of a class are apart from ``nodes``."""

    nodes: list[ast.AST]
    methods: dict[str, ast.AST] | None = None  # None: no class
    bases: tuple[Chain, ...] = ()

    @cached_property
    def uses(self) -> list[Uses]:
        return [uses_of(node) for node in self.nodes]

    @cached_property
    def method_uses(self) -> dict[str, Uses]:
        return {name: uses_of(node) for name, node in (self.methods or {}).items()}


@dataclass
class Module:
    """The names of a source file. ``always`` is what runs when it is imported; ``path`` is below the root, "" for a folder without file."""

    name: str
    path: str
    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # dotted names by the names that they are given
    types: dict[str, str] = field(default_factory=dict)  # likewise, if TYPE_CHECKING
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
            case _:  # runs whoever imports the module, and all that it defines stands for the whole of it
                self.always.nodes.append(statement)
                for node in ast.walk(statement):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        self.imports |= imported(node)
                    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                        self.definitions[node.name] = Definition([statement])
                    elif isinstance(node, ast.Assign | ast.AnnAssign):
                        self.definitions |= {name: Definition([statement]) for name in _assigned(node)}

    def _is_registered_by(self, decorator: ast.expr) -> bool:
        """Whether a decorator is a call of the project's own, which may put the function into a table."""
        if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Name):
            return False
        name = decorator.func.id
        return name in self.definitions or self.imports.get(name, "").split(".")[0] in PACKAGES

    def add_idle_imports(self, tree: ast.Module) -> None:
        """An import that nothing in the file uses is there for what it does, so it counts for whoever imports the file."""
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        idle = [name for name, dotted in self.imports.items() if name not in used and dotted.split(".")[0] in PACKAGES]
        self.always.nodes += [ast.Name(name) for name in idle]

    def resolved(self, chain: Chain) -> str | None:
        """The dotted name that a name in this module stands for; None if it is neither defined nor imported at its top."""
        if chain[0] in self.definitions:
            return ".".join([self.name, *chain])
        return ".".join([self.imports[chain[0]], *chain[1:]]) if chain[0] in self.imports else None


@cache
def module(name: str) -> Module | None:
    """The module of that name, if the project has one."""
    place = ROOT / name.replace(".", "/")
    if name.split(".")[0] not in PACKAGES:
        return None
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            found = Module(name, path.relative_to(ROOT).as_posix())
            tree = ast.parse(path.read_bytes())
            for statement in tree.body:
                found.add(statement)
            found.add_idle_imports(tree)
            return found
    return Module(name, "") if place.is_dir() else None


def imported(statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Dotted names by the names that they are given. Raises: UnknownSource for imports that are relative or of everything."""
    if isinstance(statement, ast.Import):
        tops = {alias.name.split(".")[0]: alias.name.split(".")[0] for alias in statement.names if not alias.asname}
        return tops | {alias.asname: alias.name for alias in statement.names if alias.asname}
    if statement.level or any(alias.name == "*" for alias in statement.names):
        raise UnknownSource(f"expected an import of names from a module in full, got {ast.unparse(statement)}")
    return {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}


def uses_of(node: ast.AST) -> Uses:
    """What a piece of code refers to, without the annotations in functions."""
    found = Uses()
    waiting: list[ast.AST] = [node]
    while waiting:
        at = waiting.pop()
        match at:
            case ast.Import() | ast.ImportFrom():
                found.imports |= imported(at)
            case ast.Name():
                found.chains.add((at.id,))
            case ast.Attribute():
                chain, inner = [at.attr], at.value
                while isinstance(inner, ast.Attribute):
                    chain, inner = [inner.attr, *chain], inner.value
                found.attributes |= set(chain)
                if isinstance(inner, ast.Name):
                    found.chains.add((inner.id, *chain))
                else:
                    waiting.append(inner)
            case ast.FunctionDef():
                waiting += [*at.decorator_list, *at.args.defaults, *(default for default in at.args.kw_defaults if default), *at.body]
            case ast.AnnAssign() if at is not node:
                waiting += [at.target, *([at.value] if at.value else [])]
            case _:
                if isinstance(at, ast.Call) and isinstance(at.func, ast.Name) and at.func.id == "getattr":
                    found.attributes |= {
                        value.value for value in at.args if isinstance(value, ast.Constant) and isinstance(value.value, str)
                    }
                waiting += ast.iter_child_nodes(at)
    return found


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
