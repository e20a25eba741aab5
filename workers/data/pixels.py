"""The conversion of stored pixels to the input of a network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def to_input(images_NHWC: NDArray[np.generic], full_scale: float, channels: int, size: int) -> Tensor:
    """Returns images as float32 in [0, 1], grey repeated to ``channels``, resized bilinearly (with antialias) to ``size`` x ``size``."""
    images_NCHW = torch.from_numpy(images_NHWC.astype(np.float32) / np.float32(full_scale)).permute(0, 3, 1, 2)
    if tuple(images_NCHW.shape[-2:]) != (size, size):
        images_NCHW = functional.interpolate(images_NCHW, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return images_NCHW.expand(-1, channels, -1, -1).contiguous()


def augment(images_NCHW: Tensor, draws_ND: NDArray[np.float64], max_shift: int, flip: bool) -> Tensor:
    """Returns images shifted by up to ``max_shift`` pixels in each direction (filled with black), half of them mirrored if ``flip``."""
    height, width = images_NCHW.shape[-2:]
    if max_shift:
        padded = functional.pad(images_NCHW, [max_shift] * 4)
        shifts_N2 = (draws_ND[:, :2] * (2 * max_shift + 1)).astype(int).tolist()
        images_NCHW = torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, shifts_N2, strict=True)])
    if flip:
        mirrored_N = torch.from_numpy(draws_ND[:, 2] < 0.5)[:, None, None, None]
        images_NCHW = torch.where(mirrored_N, images_NCHW.flip(-1), images_NCHW)
    return images_NCHW


def moved(images_NCHW: Tensor, labels: Tensor, draws_ND: NDArray[np.float64] | None, max_shift: int, flip: bool) -> tuple[Tensor, Tensor]:
    """Returns images and labels after ``augment``; boxes are moved with the images. Without draws, nothing changes."""
    if draws_ND is None:
        return images_NCHW, labels
    boxes = labels.ndim == 3
    size = images_NCHW.shape[-1]
    return augment(images_NCHW, draws_ND, max_shift, flip), augment_boxes(labels, draws_ND, max_shift, flip, size) if boxes else labels


def scale_boxes(labels_NT5: Tensor, stored: tuple[int, ...], size: int) -> Tensor:
    """Returns the boxes in images of ``stored`` height and width after these are resized to ``size`` x ``size``."""
    height, width = stored
    return labels_NT5 * torch.tensor([1, size / width, size / height, size / width, size / height])


def augment_boxes(labels_NT5: Tensor, draws_ND: NDArray[np.float64], max_shift: int, flip: bool, size: int) -> Tensor:
    """Returns the boxes in images that ``augment`` moved by the same draws. Objects that are outside of their image are removed."""
    class_NT1, corners_NT4 = labels_NT5.split([1, 4], dim=2)
    if max_shift:
        up_N, left_N = torch.from_numpy((draws_ND[:, :2] * (2 * max_shift + 1)).astype(np.int64)).T
        shift_N4 = max_shift - torch.stack([left_N, up_N, left_N, up_N], dim=1)
        corners_NT4 = (corners_NT4 + shift_N4[:, None]).clamp(0, size)
    if flip:
        mirrored_N = torch.from_numpy(draws_ND[:, 2] < 0.5)[:, None, None]
        x1_NT1, y1_NT1, x2_NT1, y2_NT1 = corners_NT4.split(1, dim=2)
        corners_NT4 = torch.where(mirrored_N, torch.cat([size - x2_NT1, y1_NT1, size - x1_NT1, y2_NT1], dim=2), corners_NT4)
    inside_NT1 = (corners_NT4[..., 2:] > corners_NT4[..., :2]).all(2, keepdim=True)
    return torch.cat([class_NT1.where(inside_NT1, -1), corners_NT4], dim=2)


def normalise(images_NCHW: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Returns ``(x - mean) / std``, with one number for each channel or one for all."""
    return (images_NCHW - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
