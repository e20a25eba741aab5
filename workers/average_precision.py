"""Average precision of detections by COCO's rules. No other module imports pycocotools."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from torch import Tensor

SURE = 0.5  # from this score on, a detection of the dense model is taken as true


def precision(detections_ND6: Tensor, labels_NT5: Tensor) -> dict[str, float]:
    """Returns ``map``, the average precision as mean over classes and ten overlaps from 0.5 to 0.95, and ``map50``, at 0.5 alone.

    Empty if no image has an object. Overlaps do not change when an image is stretched to a square.
    Source: Lin et al. 2014 (arXiv 1405.0312), for boxes of any size and up to 100 detections in an image.
    """
    if labels_NT5.ndim != 3 or not bool((labels_NT5[..., 0] >= 0).any()):
        return {}
    precision_T = _by_overlap(detections_ND6.double().numpy(), labels_NT5.double().numpy())
    return {"map": float(precision_T.mean()), "map50": float(precision_T[0])}


def agreement(detections_ND6: Tensor, dense_ND6: Tensor) -> dict[str, float]:
    """Returns ``agreement``: the average precision at an overlap of 0.5, with the sure detections of the dense model taken as true."""
    objects_NT5 = dense_ND6[..., [0, 2, 3, 4, 5]].clone()
    objects_NT5[..., 0] = objects_NT5[..., 0].where(dense_ND6[..., 1] >= SURE, -1)
    metrics = precision(detections_ND6, objects_NT5)
    return {"agreement": metrics["map50"]} if metrics else {}


def _by_overlap(detections_ND6: np.ndarray[Any, Any], labels_NT5: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns the mean precision over classes for each of the ten overlaps."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    image_M, row_M = np.nonzero(detections_ND6[..., 0] >= 0)
    detections_M6 = detections_ND6[image_M, row_M]
    if not len(detections_M6):
        return np.zeros(10)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(labels_NT5))],
        "categories": [{"id": label} for label in range(int(max(labels_NT5[..., 0].max(), detections_M6[:, 0].max())) + 1)],
        "annotations": [
            {
                "id": number,
                "image_id": int(image),
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, (image, row) in enumerate(np.argwhere(labels_NT5[..., 0] >= 0), 1)
            for label, x1, y1, x2, y2 in [labels_NT5[image, row]]
        ],
    }
    label_M, score_M, corners_M4 = detections_M6[:, 0], detections_M6[:, 1], detections_M6[:, 2:]
    sides_M2 = corners_M4[:, 2:] - corners_M4[:, :2]
    with redirect_stdout(StringIO()):
        truth.createIndex()
        rows_M7 = np.column_stack([image_M, corners_M4[:, :2], sides_M2, score_M, label_M])
        evaluation = COCOeval(truth, truth.loadRes(rows_M7), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRK = evaluation.eval["precision"][..., 0, -1]
    return precision_TRK[..., precision_TRK[0, 0] > -1].mean(axis=(1, 2))
