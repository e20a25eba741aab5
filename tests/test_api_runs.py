"""Pruning from Python: a module and batches of the user's own in, a smaller module, its masks and a report out."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from own_cases import SmallNet, accuracy, batches, squared_error, train, trained
from torch import Tensor, nn

from orchestrator import Pruned, hold_masks, plan, prune
from workers.errors import ConfigError
from workers.export import load_pruned

QUICK = ["compare=false"]


@cache
def dense() -> SmallNet:
    return trained()


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    return prune(dense(), batches(0, 800), batches(1400, 1797), sparsity=0.9, output=tmp_path_factory.mktemp("masked"))


def test_a_module_is_masked_to_the_asked_sparsity_and_keeps_its_accuracy(masked: Pruned) -> None:
    zeros = {name: ~keep for name, keep in masked.masks.items()}
    assert set(zeros) == {"second", "hidden"}, "the first and the last layer remain dense"
    total = sum(zero.numel() for zero in zeros.values())
    assert abs(sum(int(zero.sum()) for zero in zeros.values()) - 0.9 * total) <= 1
    assert all(not masked.model.get_parameter(f"{name}.weight")[zero].any() for name, zero in zeros.items())
    assert accuracy(masked.model) > accuracy(dense()) - 0.03
    assert masked.report.metric("one_shot", "top1") == pytest.approx(accuracy(masked.model))
    assert masked.report.metric("dense", "top1") == pytest.approx(accuracy(dense()))
    assert "90.00 %" in str(masked) and (masked.directory / "report.html").is_file()


class Clamped(SmallNet):
    """With limits that stand for none, as in the vision encoder of Gemma 4."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.tensor(-torch.inf))
        self.register_buffer("most", torch.tensor([3.0, torch.inf, torch.inf]))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.clamp(self.least, self.most.max()))


def test_limits_of_a_module_may_be_infinite_but_not_nan(tmp_path: Path) -> None:
    module = Clamped()
    module.load_state_dict(dense().state_dict(), strict=False)
    options: dict[str, Any] = {"sparsity": 0.5, "output": tmp_path, "settings": QUICK}
    pruned, plain = (prune(model, batches(0, 64), pruner="magnitude", **options) for model in (module, dense()))
    assert torch.equal(pruned.model.least, module.least) and torch.equal(pruned.model.most, module.most)
    assert torch.equal(pruned.model.hidden.weight, plain.model.hidden.weight)
    module.most[0] = torch.nan
    with pytest.raises(ConfigError, match=r"expected finite numbers.*most \(1 NaN of 3\)"):
        prune(module, batches(0, 64), pruner="magnitude", **options)


def test_the_module_that_was_given_and_the_state_of_torch_are_as_they_were(tmp_path: Path) -> None:
    model = dense()
    before, threads = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    model.first.requires_grad_(False)
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    try:
        pruned = prune(model, batches(0, 64), pruner="magnitude", sparsity=0.5, output=tmp_path, settings=QUICK)
        assert torch.equal(torch.rand(1), expected) and torch.get_num_threads() == threads
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not model._forward_hooks and type(pruned.model) is SmallNet and pruned.model is not model
        assert pruned.model.training and not pruned.model.first.weight.requires_grad and pruned.model.second.weight.requires_grad
        assert not pruned.model._forward_hooks and not hasattr(pruned.model, "label_loss")
        assert torch.equal(pruned.model.shift, model.shift), "buffers that no state dict holds"
    finally:
        model.first.requires_grad_(True)
        model.eval()


def test_units_are_removed_and_the_file_loads_with_the_function_that_builds_the_module(tmp_path: Path) -> None:
    pruned = prune(dense(), batches(0, 400), batches(1400, 1797), pruner="taylor", removed=0.5, output=tmp_path, settings=QUICK)
    assert pruned.model.second.weight.shape[0] < 32 and not pruned.masks
    path = pruned.directory / "model.safetensors"
    again = load_pruned(path, build=SmallNet)
    images = batches(0, 8)[0][0]
    assert torch.equal(again(images), pruned.model(images))
    once_more = prune(pruned.model, batches(0, 64), pruner="magnitude", sparsity=0.5, output=tmp_path, settings=QUICK)
    assert once_more.model.second.weight.shape == pruned.model.second.weight.shape


def test_masks_hold_while_the_user_trains_with_any_optimizer(masked: Pruned) -> None:
    for kind in (torch.optim.AdamW, torch.optim.RMSprop, lambda parameters: torch.optim.SGD(parameters, 0.05, 0.9, weight_decay=1e-3)):
        model = copy.deepcopy(masked.model)
        optimizer = kind(model.parameters())
        with hold_masks(model, masked.masks):
            train(model, 1, optimizer)
        for name, keep in masked.masks.items():
            assert not model.get_parameter(f"{name}.weight")[~keep].any()
            assert not torch.equal(model.get_parameter(f"{name}.weight"), masked.model.get_parameter(f"{name}.weight")), "it has trained"
        train(model, 1, optimizer)
        assert any(model.get_parameter(f"{name}.weight")[~keep].any() for name, keep in masked.masks.items()), "the hold has ended"


