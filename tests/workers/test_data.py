"""Batches are pure functions of settings and seed, shards cut them exactly, and missing or damaged data is said in one line."""

import gzip
import importlib
import random
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from workers.data.digits import Digits
from workers.data.fashion import FashionMnist
from workers.data.imagefiles import Augmentation, Interpolation
from workers.data.imagefolder import ImageFolder
from workers.data.npz import Arrays
from workers.data.sampling import part
from workers.errors import ConfigError, SecateurError

CONF = Path(__file__).parents[2] / "conf"
BASE = {
    "seed": 0,
    "calibration_batches": 6,
    "calibration_batch_size": 8,
    "shards": 3,
    "eval_batch_size": 50,
    "train_size": 0,
    "test_size": 0,
    "bank_size": 0,
}
ARRAYS = {"image_size": 32, "channels": 1, "mean": [0.3], "std": [0.4], "max_shift": 2, "flip": True}
FILES = {
    "image_size": 16,
    "crop_fraction": 0.875,
    "interpolation": Interpolation.BICUBIC,
    "mean": [0.5],
    "std": [0.25],
    "augmentation": Augmentation.LIGHT,
    "decoders": 0,
    "train_folder": "train",
    "test_folder": "val",
    "expected_train": None,
    "expected_test": None,
    "expected_classes": None,
}


def digits(**changes):
    return Digits(**{**BASE, **ARRAYS, **changes})


def arrays(path, **changes):
    return Arrays(**{**BASE, **ARRAYS, "image_size": 8, "max_shift": 0, "flip": False, "path": str(path), **changes})


def folder(root, **changes):
    return ImageFolder(**{**BASE, **FILES, "root": str(root), **changes})


