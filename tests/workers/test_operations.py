"""Operations of a forward pass cover the model, and with fewer units they are those of the shrunk model."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from workers import timing
from workers.latency import Latency, Runtime
from workers.models.operations import find_operations
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import Kind, take
from workers.models.timm import TimmModel
from workers.timing import relative_error, time_in_turn, time_model, time_operation

FAMILIES = {
    "resnet18": ({"num_classes": 10}, 32),
    "resnet50": ({"num_classes": 10}, 32),
    "mobilenetv2_050": ({"num_classes": 10}, 32),
    "efficientnet_lite0": ({"num_classes": 10}, 32),
    "convnext_atto": ({"num_classes": 10}, 32),
    "vit_tiny_patch16_224": ({"num_classes": 10, "img_size": 32, "depth": 2}, 32),
}
GATED = {"mobilenetv3_small_050": ({"num_classes": 10}, 32)}


def made(name):
    arguments, size = (FAMILIES | GATED)[name]
    return TimmModel(checkpoint=None, name=name, arguments=arguments, include=["*"], exclude=[]), (3, size, size)


def flops(module, *inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


def flops_of(operations, units):
    return sum(
        flops(case.module.to_empty(device="meta"), *(torch.empty(shape, device="meta") for shape in case.inputs))
        for case in cases(operations, units)
    )


def halved(family, groups):
    """Half of the units of each group, and the family without the others."""
    half = {group.name: max(1, group.units // 2) for group in groups}
    with torch.device("meta"):
        state = family.build().state_dict()
    kept = {group.name: torch.arange(group.units) < half[group.name] for group in groups}
    return half, shrunk(family, state, take(state, groups, kept), groups, kept)


def cases(operations, units):
    return [operation.at([sum(units[name] for name in axis.groups) for axis in operation.axes]) for operation in operations]


@pytest.mark.parametrize("name", FAMILIES)
def test_operations_do_all_the_arithmetic_of_the_model_whole_and_shrunk(name):
    """By torch's counter: the sum over operations is the model's, with all units and with half of them."""
    family, shape = made(name)
    groups = find_groups(family, shape, streams=False)
    operations = find_operations(family, shape, 1, groups)
    half, smaller = halved(family, groups)
    for units, of in (({group.name: group.units for group in groups}, family), (half, smaller)):
        with torch.device("meta"):
            model, image_1CHW = of.build().eval(), torch.empty(1, *shape)
        assert flops_of(operations, units) == flops(model, image_1CHW)


@pytest.mark.parametrize("name", [*FAMILIES, *GATED])
def test_at_fewer_units_operations_are_those_of_the_shrunk_model(name):
    """Residual streams included: layers, additions, gates and means have the sizes that are found in the smaller model itself."""
    family, shape = made(name)
    groups = find_groups(family, shape, streams=True)
    half, smaller = halved(family, groups)
    there = [operation.at([]).text for operation in find_operations(smaller, shape, 2, [])]
    operations = find_operations(family, shape, 2, groups)
    assert [case.text for case in cases(operations, half)] == there
    if any(group.kind is Kind.STREAM for group in groups) or name in GATED:
        assert any(operation.axes for operation in operations if operation.function is not None)


def test_a_function_of_many_groups_has_no_axes():
    """DenseNet's last concatenation reads a group for each layer before it, so no table of two widths holds it; the first reads two."""
    arguments = {"num_classes": 10, "block_config": [3], "growth_rate": 8}
    family = TimmModel(checkpoint=None, name="densenet121", arguments=arguments, include=["*"], exclude=[])
    operations = find_operations(family, (3, 32, 32), 1, find_groups(family, (3, 32, 32), streams=False))
    puts = [operation for operation in operations if "cat" in operation.name and len(operation.inputs) > 1]
    assert [len(operation.axes) for operation in puts] == [2, 0, 0]


def test_attention_that_takes_query_key_and_value_is_timed_with_all_three():
    """torchvision's ViT, whose nn.MultiheadAttention stays whole: every operation runs on inputs of its shapes."""
    from workers.models.torchvision import TorchvisionModel

    family = TorchvisionModel(checkpoint=None, name="vit_b_16", arguments={"num_classes": 10, "image_size": 32}, include=["*"], exclude=[])
    groups, cpu = find_groups(family, (3, 32, 32), streams=False), torch.device("cpu")
    operations = find_operations(family, (3, 32, 32), 1, groups)
    attention = next(operation for operation in operations if operation.name.endswith("self_attention"))
    assert len(attention.inputs) == 3
    case = attention.at([])
    assert time_operation(case.module, case.inputs, settings(), cpu).ms > 0


def test_equal_layers_have_equal_texts_and_narrower_ones_others():
    family, shape = made("vit_tiny_patch16_224")
    operations = find_operations(family, shape, 1, find_groups(family, shape, streams=False))
    attention = [operation for operation in operations if operation.name.endswith("attn")]
    assert attention[0].at([3]).text == attention[1].at([3]).text != attention[0].at([2]).text
    assert "heads=2" in attention[0].at([2]).text


def settings(runtime=Runtime.EAGER, **others):
    return Latency(**({"runtime": runtime, "batch_size": 1, "threads": 1, "widths": 4, "spread": 0.05, "seconds": 0.02} | others))


def test_a_layer_of_a_thousand_times_the_work_takes_longer():
    cpu = torch.device("cpu")
    small, large = (time_operation(nn.Linear(size, size, device="meta"), [(64, size)], settings(), cpu) for size in (32, 1024))
    assert large.ms > small.ms > 0 and large.repeats >= 7


@pytest.mark.parametrize("runtime", [Runtime.EAGER, Runtime.ONNXRUNTIME])
def test_runtimes_time_the_same_model(runtime):
    if runtime is Runtime.ONNXRUNTIME:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    before, model = torch.get_num_threads(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    assert time_model(model, torch.randn(2, 3, 8, 8), settings(runtime)).ms > 0
    assert torch.get_num_threads() == before


def test_a_machine_that_slows_down_slows_a_model_and_the_one_beside_it(monkeypatch):
    """On a clock that runs twice as fast from its 20th reading on: half the work is half the time, whenever it was done."""
    readings = iter(range(10**6))
    monkeypatch.setattr(timing, "_by_clock", lambda run: run() * (1 + (next(readings) >= 20)))

    class Work(nn.Module):
        def __init__(self, ms: float) -> None:
            super().__init__()
            self.ms = ms

        def forward(self, images_NCHW: torch.Tensor) -> float:
            return self.ms * len(images_NCHW)

    half, same = time_in_turn([Work(1.0), Work(2.0)], Work(2.0), torch.randn(3, 1), settings())
    assert (half.ratio, same.ratio) == (0.5, 1.0) and half.spread == 0
    assert half.beside_ms in (6.0, 12.0) and half.repeats == timing.FEWEST


@pytest.mark.slow
def test_a_compiled_operation_is_timed():
    timing = time_operation(
        nn.Sequential(nn.Linear(8, 8, device="meta"), nn.ReLU()), [(4, 8)], settings(Runtime.COMPILE), torch.device("cpu")
    )
    assert timing.repeats >= 7


def test_the_error_of_a_median_is_that_of_normal_noise():
    """Against its spread over many repetitions: 1.2533 sigma / sqrt(n)."""
    torch.manual_seed(0)
    draws = 10 + torch.randn(400, 101).double()
    true = float(draws.median(1).values.std() / 10)
    estimated = sum(relative_error(row.tolist()) for row in draws) / 400
    assert estimated == pytest.approx(true, rel=0.15)
