"""torchvision's SSD as a module with one output tensor, and its loss and detections as functions of that tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

NONE = -1  # class of padding


class Detector(nn.Module):
    """The backbone, extra layers and heads of ``ssd``, for normalised square images of ``image_size`` pixels.

    The output (N, A, 4 + C) holds four offsets and C class scores for each of A default boxes; the first score is that of the background.
    Names of tensors are torchvision's. The data set resizes and normalises the images. Loss and detections are computed by torchvision's
    ``SSD`` (Liu et al. 2016, arXiv 1512.02325).
    """

    def __init__(self, ssd: SSD, image_size: int) -> None:
        super().__init__()
        self.backbone, self.head = ssd.backbone, ssd.head
        self._image_size = image_size
        with torch.no_grad():
            maps = ssd.backbone.eval()(torch.zeros(1, 3, image_size, image_size))
        ssd.backbone.train()
        grids = [list(feature_map.shape[-2:]) for feature_map in maps.values()]
        ssd.backbone = ssd.head = ssd.transform = nn.Identity()
        self._ssd: Any = (ssd,)  # in a tuple, so that it is not a submodule: it has no tensors and is not called in a forward pass
        with torch.device("cpu"):
            middle_A2, side_A2 = ssd.anchor_generator._grid_default_boxes(grids, [image_size, image_size]).split(2, dim=1)
        self._default_boxes_A4 = torch.cat([middle_A2 - side_A2 / 2, middle_A2 + side_A2 / 2], dim=1) * image_size

    def forward(self, images_NCHW: Tensor) -> Tensor:
        outputs = self.head(list(self.backbone(images_NCHW).values()))
        return torch.cat([outputs["bbox_regression"], outputs["cls_logits"]], dim=2)

    def forward_features(self, images_NCHW: Tensor) -> Tensor:
        """Returns the features for losses of features: all outputs of the detector."""
        return self(images_NCHW)

    def label_loss(self, outputs_NAK: Tensor, labels_NT5: Tensor) -> Tensor:
        """Returns the smooth L1 loss of matched boxes plus the cross-entropy with three hard negatives for each match.

        Both are sums divided by the number of matches in the batch. ``labels_NT5``: class (from 0; -1: no object) and corners x1, y1, x2,
        y2 in pixels.
        """
        (ssd,), boxes_A4 = self._ssd, self._default_boxes_A4.to(outputs_NAK.device)
        targets, matches = [], []
        for label_T5 in labels_NT5:
            object_O5 = label_T5[label_T5[:, 0] != NONE].to(outputs_NAK.device)
            targets.append({"boxes": object_O5[:, 1:], "labels": object_O5[:, 0].long() + 1})
            unmatched_A = torch.full((len(boxes_A4),), NONE, device=boxes_A4.device)
            matches.append(ssd.proposal_matcher(box_iou(object_O5[:, 1:], boxes_A4)) if len(object_O5) else unmatched_A)
        return sum(ssd.compute_loss(targets, _named(outputs_NAK), [boxes_A4] * len(targets), matches).values())

    @torch.no_grad()
    def detections(self, outputs_NAK: Tensor) -> Tensor:
        """Returns detections after non-maximum suppression, (N, D, 6): class (-1: padding), score, and corners in pixels, best first."""
        (ssd,), boxes_A4 = self._ssd, self._default_boxes_A4.to(outputs_NAK.device)
        sizes = [(self._image_size, self._image_size)] * len(outputs_NAK)
        rows = []
        for objects in ssd.postprocess_detections(_named(outputs_NAK), [boxes_A4] * len(sizes), sizes):
            object_O6 = torch.cat([objects["labels"][:, None] - 1, objects["scores"][:, None], objects["boxes"]], dim=1)
            padding_P6 = object_O6.new_tensor([NONE, 0, 0, 0, 0, 0]).expand(ssd.detections_per_img - len(object_O6), 6)
            rows.append(torch.cat([object_O6, padding_P6]))
        return torch.stack(rows)


def _named(outputs_NAK: Tensor) -> dict[str, Tensor]:
    return {"bbox_regression": outputs_NAK[..., :4], "cls_logits": outputs_NAK[..., 4:]}
