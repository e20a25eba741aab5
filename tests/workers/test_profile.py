"""Where layers stand in a forward pass and what they take of it, also where an attention uses their weights without calling them."""

import pytest

from workers.models.profile import profile
from workers.models.timm import TimmModel
from workers.models.torchvision import TorchvisionModel

CASES = [  # family, name, arguments, size of the image
    (TimmModel, "beit_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}, 32),
    (TimmModel, "eva02_tiny_patch14_224", {"img_size": 28, "depth": 3}, 28),
    (TimmModel, "swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4}, 64),
    (TimmModel, "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}, 32),
    (TimmModel, "tf_efficientnet_lite0", {}, 64),
    (TorchvisionModel, "swin_t", {}, 64),
    (TorchvisionModel, "swin_v2_t", {}, 64),
    (TorchvisionModel, "resnet18", {}, 64),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[1])
def found(request):
    kind, name, arguments, size = request.param
    family = kind(name=name, arguments={"num_classes": 10} | arguments, checkpoint=None, include=["*"], exclude=[], stem_and_head=True)
    return family, profile(family, (3, size, size))


def test_all_products_with_weights_are_those_of_the_layers(found) -> None:
    """Torch's count of the whole pass is the sum over layers, each a multiple of its weights."""
    _, sizes = found
    assert sum(depth.flops for depth in sizes.depths) == sizes.weighted_flops
    assert all(depth.flops > 0 and depth.flops % (2 * layer.weights) == 0 for layer, depth in zip(sizes.layers, sizes.depths, strict=True))


def test_each_layer_stands_right_behind_the_products_of_those_before_it(found) -> None:
    _, sizes = found
    before = [depth.weighted_before for depth in sizes.depths]
    own = [depth.flops for depth in sizes.depths]
    assert before == [sum(own[:index]) for index in range(len(own))]
    kept = [depth.kept_bytes for depth in sizes.depths]
    assert kept == sorted(kept, reverse=True)
