"""A model in 8 bits for onnxruntime on the CPU: made by calibration images, judged on test images, and timed beside its 32 bits."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workers import evaluation, timing
from workers.errors import SecateurError
from workers.export import load_family, load_pruned
from workers.files import digest, finish, read_result
from workers.messages import QuantiseTask
from workers.models.resize import without_empty_attention_
from workers.onnx_export import check_packages, open_session, write_onnx
from workers.records import Int8Model, Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.data.base import Dataset

RANGE_IMAGES = 512  # that the ranges of activations are taken from


def quantise(task: QuantiseTask) -> Record[Int8Model]:
    """Write ``model.int8.onnx`` and tell how accurate and how fast it is.

    Weights are int8, symmetric (so that zeros stay zeros) and scaled by output channel; activations are uint8 with one range for each
    tensor, the least and the largest value over calibration images (Jacob et al. 2018, arXiv 1712.05877; onnxruntime's static
    quantisation). Time is that of one batch in both precisions, in turn.
    Raises: ConfigError if packages are missing; SecateurError if the model cannot be written as ONNX or 8 bits.
    """
    check_packages()
    started = time.monotonic()
    model = load_pruned(task.model)
    images_NCHW = next(_images(task.data))
    path = task.to.directory / Int8Model.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "model.onnx"
        without_empty_attention_(model)
        write_onnx(model, [whole], images_NCHW)
        _to_int8(whole, path, task.data)
        outputs, labels = _outputs(model, path, task.data)
        compared = _timed(path, whole, images_NCHW[:1].repeat(task.latency.batch_size, 1, 1, 1), task)
        whole_bytes = whole.stat().st_size
    dense = torch.cat([read_result(record)["outputs"] for record in task.dense_outputs])
    metrics = evaluation.of_outputs(load_family(task.model).output, outputs, labels, dense)
    numbers = Int8Model(**vars(compared), metrics=metrics, bytes=path.stat().st_size, float_bytes=whole_bytes)
    return finish(task.to, numbers, started, digest(path))


def _images(data: Dataset) -> Iterator[Tensor]:
    for batch in data.calibration(0, 1):
        yield batch.images_NCHW


def _to_int8(whole: Path, path: Path, data: Dataset) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left, self.seen = _images(data), 0

        def get_next(self) -> dict[str, Any] | None:
            images_NCHW = next(self.left, None) if self.seen < RANGE_IMAGES else None
            if images_NCHW is None:
                return None
            self.seen += len(images_NCHW)
            return {"images": images_NCHW.numpy()}

    ready, log = whole.with_name("ready.onnx"), logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of each norm whose one axis is no channel of a convolution
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(whole, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:  # onnxruntime's errors have no class in common
        path.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:300]
        raise SecateurError(f"int8: onnxruntime cannot make 8 bits of the model: {reason}; int8=false leaves this out") from error
    finally:
        log.setLevel(level)


def _outputs(model: nn.Module, path: Path, data: Dataset) -> tuple[Tensor, Tensor]:
    session, outputs, labels = open_session(path, torch.get_num_threads()), [], []
    for batch in data.evaluation("test", 0, 1):
        raw = torch.from_numpy(session.run(["outputs"], {"images": batch.images_NCHW.numpy()})[0])
        outputs.append(evaluation.readable(model, raw))
        labels.append(batch.labels)
    return torch.cat(outputs), torch.cat(labels)


def _timed(path: Path, whole: Path, images_NCHW: Tensor, task: QuantiseTask) -> timing.Comparison:
    sessions = [open_session(file, task.latency.threads or torch.get_num_threads()) for file in (path, whole)]
    feed = {"images": images_NCHW.numpy()}
    runs = [lambda session=session: session.run(None, feed) for session in sessions]
    return timing.in_turn(runs, torch.device("cpu"), task.latency)[0]
