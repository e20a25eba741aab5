"""Photographs with objects in boxes, in COCO's layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import Phrase, require
from workers.data.arrays import check_normalisation
from workers.data.base import Batch
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
from workers.data.imagefiles import check_background, in_bytes
from workers.data.indexed import IndexedDataset
from workers.data.listing import first_few, printable
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.data.sampling import Pick

SPLITS = ("train", "test")


@dataclass
class Coco(IndexedDataset):
    """For each of two splits, a folder of images and a JSON file with ``images``, ``annotations`` and ``categories`` (COCO's layout).

    Images are stretched to squares, as for SSD, and boxes with them. The number of a class is its category id minus the smallest id, so
    that torchvision's checkpoints for COCO (91 outputs: categories 1 to 90 and the background) fit. Crowds and boxes without extent are
    left out; images without objects are kept. The ``expected_*`` numbers are checked, and are used for a plan if the data is missing.
    """

    image_size: int  # pixels
    mean: list[float]  # of pixels in [0, 1]; one number for each channel, or one for all
    std: list[float]
    background: list[float]  # behind transparent pixels, in [0, 1]; one number for each channel, or one for all
    max_shift: int  # training only: pixels, in each direction; 0: none
    flip: bool  # training only: mirror each image with probability 1/2
    decoders: int  # processes of each worker that decode ahead; 0: the worker itself decodes. Does not change any result
    root: str
    train_images: str  # folder under root
    train_annotations: str  # file under root
    test_images: str
    test_annotations: str
    expected_train: int | None  # images; null: whatever is there
    expected_test: int | None
    expected_classes: int | None
    broken: Broken
    examine: Examine

    training_only: ClassVar[tuple[str, ...]] = ("max_shift", "flip")
    elsewhere: ClassVar[tuple[str, ...]] = (
        "root",
        "train_images",
        "train_annotations",
        "test_images",
        "test_annotations",
        "expected_train",
        "expected_test",
        "expected_classes",
        "broken",
        "examine",
        "decoders",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._examined: Examined | None = None
        require(self.image_size >= 1, "data.image_size", "at least 1 pixel", self.image_size)
        require(0 <= self.max_shift < self.image_size, "data.max_shift", "at least 0 and less than data.image_size", self.max_shift)
        require(self.decoders >= 0, "data.decoders", "at least 0", self.decoders)
        check_normalisation(self.mean, self.std, 3)
        check_background(self.background)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    @property
    def has_boxes(self) -> bool:
        return True

    @property
    def classes(self) -> int:
        return self._described("train").classes if self.expected_classes is None else self.expected_classes

    def count(self, split: str) -> int:
        expected = self.expected_train if split == "train" else self.expected_test
        return len(self._described(split).files) if expected is None or self._examined else expected

    def check(self) -> None:
        train, test = self._described("train"), self._described("test")
        for split, described in (("train", train), ("test", test)):
            missing = [name for name in described.files if not (self._images(split) / name).is_file()]
            got = Phrase(f"a folder {self._images(split)} without {first_few(missing)}")
            require(not missing or self.broken is Broken.SKIP, f"data.{split}_images", "all images of the annotations", got)
        same_number = len(train.categories) == len(test.categories)
        got = Phrase("other names or ids" if same_number else f"{len(test.categories)} categories")
        expected = f"the categories of {self.train_annotations}"
        remedy = "list the same categories in both files, since classes are numbered from the smallest id"
        require(train.categories == test.categories, "data.test_annotations", expected, got, remedy)
        for name, number in {"train": len(train.files), "test": len(test.files), "classes": train.classes}.items():
            expected_number = getattr(self, f"expected_{name}")
            expected = f"{expected_number} (data.expected_{name})"
            require(expected_number in (None, number), f"data.root ({name})", expected, number, f"check that {self.root} is complete")
        super().check()

    def labels(self, split: str) -> NDArray[np.generic]:
        import numpy as np

        return self._described(split).objects_NT5 * np.array([1, *[self.image_size] * 4], np.float32)

    @property
    def to_examine(self) -> int:
        return sum(len(self._described(split).files) for split in SPLITS)

    def settled(self, outputs: int | None, cache: Path, advance: Callable[[int], None]) -> Coco:
        """Examines the files."""
        broken = {split: broken_files(self._images(split), self._described(split).files, self.examine, cache, advance) for split in SPLITS}
        by_folder = {self._images(split): reasons for split, reasons in broken.items()}
        if self.broken is Broken.ERROR:
            refuse_broken("data.root", by_folder, cache)
        data = replace(self)
        left_out = {split: frozenset(reasons) for split, reasons in broken.items()}
        used = {split: self._described(split).without(left_out[split]) for split in SPLITS}
        for split, described in used.items():
            none = Phrase(f"none in {self._images(split)}")
            require(bool(described.files), f"data.{split}_images", "at least one image that can be read", none)
        remarks = left_out_remarks(
            {printable(folder / name): why for name, why in reasons.items()} for folder, reasons in by_folder.items()
        )
        names = {split: digest_of_names(described.files) for split, described in used.items()}
        data._examined = Examined(left_out, names, self._content(used), remarks)
        super(Coco, data).check()  # again, now that files are left out
        return data

    def remarks(self, outputs: int | None) -> list[str]:
        return super().remarks(outputs) + (self._examined.remarks if self._examined else [])

    @property
    def numbering(self) -> str:
        return (
            "; labels are numbered from the smallest category id, so list all categories of the model in the annotation files if it has "
            "others"
        )

    def content(self) -> str:
        """Digest of the annotations, and of names, sizes and times of the images. Reading all images would take too long."""
        return self._examined.content if self._examined else self._content({split: self._described(split) for split in SPLITS})

    def _content(self, used: dict[str, _Described]) -> str:
        total = hashlib.sha256()
        for split, described in used.items():
            total.update(self._annotations(split).read_bytes())
            total.update(digest_of_states(self._images(split), described.files).encode())
        return total.hexdigest()

    def read(self, split: str, picks: list[Pick]) -> Iterator[Batch]:
        from workers.data.decode import batches, squared
        from workers.data.pixels import moved, normalise
        from workers.data.rgb import Reading

        files = [str(self._images(split) / name) for name in self._described(split).files]
        unaugmented = [pick._replace(draws_ND=None) for pick in picks]
        square = squared(self.image_size)
        reading = Reading(in_bytes(self.background), upright=False)  # the corners of boxes are in the image as stored
        read = batches(files, self.labels(split), unaugmented, square, square, reading, self.decoders)
        for (_, draws_ND), batch in zip(picks, read, strict=True):
            images_NCHW, labels_NT5 = moved(*batch, draws_ND, self.max_shift, self.flip)
            yield Batch(normalise(images_NCHW, self.mean, self.std), labels_NT5)

    def _images(self, split: str) -> Path:
        return Path(self.root).expanduser() / (self.train_images if split == "train" else self.test_images)

    def _annotations(self, split: str) -> Path:
        return Path(self.root).expanduser() / (self.train_annotations if split == "train" else self.test_annotations)

    def _described(self, split: str) -> _Described:
        path, where = self._annotations(split), f"data.{split}_annotations"
        require(path.is_file(), where, "a JSON file in COCO's layout", str(path), f"set data.root and {where}, a name under it")
        described = _read(path, path.stat().st_mtime_ns, where)
        if self._examined is None:
            return described
        split = "test" if split == "test" else "train"
        return _used(described, self._images(split), self._examined.left_out[split], self._examined.names[split])


@dataclass(frozen=True, eq=False)
class _Described:
    files: list[str]
    categories: dict[int, str]  # names by id
    objects_NT5: NDArray[np.float32]  # class, and corners as fractions of the image

    @property
    def classes(self) -> int:
        return max(self.categories) - min(self.categories) + 1

    def without(self, names: Collection[str]) -> _Described:
        kept = [index for index, name in enumerate(self.files) if name not in names]
        return replace(self, files=[self.files[index] for index in kept], objects_NT5=self.objects_NT5[kept])


@lru_cache(maxsize=4)
def _used(described: _Described, images: Path, left_out: frozenset[str], names: str) -> _Described:
    """Raises: SecateurError if these are not the files that the run started with."""
    used = described.without(left_out)
    check_same(images, used.files, names)
    return used


@lru_cache(maxsize=4)
def _read(path: Path, modified_ns: int, where: str) -> _Described:
    """Returns images and objects in the order of the file. Raises: ConfigError if it is not in COCO's layout."""
    import numpy as np

    try:
        described: dict[str, Any] = json.loads(path.read_bytes())
        images, categories = described["images"], {category["id"]: str(category.get("name")) for category in described["categories"]}
        first = min(categories)
        sizes = {image["id"]: (image["width"], image["height"]) for image in images}
        objects: dict[Any, list[list[float]]] = {image["id"]: [] for image in images}
        for entry in described["annotations"]:
            (width, height), (x, y, w, h) = sizes[entry["image_id"]], entry["bbox"]
            x1, y1, x2, y2 = max(x, 0) / width, max(y, 0) / height, min(x + w, width) / width, min(y + h, height) / height
            if not entry.get("iscrowd") and x1 < x2 and y1 < y2:
                objects[entry["image_id"]].append([entry["category_id"] - first, x1, y1, x2, y2])
        files = [image["file_name"] for image in images]
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: expected COCO's layout, got {path} ({type(error).__name__}: {error})") from error
    ids = Phrase(f"{len(objects)} ids for {len(files)} images in {path}")
    require(len(objects) == len(files), where, "a different id for each image", ids)
    most = max(map(len, objects.values()), default=0)
    require(most > 0, where, "at least one object", Phrase(f"none in {path}"))
    objects_NT5 = np.full((len(files), most, 5), -1, np.float32)
    for row_T5, boxes in zip(objects_NT5, objects.values(), strict=True):
        if boxes:
            row_T5[: len(boxes)] = boxes
    return _Described(files, categories, objects_NT5)
