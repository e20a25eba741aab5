"""What lies in a folder of images: which files are read, which folders are classes, and what is passed over."""

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
# What systems leave behind in folders, beside everything whose name begins with a dot (.ipynb_checkpoints, .DS_Store, ._0.jpg).
DEBRIS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__", "Thumbs.db", "desktop.ini"}
)
DANGLING, SPECIAL = "a link to nothing", "no regular file"
FOLDER = "folders that are named like images"
HIDDEN = "hidden files"


@dataclass(frozen=True, eq=False)
class Listing:
    """Images of a folder in the order of class and name. A class is a subfolder that holds anything but debris.

    ``skipped`` counts what no loader would read, by kind; ``dangling`` are links to nothing and the like, with the reason; ``deeper`` are
    folders inside classes, which are not looked into. All names are relative to the folder.
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
        """The same folder without some of its images; its classes stay."""
        import numpy as np

        kept_N = np.array([name not in names for name in self.names], bool)
        left = [name for name in self.names if name not in names]
        return replace(self, names=left, class_N=self.class_N[kept_N] if self.classes else self.class_N)

    def idle(self) -> list[str]:
        """Classes that no image is of."""
        import numpy as np

        counts = np.bincount(self.class_N, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]


@dataclass
class _Inside:
    """One folder, its subfolders not looked into."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    dangling: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def empty(self) -> bool:
        """Whether there is nothing but debris."""
        return not (self.images or self.folders or self.dangling or self.skipped.keys() - {HIDDEN})


@lru_cache(maxsize=4)
def listed(folder: Path) -> Listing:
    """Raises: ConfigError if there are no images, images lie beside class folders, or a folder cannot be read."""
    import numpy as np

    if not folder.is_dir():
        raise ConfigError(
            f"data.root: expected a folder of images, found no {shown(folder.absolute())}; "
            "set data.root, data.train_folder, data.test_folder"
        )
    top = _look(folder, links=True)
    below = {name: _look(folder / name, links=False) for name in top.folders}
    inside = {name: found for name, found in below.items() if not found.empty}
    classes = list(inside)
    if top.images and classes:
        raise ConfigError(
            f"data.root: {shown(folder)} holds images ({shown(top.images[0])}) and subfolders ({shown(classes[0])}); "
            "expected one or the other"
        )
    names = top.images or [f"{name}/{image}" for name, found in inside.items() for image in found.images]
    deeper = [f"{name}/{other}" for name, found in inside.items() for other in found.folders]
    if not names:
        where = f"; images are looked for in the classes' folders, not in {some(deeper)}" if deeper else ""
        raise ConfigError(
            f"data.root: {shown(folder)} holds no images, nor do its subfolders; they end in {', '.join(sorted(SUFFIXES))}{where}"
        )
    counts = np.array([len(found.images) for found in inside.values()], np.int64)
    return Listing(
        folder,
        names,
        classes,
        np.repeat(np.arange(len(classes)), counts),
        sum((found.skipped for found in below.values()), top.skipped),
        top.dangling | {f"{name}/{link}": why for name, found in inside.items() for link, why in found.dangling.items()},
        deeper,
    )


def _look(folder: Path, links: bool) -> _Inside:
    """``links`` that lead nowhere may stand for folders, whatever they are called."""
    inside = _Inside()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            _sort(entry, inside, links)
    except OSError as error:
        raise ConfigError(f"data.root: {shown(folder)} cannot be read: {error.strerror}") from error
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


def shown(name: object) -> str:
    """A file's name as text, whatever its bytes are."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def counted(skipped: Counter[str], most: int = 6) -> str:
    """What was passed over, the most frequent first: "12 .gif files, 3 hidden files"."""
    parts: Iterable[str] = (f"{count} {_singular(kind) if count == 1 else kind}" for kind, count in skipped.most_common(most))
    return ", ".join(parts) + (" and others" if len(skipped) > most else "")


def _singular(kind: str) -> str:
    return {FOLDER: "folder that is named like an image", HIDDEN: "hidden file"}.get(kind, kind.replace("files", "file"))
