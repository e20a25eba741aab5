"""Arrays, image folders and Fashion-MNIST are read exactly, and missing or damaged files are reported in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import ARRAYS, BASE, arrays, folder, joined, same, write_idx
from PIL import Image

from workers.data.fashion import FashionMnist
from workers.data.imagefiles import Augmentation
from workers.errors import ConfigError, SecateurError


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
        ({"test_labels": np.full(10, 9)}, "test labels of at most 3"),
        ({"train_labels": np.full(20, 0.5)}, "20 integers"),
        ({"train_images": np.zeros((20, 8, 8, 2), np.uint8)}, "N x H x W"),
        ({"train_images": np.zeros((20, 8, 8), np.float32)}, "of the same type"),
        (
            {"train_images": np.zeros((20, 8, 8, 3), np.uint8), "test_images": np.zeros((10, 8, 8, 3), np.uint8)},
            "data.channels: expected 3",
        ),
        ({"train_labels": np.array([object()] * 20)}, "data.path: expected a readable"),
        (
            dict.fromkeys(("train_images", "test_images"), np.full((20, 8, 8), 255.0)),
            r"train_images\): expected floats in \[0, 1\], got 255",
        ),
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


def test_fashion_mnist_that_changes_is_read_anew_by_the_same_process(tmp_path):
    write_fashion(tmp_path)
    before = fashion(tmp_path).fingerprint()
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    os.utime(path, ns=(1, 1))
    assert fashion(tmp_path).fingerprint() != before


def test_missing_fashion_mnist_names_the_command_and_a_plan_still_has_sizes(tmp_path, monkeypatch):
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
def test_the_number_of_decoders_does_not_change_the_bytes(image_root, augmentation):
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
    with pytest.raises(ConfigError, match=r"data.root: expected a folder of images, .*absent"):
        absent.check()
    folder(image_root, **expected).check()
    with pytest.raises(ConfigError, match=r"data.root \(train\): expected 13"):
        folder(image_root, expected_train=13).check()


def test_a_missing_folder_is_reported_under_the_setting_that_names_it(image_root, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"data.test_folder: .*got no folder .*/valid; set data.test_folder, which may equal data.train_"):
        folder(image_root, test_folder="valid").check()
    with pytest.raises(ConfigError, match=r"data.train_folder: .*got no folder .*/training; set data.train_folder"):
        folder(image_root, train_folder="training").check()
    with pytest.raises(ConfigError, match=r"data.root: expected a folder of images, got '.*/absent'$"):
        folder(tmp_path / "absent").check()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"data.root: .*got 'absent'; the absolute path is {tmp_path}/absent"):
        folder("absent").check()


def test_folders_that_do_not_fit_together_are_refused(image_root, tmp_path):
    with pytest.raises(ConfigError, match=r"data.root: expected images .*got none"):
        folder(tmp_path, train_folder=".", test_folder=".").check()
    with pytest.raises(ConfigError, match="same class subfolders"):
        folder(image_root, test_folder="train/ant").check()
    (tmp_path / "val" / "wasp").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "val" / "wasp" / "0.png")
    with pytest.raises(ConfigError, match=r"got \['wasp'\]"):
        folder(image_root, test_folder=str(tmp_path / "val")).check()
    (tmp_path / "mixed" / "ant").mkdir(parents=True)
    for name in ("stray.png", "ant/0.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / "mixed" / name)
    with pytest.raises(ConfigError, match=r"data.root: expected either images or class folders"):
        folder(image_root, test_folder=str(tmp_path / "mixed")).check()


@pytest.mark.parametrize("decoders", [0, 1])
def test_a_damaged_image_is_named(tmp_path, decoders):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(SecateurError, match=r"broken.png"):
        next(iter(folder(tmp_path, train_folder=".", test_folder=".", decoders=decoders).evaluation("test", 0, 1)))
