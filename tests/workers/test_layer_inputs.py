"""The layer Hessian against the second derivative of the layer's error, and merging from files."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from kernels.second_moment import SecondMoment
from workers.collect.layer_hessian import layer_hessian
from workers.collect.moments import StoredMoment, write_moment
from workers.data.base import Batch
from workers.errors import DamagedResult
from workers.files import finish
from workers.models.base import Layer
from workers.records import Destination, PartialMoment, Record

SMALL = Batch(torch.randn(3, 4, 7, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64))


def conv(**settings: object) -> nn.Conv2d:
    return nn.Conv2d(4, 8, **({"kernel_size": 3} | settings))  # type: ignore[arg-type]


def layer_of(module: nn.Module, name: str) -> Layer:
    weight = module.weight
    return Layer(name, len(weight), weight[0].numel(), weight[0, 0].numel(), getattr(module, "groups", 1))


def hessian_by_autograd(module: nn.Conv2d | nn.Linear, inputs: torch.Tensor, row: int) -> torch.Tensor:
    """Second derivative of ``sum |W x - W' x|^2`` by row ``row`` of W, at W' = W: (C, C)."""
    weight = module.weight.detach().double()

    def error(changed_C: torch.Tensor) -> torch.Tensor:
        moved = weight.clone()
        moved[row] = changed_C.reshape(weight[row].shape)
        if isinstance(module, nn.Linear):
            difference = functional.linear(inputs.double(), moved - weight)
        else:
            difference = module._conv_forward(inputs.double(), moved - weight, None)
        return difference.square().sum()

    return torch.autograd.functional.hessian(error, weight[row].flatten())


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 5),
        conv(),
        conv(kernel_size=1, stride=2),
        conv(padding=1, stride=(2, 1), dilation=(1, 2)),
        conv(groups=2, padding="same", kernel_size=(2, 3)),
        conv(groups=4, padding=2, padding_mode="reflect"),
        conv(padding="valid", bias=False),
    ],
    ids=str,
)
def test_it_is_the_second_derivative_of_the_squared_output_error(module: nn.Module) -> None:
    model = nn.Sequential(module)
    layer = layer_of(module, "0")
    collected = layer_hessian(model, [layer], iter([SMALL, SMALL]))
    moment = collected.moments["0"]
    vectors = 2 * (module(SMALL.images_NCHW).numel() // layer.rows)
    assert moment.count == vectors and collected.skipped == {"0": 0}
    for row in range(layer.rows):
        expected = 2 * hessian_by_autograd(module, SMALL.images_NCHW, row)
        torch.testing.assert_close(moment.sum_nBB[row * layer.groups // layer.rows].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_convolution_that_pads_by_itself_is_seen_where_its_weight_meets_the_input() -> None:
    from timm.layers import Conv2dSame

    module = Conv2dSame(4, 8, 3, stride=2)
    moment = layer_hessian(nn.Sequential(module), [layer_of(module, "0")], iter([SMALL])).moments["0"]
    padded = functional.pad(SMALL.images_NCHW, (0, 1, 1, 1))  # 6 -> 3 and 7 -> 4 outputs at stride 2
    patches_NPL = functional.unfold(padded, 3, stride=2)
    vectors = patches_NPL.permute(1, 0, 2).flatten(1).double()
    assert moment.count == vectors.shape[1]
    torch.testing.assert_close(moment.sum_nBB[0].double(), 2 * vectors @ vectors.T, rtol=1e-5, atol=1e-5)


def test_large_inputs_are_unfolded_in_parts_without_changing_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    module = conv(padding=1)
    whole = layer_hessian(nn.Sequential(module), [layer_of(module, "0")], iter([SMALL])).moments["0"]
    monkeypatch.setattr("workers.collect.layer_hessian.PATCH_BYTES", 1)
    parts = layer_hessian(nn.Sequential(module), [layer_of(module, "0")], iter([SMALL])).moments["0"]
    assert parts.count == whole.count
    torch.testing.assert_close(parts.sum_nBB, whole.sum_nBB)


def test_a_batch_that_is_not_finite_is_skipped_for_the_layers_that_read_it() -> None:
    model = nn.Sequential(conv(padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    broken = Batch(SMALL.images_NCHW.clone(), SMALL.labels)
    broken.images_NCHW[0, 0, 0, 0] = torch.inf
    layers = [layer_of(model[0], "0"), layer_of(model[2], "2")]
    collected = layer_hessian(model, layers, iter([SMALL, broken]))
    clean = layer_hessian(model, layers, iter([SMALL]))
    assert collected.skipped["0"] == 1
    assert torch.equal(collected.moments["0"].sum_nBB, clean.moments["0"].sum_nBB)
    assert torch.isfinite(collected.moments["2"].sum_nBB).all()


@pytest.fixture
def shards(tmp_path) -> list[tuple[Record[PartialMoment], SecondMoment]]:
    """Two shards of one layer's moment, stored; and what was stored."""
    made = []
    for index in range(2):
        factor = torch.randn(7, 5, 12, generator=torch.Generator().manual_seed(index))
        moment = SecondMoment(factor @ factor.mT, 12)
        to = Destination(f"fingerprint{index}", tmp_path / str(index))
        written = write_moment(to, SecondMoment(moment.sum_nBB.clone(), 12))
        made.append((finish(to, PartialMoment("fc", 0, 12, 0), 0.0, written), moment))
    return made


def test_stored_shards_merge_in_order_however_they_are_sliced(shards: list[tuple[Record, SecondMoment]]) -> None:
    stored = StoredMoment(tuple(record for record, _ in shards), torch.device("cpu"))
    lower = (shards[0][1].sum_nBB + shards[1][1].sum_nBB) / 24
    expected = lower.tril() + lower.tril(-1).mT
    assert (stored.blocks, stored.block_size, stored.count) == (7, 5, 24)
    assert torch.equal(stored.mean_nBB(), expected)
    assert torch.equal(torch.cat([stored.mean_nBB(slice(i, i + 3)) for i in range(0, 7, 3)]), expected)
    assert torch.equal(stored.diagonal_nB(), expected.diagonal(dim1=-2, dim2=-1))


def test_a_damaged_shard_is_never_read(shards: list[tuple[Record, SecondMoment]]) -> None:
    record, _ = shards[1]
    path = record.file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedResult, match="checksum"):
        StoredMoment((shards[0][0], record), torch.device("cpu")).mean_nBB(slice(0, 1))
