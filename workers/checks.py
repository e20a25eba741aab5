"""One sentence for every bad setting."""

import math
from typing import Any

from workers.errors import ConfigError


def require(holds: bool, where: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise ``ConfigError`` naming the setting, what it may be and what it is, unless ``holds``."""
    if not holds:
        raise ConfigError(f"{where}: expected {expected}, got {got!r}" + (f"; {remedy}" if remedy else ""))


LARGEST = 2**31 - 1  # no count, size or seed needs more, and what counts in 64 bits still has room for sums and products of some


def require_numbers(value: Any, where: str) -> None:
    """Raise ``ConfigError`` naming the first number in nested dicts and lists that is not finite or, if whole, beyond ``LARGEST``."""
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
