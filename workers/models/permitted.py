"""Code of the user that builds models. Model files name it, and nothing runs it unless the user permits it.

A model file that somebody else wrote must not import or call code of its choice. A run permits the names in its own settings, and everybody
else permits a name with ``load_pruned(file, build=...)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from workers.errors import ConfigError, SecateurError

Builder = Callable[..., Any]  # returns a module; or the class of a model family
OURS = "workers.models."

_permitted: dict[str, Builder | None] = {}  # by name; None: to be imported when it is needed
_answer: ContextVar[Builder | None] = ContextVar("builder of names that are not permitted", default=None)


def permit(names: Mapping[str, Builder | None]) -> None:
    """Permits names in this process. Those without a builder are dotted names, which are imported when they are needed."""
    for name, build in names.items():
        if not name.startswith(OURS):
            _permitted[name] = build or _permitted.get(name)


def forbid(name: str) -> None:
    """Ends the permission of a name."""
    _permitted.pop(name, None)


def permitted() -> dict[str, Builder | None]:
    """Returns what is permitted in this process, for the processes that work for it."""
    return dict(_permitted)


@contextmanager
def built_by(build: Builder | None) -> Iterator[None]:
    """Lets ``build`` stand for every name that is not permitted."""
    token = _answer.set(build)
    try:
        yield
    finally:
        _answer.reset(token)


def find(name: str) -> Builder:
    """Returns the builder of a permitted name. Raises: SecateurError if the name is not permitted; ConfigError if there is no such name."""
    if not isinstance(name, str) or name not in _permitted:
        build = _answer.get()
        if build is None:
            raise SecateurError(
                f"expected a model that secateur builds, got one that {name!r} builds; pass the function or class that builds it, "
                "load_pruned(FILE, build=...), or name it in model.permit"
            )
        return build
    return _permitted[name] or imported("model", name)


def imported(where: str, name: str) -> Any:
    """Returns the object with a dotted name. Raises: ConfigError, which begins with ``where``, if there is none."""
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(f"{where}: expected a dotted name such as mypackage.{name or 'build'}, got {name!r}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        reason = f"{error}; run from the folder that contains {module.split('.')[0]}, or install it"
    except AttributeError:
        reason = f"{module} does not define {attribute}"
    except Exception as error:  # any code of the user runs here
        reason = f"importing {module} failed: {type(error).__name__} {error}"
    raise ConfigError(f"{where}: there is no {name} ({' '.join(reason.split())})")
