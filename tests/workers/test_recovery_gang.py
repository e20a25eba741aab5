"""Training on DeepSpeed equals training in plain torch, and masked weights remain exactly zero, in every ZeRO stage."""

import gc
import json
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recovery_cases import CNN, HEADLESS, VIT, Gang, plain_training, recipe, sparse_model, stripes, task

from workers.errors import ConfigError, SecateurError
from workers.export import load_state
from workers.models.base import Output
from workers.precision import Precision
from workers.training.gang import run_gang
from workers.training.settings import Distill, Optimizer, Schedule, check, learning_rate

STAGES = (0, 1, 2, 3)
SGD = {"optimizer": Optimizer.SGD, "lr": 0.1}
RECIPES = {"adamw": {}, "sgd": SGD}


@pytest.fixture(scope="module")
def pair() -> Iterator[Gang]:
    gang = Gang()
    yield gang
    gang.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return sparse_model(tmp_path / "model.safetensors")


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_state(folder / "model.safetensors")[0]


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Without the biases of keys: softmax does not feel them, so their gradient is rounding, which Adam makes whole steps of."""
    assert actual.keys() == expected.keys()
    for name in expected:
        felt = torch.ones(expected[name].numel(), dtype=torch.bool)
        if name.endswith("attn.qkv.bias"):
            felt.view(3, -1)[1] = False
        pair = [state[name].flatten()[felt] for state in (actual, expected)]
        torch.testing.assert_close(*pair, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def in_pair(pair: Gang, folder: Path, model: Path, **changes) -> tuple[dict[str, torch.Tensor], dict]:
    data = changes.pop("data", stripes())
    first, second = pair.train(task(folder, model, recipe(ranks=2, **changes), data))
    assert second is None and not isinstance(first, Exception), (first, second)
    return trained(folder), first.numbers


# --- schedules


def test_cycles_begin_with_lr_and_end_with_final_lr_whatever_the_warm_up() -> None:
    for warmup in (0.0, 0.5):
        settings = recipe(epochs=6, schedule=Schedule.CYCLIC, cycle_epochs=2, warmup_epochs=warmup)
        rates = [learning_rate(settings, step, 10) for step in range(60)]
        assert rates[20:40] == rates[40:60] == pytest.approx([3e-3 + (1e-5 - 3e-3) * k / 19 for k in range(20)], rel=1e-12)
        assert rates[19] == pytest.approx(1e-5) and max(rates[:20]) == pytest.approx(3e-3)
        assert (rates[0] < rates[1]) == (warmup > 0)


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.77, 1.0, 1.33])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_fractional_warm_up_reaches_lr_once_and_ends_at_final_lr(schedule: Schedule, warmup: float, steps: int) -> None:
    settings = recipe(epochs=3, schedule=schedule, cycle_epochs=3, warmup_epochs=warmup)
    rates = [learning_rate(settings, step, steps) for step in range(3 * steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= 3e-3 * (1 + 1e-12) and min(rates) > 0
    if len(rates) - math.ceil(warmup * steps) > 1:
        assert max(rates) == pytest.approx(3e-3) and rates[-1] == pytest.approx(1e-5)


# --- what is refused


def test_a_recipe_that_cannot_train_this_model_on_this_data_is_refused() -> None:
    labels, features = recipe(), recipe(distill=Distill.FEATURES, distill_weight=1.0)
    logits = recipe(distill=Distill.LOGITS, distill_weight=1.0)
    check(labels, stripes(), output=Output.LOGITS, taught=False)
    check(features, stripes(labelled=False), output=Output.FEATURES, taught=True)
    check(logits, stripes(labelled=False), output=Output.LOGITS, taught=True)
    for settings, data, output, taught in (
        (labels, stripes(), Output.FEATURES, True),
        (labels, stripes(labelled=False), Output.LOGITS, True),
        (labels, stripes(labelled=False), Output.BOXES, True),
        (logits, stripes(), Output.FEATURES, True),
        (logits, stripes(), Output.BOXES, True),
        (recipe(label_smoothing=0.1), stripes(), Output.BOXES, True),
        (features, stripes(), Output.LOGITS, False),
        (recipe(batch_size=128), stripes(), Output.LOGITS, True),
    ):
        with pytest.raises(ConfigError, match=r"^training\.\w+: expected"):
            check(settings, data, output, taught, "training")


# --- the same training as in plain torch


@pytest.mark.parametrize("optimizer", RECIPES)
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_does_and_zeros_are_zero_bit_for_bit(
    stage: int, optimizer: str, pair: Gang, model: Path, tmp_path: Path
) -> None:
    settings = RECIPES[optimizer]
    state, numbers = in_pair(pair, tmp_path / "out", model, zero_stage=stage, **settings)
    assert_close(state, plain_training(model, recipe(**settings), stripes()), 2e-6)
    assert numbers.ranks == 2
    before, masks = load_state(model)
    for layer, keep in masks.items():
        weight = state[f"{layer}.weight"]
        assert torch.count_nonzero(weight.view(torch.int32)[~keep]) == 0
        assert (weight != before[f"{layer}.weight"])[keep].float().mean() > 0.9, "what survives is trained"


def test_without_masks_the_same_zeros_would_change(tmp_path: Path) -> None:
    """So that the test above can fail: the same weights, but nothing says that zeros are to stay."""
    from workers.export import save_model

    state, masks = load_state(sparse_model(tmp_path / "sparse.safetensors"))
    save_model(tmp_path / "free.safetensors", VIT, state, {})
    run_gang(task(tmp_path / "out", tmp_path / "free.safetensors", recipe()), 1, 1)
    after = trained(tmp_path / "out")
    assert all((after[f"{layer}.weight"][~keep] != 0).float().mean() > 0.9 for layer, keep in masks.items())


def test_training_in_this_process_leaves_torch_as_it_was(model: Path, tmp_path: Path) -> None:
    """What is measured after it may differentiate twice."""
    before = torch.nn.functional.linear
    run_gang(task(tmp_path / "out", model, recipe(zero_stage=3)), 1, 1)
    assert torch.nn.functional.linear is before


def held() -> dict[str, int]:
    """What this process holds and others of a sweep would miss. An error holds what it passed, until it is collected."""
    gc.collect()
    modules = sum(isinstance(found, torch.nn.Module) for found in gc.get_objects())
    return {"modules": modules, "files": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}


@pytest.mark.parametrize("diverges", [False, True])
def test_training_in_this_process_leaves_no_model_file_or_thread(diverges: bool, model: Path, tmp_path: Path) -> None:
    """A sweep of hundred points would end at the limit of open files, and hold a hundred models."""

    def train(name: str) -> None:
        with pytest.raises(SecateurError, match="expected finite numbers") if diverges else nullcontext():
            run_gang(task(tmp_path / name, model, recipe(), stripes(nan_from=0 if diverges else -1), teacher=model), 1, 1)

    train("first")  # DeepSpeed keeps some for ever
    before = held()
    train("second")
    train("third")
    after = held()
    assert all(after[name] <= count for name, count in before.items()), f"{before} before, {after} after"


def test_a_weight_that_moved_is_an_error_and_not_a_result(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.training import deepspeed as recovery_deepspeed

    monkeypatch.setattr(recovery_deepspeed.ZeroHold, "_hook", lambda self, pruned: lambda gradient: gradient)
    with pytest.raises(SecateurError, match="masked weights"):
        run_gang(task(tmp_path / "out", model, recipe()), 1, 1)
    assert not (tmp_path / "out" / "record.json").exists()


def test_bf16_products_keep_zeros_and_float32_weights(pair: Gang, model: Path, tmp_path: Path) -> None:
    state, _ = in_pair(pair, tmp_path / "out", model, zero_stage=2, precision=Precision.BF16)
    exact = plain_training(model, recipe(), stripes())
    masks = load_state(model)[1]
    assert all(torch.count_nonzero(state[f"{layer}.weight"][~keep]) == 0 for layer, keep in masks.items())
    weight = state["blocks.0.mlp.fc1.weight"]
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float()), "the weights themselves are not rounded"
    difference = (weight - exact["blocks.0.mlp.fc1.weight"]).abs().max()
    assert 1e-6 < difference < 2e-2, "close to float32, and not float32"


def test_activations_that_are_computed_again_are_refused_where_masked_weights_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    for stage, again in [(3, False), (2, True)]:
        check(recipe(zero_stage=stage, recompute=again), stripes(), Output.LOGITS, taught=False)
    with pytest.raises(ConfigError, match=r"recovery.recompute: expected false .* torch 2.9.1.*, got True; set recovery.zero_stage=2"):
        check(recipe(zero_stage=3, recompute=True), stripes(), Output.LOGITS, taught=False)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_activations_that_are_computed_again_change_nothing(stage: int, pair: Gang, model: Path, tmp_path: Path) -> None:
    """Also where ZeRO gathers the weights of a module for its forward pass, and again for the one within the backward pass."""
    state, _ = in_pair(pair, tmp_path / "out", model, zero_stage=stage, recompute=True)
    assert_close(state, plain_training(model, recipe(), stripes()), 2e-6)


# --- batches that are not finite


@pytest.mark.parametrize("optimizer", RECIPES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_on_one_rank_skips_the_step_on_all(stage: int, optimizer: str, pair: Gang, model: Path, tmp_path: Path) -> None:
    """As if the batch had never been: moments and step counts too. The first step is one of them, before any moment exists."""
    broken = stripes(nan_steps=[0, 5])
    state, numbers = in_pair(pair, tmp_path / "out", model, zero_stage=stage, data=broken, **RECIPES[optimizer])
    assert numbers.steps == 16 and numbers.skipped_steps == 4
    assert_close(state, plain_training(model, recipe(**RECIPES[optimizer]), stripes(), leave_out=(0, 5)), 2e-6)


def test_running_statistics_do_not_include_a_skipped_batch(tmp_path: Path) -> None:
    path = sparse_model(tmp_path / "cnn.safetensors", CNN)
    settings = recipe(epochs=1, **SGD)
    run_gang(task(tmp_path / "out", path, settings, stripes(size_px=32, nan_steps=[2])), 1, 1)
    state = trained(tmp_path / "out")
    assert any("running_mean" in name for name in state)
    assert_close(state, plain_training(path, settings, stripes(size_px=32), leave_out=(2,)), 2e-5)


def test_a_gradient_that_is_not_finite_is_noticed_though_the_loss_is() -> None:
    from workers.training.deepspeed import ZeroHold

    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    holder = torch.nn.ModuleDict({"layer": layer})
    hold = ZeroHold(holder, {"layer": torch.tensor([[True, False]])}, torch.device("cpu"))
    layer(torch.ones(1, 2)).sum().backward()
    assert not hold.broken and layer.weight.grad.tolist() == [[1.0, 0.0]]
    layer.weight.grad = None
    loss = layer(torch.ones(1, 2)).sqrt().sum()  # 0, with an infinite slope
    loss.backward()
    assert torch.isfinite(loss) and hold.broken and layer.weight.grad.tolist() == [[0.0, 0.0]]


def test_a_training_without_a_finite_step_fails_with_a_remedy_and_its_own_type(model: Path, tmp_path: Path) -> None:
    """In processes of their own, from which the error travels here."""
    sent = task(tmp_path / "out", model, recipe(ranks=2), stripes(nan_steps=list(range(8))))
    with pytest.raises(SecateurError, match=r"got NaN or infinity in the last 8 steps at step 8 of 16; lower the learning rate"):
        run_gang(sent, 2, 1)
    assert not (tmp_path / "out" / "record.json").exists()


# --- learning from the dense model


@pytest.mark.parametrize("kind", [Distill.LOGITS, Distill.FEATURES])
def test_a_model_that_is_its_own_teacher_does_not_change(kind: Distill, model: Path, pair: Gang, tmp_path: Path) -> None:
    settings = recipe(ranks=2, distill=kind, distill_weight=1.0, weight_decay=0.0, clip_norm=0.0, zero_stage=3, **SGD)
    first, _ = pair.train(task(tmp_path / "out", model, settings, stripes(labelled=False), teacher=model))
    assert not isinstance(first, Exception), first
    assert first.numbers.final_loss == pytest.approx(0.0, abs=1e-4)
    assert_close(trained(tmp_path / "out"), load_state(model)[0], 1e-3)  # rounding of outputs, which is equal on some processors


@pytest.mark.parametrize("stage", [1, 3])
def test_a_model_without_a_classifier_learns_the_features_of_its_teacher_without_labels(stage: int, pair: Gang, tmp_path: Path) -> None:
    dense = sparse_model(tmp_path / "dense.safetensors", HEADLESS, sparsity=0.0)
    pruned = sparse_model(tmp_path / "pruned.safetensors", HEADLESS)
    settings = recipe(ranks=2, epochs=8, distill=Distill.FEATURES, distill_weight=1.0, zero_stage=stage)
    first, _ = pair.train(task(tmp_path / "out", pruned, settings, stripes(labelled=False), teacher=dense))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "progress.jsonl").read_text().splitlines()]
    assert first.numbers.final_loss == losses[-1] < 0.6 * losses[0]


def test_weight_decay_does_not_change_an_unused_classifier(model: Path, tmp_path: Path) -> None:
    other = sparse_model(tmp_path / "teacher.safetensors", seed=1)
    for weight, moves in ((1.0, False), (0.5, True)):
        settings = recipe(distill=Distill.FEATURES, distill_weight=weight, zero_stage=3)
        run_gang(task(tmp_path / str(weight), model, settings, teacher=other), 1, 1)
        after, before = trained(tmp_path / str(weight)), load_state(model)[0]
        assert torch.equal(after["head.weight"], before["head.weight"]) is not moves
        assert not torch.equal(after["norm.weight"], before["norm.weight"])


def test_the_losses_are_their_formulas() -> None:
    from workers.training.losses import training_loss

    torch.manual_seed(0)
    (s_ND, t_ND), labels_N = torch.randn(2, 5, 4).double().float(), torch.tensor([0, 3, 1, -1, 2])
    features = (torch.randn(5, 6), torch.randn(5, 6))
    p_ND, q_ND = (t_ND.double() / 3).softmax(1), (s_ND.double() / 3).softmax(1)
    divergence = 9 * (p_ND * (p_ND / q_ND).log()).sum(1).mean()
    logs_ND, known = s_ND.double().log_softmax(1), labels_N >= 0
    smooth_ND = 0.9 * torch.nn.functional.one_hot(labels_N[known], 4) + 0.1 / 4
    entropy = -(smooth_ND * logs_ND[known]).sum(1).mean()
    distance = (features[0] - features[1]).double().square().sum() / features[1].double().square().sum()
    for kind, weight, expected in (
        (Distill.NONE, 0.0, entropy),
        (Distill.LOGITS, 0.25, 0.75 * entropy + 0.25 * divergence),
        (Distill.FEATURES, 1.0, distance),
    ):
        settings = recipe(distill=kind, distill_weight=weight, temperature=3.0)
        taught = None if kind is Distill.NONE else (t_ND, features[1])
        assert float(training_loss(settings, torch.nn.Identity(), (s_ND, features[0]), labels_N, taught)) == pytest.approx(
            float(expected), rel=1e-5
        )


@pytest.mark.parametrize("precision", list(Precision))
def test_products_have_the_precision_asked_for_even_where_the_engine_ended_autocast(precision: Precision) -> None:
    """On a GPU DeepSpeed runs the model inside ``autocast(enabled=False)`` when autocast was entered outside of it."""
    from workers.training.losses import Tapped

    model = VIT.build()
    seen: list[torch.dtype] = []
    model.get_submodule("blocks.0.mlp.fc1").register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", enabled=False):
        Tapped(model, precision)(torch.zeros(1, 1, 8, 8))
    assert seen == [torch.bfloat16 if precision is Precision.BF16 else torch.float32]


def test_a_gang_of_another_size_than_asked_for_is_refused(model: Path, pair: Gang, tmp_path: Path) -> None:
    answers = pair.train(task(tmp_path / "out", model, replace(recipe(), ranks=1)))
    assert all(isinstance(answer, ConfigError) and "recovery.ranks" in str(answer) for answer in answers)
