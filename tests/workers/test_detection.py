"""Detectors against torchvision with the same weights, and a detector without units against the one with them silenced."""

import numpy as np
import pytest
import torch
import torchvision
from structure_cases import assert_the_same_without_units, half, on_meta, one
from torch import nn

from workers import average_precision
from workers.data.pixels import augment, augment_boxes, scale_boxes
from workers.data.sampling import DRAWS
from workers.errors import ConfigError
from workers.evaluation import readable
from workers.export import load_pruned, save_model
from workers.losses import Loss, calibration_loss, label_loss, labelled, loss_increase
from workers.models.base import Output
from workers.models.detection import DetectionModel

LITE, VGG = "ssdlite320_mobilenet_v3_large", "ssd300_vgg16"


def family(name=LITE, image_size=96, checkpoint=None, include=("*",), stem_and_head=False, **arguments):
    where = None if checkpoint is None else str(checkpoint)
    return DetectionModel(where, name, {"num_classes": 5} | arguments, list(include), [], stem_and_head, image_size=image_size)


def objects(*entries, most=3):
    """Labels of images: for each a list of (class, x1, y1, x2, y2)."""
    labels_NT5 = torch.full((len(entries), most, 5), -1.0)
    for row_T5, boxes in zip(labels_NT5, entries, strict=True):
        if boxes:
            row_T5[: len(boxes)] = torch.tensor(boxes, dtype=torch.float32)
    return labels_NT5


@pytest.fixture(params=[LITE, pytest.param(VGG, marks=pytest.mark.slow)])
def both(request):
    """Our model and torchvision's with equal weights, for images that torchvision neither resizes nor normalises, and such images."""
    torch.manual_seed(0)
    size = 320 if request.param == LITE else 300
    ours = family(request.param, size).build().eval()
    with torch.no_grad():
        for parameter in ours.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "score_thresh": 0.2}
    theirs = getattr(torchvision.models.detection, request.param)(weights=None, weights_backbone=None, num_classes=5, **plain)
    theirs.load_state_dict(ours.state_dict())
    ours._ssd[0].score_thresh = 0.2
    return ours, theirs.eval(), torch.rand(3, 3, size, size)


def test_the_loss_of_labels_is_torchvisions(both):
    """With several objects, with one, and with none."""
    ours, theirs, images_NCHW = both
    entries = ([(0, 10, 20, 200, 180), (3, 150, 150, 280, 290)], [(2, 100, 5, 140, 60)], [])
    targets = [
        {
            "boxes": torch.tensor([part[1:] for part in boxes], dtype=torch.float32).view(-1, 4),
            "labels": torch.tensor([int(part[0]) + 1 for part in boxes], dtype=torch.int64),
        }
        for boxes in entries
    ]
    theirs.training = True  # of the detector alone: norms keep their running statistics
    with torch.no_grad():
        expected = sum(theirs(list(images_NCHW), targets).values())
        outputs_NAK = ours(images_NCHW)
        actual = label_loss(ours, outputs_NAK, objects(*entries))
    assert float(actual) == pytest.approx(float(expected), rel=1e-5) and float(actual) > 1
    assert float(calibration_loss(Loss.LABELS, ours, outputs_NAK, objects(*entries), 0)) == float(actual)


def test_detections_are_torchvisions(both):
    ours, theirs, images_NCHW = both
    with torch.no_grad():
        expected, found_ND6 = theirs(list(images_NCHW)), readable(ours, ours(images_NCHW))
    assert sum(len(entry["scores"]) for entry in expected) > 10
    for entry, found_D6 in zip(expected, found_ND6, strict=True):
        count = len(entry["scores"])
        torch.testing.assert_close(found_D6[:count, 2:], entry["boxes"], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found_D6[:count, 1], entry["scores"])
        assert torch.equal(found_D6[:count, 0], entry["labels"].float() - 1) and bool((found_D6[count:, 0] == -1).all())


def test_a_loss_increase_is_that_of_the_loss_times_the_images():
    torch.manual_seed(0)
    model, labels_NT5 = family().build().eval(), objects([(1, 5, 5, 60, 60)], [])
    with torch.no_grad():
        dense_NAK = model(torch.rand(2, 3, 96, 96))
        pruned_NAK = dense_NAK + 0.1 * torch.randn_like(dense_NAK)
    actual = loss_increase(Loss.LABELS, model, dense_NAK, pruned_NAK, labels_NT5)
    expected = 2 * (model.label_loss(pruned_NAK, labels_NT5) - model.label_loss(dense_NAK, labels_NT5))
    assert float(actual) == pytest.approx(float(expected), rel=1e-4)
    assert labelled(labels_NT5).tolist() == [True, True] and labelled(torch.tensor([3, -1])).tolist() == [True, False]


