"""The data set of tensors in files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import BASE
from torch import Tensor

from workers.data.tensors import Tensors
from workers.errors import ConfigError
from workers.files import write_tensors


def data(folder: Path, **changes: Any) -> Tensors:
    files = {"train_file": str(folder / "train.safetensors"), "test_file": str(folder / "test.safetensors")}
    return Tensors(**{**BASE, **files, **changes})


def written(folder: Path, train: dict[str, Tensor], test: dict[str, Tensor]) -> Tensors:
    write_tensors(folder / "train.safetensors", train)
    write_tensors(folder / "test.safetensors", test)
    return data(folder)


def images(count: int, size: int = 4) -> Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 1, size, size).contiguous()


def test_each_image_comes_with_its_label_and_all_come_once(tmp_path: Path) -> None:
    tensors = written(tmp_path, {"images": images(48), "labels": torch.arange(48) % 5}, {"images": images(7), "labels": torch.arange(7)})
    tensors.check()
    assert tensors.classes == 5 and tensors.input_shape == (1, 4, 4)
    batches = [batch for shard in range(3) for batch in tensors.calibration(shard, 3)]
    numbers = torch.cat([batch.images_NCHW[:, 0, 0, 0] for batch in batches])
    assert [len(batch.labels) for batch in batches] == [8] * 6 and sorted(numbers.tolist()) == list(range(48))
    assert torch.equal(numbers.long() % 5, torch.cat([batch.labels for batch in batches]))
    assert torch.equal(torch.cat([batch.images_NCHW for batch in tensors.evaluation("test", 0, 1)]), images(7))


def test_the_place_does_not_count_and_the_content_does(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = written(tmp_path, {"images": images(8)}, {"images": images(8)})
    second = written(tmp_path / "other", {"images": images(8)}, {"images": images(8)})
    assert first.fingerprint() == second.fingerprint() and first.classes == 0
    third = written(tmp_path / "other", {"images": images(8)}, {"images": images(8) + 1})
    assert first.fingerprint() != third.fingerprint()


def test_labels_may_be_anything_with_one_entry_for_each_image(tmp_path: Path) -> None:
    tensors = written(tmp_path, {"images": images(8), "labels": torch.rand(8, 3)}, {"images": images(8), "labels": torch.rand(8, 3)})
    tensors.check()
    assert tensors.classes == 0 and next(tensors.evaluation("test", 0, 1)).labels.shape == (8, 3)


WRONG: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], str]] = {
    "no images": ({"pictures": images(4)}, {"images": images(4)}, "data.train_file: expected a tensor called images, got ['pictures']"),
    "bytes": ({"images": images(4).byte()}, {"images": images(4)}, "float32 of N x C x H x W, got torch.uint8"),
    "another size": ({"images": images(4)}, {"images": images(4, 5)}, "data.test_file: expected images of (1, 4, 4)"),
    "too few labels": ({"images": images(4), "labels": torch.zeros(3)}, {"images": images(4)}, "expected 4 labels, got (3,)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_said(case: str, tmp_path: Path) -> None:
    train, test, words = WRONG[case]
    with pytest.raises(ConfigError) as refused:
        written(tmp_path, train, test).check()
    assert words in str(refused.value)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_file: expected an existing \.safetensors file"):
        data(tmp_path).check()
    tensors = written(tmp_path, {"images": images(4)}, {"images": images(4)})
    (tmp_path / "test.safetensors").write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"data\.test_file: .*expected a readable safetensors file"):
        tensors.check()
