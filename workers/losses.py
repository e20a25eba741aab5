"""Calibration losses: the loss whose curvature the Fisher is, and its real increase over a pruning."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


class Loss(Enum):
    """The loss whose gradients are collected."""

    LABELS = "labels"  # loss of the given labels (cross-entropy, or the detector's own): the empirical Fisher, as in the CAP paper
    SAMPLED = "sampled"  # cross-entropy with labels drawn from the model's own softmax: the true Fisher
    FEATURES = "features"  # <f(x), eps>, eps ~ N(0, I): the Gauss-Newton matrix of the feature error; needs no labels and no head


def forward(kind: Loss, model: nn.Module, images_NCHW: Tensor) -> Tensor:
    """Returns the outputs that loss ``kind`` reads: logits, all outputs of a detector, or features.

    Features are the last feature map of a backbone, or the outputs of a module without the method ``forward_features``.
    """
    return getattr(model, "forward_features", model)(images_NCHW) if kind is Loss.FEATURES else model(images_NCHW)


def label_loss(model: nn.Module, outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns the mean loss over the labelled samples of a batch.

    It is the ``label_loss`` of a model that has one (a detector, which does not support label smoothing), else the cross-entropy.
    """
    from torch.nn import functional

    model_loss = getattr(model, "label_loss", None)
    if model_loss is not None:
        return model_loss(outputs, labels)
    return functional.cross_entropy(outputs, labels, label_smoothing=label_smoothing, ignore_index=-1)


def labelled(labels: Tensor) -> Tensor:
    """Returns which samples have labels, bool (N,): those whose class is not -1, and all whose labels are no classes."""
    classes = labels.ndim == 1 and not labels.is_floating_point()
    return labels >= 0 if classes else labels.new_ones(len(labels)).bool()


def calibration_loss(kind: Loss, model: nn.Module, outputs: Tensor, labels: Tensor, seed: int) -> Tensor:
    r"""Returns the mean loss of a batch, whose gradient enters the Fisher.

    ``features``: with ``f`` the M outputs of a sample, ``1/N sum_i <f_i, eps_i> / sqrt(M)``. The noise is independent for each sample and
    output, so ``E[g g^T] = 1/N * mean_i J_i^T J_i / M``. The gradient of the distance to the dense outputs itself would be zero.
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
    """Returns the real increase of the loss over a pruning, summed over the samples of a batch (float64), in units of the quadratic model.

    ``labels``: the increase of the label loss, times the number of labelled samples. ``sampled``: KL(before || after). ``features``: half
    the mean squared feature error. ``before`` and ``after`` are the outputs of the two models; ``model`` is either of them and defines the
    label loss.
    """
    from torch.nn import functional

    before, after = before.double(), after.double()
    if kind is Loss.LABELS:
        return labelled(labels).sum() * (label_loss(model, after, labels) - label_loss(model, before, labels))
    if kind is Loss.SAMPLED:
        return functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), reduction="sum", log_target=True)
    return 0.5 * (after - before).square().flatten(1).mean(1).sum()
