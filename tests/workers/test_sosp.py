"""SOSP-H and SOSP-I against dense Hessians and explicit Jacobians."""

import pytest
import torch
from saliency_cases import (
    NETS,
    TARGET,
    convolutional,
    data,
    dense,
    distance,
    measured,
    outputs_of,
    perceptron,
    pruners,
    silent,
    structure_matrix,
    transformer,
)
from torch import nn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from workers.collect import unit_saliency as saliency
from workers.errors import ConfigError, SecateurError
from workers.losses import Loss
from workers.pruners.sosp import SOSPH, SOSPI, Product
from workers.pruners.units import UnitSums


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("net", NETS)
def test_sosp_h_is_the_product_with_the_dense_curvature(net, loss):
    """Exactly by differentiating twice, to 1e-3 by scaling; with sampled and features the gradient is that of a minimum."""
    model, groups, shape = NETS[net]()
    batches = data(shape)
    gradient_S, curvature_S = dense(model, groups, batches, loss)
    for method, tolerance in (("exact", 1e-10), ("scaling", 1e-3)):
        totals = measured(method, model, groups, batches, loss)
        assert (totals.samples, totals.batches, totals.skipped) == (7, 2, 0)
        assert distance(totals.sums["curvature_S"], curvature_S) < tolerance
        if loss is Loss.LABELS:
            assert distance(totals.sums["gradient_S"], gradient_S) < tolerance
        else:
            torch.testing.assert_close(totals.sums["gradient_S"], torch.zeros_like(gradient_S), rtol=0, atol=1e-14)
        score_S = pruners()[method].rank(groups, totals).score_S
        assert distance(score_S, (gradient_S.abs() + curvature_S.abs() / 2) / 7) < tolerance


