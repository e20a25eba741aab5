"""What a training minimises: the label loss, the distance to the dense model, or a mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.losses import label_loss
from workers.training.settings import Distill, Precision, Training


class Tapped(nn.Module):
    """A model that also returns its features: what goes into its classifier, or its output if it has none.

    The features are caught on their way, not computed by a second entry point, so that ZeRO-3 gathers every weight as usual.
    Autocast is entered here: DeepSpeed's engine ends, without an error, one that was entered around it.
    """

    def __init__(self, model: nn.Module, precision: Precision = Precision.FP32) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self._caught: list[Tensor] = []
        head = _classifier(model)
        if head is not None:
            head.register_forward_pre_hook(lambda _, inputs: self._caught.append(inputs[0]))

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        self._caught.clear()
        with torch.autocast(images_NCHW.device.type, dtype=torch.bfloat16, enabled=self.precision is Precision.BF16):
            outputs_ND = self.model(images_NCHW)
        return outputs_ND, self._caught[-1] if self._caught else outputs_ND


def freeze_unused(model: nn.Module, settings: Training) -> None:
    """Freeze the classifier where only features are compared: without a gradient, weight decay alone would move it."""
    head = _classifier(model)
    if head is not None and settings.distill is Distill.FEATURES and settings.distill_weight == 1:
        head.requires_grad_(False)


def training_loss(
    settings: Training, model: nn.Module, student: tuple[Tensor, Tensor], labels: Tensor, teacher: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Mean loss of a batch: ``(1 - w) * label loss + w * distillation`` with ``w = distill_weight``; ``model`` says what the former is."""
    # Also a loss of features alone reaches the outputs: ZeRO-3 gathers a module's weights again when a gradient reaches its output.
    total = 0.0 * student[0].float().sum()
    if settings.distill_weight < 1:
        of_labels = label_loss(model, student[0].float(), labels, settings.label_smoothing)
        total = total + (1 - settings.distill_weight) * of_labels
    if teacher is not None:
        total = total + settings.distill_weight * distillation(settings, student, teacher)
    return total


def distillation(settings: Training, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Distance to the dense model, zero exactly where they agree.

    ``logits``: ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``. Source: Hinton et al. 2015 (arXiv 1503.02531).
    ``features``: ``|f - f_dense|^2 / |f_dense|^2``, summed over the batch.
    """
    if settings.distill is Distill.LOGITS:
        temperature = settings.temperature
        soft = [(outputs.float() / temperature).log_softmax(-1) for outputs in (student[0], teacher[0])]
        return temperature**2 * functional.kl_div(soft[0], soft[1], reduction="batchmean", log_target=True)
    difference, power = student[1].float() - teacher[1].float(), teacher[1].float().square().sum()
    return difference.square().sum() / power.clamp_min(torch.finfo(torch.float32).tiny)


def _classifier(model: nn.Module) -> nn.Module | None:
    """The classifier of a timm model that has one."""
    find = getattr(model, "get_classifier", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) and not isinstance(head, nn.Identity) else None
