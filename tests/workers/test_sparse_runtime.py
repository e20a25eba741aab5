"""The sparse runtime: the same outputs as the masked module, and the faster product of each layer."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from workers import sparse
from workers.errors import SecateurError
from workers.evaluation import timed_models
from workers.export import load_pruned, save_model
from workers.models.timm import TimmModel
from workers.sparse import SparseLayer, choices, sparse_model


def mask(module: nn.Module, zeros: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data.mul_(torch.rand(layer.weight.shape, generator=generator) >= zeros)
    return module.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["sparse", "dense"])
def faster(request, monkeypatch) -> str:
    """Which product seems faster."""
    quick = nn.Module if request.param == "dense" else sparse.RowsProduct
    monkeypatch.setattr(sparse, "_milliseconds", lambda product, x: 1.0 if isinstance(product, quick) else 2.0)
    return request.param


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "mobilenetv3_small_050", "beit_base_patch16_224"])
def test_a_model_has_the_same_outputs_with_either_product(name, faster):
    """Heads of BEiT and the like read ``weight`` beside calling layers; depthwise layers have a group for each channel."""
    import timm

    small = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64} if "vit" in name or "beit" in name else {}
    model = mask(timm.create_model(name, **small), 0.8)
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        expected, fast = model.double()(x.double()), sparse_model(model.float())
        found = fast(x), fast(x)
    assert torch.equal(*found)
    assert float((found[0] - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    called = [choice for choice in choices(fast) if choice.runtime is not None]
    assert called and {choice.runtime for choice in called} == {faster}
    assert all(choice.dense_ms and choice.sparse_ms and (choice.sparse_ms < choice.dense_ms) == (faster == "sparse") for choice in called)


class Block(nn.Module):
    """Convolutions whose normalisations may be folded, and some whose may not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(4, 8, 3, bias=False), nn.Conv2d(8, 8, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm1(self.first(x)).relu_()
        y = self.second(x)
        out = self.norm2(y)
        match self.kind:
            case "read once more":
                return out + y
            case "read by its transpose":
                return out + y.mT.mT
            case "given out":
                return out, y
            case "stored":
                self.kept = y
            case "called twice":
                return self.norm2(self.second(out))
        return out


@pytest.mark.parametrize("kind", ["plain", "read once more", "read by its transpose", "given out", "stored", "called twice"])
def test_a_normalisation_is_folded_if_nothing_else_reads_the_convolution(kind, faster):
    """Statistics, scales (negative and zero, too) and shifts are drawn at random; outputs are compared with float64."""
    model, x = mask(Block(kind), 0.5), images(2, 4, 9, 9)
    generator = torch.Generator().manual_seed(1)
    for norm in (model.norm1, model.norm2):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
            tensor.normal_(generator=generator)
        norm.running_var.uniform_(0.1, 2, generator=generator)
        norm.weight.data[0] = 0
    fast = sparse_model(model)
    with torch.inference_mode():
        found = fast(x), fast(x), copy.deepcopy(fast)(x)
        expected = copy.deepcopy(model).double()(x.double())
    torch.testing.assert_close(found, (expected,) * 3, rtol=1e-5, atol=1e-5, check_dtype=False)
    left = [name for name, module in fast.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ([] if kind == "plain" else ["norm2"])
    torch.testing.assert_close(model.double()(x.double()), expected)


def test_the_slower_product_is_let_go_and_the_weight_stays_readable(faster):
    layer = mask(nn.Linear(16, 8), 0.5)
    dense = layer.weight.detach().clone()
    fast = sparse_model(nn.Sequential(layer))[0]
    assert isinstance(fast, SparseLayer) and torch.equal(fast.weight, dense) and fast.runtime is None
    fast(images(4, 16))
    assert (fast.dense is None) == (faster == "sparse") and torch.equal(fast.weight, dense)
    assert f"runtime={faster}" in repr(fast)


def test_only_plain_layers_with_enough_zeros_are_swapped():
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    kept = [nn.Linear(8, 8), mask(Own(8, 8), 0.9), mask(nn.Conv2d(4, 4, 3, padding="same"), 0.9), mask(nn.Conv1d(4, 4, 3), 0.9)]
    kept += [mask(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), 0.9), mask(nn.Linear(8, 8), 0.2)]
    swapped = [mask(nn.Linear(8, 8), 0.9), mask(nn.Conv2d(4, 4, 3), 0.9)]
    fast = sparse_model(nn.Sequential(*kept, *swapped))
    assert [isinstance(layer, SparseLayer) for layer in fast] == [False] * len(kept) + [True] * len(swapped)


def test_a_layer_in_two_places_is_swapped_in_both():
    layer = mask(nn.Linear(8, 8), 0.9)
    fast = sparse_model(nn.Sequential(layer, nn.Sequential(layer)))
    assert isinstance(fast[0], SparseLayer) and fast[1][0] is fast[0]


def test_the_copy_shares_tensors_and_leaves_the_model_as_it_is():
    model = mask(nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.BatchNorm1d(32)), 0.9)
    fast = sparse_model(model)
    fast(images(4, 32))
    assert isinstance(model[0], nn.Linear) and model[0].weight.requires_grad
    assert fast[1].weight.data_ptr() == model[1].weight.data_ptr() and fast[2].running_mean.data_ptr() == model[2].running_mean.data_ptr()
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@pytest.mark.parametrize("faster", ["sparse"], indirect=True)
def test_inputs_of_another_kind_than_the_first_are_refused(faster):
    fast = sparse_model(nn.Sequential(mask(nn.Linear(8, 8), 0.9)))
    fast(images(2, 8))
    with pytest.raises(SecateurError, match=r"expected float32 inputs on the CPU, where the layer was timed, got torch.float64"):
        fast(images(2, 8).double())
    with pytest.raises(SecateurError, match="without gradients"):
        fast(images(2, 8).requires_grad_())