@pytest.mark.parametrize("choose", [half, pytest.param(one, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "size"), [(LITE, 96), pytest.param(VGG, 300, marks=pytest.mark.slow)])
def test_a_detector_without_units_is_the_detector_with_them_silenced(name, size, choose):
    """Of backbone and extra layers, and with what the heads read of them."""
    assert_the_same_without_units(family(name, size), size, choose)


def test_groups_reach_from_the_stem_to_the_last_extra_layer_without_the_outputs_of_the_heads():
    model = family().build()
    groups = on_meta(family(), 96)
    assert {group.name.split(".")[1] for group in groups} == {"features", "extra"}
    assert {f"backbone.extra.{number}.2.0" for number in range(4)} <= {group.name for group in groups}
    cut = {part.tensor.removesuffix(".weight") for group in groups for part in group.produced if part.tensor.endswith(".weight")}
    leaving = {f"head.{branch}_head.module_list.{level}.1" for branch in ("classification", "regression") for level in range(6)}
    assert not cut & leaving and all(isinstance(model.get_submodule(name), nn.Conv2d) for name in leaving)
    layers = {layer.name for layer in family().layers(model)}
    assert not layers & leaving and leaving <= {layer.name for layer in family(stem_and_head=True).layers(model)}


def test_a_detector_is_loaded_from_its_file_and_detects(tmp_path):
    torch.manual_seed(0)
    made = family()
    model = made.build().eval()
    save_model(tmp_path / "model", made, model.state_dict(), {})
    loaded, images_NCHW = load_pruned(tmp_path / "model"), torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images_NCHW), model(images_NCHW))
        assert loaded.detections(loaded(images_NCHW)).shape == (2, 300, 6)
    assert made.output is Output.BOXES and made.fixed_size == 96


def test_a_detector_is_what_torchvision_builds():
    torch.manual_seed(3)
    ours = family().build()
    torch.manual_seed(3)
    theirs = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state) and all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    assert all(module.training for module in ours.modules())


def test_a_checkpoint_of_torchvision_fits_and_another_number_of_classes_is_refused(tmp_path):
    theirs = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    state = family(checkpoint=tmp_path / "w.pth").pretrained_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    with pytest.raises(ConfigError, match=r"model.checkpoint: .* does not fit the model"):
        family(checkpoint=tmp_path / "w.pth", num_classes=7).pretrained_state()


def test_other_detectors_are_refused():
    with pytest.raises(
        ConfigError, match=r"model.name: expected an architecture of .*single-shot detection, got 'fasterrcnn_resnet50_fpn'"
    ):
        family("fasterrcnn_resnet50_fpn").check()
    with pytest.raises(ConfigError, match=r"did you mean ssd300_vgg16"):
        family("ssd300_vgg").check()
    with pytest.raises(ConfigError, match=r"model.arguments.size: expected"):
        family(size=(64, 64))
    with pytest.raises(ConfigError, match=r"num_classes: expected at least 2"):
        family(num_classes=1)
    with pytest.raises(ConfigError, match=r"model.arguments.depth: expected one of num_classes, "):
        family(depth=3)


# --- boxes that move with their images


