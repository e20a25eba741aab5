"""Folders as people have them: what is a class, which number it has, what is passed over, and files that cannot be read."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from data_cases import folder, joined
from PIL import Image
from test_data_boxes import coco, photos  # noqa: F401

from orchestrator.launch import told_apart
from workers.data.examine import Broken, Examine
from workers.data.imagefiles import Augmentation
from workers.errors import ConfigError, SecateurError

PLAIN = {"mean": [0.0], "std": [1.0], "augmentation": Augmentation.NONE, "calibration_batch_size": 2, "calibration_batches": 3}


@pytest.fixture
def pets(tmp_path):
    """Two classes, told apart by their brightness: cats are dark, dogs are bright; 3 training and 2 test images of each."""
    for split, count in (("train", 3), ("val", 2)):
        for name, grey in (("cat", 50), ("dog", 200)):
            for number in range(count):
                picture(tmp_path / "pets" / split / name / f"{number}.png", grey + number)
    return tmp_path / "pets"


def picture(path, grey=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (grey,) * 3).save(path)


def settled(root, outputs=None, **changes):
    data = folder(root, **{**PLAIN, **changes})
    data.check()
    return data.settled(outputs, root.parent / "examined", lambda count: None)


def numbers(data):
    """The label of cats and that of dogs, as batches of every kind have them."""
    batches = [joined(data.evaluation(split, 0, 1)) for split in ("test", "bank", "calibration")] + [joined(data.train(0, 1, 0, 2))]
    found = {(bool(image.mean() > 0.5), int(label)) for images, labels in batches for image, label in zip(images, labels, strict=True)}
    assert len(found) == 2, "each class has one number, everywhere"
    return [label for _, label in sorted(found)]


# --- classes


@pytest.mark.parametrize(
    "name", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", ".hidden", "empty", "aaa/.DS_Store", "aaa/Thumbs.db", "aaa/._0.jpg"]
)
def test_empty_and_hidden_folders_and_what_systems_leave_behind_are_no_classes(pets, name):
    before, same = numbers(folder(pets, **PLAIN)), folder(pets, **PLAIN).fingerprint()
    for split in ("train", "val"):
        if "/" in name:
            (pets / split / name).parent.mkdir()
            (pets / split / name).write_bytes(b"Mac OS X")
        else:
            (pets / split / name).mkdir()
            if name != "empty":
                picture(pets / split / name / "0.png")
    data = settled(pets)
    assert (data.classes, numbers(data)) == (2, before) == (2, [0, 1])
    assert data.fingerprint() == same


def test_the_list_of_classes_is_part_of_the_identity(pets):
    before = settled(pets).fingerprint()
    (pets / "train" / "ape" / "more").mkdir(parents=True)
    data = settled(pets)
    assert numbers(data) == [1, 2] and data.fingerprint() != before
    shutil.rmtree(pets / "train" / "ape")
    assert settled(pets).fingerprint() == before


def test_classes_without_images_are_told_and_all_of_them_refused(pets):
    picture(pets / "train" / "ape" / "more" / "0.png")
    (pets / "train" / "bee").mkdir()
    (pets / "train" / "bee" / "notes.txt").write_text("bees")
    said = " ".join(settled(pets).remarks(None))
    assert "2 of 4 classes have no training images (ape, bee)" in said and "2 of 4 classes have no test images (ape, bee)" in said
    assert "not looked into (ape/more)" in said and "1 .txt file" in said
    for name in ("cat", "dog"):
        (pets / "train" / name).rename(pets / "train" / f"{name}s")
        (pets / "train" / name).mkdir()
        (pets / "train" / f"{name}s").rename(pets / "train" / name / "more")
    with pytest.raises(ConfigError, match=r"holds no images, nor do its subfolders.*not in ape/more, cat/more, dog/more"):
        settled(pets)


def test_a_classifier_with_too_few_outputs_is_told_which_classes_have_no_images(pets):
    picture(pets / "train" / "ape" / "more" / "0.png")
    with pytest.raises(
        ConfigError, match=r"num_classes: expected at least the 3 classes of the data; of these ape have no training images, got 2"
    ):
        folder(pets).check_outputs(2)


def test_a_changed_folder_is_seen_by_the_next_run_of_the_same_process(pets):
    before = settled(pets)
    picture(pets / "train" / "ape" / "0.png")
    after = settled(pets)
    assert (before.classes, after.classes) == (2, 3) or before.fingerprint() != after.fingerprint()
    assert joined(after.evaluation("bank", 0, 1))[1].tolist() == [0, 1, 1, 1, 2, 2, 2]


def test_a_folder_that_changed_since_the_run_began_is_refused_where_it_is_read(pets):
    """As on another machine, whose folder is not the same."""
    import pickle

    from workers.data import imagefolder, listing

    data = settled(pets)
    (pets / "train" / "cat" / "0.png").unlink()
    for remembered in (listing.listed, imagefolder._used):
        remembered.cache_clear()
    with pytest.raises(SecateurError, match=r"does not hold the images that the run began with"):
        list(pickle.loads(pickle.dumps(data)).calibration(0, 1))


# --- numbers of classes


def test_a_class_map_gives_classes_their_outputs_in_every_batch_and_in_the_identity(pets):
    plain, mapped = settled(pets, 10), settled(pets, 10, class_map={"dog": 2, "cat": 7, "wolf": 3})
    assert numbers(plain) == [0, 1] and numbers(mapped) == [7, 2]
    assert plain.fingerprint() != mapped.fingerprint()
    assert settled(pets, 10, class_map={"cat": 0, "dog": 1}).fingerprint() == plain.fingerprint()
    assert "10 classes apart" in " ".join(plain.remarks(10)) and mapped.remarks(10) == []


def test_names_of_folders_that_are_numbers_may_be_mapped(pets):
    for split in ("train", "val"):
        (pets / split / "cat").rename(pets / split / "1")
        (pets / split / "dog").rename(pets / split / "2")
    assert numbers(settled(pets, class_map={1: 5, 2: 4})) == [5, 4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cat": 3}, r"data.class_map: expected a number for each of the 2 class folders, got 'none for dog'"),
        ({"cat": -1, "dog": 0}, r"data.class_map: expected a number from 0 up"),
        ({"cat": "1", "dog": 0}, r"data.class_map: expected a number from 0 up"),
        ({"cat": True, "dog": 0}, r"data.class_map: expected a number from 0 up"),
        ([0, 1], r"data.class_map: expected a number from 0 up"),
        ({}, r"data.class_map: expected a number from 0 up"),
    ],
)
def test_a_class_map_that_cannot_be_is_refused(pets, given, message):
    with pytest.raises(ConfigError, match=message):
        settled(pets, class_map=given)


def test_numbers_beyond_the_models_outputs_are_refused(pets):
    with pytest.raises(
        ConfigError, match=r"data.class_map: expected numbers below 10, as many outputs as the model has, got \{'dog': 10\}"
    ):
        folder(pets, class_map={"cat": 9, "dog": 10}).check_outputs(10)
    folder(pets, class_map={"cat": 9, "dog": 8}).check_outputs(10)


def test_images_without_classes_have_no_class_map(pets):
    with pytest.raises(ConfigError, match=r"data.class_map: expected null for images without classes"):
        settled(pets / "train" / "cat", train_folder=".", test_folder=".", class_map={"cat": 1})


def test_more_outputs_than_classes_are_told_with_the_numbers_that_classes_have(pets):
    said = settled(pets, 10).remarks(10)
    assert said == [
        "the model tells 10 classes apart, the data have 2: a label is taken for the number of an output as it is, in the order of the "
        "folders' names (cat is 0, dog is 1); set data.class_map if the model has other numbers"
    ]
    assert settled(pets, 2).remarks(2) == [] == settled(pets).remarks(None)


def named(pets, cat, dog):
    for split in ("train", "val"):
        (pets / split / "cat").rename(pets / split / cat)
        (pets / split / "dog").rename(pets / split / dog)


def test_folders_named_by_wordnet_ids_get_the_outputs_of_imagenet(pets):
    """Published: output 207 of ImageNet-1k is n02099601, the golden retriever, and 281 n02123045, the tabby cat."""
    named(pets, "n02123045", "n02099601")
    data = settled(pets, 1000)
    assert numbers(data) == [281, 207]
    assert "WordNet ids" in " ".join(data.remarks(1000)) and "n02099601 is 207" in " ".join(data.remarks(1000))
    assert not any("classes apart" in said for said in data.remarks(1000))
    assert (
        data.fingerprint() == settled(pets, class_map={"n02123045": 281, "n02099601": 207}).fingerprint() != settled(pets, 10).fingerprint()
    )


def test_wordnet_ids_are_no_outputs_where_the_model_has_another_head_or_the_user_says_otherwise(pets):
    named(pets, "n02123045", "n02099601")
    assert numbers(settled(pets, 2)) == numbers(settled(pets)) == [1, 0]
    assert numbers(settled(pets, 1000, class_map={"n02123045": 4, "n02099601": 5})) == [4, 5]
    (pets / "train" / "n00000001").mkdir()
    picture(pets / "train" / "n00000001" / "0.png")  # an id that ImageNet-1k does not have
    assert joined(settled(pets, 1000).evaluation("test", 0, 1))[1].tolist() == [1, 1, 2, 2]


def test_all_of_imagenet_keeps_the_order_of_its_folders(tmp_path):
    """The one order: 1,000 ids sorted are the outputs 0 to 999, so nothing is mapped and nothing said."""
    from timm.data import ImageNetInfo

    from workers.data.imagenet import wordnet_outputs

    names = sorted(ImageNetInfo("imagenet-1k").label_names())
    assert wordnet_outputs(names, 1000) == ("imagenet-1k", {name: index for index, name in enumerate(names)})
    assert names[0] == "n01440764" and names[999] == "n15075141"  # the tench and toilet paper


def test_detectors_tell_apart_one_class_less_than_they_have_scores(photos):  # noqa: F811
    from types import SimpleNamespace

    from workers.models.base import Output

    experiment = SimpleNamespace(model=SimpleNamespace(output=Output.BOXES))
    assert told_apart(experiment, SimpleNamespace(outputs=4 + 91)) == 90
    data = coco(photos)
    assert "list all categories of the model" in " ".join(data.remarks(90)) and data.remarks(4) == []


# --- files


def test_what_no_loader_reads_is_skipped_counted_and_said(pets):
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
    for part in ("3 .gif files", "2 folders that are named like images", "1 hidden file skipped"):
        assert part in train
    assert "1 file without an ending" in test
    assert data.fingerprint() == before.fingerprint() and numbers(data) == [0, 1]


def break_(pets):
    """One file of every kind that cannot be read, and what is to be said of it."""
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
        "empty.jpg": "no image",
        "page.jpg": "no image",
        "torn.jpg": "truncated",
        "torn.png": "",
        "torn.webp": "",
        "torn.bmp": "truncated",
        "torn.tif": "",
        "pipe.png": "no regular file",
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
    with pytest.raises(ConfigError, match=r"got 30 that cannot: .* and 10 more, all of them in .*broken.txt"):
        settled(pets)
    assert len((pets.parent / "examined" / "broken.txt").read_text().splitlines()) == 30


def test_broken_files_are_left_out_when_asked_for_and_the_identity_is_of_those_that_are_used(pets):
    clean = settled(pets)
    kinds = break_(pets)
    data = settled(pets, broken=Broken.SKIP)
    (said,) = data.remarks(None)
    assert "left out 10 files" in said and all(name in said for name in kinds)
    assert [data.size(split) for split in ("train", "test")] == [6, 4] and numbers(data) == [0, 1]
    assert data.fingerprint() == clean.fingerprint(), "the same images are used"
    path = pets / "train" / "cat" / "0.png"
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = folder(pets, **PLAIN, broken=Broken.SKIP).settled(None, pets.parent / "other", lambda count: None)
    assert again.size("train") == 5 and again.fingerprint() != clean.fingerprint(), "no time tells, only that it is left out"


def test_a_class_whose_files_are_all_left_out_is_told(pets):
    for number in range(3):
        (pets / "train" / "dog" / f"{number}.png").write_bytes(b"")
    said = " ".join(settled(pets, broken=Broken.SKIP).remarks(None))
    assert "left out 3 files" in said and "1 of 2 classes have no training images (dog)" in said
    for number in range(3):
        (pets / "train" / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"data.train_folder: expected an image that can be read"):
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
    monkeypatch.setattr(Image, "open", lambda path, *rest: (opened.append(str(path)), plain(path, *rest))[1])
    (pets / "val" / "dog" / "bad.jpg").write_bytes(b"")
    settled(pets, broken=Broken.SKIP)
    assert sorted(set(opened)) == sorted(str(path) for path in pets.rglob("*.*g"))
    opened.clear()
    assert settled(pets, broken=Broken.SKIP).size("test") == 4 and not opened
    picture(pets / "train" / "cat" / "0.png", 3)
    os.utime(pets / "train" / "cat" / "0.png", (1, 1))
    settled(pets, broken=Broken.SKIP)
    assert str(pets / "train" / "cat" / "0.png") in opened and len(opened) < 5


def test_a_disk_that_fails_is_no_property_of_the_file(pets, monkeypatch):
    plain = Image.open

    def failing(path, *rest):
        if str(path).endswith("cat/0.png"):
            raise OSError(5, "Input/output error")
        return plain(path, *rest)

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(ConfigError, match=r"cat/0.png: Input/output error"):
        settled(pets)
    monkeypatch.undo()
    assert settled(pets).size("train") == 6


def test_names_that_are_no_utf_8_are_read_and_shown(pets):
    name = os.fsencode(str(pets / "train" / "cat")) + b"/\xff.png"
    shutil.copy(os.fsencode(str(pets / "train" / "cat" / "0.png")), name)
    data = settled(pets)
    assert data.size("train") == 7 and len(data.fingerprint()) == 64 and len(joined(data.evaluation("bank", 0, 1))[1]) == 7
    with open(name, "wb"):
        pass
    with pytest.raises(ConfigError, match=r"cat/\\xff.png: no image"):
        settled(pets)


def test_loose_images_may_lie_beside_debris(pets):
    (pets / "train" / "cat" / "@eaDir").mkdir()
    (pets / "train" / "cat" / "empty").mkdir()
    data = settled(pets / "train" / "cat", train_folder=".", test_folder=".")
    assert data.classes == 0 and data.size("train") == 3


# --- COCO's layout


def test_photos_with_boxes_that_cannot_be_read_are_left_out_with_their_objects(photos):  # noqa: F811
    (photos / "train" / "1.png").write_bytes(b"")
    (photos / "test" / "0.png").unlink()
    settle = lambda **changes: coco(photos, **changes).settled(None, photos / "examined", lambda count: None)  # noqa: E731
    with pytest.raises(ConfigError, match=r"got 2 that cannot: .*train/1.png: no image, .*test/0.png: no such file"):
        settle()
    with pytest.raises(ConfigError, match=r"data.test_images: expected every image of the annotations"):
        coco(photos).check()
    data = coco(photos, broken=Broken.SKIP)
    data.check()
    data = data.settled(None, photos / "examined", lambda count: None)
    assert (data.size("train"), data.size("test")) == (2, 1) and "left out 2 files" in data.remarks(None)[0]
    (batch,) = data.evaluation("bank", 0, 1)
    assert [round(float(image.mean()) * 255) for image in batch.images_NCHW] == [50, 130]
    assert batch.labels[0, 0].tolist() == [3, 15, 15, 45, 45] and torch.equal(batch.labels[1, :, 0], torch.tensor([-1.0, -1.0]))


def test_categories_that_the_two_files_count_from_different_ids_are_refused(photos):  # noqa: F811
    described = json.loads((photos / "test.json").read_text())
    described["categories"] = [{"id": 4, "name": "dog"}, {"id": 7, "name": "cow"}]
    described["annotations"] = [entry for entry in described["annotations"] if entry["category_id"] == 4]
    (photos / "test.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"data.test_annotations: expected the categories of train.json, got 'other names or ids'"):
        coco(photos).check()
