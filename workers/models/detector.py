"""torchvision's SSD as a module from images to one tensor, with its loss and its detections as functions of that tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

NONE = -1  # class of what only fills up a tensor


class Detector(nn.Module):
    """Backbone, extra layers and heads of ``ssd``, for normalised square images of ``image_size`` pixels.

    The output (N, A, 4 + C) holds for each of A default boxes four offsets and C class scores, the first of them the background's. Names
    of tensors are torchvision's; resizing and normalising images is left to the data. Source of loss and detections: torchvision's ``SSD``
    (Liu et al. 2016, arXiv 1512.02325), which carries them out.
    """

    def __init__(self, ssd: SSD, image_size: int) -> None:
        super().__init__()
        self.backbone, self.head = ssd.backbone, ssd.head
        self._image_size = image_size
        with torch.no_grad():
            maps = ssd.backbone.eval()(torch.zeros(1, 3, image_size, image_size))
        ssd.backbone.train()
        grids = [list(found.shape[-2:]) for found in maps.values()]
        ssd.backbone = ssd.head = ssd.transform = nn.Identity()
        self._rules: Any = (ssd,)  # no child: it has no tensors, and what is called in a forward pass is above
        with torch.device("cpu"):
            middle_A2, side_A2 = ssd.anchor_generator._grid_default_boxes(grids, [image_size, image_size]).split(2, dim=1)
        self._default_boxes_A4 = torch.cat([middle_A2 - side_A2 / 2, middle_A2 + side_A2 / 2], dim=1) * image_size

    def forward(self, images_NCHW: Tensor) -> Tensor:
        found = self.head(list(self.backbone(images_NCHW).values()))
        return torch.cat([found["bbox_regression"], found["cls_logits"]], dim=2)

    def forward_features(self, images_NCHW: Tensor) -> Tensor:
        """What losses of features look at: all that a detector says."""
        return self(images_NCHW)

    def label_loss(self, outputs_NAK: Tensor, labels_NT5: Tensor) -> Tensor:
        """Smooth L1 of matched boxes and cross-entropy with three hard negatives to each, over the number of matches in the batch.

        ``labels_NT5``: class (from 0, -1: no object) and corners x1, y1, x2, y2 in pixels.
        """
        (ssd,), boxes_A4 = self._rules, self._default_boxes_A4.to(outputs_NAK.device)
        targets, matches = [], []
        for label_T5 in labels_NT5:
            object_O5 = label_T5[label_T5[:, 0] != NONE].to(outputs_NAK.device)
            targets.append({"boxes": object_O5[:, 1:], "labels": object_O5[:, 0].long() + 1})
            nothing_A = torch.full((len(boxes_A4),), NONE, device=boxes_A4.device)
            matches.append(ssd.proposal_matcher(box_iou(object_O5[:, 1:], boxes_A4)) if len(object_O5) else nothing_A)
        return sum(ssd.compute_loss(targets, _named(outputs_NAK), [boxes_A4] * len(targets), matches).values())

    @torch.no_grad()
    def detections(self, outputs_NAK: Tensor) -> Tensor:
        """After suppressing what overlaps: (N, D, 6) with class, score and corners in pixels, best first; class -1 fills up."""
        (ssd,), boxes_A4 = self._rules, self._default_boxes_A4.to(outputs_NAK.device)
        sizes = [(self._image_size, self._image_size)] * len(outputs_NAK)
        rows = []
        for found in ssd.postprocess_detections(_named(outputs_NAK), [boxes_A4] * len(sizes), sizes):
            found_O6 = torch.cat([found["labels"][:, None] - 1, found["scores"][:, None], found["boxes"]], dim=1)
            filling_F6 = found_O6.new_tensor([NONE, 0, 0, 0, 0, 0]).expand(ssd.detections_per_img - len(found_O6), 6)
            rows.append(torch.cat([found_O6, filling_F6]))
        return torch.stack(rows)


def _named(outputs_NAK: Tensor) -> dict[str, Tensor]:
    return {"bbox_regression": outputs_NAK[..., :4], "cls_logits": outputs_NAK[..., 4:]}
