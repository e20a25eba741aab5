"""How good detections are, as COCO judges them, by pycocotools (its one door)."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from torch import Tensor

SURE = 0.5  # score from which a detection of the dense model is taken for the truth


def precision(detections_ND6: Tensor, labels_NT5: Tensor) -> dict[str, float]:
    """``map``: average precision, mean over classes and ten overlaps from 0.5 to 0.95; ``map50``: at 0.5 alone.

    Source: Lin et al. 2014 (arXiv 1405.0312), for boxes of any size and up to 100 detections an image. Overlaps do not change when an image
    is stretched to a square. Nothing if no image has an object.
    """
    if labels_NT5.ndim != 3 or not bool((labels_NT5[..., 0] >= 0).any()):
        return {}
    precision_T = _by_overlap(detections_ND6.double().numpy(), labels_NT5.double().numpy())
    return {"map": float(precision_T.mean()), "map50": float(precision_T[0])}


def agreement(detections_ND6: Tensor, dense_ND6: Tensor) -> dict[str, float]:
    """``agreement``: average precision at an overlap of 0.5 if what the dense model is sure of (score from 0.5) were the truth."""
    objects_NT5 = dense_ND6[..., [0, 2, 3, 4, 5]].clone()
    objects_NT5[..., 0] = objects_NT5[..., 0].where(dense_ND6[..., 1] >= SURE, -1)
    found = precision(detections_ND6, objects_NT5)
    return {"agreement": found["map50"]} if found else {}


def _by_overlap(detections_ND6: np.ndarray[Any, Any], labels_NT5: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over classes for each of the ten overlaps."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    image_M, at_M = np.nonzero(detections_ND6[..., 0] >= 0)
    found_M6 = detections_ND6[image_M, at_M]
    if not len(found_M6):
        return np.zeros(10)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(labels_NT5))],
        "categories": [{"id": label} for label in range(int(max(labels_NT5[..., 0].max(), found_M6[:, 0].max())) + 1)],
        "annotations": [
            {
                "id": number,
                "image_id": int(image),
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, (image, at) in enumerate(np.argwhere(labels_NT5[..., 0] >= 0), 1)
            for label, x1, y1, x2, y2 in [labels_NT5[image, at]]
        ],
    }
    label_M, score_M, corners_M4 = found_M6[:, 0], found_M6[:, 1], found_M6[:, 2:]
    sides_M2 = corners_M4[:, 2:] - corners_M4[:, :2]
    with redirect_stdout(StringIO()):
        truth.createIndex()
        rows_M7 = np.column_stack([image_M, corners_M4[:, :2], sides_M2, score_M, label_M])
        judged = COCOeval(truth, truth.loadRes(rows_M7), "bbox")
        judged.evaluate()
        judged.accumulate()
    precision_TRK = judged.eval["precision"][..., 0, -1]
    return precision_TRK[..., precision_TRK[0, 0] > -1].mean(axis=(1, 2))
