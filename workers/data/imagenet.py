"""Which output of an ImageNet classifier a folder named by a WordNet id belongs to."""

from __future__ import annotations

import re


def wordnet_outputs(classes: list[str], outputs: int) -> tuple[str, dict[str, int]] | None:
    """The subset of ImageNet that has as many classes as the model has ``outputs``, and the output of each class in it.

    The orders are timm's; that of ImageNet-1k is everybody's. None if a class is not named by an id of this subset.
    """
    if not classes or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return None
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return None
    number = {name: index for index, name in enumerate(ImageNetInfo(subset).label_names())}
    return (subset, {name: number[name] for name in classes}) if number.keys() >= set(classes) else None
