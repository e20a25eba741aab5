"""Patterns of zeros: any, N:M, or whole tiles of neighbouring weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """A constraint on which consecutive entries of a row are removed.

    The entries of a ``tile`` are removed together or not at all (1: single weights). Of every ``bucket`` neighbours at most ``removable``
    are removed (bucket 0: no such limit), including those that were zero before. Tiles and buckets start at multiples of their length.
    """

    tile: int = 1
    bucket: int = 0
    removable: int = 0

    def __post_init__(self) -> None:
        if self.tile < 1 or self.bucket < 0 or not 0 <= self.removable <= self.bucket or (self.tile > 1 and self.bucket):
            raise ValueError(f"expected tiles of 1 or more, or buckets with 0 to all of their entries removable, got {self}")

    def check(self, block_size: int) -> None:
        """Raises ValueError if blocks of this size would cut a tile or a bucket."""
        if block_size % self.length:
            raise ValueError(f"expected a block size that is a multiple of {self.length} for {self}, got {block_size}")

    @property
    def length(self) -> int:
        """The number that the length of rows and blocks must be a multiple of."""
        return max(self.tile, self.bucket, 1)

    @property
    def is_free(self) -> bool:
        return self.length == 1


FREE = Pattern()


def parse(text: str) -> Pattern:
    """Returns the pattern ``unstructured``, ``N:M`` (at most M - N of M neighbours are removed) or ``groups:U`` (tiles of U neighbours).

    Raises ValueError for anything else.
    """
    if text == "unstructured":
        return FREE
    first, _, second = text.partition(":")
    if first == "groups" and second.isdigit() and 2 <= int(second) <= 64:
        return Pattern(tile=int(second))
    if first.isdigit() and second.isdigit() and 1 <= int(first) < int(second) <= 64:
        return Pattern(bucket=int(second), removable=int(second) - int(first))
    raise ValueError(f"expected unstructured, N:M with 1 <= N < M <= 64, or groups:U with 2 <= U <= 64, got {text!r}")
