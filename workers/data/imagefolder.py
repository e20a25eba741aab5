"""Folders of images, labelled by subfolders or not labelled at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import Phrase, absolute_path, require
from workers.data.examine import (
    Broken,
    Examine,
    Examined,
    broken_files,
    check_same,
    digest_of_names,
    digest_of_states,
    left_out_remarks,
    refuse_broken,
)
from workers.data.imagefiles import ImageFiles
from workers.data.imagenet import wordnet_outputs
from workers.data.listing import Listing, first_few, listed, printable, summary
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "test")


@dataclass
class ImageFolder(ImageFiles):
    """``root/train_folder`` and ``root/test_folder``, each with a subfolder for each class or with unlabelled images directly inside.

    Classes are the training subfolders that are not empty. Hidden folders and those that operating systems create (``__MACOSX``) are
    ignored. Classes are numbered by ``class_map`` if given. If all names are WordNet ids and a subset of ImageNet has as many classes as
    the model has outputs, they are numbered in the order of that subset, else by their sorted names (ImageNet's layout and order). Both
    folders may be the same (``.`` is ``root`` itself), which suffices for calibration without labels; the test then compares outputs with
    those of the dense model. The ``expected_*`` numbers are checked, and are used for a plan if the folder is missing.
    """

    root: str
    train_folder: str
    test_folder: str
    expected_train: int | None  # images; null: not checked
    expected_test: int | None
    expected_classes: int | None  # 0: no labels
    class_map: Any  # null, or the number of each class (an output of the model) by the name of its folder: dict[str, int]
    broken: Broken
    examine: Examine

    elsewhere: ClassVar[tuple[str, ...]] = (  # whatever effect these have on a batch is part of the content
        "root",
        "train_folder",
        "test_folder",
        "expected_train",
        "expected_test",
        "expected_classes",
        "class_map",
        "broken",
        "examine",
        "decoders",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._examined: Examined | None = None
        if self.class_map is None:
            return
        class_map, numbers = self.class_map, "a number of at least 0 for the name of each folder, such as {cat: 281, dog: 207}"
        valid = isinstance(class_map, dict) and all(type(number) is int and number >= 0 for number in class_map.values())
        require(valid and bool(class_map), "data.class_map", numbers, class_map)
        self.class_map = {str(name): number for name, number in class_map.items()}

    @property
    def classes(self) -> int:
        return len(self._listing("train").classes) if self.expected_classes is None else self.expected_classes

    def count(self, split: str) -> int:
        expected = self.expected_train if split == "train" else self.expected_test
        return len(self._listing(split).names) if expected is None or self._examined else expected

    def check(self) -> None:
        listed.cache_clear()  # an earlier run in this process may have cached another state
        train, test = self._listing("train"), self._listing("test")
        unknown = sorted(set(test.classes) - set(train.classes))
        remedy = "create the same class subfolders in both folders, or none in either"
        require(bool(train.classes) == bool(test.classes), "data.test_folder", f"{len(train.classes)} classes", len(test.classes), remedy)
        require(not unknown, "data.test_folder", "only classes that data.train_folder has too", unknown[:3], remedy)
        for name, number in {"train": len(train.names), "test": len(test.names), "classes": len(train.classes)}.items():
            expected_number = getattr(self, f"expected_{name}")
            expected = f"{expected_number} (data.expected_{name})"
            require(expected_number in (None, number), f"data.root ({name})", expected, number, f"check that {self.root} is complete")
        if self.class_map is not None:
            require(bool(train.classes), "data.class_map", "null for images without class folders", self.class_map)
            missing = [name for name in train.classes if name not in self.class_map]
            expected = f"a number for each of the {len(train.classes)} class folders"
            require(not missing, "data.class_map", expected, Phrase(f"none for {first_few(missing)}"), "quote names that are numbers")
        super().check()

    @property
    def to_examine(self) -> int:
        return sum(len(listed(folder).names) for folder in self._folders)

    def settled(self, outputs: int | None, cache: Path, advance: Callable[[int], None]) -> ImageFolder:
        """Examines the files, and maps classes that are named by WordNet ids to outputs of the model."""
        mapped = None if self.class_map is not None or outputs is None else wordnet_outputs(self._listing("train").classes, outputs)
        subset, numbers = mapped or ("", {})
        renumbered = bool(numbers) and list(numbers.values()) != list(range(outputs or 0))
        data = replace(self, class_map=numbers) if renumbered else replace(self)
        broken = {
            folder: listed(folder).dangling | broken_files(folder, listed(folder).names, self.examine, cache, advance)
            for folder in self._folders
        }
        if self.broken is Broken.ERROR:
            refuse_broken("data.root", broken, cache)
        left_out = {split: frozenset(broken[self._folder(split)]) for split in SPLITS}
        used = {split: listed(self._folder(split)).without(left_out[split]) for split in SPLITS}
        for split, listing in used.items():
            none = Phrase(f"none in {printable(listing.folder)}")
            require(bool(listing.names), f"data.{split}_folder", "at least one image that can be read", none)
        names = {split: digest_of_names(_names(listing)) for split, listing in used.items()}
        remarks = [sentence for folder in self._folders for sentence in _skipped_remarks(listed(folder))]
        remarks += left_out_remarks({printable(folder / name): why for name, why in reasons.items()} for folder, reasons in broken.items())
        remarks += _empty_class_remarks(used["train"], used["test"])
        if renumbered:
            remarks.append(
                f"data.root: folders are named by WordNet ids, so classes are numbered in the order of {subset} "
                f"({_numbered(numbers)}); set data.class_map to number them differently"
            )
        data._examined = Examined(left_out, names, data._content(used), remarks)
        super(ImageFolder, data).check()  # again, now that files are left out
        return data

    def check_outputs(self, outputs: int) -> None:
        if self.class_map is None:
            empty = [] if self.classes <= outputs or not self._folder("train").is_dir() else self._listing("train").empty_classes()
            without = f" ({first_few(empty)} without training images among them)" if empty else ""
            enough = f"at least {self.classes}, the number of classes of the data{without}"
            return require(self.classes <= outputs, "model.arguments.num_classes", enough, outputs)
        beyond = {name: number for name, number in self.class_map.items() if number >= outputs}
        require(not beyond, "data.class_map", f"numbers below {outputs}, the number of outputs of the model", beyond)

    def remarks(self, outputs: int | None) -> list[str]:
        return [*(super().remarks(outputs) if self.class_map is None else []), *(self._examined.remarks if self._examined else [])]

    @property
    def numbering(self) -> str:
        numbers = {name: number for number, name in enumerate(self._listing("train").classes)}
        return (
            f"; labels are numbered in the order of folder names ({_numbered(numbers)}), so set data.class_map if the model numbers its "
            "classes differently"
        )

    def labels(self, split: str) -> NDArray[np.int64]:
        import numpy as np

        listing = self._listing(split)
        if not listing.classes:
            return np.full(len(listing.names), -1, np.int64)
        number = self._numbers(self._listing("train"))
        return np.array([number.get(name, -1) for name in listing.classes], np.int64)[listing.class_N]

    def files(self, split: str) -> list[str]:
        return self._listing(split).files

    def content(self) -> str:
        """Returns a digest of the classes and their numbers, and of names, sizes and modification times of the files that are used.

        Reading every image would take hours on a large set.
        """
        return self._examined.content if self._examined else self._content({split: self._listing(split) for split in SPLITS})

    def _content(self, used: dict[str, Listing]) -> str:
        numbers = self._numbers(used["train"])
        classes = [[(name, numbers.get(name, -1)) for name in listing.classes] for listing in used.values()]
        states = [digest_of_states(listing.folder, listing.names) for listing in used.values()]
        return hashlib.sha256(ascii((classes, states)).encode()).hexdigest()

    def _numbers(self, train: Listing) -> dict[str, int]:
        return self.class_map if self.class_map is not None else {name: index for index, name in enumerate(train.classes)}

    @property
    def _folders(self) -> list[Path]:
        """The folders of the two splits, or the one folder of both."""
        return list(dict.fromkeys(self._folder(split) for split in SPLITS))

    def _folder(self, split: str) -> Path:
        return Path(self.root).expanduser() / (self.train_folder if split == "train" else self.test_folder)

    def _listing(self, split: str) -> Listing:
        split = "test" if split == "test" else "train"
        if self._examined is None:
            self._require_folder(split)
            return listed(self._folder(split))
        return _used(self._folder(split), self._examined.left_out[split], self._examined.names[split])

    def _require_folder(self, split: str) -> None:
        """Raises ``ConfigError`` that names the one setting to change if there is no folder of images for a split."""
        root, folder = Path(self.root).expanduser(), self._folder(split)
        require(root.is_dir(), "data.root", "a folder of images", self.root, absolute_path(self.root, root))
        setting, other = (f"data.{name}_folder" for name in (split, "train" if split == "test" else "test"))
        missing = Phrase(f"no folder {printable(folder.absolute())}")
        require(folder.is_dir(), setting, "a folder of images below data.root", missing, f"set {setting}, which may equal {other}")


@lru_cache(maxsize=4)
def _used(folder: Path, left_out: frozenset[str], names: str) -> Listing:
    """Raises: SecateurError if these are not the files that the run started with."""
    try:
        listing = listed(folder).without(left_out)
    except ConfigError as error:
        raise SecateurError(str(error)) from error
    check_same(folder, _names(listing), names)
    return listing


def _names(listing: Listing) -> list[str]:
    return [*listing.classes, "", *listing.names]


def _numbered(numbers: dict[str, int]) -> str:
    return first_few([f"{name} is {number}" for name, number in numbers.items()])


def _skipped_remarks(listing: Listing) -> list[str]:
    """Returns sentences about files and folders that are not read."""
    folder, sentences = printable(listing.folder), []
    if listing.skipped:
        sentences.append(f"{folder}: skipped {summary(listing.skipped)}, which are not read as images")
    if listing.deeper:
        sentences.append(f"{folder}: folders inside class folders are ignored ({first_few(listing.deeper)})")
    return sentences


def _empty_class_remarks(train: Listing, test: Listing) -> list[str]:
    """Returns sentences about classes without images in one of the splits."""
    untrained, classes = train.empty_classes(), len(train.classes)
    untested = [name for name in train.classes if name not in set(test.classes) - set(test.empty_classes())]
    return [
        f"{printable(listing.folder)}: {len(empty)} of {classes} classes have no {split} images ({first_few(empty)})"
        for listing, empty, split in ((train, untrained, "training"), (test, untested, "test"))
        if empty
    ]
