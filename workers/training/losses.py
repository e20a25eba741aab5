"""The loss of a training: the label loss, the distance to the dense model, or a mixture of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.losses import label_loss
from workers.precision import Precision, products_in
from workers.training.settings import Distill, Training


class Tapped(nn.Module):
    """A model that also returns its features: the input of its classifier, or its output if it has no classifier.

    A hook captures the features during the forward pass; with a second entry point, ZeRO-3 would not gather every weight.
    Autocast is entered here, because DeepSpeed's engine silently disables an autocast context around it.
    """

    def __init__(self, model: nn.Module, precision: Precision = Precision.FP32) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self._features: list[Tensor] = []
        head = _classifier(model)
        if head is not None:
            head.register_forward_pre_hook(lambda _, inputs: self._features.append(inputs[0]))

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        with products_in(self.precision, images_NCHW.device):
            outputs_ND = self.model(images_NCHW)
        features_ND = self._features[-1] if self._features else outputs_ND
        self._features.clear()  # their graph refers to the engine, which would outlive its training
        return outputs_ND, features_ND


def freeze_unused(model: nn.Module, settings: Training) -> None:
    """Freezes the classifier if only features are compared. It has no gradient then, and weight decay alone would change it."""
    head = _classifier(model)
    if head is not None and settings.distill is Distill.FEATURES and settings.distill_weight == 1:
        head.requires_grad_(False)


def training_loss(
    settings: Training, model: nn.Module, student: tuple[Tensor, Tensor], labels: Tensor, teacher: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Returns the mean loss of a batch, ``(1 - w) * label_loss + w * distillation`` with ``w = distill_weight``.

    ``student`` and ``teacher`` are outputs and features of the two models; ``model`` defines the label loss.
    """
    # A loss of features alone depends on the outputs too: ZeRO-3 gathers a module's weights again when a gradient reaches its output.
    total = 0.0 * student[0].float().sum()
    if settings.distill_weight < 1:
        supervised = label_loss(model, student[0].float(), labels, settings.label_smoothing)
        total = total + (1 - settings.distill_weight) * supervised
    if teacher is not None:
        total = total + settings.distill_weight * distillation(settings, student, teacher)
    return total


def distillation(settings: Training, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the distance to the dense model, which is exactly zero if both agree.

    ``logits``: ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``. Source: Hinton et al. 2015 (arXiv 1503.02531).
    ``features``: ``|f - f_dense|^2 / |f_dense|^2``, summed over the batch.
    """
    if settings.distill is Distill.LOGITS:
        temperature = settings.temperature
        softened = [(outputs.float() / temperature).log_softmax(-1) for outputs in (student[0], teacher[0])]
        return temperature**2 * functional.kl_div(softened[0], softened[1], reduction="batchmean", log_target=True)
    difference, power = student[1].float() - teacher[1].float(), teacher[1].float().square().sum()
    return difference.square().sum() / power.clamp_min(torch.finfo(torch.float32).tiny)


def _classifier(model: nn.Module) -> nn.Module | None:
    """Returns the classifier of a timm model; None if it has none."""
    get = getattr(model, "get_classifier", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) and not isinstance(head, nn.Identity) else None
