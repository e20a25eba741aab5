"""The check behind every message about a bad setting."""

import math
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from workers.errors import ConfigError


class Phrase(str):
    """Words that describe what was found, which a message shows without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def require(holds: bool, where: str, expected: str, got: object, remedy: str = "") -> None:
    """Raises ``ConfigError`` unless ``holds``. The message reads "where: expected EXPECTED, got GOT; REMEDY".

    ``where`` is the name of the setting. ``got`` is shown by its ``repr``: pass the value itself, or a ``Phrase`` if words say more.
    """
    if not holds:
        raise ConfigError(f"{where}: expected {expected}, got {got!r}" + (f"; {remedy}" if remedy else ""))


def absolute_path(given: str, path: Path) -> str:
    """Returns the remedy of a message about a missing file: where it was looked for, or "" if the setting says exactly that."""
    absolute = str(path.absolute())
    return "" if given == absolute else f"the absolute path is {absolute}"


LARGEST = 2**31 - 1  # more than any count, size or seed needs; sums and products of a few such numbers still fit into 64 bits


def require_numbers(value: Any, where: str) -> None:
    """Raises ``ConfigError`` for the first number in nested dicts and lists that is not finite, or whose size exceeds ``LARGEST``."""
    if isinstance(value, dict):
        for name, entry in value.items():
            require_numbers(entry, f"{where}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            require_numbers(entry, f"{where}[{index}]")
    elif isinstance(value, int):
        require(abs(value) <= LARGEST, where, f"a whole number of at most {LARGEST}", value)
    elif isinstance(value, float):
        require(math.isfinite(value), where, "a finite number", value)


def is_of_type(value: Any, hint: Any) -> bool:
    """Returns whether plain values, as JSON has them, are what a type hint says, such as ``dict[str, list[int]]``. No bool is an int."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(is_of_type(value, choice) for choice in inner)
    if origin is list:
        return isinstance(value, list | tuple) and all(is_of_type(entry, inner[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(is_of_type(key, inner[0]) and is_of_type(entry, inner[1]) for key, entry in value.items())
    return type(value) is hint or (hint is float and type(value) is int)


def type_words(hint: Any) -> str:
    """Returns a type hint as it is written."""
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
