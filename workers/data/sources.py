"""Images that are not files of their own: members of tar files, and rows of tables. Each opens as a file in memory."""

from __future__ import annotations

from io import BytesIO
from typing import IO, NamedTuple, Protocol

MOST_BYTES = 1 << 30  # of a member; the header of a damaged file may say any number


class Source(Protocol):
    """Where the bytes of an image are. Its ``str`` names it in messages."""

    def open(self) -> IO[bytes]:
        """Returns the bytes as a file. May raise any ``Exception`` if they cannot be read."""


class Member(NamedTuple):
    """A member of a tar file that is not compressed, by its position."""

    tar: str
    name: str
    offset: int
    size: int

    def open(self) -> IO[bytes]:
        with open(self.tar, "rb") as file:
            return BytesIO(self.read(file))

    def read(self, tar: IO[bytes]) -> bytes:
        """Returns the bytes from the tar file, which is open already."""
        if self.size > MOST_BYTES:
            raise ValueError(f"{self.size / 1e9:.3g} GB, more than an image has")
        tar.seek(self.offset)
        return tar.read(self.size)

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"
