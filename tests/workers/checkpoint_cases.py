"""A tiny model whose checkpoints are read."""

import torch

from workers.models.timm import TimmModel

TINY = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}


def family(checkpoint=None, name="vit_tiny_patch16_224", arguments=None):
    settings = {"include": ["*"], "exclude": [], "stem_and_head": False}
    return TimmModel(name=name, arguments=TINY if arguments is None else arguments, checkpoint=checkpoint and str(checkpoint), **settings)


def trained(seed=0):
    torch.manual_seed(seed)
    return family().build()


def assert_read(path, model, notes=()):
    """Every tensor equals that of ``model`` to the last bit, and the remark about tensors that were left out contains all ``notes``."""
    made, state = family(path), model.state_dict()
    loaded = made.pretrained_state()
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    remarks = made.pretrained_notes()
    assert len(remarks) == bool(notes) and all(note in remarks[0] for note in notes), remarks
