"""The identity of a module and a loss function that exist in this process only."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import sys
import uuid
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from orchestrator.identity.own import installed, own_code
from orchestrator.identity.sources import package_version

if TYPE_CHECKING:
    from torch import nn

MAIN = "__main__"


class NoIdentity(Exception):
    """An object whose code or values cannot be found, so that it equals nothing but itself."""


def given_identity(module: nn.Module, skeleton: nn.Module, loss: Any) -> str:
    """Returns a digest of a module without its state dict, and of a loss function.

    ``skeleton`` is the module on the meta device. The digest covers the attributes of its modules, their classes, and the code that these
    are made of: files of the user as in ``own``, versions of packages, and in a notebook or script the definitions that they refer to by
    name. If anything of that cannot be found, as for a lambda without source, the digest is one that never occurs again, and no stored
    result fits.
    """
    try:
        state = module.state_dict()
        unsaved = [buffer.detach().numpy().tobytes() for name, buffer in module.named_buffers() if name not in state]
        parts = [_pickled(skeleton), *unsaved, *([] if loss is None else _values_of(loss))]
        kinds = {type(part) for part in skeleton.modules()}
        for part in [*sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)), *([] if loss is None else [loss])]:
            parts += (text.encode() for text in _code_of(part))
    except NoIdentity:
        return uuid.uuid4().hex[:16]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]


def _values_of(loss: Any) -> Iterator[bytes]:
    """Yields what a loss function holds: values of its closure and defaults, or the attributes of an object."""
    if isinstance(loss, FunctionType):
        for cell in loss.__closure__ or ():
            yield _pickled(cell.cell_contents)
        yield _pickled((loss.__defaults__, loss.__kwdefaults__))
    else:
        yield _pickled(loss)


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:  # of any class: lambdas, local classes, open files
        raise NoIdentity from error


def _code_of(value: Any) -> Iterator[str]:
    """Yields the code of a class, a function, a module of Python, or an object's class."""
    kind = value if isinstance(value, type | FunctionType | ModuleType) else type(value)
    place = kind.__name__ if isinstance(kind, ModuleType) else kind.__module__
    top = place.split(".")[0]
    if top in sys.stdlib_module_names and place != MAIN:
        return
    if installed(top):
        yield f"{top} {package_version(top)}"
    elif place != MAIN and (files := own_code(place).files):
        for name, path in files.items():
            yield f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    elif isinstance(kind, ModuleType):
        raise NoIdentity
    else:
        yield from _definitions(kind, vars(sys.modules[place]) if place in sys.modules else {}, set())


def _definitions(kind: type | FunctionType, names: dict[str, Any], seen: set[int]) -> Iterator[str]:
    """Yields the source of a definition, the code of whatever it refers to by name, and digests of the values of variables."""
    if id(kind) in seen:
        return
    seen.add(id(kind))
    try:
        yield inspect.getsource(kind)
    except (OSError, TypeError) as error:
        raise NoIdentity from error
    for base in kind.__bases__ if isinstance(kind, type) else ():
        if base.__module__ == kind.__module__:
            yield from _definitions(base, names, seen)
    functions = [value for value in vars(kind).values() if isinstance(value, FunctionType)] if isinstance(kind, type) else [kind]
    for name in sorted({name for function in functions for name in _names_in(function.__code__)}):
        value = names.get(name)
        if isinstance(value, type | FunctionType) and value.__module__ == kind.__module__:
            yield from _definitions(value, names, seen)
        elif isinstance(value, type | FunctionType | ModuleType):
            yield from _code_of(value)
        elif value is not None:
            yield f"{name} = {hashlib.sha256(_pickled(value)).hexdigest()}"


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
