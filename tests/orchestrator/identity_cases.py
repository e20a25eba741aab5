"""Settings that are changed one by one."""

from copy import copy
from enum import Enum
from typing import Any


def other(value: Any) -> Any:
    """Another value of the same type, valid or not."""
    match value:
        case bool():
            return not value
        case Enum():
            return next(member for member in type(value) if member is not value)
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list() | tuple():
            return [*value, 1]
        case dict():
            return value | {"other": 1}
        case None:
            return 7
    raise TypeError(type(value))


def changed(value: Any, path: tuple[str, ...], to: Any = None) -> Any:
    """A copy in which the setting at ``path`` has another value (``to``, if given). Nothing is checked."""
    if not path:
        return other(value) if to is None else to
    if isinstance(value, dict):
        return value | {path[0]: changed(value[path[0]], path[1:], to)}
    new = copy(value)
    object.__setattr__(new, path[0], changed(getattr(value, path[0]), path[1:], to))
    return new
