"""Data sets of the Hugging Face library ``datasets``, from the disk or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple, overload

from workers.checks import Phrase, require
from workers.data.imagefiles import ImageFiles
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class HuggingFace(ImageFiles):
    """Two splits of a data set with a column of images and, if there is one, a column of class numbers.

    ``path`` is a folder that ``save_to_disk`` wrote, a folder of parquet files or images, or a name on the hub, which is fetched once into
    the cache of ``datasets``. Rows are read by their number, so every call yields the same bytes. Streams are not supported.
    """

    path: str
    train_split: str
    test_split: str
    image_column: str
    label_column: str | None

    elsewhere: ClassVar[tuple[str, ...]] = ("path", "decoders")

    @property
    def classes(self) -> int:
        return 0 if self.label_column is None else int(self.labels("train").max()) + 1

    def check(self) -> None:
        for split in ("train", "test"):
            table = self._table(split)
            for column in (self.image_column, *([] if self.label_column is None else [self.label_column])):
                where = "data.image_column" if column == self.image_column else "data.label_column"
                require(column in table.column_names, where, f"one of {', '.join(table.column_names)}", column)
        super().check()

    def check_outputs(self, outputs: int) -> None:
        super().check_outputs(outputs)
        self.check_labels(outputs)

    def count(self, split: str) -> int:
        return len(self._table(split))

    def files(self, split: str) -> Rows:
        return Rows(self.path, self._name(split), self.image_column, self.count(split))

    def labels(self, split: str) -> NDArray[np.int64]:
        import numpy as np

        if self.label_column is None:
            return np.full(self.count(split), -1, np.int64)
        labels = np.asarray(self._table(split).with_format("numpy")[self.label_column][:])
        valid = labels.ndim == 1 and labels.dtype.kind in "iu"
        require(valid, "data.label_column", "one class number for each image", Phrase(f"{labels.dtype} of {labels.shape}"))
        return labels.astype(np.int64)

    def content(self) -> str:
        return " ".join(str(self._table(split)._fingerprint) for split in ("train", "test"))

    def _name(self, split: str) -> str:
        return self.train_split if split == "train" else self.test_split

    def _table(self, split: str) -> Any:
        return _loaded(self.path, self._name(split), f"data.{'train' if split == 'train' else 'test'}_split")


class Row(NamedTuple):
    """The image of a row."""

    path: str
    split: str
    column: str
    number: int

    def open(self) -> IO[bytes]:
        cell = _encoded(self.path, self.split, self.column)[self.number][self.column]
        return BytesIO(cell["bytes"]) if cell["bytes"] is not None else open(cell["path"], "rb")

    def __str__(self) -> str:
        return f"{self.path}: row {self.number} of {self.split}"


class Rows(Sequence[Row]):
    """The images of all rows. Processes that decode get this and not a list of every row."""

    def __init__(self, path: str, split: str, column: str, count: int) -> None:
        self.path, self.split, self.column, self._rows = path, split, column, count

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return Row(self.path, self.split, self.column, int(index))


@lru_cache(maxsize=8)
def _loaded(path: str, split: str, where: str) -> Any:
    """Returns the table of a split. Raises: ConfigError if it cannot be read or fetched."""
    try:
        from datasets import DatasetDict, load_dataset, load_from_disk
    except ImportError as error:
        raise ConfigError(f"data: it needs the package datasets ({error}): pip install 'secateur[datasets]'") from error
    folder = Path(path).expanduser()
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        tables = load_from_disk(str(folder)) if saved else load_dataset(str(folder) if folder.exists() else path)
    except Exception as error:  # of any class: of files, of their content, of the network
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"data.path: {path!r} is no data set that can be read or fetched ({reason}); pass a folder of save_to_disk"
        ) from error
    if not isinstance(tables, DatasetDict):
        return tables
    require(split in tables, where, f"one of {', '.join(tables)}", split)
    return tables[split]


@lru_cache(maxsize=8)
def _encoded(path: str, split: str, column: str) -> Any:
    from datasets import Image

    return _loaded(path, split, "data").cast_column(column, Image(decode=False))
