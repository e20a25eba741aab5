"""Training against a plain torch loop, learning rates in closed form, and settings. Gangs and resumption are in other files."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY_MODEL
from torch.nn import functional

from workers.data.digits import Digits
from workers.errors import ConfigError, SecateurError
from workers.export import load_model, load_state, save_model
from workers.messages import TrainTask
from workers.models.timm import TimmModel
from workers.precision import Precision
from workers.records import Destination
from workers.training.gang import run_gang
from workers.training.losses import Tapped, distillation
from workers.training.settings import Distill, Optimizer, Schedule, Training, learning_rate

RECIPE = Training(
    epochs=2,
    batch_size=16,
    optimizer=Optimizer.ADAMW,
    lr=1e-2,
    final_lr=1e-3,
    schedule=Schedule.LINEAR,
    cycle_epochs=0,
    warmup_epochs=0.0,
    weight_decay=0.1,
    momentum=0.9,
    label_smoothing=0.1,
    clip_norm=0.0,
    zero_stage=0,
    precision=Precision.FP32,
    recompute=False,
    ranks=1,
    distill=Distill.NONE,
    distill_weight=0.0,
    temperature=1.0,
)


def digits(train_size: int = 64) -> Digits:
    return Digits(
        seed=0,
        calibration_batches=4,
        calibration_batch_size=4,
        shards=1,
        eval_batch_size=60,
        train_size=train_size,
        test_size=60,
        bank_size=0,
        image_size=16,
        channels=1,
        mean=[0.3],
        std=[0.4],
        max_shift=0,
        flip=False,
    )


def family(classes: int = 10) -> TimmModel:
    arguments = TINY_MODEL | {"num_classes": classes}
    return TimmModel(checkpoint=None, name="vit_tiny_patch16_224", arguments=arguments, include=["*"], exclude=[])


def pruned_model(folder: Path, classes: int = 10) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model file with half of each block's weights pruned at random, and its masks."""
    torch.manual_seed(1)
    model = family(classes).build()
    masks = {
        name: torch.rand_like(m.weight) < 0.5 for name, m in model.named_modules() if name.startswith("blocks") and hasattr(m, "weight")
    }
    masks = {name: mask for name, mask in masks.items() if mask.ndim == 2}
    for name, mask in masks.items():
        model.get_parameter(f"{name}.weight").data.mul_(mask)
    path = folder / "start.safetensors"
    save_model(path, family(classes), model.state_dict(), masks)
    return path, masks


def task(folder: Path, recipe: Training = RECIPE, data: Digits | None = None, name: str = "result", classes: int = 10) -> TrainTask:
    start, _ = pruned_model(folder, classes)
    to = Destination(name, folder / name)
    teacher = None if recipe.distill is Distill.NONE else start
    return TrainTask(start, teacher, data or digits(), recipe, 0, to.directory / "progress.jsonl", to)


def trained(folder: Path, recipe: Training = RECIPE, data: Digits | None = None, name: str = "result") -> dict[str, torch.Tensor]:
    run_gang(task(folder, recipe, data, name), recipe.ranks, 1)
    return load_state(folder / name / "model.safetensors")[0]


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def plain_loop(folder: Path, recipe: Training) -> dict[str, torch.Tensor]:
    """The same training as anyone would write it in torch."""
    model, masks = load_model(pruned_model(folder)[0])
    model.train()
    vectors, matrices = [p for p in model.parameters() if p.ndim <= 1], [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if recipe.optimizer is Optimizer.ADAMW else torch.optim.SGD
    extra = {} if recipe.optimizer is Optimizer.ADAMW else {"momentum": recipe.momentum}
    optimizer, steps = kind(groups, lr=recipe.lr, **extra), 0
    total = recipe.epochs * (64 // recipe.batch_size)
    for epoch in range(recipe.epochs):
        for images, labels in digits().train(0, 1, epoch, recipe.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr + (recipe.final_lr - recipe.lr) * steps / (total - 1)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing).backward()
            for name, mask in masks.items():
                model.get_parameter(f"{name}.weight").grad.mul_(mask)
            optimizer.step()
            steps += 1
    return model.state_dict()


@pytest.mark.parametrize("optimizer", list(Optimizer))
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_equals_a_plain_torch_loop_and_keeps_zeros(stage: int, optimizer: Optimizer, tmp_path: Path) -> None:
    recipe = replace(RECIPE, zero_stage=stage, optimizer=optimizer)
    got = trained(tmp_path, recipe)
    assert difference(got, plain_loop(tmp_path, recipe)) < 1e-5
    for name, mask in pruned_model(tmp_path)[1].items():
        assert torch.count_nonzero(got[f"{name}.weight"][~mask]) == 0
        assert torch.count_nonzero(got[f"{name}.weight"][mask]) > 0.9 * mask.sum()


def test_the_learning_rate_is_linear_cosine_or_cyclic_after_a_linear_warm_up() -> None:
    linear = replace(RECIPE, epochs=4)
    assert [learning_rate(linear, step, 5) for step in (0, 19)] == pytest.approx([1e-2, 1e-3])
    assert learning_rate(linear, 7, 5) == pytest.approx(1e-2 + (1e-3 - 1e-2) * 7 / 19)
    cosine = replace(linear, schedule=Schedule.COSINE)
    assert learning_rate(cosine, 7, 5) == pytest.approx(1e-3 + 0.5 * 9e-3 * (1 + math.cos(math.pi * 7 / 19)))
    cyclic = replace(linear, schedule=Schedule.CYCLIC, cycle_epochs=2)
    assert [learning_rate(cyclic, step, 5) for step in (0, 9, 10, 19)] == pytest.approx([1e-2, 1e-3, 1e-2, 1e-3])
    warm = replace(linear, warmup_epochs=1.0)
    rates = [learning_rate(warm, step, 5) for step in range(20)]
    assert rates[:6] == pytest.approx([1e-2 * k / 6 for k in range(1, 6)] + [1e-2]) and rates[-1] == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", [Distill.LOGITS, Distill.FEATURES])
def test_distillation_is_zero_with_zero_gradient_where_the_models_agree(kind: Distill, tmp_path: Path) -> None:
    recipe = replace(RECIPE, distill=kind, distill_weight=1.0, temperature=2.0)
    model = Tapped(load_model(pruned_model(tmp_path)[0])[0])
    images = torch.randn(4, 1, 16, 16)
    outputs, features = model(images)
    assert torch.equal(features, model.model.forward_head(model.model.forward_features(images), pre_logits=True))
    loss = distillation(recipe, (outputs, features), (outputs.detach(), features.detach()))
    (gradient,) = torch.autograd.grad(loss, [outputs if kind is Distill.LOGITS else features])
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6) and float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"epochs": 0}, "epochs"),
        ({"ranks": 3}, "batch_size"),
        ({"final_lr": 1.0}, "final_lr"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"warmup_epochs": 2.0}, "warmup_epochs"),
        ({"distill_weight": 0.5}, "distill_weight"),
        ({"schedule": Schedule.CYCLIC}, "cycle_epochs"),
    ],
)
def test_bad_settings_name_their_key(change: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^recovery\.{key}: expected"):
        replace(RECIPE, **change)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"recovery\.batch_size: expected at most 8, .* got 16"):
        run_gang(task(tmp_path, data=digits(train_size=8)), 1, 1)
