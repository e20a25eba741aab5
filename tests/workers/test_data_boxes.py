"""Data sets whose labels are objects in boxes: scenes of Fashion-MNIST, COCO's layout, and arrays."""

import json

import numpy as np
import pytest
import torch
from data_cases import ARRAYS, BASE, arrays, coco, write_idx

from workers.data import scenes
from workers.data.scenes import FashionScenes
from workers.errors import ConfigError

SQUARE = {"image_size": 64, "channels": 1, "mean": [0.0], "std": [1.0], "max_shift": 0, "flip": False}


@pytest.fixture
def garments(tmp_path):
    """A folder like Fashion-MNIST's, of grey rectangles with a margin; returns it and their classes by grey value."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 30), ("t10k", 12)):
        labels_N = draw.integers(0, 10, count, dtype=np.uint8)
        images_NHW = np.zeros((count, 28, 28), np.uint8)
        for image_HW, label in zip(images_NHW, labels_N, strict=True):
            image_HW[4 : 20 + label % 4, 6 : 18 + label // 2] = 100 + 15 * label
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", images_NHW, False)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", labels_N, False)
    return tmp_path


def fashion_scenes(root, **changes):
    settings = {**BASE, **SQUARE, "root": str(root), "train_scenes": 40, "test_scenes": 10, "objects": 3, "smallest": 16, "largest": 32}
    return FashionScenes(**{**settings, **changes})


def test_every_box_of_a_scene_holds_a_garment_of_its_class_that_touches_all_four_sides(garments):
    data = fashion_scenes(garments)
    data.check()
    seen = 0
    for image_CHW, label_T5 in ((image, label) for batch in data.evaluation("test", 0, 1) for image, label in zip(*batch, strict=True)):
        objects_O5 = label_T5[label_T5[:, 0] >= 0]
        assert 1 <= len(objects_O5) <= 3
        covered_HW = torch.zeros(64, 64, dtype=torch.bool)
        for label, x1, y1, x2, y2 in objects_O5.int().tolist():
            inside_HW = image_CHW[0, y1:y2, x1:x2] * 255
            faint = scenes.FAINT
            assert all(bool((edge > faint).any()) for edge in (inside_HW[0], inside_HW[-1], inside_HW[:, 0], inside_HW[:, -1]))
            assert int(inside_HW.max()) >= 100 + 15 * label - 1  # garments laid over it may be brighter
            covered_HW[y1:y2, x1:x2] = True
            seen += 1
        assert not bool((image_CHW[0][~covered_HW]).any())
    assert seen > 10 and data.classes == 10 and data.has_boxes


def test_boxes_move_with_garments_that_are_shifted_and_mirrored_in_training(garments):
    """One garment in each scene: what is bright in the moved image is its box, or it has left."""
    data = fashion_scenes(garments, objects=1, max_shift=20, flip=True)
    (still,), (batch,) = fashion_scenes(garments, objects=1).train(0, 1, 0, 40), data.train(0, 1, 0, 40)
    assert not torch.equal(still.labels, batch.labels)
    for image_CHW, label_T5 in zip(*batch, strict=True):
        bright_HW = image_CHW[0] * 255 > scenes.FAINT
        rows, columns = bright_HW.any(1).nonzero()[:, 0], bright_HW.any(0).nonzero()[:, 0]
        if len(rows):
            assert label_T5[0, 1:].tolist() == [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        else:
            assert label_T5[0, 0] == -1


def test_scenes_are_the_same_everywhere_and_their_boxes_overlap_little(garments):
    from torchvision.ops import box_iou

    first, second = (fashion_scenes(garments, seed=seed).arrays() for seed in (0, 1))
    assert first.digest == second.digest and first.train_NHWC.shape == (40, 64, 64, 1)
    assert not np.array_equal(first.train_NHWC[:10], first.test_NHWC)
    for label_T5 in torch.from_numpy(first.train_labels):
        boxes_O4 = label_T5[label_T5[:, 0] >= 0, 1:]
        assert float(box_iou(boxes_O4, boxes_O4).triu(1).max()) <= scenes.OVERLAP + 1e-6
    assert first.digest != fashion_scenes(garments, largest=40).arrays().digest


def test_settings_of_scenes_that_cannot_be_are_refused(garments, tmp_path):
    with pytest.raises(ConfigError, match=r"data.largest: expected .*16 \(data.smallest\) to 64"):
        fashion_scenes(garments, largest=65)
    with pytest.raises(ConfigError, match=r"data.objects: expected at least 1"):
        fashion_scenes(garments, objects=0)
    with pytest.raises(ConfigError, match=r"dataset-fashion-mnist"):
        fashion_scenes(tmp_path / "nowhere").check()


# --- COCO's layout


def test_boxes_of_coco_are_stretched_with_their_images_and_crowds_left_out(photos):
    data = coco(photos)
    data.check()
    (batch,) = data.evaluation("bank", 0, 1)
    assert batch.images_NCHW.shape == (3, 3, 60, 60)
    assert [round(float(image.mean()) * 255) for image in batch.images_NCHW] == [50, 90, 130]
    assert batch.labels.tolist() == [
        [[3, 15, 15, 45, 45], [0, 45, 30, 60, 60]],
        [[-1, -60, -60, -60, -60]] * 2,
        [[-1, -60, -60, -60, -60]] * 2,
    ]
    assert data.classes == 4 and data.has_boxes and data.size("test") == 2


def test_training_images_and_boxes_move_together_and_do_not_depend_on_the_decoders(photos):
    (plain,), (moved,) = (list(coco(photos, max_shift=20, flip=True, decoders=n).train(0, 1, 0, 3)) for n in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))
    still = next(coco(photos).train(0, 1, 0, 3))
    assert not torch.equal(still.labels, moved.labels) and not torch.equal(still.images_NCHW, moved.images_NCHW)


def test_annotations_that_are_not_in_cocos_layout_are_named(photos):
    with pytest.raises(ConfigError, match=r"data.train_annotations: expected a JSON file .*nowhere.json"):
        coco(photos, train_annotations="nowhere.json").check()
    (photos / "bad.json").write_text('{"images": []}')
    with pytest.raises(ConfigError, match=r"data.test_annotations: expected COCO's layout, .*bad.json \(KeyError: 'categories'\)"):
        coco(photos, test_annotations="bad.json").check()
    (photos / "torn.json").write_text('{"images": [')
    twice = json.loads((photos / "train.json").read_text())
    twice["images"][1]["id"] = twice["images"][0]["id"]
    (photos / "twice.json").write_text(json.dumps(twice | {"annotations": []}))
    with pytest.raises(ConfigError, match=r"got 2 ids for 3 images"):
        coco(photos, train_annotations="twice.json").check()
    with pytest.raises(ConfigError, match=r"expected COCO's layout, .*torn.json"):
        coco(photos, train_annotations="torn.json").check()
    with pytest.raises(ConfigError, match=r"data.root \(train\): expected 118287 \(data.expected_train\), got 3"):
        coco(photos, expected_train=118287).check()
    (photos / "test" / "1.png").unlink()
    with pytest.raises(ConfigError, match=r"data.test_images: .*without 1.png"):
        coco(photos).check()


def test_a_plan_needs_no_photos(tmp_path):
    data = coco(tmp_path / "nowhere", expected_train=118287, expected_test=5000, expected_classes=90)
    assert (data.size("train"), data.size("test"), data.classes) == (118287, 5000, 90)


# --- arrays


def test_boxes_in_arrays_are_read_and_those_that_cannot_be_are_named(tmp_path):
    images, boxes = np.zeros((8, 16, 16), np.uint8), np.full((8, 2, 5), -1.0)
    boxes[:, 0] = [1, 2, 4, 10, 16]
    good = {"train_images": images, "test_images": images, "train_boxes": boxes, "test_boxes": boxes}

    def written(**changes):
        np.savez(tmp_path / "data.npz", **{name: value for name, value in {**good, **changes}.items() if value is not None})
        return arrays(tmp_path / "data.npz", **{**ARRAYS, "image_size": 32, "max_shift": 0, "flip": False})

    data = written()
    data.check()
    assert data.has_boxes and data.classes == 2
    assert next(data.evaluation("test", 0, 1)).labels[0].tolist() == [[1, 4, 8, 20, 32], [-1, -2, -2, -2, -2]]
    for changes, message in (
        ({"train_boxes": boxes[:4]}, r"train_boxes\): expected 8 x T x 5 numbers"),
        ({"test_boxes": np.where(boxes == 10, 17, boxes)}, r"test_boxes\): expected boxes with 0 <= x1 < x2 <= 16"),
        ({"test_boxes": np.where(boxes == 10, 2, boxes)}, r"test_boxes\): expected boxes with 0 <= x1 < x2 <= 16"),
        ({"test_boxes": None}, r"labels for both splits, boxes for both"),
        ({"test_boxes": np.where(boxes == 1, 5, boxes)}, r"test labels of at most 1, .* got 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            written(**changes).check()
