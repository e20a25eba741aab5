"""Compare the times of dense and masked models in runtimes for CPUs: which of them runs a model with 90 % zeros faster than its dense twin?

    python scripts/compare_runtimes.py [vit_small_patch16_224:224 ...] [--sparsity 0.9] [--batch 1] [--threads 1] [--compile]

A model is an architecture of timm and the size of its images. Weights are random. The masked twin has random zeros in every Linear and
Conv2d except the first convolution, depthwise convolutions and the classifier. For each runtime that is installed, the script prints the
time of a forward pass of both and how many times faster the masked one is. They take turns of a few runs, at least 21 of each that count,
until the standard error of that ratio is below 1 % or the time is up. A runtime whose outputs differ from torch's is reported, not timed.

All runtimes compute in float32. "sparse" is this project's runtime; its dense model runs in torch. "OpenVINO, rate" sets
CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE: OpenVINO may then pack weights with more zeros than that, but only does so for int8 weights and
inputs on processors with AMX. XNNPACK has sparse kernels for 1x1 convolutions. ExecuTorch does not ask for them; LiteRT does for weights
that its file stores sparse, which litert-torch does not write. On x86, XNNPACK takes them only without AVX, so this does not matter there.

Runtimes that are not installed are left out. These need not be in the project's environment, where they could change other packages:

    pip install --no-deps --target OTHER/openvino openvino openvino-telemetry
    pip install --no-deps --target OTHER/executorch executorch torchao ruamel.yaml tabulate
    pip install --no-deps --target OTHER/litert litert-torch litert-converter ai-edge-litert ai-edge-quantizer jax jaxlib torchao
    PYTHONPATH=OTHER/openvino:OTHER/executorch:OTHER/litert python scripts/compare_runtimes.py

Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache, partial
from importlib.metadata import version

import numpy as np
import timm
import torch
from torch import Tensor, nn

from orchestrator.cluster.base import processor
from orchestrator.quantities import count
from workers.latency import Latency, Runtime
from workers.memory import keep_freed_memory
from workers.onnx_export import open_session
from workers.sparse import sparse_model
from workers.timing import in_turn, realised

MODELS = ("vit_small_patch16_224:224", "convnext_tiny:224", "efficientnet_lite0:224")
TOLERANCE = 1e-3  # of the largest output
WARM_UPS = 3
RATE = 0.8  # of zeros, from which OpenVINO is asked to pack a weight

Run = Callable[[], Tensor | np.ndarray]
Prepare = Callable[[nn.Module, Tensor, int], Run]


@lru_cache(maxsize=2)
def onnx_file(model: nn.Module, images: Tensor) -> bytes:
    """Returns the ONNX file of a model for images of this shape, whose input is called ``images``."""
    return torch.onnx.export(model, (images,), input_names=["images"], verbose=False).model_proto.SerializeToString()


def in_torch(model: nn.Module, images: Tensor, threads: int) -> Run:
    return torch.inference_mode()(lambda: model(images))  # torch's threads are those of the process


def in_compiled_torch(model: nn.Module, images: Tensor, threads: int) -> Run:
    return in_torch(torch.compile(model, dynamic=False), images, threads)


def in_sparse_runtime(model: nn.Module, images: Tensor, threads: int) -> Run:
    return in_torch(sparse_model(model), images, threads)


def in_onnxruntime(model: nn.Module, images: Tensor, threads: int) -> Run:
    session, feeds = open_session(onnx_file(model, images), threads), {"images": images.numpy()}
    return lambda: session.run(None, feeds)[0]


def in_openvino(model: nn.Module, images: Tensor, threads: int, **properties: object) -> Run:
    import openvino

    properties |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(onnx_file(model, images)), "CPU", properties).create_infer_request()
    return lambda: request.infer([images.numpy()], share_inputs=True)[0]


def in_executorch(model: nn.Module, images: Tensor, threads: int) -> Run:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime as ExecuTorch

    _unsafe_reset_threadpool(threads)  # no other function sets the number of threads
    lowered = to_edge_transform_and_lower(torch.export.export(model, (images,)), partitioner=[XnnpackPartitioner()])
    program = ExecuTorch.get().load_program(lowered.to_executorch().buffer)
    return lambda: program.load_method("forward").execute([images])[0]


def in_litert(model: nn.Module, images: Tensor, threads: int) -> Run:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=litert_torch.convert(model, (images,)).model_content(), num_threads=threads)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run() -> np.ndarray:
        interpreter.set_tensor(source, images.numpy())
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run


RUNTIMES: dict[str, tuple[str, Prepare]] = {  # the package with the version, and what prepares a model or raises ImportError
    "torch": ("torch", in_torch),
    "torch.compile": ("torch", in_compiled_torch),
    "sparse": ("secateur", in_sparse_runtime),
    "onnxruntime": ("onnxruntime", in_onnxruntime),
    "OpenVINO": ("openvino", in_openvino),
    f"OpenVINO, rate {RATE}": ("openvino", partial(in_openvino, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=RATE)),
    "ExecuTorch (XNNPACK)": ("executorch", in_executorch),
    "LiteRT (XNNPACK)": ("ai-edge-litert", in_litert),
}


def masked(model: nn.Module, sparsity: float) -> nn.Module:
    """Returns a copy of a model of timm with random zeros in all but the first convolution, depthwise convolutions and the classifier."""
    twin = copy.deepcopy(model)
    convolutions = [layer for layer in twin.modules() if isinstance(layer, nn.Conv2d)]
    dense = {*convolutions[:1], *(layer for layer in convolutions if layer.groups == layer.in_channels), twin.get_classifier()}
    for layer in twin.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer not in dense:
            layer.weight[torch.rand_like(layer.weight) < sparsity] = 0
    return twin


def checked_runs(prepare: Prepare, models: tuple[nn.Module, nn.Module], images: Tensor, threads: int) -> list[Run]:
    """Returns what runs the masked and the dense model. Raises: ValueError if the outputs of either differ from torch's."""
    runs = []
    for model, own in zip(models, (prepare, in_torch if prepare is in_sparse_runtime else prepare), strict=True):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # of the progress of exports
            run = own(model, images, threads)
            outputs_ND = [torch.as_tensor(run()) for _ in range(WARM_UPS)][-1]
        expected_ND = model(images)
        difference = float((outputs_ND - expected_ND).abs().max() / expected_ND.abs().max())
        if not difference < TOLERANCE:
            raise ValueError(f"expected outputs within {TOLERANCE:.0e} of torch's, got a relative difference of {difference:.1e}")
        runs.append(run)
    return runs


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="NAME:SIZE")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4, help="longest time of a comparison")
    parser.add_argument("--compile", action="store_true", help="time torch.compile, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    settings = Latency(Runtime.EAGER, options.batch, options.threads, 2, 0.01, options.seconds / 20)  # two models, ten times as long
    runtimes = {name: value for name, value in RUNTIMES.items() if options.compile or name != "torch.compile"}
    print(f"{processor()}, {count(options.threads, 'thread')}, {count(options.batch, 'image')}, {options.sparsity:.0%} zeros")
    print(f"{'model':28}{'runtime':22}{'version':11}{'dense ms':>10}{'masked ms':>11}{'dense/masked':>14}{'± %':>6}")
    for model in options.models:
        name, _, side = model.partition(":")
        dense = realised(timm.create_model(name).eval(), torch.device("cpu"))
        images_NCHW = torch.randn(options.batch, 3, int(side), int(side))
        models = masked(dense, options.sparsity), dense
        for runtime, (package, prepare) in list(runtimes.items()):
            try:
                runs = checked_runs(prepare, models, images_NCHW, options.threads)
            except ImportError as error:
                print(f"{runtime} is not installed: {error}")
                del runtimes[runtime]
            except Exception as error:  # of any library; they have no class in common
                print(f"{name:28}{runtime:22}error: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
            else:
                (found,) = in_turn(runs, images_NCHW.device, settings)
                times = f"{found.beside_ms:10.2f}{found.ratio * found.beside_ms:11.2f}{1 / found.ratio:14.2f}{found.spread:6.1%}"
                print(f"{name:28}{runtime:22}{version(package):11}{times}", flush=True)


if __name__ == "__main__":
    main()
