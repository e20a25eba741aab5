"""Calibration losses: what the Fisher is the curvature of, and how much a pruned model really loses by the same measure."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


class Loss(Enum):
    """Whose second moment of gradients is collected."""

    LABELS = "labels"  # the loss of the given labels (cross-entropy, or the detector's own): the empirical Fisher, as in the CAP paper
    SAMPLED = "sampled"  # cross-entropy with labels drawn from the model's own softmax: the true Fisher
    FEATURES = "features"  # <f(x), eps>, eps ~ N(0, I): the Gauss-Newton matrix of the feature error; needs no labels and no head


def forward(kind: Loss, model: nn.Module, images_NCHW: Tensor) -> Tensor:
    """The outputs that loss ``kind`` looks at: logits, or the last feature map of the backbone; of a detector all it says."""
    return model.forward_features(images_NCHW) if kind is Loss.FEATURES else model(images_NCHW)  # type: ignore[operator]


def label_loss(model: nn.Module, outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean loss of the labelled samples of a batch: the model's own (of a detector, which knows no smoothing), else cross-entropy."""
    from torch.nn import functional

    own = getattr(model, "label_loss", None)
    if own is not None:
        return own(outputs, labels)
    return functional.cross_entropy(outputs, labels, label_smoothing=label_smoothing, ignore_index=-1)


def labelled(labels: Tensor) -> Tensor:
    """Which samples have labels, bool (N,): an image without objects is one that says so."""
    return labels >= 0 if labels.ndim == 1 else labels.new_ones(len(labels)).bool()


def calibration_loss(kind: Loss, model: nn.Module, outputs: Tensor, labels: Tensor, seed: int) -> Tensor:
    r"""Mean loss of a batch, whose gradient enters the Fisher.

    ``features``: with ``f`` the M output numbers of a sample, ``1/N sum_i <f_i, eps_i> / sqrt(M)``. Noise is independent per sample and
    output number, so ``E[g g^T] = 1/N * mean_i J_i^T J_i / M``. The gradient of "distance to the dense output" itself would be zero.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    if kind is Loss.LABELS:
        return label_loss(model, outputs, labels)
    if kind is Loss.SAMPLED:
        drawn_N1 = torch.multinomial(outputs.detach().float().softmax(-1).cpu(), 1, generator=generator)
        return functional.cross_entropy(outputs, drawn_N1[:, 0].to(outputs.device))
    noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    return (outputs * noise).sum() / (outputs.shape[0] * (outputs[0].numel() ** 0.5))


def loss_increase(kind: Loss, model: nn.Module, before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """How much a batch's loss really rises over a pruning, summed over its samples (float64), in the units of the quadratic model.

    ``labels``: rise of the label loss, times the samples that have labels. ``sampled``: KL(before || after). ``features``: half the mean
    squared feature error. ``before`` and ``after`` are the outputs of the two models; ``model``, either of them, says what the label loss is.
    """
    from torch.nn import functional

    before, after = before.double(), after.double()
    if kind is Loss.LABELS:
        return labelled(labels).sum() * (label_loss(model, after, labels) - label_loss(model, before, labels))
    if kind is Loss.SAMPLED:
        return functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), reduction="sum", log_target=True)
    return 0.5 * (after - before).square().flatten(1).mean(1).sum()