def test_an_optimizer_with_a_history_needs_the_optimizer_to_hold(masked: Pruned) -> None:
    """Momentum from before the masks moves masked weights although their gradients are zero."""
    for passed in (False, True):
        model = copy.deepcopy(masked.model)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
        train(model, 1, optimizer)
        hold_masks(model, masked.masks, optimizer if passed else None)
        train(model, 1, optimizer)
        moved = any(bool(model.get_parameter(f"{name}.weight")[~keep].any()) for name, keep in masked.masks.items())
        assert moved != passed


def test_a_loss_of_the_users_own_and_labels_that_are_no_classes(tmp_path: Path) -> None:
    """The predicted rise of the loss is in the units of this loss: twice the loss has twice the rise."""
    torch.manual_seed(0)
    model = SmallNet(classes=2)
    pairs = [(images, torch.stack([labels / 9.0, labels % 2], 1)) for images, labels in batches(0, 256)]
    rises = []
    for factor in (1.0, 2.0):

        def loss(outputs: Tensor, labels: Tensor, factor: float = factor) -> Tensor:
            return factor * squared_error(outputs, labels)

        pruned = prune(model, pairs, pruner="obc", sparsity=0.8, loss=loss, output=tmp_path)
        rises.append(pruned.report.loss_increase.measured)
    assert rises[0] > 0 and rises[1] == pytest.approx(2 * rises[0], rel=1e-6)
    assert pruned.report.stages[-1].metrics["agreement"] < 1


def test_a_backbone_without_labels_is_pruned_by_its_outputs(tmp_path: Path) -> None:
    images = [images for images, _ in batches(0, 256)]
    pruned = prune(dense(), images, sparsity=0.5, output=tmp_path)
    assert pruned.report.metric("one_shot", "agreement") > 0.98
    assert pruned.report.experiment["loss"] == "features"


def test_the_same_call_computes_nothing_again_and_another_module_everything(tmp_path: Path) -> None:
    def computed(pruned: Pruned) -> set[str]:
        return {task.verb for task in pruned.report.timeline if task.computed}

    model = copy.deepcopy(dense())
    arguments: dict[str, Any] = {"pruner": "sparsegpt", "sparsity": 0.5, "output": tmp_path, "settings": QUICK}
    assert {"collect", "score", "solve"} <= computed(prune(model, batches(0, 64), **arguments))
    assert not computed(prune(model, batches(0, 64), **arguments))
    assert not computed(prune(copy.deepcopy(model), batches(0, 64), **arguments)), "an equal module"
    assert computed(prune(model, batches(64, 128), **arguments))
    model.shift.fill_(0.25)
    assert computed(prune(model, batches(0, 64), **arguments)), "a buffer that no state dict holds"
    model.shift.fill_(0.5)
    model.eps = 1e-3  # type: ignore[assignment]
    assert computed(prune(model, batches(0, 64), **arguments)), "an attribute that the forward pass may read"


