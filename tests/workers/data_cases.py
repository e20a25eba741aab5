"""Small data sets, and checks of their batches, for the tests of data."""

import gzip

import numpy as np
import torch
from PIL import Image

from workers.data.coco import Coco
from workers.data.digits import Digits
from workers.data.examine import Broken, Examine
from workers.data.imagefiles import Augmentation, Interpolation
from workers.data.imagefolder import ImageFolder
from workers.data.npz import Arrays

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
    "background": [1.0],
    "upright": True,
    "augmentation": Augmentation.LIGHT,
    "decoders": 0,
    "train_folder": "train",
    "test_folder": "val",
    "expected_train": None,
    "expected_test": None,
    "expected_classes": None,
    "class_map": None,
    "broken": Broken.ERROR,
    "examine": Examine.ENDS,
}
PLAIN = {"mean": [0.0], "std": [1.0], "augmentation": Augmentation.NONE, "calibration_batch_size": 2, "calibration_batches": 3}


def digits(**changes):
    return Digits(**{**BASE, **ARRAYS, **changes})


def arrays(path, **changes):
    return Arrays(**{**BASE, **ARRAYS, "image_size": 8, "max_shift": 0, "flip": False, "path": str(path), **changes})


def folder(root, **changes):
    return ImageFolder(**{**BASE, **FILES, "root": str(root), **changes})


def joined(batches):
    collected = list(batches)
    if not collected:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    return torch.cat([batch.images_NCHW for batch in collected]), torch.cat([batch.labels for batch in collected])


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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
    pairs = {(bool(image.mean() > 0.5), int(label)) for images, labels in batches for image, label in zip(images, labels, strict=True)}
    assert len(pairs) == 2, "each class has one number, everywhere"
    return [label for _, label in sorted(pairs)]


def write_idx(path, array, compressed):
    content = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.with_name(path.name + ".gz" * compressed).write_bytes(gzip.compress(content) if compressed else content)


def coco(root, **changes):
    names = {f"{split}_images": split for split in ("train", "test")} | {
        f"{split}_annotations": f"{split}.json" for split in ("train", "test")
    }
    numbers = {"expected_train": None, "expected_test": None, "expected_classes": None, "decoders": 0, "background": [1.0]}
    numbers |= {"broken": Broken.ERROR, "examine": Examine.ENDS}
    settings = {**BASE, "image_size": 60, "mean": [0.0], "std": [1.0], "max_shift": 0, "flip": False, "root": str(root), **names, **numbers}
    return Coco(**{**settings, "calibration_batches": 3, "calibration_batch_size": 1, **changes})
