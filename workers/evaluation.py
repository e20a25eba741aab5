"""What a model does on data it was not calibrated on, and metrics of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor, nn

from workers import average_precision
from workers.data.base import Batch
from workers.losses import Loss, forward, loss_increase
from workers.models.base import Output

NEIGHBOURS = 20
TEMPERATURE = 0.07
TIMINGS = 5


@torch.inference_mode()
def outputs(model: nn.Module, batches: Iterator[Batch], timed: bool, device: torch.device) -> tuple[Tensor, Tensor, float | None]:
    """Logits (or features, or detections) of all batches, their labels, and if ``timed`` the images per second of the model alone."""
    found, labels, speed = [], [], None
    for batch in batches:
        images_NCHW = batch.images_NCHW.to(device)
        if timed and speed is None:
            speed = images_per_second(model, images_NCHW)
        found.append(readable(model, model(images_NCHW)).float().cpu())
        labels.append(batch.labels)
    return torch.cat(found), torch.cat(labels), speed


def readable(model: nn.Module, outputs: Tensor) -> Tensor:
    """What is stored of a model's outputs and judged: a detector's as detections (N, D, 6), all others as they are."""
    detections = getattr(model, "detections", None)
    return outputs if detections is None else detections(outputs)


def images_per_second(model: nn.Module, images_NCHW: Tensor) -> float:
    """By the median of up to 5 forward passes (fewer once they take a second in all), after one to warm up."""
    seconds: list[float] = []
    model(images_NCHW)
    while len(seconds) < TIMINGS and sum(seconds) < 1.0:
        _wait(images_NCHW.device)
        start = time.perf_counter()
        model(images_NCHW)
        _wait(images_NCHW.device)
        seconds.append(time.perf_counter() - start)
    return len(images_NCHW) / median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def total_loss_increase(
    before: nn.Module, after: nn.Module, batches: Iterator[Batch], kind: Loss, device: torch.device
) -> tuple[float, int]:
    """The real rise of the loss summed over calibration batches, and the number of their samples. Non-finite batches are left out."""
    total, samples = 0.0, 0
    for batch in batches:
        images, labels = batch.images_NCHW.to(device), batch.labels.to(device)
        rise = float(loss_increase(kind, before, forward(kind, before, images), forward(kind, after, images), labels))
        if rise == rise and abs(rise) != float("inf"):
            total, samples = total + rise, samples + len(labels)
    return total, samples


def of_outputs(kind: Output, outputs: Tensor, labels: Tensor, dense: Tensor) -> dict[str, float]:
    """Metrics of ``readable`` outputs beside the labels, and beside those of the dense model (``agreement``): equal top-1 decisions of a
    classifier, mean cosine of features, or average precision of a detector where what the dense model is sure of is the truth.
    """
    match kind:
        case Output.LOGITS:
            return {"agreement": float((outputs.argmax(1) == dense.argmax(1)).double().mean())} | classification(outputs, labels)
        case Output.FEATURES:
            return {"agreement": float(torch.nn.functional.cosine_similarity(outputs.double(), dense.double(), dim=1).mean())}
        case Output.BOXES:
            return average_precision.agreement(outputs, dense) | average_precision.precision(outputs, labels)


def classification(outputs_ND: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Top-1, top-5 and cross-entropy over the labelled samples."""
    known = labels_N >= 0
    logits, labels = outputs_ND[known], labels_N[known]
    if not len(labels):
        return {}
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "top1": float(hits[:, 0].double().mean()),
        "top5": float(hits.any(1).double().mean()),
        "loss": float(torch.nn.functional.cross_entropy(logits.double(), labels)),
    }


def nearest_neighbours(query_ND: Tensor, bank_ND: Tensor, bank_labels_N: Tensor) -> Tensor:
    """Labels by weighted vote of the 20 nearest bank features (cosine, weights ``exp(cos / 0.07)``), ``(N,)``.

    Source: Wu et al. 2018 (arXiv 1805.01978), as used to judge DINO features.
    """
    bank = torch.nn.functional.normalize(bank_ND, dim=1)
    classes = int(bank_labels_N.max()) + 1
    votes = []
    for part in torch.nn.functional.normalize(query_ND, dim=1).split(1024):
        near = (part @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
        weights = (near.values / TEMPERATURE).exp()
        votes.append(torch.zeros(len(part), classes).scatter_add_(1, bank_labels_N[near.indices], weights).argmax(1))
    return torch.cat(votes)


def neighbour_accuracy(query_ND: Tensor, labels_N: Tensor, bank_ND: Tensor, bank_labels_N: Tensor) -> dict[str, float]:
    """k-NN accuracy of features over the labelled queries; nothing if either side has no labels."""
    known, bank_known = labels_N >= 0, bank_labels_N >= 0
    if not (known.any() and bank_known.any()):
        return {}
    found = nearest_neighbours(query_ND[known], bank_ND[bank_known], bank_labels_N[bank_known])
    return {"knn": float((found == labels_N[known]).double().mean())}
