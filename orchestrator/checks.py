"""Checks of settings that are valid alone but not together: of the model, the data, the loss, the pruners and the trainings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config import Experiment
from workers.checks import require
from workers.losses import Loss
from workers.models.base import Output
from workers.training.settings import Training
from workers.training.settings import check as check_training

if TYPE_CHECKING:
    from workers.models.profile import ModelProfile


def check_together(experiment: Experiment, profile: ModelProfile) -> None:
    """Raises ``ConfigError`` for the first two settings that do not go together. ``profile`` is that of the dense model."""
    model, data, loss = experiment.model, experiment.data, experiment.loss
    if model.output is Output.FEATURES and not model.has_loss:
        require(loss is Loss.FEATURES, "loss", "features, since the model has no classifier", loss.value, "set loss=features")
    if data.classes == 0 and not (model.has_loss and model.output is not Output.BOXES):
        require(loss is not Loss.LABELS, "loss", "sampled or features, since the data has no labels", loss.value, "set loss=sampled")
    if model.output is Output.BOXES:
        check_detector(experiment, profile)
    else:
        classes = "images with one class each, since the model is no detector"
        require(not data.has_boxes, "data", classes, type(data).__name__, "choose a detector, such as model=ssdlite")
    require(
        model.has_features or model.output is Output.FEATURES or loss is not Loss.FEATURES,
        "loss",
        "labels or sampled, since models of this family have no method forward_features",
        loss.value,
        "loss=sampled needs no labels",
    )
    if model.output is Output.LOGITS:
        data.check_outputs(profile.outputs)
    if experiment.training is not None and model.checkpoint is None:
        check_training(experiment.training, data, model.output, taught=False, where="training")
        check_recompute(experiment.training, profile, "training")
    for name, part in experiment.schedule.items():
        if part.recovery is not None:
            where = f"rounds.{name}.recovery" if name else "recovery"
            check_training(part.recovery, data, model.output, taught=True, where=where, features=model.has_features)
            check_recompute(part.recovery, profile, where)


def check_recompute(recipe: Training, profile: ModelProfile, where: str) -> None:
    """Raises ``ConfigError`` if activations should be computed again and the model has no blocks for that."""
    blocks = "false, since the model has no repeated blocks that are free of batch norms"
    require(not recipe.recompute or profile.recomputed_bytes is not None, f"{where}.recompute", blocks, recipe.recompute)


def check_detector(experiment: Experiment, profile: ModelProfile) -> None:
    """Raises ``ConfigError`` unless the images have the size of the default boxes, the labels are boxes of classes that the model has, and
    the loss and the pruners suit detectors."""
    loss, data, size = experiment.loss, experiment.data, experiment.model.fixed_size
    expected = f"{size} and images of 3 channels, since the model's default boxes are made for that size"
    require(data.input_shape == (3, size, size), "data.image_size", expected, data.input_shape)
    require(loss is not Loss.SAMPLED, "loss", "labels or features, since the outputs of a detector are no distribution", loss.value)
    remedy = "choose data=coco, or a folder of images without classes together with loss=features"
    require(data.has_boxes or data.classes == 0, "data", "images with objects in boxes, or without labels", type(data).__name__, remedy)
    classes = f"at least {data.classes + 1}: the classes of the data and the background"
    require(data.classes + 5 <= profile.outputs, "model.arguments.num_classes", classes, profile.outputs - 4)
    for name, part in experiment.schedule.items():
        where = f"rounds.{name}.pruner" if name else "pruner"
        suited = "a pruner that suits detectors"
        require(not part.pruner.needs_logits, where, suited, type(part.pruner).__name__, "choose sosp_h or taylor, for example")


def class_count(experiment: Experiment, profile: ModelProfile) -> int | None:
    """The number of classes of the model; None if it has no classifier."""
    match experiment.model.output:
        case Output.LOGITS:
            return profile.outputs
        case Output.BOXES:
            return profile.outputs - 5  # four offsets and the background
        case Output.FEATURES:
            return None
