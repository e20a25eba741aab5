"""The contents of a folder of images: the files that are read, the folders that are classes, and everything that is skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".pgm", ".ppm", ".tif", ".tiff"})
# Created by operating systems, like everything whose name begins with a dot (.ipynb_checkpoints, .DS_Store, ._0.jpg).
DEBRIS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__", "Thumbs.db", "desktop.ini"}
)
DANGLING, SPECIAL = "a link to nothing", "not a regular file"
FOLDER = "folders that are named like images"
HIDDEN = "hidden files"


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a folder, in the order of class and name. A class is a subfolder that contains anything but debris.

    ``skipped`` counts the files that are not images, by kind. ``dangling`` are links to nothing and special files, with the reason.
    ``deeper`` are folders inside class folders, which are ignored. All names are relative to the folder.
    """

    folder: Path
    names: list[str]
    classes: list[str]  # empty: no labels
    class_N: NDArray[np.int64]  # of each image, as an index into classes
    skipped: Counter[str] = field(default_factory=Counter)
    dangling: dict[str, str] = field(default_factory=dict)
    deeper: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        return [os.path.join(self.folder, name) for name in self.names]

    def without(self, names: Collection[str]) -> Listing:
        """Returns the listing without some of its images, with the same classes."""
        import numpy as np

        kept_N = np.array([name not in names for name in self.names], bool)
        kept = [name for name in self.names if name not in names]
        return replace(self, names=kept, class_N=self.class_N[kept_N] if self.classes else self.class_N)

    def empty_classes(self) -> list[str]:
        """Returns the classes without images."""
        import numpy as np

        counts = np.bincount(self.class_N, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]


@dataclass
class _Inside:
    """The entries of one folder, without those of its subfolders."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    dangling: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def empty(self) -> bool:
        """Whether the folder contains nothing but debris."""
        return not (self.images or self.folders or self.dangling or self.skipped.keys() - {HIDDEN})


@lru_cache(maxsize=4)
def listed(folder: Path) -> Listing:
    """Returns the listing of a folder.

    Raises: ConfigError if there are no images, if there are images beside class folders, or if a folder cannot be read.
    """
    import numpy as np

    if not folder.is_dir():
        raise ConfigError(f"data.root: expected a folder of images, got no folder {printable(folder.absolute())}")
    top = _entries(folder, links=True)
    below = {name: _entries(folder / name, links=False) for name in top.folders}
    inside = {name: entries for name, entries in below.items() if not entries.empty}
    classes = list(inside)
    if top.images and classes:
        raise ConfigError(
            f"data.root: expected either images or class folders in {printable(folder)}, got both: image {printable(top.images[0])} and "
            f"folder {printable(classes[0])}"
        )
    names = top.images or [f"{name}/{image}" for name, entries in inside.items() for image in entries.images]
    deeper = [f"{name}/{other}" for name, entries in inside.items() for other in entries.folders]
    if not names:
        nested = f"; move the images up into the class folders, since {first_few(deeper)} are not searched" if deeper else ""
        raise ConfigError(
            f"data.root: expected images ({', '.join(sorted(SUFFIXES))}) in {printable(folder)} or its subfolders, got none{nested}"
        )
    counts = np.array([len(entries.images) for entries in inside.values()], np.int64)
    return Listing(
        folder,
        names,
        classes,
        np.repeat(np.arange(len(classes)), counts),
        sum((entries.skipped for entries in below.values()), top.skipped),
        top.dangling | {f"{name}/{link}": why for name, entries in inside.items() for link, why in entries.dangling.items()},
        deeper,
    )


def _entries(folder: Path, links: bool) -> _Inside:
    """Returns the entries of a folder. With ``links``, a link to nothing counts whatever its name is, since it may stand for a folder."""
    inside = _Inside()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            _sort(entry, inside, links)
    except OSError as error:
        raise ConfigError(f"data.root: cannot read {printable(folder)}: {error.strerror}") from error
    return inside


def _sort(entry: os.DirEntry[str], inside: _Inside, links: bool) -> None:
    suffix, hidden = os.path.splitext(entry.name)[1].lower(), entry.name.startswith(".")
    image = suffix in SUFFIXES
    if entry.is_symlink() and not os.path.exists(entry.path):
        if (image or links) and not hidden:
            inside.dangling[entry.name] = DANGLING
    elif entry.is_dir():
        if not hidden and entry.name not in DEBRIS:
            if image:
                inside.skipped[FOLDER] += 1
            else:
                inside.folders.append(entry.name)
    elif hidden or entry.name in DEBRIS:
        if image:
            inside.skipped[HIDDEN] += 1
    elif not image:
        inside.skipped[f"{suffix} files" if suffix else "files without an ending"] += 1
    elif entry.is_file():
        inside.images.append(entry.name)
    else:
        inside.dangling[entry.name] = SPECIAL


def printable(name: object) -> str:
    """Returns a file's name as text; bytes that are not UTF-8 are escaped."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def first_few(names: Sequence[str], most: int = 3) -> str:
    """Returns the first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


def summary(skipped: Counter[str], most: int = 6) -> str:
    """Returns the skipped files by kind, the most frequent first: "12 .gif files, 3 hidden files"."""
    parts: Iterable[str] = (f"{count} {_singular(kind) if count == 1 else kind}" for kind, count in skipped.most_common(most))
    return ", ".join(parts) + (" and others" if len(skipped) > most else "")


def _singular(kind: str) -> str:
    return {FOLDER: "folder that is named like an image", HIDDEN: "hidden file"}.get(kind, kind.replace("files", "file"))
