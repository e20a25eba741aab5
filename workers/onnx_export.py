"""Export of a model file to ONNX, with a check against torch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workers.disks import writing
from workers.errors import ConfigError, SecateurError
from workers.models.base import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.data.base import Dataset

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest output: the order of float32 sums changes about 1e-6 of it, a wrong layer far more
TEST_IMAGES = 32
REMEDY = "the ONNX file was deleted, the model file is not affected; set onnx=false to skip this export"
ONE_FILE_BYTES = 1_900_000_000  # an ONNX file is limited to 2 GiB; larger weights are written to a second file


def check_packages() -> None:
    """Raises ``ConfigError`` with the command that installs missing packages."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"onnx: needs packages that are not installed ({', '.join(missing)}); run: pip install {' '.join(PACKAGES)}")


def first_images(data: Dataset) -> Tensor:
    """Returns the first test images of a data set, to check an export with."""
    import torch

    images: list[Tensor] = []
    for batch in data.evaluation("test", 0, 1):
        images.append(batch.images_NCHW)
        if sum(map(len, images)) >= TEST_IMAGES:
            break
    return torch.cat(images)[:TEST_IMAGES]


def export_onnx(model_path: Path, onnx_path: Path, images_NCHW: Tensor) -> dict[str, Any]:
    """Exports the model of a file to ONNX, for any number of images of this size, and compares both on ``images_NCHW``.

    The input ``images`` (N, C, H, W) is float32, normalised as in training; the output ``outputs`` (N, D) holds logits or features. Masked
    weights are stored as zeros. onnxruntime runs on the CPU, with all images in one batch and with the first image alone.
    Returns: the names of the files, and the agreement: ``max_difference`` is ``max |onnx - torch| / max |torch|`` over all outputs and is
    at most ``tolerance``; all top-1 decisions of a classifier are equal.
    Raises: ConfigError if packages are missing; SecateurError if the model cannot be exported or the outputs disagree. The files are then
    deleted.
    """
    check_packages()
    import onnxruntime
    import torch

    from workers.export import load_family, load_pruned
    from workers.models.resize import without_empty_attention_

    model, classifier = load_pruned(model_path), load_family(model_path).output is Output.LOGITS
    batches = (images_NCHW, images_NCHW[:1])
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
    without_empty_attention_(model)
    files = [onnx_path, *([onnx_path.with_name(onnx_path.name + ".data")] if _bytes(model) > ONE_FILE_BYTES else [])]
    try:
        write_onnx(model, files, images_NCHW)
        outputs = _run(onnx_path, batches)
        difference = max(_difference(torch_ND, onnx_ND, classifier) for torch_ND, onnx_ND in zip(expected, outputs, strict=True))
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    return {
        "files": [path.name for path in files],
        "max_difference": difference,
        "tolerance": TOLERANCE,
        "images": len(images_NCHW),
        "onnxruntime": onnxruntime.__version__,
    }


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def write_onnx(model: nn.Module, files: list[Path], images_NCHW: Tensor) -> None:
    """Writes one file, or two with the weights in the second. Raises: SecateurError if torch cannot export the model."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with writing(files[0]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.cat([images_NCHW, images_NCHW])[:2],),  # torch.export treats a size of 1 as a constant
                files[0],
                input_names=["images"],
                output_names=["outputs"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=len(files) > 1,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise SecateurError(f"onnx: torch cannot export {type(model).__name__}: {reason}; {REMEDY}") from error


def _run(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    """Returns the outputs of onnxruntime. Raises: SecateurError if it cannot run the model."""
    import onnxruntime
    import torch

    try:
        session = open_session(path)
        return [torch.from_numpy(session.run(["outputs"], {"images": batch.numpy()})[0]) for batch in batches]
    except Exception as error:  # onnxruntime's errors have no class in common
        reason = " ".join(str(error).split())[:300]
        raise SecateurError(f"onnx: onnxruntime {onnxruntime.__version__} cannot run the model: {reason}; {REMEDY}") from error


def open_session(model: Path | bytes, threads: int = 0) -> Any:
    """Returns a session on the CPU whose threads sleep between runs. ``threads=0`` takes as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _difference(torch_ND: Tensor, onnx_ND: Tensor, classifier: bool) -> float:
    """Returns the largest difference of outputs, relative to the largest output.

    Raises: SecateurError if it exceeds ``TOLERANCE``, or if a top-1 decision changed.
    """
    difference = float((onnx_ND - torch_ND).abs().max() / torch_ND.abs().max())
    changed = int((onnx_ND.argmax(1) != torch_ND.argmax(1)).sum()) if classifier else 0
    if not difference <= TOLERANCE or changed:
        raise SecateurError(
            f"onnx: expected outputs of onnxruntime and torch that differ by at most {TOLERANCE:.0e} of the largest and agree in all top-1 "
            f"decisions, got a difference of {difference:.1e} and {changed} changed decisions on {len(onnx_ND)} images; {REMEDY}"
        )
    return difference


def in_memory(module: nn.Module, inputs: tuple[Tensor, ...], threads: int) -> tuple[Any, dict[str, Any]]:
    """Returns a session of onnxruntime for a module with inputs of fixed shapes, and the inputs by name.

    Raises: SecateurError if torch cannot export the module or onnxruntime cannot load it.
    """
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = [f"input_{index}" for index in range(len(inputs))]
    try:
        program = torch.onnx.export(module, inputs, input_names=names, verbose=False)
        model = cast("Any", program).model_proto.SerializeToString()
        session = open_session(model, threads)
    except Exception as error:  # of either library; they have no class in common
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        name = type(module).__name__
        raise SecateurError(f"latency.runtime: onnxruntime cannot run {name}: {reason}; set latency.runtime=eager") from error
    return session, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
