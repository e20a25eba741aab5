"""The place of layers in a forward pass and their cost, also if attention uses their weights without calling them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from workers.errors import ConfigError
from workers.models import profile as profiling
from workers.models.profile import profile
from workers.models.timm import TimmModel
from workers.models.torchvision import TorchvisionModel

CASES = [  # family, name, arguments, size of the image
    (TimmModel, "beit_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}, 32),
    (TimmModel, "eva02_tiny_patch14_224", {"img_size": 28, "depth": 3}, 28),
    (TimmModel, "swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4}, 64),
    (TimmModel, "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}, 32),
    (TimmModel, "tf_efficientnet_lite0", {}, 64),
    (TimmModel, "cait_xxs24_224", {"img_size": 64, "depth": 3}, 64),  # a class token that enters late, expanded
    (TimmModel, "pit_ti_224", {}, 224),
    (TimmModel, "iformer_t", {}, 64),  # values twice as wide as queries
    (TorchvisionModel, "swin_t", {}, 64),
    (TorchvisionModel, "swin_v2_t", {}, 64),
    (TorchvisionModel, "resnet18", {}, 64),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[1])
def profiled(request):
    kind, name, arguments, size = request.param
    family = kind(name=name, arguments={"num_classes": 10} | arguments, checkpoint=None, include=["*"], exclude=[], stem_and_head=True)
    return family, profile(family, (3, size, size))


def test_all_products_with_weights_are_those_of_the_layers(profiled) -> None:
    """Torch's count of the whole pass is the sum over layers, each a multiple of its weights."""
    _, sizes = profiled
    assert sum(depth.flops for depth in sizes.depths) == sizes.weighted_flops
    assert all(depth.flops > 0 and depth.flops % (2 * layer.weights) == 0 for layer, depth in zip(sizes.layers, sizes.depths, strict=True))


def test_each_layer_stands_right_behind_the_products_of_those_before_it(profiled) -> None:
    _, sizes = profiled
    before = [depth.weighted_before for depth in sizes.depths]
    own = [depth.flops for depth in sizes.depths]
    assert before == [sum(own[:index]) for index in range(len(own))]
    kept = [depth.kept_bytes for depth in sizes.depths]
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize("values", [8, 16])
def test_attention_keeps_its_matrix_of_pairs_only_where_devices_have_to(values) -> None:
    """Flash kernels take values as wide as queries: then what is kept does not grow with the square of the tokens."""

    class Attention(nn.Module):
        def forward(self, tokens_ND):
            query = tokens_ND[None, None]
            value = query.repeat(1, 1, 1, values // 8)
            return functional.scaled_dot_product_attention(query, query, value)

    def kept(tokens: int) -> int:
        with torch.device("meta"):
            return sum(storage.nbytes() for storage, _ in profiling._Kept(Attention(), [], torch.empty(tokens, 8))._saved.values())

    growth = kept(2000) / kept(1000)
    assert growth < 2.1 if values == 8 else growth > 3


def vit(size: int = 32, **arguments):
    small = {"img_size": size, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    return TimmModel(name="vit_tiny_patch16_224", arguments=small | arguments, checkpoint=None, include=["*"], exclude=[])


def test_an_image_that_does_not_fit_is_reported_with_the_models_own_reason_and_size() -> None:
    with pytest.raises(
        ConfigError, match=r"images of 3x40x40 .* do not fit the model: Input height \(40\) doesn't match model \(32\); .*3x224x224"
    ):
        profile(vit(), (3, 40, 40))


def test_where_counting_fails_images_are_not_blamed(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("Expected gradient function to be set")

    monkeypatch.setattr(profiling._Kept, "_forward", fail)
    with pytest.raises(ConfigError, match=r"model: .*cannot be counted.*3x32x32: Expected"):
        profile(vit(), (3, 32, 32))


def test_a_model_that_depends_on_values_is_reported(monkeypatch) -> None:
    class Looking(nn.Module):
        def forward(self, images_NCHW):
            return images_NCHW if images_NCHW.sum().item() > 0 else -images_NCHW

    monkeypatch.setattr(TimmModel, "build", lambda self: Looking())
    monkeypatch.setattr(TimmModel, "layers", lambda self, model: [])
    with pytest.raises(ConfigError, match=r"model: .*cannot be counted without weights"):
        profile(vit(), (3, 32, 32))
