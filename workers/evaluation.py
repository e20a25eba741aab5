"""The outputs of a model on data, and the metrics computed from them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median

import torch
from torch import Tensor, nn

from workers import average_precision
from workers.data.base import Batch
from workers.errors import SecateurError
from workers.losses import Loss, forward, loss_increase
from workers.models.base import Output
from workers.sparse import choices, sparse_model

NEIGHBOURS = 20
TEMPERATURE = 0.07
TIMINGS = 5
EMPTY: Mapping[str, nn.Module] = {}


@dataclass
class Pace:
    """Seconds of an evaluation: what it waited for ``samples`` images, and what it computed with them.

    The first batch does not count: processes that decode start while it waits.
    """

    samples: int = 0
    waited: float = 0.0
    computed: float = 0.0


@dataclass(frozen=True)
class Evaluated:
    """Logits (or features, or detections) and labels of all batches, and the images per second of models by name."""

    outputs: Tensor
    labels: Tensor
    speeds: dict[str, float]
    pace: Pace


@torch.inference_mode()
def outputs(model: nn.Module, batches: Iterator[Batch], device: torch.device, timed: Mapping[str, nn.Module] = EMPTY) -> Evaluated:
    """Returns what a model says about all batches, and the speeds of the ``timed`` models."""
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    speeds: dict[str, float] = {}
    pace, asked = Pace(), time.perf_counter()
    for batch in batches:
        arrived = time.perf_counter()
        images_NCHW = batch.images_NCHW.to(device)
        if timed and not speeds:
            speeds = dict(zip(timed, images_per_second(list(timed.values()), images_NCHW), strict=True))
        started = time.perf_counter()
        parts.append(readable(model, model(images_NCHW)).float().cpu())
        if labels:
            pace = Pace(pace.samples + len(batch.labels), pace.waited + arrived - asked, pace.computed + time.perf_counter() - started)
        labels.append(batch.labels)
        asked = time.perf_counter()
    return Evaluated(torch.cat(parts), torch.cat(labels), speeds, pace)


def require_finite(outputs: Tensor, split: str) -> None:
    """Raises: SecateurError if a model does not give numbers for some images, on which every metric would be wrong."""
    broken = int((~torch.isfinite(outputs.flatten(1))).any(1).sum())
    if broken:
        raise SecateurError(
            f"evaluate: expected finite outputs, got NaN or infinity for {broken} of {len(outputs)} {split} images; check the images, "
            "data.mean and data.std, and the checkpoint"
        )


def with_loading(paces: Sequence[Pace]) -> dict[str, float]:
    """Returns images per second with loading, and the share of the time that waited for images; empty if every part was one batch."""
    waited, computed = sum(pace.waited for pace in paces), sum(pace.computed for pace in paces)
    if not computed:
        return {}
    samples = sum(pace.samples for pace in paces)
    return {"loaded_images_per_second": samples / (waited + computed), "waiting": waited / (waited + computed)}


def timed_models(model: nn.Module, dense: nn.Module | None, device: torch.device) -> dict[str, nn.Module]:
    """Returns the models whose speed is measured in turn: a model, the dense one, and the first in the sparse runtime if it has zeros."""
    timed = {"images_per_second": model}
    if dense is not None:
        timed["dense_images_per_second"] = dense
        if device.type == "cpu" and choices(sparse := sparse_model(model)):
            timed["sparse_images_per_second"] = sparse
    return timed


def readable(model: nn.Module, outputs: Tensor) -> Tensor:
    """Returns the outputs in the form that is stored and evaluated: detections (N, D, 6) of a detector, all other outputs unchanged."""
    detections = getattr(model, "detections", None)
    return outputs if detections is None else detections(outputs)


def images_per_second(models: Sequence[nn.Module], images_NCHW: Tensor) -> list[float]:
    """Returns the throughput of each model alone, by the median of up to 5 forward passes (fewer if they take a second in all).

    The models run in turn, after one pass each to warm up, so that a machine whose speed drifts is equally fast for all of them.
    """
    for model in models:
        model(images_NCHW)
    seconds: list[list[float]] = [[] for _ in models]
    while len(seconds[0]) < TIMINGS and sum(seconds[0]) < 1.0:
        for model, own in zip(models, seconds, strict=True):
            _wait(images_NCHW.device)
            start = time.perf_counter()
            model(images_NCHW)
            _wait(images_NCHW.device)
            own.append(time.perf_counter() - start)
    return [len(images_NCHW) / median(own) for own in seconds]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def total_loss_increase(
    before: nn.Module, after: nn.Module, batches: Iterator[Batch], kind: Loss, device: torch.device
) -> tuple[float, int]:
    """Returns the real increase of the loss, summed over calibration batches, and the number of samples. Skips non-finite batches."""
    total, samples = 0.0, 0
    for batch in batches:
        images, labels = batch.images_NCHW.to(device), batch.labels.to(device)
        increase = float(loss_increase(kind, before, forward(kind, before, images), forward(kind, after, images), labels))
        if isfinite(increase):
            total, samples = total + increase, samples + len(labels)
    return total, samples


def of_outputs(kind: Output, outputs: Tensor, labels: Tensor, dense: Tensor) -> dict[str, float]:
    """Returns the metrics of ``readable`` outputs against the labels, and their ``agreement`` with those of the dense model.

    The agreement is the share of equal top-1 decisions of a classifier, the mean cosine of features, or the average precision of a detector
    with the sure detections of the dense model taken as true.
    """
    match kind:
        case Output.LOGITS:
            agreement = {"agreement": float((outputs.argmax(1) == dense.argmax(1)).double().mean())}
            return agreement | classification(outputs, labels) | changed_answers(outputs, labels, dense)
        case Output.FEATURES:
            return {"agreement": float(torch.nn.functional.cosine_similarity(outputs.double(), dense.double(), dim=1).mean())}
        case Output.BOXES:
            return average_precision.agreement(outputs, dense) | average_precision.precision(outputs, labels)


def classification(outputs_ND: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Returns top-1 and top-5 accuracy and the cross-entropy over the labelled samples, and their number; empty if there are none."""
    known = labels_N >= 0
    logits, labels = outputs_ND[known], labels_N[known]
    if not len(labels):
        return {}
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "top1": float(hits[:, 0].double().mean()),
        "top5": float(hits.any(1).double().mean()),
        "loss": float(torch.nn.functional.cross_entropy(logits.double(), labels)),
        "labelled_samples": float(len(labels)),
    }


