"""The mapping from WordNet ids to outputs of ImageNet classifiers."""

from __future__ import annotations

import re


def wordnet_outputs(classes: list[str], outputs: int) -> tuple[str, dict[str, int]] | None:
    """Returns the subset of ImageNet with as many classes as the model has ``outputs``, and the output of each class.

    None if there is no such subset, or if a class is not named by one of its ids. The orders of classes are timm's, which for ImageNet-1k
    is the common one.
    """
    if not classes or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return None
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return None
    number = {name: index for index, name in enumerate(ImageNetInfo(subset).label_names())}
    return (subset, {name: number[name] for name in classes}) if number.keys() >= set(classes) else None
