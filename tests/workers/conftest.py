"""Fixtures that several tests of workers share."""

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
