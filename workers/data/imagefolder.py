"""A folder of images, labelled by subfolders or not labelled at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import require
from workers.data.examine import Broken, Examine, Examined, broken_files, check_same, digest_of_names, digest_of_states, refuse, told
from workers.data.imagefiles import ImageFiles
from workers.data.imagenet import wordnet_outputs
from workers.data.listing import Listing, counted, listed, shown, some
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "test")


@dataclass
class ImageFolder(ImageFiles):
    """``root/train_folder`` and ``root/test_folder``, each with one subfolder per class or with images directly inside.

    Classes are the training subfolders that hold anything; empty and hidden ones and what systems leave behind (``__MACOSX``) are none.
    They are numbered by their sorted names (ImageNet's layout and order), or by ``class_map``, or, where all names are WordNet ids and the
    model has as many outputs as a subset of ImageNet has classes, by the order of that subset. Images directly inside have no labels. Both
    folders may be the same (``.`` is ``root`` itself): enough for label-free calibration, where the test tells how far outputs moved. The
    ``expected_*`` numbers are checked against the folder, and let a plan be made where the folder is not there.
    """

    root: str
    train_folder: str
    test_folder: str
    expected_train: int | None  # images; null: whatever is there
    expected_test: int | None
    expected_classes: int | None  # 0: no labels
    class_map: Any  # null, or the number of a class (an output of the model) by the name of its folder: dict[str, int]
    broken: Broken
    examine: Examine

    elsewhere: ClassVar[tuple[str, ...]] = (  # what of these changes a batch is part of the content
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
        given, numbers = self.class_map, "a number from 0 up for the name of each folder, {cat: 281, dog: 207}"
        holds = isinstance(given, dict) and all(type(number) is int and number >= 0 for number in given.values())
        require(holds and bool(given), "data.class_map", numbers, given)
        self.class_map = {str(name): number for name, number in given.items()}

    @property
    def classes(self) -> int:
        return len(self._listing("train").classes) if self.expected_classes is None else self.expected_classes

    def count(self, split: str) -> int:
        expected = self.expected_train if split == "train" else self.expected_test
        return len(self._listing(split).names) if expected is None or self._examined else expected

    def check(self) -> None:
        listed.cache_clear()  # an earlier run of this process may have seen another state
        train, test = self._listing("train"), self._listing("test")
        unknown = sorted(set(test.classes) - set(train.classes))
        remedy = "give both folders the same class subfolders, or none to either"
        require(bool(train.classes) == bool(test.classes), "data.test_folder", f"{len(train.classes)} classes", len(test.classes), remedy)
        require(not unknown, "data.test_folder", "only classes that data.train_folder has", unknown[:3], remedy)
        found = {"train": len(train.names), "test": len(test.names), "classes": len(train.classes)}
        for name, number in found.items():
            expected = getattr(self, f"expected_{name}")
            require(
                expected in (None, number), f"data.root ({name})", f"{expected} (data.expected_{name})", number, f"is {self.root} complete?"
            )
        if self.class_map is not None:
            require(bool(train.classes), "data.class_map", "null for images without classes", self.class_map)
            missing = [name for name in train.classes if name not in self.class_map]
            every = f"a number for each of the {len(train.classes)} class folders"
            require(not missing, "data.class_map", every, f"none for {some(missing)}", "quote names that are numbers")
        super().check()

    @property
    def to_examine(self) -> int:
        return sum(len(listed(folder).names) for folder in self._folders)

    def settled(self, outputs: int | None, cache: Path, advance: Callable[[int], None]) -> ImageFolder:
        """Examines the files, and finds the outputs of classes that are named by WordNet ids."""
        mapped = None if self.class_map is not None or outputs is None else wordnet_outputs(self._listing("train").classes, outputs)
        subset, numbers = mapped or ("", {})
        told_apart = bool(numbers) and list(numbers.values()) != list(range(outputs or 0))
        data = replace(self, class_map=numbers) if told_apart else replace(self)
        broken = {
            folder: listed(folder).dangling | broken_files(folder, listed(folder).names, self.examine, cache, advance)
            for folder in self._folders
        }
        if self.broken is Broken.ERROR:
            refuse("data.root", broken, cache)
        left = {split: frozenset(broken[self._folder(split)]) for split in SPLITS}
        used = {split: listed(self._folder(split)).without(left[split]) for split in SPLITS}
        for split, listing in used.items():
            require(bool(listing.names), f"data.{split}_folder", "an image that can be read", f"none in {shown(listing.folder)}")
        names = {split: digest_of_names(_names(listing)) for split, listing in used.items()}
        remarks = [sentence for folder in self._folders for sentence in _passed_over(listed(folder))]
        remarks += told({shown(folder / name): why for name, why in found.items()} for folder, found in broken.items())
        remarks += _without_images(used["train"], used["test"])
        if told_apart:
            remarks.append(
                f"data.root: folders are named by WordNet ids, so classes are the model's outputs in the order of {subset} "
                f"({_numbered(numbers)}); data.class_map overrides this"
            )
        data._examined = Examined(left, names, data._content(used), remarks)
        super(ImageFolder, data).check()  # the sizes asked for, now that files are left out
        return data

    def check_outputs(self, outputs: int) -> None:
        if self.class_map is None:
            idle = [] if self.classes <= outputs or not self._folder("train").is_dir() else self._listing("train").idle()
            without = f"; of these {some(idle)} have no training images" if idle else ""
            enough = f"at least the {self.classes} classes of the data{without}"
            return require(self.classes <= outputs, "model.arguments.num_classes", enough, outputs)
        beyond = {name: number for name, number in self.class_map.items() if number >= outputs}
        require(not beyond, "data.class_map", f"numbers below {outputs}, as many outputs as the model has", beyond)

    def remarks(self, outputs: int | None) -> list[str]:
        return [*(super().remarks(outputs) if self.class_map is None else []), *(self._examined.remarks if self._examined else [])]

    @property
    def numbering(self) -> str:
        numbers = {name: number for number, name in enumerate(self._listing("train").classes)}
        return f", in the order of the folders' names ({_numbered(numbers)}); set data.class_map if the model has other numbers"

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
        """Digest of the classes and their numbers, and of names, sizes and modification times of the files that are used: reading every
        image would take hours on a large set."""
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
        """Of the two splits, or the one of both."""
        return list(dict.fromkeys(self._folder(split) for split in SPLITS))

    def _folder(self, split: str) -> Path:
        return Path(self.root).expanduser() / (self.train_folder if split == "train" else self.test_folder)

    def _listing(self, split: str) -> Listing:
        split = "test" if split == "test" else "train"
        if self._examined is None:
            return listed(self._folder(split))
        return _used(self._folder(split), self._examined.left_out[split], self._examined.names[split])


@lru_cache(maxsize=4)
def _used(folder: Path, left_out: frozenset[str], names: str) -> Listing:
    """Raises: SecateurError if these are not the files that the run began with."""
    try:
        listing = listed(folder).without(left_out)
    except ConfigError as error:
        raise SecateurError(str(error)) from error
    check_same(folder, _names(listing), names)
    return listing


def _names(listing: Listing) -> list[str]:
    return [*listing.classes, "", *listing.names]


def _numbered(numbers: dict[str, int]) -> str:
    return some([f"{name} is {number}" for name, number in numbers.items()])


def _passed_over(listing: Listing) -> list[str]:
    """Sentences on what of a folder is not read."""
    where, sentences = shown(listing.folder), []
    if listing.skipped:
        sentences.append(f"{where}: {counted(listing.skipped)} skipped, which are not read as images")
    if listing.deeper:
        sentences.append(f"{where}: folders inside classes are not looked into ({some(listing.deeper)})")
    return sentences


def _without_images(train: Listing, test: Listing) -> list[str]:
    """Sentences on classes that one of the splits has no images of."""
    idle, of = train.idle(), len(train.classes)
    sentences = [f"{shown(train.folder)}: {len(idle)} of {of} classes have no training images ({some(idle)})"] if idle else []
    untested = [name for name in train.classes if name not in set(test.classes) - set(test.idle())]
    if untested:
        sentences.append(f"{shown(test.folder)}: {len(untested)} of {of} classes have no test images ({some(untested)})")
    return sentences
