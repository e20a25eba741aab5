"""A model file as ONNX, for onnxruntime and what builds on it; checked against torch before anybody relies on it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workers.errors import ConfigError, SecateurError
from workers.models.base import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.data.base import Dataset

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order differ by about 1e-6 of it, a wrong layer by far more
TEST_IMAGES = 32
REMEDY = "no ONNX file was kept; the model file is whole, and onnx=false leaves this out"
ONE_FILE_BYTES = 1_900_000_000  # an ONNX file ends at 2 GiB; weights of more stand in a file of their own beside it


def check_packages() -> None:
    """Raise ``ConfigError`` with the command that installs what is missing."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"onnx: needs packages that are not installed ({', '.join(missing)}); run: pip install {' '.join(PACKAGES)}")


def first_images(data: Dataset) -> Tensor:
    """The first test images of a data set, to check an export on."""
    import torch

    images: list[Tensor] = []
    for batch in data.evaluation("test", 0, 1):
        images.append(batch.images_NCHW)
        if sum(map(len, images)) >= TEST_IMAGES:
            break
    return torch.cat(images)[:TEST_IMAGES]


def export_onnx(model_path: Path, onnx_path: Path, images_NCHW: Tensor) -> dict[str, Any]:
    """Write the model of a file as ONNX, for any number of images of that size, and run both on ``images_NCHW``.

    Input ``images`` (N, C, H, W) is float32 and normalised as in training, output ``outputs`` (N, D) are logits or features. Pruned
    weights are stored as the zeros they are. onnxruntime runs on the CPU, with all images in one batch and with the first one alone.
    Returns: names of the files, and how well they agree: ``max_difference`` is ``max |onnx - torch| / max |torch|`` over all outputs, at
    most ``tolerance``; all top-1 decisions of a classifier are equal.
    Raises: ConfigError if packages are missing; SecateurError, leaving no file, if the model cannot be exported or outputs disagree.
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
        found = _run(onnx_path, batches)
        difference = max(_difference(ours_ND, theirs_ND, classifier) for ours_ND, theirs_ND in zip(expected, found, strict=True))
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
    """Of one file, or of one and another for its weights. Raises: SecateurError if torch cannot export the model."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.cat([images_NCHW, images_NCHW])[:2],),  # torch.export takes a size of 1 for a constant
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
    """What onnxruntime makes of the images. Raises: SecateurError if it does not take the model."""
    import onnxruntime
    import torch

    try:
        session = open_session(path)
        return [torch.from_numpy(session.run(["outputs"], {"images": batch.numpy()})[0]) for batch in batches]
    except Exception as error:  # onnxruntime's errors have no class in common
        reason = " ".join(str(error).split())[:300]
        raise SecateurError(f"onnx: onnxruntime {onnxruntime.__version__} cannot run the model: {reason}; {REMEDY}") from error


def open_session(model: Path | bytes, threads: int = 0) -> Any:
    """A session on the CPU (0 threads: as many as there are cores), whose threads rest between two runs, so that it disturbs no other."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _difference(expected_ND: Tensor, found_ND: Tensor, classifier: bool) -> float:
    """Largest difference of outputs, relative to the largest output. Raises: SecateurError if it, or a decision, is not as it should be."""
    difference = float((found_ND - expected_ND).abs().max() / expected_ND.abs().max())
    changed = int((found_ND.argmax(1) != expected_ND.argmax(1)).sum()) if classifier else 0
    if not difference <= TOLERANCE or changed:
        raise SecateurError(
            f"onnx: on {len(found_ND)} images, outputs of onnxruntime and torch differ by {difference:.1e} of the largest (allowed is "
            f"{TOLERANCE:.0e}), and {changed} top-1 decisions are others; {REMEDY}"
        )
    return difference


def in_memory(module: nn.Module, inputs: tuple[Tensor, ...], threads: int) -> tuple[Any, dict[str, Any]]:
    """A session of onnxruntime for a module with inputs of fixed shapes, and the inputs under the names that it knows them by.

    Raises: SecateurError if torch cannot export it, or onnxruntime does not take it.
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
        raise SecateurError(f"latency: onnxruntime cannot run {type(module).__name__}: {reason}; use latency.runtime=eager") from error
    return session, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