def test_weights_and_inputs_in_half_precision_stay_dense_on_a_cpu():
    fast = sparse_model(nn.Sequential(mask(nn.Linear(8, 8), 0.9).bfloat16()))
    fast(images(2, 8).bfloat16())
    assert choices(fast)[0].runtime == "dense" and choices(fast)[0].sparse_ms is None


def test_threads_that_call_a_new_model_at_once_get_the_same_outputs():
    model = mask(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)), 0.7)
    fast, x = sparse_model(model), images(2, 3, 20, 20)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(fast, [x] * 16))
    torch.testing.assert_close(results, [model(x)] * 16, rtol=1e-5, atol=1e-6)


def test_a_chosen_model_can_be_copied():
    fast = sparse_model(mask(nn.Sequential(nn.Linear(64, 64)), 0.9))
    expected = fast(images(2, 64))
    assert torch.equal(copy.deepcopy(fast)(images(2, 64)), expected)


def test_images_without_a_batch_dimension_are_taken():
    layer = mask(nn.Conv2d(3, 4, 3), 0.5)
    product = sparse.RowsProduct(layer)
    with torch.inference_mode():
        torch.testing.assert_close(product(images(3, 9, 9)), layer(images(3, 9, 9)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("shape", [(2, 8, 9, 7), (1, 8, 1, 1), (8, 5, 5)])
def test_channels_last_images_are_convolved_alike_and_pointwise_ones_stay_channels_last(kernel, groups, shape):
    layer = mask(nn.Conv2d(8, 6, kernel, padding=kernel // 2, groups=groups), 0.5)
    x = images(*shape)
    last = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x[None].contiguous(memory_format=torch.channels_last)[0]
    with torch.inference_mode():
        found = sparse.RowsProduct(layer)(last)
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-6)
    if (kernel, groups) == (1, 1) and x.ndim == 4:
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_two_of_four_weights_are_found():
    """One of four may be more than two zeros, and the columns are a multiple of four."""
    assert sparse._is_two_of_four(torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 1]]))
    assert not sparse._is_two_of_four(torch.tensor([[1.0, 0, 3, 2, 0, 0, 0, 1]]))
    assert not sparse._is_two_of_four(torch.zeros(1, 6))


def test_the_product_of_sparse_tensor_cores_multiplies_the_compressed_weight(monkeypatch):
    """Without a device: the compressed weight is a stand-in that torch multiplies as a dense one."""
    layer, seen = mask(nn.Linear(8, 4), 0.0), []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: seen.append(weight) or weight)
    product = sparse.TwoOfFourProduct(layer)
    assert torch.equal(product(images(3, 8)), layer(images(3, 8))) and product.runtime == "2:4"
    assert len(seen) == 1 and not seen[0].requires_grad


# ----------------------------------------------------------------------------------------------------------------------- model files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    arguments = {"num_classes": 10, "depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
    family = TimmModel(name="vit_tiny_patch16_224", arguments=arguments, checkpoint=None, include=["*.attn.qkv", "*.mlp.fc*"], exclude=[])
    state = mask(family.build(), 0.0).state_dict()
    layers = [name.removesuffix(".weight") for name in state if name.endswith(("fc1.weight", "qkv.weight"))]
    masks = {name: torch.rand(state[f"{name}.weight"].shape) >= 0.9 for name in layers}
    for name, keep in masks.items():
        state[f"{name}.weight"] = state[f"{name}.weight"] * keep
    save_model(tmp_path / "model.safetensors", family, state, masks)
    return tmp_path / "model.safetensors"


def test_a_model_file_loads_into_the_sparse_runtime(file):
    x = images(1, 3, 64, 64)
    fast, plain = load_pruned(file, runtime="sparse"), load_pruned(file)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-5)
    assert {choice.layer for choice in choices(fast)} == {f"blocks.{block}.{name}" for block in (0, 1) for name in ("attn.qkv", "mlp.fc1")}
    assert all(choice.zeros == pytest.approx(0.9, abs=0.02) for choice in choices(fast))


def test_an_unknown_runtime_and_a_damaged_file_are_errors(file):
    with pytest.raises(ValueError, match="expected runtime=None or \"sparse\", got 'fast'"):
        load_pruned(file, runtime="fast")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SecateurError, match=str(file)):
        load_pruned(file, runtime="sparse")


def test_the_sparse_runtime_is_timed_beside_the_dense_model_where_there_are_zeros():
    masked, dense, cpu = mask(nn.Sequential(nn.Linear(8, 8)), 0.9), nn.Sequential(nn.Linear(8, 8)), torch.device("cpu")
    assert list(timed_models(masked, dense, cpu)) == ["images_per_second", "dense_images_per_second", "sparse_images_per_second"]
    assert list(timed_models(dense, dense, cpu)) == ["images_per_second", "dense_images_per_second"]
    assert list(timed_models(masked, None, cpu)) == ["images_per_second"]