@pytest.fixture(scope="module")
def image_root(tmp_path_factory):
    """Two classes; 6 training and 2 test images each, of different sizes and file types."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.{'png' if number % 2 else 'JPEG'}")
    return root


@pytest.fixture(params=["digits", "files"])
def dataset(request, image_root):
    if request.param == "digits":
        return lambda **changes: digits(**changes)
    return lambda **changes: folder(image_root, **{"calibration_batch_size": 2, "eval_batch_size": 5, **changes})


def joined(batches):
    found = list(batches)
    if not found:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    return torch.cat([batch.images_NCHW for batch in found]), torch.cat([batch.labels_N for batch in found])


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Batches


def test_batches_have_the_declared_shape_and_type(dataset):
    data = dataset()
    data.check()
    batch = next(data.evaluation("test", 0, 1))
    assert batch.images_NCHW.dtype == torch.float32 and batch.labels_N.dtype == torch.int64
    assert tuple(batch.images_NCHW.shape[1:]) == data.input_shape
    assert batch.labels_N.min() >= 0 and batch.labels_N.max() < data.classes


@pytest.mark.parametrize("split", ["test", "bank", "calibration"])
def test_shards_cut_a_split_exactly(dataset, split):
    data = dataset()
    whole = joined(data.evaluation(split, 0, 1))
    assert len(whole[1]) == data.size(split)
    for shards in (2, 3, 7):
        parts = [joined(data.evaluation(split, shard, shards)) for shard in range(shards)]
        assert same(whole, [torch.cat([tensor for tensor in tensors if len(tensor)]) for tensors in zip(*parts, strict=True)])
        assert max(len(labels) for _, labels in parts) - min(len(labels) for _, labels in parts) <= 1


def test_calibration_shards_are_contiguous_ranges_of_the_same_batches(dataset):
    data = dataset()
    whole = list(data.calibration(0, 1))
    assert [len(batch.labels_N) for batch in whole] == [data.calibration_batch_size] * data.calibration_batches
    for shards in (2, 3, 4):
        cut = [batch for shard in range(shards) for batch in data.calibration(shard, shards)]
        assert len(cut) == len(whole) and all(same(a, b) for a, b in zip(cut, whole, strict=True))


def test_evaluation_on_calibration_sees_the_same_samples(dataset):
    data = dataset()
    assert same(joined(data.calibration(0, 1)), joined(data.evaluation("calibration", 0, 1)))


def test_calibration_draws_without_replacement_and_passes_again_when_the_set_is_small():
    rows = lambda data: {tuple(image.flatten().tolist()) for image in joined(data.calibration(0, 1))[0]}  # noqa: E731
    assert len(rows(digits(calibration_batches=100, calibration_batch_size=4))) >= 398  # a few digits are equal to the pixel
    small = digits(train_size=10, calibration_batches=5, calibration_batch_size=5)
    images, _ = joined(small.calibration(0, 1))
    assert len(rows(small)) == 10
    first, second = images[:10], images[10:20]
    assert {tuple(i.flatten().tolist()) for i in first} == {tuple(i.flatten().tolist()) for i in second}
    assert not torch.equal(first, second)


def test_ranks_get_equal_parts_of_one_global_batch(dataset):
    data = dataset()
    whole = list(data.train(0, 1, epoch=3, batch_size=4))
    for world in (2, 4):
        ranks = [list(data.train(rank, world, epoch=3, batch_size=4)) for rank in range(world)]
        assert {len(batch.labels_N) for rank in ranks for batch in rank} == {4 // world}
        for step, batch in enumerate(whole):
            assert same(batch, [torch.cat(tensors) for tensors in zip(*(rank[step] for rank in ranks), strict=True)])


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own():
    data = digits(max_shift=0, flip=False, train_size=200)
    epochs = [joined(data.train(0, 1, epoch, 40))[0] for epoch in (0, 1)]
    ordered = joined(data.evaluation("bank", 0, 1))[0]
    key = lambda images: sorted(tuple(image.flatten().tolist()) for image in images)  # noqa: E731
    assert key(epochs[0]) == key(epochs[1]) == key(ordered)
    assert not torch.equal(epochs[0], epochs[1])


def test_training_follows_seed_and_epoch_alone(dataset):
    torch.manual_seed(1)
    random.seed(1)
    first = joined(dataset().train(0, 1, 0, 4))
    torch.manual_seed(2)
    random.seed(2)
    before = torch.get_rng_state(), random.getstate()
    assert same(first, joined(dataset().train(0, 1, 0, 4)))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert not torch.equal(first[0], joined(dataset(seed=1).train(0, 1, 0, 4))[0])
    assert not torch.equal(first[0], joined(dataset().train(0, 1, 1, 4))[0])


def test_a_last_part_batch_is_dropped_and_a_batch_larger_than_the_set_refused(dataset):
    data = dataset(train_size=10)
    assert [len(batch.labels_N) for batch in data.train(0, 1, 0, 4)] == [4, 4]
    with pytest.raises(ConfigError, match="at most the 10 training samples"):
        data.train(0, 1, 0, 11)
    with pytest.raises(ConfigError, match="a multiple of the 3 ranks"):
        data.train(0, 3, 0, 4)


def test_sizes_are_what_is_asked_for_and_a_smaller_subset_lies_in_a_larger_one():
    data = digits(train_size=100, test_size=30, bank_size=20)
    assert [data.size(split) for split in ("train", "test", "bank", "calibration")] == [100, 30, 20, 48]
    assert [len(joined(data.evaluation(split, 0, 1))[1]) for split in ("test", "bank")] == [30, 20]
    smaller = {tuple(image.flatten().tolist()) for image in joined(digits(test_size=15).evaluation("test", 0, 1))[0]}
    assert smaller <= {tuple(image.flatten().tolist()) for image in joined(data.evaluation("test", 0, 1))[0]}


@pytest.mark.parametrize("name", ["train_size", "test_size", "bank_size"])
def test_more_samples_than_there_are_is_refused(dataset, name):
    with pytest.raises(ConfigError, match=f"data.{name}: expected at most"):
        dataset(**{name: 5000}).check()


def test_parts_tile_a_range():
    for count in range(20):
        for of in range(1, 8):
            assert [i for index in range(of) for i in part(count, index, of)] == list(range(count))


# Digits


def test_digits_are_split_by_the_seed_with_equal_shares_of_each_class():
    data = digits()
    assert (data.size("train"), data.size("test"), data.classes) == (1437, 360, 10)
    counts = np.bincount(joined(data.evaluation("test", 0, 1))[1])
    assert counts.min() >= 34 and counts.max() <= 37
    assert not torch.equal(joined(data.evaluation("test", 0, 1))[1], joined(digits(seed=1).evaluation("test", 0, 1))[1])


def test_digits_hold_the_pixels_that_scikit_learn_ships():
    from sklearn.datasets import load_digits

    data = digits(image_size=8, max_shift=0, mean=[0.0], std=[1.0])
    ours = torch.cat([joined(data.evaluation(split, 0, 1))[0] for split in ("bank", "test")])
    assert sorted(map(tuple, (ours * 16).flatten(1).tolist())) == sorted(map(tuple, load_digits().data.tolist()))


def test_shifted_images_are_the_image_moved_and_black_elsewhere():
    data = digits(image_size=8, max_shift=3, flip=False, mean=[0.0], std=[1.0], train_size=40)
    plain = joined(digits(image_size=8, max_shift=0, flip=False, mean=[0.0], std=[1.0], train_size=40).train(0, 1, 0, 40))[0]
    moved = joined(data.train(0, 1, 0, 40))[0]
    shifts = set()
    for before, after in zip(plain[:, 0], moved[:, 0], strict=True):
        wide = torch.zeros(14, 14)
        wide[3:11, 3:11] = before
        matches = [(y, x) for y in range(7) for x in range(7) if torch.equal(wide[y : y + 8, x : x + 8], after)]
        assert matches
        shifts.update(matches)
    assert len(shifts) > 15


def test_about_half_of_the_images_are_mirrored():
    settings = {"image_size": 8, "max_shift": 0, "train_size": 200}
    plain = joined(digits(**settings, flip=False).train(0, 1, 0, 200))[0]
    mirrored = joined(digits(**settings, flip=True).train(0, 1, 0, 200))[0]
    turned = [torch.equal(a.flip(-1), b) for a, b in zip(plain, mirrored, strict=True)]
    assert all(t or torch.equal(a, b) for t, a, b in zip(turned, plain, mirrored, strict=True))
    assert 70 < sum(turned) < 130


def test_normalisation_and_channels():
    grey = joined(digits(mean=[0.0], std=[1.0]).evaluation("test", 0, 1))[0]
    colour = joined(digits(channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0]).evaluation("test", 0, 1))[0]
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        torch.testing.assert_close(colour[:, channel], (grey[:, 0] - mean) / std)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"channels": 2}, "data.channels"),
        ({"mean": [0.1, 0.2]}, "data.mean"),
        ({"std": [0.0]}, "data.std"),
        ({"max_shift": 32}, "data.max_shift"),
        ({"train_size": -1}, "data.train_size"),
        ({"seed": -1}, "data.seed"),
        ({"calibration_batches": 0}, "data.calibration_batches"),
    ],
)
def test_bad_settings_are_refused_at_the_door(changes, key):
    with pytest.raises(ConfigError, match=key):
        digits(**changes)


# Fingerprints


def test_a_fingerprint_follows_what_the_data_is_and_not_how_it_is_cut():
    base = digits().fingerprint()
    for changes in ({"seed": 1}, {"image_size": 16}, {"mean": [0.5]}, {"train_size": 10}):
        assert digits(**changes).fingerprint() != base
    for changes in (
        {"calibration_batches": 9},
        {"shards": 1},
        {"eval_batch_size": 7},
        {"test_size": 9},
        {"bank_size": 9},
        {"max_shift": 1},
    ):
        assert digits(**changes).fingerprint() == base


def test_a_folders_fingerprint_follows_its_files_and_not_its_place(image_root, tmp_path):
    import shutil

    shutil.copytree(image_root, tmp_path / "copy")
    base = folder(image_root).fingerprint()
    assert folder(tmp_path / "copy").fingerprint() == base == folder(image_root, decoders=2).fingerprint()
    assert folder(image_root, seed=1).fingerprint() != base
    shutil.copytree(image_root, tmp_path / "changed")
    changed = tmp_path / "changed" / "train" / "ant" / "0.JPEG"
    changed.write_bytes(changed.read_bytes() + b" ")
    assert folder(tmp_path / "changed").fingerprint() != base


# The user's arrays


def write_npz(path, **changes):
    generator = np.random.default_rng(0)
    content = {
        "train_images": generator.integers(0, 256, (20, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(20) % 4,
        "test_images": generator.integers(0, 256, (10, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(10) % 4,
    }
    content = {name: array for name, array in {**content, **changes}.items() if array is not None}
    np.savez(path, **content)
    return content


def test_arrays_come_back_scaled_in_order(tmp_path):
    content = write_npz(tmp_path / "a.npz")
    data = arrays(tmp_path / "a.npz", mean=[0.0], std=[1.0])
    data.check()
    images, labels = joined(data.evaluation("test", 0, 1))
    assert np.array_equal(labels, content["test_labels"]) and data.classes == 4
    np.testing.assert_allclose(images[:, 0], content["test_images"] / 255, rtol=1e-6)


def test_arrays_without_labels_are_unlabelled(tmp_path):
    write_npz(tmp_path / "a.npz", train_labels=None, test_labels=None)
    data = arrays(tmp_path / "a.npz")
    data.check()
    assert data.classes == 0 and set(joined(data.calibration(0, 1))[1].tolist()) == {-1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "arrays train_images and test_images"),
        ({"train_labels": None}, "or neither"),
        ({"train_labels": np.arange(19)}, "20 integers"),
        ({"test_labels": np.full(10, 9)}, "test labels below 4"),
        ({"train_labels": np.full(20, 0.5)}, "20 integers"),
        ({"train_images": np.zeros((20, 8, 8, 2), np.uint8)}, "N x H x W"),
        ({"train_images": np.zeros((20, 8, 8), np.float32)}, "of one type"),
        (
            {"train_images": np.zeros((20, 8, 8, 3), np.uint8), "test_images": np.zeros((10, 8, 8, 3), np.uint8)},
            "data.channels: expected 3",
        ),
        ({"train_labels": np.array([object()] * 20)}, "not a readable"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(ConfigError, match=message):
        arrays(tmp_path / "a.npz").check()


def test_a_missing_or_damaged_array_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data.path: expected an existing"):
        arrays(tmp_path / "none.npz").check()
    write_npz(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:700])
    with pytest.raises(ConfigError, match=r"b.npz"):
        arrays(tmp_path / "b.npz").check()


# Fashion-MNIST


def write_idx(path, array, compressed):
    content = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.with_name(path.name + ".gz" * compressed).write_bytes(gzip.compress(content) if compressed else content)


def write_fashion(root, compressed=False):
    root.mkdir(parents=True, exist_ok=True)
    generator, contents = np.random.default_rng(0), {}
    for name, count in (("train", 12), ("t10k", 6)):
        contents[name] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)
        write_idx(root / f"{name}-images-idx3-ubyte", contents[name][0], compressed)
        write_idx(root / f"{name}-labels-idx1-ubyte", contents[name][1], compressed)
    return contents


def fashion(root, **changes):
    return FashionMnist(**{**BASE, **ARRAYS, "image_size": 28, "mean": [0.0], "std": [1.0], "root": root and str(root), **changes})


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"])
def test_idx_files_are_read_in_every_layout(tmp_path, compressed, layout):
    contents = write_fashion(tmp_path / layout, compressed)
    data = fashion(tmp_path)
    data.check()
    images, labels = joined(data.evaluation("test", 0, 1))
    assert np.array_equal(labels, contents["t10k"][1])
    np.testing.assert_allclose(images[:, 0], contents["t10k"][0] / 255, rtol=1e-6)


def test_the_same_images_have_one_fingerprint_compressed_or_not(tmp_path):
    write_fashion(tmp_path / "a")
    write_fashion(tmp_path / "b", compressed=True)
    assert fashion(tmp_path / "a").fingerprint() == fashion(tmp_path / "b").fingerprint()


def test_missing_fashion_mnist_names_what_to_run_and_leaves_the_plan_its_sizes(tmp_path, monkeypatch):
    data = fashion(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"dataset-fashion-mnist, run scripts/fetch_cases.sh"):
        data.check()
    assert (data.size("train"), data.size("test"), data.classes) == (60_000, 10_000, 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_fashion(tmp_path / "cache" / "secateur" / "fashion-mnist")
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        assert fashion(None).size("train") == 12


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b"\x00\x00\x0d" + b[3:], lambda b: b[:3], lambda b: b""])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_idx_file_is_named(tmp_path, damage, compressed):
    write_fashion(tmp_path, compressed)
    path = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * compressed)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match="t10k-images-idx3-ubyte"):
        fashion(tmp_path).check()


# Image folders


def test_classes_are_the_sorted_subfolders(image_root):
    data = folder(image_root)
    data.check()
    assert (data.classes, data.size("train"), data.size("test")) == (2, 12, 4)
    assert joined(data.evaluation("test", 0, 1))[1].tolist() == [0, 0, 1, 1]


def test_testing_resizes_the_shorter_side_and_crops_the_centre(image_root):
    image = Image.open(sorted((image_root / "val" / "ant").iterdir())[0]).convert("RGB")
    width, height = image.size
    resized = image.resize((round(width * 18 / height), 18), Image.Resampling.BICUBIC)
    left = round((resized.width - 16) / 2)
    expected = np.asarray(resized.crop((left, 1, left + 16, 17)), np.float32).transpose(2, 0, 1) / 255
    ours = joined(folder(image_root).evaluation("test", 0, 1))[0][0]
    np.testing.assert_allclose(ours * 0.25 + 0.5, expected, atol=1.01 / 255)


@pytest.mark.parametrize("augmentation", list(Augmentation))
def test_decoders_change_no_byte(image_root, augmentation):
    here, ahead = (folder(image_root, augmentation=augmentation, decoders=decoders) for decoders in (0, 2))
    assert same(joined(here.train(0, 1, 0, 4)), joined(ahead.train(0, 1, 0, 4)))
    assert same(joined(here.calibration(0, 1)), joined(ahead.calibration(0, 1)))


def test_augmentation_touches_training_alone(image_root):
    plain, strong = (folder(image_root, augmentation=kind) for kind in (Augmentation.NONE, Augmentation.DEIT))
    assert same(joined(plain.evaluation("bank", 0, 1)), joined(strong.evaluation("bank", 0, 1)))
    assert not torch.equal(joined(plain.train(0, 1, 0, 4))[0], joined(strong.train(0, 1, 0, 4))[0])
    in_order = joined(plain.evaluation("bank", 0, 1))[0]
    trained = joined(plain.train(0, 1, 0, 12))[0]
    assert sorted(map(tuple, in_order.flatten(1).tolist())) == sorted(map(tuple, trained.flatten(1).tolist()))


def test_a_flat_folder_is_unlabelled_and_may_serve_for_both_splits(image_root):
    data = folder(image_root / "train" / "ant", train_folder=".", test_folder=".", calibration_batch_size=2)
    data.check()
    assert data.classes == 0 and data.size("test") == 6
    assert set(joined(data.calibration(0, 1))[1].tolist()) == {-1}


def test_expected_numbers_serve_the_plan_and_are_checked_against_the_folder(image_root, tmp_path):
    expected = {"expected_train": 12, "expected_test": 4, "expected_classes": 2}
    absent = folder(tmp_path / "absent", **expected)
    assert (absent.size("train"), absent.size("test"), absent.classes) == (12, 4, 2)
    with pytest.raises(ConfigError, match=r"data.root: expected a folder of images, found no .*absent"):
        absent.check()
    folder(image_root, **expected).check()
    with pytest.raises(ConfigError, match=r"data.root \(train\): expected 13"):
        folder(image_root, expected_train=13).check()


def test_folders_that_do_not_fit_together_are_refused(image_root, tmp_path):
    with pytest.raises(ConfigError, match="holds no images"):
        folder(tmp_path, train_folder=".", test_folder=".").check()
    with pytest.raises(ConfigError, match="same class subfolders"):
        folder(image_root, test_folder="train/ant").check()
    (tmp_path / "val" / "wasp").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "val" / "wasp" / "0.png")
    with pytest.raises(ConfigError, match=r"got \['wasp'\]"):
        folder(image_root, test_folder=str(tmp_path / "val")).check()
    (tmp_path / "mixed" / "ant").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "mixed" / "stray.png")
    with pytest.raises(ConfigError, match="expected one or the other"):
        folder(image_root, test_folder=str(tmp_path / "mixed")).check()


@pytest.mark.parametrize("decoders", [0, 1])
def test_a_damaged_image_is_named(tmp_path, decoders):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(SecateurError, match=r"broken.png"):
        next(iter(folder(tmp_path, train_folder=".", test_folder=".", decoders=decoders).evaluation("test", 0, 1)))


# Configuration


@pytest.mark.parametrize(
    "path", sorted([*CONF.glob("model/*.yaml"), *CONF.glob("data/*.yaml")]), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_yaml_lists_exactly_the_fields_of_its_class(path):
    settings = yaml.safe_load(path.read_text())
    module, _, name = settings.pop("_target_").rpartition(".")
    component = getattr(importlib.import_module(module), name)
    assert set(settings) == {field.name for field in fields(component)}
    required = [field.name for field in fields(component) if field.default is MISSING and field.default_factory is MISSING]
    assert all(name in settings for name in required)


@pytest.mark.parametrize("path", sorted(CONF.glob("model/*.yaml")), ids=lambda path: path.stem)
def test_every_model_yaml_builds_and_has_layers(path):
    settings = yaml.safe_load(path.read_text())
    if settings["name"] == "???":
        pytest.skip("the name is for the user to give")
    from workers.models.timm import TimmModel

    model = TimmModel(**{key: value for key, value in settings.items() if key != "_target_"})
    with torch.device("meta"):
        assert model.layers(model.build())