def changed_answers(outputs_ND: Tensor, labels_N: Tensor, dense_ND: Tensor) -> dict[str, float]:
    """Returns how many samples the dense model alone gets right (``top1_lost``), and this model alone (``top1_gained``)."""
    known = labels_N >= 0
    if not known.any():
        return {}
    right, dense_right = (logits[known].argmax(1) == labels_N[known] for logits in (outputs_ND, dense_ND))
    return {"top1_lost": float((dense_right & ~right).sum()), "top1_gained": float((right & ~dense_right).sum())}


def nearest_neighbours(query_ND: Tensor, bank_ND: Tensor, bank_labels_N: Tensor) -> Tensor:
    """Returns the labels (N,) by weighted vote of the 20 nearest bank features (cosine, weights ``exp(cos / 0.07)``).

    Source: Wu et al. 2018 (arXiv 1805.01978), as used to evaluate DINO features.
    """
    bank = torch.nn.functional.normalize(bank_ND, dim=1)
    classes = int(bank_labels_N.max()) + 1
    votes = []
    for part in torch.nn.functional.normalize(query_ND, dim=1).split(1024):
        nearest = (part @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
        weights = (nearest.values / TEMPERATURE).exp()
        votes.append(torch.zeros(len(part), classes).scatter_add_(1, bank_labels_N[nearest.indices], weights).argmax(1))
    return torch.cat(votes)


def neighbour_accuracy(query_ND: Tensor, labels_N: Tensor, bank_ND: Tensor, bank_labels_N: Tensor) -> dict[str, float]:
    """Returns the k-NN accuracy of features over the labelled queries, and their number; empty if queries or bank have no labels."""
    known, bank_known = labels_N >= 0, bank_labels_N >= 0
    if not (known.any() and bank_known.any()):
        return {}
    predicted = nearest_neighbours(query_ND[known], bank_ND[bank_known], bank_labels_N[bank_known])
    return {"knn": float((predicted == labels_N[known]).double().mean()), "labelled_samples": float(known.sum())}
