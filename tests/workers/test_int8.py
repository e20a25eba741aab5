"""Models in 8 bits: the file has the reported properties."""

import numpy as np
import pytest
import torch
from data_cases import digits
from onnx_cases import through_onnxruntime, written

from workers import int8
from workers.errors import SecateurError
from workers.evaluation import of_outputs
from workers.export import load_masks, load_pruned
from workers.files import read_record, write_tensors
from workers.latency import Latency, Runtime
from workers.messages import QuantiseTask
from workers.models.base import Output
from workers.records import Destination, Outputs, Record


def dense_outputs(folder, outputs_ND):
    written_as = write_tensors(folder / "outputs.safetensors", {"outputs": outputs_ND})
    numbers = Outputs(len(outputs_ND), {}, 0, {})
    return (Record("", folder, {"outputs.safetensors": written_as}, numbers, "", 0.0, 0.0),)


@pytest.fixture
def task(tmp_path):
    """Of half a ViT, half of whose weights are pruned."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = written(tmp_path / "model.safetensors")
    with torch.no_grad():
        expected_ND = torch.cat([load_pruned(model)(batch.images_NCHW) for batch in digits().evaluation("test", 0, 1)])
    latency = Latency(Runtime.EAGER, 4, 1, 2, 0.2, 0.001)
    return QuantiseTask(model, digits(), latency, dense_outputs(tmp_path, expected_ND), Destination("key", tmp_path / "result"))


def integers(path):
    """Weights in 8 bits and their scales, by name."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(path).graph
    values = {entry.name: to_array(entry) for entry in graph.initializer}
    read = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    return {node.input[0]: (values[node.input[0]], values[node.input[1]]) for node in read if values[node.input[0]].dtype == np.int8}


def test_accuracy_is_that_of_the_file_and_near_that_of_the_model_in_32_bits(task):
    quantised = int8.quantise(task)
    batches = list(task.data.evaluation("test", 0, 1))
    outputs_ND = torch.cat([through_onnxruntime(quantised.file, batch.images_NCHW) for batch in batches])
    with torch.no_grad():
        dense_ND = torch.cat([load_pruned(task.model)(batch.images_NCHW) for batch in batches])
    labels_N = torch.cat([batch.labels for batch in batches])
    assert quantised.numbers.metrics == of_outputs(Output.LOGITS, outputs_ND, labels_N, dense_ND)
    assert quantised.numbers.metrics["agreement"] > 0.7  # with random weights, which decide by little
    assert quantised.numbers.bytes == quantised.file.stat().st_size
    assert quantised.numbers.ratio > 0 and quantised.numbers.repeats >= 7
    assert read_record(task.to.directory).fingerprint == "key"


def test_pruned_weights_are_zero_and_others_at_most_half_a_step_from_theirs(task):
    """Every layer's weights in the file, whichever way round, with a step for each output."""
    weights = integers(int8.quantise(task).file)
    model, masks, matched = load_pruned(task.model), load_masks(task.model), 0
    for name, keep in masks.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        for entries, scale in weights.values():
            values = torch.from_numpy(entries.astype(np.float32))
            for stored, steps in ((values, torch.as_tensor(scale)), (values.T, torch.as_tensor(scale))):
                if stored.shape == weight.shape and steps.ndim == 1 and len(steps) == len(weight):
                    steps = steps.reshape(-1, *[1] * (weight.ndim - 1))
                    if ((stored * steps - weight).abs() <= 0.501 * steps).all():
                        assert not stored[~keep].any()
                        matched += 1
    assert matched == len(masks) > 0


def test_a_model_that_cannot_be_quantised_leaves_no_file(task, monkeypatch):
    monkeypatch.setattr(int8, "write_onnx", lambda model, files, images: files[0].write_bytes(b"not a model"))
    with pytest.raises(SecateurError, match=r"^int8: onnxruntime cannot make 8 bits of the model: .*int8=false leaves this out$"):
        int8.quantise(task)
    assert list(task.to.directory.iterdir()) == []