ON_RAY = """
import sys

import torch
from own_cases import SmallNet, batches
from orchestrator import prune


class Local(SmallNet):
    pass


torch.manual_seed(0)
model = Local()
weights = []
for cluster in sys.argv[1:]:
    settings = ["compare=false", "cluster.threads=1"]
    pruned = prune(model, batches(0, 64), sparsity=0.5, cluster=cluster, output=f"{len(weights)}", settings=settings)
    weights.append(pruned.model.state_dict())
assert all(torch.allclose(tensor, other[name], atol=1e-6) for other in weights[1:] for name, tensor in weights[0].items())
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [("local", "ray"), ("ray", "ray")])
def test_workers_of_ray_give_the_weights_of_this_process_also_twice(clusters: tuple[str, str], tmp_path: Path) -> None:
    """The module reaches them by value: its class is defined in the script. A process of its own, since Ray remembers earlier clusters."""
    (tmp_path / "script.py").write_text(ON_RAY, encoding="utf-8")
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    ended = subprocess.run(
        [sys.executable, "script.py", *clusters], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=3600
    )
    assert ended.returncode == 0 and ended.stdout.endswith("equal\n"), ended.stderr


def test_a_plan_is_printed_and_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan(dense(), batches(0, 64), sparsity=0.5, output=tmp_path)
    assert planned.seconds > 0 and "The run takes about" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/report.html"))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        linears = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
        self.body = nn.Sequential(nn.Flatten(), *linears)
        self.body[3].weight = self.body[5].weight

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.body(images_NCHW)


class Failing(SmallNet):
    def forward(self, images_NCHW: Tensor) -> Tensor:
        raise ValueError("no such\nthing")


class Unused(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(4, 4)


def dictionaries() -> Iterator[dict[str, Tensor]]:
    yield {"image": torch.zeros(2, 1, 8, 8), "digit": torch.zeros(2)}


def not_finite() -> SmallNet:
    model = SmallNet()
    nn.init.constant_(model.get_parameter("second.weight"), torch.nan)
    return model


IMAGES = torch.zeros(8, 1, 8, 8)
LABELS = torch.zeros(8, dtype=torch.int64)
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no module": (3, [IMAGES], {}, "expected a torch module, got int"),
    "no layers": (nn.Sequential(nn.Flatten(), nn.Softmax(1)), [(IMAGES, LABELS)], {}, "with Linear or Conv2d layers, got none"),
    "lazy layers": (nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), [IMAGES], {}, "run a batch through the model first"),
    "tied layers": (Tied(), [(IMAGES, LABELS)], {}, "one weight of both body.3 and body.5"),
    "meta weights": (SmallNet().to("meta"), [IMAGES], {}, "load a checkpoint first"),
    "half precision": (SmallNet().half(), [IMAGES], {}, "model.float()"),
    "a failing forward pass": (Failing(), [IMAGES], {}, "ValueError: no such thing"),
    "images of another shape": (SmallNet(), [torch.zeros(2, 3, 8, 8)], {}, "failed on images of (2, 3, 8, 8)"),
    "an unused layer": (Unused(), [(IMAGES, LABELS)], {}, "idle"),
    "no batches": (SmallNet(), [], {}, "got none"),
    "no iterable": (SmallNet(), 7, {}, "batches: expected an iterable"),
    "dictionaries": (SmallNet(), dictionaries(), {}, "a dictionary with image, digit"),
    "bytes": (SmallNet(), [IMAGES.byte()], {}, "got torch.uint8"),
    "flat images": (SmallNet(), [torch.zeros(8, 64)], {}, "expected images (N, C, H, W)"),
    "images of two sizes": (SmallNet(), [IMAGES, torch.zeros(2, 1, 9, 9)], {}, "batch 1: expected images of (1, 8, 8)"),
    "too few labels": (SmallNet(), [(IMAGES, LABELS[:3])], {}, "expected 8 labels"),
    "labels in some batches": (SmallNet(), [(IMAGES, LABELS), IMAGES], {}, "in 1 of 2"),
    "labels beyond the outputs": (SmallNet(), [(IMAGES, LABELS + 10)], {}, "from 0 to 9"),
    "labels below -1": (SmallNet(), [(IMAGES, LABELS - 2)], {}, "from 0 to 9, or -1 where an image has none"),
    "weights that are not finite": (not_finite(), [(IMAGES, LABELS)], {}, "expected finite numbers"),
    "labels that are no classes": (SmallNet(), [(IMAGES, LABELS.float())], {}, "pass loss=a function"),
    "strings for labels": (SmallNet(), [(IMAGES, ["a"] * 8)], {}, "expected labels as a tensor"),
    "a vector as the loss": (SmallNet(), [(IMAGES, LABELS)], {"loss": lambda out, _: out.mean(1)}, "got a tensor of (4,); take its mean"),
    "a loss without a gradient": (SmallNet(), [(IMAGES, LABELS)], {"loss": lambda out, _: out.detach().mean()}, "without a gradient"),
    "a number as the loss": (SmallNet(), [(IMAGES, LABELS)], {"loss": lambda out, _: 1.0}, "got float"),
    "a failing loss": (SmallNet(), [(IMAGES, LABELS)], {"loss": lambda out, _: out[99]}, "the function failed: IndexError"),
    "a loss without labels": (SmallNet(), [IMAGES], {"loss": squared_error}, "needs labels"),
    "an unknown loss": (SmallNet(), [(IMAGES, LABELS)], {"loss": "mse"}, "a function of outputs and labels, got 'mse'"),
    "an unknown pruner": (SmallNet(), [(IMAGES, LABELS)], {"pruner": "capp"}, "did you mean cap"),
    "an unknown setting": (SmallNet(), [(IMAGES, LABELS)], {"settings": ["pruner.blok_size=3"]}, "block_size"),
    "one string of settings": (SmallNet(), [(IMAGES, LABELS)], {"settings": "steps=2"}, "expected a list of strings"),
    "a target for units": (SmallNet(), [(IMAGES, LABELS)], {"removed": 0.5}, "removed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    model, given, arguments, words = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        prune(model, given, **{"sparsity": 0.5, "output": tmp_path} | arguments)
    assert words in str(refused.value) and "\n" not in str(refused.value)