@pytest.mark.parametrize("name", ["gradient_S", "curvature_S"])
@pytest.mark.parametrize("net", NETS)
def test_scaling_errs_by_the_square_of_epsilon(net, name):
    model, groups, shape = NETS[net]()
    batches = data(shape)
    exact_S = dict(zip(("gradient_S", "curvature_S"), dense(model, groups, batches, Loss.LABELS), strict=True))[name]
    values = [saliency.sosp_h(model, groups, lambda: iter(batches), Loss.LABELS, epsilon).sums[name] for epsilon in (2e-3, 4e-3)]
    errors = [distance(found_S, exact_S) for found_S in values]
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("loss", [Loss.LABELS, Loss.SAMPLED])
@pytest.mark.parametrize("net", NETS)
def test_sosp_i_is_the_gauss_newton_matrix_between_units_in_greedy_order(net, loss, monkeypatch):
    """By explicit Jacobians, also if these come a few at a time; with sampled labels no gradient is expected."""
    monkeypatch.setattr(saliency, "JACOBIAN_BYTES", 20_000)
    model, groups, shape = NETS[net]()
    batches = data(shape)
    names, theta_PS, vector_P = structure_matrix(model, groups)
    model.requires_grad_(False)
    expected_SS, gradient_S = 0.0, torch.zeros(theta_PS.shape[1], dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        for images, labels in batches:
            at = outputs_of(model, names, images)
            for phi_DP, p, label in zip(jacrev(at)(vector_P), at(vector_P).softmax(1), labels, strict=True):
                jacobian_DS = phi_DP @ theta_PS
                expected_SS = expected_SS + jacobian_DS.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian_DS
                if loss is Loss.LABELS:
                    gradient_S += jacobian_DS.T @ (p - nn.functional.one_hot(label, 3))
    totals = measured("sosp_i", model, groups, batches, loss)
    torch.testing.assert_close(totals.sums["gauss_newton_SS"], expected_SS, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(totals.sums["gradient_S"], gradient_S, rtol=1e-9, atol=1e-12)
    quadratic_SS = expected_SS.abs() / (2 * 7) + torch.diag(gradient_S.abs() / 7)
    ranking, removed = SOSPI(TARGET, False).rank(groups, totals), []
    for unit in ranking.order_S.tolist():
        costs = {s: float(quadratic_SS[s, s] + 2 * quadratic_SS[s, removed].sum()) for s in range(len(quadratic_SS)) if s not in removed}
        assert unit == min(costs, key=costs.__getitem__)
        assert float(ranking.score_S[unit]) == pytest.approx(costs[unit], rel=1e-8)
        removed.append(unit)


def test_rows_of_the_matrix_between_units_add_up_to_the_product_with_all():
    """Two ways to the Fisher of a transformer: Jacobians of logits, and second derivatives of a divergence."""
    model, groups, shape = transformer()
    batches = data(shape)
    matrix_SS = measured("sosp_i", model, groups, batches, Loss.SAMPLED).sums["gauss_newton_SS"]
    product_S = measured("exact", model, groups, batches, Loss.SAMPLED).sums["curvature_S"]
    torch.testing.assert_close(matrix_SS.sum(1), product_S, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", list(Loss))
def test_a_unit_split_in_two_shares_its_worth(loss):
    """A copy of a unit, both with half of the outgoing weights: the same function, and each half of the saliency."""
    model, groups, shape = perceptron()
    _, theirs, _ = perceptron()
    silent(model, 1)
    before_S = measured("exact", model, groups, data(shape), loss).sums["curvature_S"]
    with torch.no_grad():
        first, second = model.body[1], model.body[3]
        first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
        second.weight[:, 0] /= 2
        second.weight[:, 1] = second.weight[:, 0]
    after_S = measured("exact", model, theirs, data(shape), loss).sums["curvature_S"]
    torch.testing.assert_close(after_S[:2], before_S[0].repeat(2) / 2, rtol=1e-9, atol=1e-15)


def test_absolute_values_are_taken_after_all_data_is_added():
    """A batch with its terms turned round cancels: the score is that of the sum, and not the sum of the scores."""
    totals = UnitSums({"gradient_S": torch.tensor([3.0, -1.0]), "curvature_S": torch.tensor([-4.0, 2.0])}, 2, 1, 0)
    totals.sums.update(scale_S=torch.ones(2), weights_S=torch.tensor([4.0, 8.0]))
    turned = UnitSums({name: value * (-1 if name in ("gradient_S", "curvature_S") else 1) for name, value in totals.sums.items()}, 2, 1, 0)
    assert pruners()["scaling"].rank([], totals + turned).score_S.tolist() == [0.0, 0.0]
    assert pruners()["scaling"].rank([], totals + totals).score_S.tolist() == [2.5, 1.0]
    assert pruners(normalise=True)["scaling"].rank([], totals + totals).score_S.tolist() == [1.25, 0.25]


def test_normalised_scores_are_per_weight_of_a_unit():
    model, groups, shape = perceptron()
    totals = measured("scaling", model, groups, data(shape)) + measured("scaling", model, groups, data(shape, seed=5))
    plain, normalised = (pruners(normalise=each)["scaling"].rank(groups, totals).score_S for each in (False, True))
    torch.testing.assert_close(plain / normalised, torch.tensor([13.0] * 5 + [12.0] * 2, dtype=torch.float64))


@pytest.mark.parametrize("method", ["scaling", "exact"])
def test_rows_before_a_norm_of_the_batch_vanish_and_with_the_norms_own_weights_they_do_not(method):
    """The loss does not depend on the scale of a filter whose batch norm takes the statistics of the batch."""
    batches = data((3, 7, 7))
    for statistics, norms, share in ((False, False, 1.0), (True, True, 0.0)):
        model, groups, _ = convolutional(statistics, norms)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-12  # which is what the scale of a filter is seen by
        ranking = pruners()[method].rank(groups, measured(method, model, groups, batches))
        assert ranking.notes["vanishing"] == share
        assert float(ranking.score_S.max()) < 1e-8 if share else float(ranking.score_S.min()) > 1e-4


def test_sosp_i_refuses_features_before_any_work():
    model, groups, _ = perceptron()
    for work in (lambda: SOSPI(TARGET, False).passes(Loss.FEATURES, 3), lambda: measured("sosp_i", model, groups, [], Loss.FEATURES)):
        with pytest.raises(ConfigError, match=r"loss: expected labels or sampled with pruner=sosp_i.*sosp_h"):
            work()


def test_an_operation_that_cannot_be_differentiated_twice_is_refused_by_name():
    model, groups, shape = perceptron()
    model.body[2] = nn.Hardsigmoid().eval()
    with pytest.raises(SecateurError, match=r"hardsigmoid.*product=scaling"):
        measured("exact", model, groups, data(shape))
    assert measured("scaling", model, groups, data(shape)).batches == 2


@pytest.mark.parametrize("epsilon", [0.0, -1e-2, 1.0])
def test_an_epsilon_that_scales_nothing_or_too_much_is_refused(epsilon):
    with pytest.raises(ConfigError, match=r"pruner\.epsilon"):
        SOSPH(TARGET, False, Product.SCALING, epsilon, False)


@pytest.mark.parametrize("net", ["perceptron", "transformer"])  # torch lacks what curvlinops takes of SiLU
def test_curvlinops_finds_the_same_products(net):
    """Its Hessian for the cross-entropy, and its Gauss-Newton matrix for the divergence from the model's own predictions."""
    curvlinops = pytest.importorskip("curvlinops")
    model, groups, shape = NETS[net]()
    batches = data(shape)
    names, theta_PS, _ = structure_matrix(model, groups)
    weights = [model.get_parameter(name).requires_grad_(True) for name in names]
    for loss, operator in ((Loss.LABELS, curvlinops.HessianLinearOperator), (Loss.SAMPLED, curvlinops.GGNLinearOperator)):
        with sdpa_kernel(SDPBackend.MATH):
            curvature = operator(model, nn.CrossEntropyLoss(reduction="sum"), weights, batches, check_deterministic=False)
            product_P = curvature @ theta_PS.sum(1)
        assert distance(measured("exact", model, groups, batches, loss).sums["curvature_S"], theta_PS.T @ product_P.detach()) < 1e-10
        assert distance(measured("scaling", model, groups, batches, loss).sums["curvature_S"], theta_PS.T @ product_P.detach()) < 1e-3
