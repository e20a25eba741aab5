"""The guided Hessian and its pruner, against literal sums in float64, the Fisher of single rows, and invariances."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kernels.patterns import FREE
from kernels.second_moment import SecondMoment
from workers.collect.guided_hessian import guided_hessian
from workers.collect.layer_hessian import layer_hessian
from workers.collect.statistic import BlockFisher, GuidedHessian, Statistic
from workers.data.base import Batch
from workers.errors import SecateurError
from workers.losses import Loss
from workers.models.base import Layer
from workers.pruners.base import Scope, Target
from workers.pruners.cap import Score
from workers.pruners.guided import Guided
from workers.pruners.obc import OBC

CLASSES = 5


class Tokens(nn.Module):
    """Two linear layers on six tokens, and the mean over tokens: the inputs of both layers are many for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, CLASSES)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        tokens_NTC = images_NCHW.flatten(2).transpose(1, 2)
        return self.second(torch.tanh(self.first(tokens_NTC))).mean(1)


def convolutions() -> nn.Module:
    first = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=2)
    return nn.Sequential(first, nn.Tanh(), nn.Conv2d(8, 6, (2, 1), dilation=(1, 2), padding="same"), nn.Flatten(), nn.LazyLinear(CLASSES))


def layers_of(model: nn.Module) -> list[Layer]:
    return [
        Layer(name, len(m.weight), m.weight[0].numel(), m.weight[0, 0].numel(), getattr(m, "groups", 1))
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    ]


def batches(count: int, size: int, seed: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield Batch(torch.randn(size, 4, 3, 2, generator=generator), torch.randint(CLASSES, (size,), generator=generator))


def made(kind: str) -> nn.Module:
    torch.manual_seed(1)
    model = Tokens() if kind == "tokens" else convolutions()
    model(next(batches(1, 2)).images_NCHW)
    return model.eval()


def literal(model: nn.Module, layer: Layer, sets: int, data: list[Batch]) -> tuple[Tensor, Tensor]:
    """``sum_t mean_{r in k} d_tr^2 x_t x_t^T`` (sets, C, C) and ``sum_t d_tr^2`` (R,), position by position in float64."""
    model = copy.deepcopy(model).double()
    module, captured = model.get_submodule(layer.name), {}
    module.register_forward_hook(lambda _, inputs, output: captured.update(x=inputs[0], y=output))
    total, rows = torch.zeros(layer.groups * sets, layer.columns, layer.columns).double(), torch.zeros(layer.rows).double()
    for batch in data:
        loss = nn.functional.cross_entropy(model(batch.images_NCHW.double()), batch.labels)
        (d,) = torch.autograd.grad(loss, captured["y"])
        if isinstance(module, nn.Linear):
            vectors, derivatives = captured["x"].reshape(-1, 1, layer.columns), d.reshape(-1, layer.rows)
        else:
            whole = nn.Conv2d(
                module.in_channels, 1, module.kernel_size, module.stride, module.padding, module.dilation, bias=False
            ).double()
            taps = whole.weight[0].numel()
            eye = torch.eye(taps).double().reshape(taps, *whole.weight.shape[1:])
            patches = whole._conv_forward(captured["x"], eye, None)  # one output for each entry of a patch
            vectors = patches.flatten(2).transpose(1, 2).reshape(-1, layer.groups, layer.columns)
            derivatives = d.flatten(2).transpose(1, 2).reshape(-1, layer.rows)
        size = layer.rows // (layer.groups * sets)
        for x_GC, d_R in zip(vectors.detach(), derivatives, strict=True):
            rows += d_R.square()
            for k in range(layer.groups * sets):
                x_C = x_GC[k // sets]
                total[k] += d_R[k * size : (k + 1) * size].square().mean() * torch.outer(x_C, x_C)
    return total, rows


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("kind", ["tokens", "convolutions"])
def test_it_is_the_sum_over_positions_weighted_by_the_squared_derivatives_of_each_set(kind: str, sets: int) -> None:
    model, data = made(kind), list(batches(3, 4))
    layers = layers_of(model)
    statistic = GuidedHessian(sets, FREE)
    collected = statistic.collect(copy.deepcopy(model), layers, iter(data), Loss.LABELS, 0)
    for layer in layers:
        total, rows = literal(model, layer, statistic.sets(layer), data)
        moment = collected.moments[layer.name]
        assert moment.count == 3 and moment.sum_nBB.shape == (*statistic.shape(layer), layer.columns)
        torch.testing.assert_close(3 * moment.mean_nBB().double(), total, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(moment.rows_R, rows, rtol=1e-4, atol=1e-9)


def test_an_activation_that_overwrites_the_output_of_a_layer_changes_nothing() -> None:
    torch.manual_seed(0)
    collected = []
    weights = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES)).state_dict()
    for inplace in (False, True):
        model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(48, CLASSES))
        model.load_state_dict(weights)
        collected.append(GuidedHessian(2, FREE).collect(model, layers_of(model), batches(3, 4), Loss.LABELS, 0).moments)
    for name, moment in collected[0].items():
        assert torch.equal(moment.mean_nBB(), collected[1][name].mean_nBB()) and torch.equal(moment.rows_R, collected[1][name].rows_R)
        assert moment.mean_nBB().abs().sum() > 0