@pytest.mark.parametrize("seed", range(4))
def test_boxes_move_with_the_pixels_that_they_hold(seed):
    """The extent of a white rectangle in the moved image is its box; there is no box if it is outside."""
    draw = np.random.default_rng(seed)
    corners_N4 = np.stack([np.sort(draw.integers(0, 33, (2, 2)), axis=0).reshape(4) for _ in range(64)])
    corners_N4[:, 2:] = np.maximum(corners_N4[:, 2:], corners_N4[:, :2] + 1)
    images_NCHW = torch.zeros(64, 1, 34, 34)
    for image_HW, (x1, y1, x2, y2) in zip(images_NCHW[:, 0], corners_N4, strict=True):
        image_HW[y1:y2, x1:x2] = 1
    labels_NT5 = torch.cat([torch.full((64, 1, 1), 2.0), torch.from_numpy(corners_N4).float()[:, None]], dim=2)
    draws_ND = draw.random((64, DRAWS))
    moved_NCHW = augment(images_NCHW, draws_ND, 8, True)
    for image_HW, (label, *box) in zip(moved_NCHW[:, 0], augment_boxes(labels_NT5, draws_ND, 8, True, 34)[:, 0].tolist(), strict=True):
        rows, columns = image_HW.any(1).nonzero()[:, 0], image_HW.any(0).nonzero()[:, 0]
        if len(rows):
            assert (label, *box) == (2, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        else:
            assert label == -1


def test_boxes_are_stretched_with_their_images():
    actual = scale_boxes(torch.tensor([[[3.0, 10, 20, 30, 40]]]), (40, 60), 120)
    assert actual.tolist() == [[[3.0, 20.0, 60.0, 60.0, 120.0]]]


# --- average precision


def detections(labels_NT5, score=0.9):
    scores_NT1 = torch.where(labels_NT5[..., :1] >= 0, score, 0.0)
    return torch.cat([labels_NT5[..., :1], scores_NT1, labels_NT5[..., 1:]], dim=2)


def test_average_precision_of_cases_that_are_known_by_hand():
    truth_NT5 = objects([(0, 10, 10, 50, 50), (1, 40, 40, 80, 80)], [(0, 0, 0, 30, 60)], [])
    assert average_precision.precision(detections(truth_NT5), truth_NT5) == {"map": pytest.approx(1), "map50": pytest.approx(1)}
    wide_NT5 = truth_NT5.clone()
    wide_NT5[..., 3] += (truth_NT5[..., 3] - truth_NT5[..., 1]) * 0.6  # overlaps of 1 / 1.6 = 0.625: good enough for 0.5, 0.55 and 0.6
    assert average_precision.precision(detections(wide_NT5), truth_NT5) == {"map": pytest.approx(0.3), "map50": pytest.approx(1)}
    wrong_NT5 = truth_NT5.clone()
    wrong_NT5[..., 0] = torch.where(truth_NT5[..., 0] >= 0, 1 - truth_NT5[..., 0], -1)
    assert average_precision.precision(detections(wrong_NT5), truth_NT5)["map50"] == 0
    assert average_precision.precision(detections(objects([], [], [])), truth_NT5) == {"map": 0, "map50": 0}
    assert average_precision.precision(detections(truth_NT5), objects([], [], [])) == {}
    assert average_precision.precision(detections(truth_NT5), torch.full((3,), -1)) == {}


def test_average_precision_of_one_class_is_the_interpolated_area_written_out():
    """Hits and misses by score are all there is to it: the mean over 101 recalls of the best precision at that recall or a higher one."""
    draw = np.random.default_rng(0)
    truth_NT5 = objects(*([(0, 0, 0, 20, 20)] for _ in range(20)), most=1)
    hit_N, score_N = draw.random(20) < 0.6, draw.random(20)
    found_NT5 = truth_NT5.clone()
    found_NT5[~torch.from_numpy(hit_N)] += torch.tensor([0.0, 60, 60, 60, 60])
    found_NT6 = detections(found_NT5)
    found_NT6[:, 0, 1] = torch.from_numpy(score_N).float()
    hits_N = hit_N[np.argsort(-score_N)].cumsum()
    recall_N, precision_N = hits_N / 20, hits_N / np.arange(1, 21)
    expected = np.mean([precision_N[recall_N >= level - 1e-9].max(initial=0) for level in np.linspace(0, 1, 101)])
    assert average_precision.precision(found_NT6, truth_NT5)["map50"] == pytest.approx(expected, abs=1e-6)


def test_agreement_is_precision_with_the_sure_detections_of_the_dense_model_as_truth():
    truth_NT5 = objects([(0, 10, 10, 50, 50), (1, 40, 40, 80, 80)], [(2, 0, 0, 30, 60)])
    dense_ND6 = detections(truth_NT5)
    dense_ND6[0, 1, 1] = 0.4  # not sure
    assert average_precision.agreement(dense_ND6, dense_ND6) == {"agreement": pytest.approx(1)}
    only_ND6 = dense_ND6.clone()
    only_ND6[0] = -1
    assert average_precision.agreement(only_ND6, dense_ND6) == {"agreement": pytest.approx(0.5)}  # one of two classes
    assert average_precision.agreement(dense_ND6, detections(truth_NT5, score=0.3)) == {}
