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
