"""Images in tar files: WebDataset shards, or a folder tree that was packed."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple

from workers.checks import Phrase, require
from workers.data.imagefiles import ImageFiles
from workers.data.listing import SUFFIXES, first_few
from workers.data.sources import Member
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LABELS = ("label", "cls", "class")  # entries of a .json member, the first one that is there


class Sample(NamedTuple):
    """An image and its class: a number, the name of a folder, or None."""

    image: Member
    label: int | str | None


@dataclass
class Shards(ImageFiles):
    """``.tar`` files for training and for testing, by paths with ``*`` and ranges (``train-{000000..000127}.tar``).

    Members with the same name up to the first dot are one sample, as in WebDataset: an image, and its class in a ``.cls`` member (a number)
    or in a ``.json`` member (``{"label": 3}``). Without such members, classes are the folders inside the tar files, numbered by their
    sorted names in the training shards. If there are none either, there are no labels.

    **Differs from WebDataset.** Positions of members are listed first, so any sample can be read at any time: every call yields the same
    bytes, on any worker, and samples are shuffled over all shards. Compressed tar files allow no such access and are refused.
    """

    train_shards: str
    test_shards: str

    elsewhere: ClassVar[tuple[str, ...]] = ("train_shards", "test_shards", "decoders")

    @property
    def classes(self) -> int:
        return int(self.labels("train").max()) + 1

    def check(self) -> None:
        train, test = ({type(sample.label).__name__ for sample in self._samples(split)} for split in ("train", "test"))
        require(len(train) == 1, "data.train_shards", "labels of one kind for all samples", Phrase(" and ".join(sorted(train))))
        require(train == test, "data.test_shards", f"labels as in data.train_shards ({', '.join(train)})", Phrase(", ".join(sorted(test))))
        super().check()

    def check_outputs(self, outputs: int) -> None:
        super().check_outputs(outputs)
        self.check_labels(outputs)

    def files(self, split: str) -> list[Member]:
        return [sample.image for sample in self._samples(split)]

    def labels(self, split: str) -> NDArray[np.int64]:
        import numpy as np

        samples = self._samples(split)
        folders = {name: number for number, name in enumerate(sorted({str(sample.label) for sample in self._samples("train")}))}
        unknown = sorted({sample.label for sample in samples if isinstance(sample.label, str)} - folders.keys())
        require(not unknown, "data.test_shards", "only folders that the training shards have too", Phrase(first_few(unknown)))
        numbers = (-1 if s.label is None else s.label if isinstance(s.label, int) else folders[s.label] for s in samples)
        return np.fromiter(numbers, np.int64, len(samples))

    def content(self) -> str:
        total = hashlib.sha256()
        for split in ("train", "test"):
            for path in self._paths(split):
                total.update(f"{split} {Path(path).name} {Path(path).stat().st_mtime_ns}\n".encode())
            for sample in self._samples(split):
                total.update(f"{sample.image.name} {sample.image.offset} {sample.image.size} {sample.label}\n".encode())
        return total.hexdigest()

    def _paths(self, split: str) -> list[str]:
        pattern, where = self.train_shards if split == "train" else self.test_shards, f"data.{split}_shards"
        paths = [str(path) for expanded in expand(pattern) for path in _globbed(Path(expanded).expanduser())]
        require(bool(paths), where, "paths of .tar files", pattern, f"the absolute path is {Path(pattern).absolute()}")
        return paths

    def _samples(self, split: str) -> list[Sample]:
        where = f"data.{split}_shards"
        states = ((path, Path(path).stat().st_mtime_ns) for path in self._paths(split))
        return _all_samples(tuple(states), where)


def expand(pattern: str) -> Iterator[str]:
    """Yields the strings that ranges such as ``{000..127}`` in a pattern stand for, or the pattern itself."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    ranges = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        width = len(first) if first.startswith("0") else 0
        ranges.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
    for chosen in product(*ranges):
        yield "".join(text for pair in zip(parts[::3], [*chosen, ""], strict=True) for text in pair)


def _globbed(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if "*" in path.name or "?" in path.name:
        return sorted(path.parent.glob(path.name))
    return [path] if path.is_file() else []


@lru_cache(maxsize=4)
def _all_samples(states: tuple[tuple[str, int], ...], where: str) -> list[Sample]:
    samples = [sample for path, _ in states for sample in _samples_of(path, where)]
    require(bool(samples), where, f"images ({', '.join(sorted(SUFFIXES))}) in the tar files", Phrase(f"none in {len(states)} files"))
    return samples


def _samples_of(path: str, where: str) -> Iterator[Sample]:
    """Yields the samples of a tar file, in its order."""
    groups: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if member.isfile() and not name.startswith("."):
                    stem, _, ending = name.partition(".")
                    groups.setdefault(f"{folder}/{stem}", {})[f".{ending.lower()}"] = Member(
                        path, member.name, member.offset_data, member.size
                    )
    except Exception as error:  # of tar files, of the system, of memory and of recursion, if headers are damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where}: expected a .tar file that is not compressed, got {path} ({reason})") from error
    with open(path, "rb") as tar_file:
        yield from _labelled(groups, tar_file, where)


def _labelled(groups: dict[str, dict[str, Member]], tar: IO[bytes], where: str) -> Iterator[Sample]:
    for key, group in groups.items():
        images = [member for ending, member in group.items() if f".{ending.rpartition('.')[2]}" in SUFFIXES]
        if len(images) > 1:
            raise ConfigError(f"{where}: expected one image for each name, got {first_few([str(image) for image in images])}")
        if images:
            yield Sample(images[0], _label(group, key.rpartition("/")[0], tar, where))


def _label(group: dict[str, Member], folder: str, tar: IO[bytes], where: str) -> int | str | None:
    for ending in (".cls", ".json"):
        if ending in group:
            member = group[ending]
            try:
                value: Any = json.loads(member.read(tar))
                value = next(value[name] for name in LABELS if name in value) if isinstance(value, dict) else value
                if type(value) is not int or value < 0:
                    raise ValueError(f"{value!r} is no number of a class")
                return value
            except (ValueError, StopIteration, OSError, RecursionError) as error:
                raise ConfigError(f"{where}: expected the number of a class in {member} ({error or 'no entry called label'})") from error
    return folder.rpartition("/")[2] or None
