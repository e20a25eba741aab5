"""Files that are not images are skipped and counted; those that cannot be read are listed at once or left out, and examined once."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from data_cases import PLAIN, coco, folder, joined, numbers, picture, settled
from PIL import Image

from workers.data.examine import Broken, Examine
from workers.errors import ConfigError, SecateurError


def test_files_that_are_not_images_are_skipped_counted_and_reported(pets):
    before = settled(pets)
    (pets / "train" / "cat" / "._0.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    (pets / "train" / "cat" / "folder.jpg").mkdir()
    picture(pets / "train" / "dog" / "folder.png" / "0.png")
    for number in range(3):
        Image.new("L", (9, 9)).save(pets / "train" / "dog" / f"{number}.gif")
    (pets / "val" / "README").write_text("pets")
    data = settled(pets)
    train, test = data.remarks(None)
    assert train.startswith(str(pets / "train")) and test.startswith(str(pets / "val"))
    for part in ("3 .gif files", "2 folders that are named like images", "1 hidden file"):
        assert part in train
    assert "1 file without an ending" in test
    assert data.fingerprint() == before.fingerprint() and numbers(data) == [0, 1]


def break_(pets):
    """Writes one file of every kind that cannot be read. Returns the reason for each, by name."""
    whole = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cat, dog = pets / "train" / "cat", pets / "val" / "dog"
    os.symlink(pets / "nowhere.png", cat / "dangling.png")
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "page.jpg").write_bytes(b"<html>404</html>")
    for name, suffix in (("torn", "jpg"), ("torn", "png"), ("torn", "webp"), ("torn", "bmp"), ("torn", "tif")):
        Image.fromarray(whole).save(dog / f"{name}.{suffix}")
        (dog / f"{name}.{suffix}").write_bytes((dog / f"{name}.{suffix}").read_bytes()[:900])
    os.mkfifo(dog / "pipe.png")
    header = (30000).to_bytes(4, "big") * 2  # 900 million pixels of a PNG that holds none
    png = (pets / "train" / "dog" / "0.png").read_bytes()
    (dog / "huge.png").write_bytes(with_checksum(png, header))
    return {
        "dangling.png": "a link to nothing",
        "empty.jpg": "not an image",
        "page.jpg": "not an image",
        "torn.jpg": "truncated",
        "torn.png": "",
        "torn.webp": "",
        "torn.bmp": "truncated",
        "torn.tif": "",
        "pipe.png": "not a regular file",
        "huge.png": "more pixels than Pillow's limit of 178956970",
    }


def with_checksum(png, sides):
    import zlib

    header = b"IHDR" + sides + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def test_all_files_that_cannot_be_read_are_listed_at_once(pets):
    kinds = break_(pets)
    with pytest.raises(ConfigError, match=r"got 10 that cannot") as error:
        settled(pets)
    assert "\n" not in str(error.value) and "data.broken=skip" in str(error.value)
    for name, why in kinds.items():
        assert any(part.rpartition("/")[2].startswith(f"{name}: ") and why in part for part in str(error.value).split(", ")), (name, why)


def test_many_broken_files_are_all_in_a_file(pets):
    for number in range(30):
        (pets / "train" / "cat" / f"bad{number}.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"got 30 that cannot: .* and 10 more, .*broken.txt"):
        settled(pets)
    assert len((pets.parent / "examined" / "broken.txt").read_text().splitlines()) == 30


def test_broken_files_are_left_out_on_request_and_the_identity_is_of_the_others(pets):
    clean = settled(pets)
    kinds = break_(pets)
    data = settled(pets, broken=Broken.SKIP)
    (remark,) = data.remarks(None)
    assert "left out 10 files" in remark and all(name in remark for name in kinds)
    assert [data.size(split) for split in ("train", "test")] == [6, 4] and numbers(data) == [0, 1]
    assert data.fingerprint() == clean.fingerprint(), "the same images are used"
    path = pets / "train" / "cat" / "0.png"
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = folder(pets, **PLAIN, broken=Broken.SKIP).settled(None, pets.parent / "other", lambda count: None)
    assert again.size("train") == 5 and again.fingerprint() != clean.fingerprint(), "no time tells, only that it is left out"


def test_a_class_whose_files_are_all_left_out_is_reported(pets):
    for number in range(3):
        (pets / "train" / "dog" / f"{number}.png").write_bytes(b"")
    remark = " ".join(settled(pets, broken=Broken.SKIP).remarks(None))
    assert "left out 3 files" in remark and "1 of 2 classes have no training images (dog)" in remark
    for number in range(3):
        (pets / "train" / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"data.train_folder: expected at least one image"):
        settled(pets, broken=Broken.SKIP)


def test_inner_damage_is_found_by_decoding_and_named_where_it_is_met(pets):
    path = pets / "train" / "cat" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[1000:1400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(SecateurError, match=r"cat/0.png: expected a readable image.*data.examine=decode"):
        joined(settled(pets).evaluation("bank", 0, 1))
    with pytest.raises(ConfigError, match=r"got 1 that cannot: .*cat/0.png"):
        settled(pets, examine=Examine.DECODE)
    assert settled(pets, examine=Examine.DECODE, broken=Broken.SKIP).size("train") == 5


def test_files_are_examined_once_and_again_when_they_change(pets, monkeypatch):
    opened = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest, **formats: (opened.append(str(path)), plain(path, *rest))[1])
    (pets / "val" / "dog" / "bad.jpg").write_bytes(b"")
    settled(pets, broken=Broken.SKIP)
    assert sorted(set(opened)) == sorted(str(path) for path in pets.rglob("*.*g"))
    opened.clear()
    assert settled(pets, broken=Broken.SKIP).size("test") == 4 and not opened
    picture(pets / "train" / "cat" / "0.png", 3)
    os.utime(pets / "train" / "cat" / "0.png", (1, 1))
    settled(pets, broken=Broken.SKIP)
    assert str(pets / "train" / "cat" / "0.png") in opened and len(opened) < 5


def test_an_error_of_the_disk_is_not_remembered_for_the_file(pets, monkeypatch):
    plain = Image.open

    def failing(path, *rest, **formats):
        if str(path).endswith("cat/0.png"):
            raise OSError(5, "Input/output error")
        return plain(path, *rest)

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(ConfigError, match=r"cat/0.png: Input/output error"):
        settled(pets)
    monkeypatch.undo()
    assert settled(pets).size("train") == 6


def test_names_that_are_not_utf_8_are_read_and_printed(pets):
    name = os.fsencode(str(pets / "train" / "cat")) + b"/\xff.png"
    shutil.copy(os.fsencode(str(pets / "train" / "cat" / "0.png")), name)
    data = settled(pets)
    assert data.size("train") == 7 and len(data.fingerprint()) == 64 and len(joined(data.evaluation("bank", 0, 1))[1]) == 7
    with open(name, "wb"):
        pass
    with pytest.raises(ConfigError, match=r"cat/\\xff.png: not an image"):
        settled(pets)


def test_loose_images_may_lie_beside_debris(pets):
    (pets / "train" / "cat" / "@eaDir").mkdir()
    (pets / "train" / "cat" / "empty").mkdir()
    data = settled(pets / "train" / "cat", train_folder=".", test_folder=".")
    assert data.classes == 0 and data.size("train") == 3


# --- COCO's layout


def test_photos_with_boxes_that_cannot_be_read_are_left_out_with_their_objects(photos):
    (photos / "train" / "1.png").write_bytes(b"")
    (photos / "test" / "0.png").unlink()
    settle = lambda **changes: coco(photos, **changes).settled(None, photos / "examined", lambda count: None)  # noqa: E731
    with pytest.raises(ConfigError, match=r"got 2 that cannot: .*train/1.png: not an image, .*test/0.png: no such file"):
        settle()
    with pytest.raises(ConfigError, match=r"data.test_images: expected all images"):
        coco(photos).check()
    data = coco(photos, broken=Broken.SKIP)
    data.check()
    data = data.settled(None, photos / "examined", lambda count: None)
    assert (data.size("train"), data.size("test")) == (2, 1) and "left out 2 files" in data.remarks(None)[0]
    (batch,) = data.evaluation("bank", 0, 1)
    assert [round(float(image.mean()) * 255) for image in batch.images_NCHW] == [50, 130]
    assert batch.labels[0, 0].tolist() == [3, 15, 15, 45, 45] and torch.equal(batch.labels[1, :, 0], torch.tensor([-1.0, -1.0]))


def test_categories_that_the_two_files_count_from_different_ids_are_refused(photos):
    described = json.loads((photos / "test.json").read_text())
    described["categories"] = [{"id": 4, "name": "dog"}, {"id": 7, "name": "cow"}]
    described["annotations"] = [entry for entry in described["annotations"] if entry["category_id"] == 4]
    (photos / "test.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"data.test_annotations: expected the categories of train.json"):
        coco(photos).check()
