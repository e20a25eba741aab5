"""Images in tar files and in data sets of Hugging Face, against the same images in folders."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import BASE, FILES
from PIL import Image

from workers.data.base import Batch
from workers.data.huggingface import HuggingFace
from workers.data.imagefolder import ImageFolder
from workers.data.shards import Shards, expand
from workers.errors import ConfigError, SecateurError

COMMON = BASE | {name: value for name, value in FILES.items() if name in {*vars(Shards)["__dataclass_fields__"]}}
SMALL = {"calibration_batches": 3, "calibration_batch_size": 4, "shards": 1, "eval_batch_size": 5}


def picture(number: int) -> bytes:
    """A PNG whose pixels tell its number."""
    pixels = np.full((20, 24, 3), 10 * number, np.uint8)
    pixels[:8] = 255 - 7 * number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def packed(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def web(numbers: range) -> dict[str, bytes]:
    """Members of a WebDataset: an image and its class, which is a third of its number."""
    members: dict[str, bytes] = {}
    for number in numbers:
        members |= {f"{number:04d}.png": picture(number), f"{number:04d}.cls": str(number // 3).encode()}
    return members


def shards(folder: Path, **changes: Any) -> Shards:
    paths = {"train_shards": str(folder / "train-{00..01}.tar"), "test_shards": str(folder / "test.tar")}
    return Shards(**{**COMMON, **SMALL, **paths, **changes})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    packed(tmp_path / "train-00.tar", web(range(0, 7)))
    packed(tmp_path / "train-01.tar", web(range(7, 12)))
    packed(tmp_path / "test.tar", web(range(0, 4)))
    return tmp_path


def folder_of(path: Path) -> ImageFolder:
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            (path / split / f"{number // 3}").mkdir(parents=True, exist_ok=True)
            (path / split / f"{number // 3}" / f"{number:04d}.png").write_bytes(picture(number))
    return ImageFolder(**{**BASE, **FILES, **SMALL, "root": str(path)})


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images_NCHW, b.images_NCHW) and torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True)
    )


def test_shards_give_the_batches_of_the_same_images_in_folders(written: Path, tmp_path: Path) -> None:
    ours, theirs = shards(written), folder_of(tmp_path / "folders")
    ours.check()
    assert ours.classes == 4 and (ours.size("train"), ours.size("test")) == (12, 4)
    for parts in (1, 3):
        for part in range(parts):
            assert same(list(ours.calibration(part, parts)), list(theirs.calibration(part, parts)))
    assert same(list(ours.evaluation("test", 0, 1)), list(theirs.evaluation("test", 0, 1)))
    assert same(list(ours.train(1, 2, 3, 4)), list(theirs.train(1, 2, 3, 4))), "augmented"
    assert same(list(shards(written, decoders=2).calibration(0, 1)), list(ours.calibration(0, 1))), "decoded by other processes"


def test_classes_come_from_json_or_folders_or_not_at_all(tmp_path: Path) -> None:
    packed(tmp_path / "json.tar", {"a.png": picture(0), "a.json": json.dumps({"label": 2}).encode(), "b.png": picture(1), "b.json": b"1"})
    packed(tmp_path / "tree.tar", {"x/cat/1.png": picture(0), "x/dog/1.png": picture(1), "x/dog/2.png": picture(2), "x/dog/note.txt": b""})
    packed(tmp_path / "plain.tar", {"1.png": picture(0), "2.png": picture(1), ".hidden.png": b""})
    for name, labels in {"json": [2, 1], "tree": [0, 1, 1], "plain": [-1, -1]}.items():
        data = shards(tmp_path, train_shards=str(tmp_path / f"{name}.tar"), test_shards=str(tmp_path / f"{name}.tar"))
        data.check()
        assert data.labels("train").tolist() == labels and data.classes == max(labels) + 1


def test_the_content_counts_and_the_place_does_not(written: Path, tmp_path: Path) -> None:
    before = shards(written).fingerprint()
    (tmp_path / "moved").mkdir()
    for path in written.glob("*.tar"):
        path.rename(tmp_path / "moved" / path.name)
    assert shards(tmp_path / "moved").fingerprint() == before
    packed(tmp_path / "moved" / "test.tar", web(range(1, 5)))
    assert shards(tmp_path / "moved").fingerprint() != before


def test_patterns_of_paths() -> None:
    assert list(expand("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expand("{0..1}/{5..6}")) == ["0/5", "0/6", "1/5", "1/6"] and list(expand("x/*.tar")) == ["x/*.tar"]


WRONG = {
    "no such file": ({}, "data.train_shards: expected paths of .tar files"),
    "compressed": ({"w:gz": {"a.png": picture(0)}}, "that is not compressed"),
    "no tar file": (b"no tar file at all" * 100, "expected a .tar file"),
    "no images": ({"w": {"a.txt": b""}}, "none in 1 files"),
    "two images": ({"w": {"a.png": picture(0), "a.jpg": picture(0)}}, "expected one image for each name"),
    "no number": ({"w": {"a.png": picture(0), "a.cls": b"cat"}}, "expected the number of a class in"),
    "no entry": ({"w": {"a.png": picture(0), "a.json": b"{}"}}, "expected the number of a class in"),
    "some labels": ({"w": {"a.png": picture(0), "a.cls": b"1", "b.png": picture(1)}}, "labels of one kind"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_shard_is_said(case: str, tmp_path: Path) -> None:
    content, words = WRONG[case]
    path = tmp_path / "train-00.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        for mode, members in content.items():
            packed(path, members, mode)
    with pytest.raises(ConfigError) as refused:
        shards(tmp_path, train_shards=str(path), test_shards=str(path)).check()
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_broken_image_is_named_with_its_shard(tmp_path: Path) -> None:
    path = packed(tmp_path / "train-00.tar", {"a.png": picture(0)[:60], "a.cls": b"0"})
    data = shards(tmp_path, train_shards=str(path), test_shards=str(path))
    with pytest.raises(SecateurError, match=r"train-00\.tar: a\.png: expected a readable image"):
        list(data.evaluation("test", 0, 1))


def hub(folder: Path, **changes: Any) -> HuggingFace:
    settings = {"path": str(folder), "train_split": "train", "test_split": "test", "image_column": "image", "label_column": "label"}
    return HuggingFace(**{**COMMON, **SMALL, **settings, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")

    def split(numbers: range) -> Any:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
        rows = {"image": [{"bytes": picture(n), "path": None} for n in numbers], "label": [n // 3 for n in numbers]}
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict({"train": split(range(12)), "test": split(range(4))}).save_to_disk(tmp_path / "pets")
    return tmp_path / "pets"


def test_a_data_set_on_the_disk_gives_the_batches_of_the_same_images_in_folders(saved: Path, tmp_path: Path) -> None:
    ours, theirs = hub(saved), folder_of(tmp_path / "folders")
    ours.check()
    assert ours.classes == 4 and (ours.size("train"), ours.size("test")) == (12, 4)
    assert same(list(ours.calibration(0, 1)), list(theirs.calibration(0, 1)))
    assert same(list(ours.evaluation("test", 0, 1)), list(theirs.evaluation("test", 0, 1)))
    assert same(list(ours.train(0, 1, 1, 6)), list(theirs.train(0, 1, 1, 6)))
    assert same(list(hub(saved, decoders=2).calibration(0, 1)), list(ours.calibration(0, 1))), "decoded by other processes"
    unlabelled = hub(saved, label_column=None)
    unlabelled.check()
    assert unlabelled.classes == 0 and unlabelled.fingerprint() != ours.fingerprint() and ours.fingerprint() == hub(saved).fingerprint()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "nobody/nothing"}, "data.path: 'nobody/nothing' is no data set that can be read or fetched"),
        ({"test_split": "validation"}, "data.test_split: expected one of train, test, got 'validation'"),
        ({"image_column": "picture"}, "data.image_column: expected one of image, label, got 'picture'"),
        ({"label_column": "fine_label"}, "data.label_column: expected one of image, label, got 'fine_label'"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said(changes: dict[str, Any], words: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as refused:
        hub(saved, **changes).check()
    assert words in str(refused.value) and "\n" not in str(refused.value)
