"""One sentence for every bad setting."""

from workers.errors import ConfigError


def require(holds: bool, where: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise ``ConfigError`` naming the setting, what it may be and what it is, unless ``holds``."""
    if not holds:
        raise ConfigError(f"{where}: expected {expected}, got {got!r}" + (f"; {remedy}" if remedy else ""))
