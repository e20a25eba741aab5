"""A pruned model in the formats of other libraries: a plain state dict, a folder as for the hub, a program of torch.export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from workers.errors import ConfigError, SecateurError
from workers.export import load_family, load_pruned
from workers.files import write_tensors
from workers.models.base import ModelFamily
from workers.models.outputs import as_it_was
from workers.models.timm import TimmModel
from workers.models.transformers import TransformersModel


def write_state_dict(model: Path, to: Path) -> None:
    """Writes the state dict of the module, masked weights as zeros, into a safetensors file.

    Raises: ConfigError if the library cannot load it into an architecture of its own, because units were removed or weights are folded.
    """
    _require_its_own_architecture(load_family(model))
    loaded = load_pruned(model)
    write_tensors(to, {name: tensor.contiguous().clone() for name, tensor in loaded.state_dict().items()}, {"format": "pt"})


def write_folder(model: Path, to: Path) -> str:
    """Writes a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` or ``from_pretrained(FOLDER)`` of transformers loads.

    Models that no library can load by itself are copied as they are. Returns: the library that loads it, ``secateur`` for these.
    """
    family, loaded = load_family(model), as_it_was(load_pruned(model))
    to.mkdir(parents=True, exist_ok=True)
    if isinstance(family, TransformersModel):
        cast(Any, loaded).save_pretrained(to)
        return "transformers"
    if isinstance(family, TimmModel) and not _folded(family):
        from timm.models import save_for_hf

        save_for_hf(loaded, str(to), model_args=family.arguments, safe_serialization=True)
        return "timm"
    shutil.copyfile(model, to / "model.safetensors")
    return "secateur"


def write_program(model: Path, to: Path, shape: tuple[int, int, int]) -> None:
    """Writes a ``.pt2`` program for any number of images of ``shape``, which ``torch.export.load`` loads without secateur.

    Raises: SecateurError if torch cannot export the model.
    """
    import torch

    loaded = load_pruned(model)
    images_NCHW = torch.zeros(2, *shape)  # torch.export treats a size of 1 as a constant
    try:
        program = torch.export.export(loaded, (images_NCHW,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    except Exception as error:  # of many classes, depending on what the model does
        reason = " ".join(str(error).split())[:300]
        raise SecateurError(f"pt2: torch cannot export {type(loaded).__name__}: {reason}") from error
    torch.export.save(program, to)


def _require_its_own_architecture(family: ModelFamily) -> None:
    from workers.models.shrunk import ShrunkModel

    if isinstance(family, ShrunkModel) and family.shapes:
        raise ConfigError("state dict: units were removed, so only load_pruned builds this architecture; write a program (pt2) instead")
    if isinstance(family, TimmModel) and _folded(family):
        raise ConfigError(f"state dict: timm standardises the weights of {family.name} in every pass, which were folded; use load_pruned")


def _folded(family: TimmModel) -> bool:
    import torch

    from workers.models.standardised import standardised

    with torch.device("meta"):
        return bool(standardised(family.released()))
