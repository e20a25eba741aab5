"""Passes in bfloat16: what is computed in it, what stays float32, and how far the collected sums move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from recovery_cases import HEADLESS, VIT

from kernels.patterns import FREE
from kernels.second_moment import SecondMoment
from workers.collect.statistic import BlockFisher, GuidedHessian, LayerHessian, Statistic
from workers.data.base import Batch
from workers.errors import SecateurError
from workers.losses import Loss, forward
from workers.models.profile import profile
from workers.precision import Precision, in_precision

SHAPE = (1, 8, 8)


def batches(count: int = 16) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield Batch(torch.randn(4, *SHAPE, generator=generator), torch.randint(4, (4,), generator=generator))


def test_products_are_bfloat16_and_outputs_and_parameters_float32() -> None:
    """Also where features are read by another method than ``forward``, which calls no hook of the model."""
    model = HEADLESS.build().eval()
    seen: list[torch.dtype] = []
    model.get_submodule("blocks.0.mlp.fc1").register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    low, images_NCHW = in_precision(model, Precision.BF16), next(batches(1)).images_NCHW
    outputs = [low(images_NCHW), forward(Loss.FEATURES, low, images_NCHW), model(images_NCHW)]
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert [each.dtype for each in outputs] == [torch.float32] * 3
    assert all(mine is its for mine, its in zip(low.parameters(), model.parameters(), strict=True))


def test_a_module_that_cannot_be_pickled_can_be_run_in_bfloat16() -> None:
    class Unpicklable(torch.nn.Linear):
        def __reduce_ex__(self, protocol: object) -> str:
            raise TypeError("no")

    model = Unpicklable(3, 2)
    assert in_precision(model, Precision.BF16)(torch.ones(1, 3)).dtype == torch.float32


def test_float32_is_the_model_itself() -> None:
    model = VIT.build()
    assert in_precision(model, Precision.FP32) is model


@pytest.mark.parametrize("statistic", [BlockFisher(8, FREE), LayerHessian(FREE), GuidedHessian(2, FREE)], ids=lambda s: type(s).__name__)
def test_sums_of_bfloat16_passes_are_float32_and_close(statistic: Statistic) -> None:
    """Products are rounded to 8 bits, sums are not: the sums of a layer differ by some percent of their norm, and are not the same."""
    torch.manual_seed(0)
    model, layers = VIT.build().eval(), list(profile(VIT, SHAPE).layers)

    def collected(precision: Precision) -> dict[str, SecondMoment]:
        return statistic.collect(in_precision(model, precision), layers, batches(), Loss.LABELS, 0).moments

    exact, rounded = collected(Precision.FP32), collected(Precision.BF16)
    for layer in layers:
        truth, other = exact[layer.name].sum_nBB, rounded[layer.name].sum_nBB
        assert other.dtype == torch.float32
        error = float((other - truth).norm() / truth.norm())
        assert error < 0.05, (layer.name, error)
    assert any(not torch.equal(exact[layer.name].sum_nBB, rounded[layer.name].sum_nBB) for layer in layers)


def test_a_device_without_bfloat16_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A V100 would compute in bfloat16 by emulation, or not at all."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(model, "parameters", lambda: iter([replaced_device()]))
    with pytest.raises(SecateurError, match="precision=bf16: Tesla V100 has no bfloat16; set precision=fp32"):
        in_precision(model, Precision.BF16)


def replaced_device() -> torch.Tensor:
    class OnCuda(torch.Tensor):
        device = torch.device("cuda:0")  # type: ignore[assignment]

    return torch.zeros(1).as_subclass(OnCuda)