@pytest.mark.parametrize("statistic", [GuidedHessian(1, FREE), BlockFisher(4, FREE)], ids=["guided", "fisher"])
@pytest.mark.parametrize("names", [["second"], ["first", "second"]], ids=["alone", "beside another"])
def test_a_layer_that_the_loss_does_not_depend_on_is_named(statistic: Statistic, names: list[str]) -> None:
    class Idle(Tokens):
        def forward(self, images_NCHW: Tensor) -> Tensor:
            hidden_NTR = self.first(images_NCHW.flatten(2).transpose(1, 2))
            self.second(hidden_NTR)
            return hidden_NTR.mean(1)[:, :CLASSES]

    layers = [layer for layer in layers_of(Idle()) if layer.name in names]
    with pytest.raises(SecateurError, match=r"second: .*does not depend on this layer; .*model\.exclude"):
        statistic.collect(Idle(), layers, batches(2, 3), Loss.LABELS, 0)


def test_a_set_for_each_row_is_the_fisher_of_the_row_where_a_sample_has_one_vector() -> None:
    """One sample in a batch and one vector in a sample: nothing is left out, so rows equal blocks of ``g g^T`` by autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    data, layers = list(batches(5, 1)), layers_of(model)
    collected = guided_hessian(copy.deepcopy(model), layers, iter(data), {layer.name: layer.rows for layer in layers}, Loss.LABELS, 0)
    for layer in layers:
        fisher = torch.zeros(layer.rows, layer.columns, layer.columns)
        weight = model.get_parameter(f"{layer.name}.weight")
        for batch in data:
            (gradient_RC,) = torch.autograd.grad(nn.functional.cross_entropy(model(batch.images_NCHW), batch.labels), weight)
            fisher += gradient_RC[:, :, None] * gradient_RC[:, None, :]
        torch.testing.assert_close(5 * collected.moments[layer.name].mean_nBB(), fisher, rtol=1e-4, atol=1e-7)
        assert torch.equal(collected.moments[layer.name].row_weights_R(), torch.ones(layer.rows).double())


def test_batches_with_numbers_that_are_not_finite_are_skipped_and_counted() -> None:
    model = made("tokens")
    good = list(batches(2, 4))
    bad = Batch(torch.full((4, 4, 3, 2), torch.nan), good[0].labels)
    whole = GuidedHessian(1, FREE)
    with_bad = whole.collect(copy.deepcopy(model), layers_of(model), iter([good[0], bad, good[1]]), Loss.LABELS, 0)
    clean = whole.collect(copy.deepcopy(model), layers_of(model), iter(good), Loss.LABELS, 0)
    for name, moment in with_bad.moments.items():
        assert torch.equal(moment.mean_nBB(), clean.moments[name].mean_nBB()) and with_bad.skipped[name] == 1 and moment.count == 2


def pruner(sets: int = 2, block_size: int = 2048) -> Guided:
    return Guided(Target(0.5, Scope.GLOBAL), sets, 1e-2, True, Score.HULL, block_size)


@pytest.fixture
def scored() -> tuple[Layer, Tensor, SecondMoment]:
    generator = torch.Generator().manual_seed(3)
    factor_nBK = torch.randn(2, 6, 40, generator=generator)
    rows_R = torch.rand(8, generator=generator).double() + 0.1
    return Layer("fc", 8, 6), torch.randn(8, 6, generator=generator), SecondMoment(factor_nBK @ factor_nBK.mT, 40, rows_R)


def test_the_order_within_rows_is_obcs_and_losses_are_weighted_by_row(scored: tuple[Layer, Tensor, SecondMoment]) -> None:
    layer, weight_RC, moment = scored
    sensitivity = pruner().score(weight_RC, layer, moment)
    obc = OBC(Target(0.5, Scope.UNIFORM), 1e-2, True, Score.MARGINAL).score(weight_RC, layer, replace(moment, rows_R=None))
    assert torch.equal(sensitivity.order_nG, obc.order_nG)
    sets = moment.rows_R.reshape(2, 4)
    expected = obc.score_nG.double() * (sets / sets.mean(1, keepdim=True)).reshape(8, 1)
    torch.testing.assert_close(sensitivity.loss_nG.double(), expected, rtol=1e-5, atol=0.0)


def test_scaling_the_loss_changes_no_order_and_scales_all_scores(scored: tuple[Layer, Tensor, SecondMoment]) -> None:
    layer, weight_RC, moment = scored
    once = pruner().score(weight_RC, layer, moment)
    scaled = pruner().score(weight_RC, layer, SecondMoment(4 * moment.sum_nBB, moment.count, 4 * moment.rows_R))
    assert torch.equal(once.order_nG, scaled.order_nG)
    torch.testing.assert_close(scaled.score_nG, 4 * once.score_nG, rtol=1e-5, atol=0.0)


def test_permuting_rows_with_their_sets_permutes_scores_and_solutions(scored: tuple[Layer, Tensor, SecondMoment]) -> None:
    layer, weight_RC, moment = scored
    order = torch.tensor([6, 4, 7, 5, 1, 0, 3, 2])  # the sets swap places, and rows change theirs within a set
    moved = SecondMoment(moment.sum_nBB[[1, 0]], moment.count, moment.rows_R[order])
    once, after = pruner().score(weight_RC, layer, moment), pruner().score(weight_RC[order], layer, moved)
    assert torch.equal(after.order_nG, once.order_nG[order]) and torch.equal(after.score_nG, once.score_nG[order])
    keep_RC = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    solved = pruner().solve(weight_RC, layer, moment, keep_RC).weight_RC
    assert torch.equal(pruner().solve(weight_RC[order], layer, moved, keep_RC[order]).weight_RC, solved[order])


def test_rows_without_derivatives_are_removed_first_and_never_make_scores_that_are_not_numbers(
    scored: tuple[Layer, Tensor, SecondMoment],
) -> None:
    layer, weight_RC, moment = scored
    weight_RC[0, 0] = 0.0
    rows_R = moment.rows_R.clone()
    rows_R[0] = 0.0
    score_nG = pruner().score(weight_RC, layer, replace(moment, rows_R=rows_R)).score_nG
    assert not score_nG.isnan().any() and int(torch.isfinite(score_nG).sum()) == 47
    assert (score_nG[0][torch.isfinite(score_nG[0])] == 0).all()


@pytest.mark.parametrize("columns", [12, 11])
@pytest.mark.parametrize("relative", [True, False])
def test_parts_of_wide_rows_are_eliminated_as_layers_of_their_own(columns: int, relative: bool) -> None:
    """Where inputs of different parts are uncorrelated, order and losses are those of the whole row. The last part may be shorter."""
    generator = torch.Generator().manual_seed(5)
    layer, weight_RC = Layer("fc", 8, columns), torch.randn(8, columns, generator=generator)
    factor_nBK = torch.randn(2, columns, 40, generator=generator)
    sum_nBB = factor_nBK @ factor_nBK.mT
    part_C = torch.arange(columns) // 4
    sum_nBB *= part_C[:, None] == part_C
    moment = SecondMoment(sum_nBB, 40, torch.rand(8, generator=generator).double() + 0.1)
    settings = {"dampening": 1e-2 if relative else 1e-2 * float(moment.diagonal_nB().mean()), "relative_dampening": relative}
    whole = replace(pruner(), **settings).score(weight_RC, layer, moment)
    cut = replace(pruner(block_size=4), **settings)
    parts = cut.score(weight_RC, layer, moment)
    assert parts.order_nG.shape == (24, 4) and cut.layout(layer).blocks == 24
    for row in range(8):
        order, losses = whole.order_nG[row].long(), whole.loss_nG[row]
        for part in range(3):
            inside = part_C[order] == part
            size = int(inside.sum())
            assert torch.equal(parts.order_nG[3 * row + part, :size].long() + 4 * part, order[inside])
            torch.testing.assert_close(parts.loss_nG[3 * row + part, :size], losses[inside], rtol=1e-4, atol=0.0)
            assert (parts.loss_nG[3 * row + part, size:] == torch.inf).all()


def test_the_refit_of_a_cut_row_is_that_of_the_whole_row(scored: tuple[Layer, Tensor, SecondMoment]) -> None:
    layer, weight_RC, moment = scored
    keep_RC = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    whole, cut = (pruner(block_size=size).solve(weight_RC, layer, moment, keep_RC).weight_RC for size in (2048, 3))
    assert torch.equal(whole, cut)


def test_curvlinops_has_the_same_factors() -> None:
    """K-FAC by another library, up to its scale: its factor of the inputs, and the diagonal of its factor of the derivatives."""
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES))
    (batch,), layers = list(batches(1, 8)), layers_of(model)
    kfac = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(batch.images_NCHW, batch.labels)],
        fisher_type="empirical",
        kfac_approx="expand",
        check_deterministic=False,
    )
    kfac.compute_kronecker_factors()
    rows = guided_hessian(copy.deepcopy(model), layers, iter([batch]), {layer.name: 1 for layer in layers}, Loss.LABELS, 0).moments
    inputs = layer_hessian(model, layers, iter([batch])).moments

    def scaled(tensor: Tensor) -> Tensor:
        return tensor.double() / tensor.double().norm()

    for layer in layers:
        theirs = kfac._gradient_covariances[layer.name].diagonal()
        torch.testing.assert_close(scaled(rows[layer.name].rows_R), scaled(theirs), rtol=1e-4, atol=0.0)
        theirs = kfac._input_covariances[layer.name]
        torch.testing.assert_close(scaled(inputs[layer.name].mean_nBB()[0]), scaled(theirs), rtol=1e-3, atol=1e-6)
