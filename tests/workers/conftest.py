"""Fixtures that several tests of workers share."""

import json

import numpy as np
import pytest
from data_cases import picture
from PIL import Image


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


@pytest.fixture
def pets(tmp_path):
    """Two classes, told apart by their brightness: cats are dark, dogs are bright; 3 training and 2 test images of each."""
    for split, count in (("train", 3), ("val", 2)):
        for name, grey in (("cat", 50), ("dog", 200)):
            for number in range(count):
                picture(tmp_path / "pets" / split / name / f"{number}.png", grey + number)
    return tmp_path / "pets"


@pytest.fixture
def photos(tmp_path):
    """Three images of other shapes for training, two for testing; categories 1 and 4; a crowd, a box that leaves its image, and one without
    extent."""
    for split, sizes in (("train", [(40, 20), (30, 30), (20, 60)]), ("test", [(50, 50), (20, 40)])):
        (tmp_path / split).mkdir()
        images = []
        for number, (width, height) in enumerate(sizes):
            grey_HW = np.full((height, width), 40 * number + 50, np.uint8)
            Image.fromarray(grey_HW).convert("RGB").save(tmp_path / split / f"{number}.png")
            images.append({"id": 100 + number, "file_name": f"{number}.png", "width": width, "height": height})
        annotations = [
            {"image_id": 100, "category_id": 4, "bbox": [10, 5, 20, 10], "iscrowd": 0},
            {"image_id": 100, "category_id": 1, "bbox": [30, 10, 20, 20], "iscrowd": 0},  # 10 pixels are outside
            {"image_id": 101, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
            {"image_id": 101, "category_id": 1, "bbox": [3, 3, 0, 5], "iscrowd": 0},
        ]
        described = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(described))
    return tmp_path
