"""Which sets of weights may go together: any, N of M, or whole groups of neighbours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """A constraint on what is removed from consecutive entries of a row.

    ``tile`` neighbours go together or not at all (1: single weights). Of every ``bucket`` neighbours at most ``removable`` go (bucket 0: no
    such limit). Entries that were gone before count as removed. Tiles and buckets start at multiples of their length.
    """

    tile: int = 1
    bucket: int = 0
    removable: int = 0

    def __post_init__(self) -> None:
        if self.tile < 1 or self.bucket < 0 or not 0 <= self.removable <= self.bucket or (self.tile > 1 and self.bucket):
            raise ValueError(f"expected tiles of 1 or more, or buckets that lose from 0 to all of their entries, got {self}")

    def check(self, block_size: int) -> None:
        """Raises ValueError when blocks of this size would cut a tile or a bucket."""
        if block_size % self.length:
            raise ValueError(
                f"expected blocks of a multiple of {self.length} entries for {self}, got {block_size}: choose another block size"
            )

    @property
    def length(self) -> int:
        """Rows and blocks must be multiples of this many entries."""
        return max(self.tile, self.bucket, 1)

    @property
    def is_free(self) -> bool:
        return self.length == 1


FREE = Pattern()


def parse(text: str) -> Pattern:
    """``unstructured``; ``N:M`` (of M neighbours at most M - N go); ``groups:U`` (U neighbours go together).

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
