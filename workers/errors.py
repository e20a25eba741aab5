"""Errors that a user can act on. Each message names the place, what was expected, what was found, and the remedy."""

from pathlib import Path

LONGEST_MESSAGE, LONGEST_END = 8000, 2000  # characters of a message, and of its end, which has the remedy


class SecateurError(Exception):
    """A failure with a remedy: printed as one line, without a traceback."""

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - LONGEST_END - 1]}…{text[-LONGEST_END:]}"


class ConfigError(SecateurError):
    """The request cannot be carried out as written. Raised before any worker starts, with exit status 2."""


class DamagedResult(SecateurError):
    """A stored result does not match its record. It is discarded and computed again."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(f"{directory}: {reason}")
        self.directory = directory
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.directory, self.reason)


def printable(text: str) -> str:
    """Returns text as one line that a terminal only shows: it may quote names in files, which may contain escape sequences."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else sign.encode("unicode_escape").decode() for sign in text)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error, or the name of its class if it says nothing."""
    return next((line for line in str(error).strip().splitlines()), type(error).__name__)
