"""Models in files, and their outputs in onnxruntime."""

import pytest
import torch
from structure_cases import half, on_meta, trained_looking

from workers.export import save_model
from workers.models.shrunk import shrunk
from workers.models.structures.groups import take
from workers.models.timm import TimmModel

VIT = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 4}


def written(path, name="vit_tiny_patch16_224", arguments=VIT, keep=half, sparsity=0.5):
    """A model without units that ``keep`` leaves out, a part of whose other weights are pruned, in a file."""
    made = TimmModel(name=name, arguments=arguments, checkpoint=None, include=["*"], exclude=[])
    model = trained_looking(made).float()
    state, family = model.state_dict(), made
    if keep is not None:
        groups = on_meta(made, 32, channels=1)
        kept = {group.name: keep(group.units) for group in groups}
        state = take(state, groups, kept)
        family = shrunk(made, model.state_dict(), state, groups, kept)
    masks = {layer.name: torch.rand(state[f"{layer.name}.weight"].shape) >= sparsity for layer in family.layers(family.build())}
    save_model(path, family, state | {f"{name}.weight": state[f"{name}.weight"] * mask for name, mask in masks.items()}, masks)
    return path


def through_onnxruntime(path, images_NCHW):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["outputs"], {"images": images_NCHW.numpy()})[0])
