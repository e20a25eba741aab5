"""Paired inputs and the fit to them, against literal sums in float64 and ridge regression on explicit data."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kernels.second_moment import SecondMoment
from workers.collect.paired_inputs import paired_inputs
from workers.data.base import Batch
from workers.errors import ConfigError, SecateurError
from workers.losses import Loss
from workers.models.base import Layer
from workers.pruners.refit import Order, Refit, refit_layer


class Twice(nn.Module):
    """A linear layer that is used twice, and an activation that overwrites the input of the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        hidden_NTC = self.first(images_NCHW.flatten(2).transpose(1, 2))
        output_NTC = self.shared(self.shared(hidden_NTC))
        hidden_NTC.relu_()
        return self.last(output_NTC).mean(1)


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=2), nn.ReLU(inplace=True), nn.Conv2d(8, 6, (2, 1), padding="same"))


def layers_of(model: nn.Module) -> list[Layer]:
    return [
        Layer(name, len(m.weight), m.weight[0].numel(), m.weight[0, 0].numel(), getattr(m, "groups", 1))
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    ]


def pair(kind: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    dense = Twice() if kind == "twice" else convolutions()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return dense, pruned


def batches(count: int, seed: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield Batch(torch.randn(3, 4, 4, 4, generator=generator), torch.zeros(3, dtype=torch.long))


def literal_inputs(model: nn.Module, layer: Layer, data: list[Batch]) -> Tensor:
    """All input vectors of a layer in the order of the forward pass, (T, G, C) in float64, through hooks of its module."""
    model, vectors = copy.deepcopy(model).double(), []
    module = model.get_submodule(layer.name)

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear):
            vectors.append(inputs[0].reshape(-1, 1, layer.columns).clone())
            return
        taps = layer.columns
        eye = torch.eye(taps).double().reshape(taps, *module.weight.shape[1:]).repeat(layer.groups, 1, 1, 1)
        patches = module._conv_forward(inputs[0], eye, None)  # one output for each entry of a patch
        vectors.append(patches.flatten(2).transpose(1, 2).reshape(-1, layer.groups, taps))

    module.register_forward_pre_hook(take)
    with torch.no_grad():
        for batch in data:
            model(batch.images_NCHW.double())
    return torch.cat(vectors)


@pytest.mark.parametrize("kind", ["twice", "convolutions"])
def test_sums_are_over_all_pairs_of_inputs_of_both_models(kind: str) -> None:
    (dense, pruned), data = pair(kind), list(batches(4))
    collected = paired_inputs(dense, pruned, layers_of(dense), iter(data), Loss.LABELS, 8)
    for layer in layers_of(dense):
        y_TGC, x_TGC = literal_inputs(dense, layer, data), literal_inputs(pruned, layer, data)
        moment = collected.moments[layer.name]
        assert moment.count == len(x_TGC) and collected.skipped[layer.name] == 0
        expected = torch.einsum("tgi,tgj->gij", x_TGC, x_TGC) / len(x_TGC)
        torch.testing.assert_close(moment.mean_nBB().double(), expected, rtol=1e-4, atol=1e-5)
        expected = torch.einsum("tgi,tgj->gij", y_TGC, x_TGC) / len(x_TGC)
        torch.testing.assert_close(moment.cross_nBB().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["twice", "convolutions"])
def test_which_layers_are_collected_together_changes_no_byte(kind: str) -> None:
    """A pass for early layers ends early; a layer that is used twice is waited for twice."""
    dense, pruned = pair(kind)
    together = paired_inputs(dense, pruned, layers_of(dense), batches(4), Loss.LABELS, 8)
    for layer in layers_of(dense):
        alone = paired_inputs(dense, pruned, [layer], batches(4), Loss.LABELS, 8).moments[layer.name]
        moment = together.moments[layer.name]
        assert torch.equal(alone.mean_nBB(), moment.mean_nBB()) and torch.equal(alone.cross_nBB(), moment.cross_nBB())


def test_a_pass_ends_when_its_layers_were_reached() -> None:
    dense, pruned = pair("convolutions")
    calls = []
    dense[2].register_forward_hook(lambda *_: calls.append(1))
    paired_inputs(dense, pruned, layers_of(dense)[:1], batches(4), Loss.LABELS, 8)
    assert len(calls) == 1  # of this model, the first pass alone goes to the end


def test_batches_with_inputs_that_are_not_finite_are_skipped_and_counted() -> None:
    (dense, pruned), good = pair("convolutions"), list(batches(2))
    bad = Batch(torch.full((3, 4, 4, 4), torch.nan), good[0].labels)
    in_order = [good[0], good[1], bad, bad, good[0]]
    with_bad = paired_inputs(dense, pruned, layers_of(dense), iter(in_order), Loss.LABELS, 6)  # two batches in a pass
    clean = paired_inputs(dense, pruned, layers_of(dense), iter([*good, good[0]]), Loss.LABELS, 6)
    for name, moment in with_bad.moments.items():
        assert torch.equal(moment.cross_nBB(), clean.moments[name].cross_nBB()) and with_bad.skipped[name] == 2


def test_batches_pass_together_and_make_the_sums_of_single_ones() -> None:
    dense, pruned = pair("convolutions")
    together, single = (paired_inputs(dense, pruned, layers_of(dense), batches(5), Loss.LABELS, samples) for samples in (7, 1))
    for name, moment in together.moments.items():
        assert moment.count == single.moments[name].count
        torch.testing.assert_close(moment.cross_nBB(), single.moments[name].cross_nBB(), rtol=1e-4, atol=1e-5)


def problem(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor, SecondMoment]:
    """Weights, mask, explicit inputs of the pruned and of the dense model (T, G, C), and their sums."""
    generator = torch.Generator().manual_seed(4)
    weight_RC = torch.randn(layer.rows, layer.columns, generator=generator)
    keep_RC = torch.rand(layer.rows, layer.columns, generator=generator) < 0.5
    y_TGC = torch.randn(60, layer.groups, layer.columns, generator=generator) @ torch.randn(
        layer.columns, layer.columns, generator=generator
    )
    x_TGC = y_TGC + 0.5 * torch.randn(y_TGC.shape, generator=generator)
    moment = SecondMoment(
        torch.einsum("tgi,tgj->gij", x_TGC, x_TGC), 60, cross_sum_nBB=torch.einsum("tgi,tgj->gij", y_TGC, x_TGC).contiguous()
    )
    return weight_RC, keep_RC, x_TGC, y_TGC, moment


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("layer", [Layer("linear", 6, 10), Layer("large", 4, 70), Layer("grouped", 6, 18, kernel=9, groups=3)])
def test_the_fit_is_ridge_regression_on_the_mask(layer: Layer, share: float) -> None:
    """Row by row, ``numpy.linalg.lstsq`` on the data themselves with one more equation for each weight."""
    weight_RC, keep_RC, x_TGC, y_TGC, moment = problem(layer)
    fitted_RC = refit_layer(weight_RC, layer, moment, keep_RC, Refit(Order.SEQUENTIAL, share, 0.02))
    penalty = 0.02 * float(x_TGC.double().square().sum(0).mean() / 60)
    for row in range(layer.rows):
        group, keep, w = row // (layer.rows // layer.groups), keep_RC[row].numpy(), weight_RC[row].double().numpy()
        x, y = x_TGC[:, group].double().numpy(), y_TGC[:, group].double().numpy()
        target = (share * y + (1 - share) * x) @ w
        equations = np.concatenate([x[:, keep] / np.sqrt(60), np.sqrt(penalty) * np.eye(keep.sum())])
        truth = np.linalg.lstsq(equations, np.concatenate([target / np.sqrt(60), np.sqrt(penalty) * w[keep]]), rcond=None)[0]
        np.testing.assert_allclose(fitted_RC[row].numpy()[keep], truth, rtol=2e-3, atol=2e-4)
        assert (fitted_RC[row].numpy()[~keep] == 0).all()


def test_weights_stay_where_nothing_is_masked_and_inputs_are_equal() -> None:
    weight_RC, _, x_TGC, _, _ = problem(layer := Layer("linear", 6, 10))
    own = torch.einsum("tgi,tgj->gij", x_TGC, x_TGC)
    everything = torch.ones(6, 10, dtype=torch.bool)
    fitted_RC = refit_layer(weight_RC, layer, SecondMoment(own, 60, cross_sum_nBB=own.clone()), everything, Refit(Order.SEQUENTIAL))
    torch.testing.assert_close(fitted_RC, weight_RC, rtol=0.0, atol=1e-5)


def test_no_finite_input_is_an_error_that_names_the_layer() -> None:
    weight_RC, keep_RC, _, _, moment = problem(layer := Layer("linear", 6, 10))
    with pytest.raises(SecateurError, match="linear: expected a calibration batch with finite values"):
        refit_layer(weight_RC, layer, SecondMoment(moment.sum_nBB, 0, cross_sum_nBB=moment.cross_sum_nBB), keep_RC, Refit())


@pytest.mark.parametrize("settings", [{"dense_share": 1.5}, {"dense_share": -0.1}, {"dampening": 0.0}, {"samples": 0}, {"stages": 0}])
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=rf"pruner\.refit\.{next(iter(settings))}: expected"):
        Refit(Order.SEQUENTIAL, **settings)
