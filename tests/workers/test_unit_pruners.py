"""First-order and data-free rankings of units against their definitions, and the contract of a pruner of units."""

import math

import pytest
import torch
from saliency_cases import NETS, READERS, TARGET, convolutional, data, group, measured, perceptron, pruners, silent, structure_matrix
from torch import nn
from torch.nn.functional import cross_entropy

from workers.data.base import Batch
from workers.errors import SecateurError
from workers.losses import Loss
from workers.models.structures.groups import Kind
from workers.pruners.taylor import UnitTaylor
from workers.pruners.unit_baselines import UnitMagnitude, UnitRandom
from workers.pruners.units import UnitSums


def averaged(changes_BS, squared):
    """What a first-order change of the loss in each batch makes of a unit's score: the mean magnitude, or half the mean square."""
    return changes_BS.square().mean(0) / 2 if squared else changes_BS.abs().mean(0)


@pytest.mark.parametrize("squared", [False, True])
def test_taylor_is_gamma_times_gradient_plus_beta_times_gradient_before_the_absolute_value(squared):
    """Of the norm that follows a convolution, and not of its rows; the mean over batches."""
    model, groups, shape = convolutional()
    batches, expected = data(shape), []
    for images, labels in batches:
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        norms = [model.body[at] for at in (1, 4)]
        expected.append(torch.cat([(norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach() for norm in norms]))
    score_S = UnitTaylor(TARGET, False, squared).rank(groups, measured("taylor", model, groups, batches)).score_S
    torch.testing.assert_close(score_S, averaged(torch.stack(expected), squared), rtol=1e-10, atol=0)


@pytest.mark.parametrize("squared", [False, True])
def test_taylor_without_norms_is_over_all_weights_of_a_unit(squared):
    model, groups, shape = perceptron()
    batches = data(shape)
    names, theta_PS, _ = structure_matrix(model, groups)
    expected = []
    for images, labels in batches:
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        expected.append(theta_PS.T @ torch.cat([model.get_parameter(name).grad.reshape(-1) for name in names]))
    score_S = UnitTaylor(TARGET, False, squared).rank(groups, measured("taylor", model, groups, batches)).score_S
    torch.testing.assert_close(score_S, averaged(torch.stack(expected), squared), rtol=1e-10, atol=0)


def test_magnitude_is_the_root_mean_square_of_the_weights_that_produce_a_unit():
    model, groups, _ = perceptron()
    weight, bias = model.body[3].weight.detach(), model.body[3].bias.detach()
    pair = torch.cat([weight[[0, 3]].reshape(-1), bias[[0, 3]]])
    totals = measured("magnitude", model, groups, None)
    score_S = UnitMagnitude(TARGET, False).rank(groups, totals).score_S
    assert float(score_S[5]) == pytest.approx(float(pair.square().mean().sqrt()), rel=1e-12)
    assert torch.equal(UnitMagnitude(TARGET, False).rank(groups, totals + totals).score_S, score_S)


def test_random_orders_depend_on_the_seed_and_not_on_other_groups():
    model, groups, _ = perceptron()
    drawn = {seed: pruners(seed)["random"].collect(model, groups, None, Loss.LABELS, 9).sums["drawn_S"] for seed in range(400)}
    assert len({tuple(numbers.tolist()) for numbers in drawn.values()}) == 400
    alone = pruners(7)["random"].collect(model, groups[1:], None, Loss.LABELS, 0).sums["drawn_S"]
    assert torch.equal(alone, drawn[7][5:])
    first = torch.stack([UnitRandom(TARGET, False, 0).rank(groups, UnitSums({"drawn_S": d}, 0, 0, 0)).order_S[0] for d in drawn.values()])
    assert first.bincount(minlength=7).min() > 400 / 7 - 5 * math.sqrt(400 / 7)


@pytest.mark.parametrize("method", [*READERS, "magnitude"])
def test_a_dead_unit_is_worth_nothing(method):
    model, groups, shape = perceptron()
    totals = measured(method, silent(model, 3), groups, data(shape))
    ranking = pruners()[method].rank(groups, totals)
    assert float(ranking.score_S[3]) == 0.0 and int(ranking.order_S[0]) == 3 and int((ranking.score_S == 0).sum()) == 1


@pytest.mark.parametrize("method", [*READERS, "magnitude"])
def test_units_in_another_order_are_worth_the_same(method):
    model, groups, shape = perceptron()
    before = pruners()[method].rank(groups, measured(method, model, groups, data(shape)))
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        first, second = model.body[1], model.body[3]
        first.weight.copy_(first.weight[order]), first.bias.copy_(first.bias[order]), second.weight.copy_(second.weight[:, order])
    after = pruners()[method].rank(groups, measured(method, model, groups, data(shape)))
    torch.testing.assert_close(after.score_S[:5], before.score_S[:5][order], rtol=1e-9, atol=1e-15)
    moved = torch.cat([order, torch.tensor([5, 6])])
    assert moved[after.order_S].tolist() == before.order_S.tolist()


@pytest.mark.parametrize("method", READERS)
def test_shards_add_up_to_one_pass(method):
    model, groups, shape = perceptron()
    batches = data(shape, sizes=(2, 3, 4))
    whole = measured(method, model, groups, batches)
    parts = measured(method, model, groups, batches[:2]) + measured(method, model, groups, batches[2:])
    assert (parts.samples, parts.batches) == (whole.samples, whole.batches) == (9, 3)
    for name, total in whole.sums.items():
        torch.testing.assert_close(parts.sums[name], total, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", READERS)
def test_a_batch_that_is_not_finite_counts_for_no_unit(method):
    model, groups, shape = perceptron()
    good = data(shape)
    bad = Batch(good[0].images_NCHW.clone(), good[0].labels)
    bad.images_NCHW[1, 0, 0, 0] = float("inf")
    clean, totals = measured(method, model, groups, good), measured(method, model, groups, [good[0], bad, good[1]])
    assert (totals.samples, totals.batches, totals.skipped) == (7, 2, 1)
    for name, total in clean.sums.items():
        assert torch.equal(totals.sums[name], total)
    with pytest.raises(SecateurError, match="1 skipped"):
        pruners()[method].rank(groups, measured(method, model, groups, [bad]))


@pytest.mark.parametrize("method", READERS)
def test_samples_without_a_label_count_only_if_labels_are_not_read(method):
    model, groups, shape = perceptron()
    (batch,) = data(shape, sizes=(4,))
    half = Batch(batch.images_NCHW, torch.where(torch.arange(4) < 2, batch.labels, -1))
    totals = measured(method, model, groups, [half, Batch(batch.images_NCHW, torch.full((4,), -1))])
    assert (totals.samples, totals.batches, totals.skipped) == (2, 1, 1)
    expected = measured(method, model, groups, [Batch(batch.images_NCHW[:2], batch.labels[:2])])
    for name, total in expected.sums.items():
        torch.testing.assert_close(totals.sums[name], total, rtol=1e-12, atol=1e-15)
    assert measured(method, model, groups, [half], Loss.SAMPLED).samples == 4


def state_of(model):
    return [(name, p.data_ptr(), p.clone(), p.requires_grad, p.grad) for name, p in model.state_dict(keep_vars=True).items()]


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("method", [*READERS, "magnitude", "random"])
@pytest.mark.parametrize("net", ["perceptron", "convolutional"])
def test_the_model_is_not_changed(net, method, raises):
    """The same memory with the same bits, also if something fails in the middle of a batch."""
    model, groups, shape = NETS[net]()
    model.head.bias.requires_grad_(False)
    before, left = state_of(model), [2]

    def fail(*_):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    hook = model.head.register_forward_hook(fail) if raises else None
    if raises and method in READERS:
        with pytest.raises(KeyboardInterrupt):
            measured(method, model, groups, data(shape) * 2)
    else:
        measured(method, model, groups, data(shape))
    if hook:
        hook.remove()
    for (name, pointer, value, required, gradient), (_, *now) in zip(before, state_of(model), strict=True):
        assert now[0] == pointer and torch.equal(now[1], value) and now[2] == required and now[3] is gradient, name


def test_a_loss_that_sees_nothing_of_a_unit_gives_it_nothing():
    """Features end before a group of the head."""
    model, groups, shape = perceptron()
    model.head = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3)).double().eval()
    groups.append(group("head.0", Kind.NEURON, 4, "head.0.weight", "head.0.bias"))
    for method in ("scaling", "exact", "taylor"):
        ranking = pruners()[method].rank(groups, measured(method, model, groups, data(shape), Loss.FEATURES))
        assert ranking.score_S[7:].tolist() == [0.0] * 4 and float(ranking.score_S[:7].min()) > 0


def test_a_model_in_training_mode_is_refused():
    model, groups, shape = convolutional()
    model.body[1].train()
    with pytest.raises(ValueError, match="eval mode"):
        measured("taylor", model, groups, data(shape))


def test_draws_of_taylor_follow_the_seed():
    model, groups, shape = perceptron()
    for loss in (Loss.SAMPLED, Loss.FEATURES):
        first, again, other = (measured("taylor", model, groups, data(shape), loss, seed).sums["absolute_S"] for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
