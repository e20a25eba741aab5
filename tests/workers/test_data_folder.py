"""Image folders: which folders are classes, how classes are numbered, and what is reported."""

import re
import shutil

import pytest
from data_cases import PLAIN, coco, folder, joined, numbers, picture, settled

from orchestrator.checks import class_count
from workers.errors import ConfigError, SecateurError

# --- classes


@pytest.mark.parametrize(
    "name", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", ".hidden", "empty", "aaa/.DS_Store", "aaa/Thumbs.db", "aaa/._0.jpg"]
)
def test_empty_and_hidden_folders_and_those_of_systems_are_not_classes(pets, name):
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


def test_classes_without_images_are_reported_and_all_of_them_refused(pets):
    picture(pets / "train" / "ape" / "more" / "0.png")
    (pets / "train" / "bee").mkdir()
    (pets / "train" / "bee" / "notes.txt").write_text("bees")
    remarks = " ".join(settled(pets).remarks(None))
    for split in ("training", "test"):
        assert re.search(rf"2 of 4 classes [\w ]*{split} images \(ape, bee\)", remarks)
    assert "(ape/more)" in remarks and "1 .txt file" in remarks
    for name in ("cat", "dog"):
        (pets / "train" / name).rename(pets / "train" / f"{name}s")
        (pets / "train" / name).mkdir()
        (pets / "train" / f"{name}s").rename(pets / "train" / name / "more")
    with pytest.raises(ConfigError, match=r"data.root: .*ape/more, cat/more, dog/more"):
        settled(pets)


def test_too_few_outputs_are_refused_with_the_classes_that_have_no_images(pets):
    picture(pets / "train" / "ape" / "more" / "0.png")
    with pytest.raises(ConfigError, match=r"num_classes: expected at least 3\b.*ape without training images.*got 2"):
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
    with pytest.raises(SecateurError, match=r"data.root: expected the images that the run started with"):
        list(pickle.loads(pickle.dumps(data)).calibration(0, 1))


# --- numbers of classes


def test_a_class_map_gives_classes_their_outputs_in_every_batch_and_in_the_identity(pets):
    plain, mapped = settled(pets, 10), settled(pets, 10, class_map={"dog": 2, "cat": 7, "wolf": 3})
    assert numbers(plain) == [0, 1] and numbers(mapped) == [7, 2]
    assert plain.fingerprint() != mapped.fingerprint()
    assert settled(pets, 10, class_map={"cat": 0, "dog": 1}).fingerprint() == plain.fingerprint()
    assert "10 classes" in " ".join(plain.remarks(10)) and mapped.remarks(10) == []


def test_names_of_folders_that_are_numbers_may_be_mapped(pets):
    for split in ("train", "val"):
        (pets / split / "cat").rename(pets / split / "1")
        (pets / split / "dog").rename(pets / split / "2")
    assert numbers(settled(pets, class_map={1: 5, 2: 4})) == [5, 4]


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"cat": 3}, r"data.class_map: expected a number for each of the 2 class folders, got none for dog"),
        ({"cat": -1, "dog": 0}, r"data.class_map: expected a number of at least 0"),
        ({"cat": "1", "dog": 0}, r"data.class_map: expected a number of at least 0"),
        ({"cat": True, "dog": 0}, r"data.class_map: expected a number of at least 0"),
        ([0, 1], r"data.class_map: expected a number of at least 0"),
        ({}, r"data.class_map: expected a number of at least 0"),
    ],
)
def test_a_class_map_that_cannot_be_is_refused(pets, class_map, message):
    with pytest.raises(ConfigError, match=message):
        settled(pets, class_map=class_map)


def test_numbers_beyond_the_models_outputs_are_refused(pets):
    with pytest.raises(ConfigError, match=r"data.class_map: expected numbers below 10\b.*got \{'dog': 10\}"):
        folder(pets, class_map={"cat": 9, "dog": 10}).check_outputs(10)
    folder(pets, class_map={"cat": 9, "dog": 8}).check_outputs(10)


def test_images_without_classes_have_no_class_map(pets):
    with pytest.raises(ConfigError, match=r"data.class_map: expected null"):
        settled(pets / "train" / "cat", train_folder=".", test_folder=".", class_map={"cat": 1})


def test_more_outputs_than_classes_are_reported_with_the_numbers_of_classes(pets):
    (remark,) = settled(pets, 10).remarks(10)
    for part in ("10 classes", "data have 2", "(cat is 0, dog is 1)", "data.class_map"):
        assert part in remark
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
    assert not any("is used as output" in remark for remark in data.remarks(1000))
    assert (
        data.fingerprint() == settled(pets, class_map={"n02123045": 281, "n02099601": 207}).fingerprint() != settled(pets, 10).fingerprint()
    )


def test_wordnet_ids_are_not_mapped_for_another_head_or_with_a_class_map(pets):
    named(pets, "n02123045", "n02099601")
    assert numbers(settled(pets, 2)) == numbers(settled(pets)) == [1, 0]
    assert numbers(settled(pets, 1000, class_map={"n02123045": 4, "n02099601": 5})) == [4, 5]
    (pets / "train" / "n00000001").mkdir()
    picture(pets / "train" / "n00000001" / "0.png")  # an id that ImageNet-1k does not have
    assert joined(settled(pets, 1000).evaluation("test", 0, 1))[1].tolist() == [1, 1, 2, 2]


def test_all_of_imagenet_keeps_the_order_of_its_folders(tmp_path):
    """The 1,000 sorted ids are the outputs 0 to 999, so nothing is mapped or reported."""
    from timm.data import ImageNetInfo

    from workers.data.imagenet import wordnet_outputs

    names = sorted(ImageNetInfo("imagenet-1k").label_names())
    assert wordnet_outputs(names, 1000) == ("imagenet-1k", {name: index for index, name in enumerate(names)})
    assert names[0] == "n01440764" and names[999] == "n15075141"  # the tench and toilet paper


def test_detectors_tell_apart_one_class_less_than_they_have_scores(photos):
    from types import SimpleNamespace

    from workers.models.base import Output

    experiment = SimpleNamespace(model=SimpleNamespace(output=Output.BOXES))
    assert class_count(experiment, SimpleNamespace(outputs=4 + 91)) == 90
    data = coco(photos)
    assert "list all categories of the model" in " ".join(data.remarks(90)) and data.remarks(4) == []
